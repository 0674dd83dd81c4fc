// Ids, channels and events: what is refused before anything is sent, and that it is what the gateway refuses.
import assert from "node:assert/strict";
import { test } from "node:test";
import { block, asFile } from "../support/index.mjs";
import { execute, folder, tollgate } from "./fresh.mjs";

const { channel, createPublisher, encodeId } = tollgate;
const refusal = (code, message = /./) => (error) => {
  assert.ok(error instanceof tollgate.TollgateError, String(error));
  assert.equal(error.code, code, error.message);
  assert.match(error.message, message);
  assert.equal(error.retryable, false);
  assert.equal(error.status, 500);
  return true;
};

test("ids are encoded as docs/publishing.md does it", async () => {
  const users = ["u1", "a@b.example", "auth0|x", "did:privy:cm1", "50%", "a%3Ab", "José", "Seán O'Brien",
    `* ? [ ] { } \\ " ' < > \` %`, "用户:一", "a\u00a0\u3000\u2028b", "a\ufeff\u180e\u200bb", "😀:😀"];
  await asFile(folder, { name: "id.mjs", body: block("docs/publishing.md", "id.mjs") }, async (file) => {
    for (const USER_ID of users) assert.equal(channel`user:${USER_ID}`, (await execute(file, { USER_ID })).stdout);
  });
  assert.equal(encodeId(9007199254740991), "9007199254740991");
  assert.equal(encodeId(9007199254740993n), "9007199254740993");
  assert.equal(channel`post:${1}:comments:${"a b"}`, "post:1:comments:a%20b");
});

test("what is no id is refused", () => {
  const wrong = [undefined, null, NaN, 1.5, 2 ** 53, Infinity, {}, [], ["u1"], new Date(), Symbol("u1"), () => "u1", true, "",
    "undefined", "null", "NaN", "[object Object]", "a\nb", "a\u0000", "\ud800", "x".repeat(513)];
  for (const id of wrong) {
    assert.throws(() => encodeId(id), refusal("invalid_channel", /^an id /));
    assert.throws(() => channel`user:${id}`, refusal("invalid_channel"));
  }
  assert.throws(() => channel`user:${"a".repeat(256)}`, refusal("invalid_channel", /longer than 255 bytes/));
  assert.throws(() => channel`control:${"a"}`, refusal("invalid_channel", /reserved/));
});

test("mistakes in a call are refused before anything is sent", async () => {
  // Nothing listens there, and nobody is asked.
  const api = createPublisher({ url: "http://127.0.0.1:1", apiKey: "key" });
  const refused = (code, message, ...call) => assert.rejects(api.publish(...call), refusal(code, message));
  for (const [name, message] of [
    ["tollgate:user:u1", /without it/], ["user:undefined", /undefined/], ["user:null", /null/], ["user:NaN", /NaN/],
    ["user:[object Object]", /object/], ["user:%5Bobject%20Object%5D", /object/], ["user:undefined:inbox", /undefined/],
    ["", /empty/], ["user:", /empty part/], ["user:a b", /encodeId/], ["user:*", /encodeId/], ["user:a\n", /encodeId/],
    [`user:${"x".repeat(251)}`, /longer/], ["gateway:x", /reserved/], [undefined, /type undefined/], ["user:\ud800", /Unicode/],
  ]) await refused("invalid_channel", message, name, {});
  const circular = {};
  circular.self = circular;
  for (const [event, message] of [
    [undefined, /undefined/], [() => 1, /function/], [Symbol("x"), /symbol/], [1n, /BigInt/], [{ a: 1n }, /BigInt/], [circular, /circular/i],
    [NaN, /NaN/], [{ a: [Infinity] }, /Infinity/], [{ type: "gap" }, /reserved/], [{ toJSON: () => ({ type: "error" }) }, /reserved/],
  ]) await refused("invalid_event", message, "user:u1", event);
  for (const [options, message] of [
    [{ key: "" }, /key/], [{ key: "k".repeat(257) }, /256/], [{ key: 1 }, /key/], [{ ttl: 60 }, /rule/], [{ maxlen: 1 }, /rule/], [{ deadline: 0 }, /deadline/],
    [{ deadline: "5s" }, /deadline/], [{ durable: false, key: "k" }, /plain/],
  ]) await refused("invalid_option", message, "user:u1", {}, options);
});

test("a publisher is refused what it could not work with", () => {
  for (const [options, message] of [
    [{}, /url is missing/], [{ url: "http://gateway", apiKey: "" }, /apiKey is missing/], [{ url: "gateway:8000", apiKey: "k" }, /http/],
    [{ url: "ws://gateway", apiKey: "k" }, /http/], [{ redis: undefined }, /ioredis/], [{ redis: "redis://" }, /ioredis/], [{ redis: { publish() {} } }, /ioredis/],
    [{ redis: { fcall() {}, status: "ready", options: { keyPrefix: "app:" } } }, /keyPrefix/],
    [{ redis: { fcall() {}, status: "ready" }, url: "http://gateway" }, /not both/],
  ]) assert.throws(() => createPublisher(options), refusal("invalid_option", message));
});
