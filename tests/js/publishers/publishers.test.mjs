// docs/publishing.md, executed: every snippet that follows a `<!-- run: publish.NAME -->` comment, each
// against a Redis and a gateway of its own, as the ACL user of docs/redis.md; and what it says of
// errors, the function and a restart.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { extname } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { Redis } from "ioredis";
import WebSocket from "ws";
import { API_KEY, Site, asFile, blocks, python, read, token, until } from "../support/index.mjs";
import { RULES } from "./rules.mjs";

const run = promisify(execFile);
const guide = read("docs/publishing.md");
const CHANNEL = "tollgate:user:u1";
/** Where the function keeps a channel's events. */
const stream = (channel) => `${channel}:{${channel}}:stream`;
const PAID = { type: "order_paid", orderId: "4711" };
const TYPING = { type: "typing", userId: "u1" };

const named = (beginning) => blocks("docs/publishing.md").filter(({ name }) => name.startsWith(beginning));
const ids = named("id.");
const snippets = named("publish.");
const interpreters = { ".sh": "bash", ".mjs": "node", ".py": python(), ".php": "php", ".rb": "ruby" };

/** A Redis, a gateway, and a client that listens on both channels of the snippets. */
async function world(use) {
  const site = await Site.start({ rules: RULES, redisArgs: ["--appendonly", "yes"] });
  const redis = new Redis(site.redisPort, "127.0.0.1", { retryStrategy: () => 20, maxRetriesPerRequest: null });
  redis.on("error", () => {});
  let socket;
  let errors = "";
  try {
    const received = [];
    socket = new WebSocket(`${site.socketUrl}?format=envelope`, ["tollgate", `bearer.${token("u1")}`]);
    socket.on("message", (data) => {
      const message = JSON.parse(data);
      // How long a restart takes decides whether these come.
      if (!["interrupted", "live"].includes(message.type)) received.push(message);
    });
    socket.on("error", (error) => (errors += error));
    /** The next message; what it is has to be said, so that nothing else can have come before it. */
    const next = async () => {
      await until("a message for the client", () => received.length > 0, () => errors + site.replicas[0].child.said);
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
          const own = new WebSocket(site.socketUrl, ["tollgate", `bearer.${token(user)}`]);
          own.on("error", failed);
          own.on("close", (code, reason) => failed(new Error(`${user}: ${code} ${reason}`)));
          own.on("message", (data) => {
            done(JSON.parse(data).data.channels[0]);
            own.terminate();
          });
        }),
      publish: (...args) => redis.fcall("tollgate_publish", 1, CHANNEL, ...args),
      api: async (body) => (await site.ask("publish", body)).json,
      restartRedis: async () => {
        await site.runRedis();
        await redis.ping();
      },
      env: {
        ...process.env,
        REDIS_URL: site.redisUrl.replace("//", "//publisher:PASSWORD@"),
        TOLLGATE_URL: site.url,
        TOLLGATE_API_KEY: API_KEY,
      },
    });
    assert.deepEqual(received, []);
  } finally {
    socket?.terminate();
    redis.disconnect();
    await site.close();
  }
}

const event = (channel, data, position = {}) => ({ type: "event", channel, ...position, data });

/** What a snippet prints: `OFFSET EPOCH HEARD`, or the API's answer. */
function printed(text) {
  const [, offset, epoch, heard] = /^(\d+)\s(\d+)\s(-?\d+)\n/.exec(text) ?? [];
  if (epoch) return { offset: Number(offset), epoch, heard: Number(heard) };
  return JSON.parse(/^{"result":.*?}}/.exec(text)?.[0] ?? "{}").result;
}

test("the document has all the snippets", () => {
  const names = ["redis-cli.sh", "curl.sh", "ioredis.mjs", "node-redis.mjs", "redis-py.py", "phpredis.php", "redis-rb.rb"];
  assert.deepEqual(snippets.map(({ name }) => name), names.map((name) => `publish.${name}`));
});

for (const snippet of snippets) {
  const { name } = snippet;
  test(`${name}: each event comes once, and a repeated key delivers nothing`, () =>
    world(async ({ next, redis, publish, env }) => {
      const [, user] = /`ACL (SETUSER publisher .*?)`/.exec(read("docs/redis.md"));
      await redis.call("ACL", ...user.split(" "));
      await asFile(import.meta.dirname, snippet, async (file) => {
        const execute = async () => {
          const { stdout, stderr } = await run(interpreters[extname(name)], [file], { env, timeout: 60_000 });
          assert.doesNotMatch(stderr, /error|warning: undefined/i);
          return printed(stdout);
        };
        const first = await execute();
        const { epoch } = first;
        assert.match(epoch, /^\d+$/);
        assert.deepEqual(first, { offset: 1, epoch, heard: 1 });
        assert.deepEqual(await next(), event("user:u1", PAID, { offset: 1, epoch }));
        assert.deepEqual(await next(), event("typing:42", TYPING));
        assert.deepEqual(await execute(), { offset: 1, epoch, heard: -1 }, "the first answer again");
        assert.deepEqual(await next(), event("typing:42", TYPING), "the plain one, and nothing before it");
        assert.deepEqual(await publish("1"), [2, epoch, 1]);
        assert.deepEqual(await next(), event("user:u1", 1, { offset: 2, epoch }));
      });
    }));
}

test("every language names a user's channel as the gateway does", () =>
  world(async ({ channelOf }) => {
    assert.deepEqual(ids.map(({ name }) => name), ["id.mjs", "id.py", "id.php", "id.rb"]);
    const users = ["u1", "a@b.example", "auth0|x", "did:privy:cm1", "system:serviceaccount:ns:name", "50%", "a%3Ab", "José",
      "Seán O'Brien", `* ? [ ] { } \\ " ' < > \` %`, "用户:一", "a\u00a0\u3000\u2028b", "a\ufeff\u180e\u200bb", "😀:😀", "9007199254740993"];
    for (const snippet of ids) {
      const { name } = snippet;
      await asFile(import.meta.dirname, snippet, async (file) => {
        for (const user of users) {
          const { stdout } = await run(interpreters[extname(name)], [file], { env: { ...process.env, USER_ID: user } });
          assert.equal(stdout.trimEnd(), await channelOf(user), `${name} for ${user}`);
        }
      });
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
      [["not json"], "ERR the event is no JSON"],
      [[Buffer.from([0x22, 0xff, 0x22])], "ERR the event is not UTF-8"],
      [["1", "", "", "", "row"], "ERR the fifth argument is raw or nothing"],
      [[], "ERR tollgate_publish 1 <prefix><channel> <json>"],
    ]) {
      await assert.rejects(publish(...args), (error) => error.message.startsWith(said));
      assert.ok(guide.includes(said) || said.includes("maxlen"), said);
    }
    const most = [1, "tollgate:user:u2", "1", "31536000", "100000", "k".repeat(256)];
    assert.equal((await redis.fcall("tollgate_publish", ...most))[0], 1);
    await lives(stream("tollgate:user:u2"), 31_536_000);
    await redis.publish(CHANNEL, "not json");
    assert.deepEqual(await next(), { type: "gap", data: { channel: "user:u1", reason: "invalid_payload" } });
    await redis.publish(CHANNEL, `"${"x".repeat(1048576)}"`);
    assert.deepEqual(await next(), { type: "gap", data: { channel: "user:u1", reason: "payload_too_large" } });
    await publish(` {"a" : 1.0}`);
    assert.deepEqual(await next(), event("user:u1", { a: 1 }, { offset: 2, epoch }));
    await publish("not json", "", "", "", "raw");
    assert.deepEqual(await next(), { type: "gap", data: { channel: "user:u1", reason: "invalid_payload" } });
    await redis.publish(CHANNEL, "2");
    assert.deepEqual(await next(), event("user:u1", 2), "a plain one beside them");
    for (let n = 0; n < 101; n++) await publish(String(n));
    for (let n = 0; n < 101; n++) assert.equal((await next()).offset, 4 + n);
    assert.equal(await redis.xlen(stream(CHANNEL)), 100);

    const fields = { channel: "user:u1", data: PAID };
    const repeated = { result: { offset: 1, epoch, heard: -1 } };
    assert.deepEqual(await api({ ...fields, idempotency_key: "a-key" }), repeated, "keys are shared");
    assert.deepEqual(await api({ ...fields, skip_history: true }), { result: { heard: 1 } });
    assert.deepEqual(await next(), event("user:u1", PAID));
    assert.equal((await api({ ...fields, skip_history: true, idempotency_key: "b" })).error.code, 108);
    assert.equal((await api({ ...fields, channel: "typing:42", idempotency_key: "b" })).error.code, 108);
    for (const channel of ["", "user:undefined"]) assert.equal((await api({ ...fields, channel })).error.code, 107);
  }));

test("the library comes back after FUNCTION FLUSH", () =>
  world(async ({ next, redis, publish }) => {
    const [, epoch] = await publish("1");
    await next();
    await redis.call("FUNCTION", "FLUSH");
    await assert.rejects(publish("2"), /ERR Function not found/);
    await until("the function", () => publish("2"), () => "", 10_000);
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
    assert.equal(again.length, 3, "its answer may be lost with the last writes, and then it is published");
    if (again[1] === epoch) assert.equal((await next()).data, 1);
  }));
