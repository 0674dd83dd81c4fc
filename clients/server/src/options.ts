import { TollgateError } from "./errors.js";

const MAX_KEY_BYTES = 256;
const MAX_TTL_SECONDS = 31_536_000;
const MAX_LENGTH = 100_000;

export function invalid(message: string): never {
  throw new TollgateError("invalid_option", message);
}

/** A whole number in a range, where it is given. */
export function checkWhole(name: string, value: unknown, least: number, most: number): void {
  if (value === undefined) return;
  if (!Number.isInteger(value) || (value as number) < least || (value as number) > most) {
    invalid(`${name} is a whole number from ${least} to ${most}, not ${String(value)}`);
  }
}

/** What an event says of its channel's history, and its idempotency key. */
export interface HistoryOptions {
  /** The idempotency key, at most 256 bytes. A channel publishes one key once. */
  key?: string | undefined;
  /** How long the channel's history is kept after its last event, in seconds. The gateway's default is 600. */
  ttl?: number | undefined;
  /** How many events the channel's history keeps. The gateway's default is 100. */
  maxlen?: number | undefined;
}

export function checkHistory({ key, ttl, maxlen }: HistoryOptions): void {
  if (key !== undefined && (typeof key !== "string" || key === "" || Buffer.byteLength(key) > MAX_KEY_BYTES)) {
    invalid(`key is a text of 1 to ${MAX_KEY_BYTES} bytes`);
  }
  checkWhole("ttl", ttl, 1, MAX_TTL_SECONDS);
  checkWhole("maxlen", maxlen, 1, MAX_LENGTH);
}
