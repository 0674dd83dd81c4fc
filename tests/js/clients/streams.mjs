// Clients of server-sent events, each as its manual has it. Where a client cannot ask for a token before each
// connection, the application opens it anew when it is refused.
import { createRequire } from "node:module";
import { EventSource } from "eventsource";
import { start } from "../support/index.mjs";

const require = createRequire(import.meta.url);

/** What all of them hear: the events and the gateway's own messages by their names. */
function heard({ type, data }, tell) {
  if (type === "message") tell({ n: JSON.parse(data).n });
  if (type === "subscribed") tell({ live: true });
  if (type === "gap") tell({ lost: true });
}

function listening(source, tell) {
  for (const type of ["message", "subscribed", "gap"]) source.addEventListener(type, (event) => heard(event, tell));
}

const address = (url, channel, token) => `${url}/sse?channels=${channel}${token ? `&token=${token}` : ""}`;

/** An EventSource whose token is in its URL: opened until it is let in, and from then on it comes back by itself. */
function inUrl(Source, options, { url, token, channel, tell }) {
  let source;
  let again;
  const open = () => {
    source = new Source(address(url, channel, token()), options);
    listening(source, tell);
    source.addEventListener("error", (event) => {
      if (source.readyState !== 2) return;
      tell({ code: event?.code ?? event?.status ?? 401 });
      source.close();
      again = setTimeout(open, 300);
    });
  };
  open();
  return () => {
    clearTimeout(again);
    source.close();
  };
}

export const streams = {
  eventsource: ({ url, token, channel, tell }) => {
    const authorized = async (where, init) => {
      const answer = await fetch(where, { ...init, headers: { ...init.headers, authorization: `Bearer ${token()}` } });
      if (answer.status !== 200) tell({ code: answer.status });
      return answer;
    };
    let source;
    let again;
    const open = () => {
      source = new EventSource(address(url, channel), { fetch: authorized });
      listening(source, tell);
      source.addEventListener("error", () => {
        if (source.readyState === EventSource.CLOSED) again = setTimeout(open, 300);
      });
    };
    open();
    return () => {
      clearTimeout(again);
      source.close();
    };
  },

  // It names the last event in the query: a header would need a preflight.
  "event-source-polyfill": (client) => {
    const { EventSourcePolyfill } = require("event-source-polyfill");
    return inUrl(EventSourcePolyfill, { heartbeatTimeout: 60_000 }, client);
  },

  // It too, each time it replaces the EventSource beneath it.
  "reconnecting-eventsource": (client) => {
    const { default: Reconnecting } = require("reconnecting-eventsource");
    let source;
    const { url, token, channel, tell } = client;
    let again;
    let live = false;
    const open = () => {
      source = new Reconnecting(address(url, channel, token()), { eventSourceClass: EventSource, max_retry_time: 500 });
      listening(source, (what) => {
        live ||= Boolean(what.live);
        tell(what);
      });
      // It retries a refusal for ever: the application asks for a new token.
      source.addEventListener("error", () => {
        if (live) return;
        tell({ code: 401 });
        source.close();
        again = setTimeout(open, 300);
      });
    };
    open();
    return () => {
      clearTimeout(again);
      source.close();
    };
  },

  "@microsoft/fetch-event-source": ({ url, token, channel, tell }) => {
    const document = { hidden: false, addEventListener() {}, removeEventListener() {} };
    Object.assign(globalThis, { document: globalThis.document ?? document, window: globalThis.window ?? globalThis });
    const { fetchEventSource } = require("@microsoft/fetch-event-source");
    const stop = new AbortController();
    fetchEventSource(address(url, channel), {
      signal: stop.signal,
      openWhenHidden: true,
      fetch: (where, init) => fetch(where, { ...init, headers: { ...init.headers, authorization: `Bearer ${token()}` } }),
      async onopen(answer) {
        if (answer.status === 200) return;
        tell({ code: answer.status });
        throw new Error("refused");
      },
      // As in the README of the gateway: whatever is no event of ours is JSON.
      onmessage: ({ event, data }) => heard({ type: event || "message", data }, tell),
      onclose() {
        throw new Error("again");
      },
      onerror: () => 300,
    }).catch(() => {});
    return () => stop.abort();
  },

  // In a loop, as scripts have it.
  curl: ({ url, token, channel, tell }) => {
    let stopped = false;
    let curl;
    let last;
    const loop = async () => {
      while (!stopped) {
        const headers = ["-H", `Authorization: Bearer ${token()}`, ...(last ? ["-H", `Last-Event-ID: ${last}`] : [])];
        curl = start("curl", ["-sN", "-w", "\nstatus %{http_code}\n", ...headers, address(url, channel)]);
        let rest = "";
        curl.stdout.on("data", (text) => {
          const blocks = (rest + text).split("\n\n");
          rest = blocks.pop();
          for (const block of blocks) {
            const field = (name) => block.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
            last = field("id") ?? last;
            const data = field("data");
            if (data) heard({ type: field("event") ?? "message", data }, tell);
          }
        });
        await curl.ended;
        const status = Number(curl.out.match(/status (\d+)\n$/)?.[1]);
        if (status && status !== 200) tell({ code: status });
        await new Promise((resolve) => setTimeout(resolve, 300));
      }
    };
    loop();
    return () => {
      stopped = true;
      curl.kill();
    };
  },
};
