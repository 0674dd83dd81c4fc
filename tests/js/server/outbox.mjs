// The outbox by each of the libraries: in the caller's transaction, once, and to the byte.
import "reflect-metadata";
import assert from "node:assert/strict";
import path from "node:path";
import { after, before, test } from "node:test";
import { PrismaPg } from "@prisma/adapter-pg";
import { drizzle } from "drizzle-orm/node-postgres";
import { CamelCasePlugin, Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { DataSource, EntitySchema } from "typeorm";
import { exportsOf, tollgate } from "./fresh.mjs";
import { generatePrisma } from "./prisma.mjs";
import { Shop } from "./shop.mjs";

const { outbox, outboxQuery } = tollgate;
const Order = new EntitySchema({ name: "orders", columns: { id: { type: "int", primary: true, generated: true }, item: { type: "text" } } });
let shop;
before(async () => (shop = await Shop.open()));
after(() => shop?.close());

/** Each library: what it connects with, its way to a transaction, and what it has that is none. */
const LIBRARIES = {
  async pg(url) {
    const pool = new pg.Pool({ connectionString: url });
    const idle = await pool.connect();
    const transaction = async (work) => {
      const client = await pool.connect();
      try {
        await client.query("BEGIN");
        const answer = await work(client);
        await client.query("COMMIT");
        return answer;
      } catch (error) {
        await client.query("ROLLBACK");
        throw error;
      } finally {
        client.release();
      }
    };
    const close = async () => {
      idle.release();
      await pool.end();
    };
    return { db: pool, transaction, outside: [pool, idle], close };
  },
  async prisma(url) {
    const { PrismaClient } = (await import(path.join(await generatePrisma(), "index.js"))).default;
    const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: url }) });
    const extended = prisma.$extends({ name: "extended" });
    return {
      db: prisma,
      transaction: (work) => prisma.$transaction((tx) => work(tx)),
      others: [(work) => extended.$transaction((tx) => work(tx))],
      outside: [prisma, extended],
      close: () => prisma.$disconnect(),
    };
  },
  async drizzle(url) {
    const pool = new pg.Pool({ connectionString: url });
    const db = drizzle(pool);
    const nested = (work) => db.transaction((tx) => tx.transaction(work));
    return { db, transaction: (work) => db.transaction(work), others: [nested], outside: [db], close: () => pool.end() };
  },
  async kysely(url) {
    // A plugin that renames columns: the answer is read all the same.
    const db = new Kysely({ dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: url }) }), plugins: [new CamelCasePlugin()] });
    const controlled = async (work) => {
      const trx = await db.startTransaction().execute();
      const answer = await work(trx);
      await trx.commit().execute();
      return answer;
    };
    const transaction = (work) => db.transaction().execute(work);
    return { db, transaction, others: [controlled], outside: [db], close: () => db.destroy() };
  },
  async typeorm(url) {
    const source = await new DataSource({ type: "postgres", url, entities: [Order] }).initialize();
    const runner = source.createQueryRunner();
    const byRunner = async (work) => {
      await runner.startTransaction();
      const answer = await work(runner);
      await runner.commitTransaction();
      return answer;
    };
    const close = async () => {
      await runner.release();
      await source.destroy();
    };
    const outside = [source, source.manager, runner, runner.manager];
    return { db: source, transaction: (work) => source.transaction(work), others: [byRunner], outside, close };
  },
};

// What a second writing of the JSON would change: spaces, the order of members, numbers, characters beyond ASCII.
const EVENT = { z: 1, a: 1e21, 10: 0.1, text: "é \u2028 ' \" \\ $1 \u0000", nested: [{}, null] };

for (const [name, open] of Object.entries(LIBRARIES)) {
  test(`${name}: commit, rollback, one row of a key, and no transaction`, async () => {
    await shop.empty();
    const { db, transaction, others = [], outside, close } = await open(shop.url);
    try {
      const { buy } = await exportsOf(`outbox.${name}.mjs`);
      await buy(db, "did:privy:cm1", "tea");
      await shop.has(1, 1);
      const [bought] = await shop.rows();
      assert.deepEqual([bought.channel, bought.payload], ["user:did%3Aprivy%3Acm1", '{"type":"order_paid","item":"tea"}']);
      await assert.rejects(buy(db, "u1", null), "no order, and no row");
      await shop.has(1, 1);

      const changed = new Error("the customer has changed his mind");
      const undone = transaction(async (tx) => {
        await outbox(tx, { channel: "user:u1", event: EVENT });
        throw changed;
      });
      await assert.rejects(undone, (error) => error === changed);
      await shop.has(1, 1);

      const all = { key: "order-1", ttl: 60, maxlen: 5, traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" };
      const uuid = await transaction((tx) => outbox(tx, { channel: "user:u1", event: EVENT, ...all }));
      for (const again of [transaction, ...others]) {
        assert.equal(await again((tx) => outbox(tx, { channel: "user:u1", event: "another", key: "order-1" })), uuid);
      }
      assert.deepEqual((await shop.rows()).slice(1), [{ uuid, channel: "user:u1", payload: JSON.stringify(EVENT), ...all }]);
      for (const way of others) await way((tx) => outbox(tx, { channel: "user:u2", event: name, schema: "public" }));
      await shop.has(1, 2 + others.length);

      for (const tx of outside) {
        await assert.rejects(outbox(tx, { channel: "user:u1", event: {} }), { code: "not_a_transaction", retryable: false });
      }
      await shop.has(1, 2 + others.length);
    } finally {
      await close();
    }
  });
}

test("two transactions with one key at the same time make one row", async () => {
  await shop.empty();
  const { transaction, close } = await LIBRARIES.pg(shop.url);
  const uuids = await Promise.all(Array.from({ length: 8 }, () => transaction((tx) => outbox(tx, { channel: "user:u1", event: 1, key: "k" }))));
  assert.equal(new Set(uuids).size, 1);
  await shop.has(0, 1);
  await close();
});

test("what is no transaction, and what is no event", async () => {
  const event = { channel: "user:u1", event: {} };
  for (const tx of [undefined, null, "tx", 1, {}, [], () => {}, { query() {} }, { execute() {} }, { execute() {}, rollback() {} }]) {
    await assert.rejects(outbox(tx, event), { code: "not_a_transaction", message: /outbox needs a transaction/ });
  }
  const refused = (wrong, code) => assert.throws(() => outboxQuery({ ...event, ...wrong }), { code });
  refused({ event: undefined }, "invalid_event");
  refused({ event: { price: NaN } }, "invalid_event");
  refused({ channel: undefined }, "invalid_channel");
  refused({ ttl: 0 }, "invalid_option");
  refused({ key: "" }, "invalid_option");
  // The relay's business: the purchase goes on.
  assert.ok(outboxQuery({ channel: "user:undefined", event: { type: "gap" } }));
});

test("another library executes what outboxQuery answers", async () => {
  await shop.empty();
  const client = new pg.Client({ connectionString: shop.url });
  await client.connect();
  await client.query("BEGIN");
  const { text, values } = outboxQuery({ channel: "user:u1", event: EVENT });
  const { rows } = await client.query(text, values);
  await client.query("COMMIT");
  await client.end();
  assert.match(outboxQuery({ channel: "user:u1", event: 1, schema: 'a"b' }).text, /^SELECT "a""b"\.tollgate_publish\(/);
  assert.deepEqual((await shop.rows()).map(({ uuid, payload }) => [uuid, payload]), [[rows[0].uuid, JSON.stringify(EVENT)]]);
});
