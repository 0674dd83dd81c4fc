//! What is wrong with the form of a text that is not a token, even after the repairs of `damage`.
//! The first defect is named; if several explanations are possible, none is.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::causes::{Cause, Side};
use super::finding::{Finding, Subject, shown};
use crate::auth::algorithm::{Algorithm, Family};
use crate::auth::json::{self, Defect};
use crate::auth::keys::Key;

/// Lengths at which database columns, cookies and headers cut.
const COMMON_LIMITS: [usize; 10] = [120, 128, 255, 256, 512, 1024, 2048, 3933, 3936, 4096];

pub(super) fn finding(cause: Cause, what: &str) -> Finding {
    Finding::new(cause, Side::Issuer, format!("{what}. {}", cause.fix()))
}

/// Names the first defect of a text without blanks around it.
pub(super) fn find(subject: &Subject<'_>, text: &str) -> Option<Finding> {
    if !text.is_ascii() {
        let other = text.chars().find(|c| !c.is_ascii()).unwrap_or_default();
        return Some(finding(
            Cause::NonAscii,
            &format!("the token contains {:?}", shown(&other.to_string())),
        ));
    }

    let parts: Vec<&str> = text.split('.').collect();
    let header = json::header(parts[0]);
    let is_encrypted = header.as_ref().is_ok_and(|h| h.contains_key("enc"));

    if header.is_err() && !text.starts_with("eyJ") && parts.len() != 3 {
        let what = match parts.len() {
            1 => "the text has no dots and does not begin like a JWT".to_owned(),
            n => format!("the text has {n} parts and does not begin like a JWT"),
        };
        return Some(finding(Cause::NotAJwt, &what));
    }

    if let Some(odd) = text.chars().find(|c| !is_of_a_token(*c)) {
        let at = text.find(odd).unwrap_or_default();
        let what = format!("the token contains the character {odd:?} at position {at}");
        return Some(finding(Cause::InvalidCharacter, &what));
    }

    if is_encrypted && parts.len() < 5 {
        let what = format!(
            "the header is that of an encrypted token, which has five parts, but {} arrived",
            parts.len()
        );
        return Some(finding(Cause::NextauthCookieChunk, &what));
    }

    match parts[..] {
        [only] => Some(alone(only, text)),
        [_, payload] => Some(unsigned(header.is_ok(), payload, text)),
        [_, payload, signature] => three(subject, header, (payload, signature), text),
        _ => Some(too_many(header.is_ok(), parts.len())),
    }
}

fn is_of_a_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// A single part that begins like a header.
fn alone(part: &str, text: &str) -> Finding {
    match json::header(part) {
        Ok(_) => finding(
            Cause::PartCount,
            "the token is only a header: payload and signature are missing",
        ),
        Err(_) if is_beginning(part) => truncated(text),
        Err(_) => finding(Cause::NotAJwt, "the text has no dots and is not a header either"),
    }
}

fn unsigned(has_header: bool, payload: &str, text: &str) -> Finding {
    if !has_header {
        let what = "the text has two parts, but the first is not a header (a JSON object in \
                    base64url)";
        return finding(Cause::NotAJwt, what);
    }
    if !payload.is_empty() && is_beginning(payload) {
        return truncated(text);
    }
    finding(Cause::PartCount, "the token has two parts instead of three: the signature is missing")
}

fn too_many(has_header: bool, count: usize) -> Finding {
    if has_header && count == 5 {
        let what = "the token has five parts, but its header names no enc, so it is not encrypted";
        return finding(Cause::PartCount, what);
    }
    if has_header {
        let what =
            format!("the token has {count} parts instead of three (or five, if it is encrypted)");
        return finding(Cause::PartCount, &what);
    }
    let what = format!(
        "the text has {count} parts, and the first is not a header (a JSON object in base64url)"
    );
    finding(Cause::NotAJwt, &what)
}

/// True if the part is the beginning of a JSON object and nothing more.
fn is_beginning(part: &str) -> bool {
    // A single character of a group of four is not a byte yet.
    let whole = &part[..part.len() - usize::from(part.len() % 4 == 1)];
    let bytes = lenient(whole).unwrap_or_default();
    bytes.starts_with(b"{") && json::object_of(&bytes, &|_| false) == Err(Defect::Ends)
}

/// Decodes base64url and ignores stray bits.
fn lenient(part: &str) -> Option<Vec<u8>> {
    let config = NO_PAD.with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&URL_SAFE, config).decode(part).ok()
}

pub(super) fn truncated(text: &str) -> Finding {
    let limit = if COMMON_LIMITS.contains(&text.len()) { ", which is a common limit" } else { "" };
    let what = format!("the token was cut off: {} characters arrived{limit}", text.len());
    finding(Cause::TokenTruncated, &what)
}

/// The defect of a text with three parts.
fn three(
    subject: &Subject<'_>,
    header: Result<Map<String, Value>, Defect>,
    (payload, signature): (&str, &str),
    text: &str,
) -> Option<Finding> {
    let header = match header {
        Ok(header) => header,
        Err(defect) => return Some(of_part("header", Cause::HeaderInvalid, defect)),
    };

    if !header.get("alg").is_some_and(Value::is_string) {
        let what = match header.get("alg") {
            None => "the header has no alg",
            Some(Value::Null) => "alg in the header is null",
            Some(_) => "alg in the header is not a string",
        };
        return Some(finding(Cause::AlgMissing, what));
    }

    if header.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Some(finding(Cause::HeaderInvalid, "kid in the header is not a string"));
    }

    if let Err(defect) = json::decode(signature) {
        let whole = &signature[..signature.len() - usize::from(signature.len() % 4 == 1)];
        let bytes = lenient(whole)?;
        let found = of_another_length(subject, &header, (&bytes, text));
        let odd = || of_part("signature", Cause::Base64Noncanonical, Defect::StrayBits);
        return found.or_else(|| (defect == Defect::StrayBits).then(odd));
    }

    // The signature was right, or the payload would not have been looked at.
    let defect = json::object(payload, &|name| subject.settings.reads(name)).err()?;
    Some(of_part("payload", Cause::PayloadInvalid, defect))
}

/// Names the defect of a part; `general` is the cause for defects without a cause of their own.
pub(super) fn of_part(part: &str, general: Cause, defect: Defect) -> Finding {
    let (cause, what) = match defect {
        Defect::Base64 => (general, format!("the token's {part} is not base64url")),
        Defect::StrayBits => (
            Cause::Base64Noncanonical,
            format!("the last character of the token's {part} has bits that must be zero"),
        ),
        Defect::Empty => (general, format!("the token's {part} is empty")),
        Defect::NotUtf8 => (general, format!("the token's {part} is not UTF-8")),
        Defect::Ends => (general, format!("the token's {part} is incomplete JSON")),
        Defect::NotJson => (
            general,
            format!(
                "the token's {part} is not JSON, or something follows the JSON (NaN, a comma, a \
                 second value)"
            ),
        ),
        Defect::NotObject => (general, format!("the token's {part} is JSON, but not an object")),
        Defect::Duplicate(name) => {
            (Cause::DuplicateKey, format!("{:?} occurs twice in the token's {part}", shown(&name)))
        }
        Defect::TooDeep(name) => (
            Cause::TooDeep,
            format!("{:?} in the token's {part} is nested more than 128 levels deep", shown(&name)),
        ),
        Defect::NotText(name) => (
            general,
            format!("{:?} in the token's {part} contains half of a surrogate pair", shown(&name)),
        ),
    };

    finding(cause, &what)
}

/// A signature with another length than its algorithm makes. Whether the token was cut off, or has
/// text behind it, is said only if one of our secrets proves it.
pub(super) fn of_another_length(
    subject: &Subject<'_>,
    header: &Map<String, Value>,
    (came, token): (&[u8], &str),
) -> Option<Finding> {
    let alg = header.get("alg").and_then(Value::as_str).and_then(Algorithm::named)?;
    let whole = match (alg, alg.family()) {
        (Algorithm::Hs256, _) => 32,
        (Algorithm::Hs384, _) => 48,
        (Algorithm::Hs512, _) => 64,
        (_, Family::P256 | Family::Ed25519) => 64,
        (_, Family::P384) => 96,
        (_, Family::P521) => 132,
        (_, Family::Hmac | Family::Rsa) => return None,
    };

    let (signed, part) = token.rsplit_once('.')?;
    let secrets = subject.keys.fixed().iter().filter_map(Key::secret);
    for tag in secrets.filter_map(|s| s.sign(alg, signed.as_bytes())) {
        let right = URL_SAFE_NO_PAD.encode(tag);
        if part.len() < right.len() && right.starts_with(part) {
            return Some(truncated(token));
        }
        if part.len() > right.len() && part.starts_with(&right) {
            let what = "the token verifies without the characters after its signature";
            return Some(finding(Cause::TrailingCharacters, what));
        }
    }

    let what = format!("the signature has {} bytes, but {} makes {whole}", came.len(), alg.name());
    (came.len() != whole).then(|| finding(Cause::SignatureLength, &what))
}
