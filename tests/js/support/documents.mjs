// The documentation's snippets and configurations, which the tests run.
import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";

/** The repository. */
export const ROOT = path.resolve(import.meta.dirname, "../../..");

export const read = (document) => readFileSync(path.join(ROOT, document), "utf8");

/** The blocks of a document that follow a `<!-- kind: name -->`, in their order. */
export const blocks = (document) =>
  [...read(document).matchAll(/<!-- \w+: (\S+) -->\n```\w+\n([^]*?)```/g)].map(([, name, body]) => ({ name, body }));

export function block(document, name) {
  const found = blocks(document).find((one) => one.name === name);
  assert.ok(found, `${document} has a block ${name}`);
  return found.body;
}

/** The text with this machine's ports, paths and time-outs; each of them is in it, once. */
export function here(text, changes) {
  for (const [old, mine] of Object.entries(changes)) {
    assert.equal(text.split(old).length, 2, `${old} is in the configuration, once`);
    text = text.replace(old, mine);
  }
  return text;
}

/** A snippet as a file in the folder of a test, where Node finds that test's packages, for as long as `use` takes. */
export async function asFile(folder, { name, body }, use) {
  const file = path.join(folder, `.${process.pid}-${name}`);
  writeFileSync(file, body);
  try {
    return await use(file);
  } finally {
    rmSync(file);
  }
}
