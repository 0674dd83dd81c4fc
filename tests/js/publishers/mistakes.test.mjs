// What programs do wrong, each through its own client library: a mistake used to be answered like a success, and nobody
// received the event. The errors are those of docs/publishing.md.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { Redis } from "ioredis";
import { createClient } from "redis";
import { Site, python, read, until } from "../support/index.mjs";

const run = promisify(execFile);
const PAID = JSON.stringify({ type: "order_paid", orderId: "4711" });
const KEY = "tollgate:user:u1";

/** What is said of each mistake; the document has the errors as they are here. */
const FORGOTTEN = 'no gateway listens to "user:u1": its key has to begin with "tollgate:", as "tollgate:user:u1"';
const FOREIGN = 'the client library puts "app:" before every key (its key prefix): the key has to be "tollgate:user:u1"';
const TWICE = 'the prefix "tollgate:" stands twice in "tollgate:tollgate:user:u1": does the client library add it to every key?';
const UNDEFINED = '"user:undefined" has the id "undefined": the publisher had none';
const OBJECT_ID = '"user:[object Object]" holds an object that was made into a text: name its id';
const EMPTY = '"user:" is empty or has an empty part: is an id missing?';
const OBJECT = 'the event is "[object Object]": it was not made into JSON';
const NO_JSON = "the event is no JSON: ";

let site;
let redis;
const errors = new Set();

before(async () => {
  site = await Site.start();
  redis = new Redis(site.redisPort, "127.0.0.1");
  // At first another gateway might not have said yet which prefix is its own.
  const foreign = () => redis.fcall("tollgate_publish", 1, "nobody:user:u1", PAID);
  await until("a foreign prefix is refused", () => foreign().then(() => false, () => true));
});

after(async () => {
  redis?.disconnect();
  await site?.close();
});

const kept = async () => (await redis.keys("*")).filter((key) => !key.startsWith("gateway:")).sort();

/** Each call fails with its error, and keeps nothing; whoever listens in Redis hears nothing. */
async function refused(mistakes) {
  const [before, heard] = [await kept(), []];
  const listener = redis.duplicate();
  listener.on("pmessage", (pattern, channel) => channel.startsWith("gateway:") || heard.push(channel));
  try {
    await listener.psubscribe("*");
    for (const [what, said, publish] of mistakes) {
      await assert.rejects(publish, (error) => `${error.message}\n${error.stdout}${error.stderr}`.includes(said), what);
      errors.add(said);
    }
    assert.deepEqual(await kept(), before);
    // What was published before this is heard before it.
    await redis.publish("end", "");
    while (heard.length === 0) await redis.ping();
    assert.deepEqual(heard, ["end"]);
  } finally {
    listener.disconnect();
  }
}

test("ioredis", async () => {
  const publish = (client, key, event) => client.fcall("tollgate_publish", 1, key, event);
  const [app, ours] = ["app:", "tollgate:"].map((keyPrefix) => redis.duplicate({ keyPrefix }));
  const [nobody, order] = [{}, { type: "order_paid" }];
  await refused([
    ["no prefix", FORGOTTEN, () => publish(redis, "user:u1", PAID)],
    ["the prefix of the application", FOREIGN, () => publish(app, KEY, PAID)],
    ["the prefix twice", TWICE, () => publish(ours, KEY, PAID)],
    ["no id", UNDEFINED, () => publish(redis, `tollgate:user:${nobody.id}`, PAID)],
    ["null", 'the id "null"', () => publish(redis, `tollgate:user:${null}`, PAID)],
    ["no number", 'the id "NaN"', () => publish(redis, `tollgate:post:${Number("4711x")}`, PAID)],
    ["an object for an id", OBJECT_ID, () => publish(redis, `tollgate:user:${nobody}`, PAID)],
    ["an object for an event", OBJECT, () => publish(redis, KEY, order)],
    ["no event", NO_JSON, () => publish(redis, KEY, String(undefined))],
  ]);

  // The prefix of the library stands before keys, but not before the channel of PUBLISH.
  const [offset] = await publish(ours, "user:u1", PAID);
  assert.equal(offset, 1);
  const listener = redis.duplicate();
  await listener.subscribe("tollgate:typing:42");
  assert.equal(await app.publish("tollgate:typing:42", "1"), 1);
  [app, ours, listener].forEach((client) => client.disconnect());
});

test("node-redis", async () => {
  const client = createClient({ url: site.redisUrl });
  await client.connect();
  const publish = (key, event) => client.fCall("tollgate_publish", { keys: [key], arguments: [event] });
  const nobody = {};
  await refused([
    ["no prefix", FORGOTTEN, () => publish("user:u1", PAID)],
    ["no id", UNDEFINED, () => publish(`tollgate:user:${nobody.id}`, PAID)],
    ["an object for an id", OBJECT_ID, () => publish(`tollgate:user:${nobody}`, PAID)],
    ["an object for an event", OBJECT, () => publish(KEY, String(nobody))],
    ["a quoted text within one", NO_JSON, () => publish(KEY, `{"said":"${'"yes"'}"}`)],
  ]);
  client.destroy();
});

test("redis-py", async () => {
  const publish = (key, event) => () =>
    run(python(), ["-c", `import json, redis
client = redis.Redis(port=${site.redisPort})
client.fcall("tollgate_publish", 1, ${key}, ${event})`]);
  const paid = 'json.dumps({"type": "order_paid"})';
  await refused([
    ["no prefix", FORGOTTEN, publish('"user:u1"', paid)],
    ["no id", EMPTY, publish('"tollgate:user:" + {}.get("id", "")', paid)],
    ["a dictionary for an event", NO_JSON, publish(`"${KEY}"`, 'str({"type": "order_paid"})')],
    ["what json.dumps makes of NaN", NO_JSON, publish(`"${KEY}"`, 'json.dumps({"price": float("nan")})')],
    ["Latin-1", "the event is not UTF-8", publish(`"${KEY}"`, `'{"name":"José"}'.encode("latin-1")`)],
  ]);
});

test("phpredis", async () => {
  const php = (prefix, work) => () =>
    run("php", ["-r", `$redis = new Redis();
$redis->connect('127.0.0.1', ${site.redisPort});
$redis->setOption(Redis::OPT_PREFIX, '${prefix}');
function publish($redis, $key, $event) {
  $answer = $redis->rawCommand('FCALL', 'tollgate_publish', 1, $key, $event);
  if ($answer === false) throw new RuntimeException($redis->getLastError());
  return $answer[0];
}
$paid = json_encode(['type' => 'order_paid']);
${work}`]);
  await refused([
    ["no prefix", FORGOTTEN, php("", "publish($redis, 'user:u1', $paid);")],
    ["the prefix, which does not stand before this key", FORGOTTEN, php("tollgate:", "publish($redis, 'user:u1', $paid);")],
    ["the prefix of the application", FOREIGN, php("app:", `publish($redis, $redis->_prefix('${KEY}'), $paid);`)],
    ["the prefix twice", TWICE, php("tollgate:", `publish($redis, $redis->_prefix('${KEY}'), $paid);`)],
    ["no id", EMPTY, php("", "publish($redis, 'tollgate:user:' . null, $paid);")],
    ["what json_encode makes of bad UTF-8", NO_JSON, php("", `publish($redis, '${KEY}', (string) json_encode("\\xff"));`)],
  ]);

  const { stdout } = await php("app:", `echo publish($redis, 'tollgate:user:php', $paid);`)();
  assert.equal(stdout, "1", "a command as it is has no prefix");
  // PUBLISH has one, and nobody hears it.
  const listener = redis.duplicate();
  await listener.subscribe("tollgate:typing:42", "app:tollgate:typing:42");
  const heard = new Promise((resolve) => listener.on("message", resolve));
  await php("app:", `$redis->publish('tollgate:typing:42', '1');`)();
  assert.equal(await heard, "app:tollgate:typing:42");
  listener.disconnect();
});

test("redis-rb", async () => {
  const publish = (key, event) => () =>
    run("ruby", ["-e", `require "json"; require "redis"
Redis.new(port: ${site.redisPort}).call("FCALL", "tollgate_publish", 1, ${key}, ${event})`]);
  const paid = 'JSON.generate(type: "order_paid")';
  await refused([
    ["no prefix", FORGOTTEN, publish('"user:u1"', paid)],
    ["no id", EMPTY, publish('"tollgate:user:#{nil}"', paid)],
    ["a hash for an event", NO_JSON, publish(`"${KEY}"`, '{ type: "order_paid" }.to_s')],
  ]);
});

test("redis-cli", async () => {
  const publish = (words) => () => run("bash", ["-c", `redis-cli -e -p ${site.redisPort} FCALL tollgate_publish 1 ${words}`]);
  await refused([
    ["no prefix", FORGOTTEN, publish(`user:u1 '${PAID}'`)],
    ["no id", EMPTY, publish(`"tollgate:user:$NOBODY" '${PAID}'`)],
    ["quotation marks that the shell takes", NO_JSON, publish(`${KEY} {"type":"order_paid"}`)],
  ]);
});

test("the document has these errors", () => {
  const guide = read("docs/publishing.md");
  for (const said of [FORGOTTEN, FOREIGN, TWICE, UNDEFINED, OBJECT_ID, EMPTY, OBJECT, NO_JSON]) {
    assert.ok(errors.has(said) && guide.includes(`\`${said}`), said);
  }
});
