// Processes of a test: they end with the test's own process at the latest, and get no environment but PATH and what a
// test gives them.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import net from "node:net";
import path from "node:path";
import { until } from "./until.mjs";

const running = new Set();
const signal = (child, name) => {
  try {
    // Workers go with their master's group.
    process.kill(-child.pid, name);
  } catch {
    // It has ended by itself.
  }
};
// Also when the runner gives up on a file: no process outlives it.
process.once("exit", () => running.forEach((child) => signal(child, "SIGKILL")));
process.once("SIGTERM", () => process.exit(143));

/** Starts a process; what it says is in `said`, and on its standard output alone in `out`. */
export function start(command, args, { env, ...options } = {}) {
  const child = spawn(command, args.map(String), {
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
    // Debian keeps nginx and haproxy where not every user looks.
    env: { PATH: `${process.env.PATH}:/usr/sbin`, ...env },
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

/** Ends all that still run. */
export const endAll = () => Promise.all([...running].map((child) => end(child)));

/** What `check` finds once the process is ready; fails at once if the process has ended instead. */
export async function ready(child, what, check) {
  const ended = child.ended.then(() => assert.fail(`${what} has ended:\n${child.said}`));
  // Later its end is nobody's business here.
  ended.catch(() => {});
  return Promise.race([ended, until(`${what} is ready`, check, () => child.said)]);
}

/** The program that a variable of the environment names. */
function program(variable, what) {
  const file = process.env[variable];
  assert.ok(file, `${variable} is not set: it names ${what}`);
  try {
    accessSync(file, constants.X_OK);
  } catch {
    assert.fail(`${variable}=${file}: there is no such program; it names ${what}`);
  }
  return path.resolve(file);
}

export const tollgate = () => program("TOLLGATE_BIN", "the gateway, built with cargo build");
export const python = () => program("PYTHON", "a Python that has tests/js/requirements.txt");

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
