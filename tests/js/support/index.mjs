// The harness of all tests that Node runs: gateways on a Redis of their own, the proxies of docs/ingress.md before
// them, ways to them that can be cut, a Postgres with the outbox, tokens, the documentation's snippets, and waiting.
//
//   TOLLGATE_BIN  the gateway's binary
//   PYTHON        a Python that has tests/js/requirements.txt, for the tests that run Python
export { ROOT, asFile, block, blocks, here, read } from "./documents.mjs";
export { Postgres } from "./postgres.mjs";
export { end, endAll, freePort, python, ready, start, tollgate } from "./processes.mjs";
export { Relay } from "./relay.mjs";
export { startGateway, startRedis } from "./servers.mjs";
export { API_KEY, Site } from "./site.mjs";
export { subscriptions } from "./subscriptions.mjs";
export { SECRET, signHs256, token } from "./tokens.mjs";
export { until } from "./until.mjs";
