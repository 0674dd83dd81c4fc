// A gateway and a Redis, each by itself. `Site` puts them together.
import { ready, start, tollgate } from "./processes.mjs";

/** Starts `tollgate serve`, and leaves it to the caller to wait until it is `ready`. `settings` are variables of its environment. */
export const startGateway = (args, settings) => start(tollgate(), ["serve", ...args], { env: settings });

export async function startRedis({ folder, port, args = [] }) {
  const redis = start("redis-server", ["--port", port, "--save", "", "--dir", folder, ...args]);
  await ready(redis, "Redis", () => redis.out.includes("Ready to accept connections"));
  return redis;
}
