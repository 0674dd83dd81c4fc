// A network that vanishes without a word, and heals when the gateway has given the client up: the README's client.js,
// which follows the advice of docs/protocol.md ("A client needs a watchdog"), finds out by itself.
import assert from "node:assert/strict";
import { test } from "node:test";
import WebSocket from "ws";
import { Relay, Site, block, here, token, until } from "../support/index.mjs";

test("field_b7_a_client_whose_network_vanished_finds_out_and_comes_back", { timeout: 120_000 }, async (t) => {
  const limits = '[limits]\nping_interval = "1s"\npong_timeout = "1s"\n';
  const site = await Site.start({ config: limits });
  const network = await Relay.start(site.replicas[0].port);

  const opened = [];
  const database = [];
  let known = new Set();
  let ended = false;
  t.after(async () => {
    ended = true;
    opened.forEach((socket) => socket.terminate());
    network.close();
    await site.close();
  });

  // The client, with a watchdog that looks every second instead of every 25, and waits for 4 s instead of 60.
  class Counted extends WebSocket {
    constructor(...args) {
      super(...args);
      opened.push(this);
      this.addEventListener("error", () => {});
    }
  }
  const globals = {
    WebSocket: Counted,
    fetch: async () => (ended ? new Promise(() => {}) : { json: async () => ({ token: token("u1") }) }),
    console: { error: () => {} },
    unlock: (id) => known.add(id),
    reload: () => (known = new Set(database)),
  };
  const short = { "ws://127.0.0.1:8000": network.ws, "60_000": "4_000", "25_000": "1_000" };
  const code = here(block("README.md", "client.js"), short);
  new Function(...Object.keys(globals), code)(...Object.values(globals));

  const publish = () => {
    database.push(database.length + 1);
    site.publish("post:42", { type: "post_purchased", postId: database.length });
  };
  const everything = (what) =>
    until(`${what}: all is known`, async () => known.size === database.length, () => `${known.size} of ${database.length}`);
  const connections = () => site.metric("connections{");

  await until("connected", async () => (await connections()) === 1);
  publish();
  await everything("at the beginning");

  network.vanish();
  publish();
  await until("the gateway has given it up", async () => (await connections()) === 0);
  network.heal();
  publish();

  await until("it is back", async () => (await connections()) === 1);
  publish();
  await everything("afterwards");
  assert.deepEqual([...known].sort((a, b) => a - b), database);
  assert.equal(opened[0].readyState === WebSocket.OPEN, false, "it has left the old socket");
});
