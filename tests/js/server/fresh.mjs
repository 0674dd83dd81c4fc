// The package as a stranger has it: packed, and installed into a folder of its own. Nothing of the repository is above
// that folder, so what the package needs and does not name is missed there.
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { after } from "node:test";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { ROOT, asFile, block } from "../support/index.mjs";

const run = promisify(execFile);
const SOURCE = path.join(ROOT, "clients/server");
/** What users of the package have beside it. Prisma copies its runtime into what it generates, with the last of them as its need. */
const BESIDE = ["@prisma/adapter-pg", "@prisma/client", "@types/node", "@types/pg", "drizzle-orm", "ioredis", "kysely",
  "pg", "redis", "reflect-metadata", "typeorm", "@prisma/client-runtime-utils"];

export const README = "clients/server/README.md";
export const folder = mkdtempSync(path.join(tmpdir(), "tollgate-server-"));
after(() => rmSync(folder, { recursive: true, force: true }));

/** Where a package of this workspace is: with this member, if others have another version of it. */
export function packageOf(name) {
  const places = [import.meta.dirname, path.dirname(import.meta.dirname)].map((one) => path.join(one, "node_modules", name));
  return places.find(existsSync);
}

const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", folder], { cwd: SOURCE });
// What the build says comes before it.
const [{ filename, files }] = JSON.parse(stdout.slice(stdout.indexOf("[\n")));
export const tarball = path.join(folder, filename);
export const packed = files.map((file) => file.path);

const { packages } = JSON.parse(readFileSync(path.join(SOURCE, "package-lock.json")));
const jose = `jose@${packages["node_modules/jose"].version}`;
writeFileSync(path.join(folder, "package.json"), '{ "private": true, "type": "module" }\n');
await run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", tarball, jose], { cwd: folder });

/** The package, with nothing beside it yet. */
export const tollgate = await import(pathToFileURL(path.join(folder, "node_modules/tollgate-server/dist/index.mjs")));

for (const name of BESIDE) {
  const link = path.join(folder, "node_modules", name);
  mkdirSync(path.dirname(link), { recursive: true });
  symlinkSync(packageOf(name), link);
}

/** What a program in that folder prints. */
export async function execute(file, env = {}) {
  const { stdout, stderr } = await run(process.execPath, [file], { cwd: folder, env: { PATH: process.env.PATH, ...env }, timeout: 30_000 });
  return { stdout: stdout.trim(), stderr };
}

/** What a snippet of the README prints. */
export const snippet = (name, env) =>
  asFile(folder, { name, body: block(README, name) }, (file) => execute(file, env)).then(({ stdout }) => stdout);

/** What a snippet of the README exports. */
export const exportsOf = (name) => asFile(folder, { name, body: block(README, name) }, (file) => import(pathToFileURL(file)));

/** What tsc says to a folder's files; empty if it has nothing to say. */
export async function typeErrors(args) {
  const tsc = path.join(packageOf("typescript"), "bin/tsc");
  try {
    await run(process.execPath, [tsc, "--pretty", "false", ...args], { cwd: folder });
    return "";
  } catch ({ stdout, stderr }) {
    return stdout + stderr;
  }
}
