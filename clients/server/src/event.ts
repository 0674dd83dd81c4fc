import { TollgateError } from "./errors.js";

/** The types of the gateway's own messages: a client could not tell such an event from one. */
const RESERVED: ReadonlySet<unknown> = new Set([
  "connected", "subscribed", "unsubscribed", "refreshed", "pong", "token_expiring", "gap", "interrupted", "live",
  "reconnect", "close", "error",
]);

const refuse = (why: string, cause?: unknown): never => {
  throw new TollgateError("invalid_event", `the event ${why}`, cause === undefined ? {} : { cause });
};

/** JSON.stringify writes `null` for these, and nobody would learn of it. */
function finite(_: string, value: unknown): unknown {
  const isOdd = typeof value === "number" && !Number.isFinite(value);
  return isOdd ? refuse(`contains ${value}, which JSON does not have`) : value;
}

/** The event as JSON text. */
export function jsonText(event: unknown): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(event, finite);
  } catch (error) {
    if (error instanceof TollgateError) throw error;
    refuse(`cannot be written as JSON: ${(error as Error).message}`, error);
  }
  return text ?? refuse(`is of type ${typeof event}, which JSON does not have`);
}

/** Refuses an event that the gateway would not deliver. */
export function checkType(text: string): void {
  // A type comes from the text, because an object may have a toJSON.
  const event: unknown = text.startsWith("{") ? JSON.parse(text) : undefined;
  const type = (event as { type?: unknown } | undefined)?.type;
  if (RESERVED.has(type)) refuse(`has the type "${String(type)}", which is reserved for the gateway: give it another`);
}
