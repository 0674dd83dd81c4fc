/**
 * What went wrong, for programs:
 *
 * - `invalid_channel`, `invalid_event`, `invalid_option`: a mistake of the caller; nothing was sent.
 * - `not_a_transaction`: `outbox` was given something else than a transaction; nothing was written.
 * - `refused`: Redis or the gateway refused this event, and would again; nothing was published.
 * - `unauthorized`: the API key or the Redis user may not publish; nothing was published.
 * - `unavailable`: Redis or the gateway could not be reached, or could not do it now; nothing was published.
 * - `unanswered`: it was sent, and no answer came in time; it may have been published, or may still be.
 * - `aborted`: the caller's `signal` ended the call; it may have been published.
 */
export type ErrorCode =
  | "invalid_channel"
  | "invalid_event"
  | "invalid_option"
  | "not_a_transaction"
  | "refused"
  | "unauthorized"
  | "unavailable"
  | "unanswered"
  | "aborted";

const RETRYABLE: ReadonlySet<ErrorCode> = new Set<ErrorCode>(["unavailable", "unanswered", "aborted"]);

/** Every error of this package. */
export class TollgateError extends Error {
  override readonly name = "TollgateError";
  readonly code: ErrorCode;
  /** The idempotency key of the call. With it another call publishes the event once, whatever became of this one. */
  key: string | undefined;

  constructor(code: ErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options);
    this.code = code;
  }

  /** Whether the same call, with the same key, may succeed later. */
  get retryable(): boolean {
    return RETRYABLE.has(this.code);
  }

  /** The status for an HTTP answer: 503 if it may succeed later, otherwise 500, because the server is at fault. */
  get status(): 500 | 503 {
    return this.retryable ? 503 : 500;
  }
}
