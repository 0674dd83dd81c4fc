import { TollgateError } from "./errors.js";

/** The time that a call has: nothing that it waits for takes longer. */
export class Deadline {
  readonly #ends: number;
  readonly #timer: NodeJS.Timeout;
  readonly #outer: AbortSignal | undefined;
  readonly #controller = new AbortController();
  readonly #abort = () => this.#controller.abort("aborted");

  constructor(milliseconds: number, outer: AbortSignal | undefined) {
    this.#ends = performance.now() + milliseconds;
    this.#timer = setTimeout(() => this.#controller.abort("over"), milliseconds);
    this.#outer = outer;
    if (outer?.aborted) this.#abort();
    else outer?.addEventListener("abort", this.#abort, { once: true });
  }

  /** Aborted when the time is over, or by the caller. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get left(): number {
    return Math.max(0, this.#ends - performance.now());
  }

  get isOver(): boolean {
    return this.signal.aborted;
  }

  /** Whether the caller ended it. */
  get isAborted(): boolean {
    return this.signal.reason === "aborted";
  }

  /** What the work answers, if it does in time. Whatever becomes of it later is nobody's business. */
  race<T>(work: Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const over = () => reject(new TollgateError(this.isAborted ? "aborted" : "unanswered", "no answer in time"));
      if (this.isOver) over();
      this.signal.addEventListener("abort", over, { once: true });
      work.then(resolve, reject).finally(() => this.signal.removeEventListener("abort", over));
    });
  }

  /** Waits, but no longer than there is time. */
  sleep(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, milliseconds);
      if (this.isOver) done();
      else this.signal.addEventListener("abort", done, { once: true });
    });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#abort);
  }
}
