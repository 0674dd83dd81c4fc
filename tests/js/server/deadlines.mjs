// A call ends within its deadline, whatever Redis or the gateway does, and what is tried again comes once.
import assert from "node:assert/strict";
import http from "node:http";
import net from "node:net";
import { test } from "node:test";
import { Redis } from "ioredis";
import { createClient } from "redis";
import { end, freePort, until } from "../support/index.mjs";
import { tollgate } from "./fresh.mjs";
import { CLIENTS, PAID, client, world } from "./world.mjs";

const { createPublisher } = tollgate;
const DEADLINE = 600;
/** What a busy machine may add. */
const LATE = 1500;

/** The error with which a call ends, which it has to do in time. */
async function fails(call, code) {
  const began = performance.now();
  const error = await call.then(() => assert.fail("published"), (error) => error);
  const took = performance.now() - began;
  assert.ok(took < DEADLINE + LATE, `${took} ms`);
  assert.equal(error.code, code, error.stack);
  assert.deepEqual([error.retryable, error.status], [true, 503]);
  return error;
}

const listening = async (server) => {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server.address().port;
};

for (const name of Object.keys(CLIENTS)) {
  test(`${name}: Redis hangs, and the same key publishes once when it is back`, () =>
    world(({ site, next }) =>
      client(name, site.redisUrl, async (redis) => {
        const { publish } = createPublisher({ redis, deadline: DEADLINE });
        await publish("user:u1", 1);
        await next();

        process.kill(site.redis.pid, "SIGSTOP");
        const error = await fails(publish("user:u1", PAID), "unanswered");
        assert.match(error.key, /^[0-9a-f-]{36}$/);
        process.kill(site.redis.pid, "SIGCONT");

        await until("Redis answers", () => publish("user:u1", PAID, { key: error.key }));
        assert.deepEqual((await next()).data, PAID);
      })));

  test(`${name}: Redis is gone, and nothing waits for it`, () =>
    world(({ site, next }) =>
      client(name, site.redisUrl, async (redis, { isReady, queued }) => {
        const { publish } = createPublisher({ redis, deadline: DEADLINE });
        await publish("user:u1", 1);
        await next();

        await end(site.redis);
        // Until the library has noticed, it takes a call as it does from a Redis that hangs.
        await until("the client has noticed", () => !isReady());
        const calls = [{ key: "order-1" }, {}, { durable: false }].map((options) => fails(publish("user:u1", PAID, options), "unavailable"));
        const [{ key }] = await Promise.all(calls);
        assert.equal(key, "order-1");
        assert.equal(queued(), 0);

        // One call spans the restart.
        const spanning = publish("user:u1", "later", { deadline: 20_000 });
        await site.runRedis();
        assert.equal((await spanning).offset, 1, "nothing of before was published");
        assert.equal((await publish("user:u1", "last", { deadline: 20_000 })).offset, 2, "nor was anything of before after it");
      }), { restarts: true }));

  test(`${name}: an answer of Redis is lost, and the call's own retry publishes nothing more`, () =>
    world(async ({ site, next }) => {
      // Passes everything on but one answer to a publication, in whose place the connection is reset.
      let asked = false;
      const lost = net.createServer((near) => {
        const far = net.connect(site.redisPort, "127.0.0.1");
        let drop = false;
        near.on("data", (data) => {
          if (data.includes("tollgate_publish") && !asked) drop = asked = true;
          far.write(data);
        });
        far.on("data", (data) => (drop ? near.resetAndDestroy() : near.write(data)));
        for (const [socket, other] of [[near, far], [far, near]]) socket.on("error", () => {}).on("close", () => other.destroy());
      });
      const port = await listening(lost);
      await client(name, `redis://127.0.0.1:${port}`, async (redis) => {
        const { offset, heard } = await createPublisher({ redis }).publish("user:u1", PAID);
        assert.deepEqual([asked, offset, heard], [true, 1, -1]);
        assert.deepEqual((await next()).data, PAID);
      });
      lost.close();
    }));
}

test("a client of Redis that never had a connection, or is closed", () =>
  world(async ({ site }) => {
    const refused = async (redis) => (await fails(createPublisher({ redis, deadline: DEADLINE }).publish("user:u1", 1), "unavailable")).message;
    const lost = new Redis(await freePort(), "127.0.0.1").on("error", () => {});
    assert.match(await refused(lost), /no connection/);
    assert.equal(lost.offlineQueue.length, 0);
    lost.disconnect();
    assert.match(await refused(createClient()), /call connect\(\) first/);
    assert.match(await client("ioredis", site.redisUrl, async (redis) => (await redis.quit(), refused(redis))), /has been closed/);

    const lazy = new Redis(site.redisUrl, { lazyConnect: true });
    assert.equal((await createPublisher({ redis: lazy }).publish("user:nobody", 1)).offset, 1);
    lazy.disconnect();
  }));

test("an API that hangs, that is not there, and that answers nonsense", async () => {
  const calls = { key: "order-1", deadline: DEADLINE };
  const api = (port) => createPublisher({ url: `http://127.0.0.1:${port}`, apiKey: "k" });
  const sockets = [];
  const deaf = net.createServer((socket) => sockets.push(socket));
  const slow = http.createServer((_, response) => response.writeHead(200).write('{"resul'));
  const failing = http.createServer((_, response) => response.writeHead(502).end());
  for (const server of [deaf, slow, failing]) {
    assert.equal((await fails(api(await listening(server)).publish("user:u1", PAID, calls), "unanswered")).key, "order-1");
    await fails(api(server.address().port).publish("user:u1", PAID, { durable: false, deadline: DEADLINE }), "unanswered");
    server.close();
    server.closeAllConnections?.();
  }
  sockets.forEach((socket) => socket.destroy());
  await fails(api(await freePort()).publish("user:u1", PAID, calls), "unavailable");
});

test("an answer of the API is lost, and the call's own retry publishes nothing more; a plain event is not sent again", () =>
  world(async ({ site, next, api }) => {
    let requests = 0;
    const lossy = http.createServer(async (request, response) => {
      const chunks = await request.toArray();
      const { "x-api-key": key } = request.headers;
      const answer = await fetch(`${site.url}${request.url}`, { method: "POST", headers: { "x-api-key": key }, body: Buffer.concat(chunks) });
      const text = await answer.text();
      if (++requests % 2 === 1) request.socket.destroy();
      else response.end(text);
    });
    const { publish } = createPublisher({ ...api, url: `http://127.0.0.1:${await listening(lossy)}` });
    const { offset, heard } = await publish("user:u1", PAID);
    assert.deepEqual([requests, offset, heard], [2, 1, -1]);
    assert.deepEqual((await next()).data, PAID);
    await fails(publish("user:u1", "plain", { durable: false }), "unanswered");
    assert.equal(requests, 3);
    assert.equal((await next()).data, "plain");
    lossy.close();
    lossy.closeAllConnections();
  }));

test("the caller's signal ends a call", async () => {
  const { publish } = createPublisher({ url: `http://127.0.0.1:${await freePort()}`, apiKey: "k" });
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 100);
  await fails(publish("user:u1", PAID, { signal: controller.signal }), "aborted");
  await fails(publish("user:u1", PAID, { signal: AbortSignal.abort() }), "aborted");
});
