/** Tokens, publishing and the transactional outbox of Tollgate, for API servers. */
export { type Id, channel, encodeId } from "./channel.js";
export { type ErrorCode, TollgateError } from "./errors.js";
export { type HttpOptions } from "./http.js";
export { type OutboxEvent, type OutboxQuery, outbox, outboxQuery } from "./outbox.js";
export {
  type PlainOptions, type PlainPublished, type PublishOptions, type Published, type Publisher, type PublisherOptions,
  createPublisher,
} from "./publisher.js";
export { type IoRedis, type NodeRedis, type RedisOptions } from "./redis.js";
export { type Encoding, type PrivateKey, type SecretKey, type TokenOptions, createToken } from "./token.js";
export {
  type DrizzleTransaction, type KyselyTransaction, type OutboxTransaction, type PgTransaction, type PrismaTransaction,
  type TypeOrmManager, type TypeOrmRunner,
} from "./transactions.js";
