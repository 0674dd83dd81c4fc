//! Why a claim was refused. The signature has verified, so the claims may be shown, cut
//! and escaped.

use serde_json::{Map, Value};

use super::causes::{Cause, Side};
use super::finding::{Finding, Subject, moment, shown};
use crate::auth::claims::{finer_than_seconds, id_text};
use crate::auth::{Reason, UserClaim};
use crate::channel::check_id;

/// Names the cause for a refused claim.
pub(super) fn find(
    subject: &Subject<'_>,
    reason: Reason,
    claims: &Map<String, Value>,
) -> Option<Finding> {
    let now = subject.now;
    let finer = ["exp", "nbf", "iat"].into_iter().find_map(|name| {
        let value = claims.get(name)?.as_f64()?;
        Some((name, value, finer_than_seconds(value)?))
    });

    if let Some((name, value, unit)) = finer {
        let fix = Cause::ExpInMilliseconds.fix();
        let advice =
            format!("{name} is {value}, which is in {unit}, but must be in seconds. {fix}");
        return Some(Finding::new(Cause::ExpInMilliseconds, Side::Issuer, advice));
    }

    let number = |name: &str| claims.get(name).and_then(Value::as_f64);
    match reason {
        Reason::Expired => Some(expired(number("exp").unwrap_or_default(), now)),
        Reason::NotYetValid => {
            let ahead = number("iat").map(|iat| iat - now as f64).filter(|ahead| *ahead > 0.0);
            Some(ahead.map_or_else(|| not_yet(number("nbf").unwrap_or_default()), clock_skew))
        }
        Reason::ExpMissing => {
            let misplaced = ["expiresIn", "expires_in", "expiry", "expires"];
            let found = misplaced.into_iter().find(|n| claims.contains_key(*n));
            let advice = found.map_or_else(
                || Cause::ExpMissing.fix().to_owned(),
                |n| {
                    format!(
                        "the payload has {n}, which is no claim but an option of the signing call"
                    )
                },
            );
            Some(Finding::new(Cause::ExpMissing, Side::Issuer, advice))
        }
        Reason::ClaimInvalid => invalid(subject, claims),
        Reason::IssuerMismatch => Some(issuer(subject, claims)),
        Reason::AudienceMismatch => Some(audience(subject, claims)),
        Reason::UserMissing => Some(user(subject, claims)),
        Reason::Missing
        | Reason::Oversize
        | Reason::Malformed
        | Reason::Encrypted
        | Reason::AlgNone
        | Reason::AlgNotAllowed
        | Reason::CritUnsupported
        | Reason::KidUnknown
        | Reason::KeysUnavailable
        | Reason::RevocationsUnavailable
        | Reason::ConfigError
        | Reason::BadSignature
        | Reason::Revoked => None,
    }
}

/// Ten years in seconds. An `exp` below this would be a moment before 1980, when no token could be
/// made, so it is a duration.
const LONGEST_DURATION: f64 = 315_360_000.0;

fn expired(exp: f64, now: u64) -> Finding {
    if exp <= 0.0 {
        let advice =
            format!("exp is {exp}, which is in 1970 or earlier: the date was probably never set");
        return Finding::new(Cause::TokenExpired, Side::Issuer, advice);
    }

    let at = moment(exp as u64);
    if exp < LONGEST_DURATION {
        let advice = format!("exp is {exp}, which means {at}. {}", Cause::ExpIsDuration.fix());
        return Finding::new(Cause::ExpIsDuration, Side::Issuer, advice);
    }

    let ago = now.saturating_sub(exp as u64);
    let advice = format!("the token expired at {at}, {ago} s ago. {}", Cause::TokenExpired.fix());
    Finding::new(Cause::TokenExpired, Side::Issuer, advice)
}

fn not_yet(nbf: f64) -> Finding {
    let advice = format!(
        "the token is not valid before {}. {}",
        moment(nbf as u64),
        Cause::NbfInFuture.fix()
    );
    Finding::new(Cause::NbfInFuture, Side::Issuer, advice)
}

fn clock_skew(ahead: f64) -> Finding {
    let hours = ahead / 3600.0;
    let whole = hours.round() >= 1.0 && (hours - hours.round()).abs() < 0.02;
    let zone = if whole { " (whole hours: local time may have been taken for UTC)" } else { "" };
    let advice =
        format!("the issuer's clock is {ahead:.0} s ahead{zone}. {}", Cause::ClockSkew.fix());
    Finding::new(Cause::ClockSkew, Side::Issuer, advice)
}

/// Why a claim has a wrong type or an impossible value.
fn invalid(subject: &Subject<'_>, claims: &Map<String, Value>) -> Option<Finding> {
    for name in ["exp", "nbf", "iat"] {
        match claims.get(name) {
            None | Some(Value::Number(_) | Value::Null) => {}
            Some(other) => {
                let advice = format!("{name} is {}. {}", kind(other), Cause::ExpNotNumber.fix());
                return Some(Finding::new(Cause::ExpNotNumber, Side::Issuer, advice));
            }
        }
    }

    let named = |c: &UserClaim| Some((c.0.clone(), c.find(claims)?));
    let user = subject.settings.user_claim.iter().find_map(named);
    let why = |value: &Value| match id_text(value) {
        Some(text) => check_id(&text).err().map(|e| format!(": {e}")),
        None => Some(String::new()),
    };

    if let Some((name, value, why)) = user.and_then(|(n, v)| Some((n, v, why(v)?))) {
        let advice = format!("{name} is {}{why}. {}", kind(value), Cause::UserClaimUnusable.fix());
        return Some(Finding::new(Cause::UserClaimUnusable, Side::Issuer, advice));
    }

    subscription_token(claims)
}

fn subscription_token(claims: &Map<String, Value>) -> Option<Finding> {
    claims.get("channel")?.as_str()?;
    let advice = "this is a subscription token: connect with the user's token, and send this one with subscribe";
    Some(Finding::new(Cause::WrongTokenKind, Side::Issuer, advice.to_owned()))
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.is_empty() => "an empty string".to_owned(),
        Value::String(s) => format!("the string {:?}", shown(s)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn issuer(subject: &Subject<'_>, claims: &Map<String, Value>) -> Finding {
    let ours = subject.settings.issuer.join(", ");
    let Some(theirs) = claims.get("iss").and_then(Value::as_str) else {
        return Finding::new(
            Cause::IssuerMissing,
            Side::Issuer,
            format!("the token has no iss; auth.issuer is {ours}. {}", Cause::IssuerMissing.fix()),
        );
    };

    let no_slash = |s: &str| s.trim_end_matches('/').to_owned();
    let no_scheme = |s: &str| no_slash(s).replace("https://", "").replace("http://", "");
    let lower = |s: &str| no_scheme(s).to_lowercase();
    let same =
        |f: &dyn Fn(&str) -> String| subject.settings.issuer.iter().any(|o| f(o) == f(theirs));

    let cause = if same(&no_slash) {
        Cause::IssuerTrailingSlash
    } else if same(&no_scheme) {
        Cause::IssuerScheme
    } else if same(&lower) {
        Cause::IssuerCase
    } else {
        Cause::IssuerOther
    };

    let side = if cause == Cause::IssuerOther { Side::Issuer } else { Side::Gateway };
    let advice = format!(
        "token: iss = {:?}; configuration: auth.issuer = {ours:?}. {}",
        shown(theirs),
        cause.fix()
    );
    Finding::new(cause, side, advice)
}

fn audience(subject: &Subject<'_>, claims: &Map<String, Value>) -> Finding {
    let ours = subject.settings.audience.join(", ");
    let Some(theirs) = claims.get("aud") else {
        let hint = if claims.contains_key("audience") {
            "the token has `audience` instead of `aud`; "
        } else {
            ""
        };
        let advice = format!("{hint}auth.audience is {ours:?}. {}", Cause::AudienceMissing.fix());
        return Finding::new(Cause::AudienceMissing, Side::Issuer, advice);
    };

    let advice = format!(
        "token: aud = {}; configuration: auth.audience = {ours:?}. {}",
        shown(&theirs.to_string()),
        Cause::AudienceOther.fix()
    );
    Finding::new(Cause::AudienceOther, Side::Gateway, advice)
}

fn user(subject: &Subject<'_>, claims: &Map<String, Value>) -> Finding {
    let configured: Vec<&str> = subject.settings.user_claim.iter().map(|c| c.0.as_str()).collect();

    if claims.get("role").is_some_and(|r| r == "anon") {
        let advice =
            "this is the Supabase anon key, which identifies no user: send the user's access token";
        return Finding::new(Cause::WrongTokenKind, Side::Issuer, advice.to_owned());
    }
    if claims.get("channel").is_some_and(Value::is_string) {
        let advice = "this is a subscription token: connect with the user's token, and send this one with subscribe";
        return Finding::new(Cause::WrongTokenKind, Side::Issuer, advice.to_owned());
    }

    let usual = ["sub", "userId", "user_id", "uid", "id", "user.id", "email", "username"];
    let is_id = |n: &&str| UserClaim((*n).to_owned()).find(claims).and_then(id_text).is_some();
    let advice = match usual.into_iter().find(is_id) {
        Some(name) => format!(
            "the token has no claim of {configured:?}, but it has {name}: set auth.user_claim = \
             [{name:?}]"
        ),
        None => {
            let names: Vec<_> = claims.keys().take(20).map(|k| shown(k)).collect();
            format!("the token has no claim of {configured:?}; its claims are {}", names.join(", "))
        }
    };

    Finding::new(Cause::UserClaimOther, Side::Gateway, advice)
}
