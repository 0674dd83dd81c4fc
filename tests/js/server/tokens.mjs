// Tokens of every kind of key, which the gateway accepts.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { SECRET, tollgate as binary } from "../support/index.mjs";
import { folder, snippet, tollgate } from "./fresh.mjs";

const { createToken } = tollgate;

/** What the gateway's doctor says of a token, with the keys in `toml`. */
async function verdict(token, toml) {
  const file = path.join(folder, "keys.toml");
  writeFileSync(file, toml);
  const child = execFile(binary(), ["token", "check", "--json", "--config", file]);
  child.stdin.end(token);
  let out = "";
  for await (const chunk of child.stdout) out += chunk;
  return JSON.parse(out);
}

async function accepted(user, options, toml) {
  const report = await verdict(await createToken(user, options), toml);
  assert.equal(report.verdict, "accept", JSON.stringify(report));
  assert.equal(report.user, String(user));
}

const decoded = (token) => token.split(".").slice(0, 2).map((part) => JSON.parse(Buffer.from(part, "base64url")));

test("secrets are read as the gateway reads them", async () => {
  const bytes = randomBytes(48);
  for (const encoding of ["utf8", "base64", "base64url", "hex"]) {
    const secret = encoding === "utf8" ? SECRET : bytes.toString(encoding);
    await accepted("did:privy:cm1", { secret, encoding }, `[[auth.keys]]\nsecret = "${secret}"\nencoding = "${encoding}"\n`);
  }
  // With and without padding, and odd characters as they are.
  const padded = randomBytes(40).toString("base64");
  await accepted("u1", { secret: padded.replace(/=+$/, ""), encoding: "base64" }, `[[auth.keys]]\nsecret = "${padded}"\nencoding = "base64"\n`);
  const odd = "  é \\n quoted, and long enough for HS512 ";
  for (const algorithm of ["HS256", "HS384", "HS512"]) {
    await accepted(17, { secret: odd, algorithm }, `[[auth.keys]]\nsecret = '${odd}'\nalgs = ["${algorithm}"]\n`);
  }
});

test("private keys sign with what their kind is for", async () => {
  const pems = [["rsa", { modulusLength: 2048 }], ["ec", { namedCurve: "P-256" }], ["ec", { namedCurve: "P-384" }], ["ec", { namedCurve: "P-521" }], ["ed25519", {}]];
  for (const [kind, options] of pems) {
    const { privateKey, publicKey } = generateKeyPairSync(kind, options);
    const toml = `[[auth.keys]]\nkid = "k1"\npublic_key_pem = """${publicKey.export({ type: "spki", format: "pem" })}"""\n`;
    await accepted("u1", { privateKey, kid: "k1" }, toml);
    await accepted("u1", { privateKey: privateKey.export({ type: "pkcs8", format: "pem" }), kid: "k1" }, toml);
    await accepted("u1", { privateKey: privateKey.export({ format: "jwk" }), kid: "k1" }, toml);
    if (kind === "ec") await accepted("u1", { privateKey: privateKey.export({ type: "sec1", format: "pem" }), kid: "k1" }, toml);
    if (kind === "rsa") await accepted("u1", { privateKey: privateKey.export({ type: "pkcs1", format: "pem" }), algorithm: "PS384", kid: "k1" }, `${toml}algs = ["PS384"]\n`);
  }
});

test("claims are the user, a short life, and what is asked for", async () => {
  const secret = SECRET;
  const [header, claims] = decoded(await createToken("u1", { secret }));
  assert.deepEqual(header, { alg: "HS256", typ: "JWT" });
  assert.deepEqual(Object.keys(claims).sort(), ["exp", "iat", "sub"]);
  assert.equal(claims.exp - claims.iat, 600);
  assert.ok(Math.abs(claims.iat - Date.now() / 1000) < 5);

  const options = { secret, kid: "a", expiresIn: 60, issuer: "api", audience: ["gateway"], claims: { jti: "1", channels: ["post:1"] } };
  const [named, more] = decoded(await createToken(42n, options));
  assert.equal(named.kid, "a");
  assert.deepEqual({ ...more, iat: 0, exp: more.exp - more.iat }, { sub: "42", iss: "api", aud: ["gateway"], jti: "1", channels: ["post:1"], iat: 0, exp: 60 });
  await accepted("u1", options, `[auth]\nissuer = ["api"]\naudience = ["gateway"]\n[[auth.keys]]\nkid = "a"\nsecret = "${secret}"\n`);
});

test("what would be no token is refused, and no secret is in a message", async () => {
  const { publicKey } = generateKeyPairSync("ed25519");
  const wrong = [
    [{}, /secret is missing/], [{ secret: undefined }, /secret is missing/], [{ secret: "" }, /secret is missing/],
    [{ secret: "short-and-secret" }, /16 bytes/], [{ secret: "x".repeat(40), encoding: "base32" }, /encoding/],
    [{ secret: `${"x".repeat(40)}!`, encoding: "base64" }, /not valid base64/], [{ secret: "x".repeat(41), encoding: "base64url" }, /not valid base64url/],
    [{ secret: "0".repeat(65), encoding: "hex" }, /not valid hex/], [{ secret: "-----BEGIN PUBLIC KEY-----\nshort-and-secret" }, /PEM/],
    [{ secret: "x".repeat(40), algorithm: "none" }, /algorithm/], [{ secret: "x".repeat(40), expiresIn: Date.now() }, /expiresIn/],
    [{ secret: "x".repeat(40), claims: { sub: "u2" } }, /sub/], [{ privateKey: undefined }, /privateKey is missing/],
    [{ privateKey: "short-and-secret" }, /no private key/], [{ privateKey: publicKey }, /not a private key/],
    [{ privateKey: generateKeyPairSync("ec", { namedCurve: "secp256k1" }).privateKey }, /secp256k1/],
  ];
  for (const [options, message] of wrong) {
    await assert.rejects(createToken("u1", options), (error) => {
      assert.equal(error.code, "invalid_option");
      assert.match(error.message, message);
      assert.doesNotMatch(error.message, /short-and-secret/);
      return true;
    });
  }
  await assert.rejects(createToken(undefined, { secret: SECRET }), { code: "invalid_channel" });
});

test("the README's token", async () => {
  const token = await snippet("token.mjs", { JWT_SECRET: SECRET });
  assert.equal((await verdict(token, `[[auth.keys]]\nsecret = "${SECRET}"\n`)).user, "u1");
});
