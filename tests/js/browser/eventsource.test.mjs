// Pages with an EventSource, in Chromium and in Firefox, while what they are connected to dies and comes back:
// nothing is missed. Other clients are in tests/js/clients.
//
//   TOLLGATE_BIN       the gateway's binary
//   CHROMIUM, FIREFOX  the browsers
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Site, block, here, token, until } from "../support/index.mjs";
import { BROWSERS, launch } from "./browsers.mjs";

const RULES = '[[channels]]\npattern = "post:{id}"\nallow = "authenticated"\nhistory = { size = 100, ttl = "10m" }\n';
const upTo = (n) => Array.from({ length: n }, (_, i) => i + 1);

for (const browser of BROWSERS) {
  describe(`EventSource in ${browser}`, { timeout: 120_000, concurrency: true }, () => {
    let opened;

    before(async () => (opened = await launch(browser)));
    after(() => opened?.close());

    async function pageOf(t, options) {
      const site = await Site.start({ rules: RULES, ...options });
      const page = await opened.newPage();
      t.after(async () => {
        await page.close();
        await site.close();
      });
      await page.goto(`${site.url}/page`);
      await page.evaluate(() => Object.assign(window, { seen: [], gaps: [], failed: 0 }));
      const seen = () => page.evaluate(() => window.seen);
      const has = (n) => until(`${n} events`, async () => (await seen()).length >= n, async () => JSON.stringify(await seen()));
      const publish = (from, to) => {
        for (let n = from; n <= to; n++) site.publish("post:42", { n });
      };
      const all = async (n) => {
        await has(n);
        assert.deepEqual(await seen(), upTo(n));
        assert.deepEqual(await page.evaluate(() => window.gaps), []);
      };
      return { site, page, has, publish, all };
    }

    test("a plain one survives a restart of its gateway", async (t) => {
      const { site, page, has, publish, all } = await pageOf(t, {});
      await page.evaluate((url) => {
        const source = new EventSource(url);
        source.addEventListener("subscribed", () => (window.live = true));
        source.addEventListener("gap", (event) => window.gaps.push(event.data));
        source.onmessage = (event) => window.seen.push(JSON.parse(event.data).n);
      }, `${site.url}/sse?channels=post:42&token=${token("u1")}`);
      await until("live", () => page.evaluate(() => window.live));
      publish(1, 5);
      await has(5);
      await site.kill(0);
      publish(6, 10);
      await site.run(0);
      await has(10);
      publish(11, 15);
      await all(15);
    });

    test("the README's survives a replica's death, a proxy's 502 and a token's end", async (t) => {
      const { site, page, has, publish, all } = await pageOf(t, { replicas: 2, proxy: { kind: "nginx" } });
      const code = here(block("README.md", "stream.js"), { "http://127.0.0.1:8000": site.url });
      await page.evaluate(
        (code, bearer) => {
          window.token = bearer;
          window.fetch = async () => ({ json: async () => ({ token: window.token }) });
          window.show = ({ n }) => window.seen.push(n);
          window.reload = (channel) => window.gaps.push(channel);
          const Source = window.EventSource;
          window.EventSource = class extends Source {
            constructor(url) {
              super(url);
              this.addEventListener("subscribed", () => (window.live = true));
              this.addEventListener("error", () => (window.failed += this.readyState === Source.CLOSED));
            }
          };
          new Function(code)();
        },
        code,
        token("u1", { seconds: 5 }),
      );
      await until("live", () => page.evaluate(() => window.live));
      publish(1, 5);
      await has(5);

      await site.kill(0);
      publish(6, 10);
      await has(10);
      await site.kill(1);
      publish(11, 15);
      await until("a 502", () => page.evaluate(() => window.failed > 0));
      assert.equal(await site.status("/sse"), 502);
      await Promise.all([site.run(0), site.run(1)]);
      // By now the first token has ended, and so has every stream with it.
      await until("the token's end", async () => (await site.metric("auth_failures_total", 0)) + (await site.metric("auth_failures_total", 1)) > 0);
      await page.evaluate((bearer) => (window.token = bearer), token("u1"));
      await has(15);
      publish(16, 20);
      await all(20);
    });
  });
}
