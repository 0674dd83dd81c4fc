// What happens to clients, done to those that the README shows: replicas that are replaced, an outage with the
// proxy's 502, an API that gives no token, a token that ends. Through nginx as docs/ingress.md has it. What a
// client knows at the end, by its events or by loading, is all that was published.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { Site, block, here, subscriptions, token, until } from "../support/index.mjs";

// The proxy's certificate is its own.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
process.removeAllListeners("warning");

const CLIENTS = { "client.js": { "ws://127.0.0.1:8000": /^http/ }, "stream.js": { "http://127.0.0.1:8000": /^https/ } };

for (const [name, address] of Object.entries(CLIENTS)) {
  test(`${name} survives what happens to clients`, { timeout: 180_000 }, async (t) => {
    const drain = '[drain]\nsettle = "0s"\nwindow = "500ms"\n';
    const site = await Site.start({ replicas: 2, proxy: { kind: "nginx" }, drain });
    const opened = [];
    t.after(async () => {
      life = () => new Promise(() => {});
      opened.forEach((one) => (one.terminate ?? one.close).call(one));
      await site.close();
    });

    const database = [];
    let known = new Set();
    let life = async () => 3600;
    const counted = (Base) =>
      class extends Base {
        constructor(...args) {
          super(...args);
          opened.push(this);
          this.addEventListener("error", () => {});
          this.subscribed = subscriptions(this);
        }
      };
    const globals = {
      WebSocket: counted(WebSocket),
      EventSource: counted(EventSource),
      fetch: async () => ({ json: async () => ({ token: token("u1", { seconds: await life() }) }) }),
      console: { error: () => {} },
      // Back-off, but not for as long as an outage of seconds does not need.
      setTimeout: (work, ms) => setTimeout(work, Math.min(ms, 500)),
      unlock: (id) => known.add(id),
      show: ({ postId }) => known.add(postId),
      reload: () => (known = new Set(database)),
    };
    const [[old, scheme]] = Object.entries(address);
    const code = here(block("README.md", name), { [old]: site.url.replace(scheme, (found) => (found === "http" ? "ws" : found)) });
    new Function(...Object.keys(globals), code)(...Object.values(globals));

    const publish = () => {
      database.push(database.length + 1);
      site.publish("post:42", { type: "post_purchased", postId: database.length });
    };
    const everything = (what) =>
      until(`${what}: all is known`, async () => known.size === database.length, () => `${known.size} of ${database.length}, ${opened.length} opened`);
    const connections = async () => (await site.metric("connections{", 0)) + (await site.metric("connections{", 1));

    const subscribed = () => opened.at(-1)?.subscribed.has("post:42");
    await until("subscribed", subscribed);
    publish();
    await everything("at the beginning");

    for (const i of [0, 1]) {
      const gone = site.kill(i, "SIGTERM");
      for (let n = 0; n < 20; n++) {
        publish();
        await sleep(30);
      }
      await gone;
      publish();
      await site.run(i);
    }
    await everything("replicas replaced");

    const before = opened.length;
    await Promise.all([site.kill(0), site.kill(1)]);
    publish();
    await until("a 502 was met", async () => opened.length > before + 1 && (await site.status("/sse")) === 502);
    // No token, then one that lives for two seconds, then good ones.
    let renewed = false;
    const good = async () => ((renewed = true), 3600);
    const short = async () => ((life = good), 2);
    life = async () => {
      life = short;
      throw new Error("the API is away too");
    };
    publish();
    await Promise.all([site.run(0), site.run(1)]);
    await until("a new token", async () => renewed && (await connections()) === 1 && subscribed(), async () => `${renewed} ${await connections()} ${opened.map((o) => o.readyState)}`);
    publish();
    await everything("after an outage and a token's end");
    assert.deepEqual([...known].sort((a, b) => a - b), database);
  });
}
