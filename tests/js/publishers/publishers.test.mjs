// docs/publishing.md, executed: every snippet that follows a `<!-- run: publish.NAME -->` comment, each
// against a Redis and a gateway of its own, as the ACL user of docs/redis.md; and what it says of
// errors, the function and a restart.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { extname, join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { Redis } from "ioredis";
import WebSocket from "ws";

const run = promisify(execFile);
const here = import.meta.dirname;
const docs = resolve(here, "../../../docs");
const guide = readFileSync(join(docs, "publishing.md"), "utf8");
const bin = process.env.TOLLGATE_BIN;
const python = process.env.PYTHON;
const SECRET = "kX9vQ2mZr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUeNiOoVt+A=";
const API_KEY = "the-publisher-tests-api-key";
const CHANNEL = "tollgate:user:u1";
/** Where the function keeps a channel's events. */
const stream = (channel) => `${channel}:{${channel}}:stream`;
const PAID = { type: "order_paid", orderId: "4711" };
const TYPING = { type: "typing", userId: "u1" };

const ids = [...guide.matchAll(/<!-- run: (id\.\S+) -->\n```\w+\n([^]*?)```/g)].map(([, name, body]) => ({ name, body }));
const snippets = [...guide.matchAll(/<!-- run: (publish\.\S+) -->\n```\w+\n([^]*?)```/g)].map(([, name, body]) => ({ name, body }));
const interpreters = { ".sh": "bash", ".mjs": "node", ".py": python, ".php": "php", ".rb": "ruby" };
let folder;

before(async () => {
  assert.ok(bin && existsSync(bin), "TOLLGATE_BIN names the tollgate binary");
  assert.ok(python && existsSync(python), "PYTHON names a Python with tests/js/requirements.txt installed");
  folder = mkdtempSync(join(tmpdir(), "tollgate-publishers-"));
});

after(() => rmSync(folder, { recursive: true, force: true }));

const free = () =>
  new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });

async function eventually(what, check, seconds = 30) {
  for (const end = Date.now() + seconds * 1000; ; ) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < end, `${what()}: not in time`);
    await new Promise((r) => setTimeout(r, 10));
  }
}

function token(user = "u1") {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: user, exp: Math.floor(Date.now() / 1000) + 600 })}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

/** A Redis, a gateway, and a client that listens on both channels of the snippets. */
async function world(use) {
  const own = mkdtempSync(join(folder, "world-"));
  const ports = { redis: await free(), public: await free(), admin: await free() };
  const children = [];
  let logs = "";
  const start = (command, ...args) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (logs += data));
    child.on("error", (error) => (logs += error));
    children.push(child);
    return child;
  };
  const startRedis = () =>
    start("redis-server", "--port", String(ports.redis), "--save", "", "--dir", own, "--appendonly", "yes");
  let server = startRedis();
  const redis = new Redis(ports.redis, "127.0.0.1", { retryStrategy: () => 20, maxRetriesPerRequest: null });
  redis.on("error", () => {});
  let socket;
  try {
    await redis.ping();
    writeFileSync(
      join(own, "tollgate.toml"),
      `[server]\nlisten = "127.0.0.1:${ports.public}"\n[admin]\nlisten = "127.0.0.1:${ports.admin}"\n` +
        `[broker]\nkind = "redis"\n[redis]\nurl = "redis://127.0.0.1:${ports.redis}"\n[api]\nkeys = ["${API_KEY}"]\n` +
        `[[auth.keys]]\nsecret = "${SECRET}"\n[[channels]]\npattern = "typing:{id}"\nallow = "authenticated"\n` +
        /```toml\n([^]*?)```/.exec(guide)[1],
    );
    start(bin, "serve", "--config", join(own, "tollgate.toml"));
    const ready = () => fetch(`http://127.0.0.1:${ports.admin}/readyz`).then((r) => r.ok, () => false);
    await eventually(() => `the gateway is ready\n${logs}`, ready);

    const received = [];
    socket = new WebSocket(`ws://127.0.0.1:${ports.public}/ws?format=envelope`, ["tollgate", `bearer.${token()}`]);
    socket.on("message", (data) => {
      const message = JSON.parse(data);
      // How long a restart takes decides whether these come.
      if (!["interrupted", "live"].includes(message.type)) received.push(message);
    });
    socket.on("error", (error) => (logs += error));
    /** The next message; what it is has to be said, so that nothing else can have come before it. */
    const next = async () => {
      await eventually(() => `a message for the client\n${logs}`, () => received.length > 0);
      return received.shift();
    };
    assert.equal((await next()).type, "connected");
    socket.send(JSON.stringify({ type: "subscribe", channel: "typing:42" }));
    assert.equal((await next()).type, "subscribed");

    await use({
      next,
      redis,
      /** The channel that the gateway gives a user. */
      channelOf: (user) =>
        new Promise((done, failed) => {
          const own = new WebSocket(`ws://127.0.0.1:${ports.public}/ws`, ["tollgate", `bearer.${token(user)}`]);
          own.on("error", failed);
          own.on("close", (code, reason) => failed(new Error(`${user}: ${code} ${reason}`)));
          own.on("message", (data) => {
            done(JSON.parse(data).data.channels[0]);
            own.terminate();
          });
        }),
      publish: (...args) => redis.fcall("tollgate_publish", 1, CHANNEL, ...args),
      api: async (body) => {
        const headers = { "X-API-Key": API_KEY };
        const answer = await fetch(`http://127.0.0.1:${ports.public}/api/publish`, { method: "POST", headers, body: JSON.stringify(body) });
        return answer.json();
      },
      restartRedis: async () => {
        server.kill("SIGKILL");
        await new Promise((r) => server.once("exit", r));
        server = startRedis();
        await redis.ping();
      },
      env: {
        ...process.env,
        REDIS_URL: `redis://publisher:PASSWORD@127.0.0.1:${ports.redis}`,
        TOLLGATE_URL: `http://127.0.0.1:${ports.public}`,
        TOLLGATE_API_KEY: API_KEY,
      },
    });
    assert.deepEqual(received, []);
  } finally {
    socket?.terminate();
    redis.disconnect();
    children.forEach((child) => child.kill("SIGKILL"));
  }
}

const event = (channel, data, position = {}) => ({ type: "event", channel, ...position, data });

/** The position in what a snippet prints: `OFFSET EPOCH`, or the API's answer. */
function printed(text) {
  const [, offset, epoch] = /^(\d+)\s(\d+)\n/.exec(text) ?? [];
  return epoch ? { offset: Number(offset), epoch } : JSON.parse(/^{"result":.*?}}/.exec(text)?.[0] ?? "{}").result;
}

test("the document has all the snippets", () => {
  const names = ["redis-cli.sh", "curl.sh", "ioredis.mjs", "node-redis.mjs", "redis-py.py", "phpredis.php", "redis-rb.rb"];
  assert.deepEqual(snippets.map(({ name }) => name), names.map((name) => `publish.${name}`));
});

for (const { name, body } of snippets) {
  test(`${name}: each event comes once, and a repeated key delivers nothing`, () =>
    world(async ({ next, redis, publish, env }) => {
      const [, user] = /`ACL (SETUSER publisher .*?)`/.exec(readFileSync(join(docs, "redis.md"), "utf8"));
      await redis.call("ACL", ...user.split(" "));
      // Beside node_modules, where Node looks for them.
      const file = join(here, `.${process.pid}-${name}`);
      writeFileSync(file, body);
      try {
        const execute = async () => {
          const { stdout, stderr } = await run(interpreters[extname(name)], [file], { env, timeout: 60_000 });
          assert.doesNotMatch(stderr, /error|warning: undefined/i);
          return printed(stdout);
        };
        const first = await execute();
        assert.deepEqual(await next(), event("user:u1", PAID, first));
        assert.equal(first.offset, 1);
        assert.match(first.epoch, /^\d+$/);
        assert.deepEqual(await next(), event("typing:42", TYPING));
        assert.deepEqual(await execute(), first, "the first answer again");
        assert.deepEqual(await next(), event("typing:42", TYPING), "the plain one, and nothing before it");
        const epoch = first.epoch;
        assert.deepEqual(await publish("1"), [2, epoch]);
        assert.deepEqual(await next(), event("user:u1", 1, { offset: 2, epoch }));
      } finally {
        rmSync(file);
      }
    }));
}

test("every language names a user's channel as the gateway does", () =>
  world(async ({ channelOf }) => {
    assert.deepEqual(ids.map(({ name }) => name), ["id.mjs", "id.py", "id.php", "id.rb"]);
    const users = ["u1", "a@b.example", "auth0|x", "did:privy:cm1", "system:serviceaccount:ns:name", "50%", "a%3Ab", "José",
      "Seán O'Brien", `* ? [ ] { } \\ " ' < > \` %`, "用户:一", "a\u00a0\u3000\u2028b", "a\ufeff\u180e\u200bb", "😀:😀", "9007199254740993"];
    for (const { name, body } of ids) {
      const file = join(folder, name);
      writeFileSync(file, body);
      for (const user of users) {
        const { stdout } = await run(interpreters[extname(name)], [file], { env: { ...process.env, USER_ID: user } });
        assert.equal(stdout.trimEnd(), await channelOf(user), `${name} for ${user}`);
      }
    }
  }));

test("defaults, errors and payloads are as the document says", () =>
  world(async ({ next, redis, publish, api }) => {
    const [, epoch] = await publish("1", "", "", "a-key");
    assert.deepEqual(await next(), event("user:u1", 1, { offset: 1, epoch }));
    const own = await redis.keys(`${CHANNEL}*`);
    assert.equal(own.length, 3);
    assert.ok(own.every((key) => key.startsWith(`${CHANNEL}:{`)), String(own));
    const lives = async (key, seconds) => {
      const ttl = await redis.ttl(key);
      assert.ok(ttl > seconds - 10 && ttl <= seconds, `${key}: ${ttl}`);
    };
    await lives(stream(CHANNEL), 600);
    await lives(own.find((key) => key.endsWith("a-key")), 300);
    await lives(own.find((key) => key.endsWith("}")), 7 * 86_400);

    for (const [args, said] of [
      [["1", "0"], "ERR ttl_seconds is a whole number from 1 to 31536000"],
      [["1", "31536001"], "ERR ttl_seconds is a whole number from 1 to 31536000"],
      [["1", "", "100001"], "ERR maxlen is a whole number from 1 to 100000"],
      [["1", "", "", "k".repeat(257)], "ERR idempotency_key is longer than 256 bytes"],
      [[`"${"x".repeat(1048576)}"`], "ERR the event has 1048578 bytes, the gateway takes 1048576 (limits.publication_bytes)"],
      [['{"type":"gap"}'], 'ERR the type "gap" is reserved for the gateway'],
      [[], "ERR tollgate_publish 1 <prefix><channel> <json>"],
    ]) {
      await assert.rejects(publish(...args), (error) => error.message.startsWith(said));
      assert.ok(guide.includes(said) || said.includes("maxlen"), said);
    }
    const most = [1, "tollgate:user:u2", "1", "31536000", "100000", "k".repeat(256)];
    assert.equal((await redis.fcall("tollgate_publish", ...most))[0], 1);
    await lives(stream("tollgate:user:u2"), 31_536_000);
    await publish("not json");
    assert.deepEqual(await next(), { type: "gap", data: { channel: "user:u1", reason: "invalid_payload" } });
    await redis.publish(CHANNEL, `"${"x".repeat(1048576)}"`);
    assert.deepEqual(await next(), { type: "gap", data: { channel: "user:u1", reason: "payload_too_large" } });
    await publish(` {"a" : 1.0}`);
    assert.deepEqual(await next(), event("user:u1", { a: 1 }, { offset: 3, epoch }));
    await redis.publish(CHANNEL, "2");
    assert.deepEqual(await next(), event("user:u1", 2), "a plain one beside them");
    for (let n = 0; n < 101; n++) await publish(String(n));
    for (let n = 0; n < 101; n++) assert.equal((await next()).offset, 4 + n);
    assert.equal(await redis.xlen(stream(CHANNEL)), 100);

    const fields = { channel: "user:u1", data: PAID };
    assert.deepEqual(await api({ ...fields, idempotency_key: "a-key" }), { result: { offset: 1, epoch } }, "keys are shared");
    assert.deepEqual(await api({ ...fields, skip_history: true }), { result: {} });
    assert.deepEqual(await next(), event("user:u1", PAID));
    assert.equal((await api({ ...fields, skip_history: true, idempotency_key: "b" })).error.code, 108);
    assert.equal((await api({ ...fields, channel: "typing:42", idempotency_key: "b" })).error.code, 108);
    assert.equal((await api({ ...fields, channel: "" })).error.code, 107);
  }));

test("the library comes back after FUNCTION FLUSH", () =>
  world(async ({ next, redis, publish }) => {
    const [, epoch] = await publish("1");
    await next();
    await redis.call("FUNCTION", "FLUSH");
    await assert.rejects(publish("2"), /ERR Function not found/);
    await eventually(() => "the function", () => publish("2").catch(() => false), 10);
    assert.deepEqual(await next(), event("user:u1", 2, { offset: 2, epoch }));
  }));

test("a restart of Redis begins a new epoch, and the clients are told", () =>
  world(async ({ next, publish, restartRedis }) => {
    const [, before] = await publish("1", "", "", "a-key");
    await next();
    await restartRedis();
    const gaps = [await next(), await next()].map(({ type, data }) => [type, data.channel, data.reason]);
    assert.deepEqual(gaps.sort(), [["gap", "typing:42", "broker_reconnected"], ["gap", "user:u1", "history_lost"]]);
    const [offset, epoch] = await publish("2");
    assert.equal(offset, 1);
    assert.notEqual(epoch, before);
    assert.deepEqual(await next(), event("user:u1", 2, { offset, epoch }));
    const again = await publish("1", "", "", "a-key");
    assert.equal(again.length, 2, "its answer may be lost with the last writes, and then it is published");
    if (again[1] === epoch) assert.equal((await next()).data, 1);
  }));
