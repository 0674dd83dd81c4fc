// The demo page in a real browser, against a real gateway. It starts both and stops both.
//
//   TOLLGATE_BIN  the gateway's binary
//   CHROMIUM      the browser [default: /usr/bin/chromium]
//   ARTEFACTS     folder for screenshots [default: tests/artefacts]

import assert from "node:assert/strict";
import { existsSync, mkdirSync } from "node:fs";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { API_KEY, ROOT, end, endAll, ready, startGateway } from "../support/index.mjs";

const WAIT_MS = 15_000;
const BROWSER = process.env.CHROMIUM ?? "/usr/bin/chromium";
const ARTEFACTS = process.env.ARTEFACTS ?? path.join(ROOT, "tests/artefacts");
const BROWSER_ARGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** What Chromium writes to the console when nothing listens, and nothing else. */
const NETWORK_FAILURE = /net::ERR_|WebSocket connection to .* failed/;

/** Starts a gateway with the demo page; it is ready when it prints its address. */
async function startDemo(listen, settings = {}) {
  const args = ["--dev", "--listen", listen, "--admin-listen", "127.0.0.1:0"];
  const gateway = startGateway(args, settings);
  gateway.url = await ready(gateway, "the gateway", () => /^ {2}Demo: (http:\/\/\S+\/)$/m.exec(gateway.out)?.[1]);
  return gateway;
}

describe("the demo page", () => {
  let gateway;
  let browser;
  let page;
  /** What the page's console and its errors said and must not have. */
  let complaints = [];
  let outage = false;

  function listenTo(target) {
    target.on("pageerror", (error) => complaints.push(`page error: ${error.message}`));
    target.on("console", (message) => {
      if (message.type() !== "error" && message.type() !== "warning") return;
      const text = message.text();
      if (!(outage && NETWORK_FAILURE.test(text))) complaints.push(`console: ${text}`);
    });
  }

  async function open(options = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    context.setDefaultTimeout(WAIT_MS);
    const opened = await context.newPage();
    listenTo(opened);
    return opened;
  }

  const byId = (id, within = page) => within.getByTestId(id);
  const pane = (name, within = page) => within.locator(`section[data-pane=${name}]`);
  const until = (name, attributes, within = page) =>
    within.locator(`section[data-pane=${name}]${attributes}`).waitFor();
  const allAre = (attributes, within = page) =>
    Promise.all(["a", "b", "c"].map((name) => until(name, attributes, within)));
  const frames = (name) => byId("frames", pane(name)).textContent();
  const count = (text, part) => text.split(part).length - 1;
  const screenshot = (target, name) =>
    target.screenshot({ path: path.join(ARTEFACTS, name), fullPage: true, animations: "disabled" });

  async function openLogs(target) {
    for (const summary of await target.locator("summary").all()) await summary.click();
  }

  before(async () => {
    assert.ok(existsSync(BROWSER), `no browser at ${BROWSER}: apt-get install chromium, or set CHROMIUM`);
    mkdirSync(ARTEFACTS, { recursive: true });
    gateway = await startDemo("127.0.0.1:0");
    browser = await chromium.launch({ executablePath: BROWSER, args: BROWSER_ARGS });
    page = await open();
    await page.goto(gateway.url);
  });

  after(async () => {
    await browser?.close();
    await endAll();
  });

  afterEach(() => {
    const said = complaints;
    complaints = [];
    assert.deepEqual(said, [], "the console stays clean");
  });

  test("a purchase unlocks every device of the buyer and no other", async () => {
    await allAre("[data-state=live][data-locked=true]");
    await openLogs(page);
    await byId("buy-ada").click();
    await Promise.all([until("a", "[data-locked=false]"), until("b", "[data-locked=false]")]);
    assert.equal(await pane("c").getAttribute("data-locked"), "true");
    for (const name of ["a", "b"]) {
      assert.match(await byId("time", pane(name)).textContent(), /^[\d.]+ ms after the click$/);
      assert.equal(count(await frames(name), "post_purchased"), 1);
    }
    assert.equal(count(await frames("c"), "post_purchased"), 0);
    await screenshot(page, "demo-bought.png");

    // Had Ada's event been on its way to Ben, it would have come before his own.
    await byId("buy-ben").click();
    await until("c", "[data-locked=false]");
    assert.equal(count(await frames("c"), "post_purchased"), 1);
    await byId("lock-again").click();
    await allAre("[data-state=live][data-locked=true]");
  });

  test("a refused token is told why", async () => {
    await byId("refuse").click();
    await byId("refusal").waitFor();
    const text = await byId("refusal").innerText();
    assert.match(text, /4401/);
    assert.match(text, /bad_signature/);
    assert.match(text, /No reconnect/);
    await allAre("[data-state=live]");
  });

  test("a gap is shown to those it concerns, and can be dismissed", async () => {
    await byId("gap").click();
    for (const name of ["a", "b"]) {
      const notice = byId("gap-notice", pane(name));
      await notice.waitFor();
      assert.match(await notice.innerText(), /Events may be missing: reload from your API/);
    }
    assert.equal(await byId("gap-notice", pane("c")).isHidden(), true);
    assert.equal(count(await frames("c"), '"gap"'), 0);
    for (const name of ["a", "b"]) {
      await byId("gap-notice", pane(name)).getByRole("button").click();
      await byId("gap-notice", pane(name)).waitFor({ state: "hidden" });
    }
  });

  test("a gateway that dies and comes back finds its devices again", async () => {
    const { host } = new URL(gateway.url);
    outage = true;
    await end(gateway);
    await allAre("[data-state=reconnecting]");
    await byId("buy-ada").click();
    await page.getByText("Not published: the gateway did not answer.").waitFor();
    // The new process has a new secret: only a new token opens a socket.
    gateway = await startDemo(host);
    await allAre("[data-state=live]");
    outage = false;
    for (const name of ["a", "b", "c"]) {
      assert.match(await byId("gap-notice", pane(name)).innerText(), /This device was away/);
    }
    await byId("lock-again").click();
    await allAre("[data-locked=true]");
    await byId("buy-ada").click();
    await Promise.all([until("a", "[data-locked=false]"), until("b", "[data-locked=false]")]);
    assert.equal(await pane("c").getAttribute("data-locked"), "true");
  });

  test("no token is shown anywhere", async () => {
    const text = await page.locator("body").innerText();
    assert.ok(text.includes("bearer.…"), "the logs are open and say where the token was");
    assert.ok(!text.includes("eyJ"), "a token is visible");
  });

  test("a disconnect by the backend and a drain are obeyed", async () => {
    const settings = {
      TOLLGATE_API__KEYS: JSON.stringify([API_KEY]),
      TOLLGATE_DRAIN__SETTLE: "0s",
      TOLLGATE_DRAIN__WINDOW: "0s",
    };
    let other = await startDemo("127.0.0.1:0", settings);
    const seen = await open();
    const log = (name) => byId("frames", pane(name, seen));
    await seen.goto(other.url);
    await allAre("[data-state=live]", seen);
    await openLogs(seen);

    const answer = await fetch(new URL("/api/disconnect", other.url), {
      method: "POST",
      headers: { "X-API-Key": API_KEY },
      body: JSON.stringify({ user: "u1" }),
    });
    assert.deepEqual(await answer.json(), { result: {} });
    await Promise.all(["a", "b"].map((name) => until(name, "[data-state=closed]", seen)));
    assert.match(await pane("a", seen).innerText(), /Closed · 4409/);
    await until("c", "[data-state=live]", seen);
    for (const name of ["a", "b"]) {
      await pane(name, seen).getByRole("button", { name: "Connect again" }).click();
    }
    await allAre("[data-state=live]", seen);

    outage = true;
    other.kill("SIGTERM");
    await log("c").getByText('"type":"reconnect"').first().waitFor();
    await other.ended;
    assert.equal(other.exitCode, 0);
    other = await startDemo(new URL(other.url).host, settings);
    await allAre("[data-state=live]", seen);
    outage = false;
    assert.ok(!(await seen.locator("body").innerText()).includes("eyJ"), "a token is visible");
    await seen.context().close();
    await end(other);
  });

  test("a page whose tokens are all refused stops and says why", async () => {
    const other = await startDemo("127.0.0.1:0", { TOLLGATE_AUTH__MAX_TOKEN_BYTES: "16" });
    const refused = await open();
    await refused.goto(other.url);
    await allAre("[data-state=closed]", refused);
    assert.match(await pane("a", refused).innerText(), /Refused · 4401 oversize/);
    await refused.context().close();
    await end(other);
  });

  for (const { name, options } of [
    { name: "demo-narrow.png", options: { viewport: { width: 390, height: 844 } } },
    { name: "demo-dark.png", options: { colorScheme: "dark" } },
  ]) {
    test(`it holds up in ${name}`, async () => {
      const other = await open(options);
      await other.goto(gateway.url);
      await allAre("[data-state=live]", other);
      await byId("buy-ada", other).click();
      await until("a", "[data-locked=false]", other);
      await byId("refuse", other).click();
      await byId("refusal", other).waitFor();
      await byId("gap", other).click();
      await byId("gap-notice", pane("b", other)).waitFor();
      const width = await other.evaluate(() => document.documentElement.scrollWidth);
      assert.equal(width, other.viewportSize().width, "nothing sticks out sideways");
      await screenshot(other, name);
      await other.context().close();
    });
  }
});
