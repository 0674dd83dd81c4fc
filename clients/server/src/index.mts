// For `import`: the same implementation. What is exported is named, because not every tool finds it out.
export { TollgateError, channel, createPublisher, createToken, encodeId, outbox, outboxQuery } from "./index.js";
export type * from "./index.js";
