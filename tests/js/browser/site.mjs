// What the tests of browsers and of foreign clients stand on: gateways on a Redis of their own, the proxies of
// docs/ingress.md before them, tokens, and waiting. Everything ends with the process.
//
//   TOLLGATE_BIN  the gateway's binary
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const WAIT_MS = 30_000;
export const ROOT = path.resolve(import.meta.dirname, "../../..");
export const API_KEY = "the-browser-tests-api-key";
export const SECRET = "the browser tests' own secret, long enough";

const running = new Set();
const signal = (child, name) => {
  try {
    // Workers go with their master's group.
    process.kill(-child.pid, name);
  } catch {
    // It has ended by itself.
  }
};
process.once("exit", () => running.forEach((child) => signal(child, "SIGKILL")));
process.once("SIGTERM", () => process.exit(143));

/** Starts a process; what it says is in `said`, and on its standard output alone in `out`. */
export function start(command, args, options = {}) {
  const child = spawn(command, args.map(String), {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    env: { PATH: `${process.env.PATH}:/usr/sbin` },
    ...options,
  });
  running.add(child);
  child.said = child.out = "";
  child.stdout.setEncoding("utf8").on("data", (text) => {
    child.out += text;
    child.said = (child.said + text).slice(-20_000);
  });
  child.stderr.setEncoding("utf8").on("data", (text) => (child.said = (child.said + text).slice(-20_000)));
  child.ended = new Promise((resolve) => {
    child.once("error", resolve);
    child.once("exit", resolve);
  });
  child.ended.then(() => running.delete(child));
  return child;
}

export async function end(child, name = "SIGKILL") {
  if (!child) return;
  signal(child, name);
  await child.ended;
}

/** Below the ports that the system gives to outgoing connections, which would take it before its owner does. */
export async function freePort() {
  for (;;) {
    const port = 22_000 + Math.floor(Math.random() * 10_000);
    const server = net.createServer();
    const free = await new Promise((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/** Waits for something true; when it is not in time, the last error and `said` tell why. */
export async function until(what, check, said = () => "") {
  const late = Date.now() + WAIT_MS;
  for (let error; ; await sleep(30)) {
    try {
      const found = await check();
      if (found) return found;
    } catch (e) {
      error = e;
    }
    if (Date.now() > late) assert.fail(`${what}: not in time\n${error ?? ""}\n${await said()}`);
  }
}

export function token(user, { seconds = 3600, secret = SECRET } = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const text = `${part({ alg: "HS256" })}.${part({ sub: user, exp: now + seconds })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

/** A block of a document: what follows its `<!-- kind: name -->`. */
export function block(document, name) {
  const text = readFileSync(path.join(ROOT, document), "utf8");
  const found = [...text.matchAll(/<!-- \w+: (\S+) -->\n```\w+\n([^]*?)```/g)].find(([, n]) => n === name);
  assert.ok(found, `${document} has a block ${name}`);
  return found[2];
}

/** The text with this machine's ports, paths and time-outs; each of them is in it, once. */
export function here(text, changes) {
  for (const [old, mine] of Object.entries(changes)) {
    assert.equal(text.split(old).length, 2, `${old} is in the configuration, once`);
    text = text.replace(old, mine);
  }
  return text;
}

/** Gateways on a Redis, and perhaps a proxy before them. */
export class Site {
  static async start({ replicas = 1, config = "", rules = RULES, origins = [], proxy, redis = true, ready = true } = {}) {
    const site = new Site();
    try {
      await site.begin({ replicas, config, rules, origins, proxy, redis, ready });
    } catch (error) {
      await site.close();
      throw error;
    }
    return site;
  }

  async begin({ replicas, config, rules, origins, proxy, redis, ready }) {
    this.path = ready ? "/readyz" : "/livez";
    this.folder = mkdtempSync(path.join(tmpdir(), "tollgate-site-"));
    // nginx' workers may be of another user.
    chmodSync(this.folder, 0o755);
    if (redis) {
      this.redisPort = await freePort();
      this.redis = start("redis-server", ["--port", this.redisPort, "--save", "", "--dir", this.folder]);
    }
    this.replicas = [];
    for (let i = 0; i < replicas; i++) {
      this.replicas.push({ port: await freePort(), adminPort: await freePort(), file: path.join(this.folder, `${i}.toml`) });
    }
    if (proxy) this.port = await freePort();
    const broker = redis ? `[broker]\nkind = "redis"\n[redis]\nurl = "redis://127.0.0.1:${this.redisPort}"\n` : "";
    for (const { port, adminPort, file } of this.replicas) {
      const server = `[server]\nlisten = "127.0.0.1:${port}"\nallowed_origins = ${JSON.stringify(origins)}\n`;
      const admin = `[admin]\nlisten = "127.0.0.1:${adminPort}"\n[api]\nkeys = ["${API_KEY}"]\n`;
      const drain = config.includes("[drain]") ? "" : '[drain]\nsettle = "0s"\nwindow = "0s"\n';
      const keys = config.includes("[[auth.keys]]") ? "" : `[[auth.keys]]\nsecret = "${SECRET}"\n`;
      writeFileSync(file, server + admin + drain + broker + config + keys + rules);
    }
    await Promise.all(this.replicas.map((_, i) => this.run(i)));
    if (proxy) await this.startProxy(proxy);
  }

  /** Starts a replica, also again. */
  async run(i) {
    const replica = this.replicas[i];
    const binary = process.env.TOLLGATE_BIN;
    assert.ok(binary, "TOLLGATE_BIN is not set: it is the path of the tollgate binary");
    replica.child = start(path.resolve(binary), ["serve", "--config", replica.file]);
    const ready = async () => (await fetch(`http://127.0.0.1:${replica.adminPort}${this.path}`)).ok;
    const gone = replica.child.ended.then(() => assert.fail(`the gateway ended:\n${replica.child.said}`));
    await Promise.race([gone, until("ready", ready, () => replica.child.said)]);
    gone.catch(() => {});
  }

  async kill(i, name = "SIGKILL") {
    await end(this.replicas[i].child, name);
  }

  get direct() {
    return `http://127.0.0.1:${this.replicas[0].port}`;
  }

  /** Where clients go. */
  get url() {
    return this.port ? `https://127.0.0.1:${this.port}` : this.direct;
  }

  async startProxy({ kind, h2 = true }) {
    const file = (name) => path.join(this.folder, name);
    const subject = ["-subj", "/CN=site", "-addext", "subjectAltName=IP:127.0.0.1"];
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file("tls.key")];
    execFileSync("openssl", ["req", "-x509", "-days", "2", ...key, "-out", file("tls.crt"), ...subject], { stdio: "ignore" });
    writeFileSync(file("tls.pem"), readFileSync(file("tls.crt"), "utf8") + readFileSync(file("tls.key"), "utf8"));
    // Both addresses are in the configuration: of one replica, the second is the same.
    const [a, b = a] = this.replicas;
    const changes = { "10.0.1.11:8000": `127.0.0.1:${a.port}`, "10.0.1.12:8000": `127.0.0.1:${b.port}` };
    if (kind === "nginx") {
      const tls = { "/etc/nginx/tls/tls.crt": file("tls.crt"), "/etc/nginx/tls/tls.key": file("tls.key") };
      const listen = { "listen 443": `listen 127.0.0.1:${this.port}`, "access_log /var/log/nginx/": `access_log ${this.folder}/` };
      const temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((t) => `${t}_temp_path ${file(t)};`).join("\n");
      const main = `daemon off; worker_processes 2; pid ${file("pid")}; error_log stderr;\nevents { worker_connections 512; }\n`;
      const text = here(block("docs/ingress.md", kind), { ...changes, ...tls, ...listen });
      writeFileSync(file("conf"), `${main}http {\n${temp}\n${text}}\n`);
      this.proxy = start("nginx", ["-p", this.folder, "-e", "stderr", "-c", file("conf")]);
    } else {
      for (const [name, replica] of [["a", a], ["b", b]]) {
        const address = name === "a" ? "10.0.1.11:8000" : "10.0.1.12:8000";
        delete changes[address];
        changes[`${address} port 9000`] = `127.0.0.1:${replica.port} port ${replica.adminPort}`;
      }
      changes["bind :443"] = `bind 127.0.0.1:${this.port}`;
      changes["/etc/haproxy/tls/tls.pem"] = file("tls.pem");
      if (!h2) changes["alpn h2,http/1.1"] = "alpn http/1.1";
      writeFileSync(file("conf"), here(block("docs/ingress.md", kind), changes));
      this.proxy = start("haproxy", ["-db", "-f", file("conf")]);
    }
    await until(`${kind} sees the replicas`, async () => (await this.status("/sse")) === 401, () => this.proxy.said);
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

  async api(method, body, i = 0) {
    const answer = await fetch(`http://127.0.0.1:${this.replicas[i].port}/api/${method}`, {
      method: "POST",
      headers: { "X-API-Key": API_KEY },
      body: JSON.stringify(body),
    });
    const json = await answer.json();
    assert.ok(answer.ok && !json.error, JSON.stringify(json));
    return json;
  }

  async metric(name, i = 0) {
    const text = await (await fetch(`http://127.0.0.1:${this.replicas[i].adminPort}/metrics`)).text();
    const lines = text.split("\n").filter((line) => line.startsWith(`tollgate_${name}`));
    return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  }

  async close() {
    const children = [...(this.replicas ?? []).map(({ child }) => child), this.proxy, this.redis];
    await Promise.all(children.filter(Boolean).map((child) => end(child)));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

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
