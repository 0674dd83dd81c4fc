//! Tokens: [`Verifier::verify`] says whom a token speaks for, or the one [`Reason`] why not.
//!
//! Not here: where a token was carried (`http`), what its user may do (`access`). The signature is
//! the `jsonwebtoken` crate's work; every other check is ours, because that crate lets pass what
//! we refuse: `crit`, a missing `iss` or `aud`, an object as `aud`, an empty or a PEM-shaped
//! secret, duplicate claims, `exp` equal to now.
//!
//! Invariant: no claim of a token is looked at before its signature verified, so no unverified
//! text chooses a reason. The time is an argument: the same token and time give the same answer.

mod claims;
mod keys;

use serde_json::{Map, Value};

use crate::access::Identity;
pub use claims::UserClaim;
pub use keys::{Algorithm, Encoding, Key, KeyError, KeySet, is_placeholder};

/// Why a token was refused: the closed set that metric labels, log fields and close reasons use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    Missing,
    Oversize,
    Malformed,
    Encrypted,
    AlgNone,
    AlgNotAllowed,
    CritUnsupported,
    KidUnknown,
    KeysUnavailable,
    ConfigError,
    BadSignature,
    Expired,
    NotYetValid,
    ExpMissing,
    ClaimInvalid,
    IssuerMismatch,
    AudienceMismatch,
    UserMissing,
    Revoked,
}

impl Reason {
    pub const ALL: [Self; 19] = [
        Self::Missing,
        Self::Oversize,
        Self::Malformed,
        Self::Encrypted,
        Self::AlgNone,
        Self::AlgNotAllowed,
        Self::CritUnsupported,
        Self::KidUnknown,
        Self::KeysUnavailable,
        Self::ConfigError,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::ExpMissing,
        Self::ClaimInvalid,
        Self::IssuerMismatch,
        Self::AudienceMismatch,
        Self::UserMissing,
        Self::Revoked,
    ];

    /// The slug, and what an operator should know about it.
    #[must_use]
    pub fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => ("missing", "No token came by any of the carriers."),
            Self::Oversize => ("oversize", "The token is longer than `auth.max_token_bytes`."),
            Self::Malformed => ("malformed", "Not three base64url parts holding JSON objects."),
            Self::Encrypted => {
                ("encrypted", "Five parts: an encrypted token (JWE), not a signed one.")
            }
            Self::AlgNone => ("alg_none", "The token says that it is not signed."),
            Self::AlgNotAllowed => {
                ("alg_not_allowed", "No configured key is bound to this algorithm.")
            }
            Self::CritUnsupported => {
                ("crit_unsupported", "The header demands an extension (`crit`, `b64`, `zip`).")
            }
            Self::KidUnknown => ("kid_unknown", "No configured key has the token's `kid`."),
            Self::KeysUnavailable => {
                ("keys_unavailable", "Our keys could not be fetched; not the token's fault.")
            }
            Self::ConfigError => ("config_error", "Our key cannot be used; not the token's fault."),
            Self::BadSignature => (
                "bad_signature",
                "No fitting key verifies the signature: usually two different secrets.",
            ),
            Self::Expired => ("expired", "`exp` (plus leeway) is now or past."),
            Self::NotYetValid => ("not_yet_valid", "`nbf` (less leeway) is in the future."),
            Self::ExpMissing => ("exp_missing", "No `exp`, and `auth.require_exp` is on."),
            Self::ClaimInvalid => {
                ("claim_invalid", "A claim has the wrong type or an impossible value.")
            }
            Self::IssuerMismatch => {
                ("issuer_mismatch", "`iss` is missing or not in `auth.issuer`.")
            }
            Self::AudienceMismatch => {
                ("audience_mismatch", "`aud` is missing or has none of `auth.audience`.")
            }
            Self::UserMissing => ("user_missing", "None of `auth.user_claim` is in the token."),
            Self::Revoked => ("revoked", "The token was revoked."),
        }
    }

    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.slug())
    }
}

/// The table of reasons as Markdown, for `docs/protocol.md`.
#[must_use]
pub fn markdown() -> String {
    let rows: Vec<_> =
        Reason::ALL.iter().map(|r| format!("| `{}` | {} |\n", r.row().0, r.row().1)).collect();
    format!("| reason | meaning |\n| --- | --- |\n{}", rows.concat())
}

/// What a token is checked against.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Accepted `iss` values; empty: not checked.
    pub issuer: Vec<String>,
    /// Accepted `aud` values; empty: not checked.
    pub audience: Vec<String>,
    /// Clock difference to forgive, in seconds.
    pub leeway: u64,
    pub require_exp: bool,
    pub user_claim: Vec<UserClaim>,
    pub max_token_bytes: usize,
    /// The claims that access rules look at.
    pub kept_claims: Vec<String>,
    /// Most entries taken from the `channels` claim.
    pub max_granted: usize,
}

/// Checks tokens with a fixed set of keys. Replaced whole when the configuration changes.
#[derive(Debug)]
pub struct Verifier {
    settings: Settings,
    keys: KeySet,
}

impl Verifier {
    #[must_use]
    pub fn new(settings: Settings, keys: KeySet) -> Self {
        Self { settings, keys }
    }

    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Whom does `token` speak for at `now` (Unix seconds)?
    ///
    /// # Errors
    /// The first check that fails, in the order: size, parts and JSON, JWE, alg none, crit, alg,
    /// key, signature, exp, nbf, iss, aud, user.
    pub fn verify(&self, token: &str, now: u64) -> Result<Identity, Reason> {
        if token.len() > self.settings.max_token_bytes {
            return Err(Reason::Oversize);
        }
        let parts = Parts::split(token)?;
        let header = claims::object(parts.header)?;
        let alg = header_alg(&header)?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(_) => return Err(Reason::Malformed),
        };
        self.keys.verify(kid, &alg, parts.signature, parts.signed)?;
        let payload = claims::object(parts.payload)?;
        claims::check(&payload, &self.settings, now)
    }
}

/// The parts of a compact JWS (RFC 7515 section 7.1).
struct Parts<'t> {
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
    signed: &'t [u8],
}

impl<'t> Parts<'t> {
    fn split(token: &'t str) -> Result<Self, Reason> {
        match token.bytes().filter(|b| *b == b'.').count() {
            2 => {}
            4 => return Err(Reason::Encrypted),
            _ => return Err(Reason::Malformed),
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Reason::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Reason::Malformed)?;
        Ok(Self { header, payload, signature, signed: signed.as_bytes() })
    }
}

/// The header's `alg`; refuses `none` and every extension that we would have to understand
/// (RFC 7515 section 4.1.11, RFC 7797, RFC 7516 section 4.1.3).
fn header_alg(header: &Map<String, Value>) -> Result<String, Reason> {
    let alg = match header.get("alg") {
        Some(Value::String(alg)) if alg.eq_ignore_ascii_case("none") => {
            return Err(Reason::AlgNone);
        }
        Some(Value::String(alg)) => alg.clone(),
        None | Some(_) => return Err(Reason::Malformed),
    };
    if header.contains_key("crit") || header.contains_key("b64") || header.contains_key("zip") {
        return Err(Reason::CritUnsupported);
    }
    Ok(alg)
}

#[cfg(test)]
mod tests;
