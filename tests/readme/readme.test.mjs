// Does what the README says, with its own words: every block that follows a `<!-- run: NAME -->` or
// `<!-- file: NAME -->` comment is taken out of it and executed; only ports are
// replaced by free ones. The same for the EventSource of docs/protocol.md.
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
const root = resolve(here, "../..");
const readme = readFileSync(join(root, "README.md"), "utf8");
const started = [];
const ports = {};
let folder;
let env;

const blocksOf = (text) =>
  new Map([...text.matchAll(/<!-- (?:run|file): (\S+) -->\n```\w+\n([^]*?)```/g)].map(([, name, body]) => [name, body]));
const blocks = blocksOf(readme);
const protocol = blocksOf(readFileSync(join(root, "docs/protocol.md"), "utf8"));

const free = () =>
  new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });

function block(name, from = blocks) {
  assert.ok(from.has(name), `the document has a block ${name}`);
  const text = Object.entries(ports).reduce((t, [from, to]) => t.replaceAll(from, to), from.get(name));
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

test("browser client", async () => {
  const unlocked = [];
  const subscribed = [];
  const token = await mint();
  class Socket extends WebSocket {
    constructor(...args) {
      super(...args);
      this.on("message", (data) => subscribed.push(JSON.parse(data)));
    }
  }
  const fetch = async (path) => ({ json: async () => (assert.equal(path, "/api/realtime-token"), { token }) });
  const body = `return (async () => { ${block("client.js")}; return socket; })()`;
  const client = new Function("fetch", "WebSocket", "unlock", "reload", body);
  const ws = await client(fetch, Socket, (id) => unlocked.push(id), assert.fail);
  await eventually("subscribed", async () => subscribed.some((m) => m.data?.channelKey === "post:42"));
  await shell("publish");
  await eventually("unlock", async () => unlocked.length === 1);
  assert.deepEqual(unlocked, ["p1"]);
  ws.close();
});

/** Runs a snippet with an `EventSource` and the functions that it takes from its page. */
async function page(code, names) {
  const sources = [];
  class Source extends EventSource {
    constructor(...args) {
      super(...args);
      sources.push(this);
      this.addEventListener("subscribed", () => (this.isSubscribed = true));
      this.addEventListener("close", ({ data }) => (this.lastWord = JSON.parse(data).data));
    }
  }
  const globals = { EventSource: Source, ...names };
  await new Function(...Object.keys(globals), `return (async () => { ${code} })()`)(...Object.values(globals));
  return sources;
}

const asked = (token) => async (path) => ({ json: async () => (assert.equal(path, "/api/realtime-token"), { token: await token() }) });
const comment = { type: "comment_added", commentId: "c1" };
const disconnect = (user) =>
  fetch(`http://127.0.0.1:${ports["8000"]}/api/disconnect`, {
    method: "POST",
    headers: { "X-API-Key": env.API_KEY },
    body: JSON.stringify({ user }),
  });

test("EventSource, and a durable publication", async () => {
  const shown = [];
  const names = { fetch: asked(() => mint("u2")), show: (event) => shown.push(event), reload: assert.fail };
  const [source] = await page(block("stream.js"), names);
  await eventually("subscribed", async () => source.isSubscribed);
  assert.match((await shell("durable")).stdout, /^1\n\d+\n$/);
  await eventually("the event", async () => shown.length === 1);
  assert.deepEqual(shown, [comment]);
  assert.equal((await disconnect("u2")).status, 200);
  await eventually("the end", async () => source.readyState === EventSource.CLOSED);
  assert.deepEqual(source.lastWord, { code: 4409, reason: source.lastWord.reason, reconnect: false });
});

test("the EventSource of docs/protocol.md goes on with a new token", async () => {
  const shown = [];
  // The first token ends while the stream is open: a notice at once, and another stream.
  let seconds = "62s";
  const token = async () => {
    const command = block("mint").replace("u1", "u3").replace("1h", seconds);
    seconds = "1h";
    return (await run("bash", ["-c", command], { cwd: folder, env })).stdout.trim();
  };
  const gaps = [];
  const names = { fetch: asked(token), show: (event) => shown.push(event), reload: (channel) => gaps.push(channel) };
  const sources = await page(block("stream.js", protocol), names);
  await eventually("subscribed", async () => sources[0].isSubscribed);
  await shell("durable");
  await eventually("the event", async () => shown.length === 1);
  await eventually("the next stream", async () => sources[1]?.isSubscribed);
  assert.equal(sources[0].readyState, EventSource.CLOSED);
  assert.match(sources[1].url, /since=user%253Au3%3D%26post%253A42%3D/);
  await shell("durable");
  await eventually("the next event", async () => shown.length === 2);
  assert.deepEqual(shown, [comment, comment]);
  assert.deepEqual(gaps, ["user:u3"], "it has no history, so nobody knows");
  sources[1].close();
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
