//! Tokens, signed with the secret that every test gateway knows.
//!
//! Not here: tokens of other keys and algorithms, which the tests of keys make for themselves.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The secret that test gateways and test tokens share.
pub const SECRET: &str = "integration-tests-secret-0123456789-abcdef";

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A good token for a user, valid for an hour.
pub fn token(user: &str) -> String {
    sign(&json!({"sub": user, "exp": now() + 3600}), SECRET)
}

/// A good token for a user, valid for two days: also when the clock is moved by an hour.
pub fn long_token(user: &str) -> String {
    sign(&json!({"sub": user, "exp": now() + 2 * 86_400}), SECRET)
}

/// Signs claims with a secret, as HS256.
pub fn sign(claims: &Value, secret: &str) -> String {
    let key = rustcrypto_jwt::EncodingKey::from_secret(secret.as_bytes());
    rustcrypto_jwt::encode(&rustcrypto_jwt::Header::default(), claims, &key).unwrap()
}
