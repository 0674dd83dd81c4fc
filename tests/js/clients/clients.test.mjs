// Other people's clients, all at once on one gateway: a refused token, then a good one; events; the gateway killed
// and started again; the connections cut. Each of them has every event at the end, once and in order, or was told.
//
//   TOLLGATE_BIN  the gateway's binary
//   PYTHON        a Python that has tests/js/requirements.txt
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { createInterface } from "node:readline";
import { Relay, Site, end, python, start, token, until } from "../support/index.mjs";
import { sockets } from "./sockets.mjs";
import { streams } from "./streams.mjs";

const RULES = '[[channels]]\npattern = "post:{id}"\nallow = "authenticated"\nhistory = { size = 100, ttl = "10m" }\n';
const BAD = token("u1", { secret: "another secret, long enough for HS256" });
const GOOD = token("u1");

/** Waits, and leaves it to each client's own test to say that it was in vain. */
const settle = (check) => until("all", check).catch(() => {});

/** A library of Python, in a process of its own. */
const inPython = (library) => ({ url, channel, tell, tokenFile }) => {
  const child = start(python(), [path.join(import.meta.dirname, "python.py"), library, url, channel, tokenFile]);
  createInterface(child.stdout).on("line", (line) => tell(JSON.parse(line)));
  child.stderr.on("data", (text) => tell({ error: text }));
  return () => end(child);
};

const CLIENTS = {
  ...sockets,
  ...streams,
  websockets: inPython("websockets"),
  "websocket-client": inPython("websocket-client"),
  "httpx-sse": inPython("httpx-sse"),
};

describe("foreign clients", { timeout: 170_000 }, () => {
  const clients = [];
  let site;
  let between;

  before(async () => {
    site = await Site.start({ rules: RULES });
    between = await Relay.start(site.replicas[0].port);
    const tokenFile = path.join(site.folder, "token");
    let now = BAD;
    writeFileSync(tokenFile, now);
    Object.entries(CLIENTS).forEach(([name, begin], i) => {
      const client = { name, channel: `post:${i}`, seen: [], ends: [], said: [], live: 0, lost: 0 };
      const tell = (what) => {
        client.said.push(what);
        if (what.live) client.live++;
        if (what.lost) client.lost++;
        if (what.n) client.seen.push(what.n);
        if (what.code) client.ends.push(what);
      };
      try {
        client.stop = begin({ url: between.http, channel: client.channel, token: () => now, tokenFile, tell });
      } catch (error) {
        tell({ error: error.stack });
      }
      clients.push(client);
    });
    const all = (check) => settle(async () => clients.every(check));
    const publish = (from, to) => {
      for (let n = from; n <= to; n++) for (const { channel } of clients) site.publish(channel, { n });
    };

    await all(({ ends }) => ends.length > 0);
    now = GOOD;
    writeFileSync(tokenFile, now);
    await all(({ live }) => live > 0);
    publish(1, 3);
    await all(({ seen }) => seen.length >= 3);

    await site.kill(0);
    publish(4, 6);
    await site.run(0);
    await all(({ seen }) => seen.length >= 6);
    publish(7, 9);
    await all(({ seen }) => seen.length >= 9);

    between.cut();
    publish(10, 12);
    await all(({ seen }) => seen.length >= 12);
    publish(13, 15);
    await all(({ seen }) => seen.length >= 15);
  });

  after(async () => {
    await Promise.all(clients.map(({ stop }) => stop?.()));
    between?.close();
    await site?.close();
  });

  for (const name of Object.keys(CLIENTS)) {
    test(name, () => {
      const client = clients.find((c) => c.name === name);
      const { seen, ends, said, lost } = client;
      const story = JSON.stringify(said.slice(0, 60));
      assert.deepEqual(seen, Array.from({ length: 15 }, (_, i) => i + 1), story);
      assert.equal(lost, 0, story);
      const { code, reason = "" } = ends[0] ?? {};
      assert.ok(code === 401 || (code === 4401 && reason === "bad_signature"), story);
      assert.equal(said.filter(({ error }) => error).length, 0, story);
    });
  }
});
