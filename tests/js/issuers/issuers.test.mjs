// Real issuers against the real program: what they sign is accepted, and when they are set up wrongly
// in the ways people do, the doctor names the cause.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { createHmac, generateKeyPairSync } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { encode as encodeAuthJs } from "@auth/core/jwt";
import dotenv from "dotenv";
import { createSigner } from "fast-jwt";
import { exportJWK, jwtVerify, SignJWT } from "jose";
import jsonwebtoken from "jsonwebtoken";
import WebSocket from "ws";
import { Site, asFile, block, end, python, signHs256, start, tollgate, until } from "../support/index.mjs";

const require = createRequire(import.meta.url);
const { loadEnvConfig } = require("@next/env");
const { encode: encodeNextAuth } = require("next-auth/jwt");

const bin = tollgate();
const SECRET = "kX9vQ2mZr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUeNiOoVt+A=";
const CLAIMS = { sub: "u1", userId: "u1", exp: Math.floor(Date.now() / 1000) + 600 };
let folder;
let keys;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "tollgate-issuers-"));
  const pair = (type, options) => generateKeyPairSync(type, options);
  keys = {
    rsa: pair("rsa", { modulusLength: 2048 }),
    p256: pair("ec", { namedCurve: "P-256" }),
    p384: pair("ec", { namedCurve: "P-384" }),
    p521: pair("ec", { namedCurve: "P-521" }),
    ed25519: pair("ed25519"),
  };
});

after(() => rmSync(folder, { recursive: true, force: true }));

const pem = (key) => key.export({ type: key.type === "public" ? "spki" : "pkcs8", format: "pem" });
const toml = (value) => JSON.stringify(value);

function config(name, text) {
  const path = join(folder, `${name}.toml`);
  writeFileSync(path, text);
  return path;
}

const hmac = (secret, more = "") => `[[auth.keys]]\nsecret = ${toml(secret)}\nalgs = ["HS256", "HS384", "HS512"]\n${more}`;

/** What `token check --json` says; the exit status has to agree. */
function check(file, token, ...more) {
  const run = spawnSync(bin, ["token", "check", "--json", "--config", file, ...more], { input: token, encoding: "utf8" });
  assert.ok([0, 1].includes(run.status), run.stderr);
  const report = JSON.parse(run.stdout);
  assert.equal(run.status, report.verdict === "accept" ? 0 : 1);
  return report;
}

function accepted(file, name, token) {
  const report = check(file, token);
  assert.equal(report.verdict, "accept", `${name}: ${JSON.stringify(report)}`);
  assert.equal(report.user, "u1");
}

test("tokens of npm and PyPI libraries are accepted", async () => {
  const secretFile = config("secret", hmac(SECRET));
  const publicFiles = Object.fromEntries(
    Object.entries(keys).map(([name, { publicKey }]) => {
      const algs = name === "rsa" ? 'algs = ["RS256","RS384","RS512","PS256","PS384","PS512"]\n' : "";
      return [name, config(name, `[[auth.keys]]\npublic_key_pem = ${toml(pem(publicKey))}\n${algs}`)];
    }),
  );
  const jwks = { keys: await Promise.all(Object.entries(keys).map(async ([kid, { publicKey }]) => ({ ...(await exportJWK(publicKey)), kid }))) };
  writeFileSync(join(folder, "jwks.json"), JSON.stringify(jwks));
  const set = config("set", `[[auth.keys]]\njwks_file = ${toml(join(folder, "jwks.json"))}\n`);

  for (const alg of ["HS256", "HS384", "HS512"]) {
    accepted(secretFile, `jsonwebtoken ${alg}`, jsonwebtoken.sign(CLAIMS, SECRET, { algorithm: alg }));
    accepted(secretFile, `fast-jwt ${alg}`, createSigner({ key: SECRET, algorithm: alg })(CLAIMS));
    accepted(secretFile, `jose ${alg}`, await new SignJWT(CLAIMS).setProtectedHeader({ alg }).sign(new TextEncoder().encode(SECRET)));
  }
  const asymmetric = { RS256: "rsa", RS384: "rsa", RS512: "rsa", PS256: "rsa", PS384: "rsa", PS512: "rsa", ES256: "p256", ES384: "p384", ES512: "p521", EdDSA: "ed25519" };
  for (const [alg, name] of Object.entries(asymmetric)) {
    const { privateKey } = keys[name];
    const byJose = await new SignJWT(CLAIMS).setProtectedHeader({ alg, kid: name }).sign(privateKey);
    accepted(publicFiles[name], `jose ${alg}`, byJose);
    accepted(set, `jose ${alg} by kid`, byJose);
    accepted(publicFiles[name], `fast-jwt ${alg}`, createSigner({ key: pem(privateKey), algorithm: alg })(CLAIMS));
    if (alg !== "EdDSA") {
      accepted(publicFiles[name], `jsonwebtoken ${alg}`, jsonwebtoken.sign(CLAIMS, pem(privateKey), { algorithm: alg }));
    }
  }
  const privateKeys = Object.fromEntries(Object.entries(keys).map(([n, k]) => [n, pem(k.privateKey)]));
  const job = JSON.stringify({ claims: CLAIMS, secret: SECRET, keys: privateKeys });
  const lines = execFileSync(python(), [join(import.meta.dirname, "mint.py")], { input: job, encoding: "utf8" });
  const minted = lines.trim().split("\n").map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]);
  assert.ok(minted.length >= 20, lines);
  for (const [name, token] of minted) {
    const alg = name.split(" ")[1];
    accepted(alg.startsWith("HS") ? secretFile : publicFiles[asymmetric[alg]], name, token);
  }
});

test("an issuer that is set up wrongly is explained", async () => {
  const sign = (secret, options = {}) => jsonwebtoken.sign(CLAIMS, secret, { algorithm: "HS256", ...options });
  const env = (text) => dotenv.parse(text).S;
  const nextEnv = (text) => {
    const dir = mkdtempSync(join(folder, "next-"));
    writeFileSync(join(dir, ".env"), text);
    delete process.env.NEXT_TEST_SECRET;
    const { combinedEnv } = loadEnvConfig(dir, false, { info() {}, error() {} }, true);
    return combinedEnv.NEXT_TEST_SECRET;
  };
  const echoed = execFileSync("bash", ["-c", `echo '${SECRET}'`], { encoding: "utf8" });
  const dockerEnvFile = (line) => line.slice(line.indexOf("=") + 1); // it keeps quotes
  const dollar = "p4ss$HOME-Zr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUeNiOo";
  const hash = "kX9vQ2mZr7Tn4Wb8Lc1Ys6Hd#3Jf5Pg0RaUeNiOoVt";
  const fallback = (name) => process.env[name] || "your-secret-key";
  const unset = "A_VARIABLE_THAT_NOBODY_SET";
  for (const [what, ours, theirs, cause, side] of [
    ["docker --env-file keeps quotes", SECRET, dockerEnvFile(`S="${SECRET}"`), "secret_quoted", "issuer"],
    ["ours has the quotes, dotenv strips them", dockerEnvFile(`S="${SECRET}"`), env(`S="${SECRET}"`), "secret_quoted", "gateway"],
    ["echo > secret", SECRET, echoed, "secret_whitespace", "issuer"],
    ["CRLF .env read by hand", SECRET, `S=${SECRET}\r\n`.split("=").slice(1).join("=").replace("\n", ""), "secret_whitespace", "issuer"],
    ["split on =", SECRET, `S=${SECRET}`.split("=")[1], "secret_padding", "issuer"],
    ["dotenv cuts at #", hash, env(`S=${hash}`), "secret_truncated", "issuer"],
    ["Next expands $HOME", dollar, nextEnv(`NEXT_TEST_SECRET=${dollar}`), ["secret_env_expansion", "unknown_key"], "issuer"],
    ["Next expands an unset $name", "p4ss$nobody_set_this-Zr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUe", nextEnv("NEXT_TEST_SECRET=p4ss$nobody_set_this-Zr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0RaUe"), "secret_env_expansion", "issuer"],
    ["Buffer.from(secret, 'base64')", SECRET, Buffer.from(SECRET, "base64"), "secret_encoding", "gateway"],
    ["kubectl create with base64 again", Buffer.from(SECRET).toString("base64"), SECRET, "secret_double_base64", "gateway"],
    ["a fallback in the code", SECRET, fallback(unset), "secret_default", "issuer"],
    ["String(undefined)", SECRET, String(process.env[unset]), "secret_default", "issuer"],
    ["a template that nobody filled", SECRET, "${NEXTAUTH_SECRET}", "secret_default", "issuer"],
    ["Windows editor", SECRET, `\ufeff${SECRET}`, "secret_bom", "issuer"],
    ["hex in upper case", "ab12".repeat(12), "AB12".repeat(12), "secret_case", "issuer"],
    ["another secret", SECRET, "something else that is long enough for HS256", "unknown_key", "issuer"],
  ]) {
    const report = check(config("wrong", hmac(ours)), sign(theirs));
    const causes = [cause].flat();
    assert.ok(causes.includes(report.cause), `${what}: ${JSON.stringify(report)}`);
    assert.equal(report.side, side, what);
    assert.ok(report.advice.length > 20 && !report.advice.includes(ours.slice(0, 12)), `${what}: no secret in the advice`);
  }
  // The gateway decodes, the issuer does not.
  const decoding = config("decoding", hmac(SECRET, 'encoding = "base64"\n'));
  assert.equal(check(decoding, sign(SECRET)).cause, "secret_encoding");
  // Another variable, named by the operator.
  process.env.JWT_SECRET_OF_TEST = "the-other-variables-secret-of-some-length";
  const named = check(config("named", hmac(SECRET)), sign(process.env.JWT_SECRET_OF_TEST), "--also-secret-env", "JWT_SECRET_OF_TEST");
  assert.equal(named.cause, "secret_other_variable");
  // Claims, as libraries leave them.
  const strict = config("strict", `[auth]\nissuer = ["https://app.example/"]\naudience = ["rt"]\n${hmac(SECRET)}`);
  for (const [what, claims, options, cause] of [
    ["no slash", {}, { issuer: "https://app.example", audience: "rt" }, "issuer_trailing_slash"],
    ["no issuer", {}, { audience: "rt" }, "issuer_missing"],
    ["audience as a claim", { audience: "rt" }, { issuer: "https://app.example/" }, "audience_missing"],
    ["milliseconds", { exp: Date.now() + 600_000 }, {}, "exp_in_milliseconds"],
    ["a duration", { exp: 3600 }, {}, "exp_is_duration"],
    ["expiresIn in the payload", { exp: undefined, expiresIn: "1h" }, {}, "exp_missing"],
  ]) {
    const payload = JSON.parse(JSON.stringify({ ...CLAIMS, ...claims }));
    const report = check(strict, jsonwebtoken.sign(payload, SECRET, options));
    assert.equal(report.cause, cause, `${what}: ${JSON.stringify(report)}`);
  }
  // On the way.
  const good = sign(SECRET);
  const file = config("way", hmac(SECRET));
  for (const [what, token, cause] of [
    ["JSON.stringify into localStorage", JSON.stringify(good), "token_quoted"],
    ["the header's whole value", `Bearer ${good}`, "bearer_prefix"],
    ["a promise", `${Promise.resolve(good)}`, "js_value"],
    ["a missing item", `${undefined}`, "js_value"],
    ["encoded twice", encodeURIComponent(JSON.stringify(good)), "url_encoded"],
    ["a cookie's pair", `token=${good}`, "cookie_pair"],
    ["a column of 120", good.slice(0, 120), "token_truncated"],
  ]) {
    assert.equal(check(file, token).cause, cause, what);
  }
  // A session cookie where a token belongs.
  const v4 = await encodeNextAuth({ token: CLAIMS, secret: SECRET });
  const v5 = await encodeAuthJs({ token: CLAIMS, secret: SECRET, salt: "authjs.session-token" });
  assert.equal(check(file, v4).cause, "nextauth_v4_session");
  assert.equal(check(file, v5).cause, "authjs_v5_session");
  assert.equal(check(file, v4.slice(0, v4.lastIndexOf("."))).cause, "nextauth_cookie_chunk");
});

/** Signs exactly these texts, however odd. */
const signed = (header, payload, secret = SECRET) => signHs256(header, payload, secret);

test("field_d8: tokens whose JSON other libraries accept are accepted", async () => {
  const file = config("json", hmac(SECRET));
  const hs = '{"alg":"HS256","typ":"JWT"}';
  const rest = `"sub":"u1","exp":${CLAIMS.exp}`;
  const deep = (n) => `{"x":${"[".repeat(n)}${"]".repeat(n)},${rest}}`;
  const cases = [
    ["a number beyond floats", hs, `{"x":1e400,${rest}}`],
    ["a number of 60 digits", hs, `{"x":${"7".repeat(60)},${rest}}`],
    ["an exponent of a million", hs, `{"x":-1E+999999,${rest}}`],
    ["a tiny number", hs, `{"x":1e-999999,${rest}}`],
    ["half of a surrogate pair", hs, `{"name":"Bob \\ud83d",${rest}}`],
    ["half of a pair as a name", hs, `{"\\udc00":1,${rest}}`],
    ["every escape", hs, `{"x":"\\u0000\\b\\f\\n\\r\\t\\/\\\\\\"\\u001f\\u2028",${rest}}`],
    ["escapes in a name that is read", hs, `{"s\\u0075b":"u1","exp":${CLAIMS.exp}}`],
    ["NUL in a name", hs, `{"\\u0000":1,${rest}}`],
    ["names of JavaScript", hs, `{"":1,"__proto__":{"sub":"admin"},"constructor":1,${rest}}`],
    ["a name twice that nobody reads", hs, `{"x":1,"x":2,${rest}}`],
    ["a name twice inside of what nobody reads", hs, `{"x":{"a":1,"a":2},${rest}}`],
    ["nested 100 deep", hs, deep(100)],
    ["white space around", hs, ` \n\t{${rest}}\r\n`],
    ["the year 9999", hs, '{"sub":"u1","exp":253402300799}'],
    ["an end beyond all years", hs, '{"sub":"u1","exp":1e99}'],
    ["a date before 1970", hs, `{"nbf":-62135596800,${rest}}`],
    ["fractions of seconds", hs, `{"iat":1.5,"nbf":1.5e0,"sub":"u1","exp":${CLAIMS.exp}.25}`],
    ["an odd header", '{"alg":"HS256","x":1e400,"y":"\\ud83d","typ":"at+jwt","cty":null}', `{${rest}}`],
    ["white space in the header", ' {"alg" : "HS256"}\n', `{${rest}}`],
  ];
  const tokens = cases.map(([, header, payload]) => signed(header, payload));
  const job = JSON.stringify({ secret: SECRET, tokens });
  const pyJwt = execFileSync(python(), [join(import.meta.dirname, "verify.py")], { input: job, encoding: "utf8" }).trim().split("\n");
  const accepts = async (attempt) => {
    try {
      await attempt();
      return true;
    } catch {
      return false;
    }
  };
  for (const [i, [what]] of cases.entries()) {
    const others = {
      jsonwebtoken: await accepts(() => jsonwebtoken.verify(tokens[i], SECRET, { algorithms: ["HS256"] })),
      jose: await accepts(() => jwtVerify(tokens[i], new TextEncoder().encode(SECRET), { algorithms: ["HS256"] })),
      PyJWT: pyJwt[i] === "accept",
    };
    const count = Object.values(others).filter(Boolean).length;
    assert.ok(count >= 2, `${what}: the others accept it: ${JSON.stringify(others)}`);
    accepted(file, what, tokens[i]);
  }
});

test("field_d9: what no library takes for a token is named for what it is", async () => {
  const file = config("malformed", hmac(SECRET));
  const good = `{"sub":"u1","exp":${CLAIMS.exp}}`;
  const token = signed('{"alg":"HS256"}', good);
  for (const [what, text, cause] of [
    ["no alg", signed("{}", good), "alg_missing"],
    ["alg a list", signed('{"alg":["HS256"]}', good), "alg_missing"],
    ["a header of text", signed('"HS256"', good), "header_invalid"],
    ["no payload", signed('{"alg":"HS256"}', ""), "payload_invalid"],
    ["two payloads", signed('{"alg":"HS256"}', good + good), "payload_invalid"],
    ["a session of express-session", "s:j9vK2mZr7Tn4Wb8Lc1Ys6Hd3Jf5Pg0Ra.Xk2", "not_a_jwt"],
    ["a UUID", "0b8a4b52-7a4e-4c3f-9d2e-0d6c1f3b5a79", "not_a_jwt"],
    ["four parts", `${token}.more`, "part_count"],
    ["no signature", token.slice(0, token.lastIndexOf(".") + 1), "empty_signature"],
  ]) {
    assert.equal(await jwtVerify(text, new TextEncoder().encode(SECRET)).then(() => "good", () => "bad"), "bad", what);
    const report = check(file, text);
    assert.equal(report.cause, cause, `${what}: ${JSON.stringify(report)}`);
  }
});

test("field_d10: cookies of the real libraries with a secret that differs are explained", async () => {
  const session = (secret) => config("cookies", `[auth.session_cookie]\nenabled = true\nsecrets = [${toml(secret)}]\n`);
  const v4 = (secret) => encodeNextAuth({ token: CLAIMS, secret });
  const v5 = (secret, salt = "authjs.session-token") => encodeAuthJs({ token: CLAIMS, secret, salt });
  for (const [library, make] of [["NextAuth 4", v4], ["Auth.js 5", v5]]) {
    accepted(session(SECRET), library, await make(SECRET));
    for (const [what, ours, theirs, cause, side] of [
      ["ours is quoted", `"${SECRET}"`, SECRET, "secret_quoted", "gateway"],
      ["theirs is quoted", SECRET, `"${SECRET}"`, "secret_quoted", "issuer"],
      ["theirs ends in a newline", SECRET, `${SECRET}\n`, "secret_whitespace", "issuer"],
      ["theirs is a placeholder", SECRET, "your-nextauth-secret", "secret_default", "issuer"],
      ["another", SECRET, "something else that is long enough for it", "unknown_key", "issuer"],
    ]) {
      const report = check(session(ours), await make(theirs));
      assert.deepEqual([report.cause, report.side], [cause, side], `${library}, ${what}: ${JSON.stringify(report)}`);
      assert.ok(report.advice.includes(library), `${library}, ${what}: ${report.advice}`);
    }
    // In a token's place: named as whose it is, and the secret's spelling is found too.
    const own = { "NextAuth 4": "nextauth_v4_session", "Auth.js 5": "authjs_v5_session" }[library];
    for (const [theirs, part] of [[SECRET, "own application"], [`'${SECRET}'`, "single quotes"], ["something else that is long enough for it", "None of the gateway's secrets"]]) {
      const report = check(config("tokens", hmac(SECRET)), await make(theirs));
      assert.equal(report.cause, own, `${library}: ${JSON.stringify(report)}`);
      assert.ok(report.advice.includes(part), report.advice);
    }
  }
  const renamed = check(session(SECRET), await v5(SECRET, "__Host-app.session"));
  assert.equal(renamed.cause, "unknown_key", "a name that nobody can know");
  const one = config("one", `[auth.session_cookie]\nenabled = true\nsecrets = [${toml(SECRET)}]\ncookies = ["my.session"]\n`);
  assert.equal(check(one, await v5(SECRET)).cause, "cookie_name");
});

test("field_d11: minted tokens pass their own configuration, and other libraries' checks", async () => {
  const path = config(
    "minting",
    `[auth]\nissuer = ["https://app.example/", "other"]\naudience = ["rt", "ws"]\nuser_claim = ["user.id"]\n` +
      `[[auth.keys]]\nkid = "k1"\nsecret = ${toml(SECRET)}\nalgs = ["HS384", "HS256"]\n`,
  );
  const token = execFileSync(bin, ["token", "mint", "--config", path, "--user", "u1"], { encoding: "utf8" }).trim();
  accepted(path, "minted", token);
  const options = { algorithms: ["HS384"], issuer: "https://app.example/", audience: "rt" };
  assert.equal(jsonwebtoken.verify(token, SECRET, options).user.id, "u1");
});

test("session cookies of NextAuth 4 and Auth.js 5 open a socket", async () => {
  const site = await Site.start({
    redis: false,
    keys: "",
    config: `[auth.session_cookie]\nenabled = true\nsecrets = [${toml("an-older-secret-that-is-still-accepted-here")}, ${toml(SECRET)}]\n`,
    rules: '[[channels]]\npattern = "user:{user}"\nallow = "owner"\nauto_subscribe = true\n',
  });
  try {
    const connect = (cookie) =>
      new Promise((done) => {
        const socket = new WebSocket(site.socketUrl, { headers: { cookie } });
        socket.on("message", (data) => {
          done(JSON.parse(data));
          socket.terminate();
        });
        socket.on("close", (code, reason) => done({ code, reason: String(reason) }));
        socket.on("error", () => {});
      });
    const token = { sub: "u1", name: "Ann", email: "ann@example.com" };
    const v4 = (extra = {}) => encodeNextAuth({ token, secret: SECRET, ...extra });
    const v5 = (salt, extra = {}) => encodeAuthJs({ token, secret: SECRET, salt, ...extra });
    for (const [what, cookie] of [
      ["v4", `a=b; next-auth.session-token=${await v4()}`],
      ["v4 on https", `__Secure-next-auth.session-token=${await v4()}`],
      ["v4, older secret", `next-auth.session-token=${await v4({ secret: "an-older-secret-that-is-still-accepted-here" })}`],
      ["v5", `authjs.session-token=${await v5("authjs.session-token")}`],
      ["v5 on https", `__Secure-authjs.session-token=${await v5("__Secure-authjs.session-token")}`],
    ]) {
      const first = await connect(cookie);
      assert.equal(first.type, "connected", `${what}: ${JSON.stringify(first)}`);
      assert.equal(first.data.userId, "u1");
    }
    const large = await v4({ token: { ...token, roles: "x".repeat(9000) } });
    const chunks = large.match(/.{1,3933}/g).map((part, i) => `next-auth.session-token.${i}=${part}`);
    assert.ok(chunks.length > 2);
    assert.equal((await connect(chunks.reverse().join("; "))).type, "connected", "chunks in any order");
    for (const [what, cookie, reason] of [
      ["another secret", `next-auth.session-token=${await v4({ secret: "quite-another-secret-of-sufficient-length" })}`, "bad_signature"],
      ["another cookie's salt", `authjs.session-token=${await v5("__Secure-authjs.session-token")}`, "bad_signature"],
      ["expired", `next-auth.session-token=${await v4({ maxAge: -60 })}`, "expired"],
      ["a chunk is missing", chunks.filter((c) => !c.includes(".1=")).join("; "), "malformed"],
      ["a signed token in its place", `next-auth.session-token=${jsonwebtoken.sign(CLAIMS, SECRET)}`, "malformed"],
    ]) {
      assert.deepEqual(await connect(cookie), { code: 4401, reason }, what);
    }
  } finally {
    await site.close();
  }
});

/** A snippet of the documentation, as a module beside node_modules. */
const snippet = (name, use) => asFile(import.meta.dirname, { name, body: block("docs/tokens.md", name) }, use);

test("the route of docs/tokens.md signs tokens that are accepted, and nothing without its secret", () =>
  snippet("token-route.mjs", async (file) => {
    const { realtimeToken } = await import(file);
    delete process.env.NEXTAUTH_SECRET;
    assert.throws(() => realtimeToken("u1"), /NEXTAUTH_SECRET is not set/);
    process.env.NEXTAUTH_SECRET = SECRET;
    accepted(config("route", hmac(SECRET)), "docs/tokens.md", realtimeToken("u1"));
    delete process.env.NEXTAUTH_SECRET;
  }));

test("the heartbeat of docs/tokens.md shows drift", () =>
  snippet("heartbeat.mjs", async (file) => {
    const drift = '[drift]\nissuers = ["web"]\ninterval = "100ms"\n';
    const site = await Site.start({ config: drift, keys: hmac(SECRET), rules: "" });
    try {
      const shows = async (secret, value) => {
        const beat = start("node", [file], { env: { REDIS_URL: site.redisUrl, NEXTAUTH_SECRET: secret } });
        const line = `tollgate_issuer_key_match{issuer="web"} ${value}`;
        const story = async () => `${beat.said}\n${await site.metrics()}`;
        await until(line, async () => (await site.metrics()).includes(line), story).finally(() => end(beat));
      };
      await shows(SECRET, 1);
      await shows("your-secret-key", 0);
    } finally {
      await site.close();
    }
  }));

test("issuer and gateway print the same fingerprint", () => {
  const file = config("fingerprint", `[[auth.keys]]\nsecret_env = "NEXTAUTH_SECRET"\n`);
  const env = { ...process.env, NEXTAUTH_SECRET: SECRET };
  const printed = execFileSync(bin, ["token", "fingerprint", "--config", file], { env, encoding: "utf8" });
  const ours = printed.split(" ")[0];
  assert.match(ours, /^[0-9a-f]{16}$/);
  const recipes = [...printed.matchAll(/^ {4}(\S.*)$/gm)].map(([, command]) => command);
  assert.equal(recipes.length, 3);
  for (const command of recipes) {
    assert.equal(execFileSync("bash", ["-c", command], { env, encoding: "utf8" }).trim(), ours, command);
  }
  const node = createHmac("sha256", SECRET).update("tollgate-fingerprint").digest("hex").slice(0, 16);
  assert.equal(node, ours);
});
