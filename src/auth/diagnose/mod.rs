//! The token diagnosis: why a token was refused, which side has to change, and how. It tries common
//! mistakes with the gateway's own keys and names the mistake under which the token verifies; it
//! never makes a token acceptable.
//!
//! Not here: when it runs (`diagnosis::sampler` on its own, `http::admin` and `cli` on request).
//! Invariants: nothing that it prints holds a part of a secret; text out of a token is escaped and
//! cut; a cause is named only if it was shown to be the cause; the work is bounded by the token's
//! size and the number of keys.

mod candidate;
mod causes;
mod claims;
mod cookies;
mod damage;
mod finding;
mod report;
mod secrets;
mod shape;
mod signature;
mod spellings;

use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::{Reason, Verifier, json};
use crate::access::Identity;
pub use causes::{Cause, Side, markdown};
use finding::Subject;
pub use finding::{Finding, NamedSecret, shown};
pub use report::Report;
use signature::Jws;

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
        // The work stays bounded, whatever was sent.
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

/// Verifies as the gateway would. A session cookie (five parts) is tried under every
/// configured name.
fn verified(verifier: &Verifier, token: &str, now: u64) -> Result<Identity, Reason> {
    let found = verifier.verify(token, now);
    let (Err(Reason::Encrypted), Some(session)) = (&found, verifier.session()) else {
        return found;
    };

    let opened = session.names.iter().map(|name| verifier.verify_session(name, token, now));
    // An error of an opened cookie says more than one of a cookie that could not be opened.
    opened.min_by_key(|f| (f.is_err(), *f == Err(Reason::BadSignature))).unwrap_or(found)
}

fn header_of(token: &str) -> Option<Map<String, Value>> {
    json::header(token.split('.').next()?).ok()
}

/// Looks for the cause of a refusal.
fn find(
    verifier: &Verifier,
    token: &str,
    reason: Reason,
    (extra, now): (&[NamedSecret], u64),
) -> Option<Finding> {
    let payload = token.split('.').nth(1).and_then(|p| json::object(p, &|_| false).ok());
    let keys = verifier.keys();
    let settings = verifier.settings();
    let subject = Subject { keys, settings, extra, now, payload };

    let has_five_parts = token.split('.').count() == 5;
    if has_five_parts && (reason == Reason::Encrypted || verifier.session().is_some()) {
        let is_odd = matches!(reason, Reason::Malformed | Reason::Encrypted);
        if is_odd && !damage::repairs(token).is_empty() {
            return damaged(verifier, &subject, token, extra);
        }
        return cookies::find(verifier, &subject, token, reason);
    }

    let fixed = |cause: Cause, side| {
        Some(Finding::new(cause, side, format!("{} {}", cause.meaning(), cause.fix())))
    };

    match reason {
        Reason::Missing => fixed(Cause::NoToken, Side::Issuer),
        Reason::Malformed => damaged(verifier, &subject, token, extra),
        Reason::Encrypted => None,
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
        Reason::Oversize
        | Reason::ConfigError
        | Reason::Revoked
        | Reason::RevocationsUnavailable => None,
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

/// Looks for the cause if no key verifies the signature, or none is allowed to.
fn signed(subject: &Subject<'_>, token: &str, header: &Map<String, Value>) -> Option<Finding> {
    // An encrypted token that was cut off after three parts looks like a signed one.
    if header.contains_key("enc") {
        return shape::find(subject, token);
    }

    let (text, signature) = token.rsplit_once('.')?;
    let (_, payload_part) = text.split_once('.')?;
    let signature = json::decode(signature).ok()?;
    let alg = header.get("alg").and_then(Value::as_str).and_then(Algorithm::named);
    let signed = text.as_bytes();
    let jws = Jws { header, payload_part, signed, signature, alg };
    signature::find(subject, &jws, token)
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

    // A set has up to 64 keys: the first ones show what they look like.
    let more = match known.len().saturating_sub(8) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let known = known[..known.len().min(8)].join(", ");

    let age = remotes.iter().filter_map(|r| r.fetched_at).min();
    let age = age.map_or_else(String::new, |at| {
        format!("; the key set was fetched {} s ago", subject.now.saturating_sub(at))
    });

    let advice = format!(
        "the token's kid is {kid:?}; the gateway knows {known}{more}{age}. {}",
        Cause::KidUnknown.fix()
    );
    Some(Finding::new(Cause::KidUnknown, Side::Gateway, advice))
}

/// Explains a text that is not a token as it came: a repair makes it one, or its form shows
/// what is wrong.
fn damaged(
    verifier: &Verifier,
    subject: &Subject<'_>,
    token: &str,
    extra: &[NamedSecret],
) -> Option<Finding> {
    let now = subject.now;
    let trimmed = token.trim();
    if let Some(finding) = damage::no_token(trimmed) {
        return Some(finding);
    }

    let repairs = damage::repairs(token);
    let verifies = |repaired: &str| {
        verifier.authentic(repaired, now).is_ok() || verified(verifier, repaired, now).is_ok()
    };
    // Text behind a token may also be a stray character within it, unless a key verifies the rest.
    let is_plain = |(cause, r): &&(Cause, String)| {
        *cause != Cause::TextAround || !trimmed.starts_with(r.as_str())
    };
    let right = repairs.iter().find(|(_, r)| verifies(r));
    let right = right.or_else(|| repairs.iter().find(is_plain));
    let Some((cause, repaired)) = right else {
        return shape::find(subject, trimmed);
    };

    let mut finding = damage::finding(*cause);
    match verified(verifier, repaired, now) {
        Ok(_) => finding.advice.push_str(" Apart from that, the token is valid."),
        Err(next) => {
            // A malformed text is not repaired again, because it may be wrapped in itself as often
            // as it is long.
            let then = if next == Reason::Malformed {
                shape::find(subject, repaired)
            } else if next == Reason::Encrypted {
                cookies::find(verifier, subject, repaired, next)
            } else {
                find(verifier, repaired, next, (extra, now))
            };
            let then =
                then.map_or_else(String::new, |f| format!(" ({}: {})", f.cause.slug(), f.advice));
            finding.advice.push_str(&format!(
                " With that corrected, the token would still be refused as {next}{then}"
            ));
        }
    }
    Some(finding)
}

#[cfg(test)]
mod cookie_tests;
#[cfg(test)]
mod secret_tests;
#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod tests;
