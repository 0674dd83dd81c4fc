//! Verification keys: each bound to its algorithms, looked up in a fixed set and never fetched or
//! opened because of what a token says (RFC 8725 sections 3.1 and 3.10).

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, crypto};

use super::Reason;

/// Fewest bytes of an HMAC secret: the 256 bits of the smallest hash (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

/// Secrets from examples and tutorials, compared without case and separators. Whoever signs with
/// one of these did not load a secret at all.
const PLACEHOLDERS: [&str; 29] = [
    "secret",
    "yoursecret",
    "yoursecretkey",
    "yoursecretkeyhere",
    "yourjwtsecret",
    "yoursupersecretkey",
    "yournextauthsecret",
    "your256bitsecret",
    "your384bitsecret",
    "your512bitsecret",
    "jwtsecret",
    "jwtsecretkey",
    "supersecret",
    "supersecretkey",
    "supersecretjwttoken",
    "supersecretjwttokenwithatleast32characterslong",
    "mysecret",
    "mysecretkey",
    "changeme",
    "changemeplease",
    "changethis",
    "changethissecret",
    "changeinproduction",
    "replaceme",
    "password",
    "test",
    "undefined",
    "null",
    "astringsecretatleast256bitslong",
];

/// True for a well-known placeholder, however it is written.
#[must_use]
pub fn is_placeholder(secret: &str) -> bool {
    let plain: String =
        secret.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    PLACEHOLDERS.contains(&plain.as_str()) || (secret.starts_with("${") && secret.ends_with('}'))
}

/// The signature algorithms that this version verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub enum Algorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS384")]
    Hs384,
    #[serde(rename = "HS512")]
    Hs512,
}

impl Algorithm {
    /// The `alg` header value (RFC 7518 section 3.1).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
        }
    }

    fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Hs384 => jsonwebtoken::Algorithm::HS384,
            Self::Hs512 => jsonwebtoken::Algorithm::HS512,
        }
    }
}

/// How a configured secret's text becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    #[default]
    Utf8,
    Base64,
    Base64url,
    Hex,
}

/// Why a secret cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the secret is empty")]
    Empty,
    #[error("the secret is not valid {0}; check `encoding`")]
    Undecodable(&'static str),
    #[error("a PEM key is not an HMAC secret: anyone who has the public key could sign")]
    Pem,
    #[error(
        "the secret has only {0} bytes, 32 are needed (RFC 7518 section 3.2); \
         make one with: openssl rand -base64 48 | tr -d '\\n'"
    )]
    TooShort(usize),
    #[error(
        "the secret is a well-known placeholder; \
         make one with: openssl rand -base64 48 | tr -d '\\n'"
    )]
    Placeholder,
}

impl KeyError {
    /// True for what `--dev` may overlook: the key works, but is not safe.
    #[must_use]
    pub fn is_weakness(self) -> bool {
        matches!(self, Self::TooShort(_) | Self::Placeholder)
    }
}

/// One verification key.
pub struct Key {
    kid: Option<String>,
    algs: Vec<Algorithm>,
    key: DecodingKey,
    secret: Box<[u8]>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algs", &self.algs)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// An HMAC key from a configured secret.
    ///
    /// # Errors
    /// What is wrong with the secret; a weakness only when `allow_weak` is off.
    pub fn hmac(
        kid: Option<String>,
        secret: &str,
        encoding: Encoding,
        algs: Vec<Algorithm>,
        allow_weak: bool,
    ) -> Result<Self, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::Empty);
        }
        if secret.contains("-----BEGIN ") {
            return Err(KeyError::Pem);
        }
        let bytes = decode(secret, encoding)?;
        if bytes.is_empty() {
            return Err(KeyError::Empty);
        }
        if !allow_weak {
            if is_placeholder(secret) || std::str::from_utf8(&bytes).is_ok_and(is_placeholder) {
                return Err(KeyError::Placeholder);
            }
            if bytes.len() < MIN_SECRET_BYTES {
                return Err(KeyError::TooShort(bytes.len()));
            }
        }
        Ok(Self { kid, algs, key: DecodingKey::from_secret(&bytes), secret: bytes.into() })
    }

    /// Signs claims with this key: for `token mint` and the development page.
    ///
    /// # Errors
    /// The library's, which HMAC does not have.
    pub fn sign(&self, claims: &serde_json::Value) -> Result<String, jsonwebtoken::errors::Error> {
        let alg = self.algs.first().copied().unwrap_or(Algorithm::Hs256);
        let mut header = jsonwebtoken::Header::new(alg.library());
        header.kid.clone_from(&self.kid);
        let key = jsonwebtoken::EncodingKey::from_secret(&self.secret);
        jsonwebtoken::encode(&header, claims, &key)
    }

    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }
}

fn decode(secret: &str, encoding: Encoding) -> Result<Vec<u8>, KeyError> {
    // Padding may be there or not: both are seen, and neither changes the bytes.
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    match encoding {
        Encoding::Utf8 => Ok(secret.as_bytes().to_vec()),
        Encoding::Base64 => GeneralPurpose::new(&alphabet::STANDARD, config)
            .decode(secret)
            .map_err(|_| KeyError::Undecodable("base64")),
        Encoding::Base64url => GeneralPurpose::new(&alphabet::URL_SAFE, config)
            .decode(secret)
            .map_err(|_| KeyError::Undecodable("base64url")),
        Encoding::Hex => hex(secret).ok_or(KeyError::Undecodable("hex")),
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
        .collect()
}

/// The configured keys, in order.
#[derive(Debug, Default)]
pub struct KeySet(Vec<Key>);

impl KeySet {
    #[must_use]
    pub fn new(keys: Vec<Key>) -> Self {
        Self(keys)
    }

    #[must_use]
    pub fn first(&self) -> Option<&Key> {
        self.0.first()
    }

    #[must_use]
    pub fn get(&self, kid: &str) -> Option<&Key> {
        self.0.iter().find(|k| k.kid() == Some(kid))
    }

    /// Tries the keys that fit `kid` and `alg`. A key without a `kid` fits any token, and a token
    /// without one fits any key.
    pub(super) fn verify(
        &self,
        kid: Option<&str>,
        alg: &str,
        signature: &str,
        signed: &[u8],
    ) -> Result<(), Reason> {
        let allows = |key: &Key| key.algs.iter().find(|a| a.name() == alg).copied();
        if !self.0.iter().any(|key| allows(key).is_some()) {
            return Err(Reason::AlgNotAllowed);
        }
        let fits = |key: &&Key| kid.is_none() || key.kid.is_none() || key.kid() == kid;
        let mut found = false;
        let mut allowed = false;
        for key in self.0.iter().filter(fits) {
            found = true;
            let Some(alg) = allows(key) else { continue };
            allowed = true;
            if crypto::verify(signature, signed, &key.key, alg.library()).unwrap_or(false) {
                return Ok(());
            }
        }
        if !found {
            return Err(Reason::KidUnknown);
        }
        if !allowed {
            return Err(Reason::AlgNotAllowed);
        }
        match URL_SAFE_NO_PAD.decode(signature) {
            Ok(_) => Err(Reason::BadSignature),
            Err(_) => Err(Reason::Malformed),
        }
    }
}
