import { TollgateError } from "./errors.js";

/** What Redis says when it cannot now, and has done nothing: a moment later, or another server, may. */
const PASSING = /^(LOADING|MASTERDOWN|READONLY|CLUSTERDOWN|TRYAGAIN|BUSY|OOM|MISCONF|NOREPLICAS)\b/;
/** A new server has the function within seconds: the gateway loads it. */
const NO_FUNCTION = /Function not found/;
const NOT_ALLOWED = /^(NOPERM|NOAUTH|WRONGPASS)\b|^ERR The user executing the script can't run this command/;
/** An error that Redis answered begins with a word in capitals; those that clients make do not. */
const ANSWER = /^[A-Z][A-Z0-9_]+ /;
/** What clients say when they did not send a command. */
const NOT_SENT = /^Stream isn't writeable|^The client is (offline|closed)/;

/** The error of a command, as one of ours. */
export function redisError(error: unknown): TollgateError {
  const message = error instanceof Error ? error.message : String(error);
  const options = { cause: error };
  if (NO_FUNCTION.test(message)) {
    return new TollgateError("unavailable", `Redis has no function tollgate_publish yet (a gateway loads it): ${message}`, options);
  }
  if (PASSING.test(message)) return new TollgateError("unavailable", `Redis says: ${message}`, options);
  if (NOT_ALLOWED.test(message)) return new TollgateError("unauthorized", `Redis says: ${message}`, options);
  if (/^ERR unknown command/i.test(message)) {
    return new TollgateError("refused", `Redis is older than 7: publish by the HTTP API of the gateway (${message})`, options);
  }
  if (/^(MOVED|ASK) /.test(message)) {
    return new TollgateError("refused", `this Redis is a cluster: give a cluster client (${message})`, options);
  }
  if (ANSWER.test(message)) return new TollgateError("refused", `Redis refused the event: ${message}`, options);
  return new TollgateError(NOT_SENT.test(message) ? "unavailable" : "unanswered", `Redis did not answer: ${message}`, options);
}

/** An error that the HTTP API answered with status 200. */
export function apiError(code: unknown, message: string): TollgateError {
  const text = `the gateway says: ${message} (error ${String(code)})`;
  // The gateway itself does not know what became of the event.
  if (code === 100) return new TollgateError("unanswered", text);
  if (code === 108) {
    return new TollgateError("refused", `${text}. A durable event needs a channel whose rule has \`history\`; otherwise say durable: false`);
  }
  return new TollgateError("refused", text);
}

/** A status of the HTTP API other than 200. */
export function statusError(status: number): TollgateError {
  if (status === 401 || status === 403) return new TollgateError("unauthorized", `the gateway does not know this apiKey (status ${status})`);
  // A proxy's 502 or 504 does not tell what the gateway behind it did.
  if (status === 408 || status === 429 || status >= 500) return new TollgateError("unanswered", `the HTTP API answered with status ${status}`);
  if (status === 413) return new TollgateError("refused", "the event is too large for the HTTP API (status 413)");
  return new TollgateError("refused", `there is no HTTP API of a gateway at this url (status ${status})`);
}
