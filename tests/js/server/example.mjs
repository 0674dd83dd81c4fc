// clients/server/example: compiled with the packed package, and used as its users would.
import assert from "node:assert/strict";
import { cpSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { ROOT, SECRET, end, freePort, ready, start, until } from "../support/index.mjs";
import { folder, typeErrors } from "./fresh.mjs";
import { Shop } from "./shop.mjs";
import { world } from "./world.mjs";

test("the example API gives tokens, announces orders, and answers while Redis is away", async () => {
  const EXAMPLE = path.join(ROOT, "clients/server/example");
  ["api.ts", "tsconfig.json"].forEach((name) => cpSync(path.join(EXAMPLE, name), path.join(folder, name)));
  assert.match(readFileSync(path.join(folder, "tsconfig.json"), "utf8"), /"strict": true/);
  assert.equal(await typeErrors(["--skipLibCheck"]), "");

  const shop = await Shop.open();
  let api;
  try {
    await world(async ({ site, next }) => {
      const port = await freePort();
      const env = { DATABASE_URL: shop.url, REDIS_URL: site.redisUrl, JWT_SECRET: SECRET, PORT: String(port) };
      api = start(process.execPath, [path.join(folder, "api.js")], { env });
      const ask = async (method, where, user = "u1") => {
        const answer = await fetch(`http://127.0.0.1:${port}/api/${where}`, { method, headers: user ? { "x-user": user } : {} });
        return [answer.status, await answer.json()];
      };
      await ready(api, "the API", async () => (await ask("GET", "nothing"))[0] === 404);

      const [, { token }] = await ask("GET", "realtime-token");
      assert.equal((await fetch(`${site.url}/sse`, { headers: { authorization: `Bearer ${token}` }, signal: AbortSignal.timeout(5000) })).status, 200);

      assert.deepEqual(await ask("POST", "waves?to=u1"), [200, { seen: true }]);
      assert.deepEqual((await next()).data, { type: "wave", from: "u1" });
      assert.deepEqual(await ask("POST", "waves?to=nobody"), [200, { seen: false }]);
      assert.deepEqual((await ask("POST", "waves?to=undefined")), [500, { error: "invalid_channel", retryable: false }]);

      await end(site.redis);
      const [wave, [status, { id }]] = await Promise.all([ask("POST", "waves?to=u1"), ask("POST", "orders?item=tea")]);
      // In its last moment the connection may still have taken the event.
      assert.match(JSON.stringify(wave), /^\[503,{"error":"(unavailable|unanswered)","retryable":true}\]$/);
      assert.equal(status, 201);
      const [{ channel, payload, key }] = await shop.rows();
      assert.deepEqual([channel, JSON.parse(payload), key], ["user:u1", { type: "order_paid", orderId: id, item: "tea" }, `order-${id}-paid`]);
      await site.runRedis();
      await until("Redis is used again", async () => (await ask("POST", "waves?to=u1"))[0] === 200, () => api.said);
    }, { restarts: true });
  } finally {
    if (api) await end(api);
    await shop.close();
  }
});
