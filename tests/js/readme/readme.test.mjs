// Does what the README says, with its own words: every block that follows a `<!-- run: NAME -->` or
// `<!-- file: NAME -->` comment is taken out of it and executed; only ports are
// replaced by free ones. Its clients also meet what clients meet: a rollout, an outage, a proxy's 502, a token's end.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { homedir, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { EventSource } from "eventsource";
import WebSocket from "ws";

const run = promisify(execFile);
const here = import.meta.dirname;
const root = resolve(here, "../../..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const started = [];
const ports = {};
let folder;
let env;

const blocksOf = (text) =>
  new Map([...text.matchAll(/<!-- (?:run|file): (\S+) -->\n```\w+\n([^]*?)```/g)].map(([, name, body]) => [name, body]));
const blocks = blocksOf(readme);

const free = () =>
  new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });

function block(name) {
  assert.ok(blocks.has(name), `the README has a block ${name}`);
  const text = Object.entries(ports).reduce((t, [from, to]) => t.replaceAll(from, to), blocks.get(name));
  return text.replaceAll("redis-cli ", `redis-cli -p ${ports["6379"]} `);
}

function background(command, args, options) {
  const child = spawn(command, args, { detached: true, stdio: ["ignore", "pipe", "pipe"], ...options });
  child.log = "";
  child.stdout.on("data", (d) => (child.log += d));
  child.stderr.on("data", (d) => (child.log += d));
  started.push(child);
  return child;
}

async function eventually(what, check) {
  const end = Date.now() + 120_000;
  for (;;) {
    const found = await check().catch(() => undefined);
    if (found) return found;
    assert.ok(Date.now() < end, `${what}: not in time\n${started.map((c) => c.log).join("\n---\n")}`);
    await new Promise((r) => setTimeout(r, 50));
  }
}

const shell = (name) => run("bash", ["-euo", "pipefail", "-c", block(name)], { cwd: folder, env });

before(async () => {
  const binary = process.env.TOLLGATE_BIN;
  assert.ok(binary && existsSync(binary), "TOLLGATE_BIN names the tollgate binary");
  folder = mkdtempSync(join(tmpdir(), "tollgate-readme-"));
  for (const port of ["6379", "8000", "8001", "9000", "9001"]) ports[port] = String(await free());
  background("redis-server", ["--port", ports["6379"], "--save", "", "--dir", folder]);
  env = {
    ...process.env,
    PATH: `${dirname(binary)}:${process.env.PATH}`,
    API_KEY: "the-readme-tests-api-key",
    TOLLGATE_API__KEYS: '["the-readme-tests-api-key"]',
  };
  writeFileSync(join(folder, "tollgate.toml"), block("tollgate.toml"));
  // CI runs `make build` itself; the binary under test stands in for its result.
  const script = block("replicas").replace("make build\n", "").replace(/export PATH=.*\n/, "");
  assert.notEqual(script.length, block("replicas").length);
  background("bash", ["-euo", "pipefail", "-c", `${script}\necho "$NEXTAUTH_SECRET" > secret\nwait`], { cwd: folder, env });
  for (const port of ["9000", "9001"]) {
    await eventually(`replica at ${port}`, async () => (await fetch(`http://127.0.0.1:${ports[port]}/readyz`)).ok);
  }
  env.NEXTAUTH_SECRET = readFileSync(join(folder, "secret"), "utf8").trim();
  env.PATH = `${env.PATH}:/usr/bin`;
});

after(() => {
  for (const child of started) {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // It has ended by itself.
    }
  }
  rmSync(folder, { recursive: true, force: true });
});

const mint = async (user = "u1") =>
  (await run("bash", ["-c", block("mint").replace("u1", user)], { cwd: folder, env })).stdout.trim();

/** A socket of a user on a replica, and what it received. */
async function socket(port, user) {
  const ws = new WebSocket(`ws://127.0.0.1:${ports[port]}/ws`, ["tollgate", `bearer.${await mint(user)}`]);
  const received = [];
  ws.on("message", (data) => received.push(JSON.parse(data)));
  await eventually(`connected at ${port}`, async () => received.some((m) => m.type === "connected"));
  return { ws, events: () => received.filter((m) => m.type === "post_purchased") };
}

async function reachesBoth(publish) {
  const mine = [await socket("8000", "u1"), await socket("8001", "u1")];
  const other = await socket("8001", "u12");
  await publish();
  for (const { events } of mine) {
    await eventually("the event", async () => events().length > 0);
    assert.deepEqual(events(), [{ type: "post_purchased", postId: "p1" }]);
  }
  assert.deepEqual(other.events(), []);
  for (const { ws } of [...mine, other]) ws.close();
}

test("redis-cli", () => reachesBoth(() => shell("publish")));

test("Node publisher", () =>
  reachesBoth(async () => {
    const file = join(here, `.publish-${process.pid}.mjs`); // beside node_modules
    writeFileSync(file, block("publish.mjs"));
    try {
      await run("node", [file]);
    } finally {
      rmSync(file);
    }
  }));

test("Python publisher", () =>
  reachesBoth(async () => {
    const tools = process.env.TOLLGATE_TOOLS ?? join(homedir(), ".cache/tollgate-tools");
    const venv = join(tools, "redis-py");
    if (!existsSync(join(venv, "ok"))) {
      mkdirSync(tools, { recursive: true });
      await run("python3", ["-m", "venv", venv]);
      await run(join(venv, "bin/pip"), ["install", "-q", "--disable-pip-version-check", "redis==7.0.1"]);
      writeFileSync(join(venv, "ok"), "");
    }
    await run(join(venv, "bin/python"), ["-c", block("publish.py")]);
  }));

test("server API", () =>
  reachesBoth(async () => assert.equal((await shell("api")).stdout, '{"result":{}}')));

test("health", async () => {
  const { stdout } = await shell("health");
  assert.match(stdout, /"ready":true/);
  assert.match(stdout, /^tollgate_connections\{/m);
});

/** Runs a snippet with the globals of a page; every socket and stream that it opens is in `opened`. */
function page(name, names) {
  const opened = [];
  const counted = (Base) =>
    class extends Base {
      constructor(...args) {
        super(...args);
        opened.push(this);
      }
    };
  const asked = async (path) => {
    assert.equal(path, "/api/realtime-token");
    return { json: async () => ({ token: await names.token() }) };
  };
  const globals = { WebSocket: counted(WebSocket), EventSource: counted(EventSource), fetch: asked, ...names };
  const code = block(name).replaceAll(`127.0.0.1:${ports["8000"]}`, names.address ?? `127.0.0.1:${ports["8000"]}`);
  new Function(...Object.keys(globals), code)(...Object.values(globals));
  return opened;
}

const comment = { type: "comment_added", commentId: "c1" };
const disconnect = (user) =>
  fetch(`http://127.0.0.1:${ports["8000"]}/api/disconnect`, {
    method: "POST",
    headers: { "X-API-Key": env.API_KEY },
    body: JSON.stringify({ user }),
  });

test("browser client", async () => {
  const unlocked = [];
  const loaded = [];
  const names = { token: () => mint(), unlock: (id) => unlocked.push(id), reload: (channel) => loaded.push(channel) };
  const opened = page("client.js", names);
  await eventually("subscribed", async () => loaded.length === 2);
  assert.deepEqual(loaded, ["user:u1", "post:42"]);
  await shell("publish");
  await eventually("unlock", async () => unlocked.length === 1);
  assert.deepEqual(unlocked, ["p1"]);
  assert.equal((await disconnect("u1")).status, 200);
  await eventually("the end", async () => opened[0].readyState === WebSocket.CLOSED);
  await new Promise((done) => setTimeout(done, 1500));
  assert.equal(opened.length, 1, "after 4409 it stays away");
});

test("EventSource, and a durable publication", async () => {
  const shown = [];
  const gaps = [];
  const names = { token: () => mint("u2"), show: (event) => shown.push(event), reload: (channel) => gaps.push(channel) };
  const opened = page("stream.js", names);
  const live = () => eventually("a stream", async () => opened.at(-1)?.readyState === EventSource.OPEN);
  await live();
  let subscribed = false;
  opened[0].addEventListener("subscribed", () => (subscribed = true));
  assert.match((await shell("durable")).stdout, /^1\n\d+\n$/);
  await eventually("the event", async () => shown.length === 1);
  assert.deepEqual(shown, [comment]);
  assert.deepEqual(gaps, []);
  assert.equal((await disconnect("u2")).status, 200);
  await eventually("the end", async () => opened[0].readyState === EventSource.CLOSED);
  await new Promise((done) => setTimeout(done, 1500));
  assert.equal(opened.length, 1, "after 4409 it stays away");
});

test("curl follows a stream", async () => {
  const options = { cwd: folder, env: { ...env, TOKEN: await mint() } };
  const curl = background("bash", ["-euo", "pipefail", "-c", block("stream")], options);
  await eventually("subscribed", async () => /^id: .*post%3A42=\d+-\d+\nevent: subscribed$/m.test(curl.log));
  await shell("durable");
  await eventually("the event", async () => curl.log.includes(`data: ${JSON.stringify(comment)}\n`));
  process.kill(-curl.pid);
});

test("make run", async () => {
  const make = background("make", ["run", "LISTEN=127.0.0.1:0", "ADMIN=127.0.0.1:0"], { cwd: root });
  const url = await eventually("the demo's address", async () => make.log.match(/Demo: (http:\S+)/)?.[1]);
  assert.match(await (await fetch(url)).text(), /Tollgate/);
});

test("doctor", async () => {
  writeFileSync(join(folder, "token.txt"), await mint());
  assert.match((await shell("doctor")).stdout, /^ACCEPTED, user u1$/m);
  assert.match((await shell("outside")).stdout, /^ok +token +accepted as user u1[^]*^nothing wrong was found$/m);
  // As the API of the README's story signed.
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${part({ alg: "HS256" })}.${part({ sub: "u1", exp: Math.floor(Date.now() / 1000) + 60 })}`;
  const signature = createHmac("sha256", "your-secret-key").update(signed).digest("base64url");
  writeFileSync(join(folder, "token.txt"), `${signed}.${signature}`);
  const refused = await shell("doctor").catch((e) => e);
  assert.equal(refused.code, 1);
  const outside = await shell("outside").catch((e) => e);
  assert.equal(outside.code, 1);
  assert.match(outside.stdout, /^WRONG +token +closed with 4401 bad_signature/m);
  assert.match(refused.stdout, /REFUSED: bad_signature[^]*cause +secret_default\s+change +issuer[^]*did not load its secret/);
});
