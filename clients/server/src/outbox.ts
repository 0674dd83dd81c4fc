import { TollgateError } from "./errors.js";
import { jsonText } from "./event.js";
import { type HistoryOptions, checkHistory, invalid } from "./options.js";
import { type OutboxTransaction, queryIn } from "./transactions.js";

export interface OutboxEvent extends HistoryOptions {
  channel: string;
  event: unknown;
  /** Continues a trace (W3C Trace Context) in the relay. */
  traceparent?: string | undefined;
  /** The gateway's `relay.schema`, if it is not in the connection's search_path. */
  schema?: string | undefined;
}

/** The statement that puts an event into the outbox, for a database library that `outbox` does not know. */
export interface OutboxQuery {
  /** SQL with `$1` to `$6`; it answers one row with one column, `uuid`. */
  text: string;
  values: (string | number | null)[];
}

const identifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** What `outbox` executes: for other libraries, in your own transaction. */
export function outboxQuery(event: OutboxEvent): OutboxQuery {
  const { channel, key, ttl, maxlen, traceparent, schema } = event;
  // Not more is checked: a purchase must not fail because of its announcement. What the gateway cannot deliver becomes
  // a dead letter, which `tollgate relay status` shows.
  const hasChannel = typeof channel === "string" && channel !== "";
  if (!hasChannel) throw new TollgateError("invalid_channel", "the channel is missing");
  checkHistory({ key, ttl, maxlen });
  if (schema === "") invalid("schema is empty");

  const name = `${schema === undefined ? "" : `${identifier(schema)}.`}tollgate_publish`;
  // By way of text, or a library that knows the parameter to be JSON would write it anew.
  const text = `SELECT ${name}($1::text, $2::text::json, $3::text, $4::int, $5::int, $6::text)::text AS uuid`;
  const optional = [key, ttl, maxlen, traceparent].map((value) => value ?? null);
  return { text, values: [channel, jsonText(event.event), ...optional] };
}

/**
 * Puts an event into the outbox, inside your transaction: once that commits the event is published, and if it rolls
 * back the event has never been. Answers the row's uuid; of a key that the channel already has, the first row's.
 */
export async function outbox(tx: OutboxTransaction, event: OutboxEvent): Promise<string> {
  const { text, values } = outboxQuery(event);
  const rows = await queryIn(tx, text, values);
  const uuid = (rows[0] as { uuid?: unknown } | undefined)?.uuid;
  if (typeof uuid !== "string") throw new TollgateError("refused", "tollgate_publish did not answer a uuid");
  return uuid;
}
