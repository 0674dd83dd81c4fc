// An API server with Tollgate: it gives its users tokens, tells them what happens, and announces a purchase exactly if
// the purchase is in the database. It has no framework; in yours, the three handlers look the same.
//
//   npm install tollgate-server ioredis pg && npx tsc && node api.js
//   DATABASE_URL, REDIS_URL, JWT_SECRET (the gateway's secret), PORT
import { type IncomingMessage, createServer } from "node:http";
import { Redis } from "ioredis";
import pg from "pg";
import { TollgateError, channel, createPublisher, createToken, outbox } from "tollgate-server";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
pool.on("error", (error) => console.error(error));
const redis = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379");
redis.on("error", (error) => console.error(error));
const tollgate = createPublisher({ redis, deadline: 2000 });

interface Answer {
  status: number;
  body: unknown;
}

/** Your session; here anybody is whom they say they are. */
function userOf(request: IncomingMessage): string {
  const user = request.headers["x-user"];
  if (typeof user !== "string") throw new Error("nobody is signed in");
  return user;
}

/** What the page fetches before it connects, and again when its token ends. */
async function realtimeToken(user: string): Promise<Answer> {
  return { status: 200, body: { token: await createToken(user, { secret: process.env.JWT_SECRET }) } };
}

/** The order and its announcement commit together. Redis may be away meanwhile. */
async function buy(user: string, item: string): Promise<Answer> {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const { rows } = await client.query<{ id: number }>("INSERT INTO orders (item) VALUES ($1) RETURNING id", [item]);
    const event = { type: "order_paid", orderId: rows[0]?.id, item };
    await outbox(client, { channel: channel`user:${user}`, event, key: `order-${rows[0]?.id}-paid` });
    await client.query("COMMIT");
    return { status: 201, body: { id: rows[0]?.id } };
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

/** What is in no database goes straight to Redis. If nobody is there to hear it, a mail can go out. */
async function wave(from: string, to: string): Promise<Answer> {
  const { heard } = await tollgate.publish(channel`user:${to}`, { type: "wave", from });
  return { status: 200, body: { seen: heard !== 0 } };
}

async function handle(request: IncomingMessage): Promise<Answer> {
  const url = new URL(request.url ?? "/", "http://api");
  const user = userOf(request);
  switch (`${request.method} ${url.pathname}`) {
    case "GET /api/realtime-token":
      return realtimeToken(user);
    case "POST /api/orders":
      return buy(user, url.searchParams.get("item") ?? "");
    case "POST /api/waves":
      return wave(user, url.searchParams.get("to") ?? "");
    default:
      return { status: 404, body: { error: "not_found" } };
  }
}

function failure(error: unknown): Answer {
  console.error(error);
  if (!(error instanceof TollgateError)) return { status: 500, body: { error: "internal" } };
  return { status: error.status, body: { error: error.code, retryable: error.retryable } };
}

const server = createServer(async (request, response) => {
  const { status, body } = await handle(request).catch(failure);
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(JSON.stringify(body));
});
server.listen(Number(process.env.PORT ?? 3000), "127.0.0.1");
