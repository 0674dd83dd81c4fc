// A gateway with its Redis, and a user's client that listens.
import assert from "node:assert/strict";
import { Redis } from "ioredis";
import { createClient } from "redis";
import WebSocket from "ws";
import { API_KEY, Site, token, until } from "../support/index.mjs";
import { tollgate } from "./fresh.mjs";

/** TOML: each user's channel keeps a history, and one kind of channel has none. */
const RULES = `[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
history = { size = 100, ttl = "10m" }
[[channels]]
pattern = "typing:{id}"
allow = "authenticated"
`;

export const PAID = { type: "order_paid", orderId: "4711" };

/**
 * Runs `use` with a site and what user u1 hears: `next()` is the next event, and at the end none may be left. After a
 * restart of Redis the user may hear an event or be told of a gap: such a test is `restarts`.
 */
export async function world(use, { restarts = false, ...options } = {}) {
  const site = await Site.start({ rules: RULES, ...options });
  let socket;
  try {
    const events = [];
    socket = new WebSocket(`${site.socketUrl}?format=envelope`, ["tollgate", `bearer.${token("u1")}`]);
    let connected = false;
    let errors = "";
    socket.on("error", (error) => (errors += error));
    socket.on("message", (text) => {
      const message = JSON.parse(text);
      if (message.type === "connected") connected = true;
      if (message.type === "event") events.push(message);
    });
    await until("the client is connected", () => connected, () => errors);
    const next = async () => {
      await until("an event for the client", () => events.length > 0, () => site.replicas[0].child.said);
      return events.shift();
    };
    await use({ site, next, api: { url: site.url, apiKey: API_KEY } });
    if (restarts) return;
    // Events come in order: after this one nothing before it is on its way.
    const last = { type: "last" };
    await until("the last event", () => tollgate.createPublisher({ url: site.url, apiKey: API_KEY }).publish("user:u1", last));
    assert.deepEqual((await next()).data, last, "nothing else came");
  } finally {
    socket?.terminate();
    await site.close();
  }
}

/** Clients of Redis as their documentation makes them: with their defaults, queues included. */
export const CLIENTS = {
  async ioredis(url) {
    const redis = new Redis(url);
    redis.on("error", () => {});
    return { redis, isReady: () => redis.status === "ready", queued: () => redis.offlineQueue.length, close: () => redis.disconnect() };
  },
  async "node-redis"(url) {
    const redis = await createClient({ url }).on("error", () => {}).connect();
    return { redis, isReady: () => redis.isReady, queued: () => 0, close: () => redis.destroy() };
  },
};

/** Runs `use` with such a client, and closes it. */
export async function client(name, url, use) {
  const { redis, close, ...state } = await CLIENTS[name](url);
  try {
    return await use(redis, state);
  } finally {
    close();
  }
}
