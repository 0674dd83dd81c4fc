// A request of a user must not wait for as long as Redis is away: each snippet of docs/publishing.md ends with an error
// when Redis hangs, or is gone, before it connects and while its command is on the way.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { API_KEY, Relay, Site, asFile, blocks, end, freePort, python, startRedis } from "../support/index.mjs";
import { RULES } from "./rules.mjs";

const run = promisify(execFile);
const snippets = blocks("docs/publishing.md").filter(({ name }) => name.startsWith("publish."));
const interpreters = { ".sh": "bash", ".mjs": "node", ".py": python(), ".php": "php", ".rb": "ruby" };
const SIGNALS = { hangs: "SIGSTOP", "is gone": "SIGKILL" };
/** Whoever waits for as long as this waits for Redis. */
const options = (env) => ({ env: { ...process.env, ...env }, timeout: 60_000, killSignal: "SIGKILL" });

/** The snippet ends by itself, with an error. */
const fails = (program, file, url) =>
  assert.rejects(run(program, [file], options({ REDIS_URL: url })), (error) => !error.killed && error.code > 0);

for (const snippet of snippets.filter(({ name }) => name !== "publish.curl.sh")) {
  const program = interpreters[extname(snippet.name)];
  for (const [what, signal] of Object.entries(SIGNALS)) {
    test(`${snippet.name} ends with an error when Redis ${what}`, async () => {
      const folder = mkdtempSync(join(tmpdir(), "tollgate-away-"));
      const port = await freePort();
      const redis = await startRedis({ folder, port });
      // The command is on its way, over a connection that has answered. It may be sent again.
      let isAway = false;
      const heard = (data) => {
        if (isAway || !data.includes("tollgate_publish")) return;
        isAway = true;
        process.kill(redis.pid, signal);
      };
      const relay = await Relay.start(port, { heard });
      try {
        await asFile(import.meta.dirname, snippet, async (file) => {
          await fails(program, file, `redis://127.0.0.1:${relay.port}`);
          await fails(program, file, `redis://127.0.0.1:${port}`);
        });
      } finally {
        relay.close();
        await end(redis);
        rmSync(folder, { recursive: true, force: true });
      }
    });
  }
}

for (const [what, signal] of Object.entries(SIGNALS)) {
  test(`publish.curl.sh is answered with an error when Redis ${what}`, async () => {
    const site = await Site.start({ rules: RULES });
    try {
      process.kill(site.redis.pid, signal);
      const env = { TOLLGATE_URL: site.url, TOLLGATE_API_KEY: API_KEY };
      const snippet = snippets.find(({ name }) => name === "publish.curl.sh");
      const { stdout } = await asFile(import.meta.dirname, snippet, (file) => run("bash", [file], options(env)));
      assert.match(stdout, /^{"error":{"code":100,/);
    } finally {
      await site.close();
    }
  });
}
