// Publishing by Redis and by the HTTP API, and what is answered.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { test } from "node:test";
import { Cluster } from "ioredis";
import { createCluster } from "redis";
import { API_KEY, end, freePort, startRedis, until } from "../support/index.mjs";
import { exportsOf, snippet, tollgate } from "./fresh.mjs";
import { CLIENTS, PAID, client, world } from "./world.mjs";

const { createPublisher } = tollgate;

for (const name of ["publish.ioredis.mjs", "publish.node-redis.mjs", "publish.http.mjs"]) {
  test(`the README's ${name} publishes once, however often it runs`, () =>
    world(async ({ site, next }) => {
      const env = { REDIS_URL: site.redisUrl, TOLLGATE_URL: site.url, TOLLGATE_API_KEY: API_KEY };
      const first = await snippet(name, env);
      const { offset, epoch, data } = await next();
      assert.deepEqual(data, PAID);
      assert.equal(first, `{ offset: 1, epoch: '${epoch}', heard: 1 }`);
      assert.equal(offset, 1);
      assert.equal(await snippet(name, env), `{ offset: 1, epoch: '${epoch}', heard: -1 }`);
    }));
}

for (const name of Object.keys(CLIENTS)) {
  test(`${name}: history, plain events, and what is refused`, () =>
    world(({ site, next }) =>
      client(name, site.redisUrl, async (redis) => {
        const { publish } = createPublisher({ redis });
        const { offset, heard } = await publish("user:u1", [1, "é"], { ttl: 60, maxlen: 2 });
        assert.deepEqual([offset, heard, (await next()).data], [1, 1, [1, "é"]]);
        assert.equal((await publish("user:nobody", null)).heard, 0, "nobody is there");
        assert.deepEqual(await publish("user:u1", { type: "typing" }, { durable: false }), { heard: 1 });
        assert.equal((await next()).offset, undefined);
        await assert.rejects(publish("user:u1", "x".repeat(1_048_576)), { code: "refused", message: /1048578 bytes/ });

        execFileSync("redis-cli", ["-p", site.redisPort, "ACL", "SETUSER", "default", "-fcall"].map(String));
        await assert.rejects(publish("user:u1", 1), { code: "unauthorized", retryable: false, message: /NOPERM/ });
        execFileSync("redis-cli", ["-p", site.redisPort, "ACL", "SETUSER", "default", "+fcall"].map(String));
        // The gateway looks every 5 seconds.
        execFileSync("redis-cli", ["-p", site.redisPort, "FUNCTION", "FLUSH"].map(String));
        await assert.rejects(publish("user:u1", 1, { deadline: 50 }), { code: "unavailable", retryable: true, status: 503, message: /function/ });
        await publish("user:u1", 2, { deadline: 20_000 });
        assert.equal((await next()).data, 2);
      })));
}

test("a prefix that no gateway has is refused, or is a warning where the gateway says so", async () => {
  const wrong = (site, use) =>
    client("ioredis", site.redisUrl, (redis) => use(() => createPublisher({ redis, prefix: "ws:" }).publish("user:u1", PAID)));
  await world(({ site }) =>
    wrong(site, async (call) => {
      // At first another gateway might not have said yet which prefix is its own.
      await until("a foreign prefix is refused", () => call().then(() => false, () => true));
      await assert.rejects(call, { code: "refused", message: /tollgate:/ });
    }));
  // It follows what a site says of its Redis.
  const config = "refuse_wrong = false\n";
  await world(({ site }) => wrong(site, async (call) => assert.match((await call()).warning, /tollgate:/)), { config });
});

test("over HTTP: plain events, and what is refused", () =>
  world(async ({ site, next, api }) => {
    const { publish } = createPublisher({ ...api, url: `${api.url}/` });
    assert.equal((await publish("user:u1", { a: 1 })).offset, 1);
    assert.deepEqual((await next()).data, { a: 1 });
    assert.deepEqual(await publish("user:u1", { type: "typing" }, { durable: false }), { heard: 1 });
    assert.equal((await next()).offset, undefined);
    await assert.rejects(publish("typing:1", {}), { code: "refused", message: /108.*durable: false/s });
    assert.deepEqual(await publish("typing:1", {}, { durable: false }), { heard: 0 });
    await assert.rejects(publish("unknown:1", {}), { code: "refused", message: /102/ });
    await assert.rejects(publish("user:u1", "x".repeat(1_048_576)), { code: "refused" });
    await assert.rejects(createPublisher({ ...api, apiKey: "other" }).publish("user:u1", {}), { code: "unauthorized", status: 500 });
    await assert.rejects(createPublisher({ ...api, url: `${api.url}/elsewhere` }).publish("user:u1", {}), { code: "refused", message: /no HTTP API/ });
    await assert.rejects(createPublisher({ ...api, url: site.admin() }).publish("user:u1", {}), { code: "refused", message: /no HTTP API/ });
  }));

test("the README's route answers with a status", async () => {
  const { route } = await exportsOf("route.mjs");
  const answered = async (tollgate) => {
    const answer = {};
    const response = { writeHead: (status) => ((answer.status = status), response), end: (text) => (answer.text = text) };
    await route(tollgate, response);
    return answer;
  };
  const away = createPublisher({ url: `http://127.0.0.1:${await freePort()}`, apiKey: "k", deadline: 100 });
  assert.deepEqual(await answered(away), { status: 503, text: '{"error":"unavailable","retryable":true}' });
  await world(async ({ api, next }) => {
    assert.deepEqual(await answered(createPublisher(api)), { status: 204, text: undefined });
    assert.equal((await next()).data.type, "order_paid");
  });
});

test("clusters: both kinds of events by both libraries", async () => {
  const folder = mkdtempSync(path.join(tmpdir(), "tollgate-cluster-"));
  const port = await freePort();
  // The second port is by default one that the system may have given to somebody.
  const cluster = ["--cluster-enabled", "yes", "--cluster-port", await freePort(), "--cluster-announce-ip", "127.0.0.1"];
  const redis = await startRedis({ folder, port, args: cluster });
  const cli = (...args) => execFileSync("redis-cli", ["-p", String(port), ...args]).toString();
  try {
    cli("CLUSTER", "ADDSLOTSRANGE", "0", "16383");
    await until("the cluster is whole", () => cli("CLUSTER", "INFO").includes("cluster_state:ok"));
    const config = `[broker]\nkind = "redis"\n[redis]\nurl = "redis+cluster://127.0.0.1:${port}"\n`;
    await world(
      async ({ next }) => {
        const io = new Cluster([{ host: "127.0.0.1", port }]).on("error", () => {});
        const node = createCluster({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] }).on("error", () => {});
        try {
          await node.connect();
          for (const redis of [io, node]) {
            const { publish } = createPublisher({ redis });
            const { offset } = await publish("user:u1", PAID);
            assert.equal((await next()).offset, offset);
            assert.equal((await publish("user:u1", "plain", { durable: false })).heard, 1);
            assert.equal((await next()).data, "plain");
          }
        } finally {
          io.disconnect();
          node.destroy();
        }
      },
      { redis: false, config },
    );
  } finally {
    await end(redis);
    rmSync(folder, { recursive: true, force: true });
  }
});
