import { type ErrorCode, TollgateError } from "./errors.js";

/** What Redis says when it cannot now, and has done nothing: a moment later, or another server, may. */
const PASSING = /^(LOADING|MASTERDOWN|READONLY|CLUSTERDOWN|TRYAGAIN|BUSY|OOM|MISCONF|NOREPLICAS)\b/;
/** A new server has the function within seconds: the gateway loads it. */
const NO_FUNCTION = /Function not found/;
const NOT_ALLOWED = /^(NOPERM|NOAUTH|WRONGPASS)\b|^ERR The user executing the script can't run this command/;
const OLD = /^ERR unknown command/i;
const CLUSTER = /^(MOVED|ASK) /;
/** An error that Redis answered begins with a word in capitals; those that clients make do not. */
const ANSWER = /^[A-Z][A-Z0-9_]+ /;
/** What clients say when they did not send a command. */
const NOT_SENT = /^Stream isn't writeable|^The client is (offline|closed)/;

/** The error of a command, as one of ours. */
export function redisError(error: unknown): TollgateError {
  const message = error instanceof Error ? error.message : String(error);
  const as = (code: ErrorCode, what: string) => new TollgateError(code, `${what}: ${message}`, { cause: error });

  if (NO_FUNCTION.test(message)) return as("unavailable", "Redis has no function tollgate_publish yet (a gateway loads it)");
  if (PASSING.test(message)) return as("unavailable", "Redis says");
  if (NOT_ALLOWED.test(message)) return as("unauthorized", "Redis says");
  if (OLD.test(message)) return as("refused", "Redis is older than 7: publish by the HTTP API of the gateway");
  if (CLUSTER.test(message)) return as("refused", "this Redis is a cluster: give a cluster client");
  if (ANSWER.test(message)) return as("refused", "Redis refused the event");
  return as(NOT_SENT.test(message) ? "unavailable" : "unanswered", "Redis did not answer");
}

/** An error that the HTTP API answered with status 200. */
export function apiError(code: unknown, message: string): TollgateError {
  const text = `the gateway says: ${message} (error ${String(code)})`;
  // The gateway itself does not know what became of the event.
  if (code === 100) return new TollgateError("unanswered", text);
  const advice = "a durable event needs a channel whose rule has `history`; otherwise say durable: false";
  return new TollgateError("refused", code === 108 ? `${text}; ${advice}` : text);
}

/** A status of the HTTP API other than 200. */
export function statusError(status: number): TollgateError {
  const as = (code: ErrorCode, what: string) => new TollgateError(code, `${what} (status ${status})`);
  if (status === 401 || status === 403) return as("unauthorized", "the gateway does not know this apiKey");
  // A proxy's 502 or 504 does not tell what the gateway behind it did.
  if (status === 408 || status === 429 || status >= 500) return as("unanswered", "the HTTP API could not answer");
  if (status === 413) return as("refused", "the event is too large for the HTTP API");
  return as("refused", "there is no HTTP API of a gateway at this url");
}
