// What pages learn of the end of a WebSocket, in Chromium and in Firefox, straight and through the proxies of
// docs/ingress.md: `open`, then a clean `close` with the gateway's code and reason, whatever the reason.
//
//   TOLLGATE_BIN       the gateway's binary
//   CHROMIUM, FIREFOX  the browsers
//   REFUSALS           how many refused tokens on each path [default: 3]
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Site, token, until } from "../support/index.mjs";
import { BROWSERS, launch } from "./browsers.mjs";

const REFUSALS = Number(process.env.REFUSALS ?? 3);
const PATHS = {
  "without a proxy": undefined,
  "through nginx": { kind: "nginx" },
  "through HAProxy, HTTP/1.1": { kind: "haproxy", h2: false },
  "through HAProxy, HTTP/2": { kind: "haproxy" },
};
// Deadlines that a test can wait for, and limits that it can reach.
const config = (cookie) => `[auth]
deadline = "1s"
cookie = "${cookie}"
[limits]
connections_per_user = 1
commands_per_second = 1
command_burst = 5
queue_messages = 3
`;

/** In the page: opens a socket; `log` has what it is told, in order. */
function inPage() {
  window.open_ = (query = "", protocols = []) => {
    const base = location.href.replace(/^http/, "ws").replace(/\/page$/, "");
    const socket = new WebSocket(`${base}/ws${query}`, protocols);
    const log = [];
    socket.onopen = () => log.push("open");
    socket.onmessage = ({ data }) => log.push(data.length > 10_000 ? "large" : JSON.parse(data).type);
    socket.onerror = () => log.push("error");
    // A browser calls no close clean while something that the page sent is still with it.
    socket.onclose = ({ code, reason, wasClean }) =>
      log.push({ code, reason, wasClean: wasClean || socket.bufferedAmount > 0 });
    window.last = { socket, log };
  };
}

for (const browser of BROWSERS) {
  describe(`closes in ${browser}`, { timeout: 150_000 + REFUSALS * 4_000, concurrency: true }, () => {
    const sites = {};
    let opened;

    before(async () => {
      const starting = Object.entries(PATHS).map(async ([name, proxy], i) => {
        sites[name] = await Site.start({ proxy, config: config(`realtime${i}`) });
        // Cookies know no ports.
        sites[name].cookie = `realtime${i}`;
      });
      [opened] = await Promise.all([launch(browser), ...starting]);
    });

    after(async () => {
      await opened?.close();
      await Promise.all(Object.values(sites).map((site) => site.close()));
    });

    for (const name of Object.keys(PATHS)) {
      test(name, async (t) => {
        const site = sites[name];
        const page = await opened.newPage();
        t.after(() => page.close());
        // Of the gateway's origin, whatever the answer.
        await page.goto(`${site.url}/page`);
        await page.evaluate(inPage);

        const log = () => page.evaluate(() => window.last.log);
        const open = (query, protocols) => page.evaluate((q, p) => window.open_(q, p), query, protocols);
        const send = (message) => page.evaluate((text) => window.last.socket.send(text), message);
        const has = (what) => until(what, async () => (await log()).includes(what), async () => JSON.stringify(await log()));
        // `words`: what comes between; `null` for anything.
        const closed = async (code, reason, words = []) => {
          const end = await until(`close ${code}`, async () => {
            const last = (await log()).at(-1);
            return typeof last === "object" && last;
          }, async () => JSON.stringify(await log()));
          assert.match(end.reason, reason, JSON.stringify(await log()));
          const said = words ?? (await log()).slice(1, -1);
          assert.deepEqual(await log(), ["open", ...said, { code, reason: end.reason, wasClean: true }]);
        };
        const gone = () => until("none is left", async () => (await site.metric("connections{")) === 0);
        const offered = (bearer) => ["tollgate", `bearer.${bearer}`];
        const connect = async (bearer = token("u1")) => {
          await open("", offered(bearer));
          await has("connected");
        };

        for (let i = 0; i < REFUSALS; i++) {
          await open("", offered(token("u1", { secret: "another secret, long enough for HS256" })));
          await closed(4401, /^bad_signature$/);
        }
        await open(`?token=${token("u1", { seconds: -60 })}`);
        await closed(4401, /^expired$/);
        // Who has no cookie hears it at once, unless a first message is to bring the token.
        await open();
        await closed(4401, /^missing$/);
        await open("?auth=message");
        await closed(4408, /^no token in time$/);
        await open("?auth=message");
        await has("open");
        await send('{"type":"auth","token":"no.to.ken"}');
        await closed(4401, /^malformed$/);

        // Each carrier, and the client's own close.
        const good = token("u1");
        await connect(good);
        assert.equal(await page.evaluate(() => window.last.socket.protocol), "tollgate");
        await page.evaluate(() => window.last.socket.close(3000, "mine"));
        await closed(3000, /^$/, ["connected"]);
        await gone();
        await open(`?token=${good}`);
        await has("connected");
        await page.evaluate(() => window.last.socket.close());
        await closed(1005, /^$/, ["connected"]);
        await gone();
        await page.evaluate((pair) => (document.cookie = `${pair}; path=/`), `${site.cookie}=${good}`);
        await open();
        await has("connected");
        await page.evaluate((name) => (document.cookie = `${name}=; path=/; max-age=0`), site.cookie);
        const first = await page.evaluateHandle(() => window.last);
        await open("", offered(good));
        await closed(4429, /^too many connections of this user$/);
        await page.evaluate((last) => last.socket.close(), first);
        await gone();
        await open("?auth=message");
        await has("open");
        await send(JSON.stringify({ type: "auth", token: good }));
        await has("connected");

        await site.api("disconnect", { user: "u1" });
        await closed(4409, /^disconnected$/, ["connected"]);
        await gone();
        await connect(token("u1", { seconds: 2 }));
        await closed(4401, /^expired$/, null);
        await gone();
        await connect();
        await page.evaluate(() => window.last.socket.send("x".repeat(200_000)));
        await closed(1009, /^message too big$/, ["connected"]);
        await gone();
        await connect();
        await page.evaluate(() => {
          for (let i = 0; i < 20; i++) window.last.socket.send("{}");
        });
        await closed(4429, /^too many messages$/, null);
        await gone();

        // A page that is still too slow for what is on its way may miss the frame: not each time.
        for (let tries = 1; ; tries++) {
          await connect();
          await until("slow", async () => {
            const large = { channel: "user:u1", data: "x".repeat(1_000_000) };
            await Promise.all(Array.from({ length: 10 }, () => site.api("publish", large)));
            return (await site.metric("slow_consumers_total")) >= tries;
          });
          const end = await until("the end", async () => (await log()).find((entry) => entry.code));
          if (end.code === 1006 && tries < 4) continue;
          await closed(4410, /^slow consumer$/, null);
          break;
        }
        await gone();

        await connect();
        const drained = site.kill(0, "SIGTERM");
        await closed(1012, /^draining$/, null);
        assert.equal((await log()).at(-2), "reconnect");
        await drained;
        assert.equal(site.replicas[0].child.exitCode, 0);
        if (PATHS[name]?.kind !== "haproxy") return;
        // Over HTTP/2 a socket is a stream of the page's own connection (RFC 8441).
        const ports = (path) => [...site.proxy.said.matchAll(/127\.0\.0\.1:(\d+) .* (\S+) \d+ \d+ \d+ /g)].filter((m) => m[2].endsWith(path)).map((m) => m[1]);
        const shared = () => ports("/ws").some((port) => ports("/page").includes(port));
        await until("the log", async () => ports("/ws").length > REFUSALS, () => site.proxy.said);
        assert.equal(shared(), name.endsWith("HTTP/2"), site.proxy.said);
      });
    }

    test("keys that cannot be fetched", async () => {
      const keys = '[[auth.keys]]\njwks_url = "http://127.0.0.1:1/keys.json"\nalgs = ["RS256"]\n';
      const site = await Site.start({ keys, redis: false, ready: false });
      const page = await opened.newPage();
      try {
        await page.goto(`${site.url}/page`);
        await page.evaluate(inPage);
        const header = Buffer.from('{"alg":"RS256","kid":"k"}').toString("base64url");
        await page.evaluate((t) => window.open_("", ["tollgate", `bearer.${t}`]), `${header}.e30.c2ln`);
        const log = () => page.evaluate(() => window.last.log);
        await until("the end", async () => (await log()).length >= 2);
        assert.deepEqual(await log(), ["open", { code: 1013, reason: "keys_unavailable", wasClean: true }]);
      } finally {
        await page.close();
        await site.close();
      }
    });
  });
}
