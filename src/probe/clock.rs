//! Compares two clocks, the server's and ours, and the times in the token with them.
//!
//! Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::causes::Cause;
use super::report::{Checked, Trouble};

/// Seconds of difference that prove nothing: `Date` has whole seconds, and an answer takes time.
const TOLERANCE: i64 = 2;

/// A larger time counts milliseconds: in seconds it would be after the year 5138.
const MILLISECONDS: f64 = 1e11;

/// The server's clock as an answer states it, and ours when that answer arrived.
#[derive(Debug, Clone)]
pub(super) struct Clocks {
    pub(super) server: i64,
    pub(super) ours: i64,
    /// The server or proxy that stated it.
    pub(super) by: String,
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Clocks {
    /// Reads the `Date` of an answer that has just arrived.
    pub(super) fn read(date: Option<&str>, by: String) -> Option<Self> {
        let server = unix(httpdate::parse_http_date(date?).ok()?);
        Some(Self { server, ours: unix(SystemTime::now()), by })
    }
}

/// The numbers among the claims of a token, whoever signed it.
fn claims(token: &str) -> impl Fn(&str) -> Option<f64> {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let bytes = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    let claims = serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null);
    move |name: &str| claims[name].as_f64()
}

/// Compares the clocks, and the token's times with the server's clock.
pub(super) fn compare(clocks: &Clocks, token: Option<&str>) -> Checked<()> {
    let ahead = clocks.server - clocks.ours;
    let way = if ahead < 0 { "behind" } else { "ahead of" };
    let skew =
        format!("the server's clock is {} s {way} the doctor's ({})", ahead.abs(), clocks.by);

    let claim = claims(token.unwrap_or_default());
    let server = clocks.server as f64;
    let until =
        |at: f64| humantime::format_duration(Duration::from_secs((at - server).abs() as u64));

    let trouble = match (claim("exp"), claim("nbf"), claim("iat")) {
        (Some(exp), ..) if exp > MILLISECONDS => Some((Cause::TokenMilliseconds, "exp", exp)),
        (Some(exp), ..) if exp <= server => Some((Cause::TokenExpired, "exp", exp)),
        (_, Some(nbf), _) if nbf > server => Some((Cause::TokenNotYet, "nbf", nbf)),
        (.., Some(iat)) if iat > server + TOLERANCE as f64 => {
            Some((Cause::IssuerClock, "iat", iat))
        }
        _ => None,
    };

    if let Some((cause, name, at)) = trouble {
        let side = if at > server { "ahead of" } else { "behind" };
        let found = format!("{name} is {} {side} the server's clock; {skew}", until(at));
        return Err(Trouble::new(cause, found));
    }

    if ahead.abs() > TOLERANCE {
        return Err(Trouble::new(Cause::ClockSkew, skew));
    }

    let ends = claim("exp").map(|exp| format!("; the token expires in {}", until(exp)));
    Ok(((), skew + &ends.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    fn found(ahead: i64, claims: &str) -> Option<Cause> {
        let clocks = Clocks { server: 1_000_000 + ahead, ours: 1_000_000, by: String::new() };
        compare(&clocks, Some(&token(claims))).err().map(|trouble| trouble.cause)
    }

    #[test]
    fn clocks_and_claims_are_compared() {
        assert_eq!(found(2, r#"{"exp":1000100,"iat":999999,"nbf":1}"#), None);
        assert_eq!(found(0, "not JSON"), None);
        for (ahead, claims, cause) in [
            (3, r#"{"exp":1000100}"#, Cause::ClockSkew),
            (-60, r#"{"exp":1000100}"#, Cause::ClockSkew),
            (120, r#"{"exp":1000100}"#, Cause::TokenExpired),
            (0, r#"{"exp":1000000}"#, Cause::TokenExpired),
            (0, r#"{"exp":1000100000000}"#, Cause::TokenMilliseconds),
            (0, r#"{"nbf":1000001}"#, Cause::TokenNotYet),
            (0, r#"{"iat":1000003}"#, Cause::IssuerClock),
        ] {
            assert_eq!(found(ahead, claims), Some(cause), "{ahead} {claims}");
        }
    }

    #[test]
    fn a_date_is_read() {
        let clocks = Clocks::read(Some("Sun, 06 Nov 1994 08:49:37 GMT"), String::new());
        assert_eq!(clocks.map(|c| c.server), Some(784_111_777));
        assert!(Clocks::read(Some("yesterday"), String::new()).is_none());
        assert!(Clocks::read(None, String::new()).is_none());
    }
}
