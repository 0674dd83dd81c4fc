//! Damage that made a token unreadable on its way. Each repair is tried, and is named if its result
//! has the shape of a token.
//!
//! Not here: texts that no repair helps (`shape`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::Value;

use super::causes::{Cause, Side};
use super::finding::{Finding, shown};
use crate::auth::json;

/// True if the text has the shape of a token: three parts, the first two JSON objects in base64url,
/// or five parts, the first the header of an encrypted token.
fn is_token(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let is_object = |part: &str| json::object(part, &|_| false).is_ok();
    match parts[..] {
        [header, payload, _] => is_object(header) && is_object(payload),
        [header, _, _, _, _] => json::header(header).is_ok_and(|h| h.contains_key("enc")),
        _ => false,
    }
}

/// Recognises an empty text, or a JavaScript value in place of a token.
pub(super) fn no_token(text: &str) -> Option<Finding> {
    if text.is_empty() {
        return Some(finding(Cause::NoToken));
    }

    let values = ["undefined", "null", "NaN", "true", "false"];
    if values.contains(&text) || text.starts_with("[object ") {
        let what = format!("the token is the text {:?}: {}", shown(text), Cause::JsValue.fix());
        return Some(Finding::new(Cause::JsValue, Side::Issuer, what));
    }
    None
}

pub(super) fn finding(cause: Cause) -> Finding {
    Finding::new(cause, Side::Issuer, format!("{} {}", cause.meaning(), cause.fix()))
}

/// The damages that may have happened, each with the token as it would be without it. Only results
/// with the shape of a token count. Several repairs may fit, and only a key shows which is right.
pub(super) fn repairs(token: &str) -> Vec<(Cause, String)> {
    let trimmed = token.trim();
    let around = (Cause::TokenWhitespace, trimmed.to_owned());
    std::iter::once(around)
        .chain(wrapped(trimmed))
        .chain(alphabet(trimmed))
        .chain(within(trimmed))
        .filter(|(_, repaired)| repaired != token && is_token(repaired))
        .collect()
}

/// Most places in a text at which a token may begin.
const MAX_PLACES: usize = 16;

/// Whole tokens within the text: runs that begin like a token, up to a character that no token has.
fn within(text: &str) -> Vec<(Cause, String)> {
    // A control character behind a token does not count as text around it.
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return Vec::new();
    }
    let is_of_a_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');

    let places = text.match_indices("eyJ").take(MAX_PLACES);
    let runs = places.map(|(at, _)| text[at..].split(|c| !is_of_a_token(c)).next());
    let runs = runs.flatten().map(|run| run.trim_end_matches('.').to_owned());
    runs.map(|run| (Cause::TextAround, run)).collect()
}

/// Undoes what surrounds the token: a scheme, quotes, JSON, a cookie's name, percent-encoding.
fn wrapped(text: &str) -> Vec<(Cause, String)> {
    let mut all = Vec::new();
    let mut bare = text;

    for _ in 0..4 {
        let Some((scheme, rest)) = bare.split_once(' ') else { break };
        let word = scheme.to_ascii_lowercase();
        if !["bearer", "jwt", "token"].contains(&word.trim_end_matches(':')) {
            break;
        }
        bare = rest.trim_start();
    }

    if bare != text {
        all.push((Cause::BearerPrefix, bare.to_owned()));
    }

    for quote in ['"', '\'', '`'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            all.push((Cause::TokenQuoted, inner.to_owned()));
        }
    }

    if let Some(inner) = text.strip_prefix("b'").and_then(|t| t.strip_suffix('\'')) {
        all.push((Cause::TokenQuoted, inner.to_owned()));
    }

    if let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(text) {
        let strings = fields.values().filter_map(Value::as_str);
        all.extend(strings.take(16).map(|s| (Cause::JsonWrapped, s.to_owned())));
    }

    if let Some((name, value)) = text.split_once('=')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        && !name.starts_with("eyJ")
    {
        let value = value.split(';').next().unwrap_or_default();
        all.push((Cause::CookiePair, value.to_owned()));
    }

    if text.contains('%') {
        let decoded = form_urlencoded::parse(format!("t={}", text.replace('+', "%2B")).as_bytes())
            .next()
            .map(|(_, v)| v.into_owned())
            .unwrap_or_default();
        let trimmed = decoded.trim().trim_matches('"').to_owned();
        all.push((Cause::UrlEncoded, trimmed));
    }

    all
}

/// Repairs the characters of the token.
fn alphabet(text: &str) -> Vec<(Cause, String)> {
    let mut all = Vec::new();
    let url_safe = |t: &str| t.replace('+', "-").replace('/', "_").replace('=', "");

    if text.contains('=') {
        all.push((Cause::Base64Padding, text.replace('=', "")));
    }

    if text.contains(['+', '/']) {
        all.push((Cause::StandardBase64, url_safe(text)));
    }

    if text.contains(char::is_whitespace) {
        let solid: String = text.split_whitespace().collect();
        all.push((Cause::TokenWhitespace, solid));
        // In these texts a blank stands for a `+`.

        let restored = text.replace(' ', "+");
        let whole =
            restored.split('.').all(|p| STANDARD_NO_PAD.decode(p.trim_end_matches('=')).is_ok());
        if whole {
            all.push((Cause::PlusToSpace, url_safe(&restored)));
        }
    }

    if !text.is_ascii() {
        all.push((Cause::NonAscii, text.chars().filter(char::is_ascii).collect()));
    }

    all
}
