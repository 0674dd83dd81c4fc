// What is in the package, how it is loaded, and what its types allow.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { test } from "node:test";
import { checkPackage, createPackageFromTarballData } from "@arethetypeswrong/core";
import { ROOT, blocks, read } from "../support/index.mjs";
import { README, execute, folder, packed, snippet, tarball, tollgate, typeErrors } from "./fresh.mjs";
import { generatePrisma } from "./prisma.mjs";

test("the package has what it needs, and nothing else", () => {
  assert.ok(["README.md", "package.json", "dist/index.js", "dist/index.mjs", "dist/index.d.ts", "dist/index.d.mts"].every((one) => packed.includes(one)));
  assert.deepEqual(packed.filter((one) => !/^(README\.md|package\.json|dist\/\w+(\.d)?\.m?[jt]s)$/.test(one)), []);
});

test("import and require give the same, with one class of errors", async () => {
  const required = createRequire(path.join(folder, "x.js"))("tollgate-server");
  assert.deepEqual(Object.keys(tollgate).sort(), Object.keys(required).sort());
  assert.equal(tollgate.TollgateError, required.TollgateError);

  const file = path.join(folder, "required.cjs");
  writeFileSync(file, 'require("tollgate-server").createToken("u1", { secret: "s".repeat(32) }).then((token) => console.log(token));\n');
  assert.match((await execute(file)).stdout, /^eyJ[\w-]+\.[\w-]+\.[\w-]+$/);
});

test("types are found by every way of resolving", async () => {
  const analysis = await checkPackage(createPackageFromTarballData(readFileSync(tarball)));
  const problems = analysis.problems.filter(({ resolutionKind }) => resolutionKind !== "node10");
  assert.deepEqual(problems, []);
});

test("consumers check with tsc --strict, as ES modules and as CommonJS", async () => {
  await generatePrisma();
  const types = readFileSync(path.join(import.meta.dirname, "consumer.ts"), "utf8");
  ["consumer.mts", "consumer.cts"].forEach((name) => writeFileSync(path.join(folder, name), types));
  // The libraries' own types are not looked at: they are others'. Ours are, in the test after this one.
  const strict = ["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022", "--types", "node", "--skipLibCheck", "--esModuleInterop"];
  assert.equal(await typeErrors([...strict, "--module", "nodenext", "consumer.mts", "consumer.cts"]), "");
  assert.equal(await typeErrors([...strict, "--module", "esnext", "--moduleResolution", "bundler", "consumer.mts"]), "");
});

test("the package's own types check without skipLibCheck", async () => {
  writeFileSync(path.join(folder, "alone.mts"), 'export * from "tollgate-server";\n');
  assert.equal(await typeErrors(["--noEmit", "--strict", "--target", "es2022", "--types", "node", "--module", "nodenext", "alone.mts"]), "");
});

test("the README's snippets are all tried, and their comments are true", async () => {
  const own = ["token", "publish.ioredis", "publish.node-redis", "publish.http", "route", "outbox.pg", "outbox.prisma",
    "outbox.drizzle", "outbox.kysely", "outbox.typeorm", "ids"];
  assert.deepEqual(blocks(README).map(({ name }) => name), own.map((name) => `${name}.mjs`));
  assert.equal(await snippet("ids.mjs"), "user:did%3Aprivy%3Acm1\nJosé@example.com");
});

test("the reserved types are those of the gateway", () => {
  const [, list] = /<!-- generated: reserved -->\n(.*?)\n<!-- end -->/s.exec(read("docs/publishing.md"));
  const types = [...list.matchAll(/`(\w+)`/g)].map(([, type]) => type);
  const source = readFileSync(path.join(ROOT, "clients/server/src/event.ts"), "utf8");
  const [, own] = /RESERVED[^]*?\[([^]*?)\]/.exec(source);
  assert.deepEqual([...own.matchAll(/"(\w+)"/g)].map(([, type]) => type).sort(), types.sort());
});
