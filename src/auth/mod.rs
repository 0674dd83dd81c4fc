//! Tokens: [`Verifier::verify`] says for whom a token speaks, or gives the one [`Reason`] why
//! it is refused.
//!
//! Not here: where a token was carried (`http`), what its user may do (`access`), fetching of keys
//! (`upstream`). Signatures are made and verified by `jsonwebtoken` with `aws-lc-rs` underneath, or
//! by `aws-lc-rs` alone if that crate lacks the algorithm. The form of a token is checked here,
//! because the JWT crates accept forms that we refuse (ADR 4).
//!
//! Invariant: no claim of a token is looked at before its signature has verified, so no unverified
//! text chooses a reason. The time is an argument: the same token and time give the same answer.

pub mod algorithm;
mod claims;
pub mod diagnose;
pub mod fingerprint;
mod json;
pub mod jwk;
pub mod keys;
pub mod pem;
mod placeholders;
pub mod public_key;
mod reason;
mod revocation;
pub mod secret;
pub mod session_cookie;
mod signature;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::access::Identity;
use crate::channel::ChannelName;
pub use algorithm::{Algorithm, Family};
pub use claims::{Settings, UserClaim, id_text};
use keys::Signed;
pub use keys::{Key, KeySet, Material, Remote};
pub use placeholders::is_placeholder;
pub use reason::{Reason, markdown};
pub use revocation::{Revocation, Revocations};
pub use secret::{Encoding, Secret};
pub use session_cookie::SessionCookie;

/// The `kid` of a token's header, verified or not.
#[must_use]
pub fn kid_of(token: &str) -> Option<String> {
    let header = json::header(token.split('.').next()?).ok()?;
    Some(header.get("kid")?.as_str()?.to_owned())
}

/// Checks tokens with a set of keys. The verifier is replaced whole when the configuration changes;
/// the table of revocations is shared, so revoked tokens stay revoked.
#[derive(Debug)]
pub struct Verifier {
    settings: Settings,
    keys: KeySet,
    revocations: Arc<Revocations>,
    /// The accepted session cookies, with the settings for their claims.
    session: Option<(SessionCookie, Settings)>,
}

impl Verifier {
    #[must_use]
    pub fn new(settings: Settings, keys: KeySet) -> Self {
        Self { settings, keys, revocations: Arc::default(), session: None }
    }

    /// Accepts session cookies too.
    #[must_use]
    pub fn with_session(mut self, session: Option<SessionCookie>) -> Self {
        // Issuer and audience are not checked, because the libraries of session cookies do
        // not set them.
        let leeway = self.settings.leeway.max(session_cookie::TOLERANCE);
        let settings =
            Settings { issuer: vec![], audience: vec![], leeway, ..self.settings.clone() };

        self.session = session.map(|session| (session, settings));
        self
    }

    /// The session cookies that are accepted, if any are.
    #[must_use]
    pub fn session(&self) -> Option<&SessionCookie> {
        self.session.as_ref().map(|(session, _)| session)
    }

    /// Returns for whom a session cookie speaks. `name` is the cookie's, without a chunk number.
    ///
    /// # Errors
    /// As [`Verifier::verify`]; `bad_signature` when no secret decrypts the cookie.
    pub fn verify_session(&self, name: &str, token: &str, now: u64) -> Result<Identity, Reason> {
        let (session, settings) = self.session.as_ref().ok_or(Reason::Encrypted)?;
        let plain = session.open(name, token)?;
        let claims = json::object_of(&plain, &|name| settings.reads(name))?;
        self.unrevoked(claims::check(&claims, settings, now)?, now)
    }

    /// The claims that a token for this user needs here: for `token mint` and the development page.
    #[must_use]
    pub fn claims_for(&self, user: &str, now: u64, seconds: u64) -> Map<String, Value> {
        claims::made(&self.settings, user, (now, now.saturating_add(seconds)))
    }

    /// Looks revoked tokens up in a shared table.
    #[must_use]
    pub fn revoking(mut self, revocations: Arc<Revocations>) -> Self {
        self.revocations = revocations;
        self
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn keys_mut(&mut self) -> &mut KeySet {
        &mut self.keys
    }

    #[must_use]
    pub fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// Returns for whom `token` speaks at `now` (Unix seconds).
    ///
    /// # Errors
    /// The first check that fails, in this order: size, number of parts (five are a JWE), header
    /// JSON, alg none, crit, alg, key, signature, payload JSON, exp, nbf, iss, aud, user, revoked.
    pub fn verify(&self, token: &str, now: u64) -> Result<Identity, Reason> {
        let claims = self.authentic(token, now)?;
        let identity = claims::check(&claims, &self.settings, now)?;
        // A subscription token opens no connection (RFC 8725 section 3.12).
        if claims.get("channel").is_some_and(Value::is_string) {
            return Err(Reason::ClaimInvalid);
        }
        self.unrevoked(identity, now)
    }

    /// Returns for whom a subscription token speaks. Its `channel` must be the channel, and its
    /// user must be the connection's.
    ///
    /// # Errors
    /// As [`Verifier::verify`]; `claim_invalid` when the token is for another channel or user.
    pub fn verify_subscription(
        &self,
        token: &str,
        channel: &ChannelName,
        user: &str,
        now: u64,
    ) -> Result<Identity, Reason> {
        let claims = self.authentic(token, now)?;
        let identity = self.unrevoked(claims::check(&claims, &self.settings, now)?, now)?;

        let its = claims.get("channel").and_then(Value::as_str);
        if its != Some(channel.as_str()) || &*identity.user != user {
            return Err(Reason::ClaimInvalid);
        }

        Ok(identity)
    }

    fn unrevoked(&self, identity: Identity, now: u64) -> Result<Identity, Reason> {
        // Until the table is known, any token might be in it.
        if !self.revocations.are_known() {
            return Err(Reason::RevocationsUnavailable);
        }
        if self.revocations.covers(&identity, now) {
            return Err(Reason::Revoked);
        }
        Ok(identity)
    }

    /// The claims of a token whose signature verifies. The claims themselves have not been checked:
    /// only their author is known.
    ///
    /// # Errors
    /// The first check that fails, up to the signature and the payload's JSON.
    pub fn authentic(&self, token: &str, now: u64) -> Result<Map<String, Value>, Reason> {
        if token.len() > self.settings.max_token_bytes {
            return Err(Reason::Oversize);
        }

        let parts = Parts::split(token)?;
        let header = json::header(parts.header)?;
        let signature = json::decode(parts.signature)?;
        let alg = header_alg(&header)?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.as_str()),
            Some(_) => return Err(Reason::Malformed),
        };

        let signed = Signed { alg: &alg, kid, signed: parts.signed, signature: &signature };
        self.keys.verify(&signed, now)?;
        Ok(json::object(parts.payload, &|name| self.settings.reads(name))?)
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

/// The header's `alg`. Refuses `none` and every extension that we would have to understand (RFC
/// 7515 section 4.1.11, RFC 7797, RFC 7516 section 4.1.3).
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

#[cfg(test)]
mod key_tests;
