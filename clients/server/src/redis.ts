import { redisError } from "./answers.js";
import type { Deadline } from "./deadline.js";
import { TollgateError } from "./errors.js";
import { invalid } from "./options.js";
import type { Attempt, Message, Published, Transport } from "./publisher.js";

/* eslint-disable @typescript-eslint/no-explicit-any -- what both libraries' generic methods are assignable to */

/** A client or a cluster of ioredis, as far as it is used here. */
export interface IoRedis {
  status: string;
  fcall(...args: any[]): Promise<any>;
  publish(...args: any[]): Promise<any>;
  spublish(...args: any[]): Promise<any>;
  connect(...args: any[]): Promise<any>;
}

/** A client or a cluster of node-redis (`redis`), as far as it is used here. */
export interface NodeRedis {
  isOpen: boolean;
  fCall(...args: any[]): Promise<any>;
  publish(...args: any[]): Promise<any>;
  sPublish(...args: any[]): Promise<any>;
}

export interface RedisOptions {
  /** Your client: ioredis or node-redis, alone, with Sentinel, or a cluster. It stays yours to close. */
  redis: IoRedis | NodeRedis;
}

/** What is asked of either library. */
interface Client {
  /** Whether a command would go out at once. */
  isReady(): boolean;
  /** Why it will not become ready, if that is known. */
  closed(): string | undefined;
  call(key: string, args: string[]): Promise<any>;
  plain(key: string, text: string): Promise<any>;
}

function ioRedis(redis: IoRedis): Client {
  const { options, isCluster } = redis as { options?: { keyPrefix?: unknown }; isCluster?: boolean };
  if (options?.keyPrefix) invalid("the ioredis client puts its keyPrefix before the channel: give one without keyPrefix");
  return {
    isReady() {
      // A lazy client connects with its first command.
      if (redis.status === "wait") redis.connect().catch(() => {});
      return redis.status === "ready";
    },
    closed: () => (redis.status === "end" ? "the ioredis client has been closed" : undefined),
    call: (key, args) => redis.fcall("tollgate_publish", 1, key, ...args),
    plain: (key, text) => (isCluster ? redis.spublish(key, text) : redis.publish(key, text)),
  };
}

function nodeRedis(redis: NodeRedis): Client {
  // Only a cluster has masters; that of older versions has no isReady.
  const parts = redis as { isReady?: boolean; masters?: unknown };
  const isCluster = parts.masters !== undefined;
  return {
    isReady: () => parts.isReady ?? redis.isOpen,
    closed: () => (redis.isOpen ? undefined : "the node-redis client is not open: call connect() first"),
    call: (key, args) => redis.fCall("tollgate_publish", { keys: [key], arguments: args }),
    plain: (key, text) => (isCluster ? redis.sPublish(key, text) : redis.publish(key, text)),
  };
}

function adapt(redis: unknown): Client {
  const methods = (typeof redis === "object" && redis !== null ? redis : {}) as Record<string, unknown>;
  const has = (name: string, type: string) => typeof methods[name] === type;
  if (has("fcall", "function") && has("status", "string")) return ioRedis(redis as IoRedis);
  if (has("fCall", "function") && has("isOpen", "boolean")) return nodeRedis(redis as NodeRedis);
  return invalid("redis is a client of ioredis 5 or newer, or of node-redis (redis) 4 or newer");
}

const POLL_MS = 25;

/**
 * Waits until a command would go out at once. Both libraries queue commands while they have no connection, for longer
 * than anybody waits; therefore they get none then. Polled, because a listener for each call would be one too many for
 * an emitter under load.
 */
async function ready(client: Client, deadline: Deadline): Promise<void> {
  while (!client.isReady()) {
    const closed = client.closed();
    if (closed !== undefined) throw new TollgateError("unavailable", closed);
    if (deadline.isOver) throw new TollgateError("unavailable", "there is no connection to Redis");
    await deadline.sleep(POLL_MS);
  }
  if (deadline.isOver) throw new TollgateError("unavailable", "there is no connection to Redis");
}

export function redisTransport({ redis }: RedisOptions, prefix: string): Transport {
  const client = adapt(redis);

  return async function send(message: Message, attempt: Attempt): Promise<Published> {
    await ready(client, attempt.deadline);
    attempt.sent = true;
    const key = prefix + message.channel;
    try {
      if (message.key === undefined) {
        return { offset: 0, epoch: "", heard: Number(await client.plain(key, message.text)) };
      }
      const args = [message.text, String(message.ttl ?? ""), String(message.maxlen ?? ""), message.key];
      const [offset, epoch, heard, warning] = await client.call(key, args);
      const published = { offset: Number(offset), epoch: String(epoch), heard: Number(heard ?? -1) };
      return warning ? { ...published, warning: String(warning) } : published;
    } catch (error) {
      throw redisError(error);
    }
  };
}
