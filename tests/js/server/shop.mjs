// A shop's database with the outbox in it. The shop's role has what docs give an application, and nothing more.
import assert from "node:assert/strict";
import { Postgres } from "../support/index.mjs";

export class Shop {
  static async open() {
    const shop = new Shop();
    shop.postgres = await Postgres.start();
    try {
      await shop.postgres.migrate();
      await shop.postgres.sql("CREATE ROLE shop LOGIN IN ROLE tollgate_app; CREATE TABLE orders (id serial PRIMARY KEY, item text NOT NULL); ALTER TABLE orders OWNER TO shop");
    } catch (error) {
      await shop.close();
      throw error;
    }
    return shop;
  }

  get url() {
    return this.postgres.urlOf("shop");
  }

  /** The outbox, oldest first: uuid, channel, payload to the byte, and what else was given. */
  async rows() {
    const fields = "'uuid', uuid, 'channel', channel, 'payload', payload::text, 'key', key, 'ttl', ttl, 'maxlen', maxlen, 'traceparent', traceparent";
    return JSON.parse(await this.postgres.sql(`SELECT coalesce(json_agg(json_build_object(${fields}) ORDER BY id), '[]') FROM tollgate_outbox`));
  }

  /** How many orders and how many rows of the outbox there are. */
  async has(orders, rows) {
    const counts = await this.postgres.sql("SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM tollgate_outbox)");
    assert.equal(counts, `${orders}|${rows}`);
  }

  async empty() {
    await this.postgres.sql("TRUNCATE orders; DELETE FROM tollgate_outbox");
  }

  close() {
    return this.postgres.close();
  }
}
