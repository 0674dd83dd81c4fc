import { createHmac } from "node:crypto";

/** The secret of a `Site`. */
export const SECRET = "the tests' own secret, long enough for HS256";

/** Signs exactly these texts with HS256, however odd they are. */
export function signHs256(header, payload, secret = SECRET) {
  const part = (text) => Buffer.from(text).toString("base64url");
  const text = `${part(header)}.${part(payload)}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}

export function token(user, { seconds = 3600, secret } = {}) {
  const exp = Math.floor(Date.now() / 1000) + seconds;
  return signHs256(JSON.stringify({ alg: "HS256" }), JSON.stringify({ sub: user, exp }), secret);
}
