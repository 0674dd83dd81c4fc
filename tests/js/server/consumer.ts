// What users of the package write, with the real types of their libraries. Its copies are checked by tsc, as an ES
// module and as CommonJS; nothing of it is executed.
import { PrismaPg } from "@prisma/adapter-pg";
import { drizzle } from "drizzle-orm/node-postgres";
import { Redis, Cluster } from "ioredis";
import { Kysely, PostgresDialect } from "kysely";
import { Client, Pool } from "pg";
import { createClient, createCluster } from "redis";
import { DataSource } from "typeorm";
import {
  type ErrorCode, type OutboxEvent, type OutboxTransaction, type Published, TollgateError, channel, createPublisher, createToken, encodeId, outbox,
} from "tollgate-server";
import { PrismaClient } from "./prisma-client/index.js";

const event: OutboxEvent = { channel: channel`user:${1n}`, event: { type: "order_paid" }, key: undefined };
const pool = new Pool();
const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: "postgres://" }) });
const extended = prisma.$extends({ name: "extended" });
const db = drizzle(pool);
const kysely = new Kysely<{ orders: { item: string } }>({ dialect: new PostgresDialect({ pool }) });
const dataSource = new DataSource({ type: "postgres" });

export async function transactions(): Promise<string[]> {
  const runner = dataSource.createQueryRunner();
  return Promise.all([
    prisma.$transaction((tx) => outbox(tx, event)),
    extended.$transaction((tx) => outbox(tx, event)),
    db.transaction((tx) => outbox(tx, event)),
    kysely.transaction().execute((trx) => outbox(trx, event)),
    dataSource.transaction((manager) => outbox(manager, event)),
    outbox(runner, event),
    outbox(await pool.connect(), event),
    outbox(new Client(), event),
  ]);
}

export function refused(): void {
  // @ts-expect-error -- a pool is no transaction
  outbox(pool, event);
  // @ts-expect-error -- a PrismaClient is no transaction
  outbox(prisma, event);
  // @ts-expect-error -- an extended one is none either
  outbox(extended, event);
  // @ts-expect-error -- a database of Drizzle is no transaction
  outbox(db, event);
  // @ts-expect-error -- a Kysely is no transaction
  outbox(kysely, event);
  // @ts-expect-error -- a DataSource is no transaction
  outbox(dataSource, event);
  // @ts-expect-error -- an id is no object
  encodeId({});
  // @ts-expect-error -- an id may be missing here
  channel(["user:", ""] as unknown as TemplateStringsArray, undefined as string | undefined);
  // @ts-expect-error -- the API takes a key
  createPublisher({ url: "http://gateway:8000" });
}

export async function publishing(tx: OutboxTransaction): Promise<Published | undefined> {
  await outbox(tx, event);
  const api = createPublisher({ url: process.env["TOLLGATE_URL"], apiKey: process.env["TOLLGATE_API_KEY"] });
  createPublisher({ redis: new Cluster([]) });
  createPublisher({ redis: createCluster({ rootNodes: [] }) });
  createPublisher({ redis: createClient({ RESP: 3 }), prefix: "ws:" });
  const { heard }: { heard: number } = await api.publish("user:u1", { type: "typing" }, { durable: false });
  // @ts-expect-error -- a plain event has no key
  await api.publish("user:u1", heard, { durable: false, key: "k" });

  const token: string = await createToken("u1", { secret: process.env["SECRET"], encoding: "base64", claims: { jti: "1" } });
  await createToken(1, { privateKey: token, algorithm: "ES256", kid: "a", audience: ["b"] });
  try {
    return await createPublisher({ redis: new Redis() }).publish("user:u1", null, { key: "k", ttl: 60, maxlen: 10 });
  } catch (error) {
    if (!(error instanceof TollgateError)) throw error;
    const code: ErrorCode = error.code;
    if (code === "unanswered" && error.retryable && error.status === 503) return undefined;
    throw error;
  }
}
