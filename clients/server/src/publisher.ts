import { randomUUID } from "node:crypto";
import { checkChannel } from "./channel.js";
import { Deadline } from "./deadline.js";
import { type ErrorCode, TollgateError } from "./errors.js";
import { checkType, jsonText } from "./event.js";
import { type HttpOptions, httpTransport } from "./http.js";
import { type HistoryOptions, checkHistory, checkWhole, invalid } from "./options.js";
import { type RedisOptions, redisTransport } from "./redis.js";

const DEADLINE_MS = 5000;
const LONGEST_DEADLINE_MS = 600_000;
const PREFIX = "tollgate:";
/** The pause before the first retry; each further one is twice as long, up to the second. */
const PAUSE_MS = [50, 1000] as const;

interface CommonOptions {
  /** The gateway's `redis.prefix`. */
  prefix?: string | undefined;
  /** How long a call may take in all, in milliseconds. */
  deadline?: number | undefined;
}

/** By a client of Redis that you made, or by the HTTP API of the gateway. */
export type PublisherOptions = CommonOptions & (RedisOptions | HttpOptions);

export interface PublishOptions extends HistoryOptions {
  /** How long this call may take in all, in milliseconds. */
  deadline?: number | undefined;
  /** Ends the call before its deadline. */
  signal?: AbortSignal | undefined;
  durable?: true | undefined;
}

/** An event that the next one replaces: it has no history, no key and no retry. */
export interface PlainOptions {
  durable: false;
  deadline?: number | undefined;
  signal?: AbortSignal | undefined;
}

export interface Published {
  /** The event's position in its channel. */
  offset: number;
  epoch: string;
  /**
   * How many connections of gateways heard it: 0 means that nobody is there. It is -1 where that is not known: the
   * key had been published before, or the gateway is of a version that does not say.
   */
  heard: number;
  /** What Redis would have refused, had the gateway been configured so. */
  warning?: string;
}

export interface PlainPublished {
  heard: number;
}

export interface Publisher {
  /**
   * Publishes an event durably: it ends within its deadline, and retries meanwhile with one idempotency key.
   *
   * @throws {TollgateError}
   */
  publish(channel: string, event: unknown, options?: PublishOptions): Promise<Published>;
  publish(channel: string, event: unknown, options: PlainOptions): Promise<PlainPublished>;
}

/** What goes to a transport. */
export interface Message {
  channel: string;
  text: string;
  /** None for a plain event. */
  key: string | undefined;
  ttl: number | undefined;
  maxlen: number | undefined;
}

/** One attempt to send it. */
export interface Attempt {
  deadline: Deadline;
  /** Set by the transport before anything may leave the process. */
  sent: boolean;
}

/**
 * Throws a TollgateError: `unavailable` where nothing was published, `unanswered` where that is not known, and both are
 * tried again; any other is final.
 */
export type Transport = (message: Message, attempt: Attempt) => Promise<Published>;

/** Makes the object that publishes, once for a process. */
export function createPublisher(options: PublisherOptions): Publisher {
  const prefix = options.prefix ?? PREFIX;
  checkWhole("deadline", options.deadline, 1, LONGEST_DEADLINE_MS);
  const isRedis = "redis" in options;
  if (isRedis && ("url" in options || "apiKey" in options)) invalid("give a redis client, or url and apiKey, not both");
  const transport = isRedis ? redisTransport(options, prefix) : httpTransport(options as HttpOptions);

  const publish = async (channel: string, event: unknown, call: PublishOptions | PlainOptions = {}) => {
    const message = prepare(channel, event, call, prefix, isRedis);
    checkWhole("deadline", call.deadline, 1, LONGEST_DEADLINE_MS);
    const deadline = new Deadline(call.deadline ?? options.deadline ?? DEADLINE_MS, call.signal);
    try {
      const published = await persist(transport, message, deadline);
      return message.key === undefined ? { heard: published.heard } : published;
    } catch (error) {
      if (error instanceof TollgateError) error.key = message.key;
      throw error;
    } finally {
      deadline.close();
    }
  };
  return { publish: publish as Publisher["publish"] };
}

/** Checks all that can be known here, before anything is sent. */
function prepare(
  channel: string, event: unknown, call: PublishOptions | PlainOptions, prefix: string, isRedis: boolean,
): Message {
  checkChannel(channel, prefix);
  const text = jsonText(event);
  checkType(text);

  const { key, ttl, maxlen }: HistoryOptions = call as PublishOptions;
  checkHistory({ key, ttl, maxlen });
  const hasHistory = ttl !== undefined || maxlen !== undefined;
  if (call.durable === false && (hasHistory || key !== undefined)) {
    invalid("a plain event (durable: false) has no key, ttl or maxlen");
  }
  if (!isRedis && hasHistory) {
    invalid("over HTTP the channel's rule says how long its history is (`history`): leave ttl and maxlen out");
  }
  return { channel, text, key: call.durable === false ? undefined : (key ?? randomUUID()), ttl, maxlen };
}

/** Tries until it is published, refused, or the time is over. */
async function persist(transport: Transport, message: Message, deadline: Deadline): Promise<Published> {
  let mayBePublished = false;
  let failure: unknown;
  for (let pause: number = PAUSE_MS[0]; !deadline.isOver; pause = Math.min(pause * 2, PAUSE_MS[1])) {
    const attempt: Attempt = { deadline, sent: false };
    try {
      return await deadline.race(transport(message, attempt));
    } catch (error) {
      const code = error instanceof TollgateError ? error.code : undefined;
      // What ends with the deadline tells less than what failed before it.
      if (!deadline.isOver) failure = error;
      if (code !== "unanswered" && code !== "aborted" && code !== "unavailable") throw error;
      if (code !== "unavailable") mayBePublished ||= attempt.sent;
      // A plain event has no key: sent again, it could come twice.
      if (message.key === undefined && mayBePublished) break;
    }
    await deadline.sleep(pause);
  }
  throw ended(deadline, mayBePublished, failure);
}

function ended(deadline: Deadline, mayBePublished: boolean, failure: unknown): TollgateError {
  const why = failure instanceof Error ? `: ${failure.message}` : "";
  const options = failure === undefined ? {} : { cause: failure };
  const as = (code: ErrorCode, what: string) => new TollgateError(code, `${what}${why}`, options);
  if (deadline.isAborted) return as("aborted", "the caller's signal ended the call");
  if (mayBePublished) return as("unanswered", "no answer in time; the event may have been published");
  return as("unavailable", why ? "not published in time" : "not published in time: there is no connection");
}
