import http from "node:http";
import https from "node:https";
import { text as readText } from "node:stream/consumers";
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
function endpoint(url: unknown): URL {
  if (typeof url !== "string" || url === "") return invalid("url is missing: the gateway's address, such as http://tollgate:8000");
  const isHttp = URL.canParse(url) && /^https?:$/.test(new URL(url).protocol);
  if (!isHttp) return invalid("url is the gateway's address, http:// or https://");
  return new URL(`${url.replace(/\/+$/, "")}/api/publish`);
}

interface Answer {
  status: number;
  text: string;
}

/** A request by node:http, because `fetch` does not tell whether a request that failed has left. */
function post(target: URL, options: https.RequestOptions, body: string, attempt: Attempt): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const isTls = target.protocol === "https:";
    const request = (isTls ? https : http).request(target, { ...options, method: "POST" });
    request.on("socket", (socket) => {
      const connected = () => (attempt.sent = true);
      if (socket.connecting) socket.once(isTls ? "secureConnect" : "connect", connected);
      else connected();
    });
    request.on("response", (response) => {
      readText(response).then((text) => resolve({ status: response.statusCode ?? 0, text }), reject);
    });
    request.on("error", reject);
    request.end(body);
  });
}

function read({ status, text }: Answer): Published {
  if (status !== 200) throw statusError(status);
  let answer: { result?: Partial<Published>; error?: { code: unknown; message: string } };
  try {
    answer = JSON.parse(text) as typeof answer;
  } catch {
    answer = {};
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
    try {
      return read(await post(target, { headers, signal: limit.signal }, body(message), attempt));
    } catch (error) {
      if (error instanceof TollgateError) throw error;
      const { code, message: why } = error as { code?: string; message: string };
      const what = `the gateway did not answer: ${code ?? why}`;
      throw new TollgateError(attempt.sent ? "unanswered" : "unavailable", what, { cause: error });
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
