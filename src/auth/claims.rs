//! The checks of a token's claims (RFC 7519 section 4.1), and the settings that they are
//! checked against.
//!
//! Pure. Not here: the signature, which is checked before any claim is looked at.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::reason::Reason;
use crate::access::{Identity, TokenId};
use crate::channel::check_id;

/// The last second of the year 9999. Later ends count as this one, so that no arithmetic overflows.
const LAST_MOMENT: f64 = 253_402_300_799.0;

/// The unit in which a time would be one of our days (2001 to 2100), if that unit is finer than a
/// second. A far moment for which there is no such unit is simply far away.
pub(super) fn finer_than_seconds(time: f64) -> Option<&'static str> {
    let units = [("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)];
    units.into_iter().find(|(_, of)| (1e9..4.2e9).contains(&(time / of))).map(|(name, _)| name)
}

/// The settings that a token is checked against.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Accepted `iss` values; if empty, `iss` is not checked.
    pub issuer: Vec<String>,
    /// Accepted `aud` values; if empty, `aud` is not checked.
    pub audience: Vec<String>,
    /// Clock difference to forgive, in seconds.
    pub leeway: u64,
    pub require_exp: bool,
    pub user_claim: Vec<UserClaim>,
    pub max_token_bytes: usize,
    /// The claims that access rules look at.
    pub kept_claims: Vec<String>,
    /// Most entries that the `channels` claim may have.
    pub max_granted: usize,
}

impl Settings {
    /// True if a check or a rule looks at this claim, or into it: such a claim must be unique, and
    /// its texts must be texts.
    pub(super) fn reads(&self, name: &str) -> bool {
        let always = ["exp", "nbf", "iat", "jti", "iss", "aud", "channel", "channels"];
        always.contains(&name)
            || self.user_claim.iter().any(|claim| claim.reads(name))
            || self.kept_claims.iter().any(|kept| kept == name)
    }
}

/// Where a token holds the user's id: a claim's name, or a path into objects (`user.id`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserClaim(pub String);

impl UserClaim {
    pub(super) fn find<'v>(&self, claims: &'v Map<String, Value>) -> Option<&'v Value> {
        if let Some(value) = present(claims, &self.0) {
            return Some(value);
        }

        let mut path = self.0.split('.');
        let mut value = claims.get(path.next()?)?;
        for name in path {
            value = value.get(name)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    /// True if this claim may hold the user's id, or a part of the path to it.
    pub(super) fn reads(&self, name: &str) -> bool {
        self.0 == name || self.0.split('.').next() == Some(name)
    }
}

/// Makes claims that pass these settings, as far as claims alone can.
pub(super) fn made(
    settings: &Settings,
    user: &str,
    (now, expires_at): (u64, u64),
) -> Map<String, Value> {
    let mut claims = Map::new();
    claims.insert("sub".to_owned(), user.into());
    claims.insert("iat".to_owned(), now.into());
    claims.insert("exp".to_owned(), expires_at.into());
    for (name, accepted) in [("iss", &settings.issuer), ("aud", &settings.audience)] {
        let first = accepted.first().map(|value| (name.to_owned(), value.as_str().into()));
        claims.extend(first);
    }

    let is_found = settings.user_claim.iter().any(|claim| claim.find(&claims).is_some());
    if !is_found && let Some(UserClaim(path)) = settings.user_claim.first() {
        let mut names = path.rsplit('.');
        let last = names.next().unwrap_or_default();
        let value = names.fold((last, Value::from(user)), |(name, value), outer| {
            (outer, Value::Object(Map::from_iter([(name.to_owned(), value)])))
        });
        claims.insert(value.0.to_owned(), value.1);
    }
    claims
}

/// Returns a claim that is there. Many libraries write null for one that is not, so null
/// counts as absent.
fn present<'v>(claims: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    claims.get(name).filter(|value| !value.is_null())
}

/// The checks that follow the signature, in order.
pub(super) fn check(
    claims: &Map<String, Value>,
    settings: &Settings,
    now: u64,
) -> Result<Identity, Reason> {
    let expires_at = match numeric_date(claims, "exp")? {
        None if settings.require_exp => return Err(Reason::ExpMissing),
        None => None,
        // "on or after" (RFC 7519 section 4.1.4): equal to now is expired.
        Some(exp) if now as f64 >= exp + settings.leeway as f64 => return Err(Reason::Expired),
        Some(exp) => Some(exp.min(LAST_MOMENT) as u64),
    };

    if let Some(nbf) = numeric_date(claims, "nbf")?
        && now as f64 + (settings.leeway as f64) < nbf
    {
        return Err(Reason::NotYetValid);
    }

    issuer(claims, &settings.issuer)?;
    audience(claims, &settings.audience)?;

    let user = settings.user_claim.iter().find_map(|c| c.find(claims));
    let user = user.ok_or(Reason::UserMissing)?;
    let user = id_text(user).filter(|user| check_id(user).is_ok()).ok_or(Reason::ClaimInvalid)?;

    let kept = |name: &String| Some((name.as_str().into(), claims.get(name)?.clone()));
    Ok(Identity {
        user: user.as_ref().into(),
        expires_at,
        token: token_id(claims)?,
        granted: granted(claims, settings.max_granted)?,
        claims: settings.kept_claims.iter().filter_map(kept).collect(),
    })
}

/// An id as issuers write it: a text, or a whole number, which becomes its decimal text. A number
/// that the JSON reader holds as a float (a fraction, an exponent, more than 64 bits) may have been
/// rounded, so it is no id.
#[must_use]
pub fn id_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(n) if !n.is_f64() => Some(Cow::Owned(n.to_string())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

/// A NumericDate: a JSON number of seconds, whole or not (RFC 7519 section 2), also before 1970 and
/// far ahead. Milliseconds are refused: a token that should end would never end.
fn numeric_date(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, Reason> {
    match present(claims, name) {
        None => Ok(None),
        Some(Value::Number(n)) => match n.as_f64() {
            Some(t) if finer_than_seconds(t).is_none() => Ok(Some(t)),
            _ => Err(Reason::ClaimInvalid),
        },
        Some(_) => Err(Reason::ClaimInvalid),
    }
}

/// Longest `jti` in bytes.
const MAX_JTI_BYTES: usize = 256;

/// Reads `jti` and `iat` (RFC 7519 sections 4.1.6 and 4.1.7). An `iat` in the future is no reason
/// to refuse a token: issuers have `nbf` for that.
fn token_id(claims: &Map<String, Value>) -> Result<TokenId, Reason> {
    let jti = match present(claims, "jti").map(id_text) {
        None => None,
        Some(Some(jti)) if jti.len() <= MAX_JTI_BYTES => Some(jti.as_ref().into()),
        Some(_) => return Err(Reason::ClaimInvalid),
    };
    Ok(TokenId { jti, issued_at: numeric_date(claims, "iat")?.map(|t| t as u64) })
}

fn issuer(claims: &Map<String, Value>, accepted: &[String]) -> Result<(), Reason> {
    match present(claims, "iss") {
        _ if accepted.is_empty() => Ok(()),
        Some(Value::String(iss)) if accepted.contains(iss) => Ok(()),
        None | Some(Value::String(_)) => Err(Reason::IssuerMismatch),
        Some(_) => Err(Reason::ClaimInvalid),
    }
}

/// `aud` is a string or a list of strings (RFC 7519 section 4.1.3), and nothing else.
fn audience(claims: &Map<String, Value>, accepted: &[String]) -> Result<(), Reason> {
    if accepted.is_empty() {
        return Ok(());
    }

    let given: Vec<&str> = match present(claims, "aud") {
        None => return Err(Reason::AudienceMismatch),
        Some(Value::String(aud)) => vec![aud],
        Some(Value::Array(list)) => {
            list.iter().map(Value::as_str).collect::<Option<_>>().ok_or(Reason::ClaimInvalid)?
        }
        Some(_) => return Err(Reason::ClaimInvalid),
    };

    if given.iter().any(|aud| accepted.iter().any(|a| a == aud)) {
        Ok(())
    } else {
        Err(Reason::AudienceMismatch)
    }
}

/// The `channels` claim: the names that `granted` rules look at. Entries that are not channel names
/// grant nothing. A list above the limit refuses the token; it is never cut in silence.
fn granted(
    claims: &Map<String, Value>,
    max: usize,
) -> Result<Box<[crate::channel::ChannelName]>, Reason> {
    match claims.get("channels") {
        None | Some(Value::Null) => Ok(Box::default()),
        Some(Value::Array(list)) if list.len() <= max => {
            Ok(list.iter().filter_map(|v| v.as_str()?.parse().ok()).collect())
        }
        Some(_) => Err(Reason::ClaimInvalid),
    }
}
