import { apiError, statusError } from "./answers.js";
import { Deadline } from "./deadline.js";
import { TollgateError } from "./errors.js";
import { invalid } from "./options.js";
import type { Attempt, Message, Published, Transport } from "./publisher.js";

export interface HttpOptions {
  /** Where the gateway is: `http://tollgate:8000`. */
  url: string | undefined;
  /** One of the gateway's `api.keys`. */
  apiKey: string | undefined;
}

const MIN_ATTEMPT_MS = 250;
/** With these the request has not left. */
const NOT_SENT: ReadonlySet<unknown> = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "UND_ERR_CONNECT_TIMEOUT"]);

function endpoint(url: unknown): string {
  if (typeof url !== "string" || url === "") return invalid("url is missing: the address of the gateway, such as http://tollgate:8000");
  if (!URL.canParse(url) || !/^https?:$/.test(new URL(url).protocol)) return invalid("url is the gateway's address, http:// or https://");
  return `${url.replace(/\/+$/, "")}/api/publish`;
}

function failed(error: unknown): TollgateError {
  const cause = (error as { cause?: { code?: unknown; message?: unknown; errors?: { code?: unknown }[] } }).cause;
  // A name with several addresses has an error of each.
  const codes = cause?.errors?.map(({ code }) => code) ?? [cause?.code];
  const code = codes.every((one) => NOT_SENT.has(one)) ? "unavailable" : "unanswered";
  const why = cause?.code ?? cause?.message ?? (error as Error).message;
  return new TollgateError(code, `the gateway did not answer: ${String(why)}`, { cause: error });
}

async function read(response: Response): Promise<Published> {
  if (response.status !== 200) throw statusError(response.status);
  let answer: { result?: { offset?: number; epoch?: string; heard?: number; warning?: string }; error?: { code: unknown; message: string } };
  try {
    answer = (await response.json()) as typeof answer;
  } catch (error) {
    throw failed(error);
  }

  if (answer?.error) throw apiError(answer.error.code, answer.error.message);
  if (!answer?.result) throw new TollgateError("refused", "there is no HTTP API of a gateway at this url");
  const { offset = 0, epoch = "", heard = -1, warning } = answer.result;
  return warning ? { offset, epoch, heard, warning } : { offset, epoch, heard };
}

export function httpTransport({ url, apiKey }: HttpOptions): Transport {
  const target = endpoint(url);
  if (typeof apiKey !== "string" || apiKey === "") invalid("apiKey is missing: one of the gateway's api.keys");
  const headers = { "content-type": "application/json", "x-api-key": apiKey as string };

  return async function send(message: Message, attempt: Attempt): Promise<Published> {
    // Half of the time that is left: what hangs may be one replica, and a second attempt may meet another.
    const limit = new Deadline(Math.max(MIN_ATTEMPT_MS, attempt.deadline.left / 2), attempt.deadline.signal);
    attempt.sent = true;
    try {
      const request = { method: "POST", headers, body: body(message), redirect: "manual" as const, signal: limit.signal };
      return await read(await fetch(target, request));
    } catch (error) {
      throw error instanceof TollgateError ? error : failed(error);
    } finally {
      limit.close();
    }
  };
}

/** The event's text is put in as it is, so that clients receive exactly that. */
function body({ channel, text, key }: Message): string {
  const rest = key === undefined ? '"skip_history":true' : `"idempotency_key":${JSON.stringify(key)}`;
  return `{"channel":${JSON.stringify(channel)},"data":${text},${rest}}`;
}
