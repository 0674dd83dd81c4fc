// Server-sent events as clients use them: a page with a plain EventSource in a real browser, the npm
// package `eventsource`, and curl. The gateway is killed and started again under each of them, and
// nothing is missed.
//
//   TOLLGATE_BIN  the gateway's binary
//   CHROMIUM      the browser [default: /usr/bin/chromium]

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { EventSource } from "eventsource";
import { chromium } from "playwright-core";

const WAIT_MS = 30_000;
const SECRET = "the eventsource tests' own secret, long enough";
const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";
const ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];

const running = new Set();
process.once("exit", () => running.forEach((child) => child.kill("SIGKILL")));
process.once("SIGTERM", () => process.exit(143));

function start(command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "inherit"], env: { PATH: process.env.PATH } });
  running.add(child);
  child.ended = new Promise((resolve) => child.once("exit", resolve));
  child.ended.then(() => running.delete(child));
  return child;
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function until(what, check) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const found = await check().catch(() => undefined);
    if (found) return found;
    assert.ok(Date.now() < end, `${what}: not in time`);
    await sleep(50);
  }
}

function token(user) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ alg: "HS256" })}.${part({ sub: user, exp: Math.floor(Date.now() / 1000) + 3600 })}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

let folder, redis, redisPort, port, adminPort, pages, pagesUrl, gateway;

function publish(channel, n) {
  const key = `tollgate:${channel}`;
  const args = ["-p", redisPort, "FCALL", "tollgate_publish", "1", key, JSON.stringify({ n })];
  return execFileSync("redis-cli", args.map(String)).toString();
}

async function startGateway() {
  gateway = start(path.resolve(process.env.TOLLGATE_BIN), ["serve", "--config", path.join(folder, "tollgate.toml")]);
  await until("ready", async () => (await fetch(`http://127.0.0.1:${adminPort}/readyz`)).ok);
}

async function killGateway() {
  gateway.kill("SIGKILL");
  await gateway.ended;
}

/** Events before, during and after an outage of the gateway; `seen` is what the client has. */
async function survives(channel, seen, live) {
  await until("live", live);
  for (let n = 1; n <= 5; n++) publish(channel, n);
  await until("the first five", async () => (await seen()).length >= 5);
  await killGateway();
  for (let n = 6; n <= 10; n++) publish(channel, n);
  await startGateway();
  await until("what was missed", async () => (await seen()).length >= 10);
  for (let n = 11; n <= 15; n++) publish(channel, n);
  await until("what follows", async () => (await seen()).length >= 15);
  assert.deepEqual(await seen(), Array.from({ length: 15 }, (_, i) => i + 1));
}

describe("server-sent events", { timeout: 120_000 }, () => {
  before(async () => {
    folder = mkdtempSync(path.join(tmpdir(), "tollgate-sse-"));
    [redisPort, port, adminPort] = [await freePort(), await freePort(), await freePort()];
    redis = start("redis-server", ["--port", redisPort, "--save", "", "--dir", folder].map(String));
    pages = createServer((_, response) => response.end("<!doctype html><title>page</title>"));
    pages.listen(0, "127.0.0.1");
    await new Promise((resolve) => pages.once("listening", resolve));
    pagesUrl = `http://127.0.0.1:${pages.address().port}`;
    writeFileSync(
      path.join(folder, "tollgate.toml"),
      `[server]
listen = "127.0.0.1:${port}"
allowed_origins = ["${pagesUrl}"]
[admin]
listen = "127.0.0.1:${adminPort}"
[log]
level = "error"
[broker]
kind = "redis"
[redis]
url = "redis://127.0.0.1:${redisPort}"
[[auth.keys]]
secret = "${SECRET}"
[[channels]]
pattern = "post:{id}"
allow = "authenticated"
history = { size = 100, ttl = "10m" }
`,
    );
    await startGateway();
  });

  after(async () => {
    pages?.close();
    for (const child of running) child.kill("SIGKILL");
    await Promise.all([...running].map((child) => child.ended));
    rmSync(folder, { recursive: true, force: true });
  });

  test("a page with a plain EventSource survives a restart and misses nothing", async () => {
    const browser = await chromium.launch({ executablePath: BROWSER, headless: true, args: ARGS });
    try {
      const page = await browser.newPage();
      await page.goto(pagesUrl);
      await page.evaluate(
        ([url]) => {
          window.seen = [];
          window.gaps = [];
          const source = new EventSource(url);
          source.addEventListener("subscribed", () => (window.live = true));
          source.addEventListener("gap", (event) => window.gaps.push(event.data));
          source.onmessage = (event) => window.seen.push(JSON.parse(event.data).n);
        },
        [`http://127.0.0.1:${port}/sse?channels=post:browser&token=${token("u1")}`],
      );
      await survives(
        "post:browser",
        () => page.evaluate(() => window.seen),
        () => page.evaluate(() => window.live),
      );
      assert.deepEqual(await page.evaluate(() => window.gaps), []);
    } finally {
      await browser.close();
    }
  });

  test("the npm package eventsource does too", async () => {
    const seen = [];
    let live = false;
    const source = new EventSource(`http://127.0.0.1:${port}/sse?channels=post:npm`, {
      fetch: (url, init) =>
        fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${token("u1")}` } }),
    });
    source.addEventListener("subscribed", () => (live = true));
    source.onmessage = (event) => seen.push(JSON.parse(event.data).n);
    try {
      await survives("post:npm", async () => seen, async () => live);
    } finally {
      source.close();
    }
  });

  test("curl -N shows events as they come, and resumes", async () => {
    const curl = (last) => {
      const headers = ["-H", `Authorization: Bearer ${token("u1")}`];
      if (last) headers.push("-H", `Last-Event-ID: ${last}`);
      const child = spawn("curl", ["-sN", ...headers, `http://127.0.0.1:${port}/sse?channels=post:curl`]);
      running.add(child);
      child.ended = new Promise((resolve) => child.once("exit", resolve));
      child.ended.then(() => running.delete(child));
      child.text = "";
      child.stdout.setEncoding("utf8").on("data", (text) => (child.text += text));
      return child;
    };
    const first = curl();
    await until("subscribed", async () => first.text.includes("event: subscribed"));
    publish("post:curl", 1);
    await until("an event", async () => first.text.includes('data: {"n":1}'));
    const last = first.text.match(/^id: (.*)$/gm).at(-1).slice(4);
    first.kill();
    await first.ended;
    publish("post:curl", 2);
    const second = curl(last);
    await until("what was missed", async () => second.text.includes('data: {"n":2}'));
    assert.ok(second.text.includes('"recovered":true'));
    assert.ok(!second.text.includes('data: {"n":1}'));
    second.kill();
  });
});
