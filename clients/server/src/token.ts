import { type JsonWebKey, KeyObject, createPrivateKey } from "node:crypto";
import { type Id, idText } from "./channel.js";
import { checkWhole, invalid } from "./options.js";

const EXPIRES_IN_SECONDS = 600;
/** Longer is most likely meant in milliseconds. */
const LONGEST_SECONDS = 31_536_000;
const MIN_SECRET_BYTES = 32;
const OWN_CLAIMS = ["sub", "exp", "iat", "iss", "aud"] as const;
const CURVES: Readonly<Record<string, string>> = { "prime256v1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512" };

/** How a secret's text becomes bytes: the gateway's `encoding` of that key. */
export type Encoding = "utf8" | "base64" | "base64url" | "hex";

export interface SecretKey {
  /** The text of the gateway's secret, exactly as the gateway has it. */
  secret: string | undefined;
  encoding?: Encoding | undefined;
  algorithm?: "HS256" | "HS384" | "HS512" | undefined;
}

export interface PrivateKey {
  /** A private key: PEM (PKCS#8, PKCS#1 or SEC1), JWK, or a KeyObject. */
  privateKey: string | JsonWebKey | KeyObject | undefined;
  /** Needed for an RSA key that is not for RS256 only. */
  algorithm?: `${"RS" | "PS" | "ES"}${256 | 384 | 512}` | "EdDSA" | undefined;
}

export type TokenOptions = (SecretKey | PrivateKey) & {
  /** Which of the gateway's keys it is, if they have names. */
  kid?: string | undefined;
  /** How long the token lives, in seconds. */
  expiresIn?: number | undefined;
  /** For the gateway's `auth.issuer`. */
  issuer?: string | undefined;
  /** For the gateway's `auth.audience`. */
  audience?: string | string[] | undefined;
  /** Further claims, such as `channels`. */
  claims?: Readonly<Record<string, unknown>> | undefined;
};

/** A token for a user, as the gateway verifies it: `sub` is the user's id, and it ends in ten minutes. */
export async function createToken(user: Id, options: TokenOptions): Promise<string> {
  const sub = idText(user);
  const { kid, expiresIn = EXPIRES_IN_SECONDS, issuer, audience, claims = {} } = options;
  checkWhole("expiresIn (seconds)", expiresIn, 1, LONGEST_SECONDS);
  const own = OWN_CLAIMS.find((name) => name in claims);
  if (own) invalid(`claims has ${own}: there is an option for it, or it is the user`);

  const { key, algorithm } = "privateKey" in options ? privateKey(options) : secretKey(options);
  const iat = Math.floor(Date.now() / 1000);
  // Loaded so, because jose is an ES module and this may be loaded as CommonJS.
  const { SignJWT } = await import("jose");
  const jwt = new SignJWT({ ...claims, sub, iat, exp: iat + expiresIn });
  jwt.setProtectedHeader(kid === undefined ? { alg: algorithm, typ: "JWT" } : { alg: algorithm, typ: "JWT", kid });
  if (issuer !== undefined) jwt.setIssuer(issuer);
  if (audience !== undefined) jwt.setAudience(audience);
  return jwt.sign(key);
}

const SPELLINGS: Readonly<Record<Encoding, RegExp>> = {
  utf8: /^/,
  base64: /^[A-Za-z0-9+/]*={0,2}$/,
  base64url: /^[A-Za-z0-9_-]*={0,2}$/,
  hex: /^(?:[0-9A-Fa-f]{2})*$/,
};

function secretKey({ secret, encoding = "utf8", algorithm = "HS256" }: SecretKey) {
  // No fallback: a token of an empty secret is one that anybody can make.
  if (typeof secret !== "string" || secret === "") return invalid("secret is missing: is its variable set?");
  if (secret.includes("-----BEGIN")) return invalid("secret is a PEM key: give it as privateKey");
  if (!(encoding in SPELLINGS)) return invalid("encoding is utf8, base64, base64url or hex");
  if (!/^HS(256|384|512)$/.test(algorithm)) return invalid("the algorithm of a secret is HS256, HS384 or HS512");

  // Buffer skips what it cannot decode; the gateway refuses it.
  const remainder = secret.replace(/=+$/, "").length % 4;
  const isBase64 = encoding === "base64" || encoding === "base64url";
  const isSpelled = SPELLINGS[encoding].test(secret) && !(isBase64 && remainder === 1);
  if (!isSpelled) return invalid(`the secret is not valid ${encoding}`);
  const key = Buffer.from(secret, encoding);
  if (key.length < MIN_SECRET_BYTES) {
    const advice = "make one with openssl rand -base64 48 | tr -d '\\n'";
    return invalid(`the secret has ${key.length} bytes, and the gateway takes none below ${MIN_SECRET_BYTES}: ${advice}`);
  }
  return { key: new Uint8Array(key), algorithm };
}

function privateKey({ privateKey: given, algorithm }: PrivateKey) {
  if (given === undefined || given === "") return invalid("privateKey is missing: is its variable set?");
  let key: KeyObject;
  try {
    if (given instanceof KeyObject) key = given;
    else if (typeof given === "string") key = createPrivateKey(given);
    else key = createPrivateKey({ key: given, format: "jwk" });
  } catch {
    // The reason may quote the key.
    return invalid("privateKey is no private key in PEM or JWK, or one with a password");
  }
  if (key.type !== "private") return invalid("privateKey is not a private key");
  return { key, algorithm: algorithm ?? (given as { alg?: string }).alg ?? usual(key) };
}

function usual(key: KeyObject): string {
  const curve = key.asymmetricKeyDetails?.namedCurve ?? "";
  if (key.asymmetricKeyType === "rsa") return "RS256";
  if (key.asymmetricKeyType === "ed25519") return "EdDSA";
  return CURVES[curve] ?? invalid(`the gateway takes no keys of type ${key.asymmetricKeyType} ${curve}`);
}
