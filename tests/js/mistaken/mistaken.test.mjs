// Clients of other services that were given Tollgate's address, each the real package: they are told so in their
// own terms, with the address to use, and do not come back.
//
//   TOLLGATE_BIN  the gateway's binary

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import * as actionCable from "@rails/actioncable";
import { RealtimeClient } from "@supabase/realtime-js";
import Ably from "ably";
import { Centrifuge } from "centrifuge";
import { EventSource } from "eventsource";
import LaravelEcho from "laravel-echo";
import { Socket as PhoenixSocket } from "phoenix";
import Pusher from "pusher-js";
import { io } from "socket.io-client";
import { WebSocket } from "ws";
import { Relay, Site, until } from "../support/index.mjs";

/** Every one of these clients would have come back by then. */
const QUIET_MS = 4_000;
const WHY = /Use a plain WebSocket at \/ws, or EventSource at \/sse/;
const RULES = '[[channels]]\npattern = "post:{id}"\nallow = "authenticated"\n';

let site;

/** A way to the gateway that counts the requests that come by it: connections, and more on a connection. */
async function counted(run) {
  let attempts = 0;
  const heard = (data) => {
    if (/^(GET|POST) /.test(data.subarray(0, 5).toString("latin1"))) attempts++;
  };
  const relay = await Relay.start(site.replicas[0].port, { heard });
  try {
    await run(relay);
    const told = attempts;
    assert.ok(told >= 1);
    await sleep(QUIET_MS);
    assert.equal(attempts, told, "it came back");
  } finally {
    relay.close();
  }
}

describe("clients of other services", { timeout: 180_000, concurrency: 4 }, () => {
  before(async () => (site = await Site.start({ redis: false, rules: RULES })));
  after(() => site?.close());

  test("field_c11 centrifuge by each transport", async () => {
    globalThis.EventSource ??= EventSource;
    for (const [transport, address] of [
      ["websocket", "websocket"],
      ["http_stream", "http_stream"],
      ["sse", "sse"],
    ]) {
      await counted(async ({ http, ws }) => {
        const base = transport === "websocket" ? ws : http;
        const client = new Centrifuge([{ transport, endpoint: `${base}/connection/${address}` }], {
          websocket: WebSocket,
          eventsource: EventSource,
          emulationEndpoint: `${http}/emulation`,
          fetch,
          readableStream: ReadableStream,
        });
        const end = new Promise((resolve) => client.on("disconnected", resolve));
        client.on("error", () => {});
        client.connect();
        const { code, reason } = await end;
        assert.equal(code, 3501, transport);
        assert.match(reason, WHY);
      });
    }
  });

  const pusher = { wsHost: "127.0.0.1", forceTLS: false, enabledTransports: ["ws"], cluster: "", enableStats: false };

  test("field_c11 pusher-js", () =>
    counted(async ({ port }) => {
      const client = new Pusher("KEY", { ...pusher, wsPort: port });
      const errors = [];
      client.connection.bind("error", (error) => errors.push(error));
      await until("disconnected", () => client.connection.state === "disconnected");
      const { data } = errors[0].error ?? errors[0];
      assert.equal(data.code, 4005);
      assert.match(data.message, WHY);
    }));

  test("field_c11 laravel-echo", () =>
    counted(async ({ port }) => {
      const Echo = LaravelEcho.default ?? LaravelEcho;
      const echo = new Echo({ broadcaster: "reverb", key: "KEY", Pusher, ...pusher, wsPort: port });
      echo.channel("orders").listen("Shipped", () => {});
      await until("disconnected", () => echo.connector.pusher.connection.state === "disconnected");
    }));

  test("field_c11 phoenix", () =>
    counted(async ({ ws }) => {
      const socket = new PhoenixSocket(`${ws}/socket`, { transport: WebSocket, heartbeatIntervalMs: 1000 });
      socket.connect();
      const channel = socket.channel("room:1", {});
      const closed = new Promise((resolve) => channel.onClose(resolve));
      const refused = new Promise((resolve) => channel.join().receive("error", resolve));
      assert.match((await refused).reason, WHY);
      await closed;
      // It stays, and its heartbeats are answered: a close of whatever code would bring it back.
      await sleep(QUIET_MS);
      assert.ok(socket.isConnected());
    }));

  test("field_c11 supabase-js", () =>
    counted(async ({ ws }) => {
      const client = new RealtimeClient(`${ws}/realtime/v1`, { params: { apikey: "a" }, transport: WebSocket });
      const told = [];
      client.channel("room").subscribe((status, error) => told.push([status, error]));
      await until("closed", () => told.some(([status]) => status === "CLOSED"));
      const [, error] = told.find(([status]) => status === "CHANNEL_ERROR");
      assert.match(String(error?.message ?? error), WHY);
    }));

  test("field_c11 actioncable", async () => {
    globalThis.addEventListener ??= () => {};
    globalThis.removeEventListener ??= () => {};
    globalThis.document ??= { visibilityState: "visible" };
    actionCable.adapters.WebSocket = WebSocket;
    for (const address of ["/cable", "/ws"]) {
      await counted(async ({ ws }) => {
        const consumer = actionCable.createConsumer(`${ws}${address}`);
        const ended = new Promise((resolve) => {
          consumer.subscriptions.create("ChatChannel", { disconnected: resolve });
        });
        assert.equal((await ended).willAttemptReconnect, false);
      });
    }
  });

  test("field_c11 ably", async () => {
    for (const useBinaryProtocol of [false, true]) {
      await counted(async ({ port }) => {
        const client = new Ably.Realtime({
          key: "app.key:secret",
          realtimeHost: "127.0.0.1",
          restHost: "127.0.0.1",
          port,
          tls: false,
          fallbackHosts: [],
          disableConnectivityCheck: true,
          logLevel: 0,
          useBinaryProtocol,
        });
        const { reason } = await client.connection.whenState("failed").then((change) => change ?? client.connection);
        const error = reason ?? client.connection.errorReason;
        assert.equal(error.code, 40400);
        assert.match(error.message, WHY);
      });
    }
  });

  test("field_c11 socket.io by each transport", async () => {
    for (const transports of [["polling", "websocket"], ["websocket"], ["polling"]]) {
      await counted(async ({ http }) => {
        const socket = io(http, { transports, reconnectionDelay: 200, forceNew: true });
        const error = await new Promise((resolve) => socket.once("connect_error", resolve));
        assert.match(error.message, WHY);
        await until("inactive", () => !socket.active);
        // The last words of a client that polls.
        await sleep(200);
      });
    }
  });
});
