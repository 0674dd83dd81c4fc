//! What happened to a token on its way, when it is not one any more: each repair is tried, and named
//! when what comes out has the shape of a token.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::causes::{Cause, Side};
use super::{Finding, shown};

/// A cause, and the token as it would be without it, where it can be repaired.
pub(super) struct Damage {
    pub(super) finding: Finding,
    pub(super) repaired: Option<String>,
}

impl Damage {
    fn new(cause: Cause, repaired: Option<String>) -> Self {
        let advice = format!("{} {}", cause.meaning(), cause.fix());
        Self { finding: Finding::new(cause, Side::Issuer, advice), repaired }
    }
}

/// Three parts, the first of which is a JSON object in base64url.
fn is_token(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let object = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
    };
    matches!(parts[..], [header, payload, _] if object(header).is_some() && object(payload).is_some())
        || matches!(parts[..], [header, _, _, _, _] if object(header).is_some())
}

pub(super) fn find(token: &str) -> Option<Damage> {
    let trimmed = token.trim();
    if trimmed.is_empty() {
        return Some(Damage::new(Cause::NoToken, None));
    }
    let values = ["undefined", "null", "NaN", "true", "false"];
    if values.contains(&trimmed) || trimmed.starts_with("[object ") {
        let mut damage = Damage::new(Cause::JsValue, None);
        damage.finding.advice =
            format!("the token is the text {:?}: {}", shown(trimmed), Cause::JsValue.fix());
        return Some(damage);
    }
    wrapped(trimmed)
        .into_iter()
        .chain(alphabet(trimmed))
        .find(|(_, repaired)| repaired != token && is_token(repaired))
        .map(|(cause, repaired)| Damage::new(cause, Some(repaired)))
        .or_else(|| cut_off(trimmed))
}

/// What stands around it.
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
    if let Ok(Value::Object(fields)) = serde_json::from_str(text) {
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

/// What its characters are.
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
        // Here a blank stands for a character; only the right one makes the JSON whole.
        let restored = text.replace(' ', "+");
        let whole =
            restored.split('.').all(|p| STANDARD_NO_PAD.decode(p.trim_end_matches('=')).is_ok());
        if whole {
            all.insert(0, (Cause::PlusToSpace, url_safe(&restored)));
        }
    }
    if !text.is_ascii() {
        all.push((Cause::NonAscii, text.chars().filter(char::is_ascii).collect()));
    }
    all
}

/// Parts are missing, or one of them does not end.
fn cut_off(text: &str) -> Option<Damage> {
    let parts: Vec<&str> = text.split('.').collect();
    let header = URL_SAFE_NO_PAD.decode(parts[0]).ok();
    let header: Option<Value> = header.and_then(|h| serde_json::from_slice(&h).ok());
    if let Some(header) = &header
        && header["alg"] == "dir"
        && parts.len() != 5
    {
        return Some(Damage::new(Cause::NextauthCookieChunk, None));
    }
    if !text.is_ascii() {
        return Some(Damage::new(Cause::NonAscii, None));
    }
    let begins = text.starts_with("eyJ");
    if begins && parts.len() <= 3 {
        let mut damage = Damage::new(Cause::TokenTruncated, None);
        let limit = [255, 256, 512, 1024, 2048, 3933, 3936, 4096].contains(&text.len());
        let hint = if limit { ", which is a common limit" } else { "" };
        damage.finding.advice = format!(
            "the token ends in the middle: {} characters came{hint}. {}",
            text.len(),
            Cause::TokenTruncated.fix()
        );
        return Some(damage);
    }
    None
}
