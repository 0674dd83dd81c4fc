//! HMAC secrets: from the configured text to bytes, and what is wrong or odd about them.
//!
//! Invariant: no part of a secret ever reaches a message. Messages state its length, the class of
//! its characters, and what surrounds it.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::{self, Alphabet};
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use jsonwebtoken::{DecodingKey, EncodingKey};

use super::algorithm::{Algorithm, Family};
use super::pem::looks_like_pem;
use super::placeholders::is_placeholder;
use super::signature;

/// Fewest bytes of an HMAC secret: the 256 bits of the smallest hash (RFC 7518 section 3.2).
pub const MIN_SECRET_BYTES: usize = 32;

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

impl Encoding {
    pub const ALL: [Self; 4] = [Self::Utf8, Self::Base64, Self::Base64url, Self::Hex];

    /// The name that the configuration uses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf8",
            Self::Base64 => "base64",
            Self::Base64url => "base64url",
            Self::Hex => "hex",
        }
    }

    /// The bytes that a text stands for; `None` if it is not written in this encoding.
    #[must_use]
    pub fn decode(self, text: &str) -> Option<Vec<u8>> {
        match self {
            Self::Utf8 => Some(text.as_bytes().to_vec()),
            Self::Base64 => lenient(&alphabet::STANDARD, text),
            Self::Base64url => lenient(&alphabet::URL_SAFE, text),
            Self::Hex => hex(text),
        }
    }
}

/// Decodes with or without padding: people use both, and the bytes are the same.
fn lenient(alphabet: &Alphabet, text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config).decode(text).ok()
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

/// Why a secret cannot be a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error("the secret is empty")]
    Empty,
    #[error("the secret is not valid {0}; check `encoding`")]
    Undecodable(&'static str),
    #[error("the secret is a PEM key: anyone who has the public key could sign tokens")]
    Pem,
    #[error(
        "the secret has only {0} bytes, but 32 are needed (RFC 7518 section 3.2); create one \
         with: openssl rand -base64 48 | tr -d '\\n'"
    )]
    TooShort(usize),
    #[error(
        "the secret is a well-known placeholder; create one with: openssl rand -base64 48 | tr -d \
         '\\n'"
    )]
    Placeholder,
}

/// A usable HMAC secret.
pub struct Secret {
    text: Box<str>,
    encoding: Encoding,
    bytes: Box<[u8]>,
    key: DecodingKey,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl Secret {
    /// Reads a configured secret.
    ///
    /// # Errors
    /// What makes the secret unusable. Weakness is a question of its own, see [`Secret::weakness`].
    pub fn new(text: &str, encoding: Encoding) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        if looks_like_pem(text) {
            return Err(SecretError::Pem);
        }

        let bytes = encoding.decode(text).ok_or(SecretError::Undecodable(encoding.name()))?;
        // An empty secret is the only one that the crate refuses.
        let key = DecodingKey::from_secret(&bytes).map_err(|_| SecretError::Empty)?;
        Ok(Self { text: text.into(), encoding, bytes: bytes.into(), key })
    }

    /// Why the secret is not safe, if it is not.
    #[must_use]
    pub fn weakness(&self) -> Option<SecretError> {
        let decoded = std::str::from_utf8(&self.bytes).unwrap_or_default();
        if is_placeholder(&self.text) || is_placeholder(decoded) {
            return Some(SecretError::Placeholder);
        }
        (self.bytes.len() < MIN_SECRET_BYTES).then_some(SecretError::TooShort(self.bytes.len()))
    }

    /// The text as configured.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True if the signature was made with this secret. The comparison takes constant time.
    #[must_use]
    pub fn verifies(&self, alg: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        alg.family() == Family::Hmac && signature::verifies(alg, &self.key, signed, signature)
    }

    /// Signs a text; `None` for an algorithm that is not HMAC.
    #[must_use]
    pub fn sign(&self, alg: Algorithm, text: &[u8]) -> Option<Vec<u8>> {
        let key = EncodingKey::from_secret(&self.bytes).ok()?;
        signature::sign(alg, &key, text)
    }

    /// Characters around or in the secret that probably should not be there, each with its fix.
    #[must_use]
    pub fn oddities(&self) -> Vec<&'static str> {
        oddities(&self.text)
    }
}

fn oddities(text: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let is_quoted = |q: char| text.len() > 1 && text.starts_with(q) && text.ends_with(q);
    if is_quoted('"') || is_quoted('\'') {
        found.push(
            "is wrapped in quotes, which count as part of it: remove them \
             (docker --env-file does not strip quotes)",
        );
    }

    if text.starts_with('\u{feff}') {
        found.push("begins with a byte order mark: save the file as UTF-8 without BOM");
    }

    if text.ends_with(['\n', '\r']) {
        found.push("ends in a line break: write it with printf or `echo -n`");
    } else if text.trim() != text {
        found.push("has whitespace around it, which counts as part of it: remove it");
    } else if text.contains(['\n', '\r']) {
        found.push("spans several lines: create one with openssl rand -base64 48 | tr -d '\\n'");
    }

    if text.contains(['\u{200b}', '\u{a0}', '\u{200c}', '\u{200d}', '\u{2060}']) {
        found.push("contains an invisible character, probably copied from a document");
    }

    found
}

/// Describes a secret without revealing it: its length and the class of its characters.
#[must_use]
pub fn describe(text: &str) -> String {
    let inner = text.trim().trim_matches(['"', '\'']);
    let all = |f: fn(&char) -> bool| !inner.is_empty() && inner.chars().all(|c| f(&c));

    let class = if inner.is_empty() {
        "empty"
    } else if all(char::is_ascii_hexdigit) && inner.len().is_multiple_of(2) {
        "hex"
    } else if all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')) {
        if inner.contains(['+', '/', '=']) { "base64" } else { "letters and digits" }
    } else if all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=')) {
        "base64url"
    } else if inner.is_ascii() {
        "text"
    } else {
        "text with non-ASCII characters"
    };

    format!("{} characters, {class}", text.chars().count())
}
