import { TollgateError } from "./errors.js";

/* eslint-disable @typescript-eslint/no-explicit-any -- what the libraries' generic methods are assignable to */

/** What Prisma gives to the function in `prisma.$transaction(async (tx) => …)`. */
export interface PrismaTransaction {
  $queryRawUnsafe(...args: any[]): any;
  $connect?: never;
}

/** What Drizzle gives to the function in `db.transaction(async (tx) => …)`. */
export interface DrizzleTransaction {
  execute(query: any): any;
  rollback(): never;
}

/** What Kysely gives to the function in `db.transaction().execute(async (trx) => …)`. */
export interface KyselyTransaction {
  executeQuery(query: any, ...more: any[]): any;
  readonly isTransaction: true;
}

/** What TypeORM gives to the function in `dataSource.transaction(async (manager) => …)`. */
export interface TypeOrmManager {
  query(...args: any[]): Promise<any>;
  getRepository(...args: any[]): any;
  createQueryRunner?: never;
}

/** A QueryRunner of TypeORM, after `startTransaction()`. */
export interface TypeOrmRunner {
  query(...args: any[]): Promise<any>;
  readonly isTransactionActive: boolean;
}

/** A client of `pg` on which you have executed BEGIN. */
export interface PgTransaction {
  query(...args: any[]): any;
  escapeIdentifier(text: string): string;
}

export type OutboxTransaction =
  | PrismaTransaction
  | DrizzleTransaction
  | KyselyTransaction
  | TypeOrmManager
  | TypeOrmRunner
  | PgTransaction;

type Values = readonly (string | number | null)[];
type Thing = Readonly<Record<PropertyKey, any>>;

interface Library {
  /** Whether the object is of this library, be it a transaction or not. */
  knows(tx: Thing): boolean;
  /** What it is instead of a transaction, and what to do; undefined if it is one, as far as can be known. */
  refuses(tx: Thing): string | undefined;
  query(tx: Thing, text: string, values: Values): Promise<unknown>;
}

const can = (tx: Thing, name: string): boolean => typeof tx[name] === "function";

const prisma: Library = {
  knows: (tx) => can(tx, "$queryRawUnsafe"),
  // Newer versions have $transaction in a transaction too.
  refuses: (tx) => (can(tx, "$connect") ? "a PrismaClient: use the tx of its $transaction(async (tx) => …)" : undefined),
  query: (tx, text, values) => tx["$queryRawUnsafe"](text, ...values),
};

const kysely: Library = {
  knows: (tx) => can(tx, "executeQuery") && typeof tx["isTransaction"] === "boolean",
  refuses: (tx) => (tx["isTransaction"] ? undefined : "a Kysely: use the trx of its transaction().execute(async (trx) => …)"),
  query(tx, sql, parameters) {
    // What CompiledQuery.raw of Kysely makes; this package does not depend on Kysely.
    const query = { kind: "RawNode", sqlFragments: [sql], parameters: [] };
    return tx["executeQuery"]({ sql, parameters, query, queryId: { queryId: "tollgate-outbox" } });
  },
};

const ENTITY = Symbol.for("drizzle:entityKind");
const drizzle: Library = {
  knows: (tx) => can(tx, "execute") && typeof (tx.constructor as Thing | undefined)?.[ENTITY] === "string",
  refuses: (tx) => (can(tx, "rollback") ? undefined : "a database of Drizzle: use the tx of its transaction(async (tx) => …)"),
  query(tx, sql, params) {
    // What Drizzle's `sql` makes, as far as `execute` asks it; this package does not depend on Drizzle.
    const toQuery = () => ({ sql, params: [...params], typings: params.map(() => "none") });
    const query = { toQuery, getSQL: () => query };
    return tx["execute"](query);
  },
};

const isOf = (tx: Thing, name: string): boolean => tx["@instanceof"] === Symbol.for(name);
const typeorm: Library = {
  knows: (tx) => isOf(tx, "EntityManager") || isOf(tx, "DataSource") || typeof tx["isTransactionActive"] === "boolean",
  refuses(tx) {
    const runner = isOf(tx, "EntityManager") ? tx["queryRunner"] : tx;
    if (runner?.isTransactionActive) return undefined;
    return "of TypeORM, but not in a transaction: use the manager of dataSource.transaction(async (manager) => …)";
  },
  query: (tx, text, values) => tx["query"](text, [...values]),
};

const isPool = (tx: Thing): boolean => typeof tx["totalCount"] === "number" && typeof tx["idleCount"] === "number";
const pg: Library = {
  knows: (tx) => can(tx, "query") && (isPool(tx) || can(tx, "escapeIdentifier")),
  refuses(tx) {
    if (isPool(tx)) return "a pg.Pool, each statement of which goes to any connection: use a client of pool.connect(), after BEGIN";
    // Older versions of pg do not tell.
    return can(tx, "getTransactionStatus") && tx["getTransactionStatus"]() === "I"
      ? "a client of pg without a transaction: execute BEGIN first, and wait for it"
      : undefined;
  },
  query: (tx, text, values) => tx["query"](text, [...values]),
};

/** Executes a statement in a transaction of one of the libraries, and answers its rows. */
export async function queryIn(tx: unknown, text: string, values: Values): Promise<readonly unknown[]> {
  const refuse = (what: string): never => {
    const why = "outbox needs a transaction, or the event may be published without what it announces";
    throw new TollgateError("not_a_transaction", `${why}. This is ${what}`);
  };
  if (tx === null) return refuse("null");
  if (typeof tx !== "object" && typeof tx !== "function") return refuse(typeof tx);

  const library = [prisma, kysely, drizzle, typeorm, pg].find((one) => one.knows(tx as Thing));
  if (!library) {
    return refuse("nothing of Prisma, Drizzle, Kysely, TypeORM or pg: execute what outboxQuery answers in your transaction");
  }
  const refused = library.refuses(tx as Thing);
  if (refused !== undefined) return refuse(refused);

  const result = await library.query(tx as Thing, text, values);
  return Array.isArray(result) ? result : ((result as { rows?: readonly unknown[] }).rows ?? []);
}
