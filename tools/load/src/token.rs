//! Tokens for the simulated users: minted with a secret, or given.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, Mac as _};
use serde_json::{Map, Value};

pub enum Tokens {
    /// No token: the endpoint is anonymous or asks for none.
    None,
    Minted {
        secret: Vec<u8>,
        claims: Map<String, Value>,
    },
    /// Tokens to take in turn, each with the user that it names.
    Given(Vec<(String, String)>),
}

impl Tokens {
    pub fn minted(secret: &str, claims: Option<&str>) -> Result<Self> {
        let claims = match claims.map(serde_json::from_str) {
            None => Map::new(),
            Some(Ok(Value::Object(claims))) => claims,
            Some(_) => bail!(r#"--claims takes a JSON object, for example '{{"plan":"pro"}}'"#),
        };
        Ok(Tokens::Minted { secret: secret.as_bytes().to_vec(), claims })
    }

    pub fn given(texts: impl Iterator<Item = String>) -> Result<Self> {
        let mut tokens = Vec::new();
        for text in texts.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()) {
            let user = user_of(&text).with_context(|| {
                format!("token {}: not a JWT with userId or sub", tokens.len() + 1)
            })?;
            tokens.push((text, user));
        }

        if tokens.is_empty() {
            bail!("no token given: one JWT per line");
        }
        Ok(Tokens::Given(tokens))
    }

    pub fn file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read --tokens {}", path.display()))?;
        Tokens::given(text.lines().map(str::to_owned))
    }

    pub fn user(&self, index: usize) -> String {
        match self {
            Tokens::Given(tokens) => tokens[index % tokens.len()].1.clone(),
            Tokens::None | Tokens::Minted { .. } => format!("u{index}"),
        }
    }

    pub fn token(&self, index: usize) -> Option<String> {
        match self {
            Tokens::None => None,
            Tokens::Minted { secret, claims } => Some(mint(secret, claims, &self.user(index))),
            Tokens::Given(tokens) => Some(tokens[index % tokens.len()].0.clone()),
        }
    }
}

fn mint(secret: &[u8], extra: &Map<String, Value>, user: &str) -> String {
    let day = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
    let expires = day.duration_since(std::time::UNIX_EPOCH).map_or(u64::MAX, |d| d.as_secs());

    let mut claims = Map::new();
    claims.insert("sub".into(), user.into());
    claims.insert("userId".into(), user.into());
    claims.insert("exp".into(), expires.into());
    claims.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));

    let header = BASE64URL.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let mut token = format!("{header}.{}", BASE64URL.encode(Value::Object(claims).to_string()));

    // HMAC takes a key of any length.
    if let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(secret) {
        mac.update(token.as_bytes());
        token.push('.');
        BASE64URL.encode_string(mac.finalize().into_bytes(), &mut token);
    }
    token
}

fn user_of(token: &str) -> Option<String> {
    let claims = BASE64URL.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let user = ["userId", "sub"].iter().find_map(|name| claims.get(name))?;
    Some(user.as_str().map_or_else(|| user.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_7515() {
        // Appendix A.1 has another order of claims and white space, so only the MAC is compared.
        let key = BASE64URL
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let input = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
        mac.update(input.as_bytes());
        let expected = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(BASE64URL.encode(mac.finalize().into_bytes()), expected);
    }

    #[test]
    fn a_minted_token_names_its_user_and_carries_the_extra_claims() {
        let tokens = Tokens::minted("secret", Some(r#"{"plan":"pro","exp":5}"#)).unwrap();
        let token = tokens.token(3).unwrap();
        assert_eq!(user_of(&token).unwrap(), "u3");

        let claims = BASE64URL.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!((&claims["plan"], &claims["exp"]), (&"pro".into(), &5.into()));
        assert!(Tokens::minted("secret", Some("[]")).is_err());
    }

    #[test]
    fn given_tokens_are_taken_in_turn() {
        let minted = Tokens::minted("secret", None).unwrap();
        let lines = (0..2).map(|i| format!("{}\n", minted.token(i).unwrap()));
        let given = Tokens::given(lines).unwrap();
        assert_eq!(given.user(3), "u1");
        assert!(Tokens::given(["rubbish".to_owned()].into_iter()).is_err());
        assert!(Tokens::given(std::iter::empty()).is_err());
    }
}
