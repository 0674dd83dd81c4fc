// Does what the README says, with its own words: every block that follows a `<!-- run: NAME -->` or
// `<!-- file: NAME -->` comment is taken out of it and executed; only ports are
// replaced by free ones. Its clients also meet what clients meet: a rollout, an outage, a proxy's 502, a token's end.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { API_KEY, Postgres, ROOT, asFile, block as blockOf, end, endAll, freePort, python, start, startRedis, subscriptions, token, tollgate, until } from "../support/index.mjs";

const run = promisify(execFile);
const started = [];
const ports = {};
let folder;
let env;

/** A block of the README with this machine's ports. */
function block(name) {
  const text = Object.entries(ports).reduce((t, [from, to]) => t.replaceAll(from, to), blockOf("README.md", name));
  return text.replaceAll("redis-cli ", `redis-cli -p ${ports["6379"]} `);
}

function background(command, args, options) {
  const child = start(command, args, options);
  started.push(child);
  return child;
}

/** Waits for as long as `make run` may take to compile. */
const eventually = (what, check) => until(what, check, () => started.map((child) => child.said).join("\n---\n"), 120_000);

const shell = (name) => run("bash", ["-euo", "pipefail", "-c", block(name)], { cwd: folder, env });

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "tollgate-readme-"));
  for (const port of ["6379", "8000", "8001", "9000", "9001", "9002"]) ports[port] = String(await freePort());
  await startRedis({ folder, port: ports["6379"] });
  env = {
    ...process.env,
    PATH: `${dirname(tollgate())}:${process.env.PATH}`,
    API_KEY,
    TOLLGATE_API__KEYS: JSON.stringify([API_KEY]),
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

after(async () => {
  await endAll();
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
  reachesBoth(() => {
    const snippet = { name: "publish.mjs", body: block("publish.mjs") };
    return asFile(import.meta.dirname, snippet, (file) => run("node", [file]));
  }));

test("Python publisher", () => reachesBoth(() => run(python(), ["-c", block("publish.py")])));

test("server API", () =>
  reachesBoth(async () => {
    const { result } = JSON.parse((await shell("api")).stdout);
    assert.equal(result.heard, 2, "by both replicas");
    assert.ok(result.offset >= 1 && /^\d+$/.test(result.epoch), "durable");
  }));

test("outbox", async () => {
  const postgres = await Postgres.start();
  try {
    await postgres.sql("CREATE TABLE purchases (user_id text, post_id text)");
    const options = { cwd: folder, env: { ...env, DATABASE_URL: postgres.url } };
    await reachesBoth(async () => background("bash", ["-euo", "pipefail", "-c", `${block("outbox")}\nwait`], options));
    assert.equal(await postgres.sql("SELECT * FROM purchases"), "u1|p1");
  } finally {
    await end(started.pop());
    await postgres.close();
  }
});

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
        this.subscribed = subscriptions(this);
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
  await eventually("subscribed", async () => opened.at(-1)?.subscribed.has("post:42"));
  assert.match((await shell("durable")).stdout, /^1\n\d+\n1\n$/);
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
  await eventually("subscribed", async () => /^id: .*post%3A42=\d+-\d+\nevent: subscribed$/m.test(curl.said));
  await shell("durable");
  await eventually("the event", async () => curl.said.includes(`data: ${JSON.stringify(comment)}\n`));
  await end(curl);
});

test("make run", async () => {
  const make = background("make", ["run", "LISTEN=127.0.0.1:0", "ADMIN=127.0.0.1:0"], { cwd: ROOT, env: process.env });
  const url = await eventually("the demo's address", async () => make.said.match(/Demo: (http:\S+)/)?.[1]);
  assert.match(await (await fetch(url)).text(), /Tollgate/);
});

test("doctor", async () => {
  writeFileSync(join(folder, "token.txt"), await mint());
  assert.match((await shell("doctor")).stdout, /^ACCEPTED, user u1$/m);
  assert.match((await shell("outside")).stdout, /^ok +token +accepted as user u1[^]*^no problem was found$/m);
  // As the API of the README's story signed.
  writeFileSync(join(folder, "token.txt"), token("u1", { seconds: 60, secret: "your-secret-key" }));
  const refused = await shell("doctor").catch((e) => e);
  assert.equal(refused.code, 1);
  const outside = await shell("outside").catch((e) => e);
  assert.equal(outside.code, 1);
  assert.match(outside.stdout, /^WRONG +token +closed with 4401 bad_signature/m);
  assert.match(refused.stdout, /REFUSED: bad_signature[^]*cause +secret_default\s+change +issuer[^]*did not load its secret/);
});
