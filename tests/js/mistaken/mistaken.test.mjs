// Clients of other services that were given Tollgate's address, each the real package: they are told so in their
// own terms, with the address to use, and do not come back.
//
//   TOLLGATE_BIN  the gateway's binary

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
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

const WAIT_MS = 30_000;
/** Every one of these clients would have come back by then. */
const QUIET_MS = 4_000;
const WHY = /Use a plain WebSocket at \/ws, or EventSource at \/sse/;

process.once("SIGTERM", () => process.exit(143));

async function listening(server) {
  server.listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  return server.address().port;
}

async function freePort() {
  const server = net.createServer();
  const port = await listening(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function until(what, check) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const found = await check();
    if (found) return found;
    assert.ok(Date.now() < end, `${what}: not in time`);
    await sleep(20);
  }
}

let folder, gateway, gatewayPort, adminPort;

/** A way to the gateway that counts the requests that come by it: connections, and more on a connection. */
async function counted(run) {
  let attempts = 0;
  const open = new Set();
  const server = net.createServer((client) => {
    const upstream = net.connect(gatewayPort, "127.0.0.1");
    client.on("data", (data) => {
      if (/^(GET|POST) /.test(data.subarray(0, 5).toString("latin1"))) attempts++;
    });
    client.pipe(upstream).pipe(client);
    for (const socket of [client, upstream]) {
      open.add(socket);
      socket.on("error", () => {}).on("close", () => open.delete(socket));
    }
  });
  const port = await listening(server);
  try {
    await run({ port, http: `http://127.0.0.1:${port}`, ws: `ws://127.0.0.1:${port}` });
    const told = attempts;
    assert.ok(told >= 1);
    await sleep(QUIET_MS);
    assert.equal(attempts, told, "it came back");
  } finally {
    server.close();
    open.forEach((socket) => socket.destroy());
  }
}

describe("clients of other services", { timeout: 180_000, concurrency: 4 }, () => {
  before(async () => {
    folder = mkdtempSync(path.join(tmpdir(), "tollgate-mistaken-"));
    [gatewayPort, adminPort] = [await freePort(), await freePort()];
    const config = `[server]
listen = "127.0.0.1:${gatewayPort}"
[admin]
listen = "127.0.0.1:${adminPort}"
[log]
level = "error"
[[auth.keys]]
secret = "the mistaken clients' own secret, long enough"
[[channels]]
pattern = "post:{id}"
allow = "authenticated"
`;
    writeFileSync(path.join(folder, "tollgate.toml"), config);
    const args = ["serve", "--config", path.join(folder, "tollgate.toml")];
    gateway = spawn(path.resolve(process.env.TOLLGATE_BIN), args, { stdio: ["ignore", "ignore", "inherit"] });
    process.once("exit", () => gateway.kill("SIGKILL"));
    await until("ready", () => fetch(`http://127.0.0.1:${adminPort}/readyz`).then((r) => r.ok, () => false));
  });

  after(async () => {
    gateway.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });

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
