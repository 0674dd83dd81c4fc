// Reads an HTTPRoute as JSON and exits 1 with what is wrong with it. The model's validator ignores fields that it does not
// know; so what it never looked at is such a field.
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const route = JSON.parse(Buffer.concat(chunks));
const seen = new Set();

function watched(value, path) {
  if (typeof value !== "object" || value === null) return value;
  return new Proxy(value, {
    get(target, name) {
      if (typeof name === "symbol" || !Object.hasOwn(target, name)) return target[name];
      seen.add(`${path}.${name}`);
      return watched(target[name], `${path}.${name}`);
    },
  });
}

function* paths(value, path) {
  if (typeof value !== "object" || value === null) return;
  for (const [name, inner] of Object.entries(value)) {
    yield `${path}.${name}`;
    yield* paths(inner, `${path}.${name}`);
  }
}

HTTPRoute.prototype.validate.call(watched(route, ""));
// Labels and annotations are maps: their names are free.
const unknown = [...paths(route, "")].filter((p) => !seen.has(p) && !/^\.metadata\.(labels|annotations)\./.test(p));
if (unknown.length > 0) {
  console.error(`unknown fields: ${unknown.join(" ")}`);
  process.exit(1);
}
