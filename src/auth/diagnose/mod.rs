//! The doctor: why a token was refused, which side has to change, and how. It tries what people get
//! wrong with the gateway's own keys and names the one that verifies; it never makes a token
//! acceptable.
//!
//! Not here: when it runs (`session::doctor` in the gateway, `cli` by hand). Invariants: nothing that
//! it prints holds a part of a secret; text out of a token is escaped and cut; a cause is named only
//! when it was shown to be one; the work is bounded by the token's size and the number of keys.

mod causes;
mod claims;
mod damage;
mod report;
mod secrets;
mod signature;
mod spellings;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value};

pub use causes::{Cause, Side, markdown};

use super::algorithm::Algorithm;
use super::secret::describe;
use super::session_cookie::{Jwe, Maker};
use super::{KeySet, Reason, Settings, Verifier, jwk};
use crate::access::Identity;
use signature::Jws;

/// A secret that the operator names: what the issuer may have used.
pub struct NamedSecret {
    pub name: String,
    pub text: String,
}

/// A cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub cause: Cause,
    pub side: Side,
    /// One or two sentences for whoever has to mend it.
    pub advice: String,
}

impl Finding {
    fn new(cause: Cause, side: Side, advice: String) -> Self {
        Self { cause, side, advice }
    }
}

/// What the doctor says of a token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// `accept` or `reject`.
    pub verdict: &'static str,
    pub reason: Option<&'static str>,
    pub user: Option<String>,
    pub cause: Option<&'static str>,
    pub side: Option<Side>,
    pub advice: Option<String>,
    pub warnings: Vec<String>,
    /// The algorithm and key id that the header names, escaped and cut.
    pub alg: Option<String>,
    pub kid: Option<String>,
    #[serde(skip)]
    finding: Option<Finding>,
}

impl Report {
    #[must_use]
    pub fn accepted(&self) -> bool {
        self.reason.is_none()
    }

    #[must_use]
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.as_ref()
    }
}

/// What the parts of the doctor look at.
struct Subject<'a> {
    keys: &'a KeySet,
    settings: &'a Settings,
    extra: &'a [NamedSecret],
    now: u64,
    payload: Option<Value>,
}

impl Subject<'_> {
    /// A claim of a token whose signature did not verify: for a hint, never for a decision.
    fn unverified_claim(&self, name: &str) -> Option<String> {
        self.payload.as_ref()?.get(name)?.as_str().map(shown)
    }
}

/// Text from outside, fit for a terminal and a log: escaped, at most 64 characters.
#[must_use]
pub fn shown(text: &str) -> String {
    jwk::shown(text)
}

/// Examines a token as [`Verifier::verify`] would see it at `now`.
#[must_use]
pub fn examine(verifier: &Verifier, token: &str, extra: &[NamedSecret], now: u64) -> Report {
    let found = verified(verifier, token, now);
    let header = header_of(token);
    let text = |name: &str| header.as_ref()?.get(name)?.as_str().map(shown);
    let mut report = Report {
        verdict: if found.is_ok() { "accept" } else { "reject" },
        reason: found.as_ref().err().map(|r| r.slug()),
        user: found.as_ref().ok().map(|i| i.user.to_string()),
        cause: None,
        side: None,
        advice: None,
        warnings: Vec::new(),
        alg: text("alg"),
        kid: text("kid"),
        finding: None,
    };
    if let Err(reason) = found {
        // Bounded work, whatever was sent.
        let limit = verifier.settings().max_token_bytes * 4;
        let token = if token.len() > limit { "" } else { token };
        let finding = find(verifier, token, reason, (extra, now));
        if let Some(finding) = &finding {
            report.cause = Some(finding.cause.slug());
            report.side = Some(finding.side);
            report.advice = Some(finding.advice.clone());
        }
        report.finding = finding;
    } else if let Ok(claims) = verifier.authentic(token, now) {
        report.warnings = report::warnings(&claims, now);
    }
    report
}

/// As the gateway would: five parts are a session cookie where those are accepted, by any of its names.
fn verified(verifier: &Verifier, token: &str, now: u64) -> Result<Identity, Reason> {
    let found = verifier.verify(token, now);
    let (Err(Reason::Encrypted), Some(session)) = (&found, verifier.session()) else {
        return found;
    };
    let opened = session.names.iter().map(|name| verifier.verify_session(name, token, now));
    // What was opened says more than what could not be.
    opened.min_by_key(|f| (f.is_err(), *f == Err(Reason::BadSignature))).unwrap_or(found)
}

fn header_of(token: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn find(
    verifier: &Verifier,
    token: &str,
    reason: Reason,
    (extra, now): (&[NamedSecret], u64),
) -> Option<Finding> {
    let payload = token.split('.').nth(1).and_then(|p| URL_SAFE_NO_PAD.decode(p).ok());
    let payload = payload.and_then(|p| serde_json::from_slice(&p).ok());
    let (keys, settings) = (verifier.keys(), verifier.settings());
    let subject = Subject { keys, settings, extra, now, payload };
    if token.split('.').count() == 5 && verifier.session().is_some() {
        return session(verifier, &subject, token, reason);
    }
    let fixed = |cause: Cause, side| {
        Some(Finding::new(cause, side, format!("{} {}", cause.meaning(), cause.fix())))
    };
    match reason {
        Reason::Missing => fixed(Cause::NoToken, Side::Issuer),
        Reason::Malformed => damaged(verifier, token, extra, now),
        Reason::Encrypted => encrypted(&subject, token),
        Reason::AlgNone => fixed(Cause::AlgNone, Side::Issuer),
        Reason::CritUnsupported if header_of(token)?.contains_key("b64") => {
            fixed(Cause::B64False, Side::Issuer)
        }
        Reason::CritUnsupported => fixed(Cause::CritUnsupported, Side::Issuer),
        Reason::AlgNotAllowed | Reason::BadSignature | Reason::KidUnknown => {
            let header = header_of(token)?;
            let found = signed(&subject, token, &header);
            found.or_else(|| key_unknown(&subject, reason, &header))
        }
        Reason::KeysUnavailable => fixed(Cause::JwksStale, Side::Gateway),
        Reason::Oversize | Reason::ConfigError | Reason::Revoked => None,
        Reason::Expired
        | Reason::NotYetValid
        | Reason::ExpMissing
        | Reason::ClaimInvalid
        | Reason::IssuerMismatch
        | Reason::AudienceMismatch
        | Reason::UserMissing => {
            claims::find(&subject, reason, &verifier.authentic(token, now).ok()?)
        }
    }
}

fn signed(subject: &Subject<'_>, token: &str, header: &Map<String, Value>) -> Option<Finding> {
    let (text, signature) = token.rsplit_once('.')?;
    let (_, payload_part) = text.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let alg = header.get("alg").and_then(Value::as_str).and_then(Algorithm::named);
    let signed = text.as_bytes();
    let jws = Jws { header, payload_part, signed, signature, alg };
    signature::find(subject, &jws)
}

fn key_unknown(
    subject: &Subject<'_>,
    reason: Reason,
    header: &Map<String, Value>,
) -> Option<Finding> {
    if reason != Reason::KidUnknown {
        return Some(signature::nothing_fits(subject));
    }
    let kid = shown(header.get("kid").and_then(Value::as_str).unwrap_or_default());
    let remotes: Vec<_> = subject.keys.remotes().iter().map(|r| r.state()).collect();
    let keys = subject.keys.fixed().iter().chain(remotes.iter().flat_map(|r| &r.keys));
    let known: Vec<_> = keys.filter_map(|k| k.kid().map(shown)).collect();
    if known.is_empty() && !remotes.is_empty() {
        let cause = Cause::JwksEmpty;
        let advice = format!("{} {}", cause.meaning(), cause.fix());
        return Some(Finding::new(cause, Side::Gateway, advice));
    }
    let age = remotes.iter().filter_map(|r| r.fetched_at).min();
    let age = age.map_or_else(String::new, |at| {
        format!("; the key set was fetched {} s ago", subject.now.saturating_sub(at))
    });
    let advice = format!(
        "the token's kid is {kid:?}; the gateway knows {}{age}. {}",
        known.join(", "),
        Cause::KidUnknown.fix()
    );
    Some(Finding::new(Cause::KidUnknown, Side::Gateway, advice))
}

/// Named only when the repaired token is one; what is wrong with that is said too.
fn damaged(verifier: &Verifier, token: &str, extra: &[NamedSecret], now: u64) -> Option<Finding> {
    let damage = damage::find(token)?;
    let mut finding = damage.finding;
    if let Some(repaired) = damage.repaired {
        match verifier.verify(&repaired, now) {
            Ok(_) => finding.advice.push_str(" Apart from that the token is good."),
            Err(Reason::Malformed) => {}
            Err(next) => {
                let then = find(verifier, &repaired, next, (extra, now));
                let then = then
                    .map_or_else(String::new, |f| format!(" ({}: {})", f.cause.slug(), f.advice));
                finding.advice.push_str(&format!(" Mended, it would be refused as {next}{then}"));
            }
        }
    }
    Some(finding)
}

/// A session cookie that was refused where those are accepted.
fn session(
    verifier: &Verifier,
    subject: &Subject<'_>,
    token: &str,
    reason: Reason,
) -> Option<Finding> {
    let session = verifier.session()?;
    let opened = session.names.iter().find_map(|name| session.open(name, token).ok());
    if let Some(claims) = opened {
        return claims::find(subject, reason, &claims);
    }
    if !matches!(reason, Reason::BadSignature) {
        return encrypted(subject, token);
    }
    let ours: Vec<_> = session.secrets.iter().map(|s| describe(s)).collect();
    let advice = format!(
        "none of the {} configured secrets ({}) opens the cookie under any of the configured names: the \
         application has another secret, or its cookie another name (Auth.js 5 derives the key from it)",
        ours.len(),
        ours.join("; ")
    );
    Some(Finding::new(Cause::UnknownKey, Side::Issuer, advice))
}

/// Five parts: whose is it?
fn encrypted(subject: &Subject<'_>, token: &str) -> Option<Finding> {
    let header = header_of(token)?;
    let issuer = header.get("iss").and_then(Value::as_str).unwrap_or_default();
    if issuer.contains("auth0.com") {
        let cause = Cause::Auth0OpaqueToken;
        return Some(Finding::new(
            cause,
            Side::Issuer,
            format!("{} {}", cause.meaning(), cause.fix()),
        ));
    }
    let names = [
        "authjs.session-token",
        "__Secure-authjs.session-token",
        "next-auth.session-token",
        "__Secure-next-auth.session-token",
    ];
    if let Ok(jwe) = Jwe::split(token) {
        let secrets = subject.keys.fixed().iter().filter_map(|k| k.secret()).map(|s| s.text());
        let mut secrets = secrets.chain(subject.extra.iter().map(|n| n.text.as_str()));
        let opened = secrets.find_map(|s| names.iter().find_map(|name| jwe.open(s, name)));
        let cause = match opened {
            Some((Maker::NextAuth4, _)) => Some(Cause::NextauthV4Session),
            Some((Maker::AuthJs5, _)) => Some(Cause::AuthjsV5Session),
            None => None,
        };
        if let Some(cause) = cause {
            let advice = format!(
                "{} It is of your own application: the gateway's secret opens it. {}",
                cause.meaning(),
                cause.fix()
            );
            return Some(Finding::new(cause, Side::Gateway, advice));
        }
        let advice = "it looks like a NextAuth or Auth.js session cookie, which is encrypted, not signed, and \
                      the gateway's secrets do not open it: the secret differs too, or the cookie has a name \
                      of its own";
        return Some(Finding::new(Cause::EncryptedToken, Side::Issuer, advice.to_owned()));
    }
    let cause = Cause::EncryptedToken;
    Some(Finding::new(cause, Side::Issuer, format!("{} {}", cause.meaning(), cause.fix())))
}

#[cfg(test)]
mod secret_tests;
#[cfg(test)]
mod tests;
