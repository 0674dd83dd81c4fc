import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { end, freePort, ready, start } from "./processes.mjs";
import { startProxy } from "./proxies.mjs";
import { startGateway, startRedis } from "./servers.mjs";
import { SECRET } from "./tokens.mjs";

export const API_KEY = "the-tests-own-api-key";

/** One secret for HS256: what `token` signs with. */
const KEYS = `[[auth.keys]]\nsecret = "${SECRET}"\n`;
/** A drain that a test need not wait for. */
const DRAIN = '[drain]\nsettle = "0s"\nwindow = "0s"\n';
/** Each user's own channel, and one with a history. */
const RULES = `[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "post:{id}"
allow = "authenticated"
history = { size = 100, ttl = "10m" }
`;
const DEFAULTS = {
  replicas: 1,
  /** TOML beside what a site writes by itself; `drain`, `keys` and `rules` are TOML too, in place of its own. */
  config: "",
  drain: DRAIN,
  keys: KEYS,
  rules: RULES,
  /** `{ kind: "nginx" }` or `{ kind: "haproxy", h2: false }`: what clients go through. */
  proxy: undefined,
  redis: true,
  /** Further arguments of redis-server. */
  redisArgs: [],
  /** Whether replicas have to become ready; if not, alive is enough. */
  ready: true,
};

/** Gateways, on a Redis unless told otherwise, and perhaps a proxy before them. */
export class Site {
  static async start(options = {}) {
    const site = new Site();
    try {
      await site.#begin({ ...DEFAULTS, ...options });
    } catch (error) {
      await site.close();
      throw error;
    }
    return site;
  }

  async #begin(options) {
    this.options = options;
    this.folder = mkdtempSync(path.join(tmpdir(), "tollgate-site-"));
    // nginx' workers may be of another user.
    chmodSync(this.folder, 0o755);

    if (options.redis) {
      this.redisPort = await freePort();
      await this.runRedis();
    }

    this.replicas = [];
    for (let i = 0; i < options.replicas; i++) {
      const replica = { port: await freePort(), adminPort: await freePort(), file: path.join(this.folder, `${i}.toml`) };
      writeFileSync(replica.file, this.#configuration(replica));
      this.replicas.push(replica);
    }
    await Promise.all(this.replicas.map((_, i) => this.run(i)));

    if (!options.proxy) return;
    this.port = await freePort();
    this.proxy = startProxy(options.proxy, this);
    await ready(this.proxy, options.proxy.kind, async () => (await this.status("/sse")) === 401);
  }

  #configuration({ port, adminPort }) {
    const { config, drain, keys, rules, redis } = this.options;
    const server = `[server]\nlisten = "127.0.0.1:${port}"\n`;
    const admin = `[admin]\nlisten = "127.0.0.1:${adminPort}"\n[api]\nkeys = ["${API_KEY}"]\n`;
    const broker = redis ? `[broker]\nkind = "redis"\n[redis]\nurl = "${this.redisUrl}"\n` : "";
    return server + admin + drain + broker + config + keys + rules;
  }

  /** Starts Redis, also again. */
  async runRedis() {
    await end(this.redis);
    this.redis = await startRedis({ folder: this.folder, port: this.redisPort, args: this.options.redisArgs });
  }

  /** Starts a replica, also again. */
  async run(i) {
    const replica = this.replicas[i];
    replica.child = startGateway(["--config", replica.file]);
    const health = this.options.ready ? "/readyz" : "/livez";
    await ready(replica.child, "the gateway", async () => (await fetch(`${this.admin(i)}${health}`)).ok);
  }

  async kill(i, name = "SIGKILL") {
    await end(this.replicas[i].child, name);
  }

  get redisUrl() {
    return `redis://127.0.0.1:${this.redisPort}`;
  }

  admin(i = 0) {
    return `http://127.0.0.1:${this.replicas[i].adminPort}`;
  }

  direct(i = 0) {
    return `http://127.0.0.1:${this.replicas[i].port}`;
  }

  /** Where clients go. */
  get url() {
    return this.port ? `https://127.0.0.1:${this.port}` : this.direct();
  }

  /** Where their sockets go. */
  get socketUrl() {
    return `${this.url.replace("http", "ws")}/ws`;
  }

  /** The status of what clients get. */
  async status(where) {
    const args = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", `${this.url}${where}`];
    const curl = start("curl", args);
    await curl.ended;
    return Number(curl.out);
  }

  /** Publishes a durable event. */
  publish(channel, event) {
    const args = ["-p", this.redisPort, "FCALL", "tollgate_publish", "1", `tollgate:${channel}`, JSON.stringify(event)];
    return execFileSync("redis-cli", args.map(String)).toString();
  }

  /** The server API's answer, whatever it is. */
  async ask(method, body, i = 0) {
    const headers = { "X-API-Key": API_KEY };
    const answer = await fetch(`${this.direct(i)}/api/${method}`, { method: "POST", headers, body: JSON.stringify(body) });
    return { ok: answer.ok, json: await answer.json() };
  }

  /** The server API's answer, which is no error. */
  async api(method, body, i = 0) {
    const { ok, json } = await this.ask(method, body, i);
    assert.ok(ok && !json.error, JSON.stringify(json));
    return json;
  }

  async metrics(i = 0) {
    return (await fetch(`${this.admin(i)}/metrics`)).text();
  }

  /** The sum of a metric's rows. */
  async metric(name, i = 0) {
    const lines = (await this.metrics(i)).split("\n").filter((line) => line.startsWith(`tollgate_${name}`));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  async close() {
    const children = [...(this.replicas ?? []).map(({ child }) => child), this.proxy, this.redis];
    await Promise.all(children.filter(Boolean).map((child) => end(child)));
    rmSync(this.folder, { recursive: true, force: true });
  }
}
