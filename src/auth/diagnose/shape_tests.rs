//! Texts that are not tokens: the diagnosis names a defect that each of them has, and none that it
//! does not have.

use proptest::prelude::*;
use serde_json::json;

use super::tests::{NOW, TEXT, b64, diagnosed, good, hs256, secret_key, signed, token, verifier};
use super::*;
use crate::auth::Encoding;

fn v() -> Verifier {
    verifier(vec![secret_key(TEXT, Encoding::Utf8)])
}

fn cause(token: &str) -> String {
    diagnosed(&v(), token).0
}

const HS: &str = r#"{"alg":"HS256"}"#;

#[test]
fn field_d9_what_is_wrong_with_a_malformed_token_is_named() {
    let payload = good().to_string();
    let ours = |header: &str, payload: &str| signed(header, payload.as_bytes(), TEXT.as_bytes());
    let token = hs256(TEXT.as_bytes());
    let parts: Vec<&str> = token.split('.').collect();
    let [header, body, signature] = parts[..] else { panic!("three") };

    let deep = format!("{{\"userId\":{}1{}}}", "[".repeat(500), "]".repeat(500));
    let behind = format!("{payload} x");
    let stray = |part: &str| {
        const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = ALPHABET.find(&part[part.len() - 1..]).unwrap();
        format!("{}{}", &part[..part.len() - 1], &ALPHABET[last + 1..last + 2])
    };
    let session = json!({"alg": "dir", "enc": "A256GCM"}).to_string();

    for (what, token, cause) in [
        ("no alg", ours("{}", &payload), "alg_missing"),
        ("alg null", ours(r#"{"alg":null}"#, &payload), "alg_missing"),
        ("alg a list", ours(r#"{"alg":["HS256"]}"#, &payload), "alg_missing"),
        ("kid a number", ours(r#"{"alg":"HS256","kid":7}"#, &payload), "header_invalid"),
        ("header a list", ours("[]", &payload), "header_invalid"),
        ("header a text", ours("\"HS256\"", &payload), "header_invalid"),
        ("header empty", format!(".{body}.{signature}"), "header_invalid"),
        ("header cut", format!("{}.{body}.{signature}", &header[..8]), "header_invalid"),
        ("alg twice", ours(r#"{"alg":"HS256","alg":"none"}"#, &payload), "duplicate_key"),
        ("payload a list", ours(HS, "[1]"), "payload_invalid"),
        ("payload null", ours(HS, "null"), "payload_invalid"),
        ("payload empty", ours(HS, ""), "payload_invalid"),
        ("payload and more", ours(HS, &behind), "payload_invalid"),
        ("two payloads", ours(HS, &format!("{payload}{payload}")), "payload_invalid"),
        ("payload unfinished", ours(HS, &payload[..12]), "payload_invalid"),
        ("NaN", ours(HS, r#"{"sub":"u1","exp":NaN}"#), "payload_invalid"),
        ("NUL in the payload", ours(HS, "{\"sub\":\"u\0\"}"), "payload_invalid"),
        ("half a pair", ours(HS, r#"{"sub":"\ud800","exp":1}"#), "payload_invalid"),
        ("not UTF-8", signed(HS, b"{\"x\":\"\xff\"}", TEXT.as_bytes()), "payload_invalid"),
        ("a claim twice", ours(HS, r#"{"sub":"a","sub":"b","exp":1}"#), "duplicate_key"),
        ("too deep", ours(HS, &deep), "too_deep"),
        ("one part", header.to_owned(), "part_count"),
        ("two parts", format!("{header}.{body}"), "part_count"),
        ("four parts", format!("{token}.x"), "part_count"),
        ("six parts", format!("{header}.{body}.a.b.c.d"), "part_count"),
        ("five parts", format!("{token}.a.b"), "part_count"),
        ("a session id", "s%3Aj9vK2mZr7Tn4Wb8Lc1Ys6Hd3".into(), "not_a_jwt"),
        ("an opaque token", "8f14e45fceea167a5a36dedd4bea2543".into(), "not_a_jwt"),
        ("a publishable key", "sb_publishable_0123456789".into(), "not_a_jwt"),
        ("a host", "www.example".into(), "not_a_jwt"),
        ("a comma within", format!("{},{}", &token[..20], &token[20..]), "invalid_character"),
        ("no signature", format!("{header}.{body}."), "empty_signature"),
        ("stray bits", format!("{header}.{body}.{}", stray(signature)), "base64_noncanonical"),
        ("short", format!("{header}.{body}.AAAA"), "signature_length"),
        ("long", format!("{header}.{body}.{}", "A".repeat(64)), "signature_length"),
        ("behind", format!("{token}AAAA"), "trailing_characters"),
        ("one behind", format!("{token}A"), "trailing_characters"),
        ("cut in the payload", token[..header.len() + 9].to_owned(), "token_truncated"),
        ("cut in the header", header[..10].to_owned(), "token_truncated"),
        ("cut in the signature", token[..token.len() - 9].to_owned(), "token_truncated"),
        (
            "a cookie's chunk",
            format!("{}..abc.def", b64(session.as_bytes())),
            "nextauth_cookie_chunk",
        ),
    ] {
        assert_eq!(self::cause(&token), cause, "{what}: {token:.80}");
    }
}

/// Regression: whole tokens within other text were refused for their characters, or as encrypted.
#[test]
fn other_text_around_a_token_is_told() {
    let token = hs256(TEXT.as_bytes());
    for (what, token, cause) in [
        ("an address", "10.0.0.1".into(), "not_a_jwt"),
        ("NUL", format!("{}\0{}", &token[..20], &token[20..]), "invalid_character"),
        ("NUL behind", format!("{token}\0"), "invalid_character"),
        ("an address", format!("wss://rt.example/ws?token={token}&format=envelope"), "text_around"),
        ("a header", format!("Authorization: Bearer {token}"), "text_around"),
        ("quotes around all", format!("\"Bearer {token}\""), "text_around"),
        ("nested", format!("{{\"data\":{{\"token\":\"{token}\"}}}}"), "text_around"),
        ("percent", format!("Bearer%20{token}"), "text_around"),
        ("the subprotocol", format!("bearer.{token}"), "text_around"),
        ("two", format!("{token},{token}"), "text_around"),
        ("two lines", format!("{token}\n{token}"), "text_around"),
    ] {
        assert_eq!(self::cause(&token), cause, "{what}: {token:.80}");
    }
}

/// The other half of D8: such a token is good, and if something else is wrong with it,
/// that is named.
#[test]
fn field_d8_exotic_json_is_not_called_cut_off() {
    let odd = format!(r#"{{"x":1e400,"name":"\ud83d","sub":"u1","exp":{}}}"#, NOW + 60);
    let report = examine(&v(), &signed(HS, odd.as_bytes(), TEXT.as_bytes()), &[], NOW);
    assert!(report.accepted(), "{report:?}");
    let report = examine(&v(), &signed(HS, odd.as_bytes(), b"your-secret-key"), &[], NOW);
    assert_eq!(report.cause, Some("secret_default"));
    let quoted = format!("\"{}\"", signed(HS, odd.as_bytes(), TEXT.as_bytes()));
    assert_eq!(cause(&quoted), "token_quoted");
}

#[test]
fn field_d7_only_what_would_be_our_days_counts_milliseconds() {
    let at = |exp: Value| {
        cause(&token(&json!({"alg": "HS256"}), &json!({"sub": "u1", "exp": exp}), TEXT.as_bytes()))
    };

    for exp in [json!(NOW * 1000), json!(NOW * 1_000_000), json!(1.8e18)] {
        assert_eq!(at(exp.clone()), "exp_in_milliseconds", "{exp}");
    }

    assert_eq!(at(json!(253_402_300_799u64)), "", "accepted");
    assert_eq!(at(json!(1e99)), "", "accepted");
    assert_eq!(at(json!(3600)), "exp_is_duration");
    assert_eq!(at(json!(1_000_000_000)), "token_expired");
    assert_eq!(at(json!(-1)), "token_expired");
    assert_eq!(at(json!(0)), "token_expired");

    // Far moments are written without the help of a calendar.
    let far = token(
        &json!({"alg": "HS256"}),
        &json!({"sub": "u1", "exp": NOW + 60, "nbf": 1e14}),
        TEXT.as_bytes(),
    );
    assert_eq!(cause(&far), "nbf_in_future");
}

/// True if a cause that speaks of the token's form can be seen in the text.
fn holds(cause: &str, token: &str) -> bool {
    let parts: Vec<&str> = token.trim().split('.').collect();
    let header = json::header(parts[0]);

    match cause {
        "token_truncated" => match parts[..] {
            [only] => header.is_err() && only.starts_with("eyJ"),
            [_, payload] => json::object(payload, &|_| false).is_err(),
            [_, _, signature] => signature.len() < 43,
            _ => false,
        },
        "empty_signature" => token.ends_with('.'),
        "part_count" => parts.len() != 3,
        "alg_missing" => !header.is_ok_and(|h| h.get("alg").is_some_and(Value::is_string)),
        "text_around" => {
            token.chars().any(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(c))
                || parts.len() != 3
                || !token.starts_with("eyJ")
        }
        "header_invalid" => {
            header.map_or(true, |h| h.get("kid").is_some_and(|kid| !kid.is_string()))
        }
        "invalid_character" => {
            token.chars().any(|c| !c.is_ascii_alphanumeric() && !"-_.".contains(c))
        }
        "non_ascii" => !token.is_ascii(),
        "not_a_jwt" => header.is_err(),
        "no_token" => token.trim().is_empty(),
        "signature_length" => parts.len() == 3 && parts[2].len() != 43,
        "trailing_characters" => parts[2].len() > 43,
        "duplicate_key" => token.len() > 20,
        _ => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A token that is cut anywhere is reported as cut, or with the part that is missing, and as
    /// nothing else.
    #[test]
    fn wherever_a_token_is_cut_the_cause_is_true(at in 0usize..200) {
        let token = hs256(TEXT.as_bytes());
        let cut = &token[..at.min(token.len() - 1)];
        let found = cause(cut);
        let allowed = [
            "no_token", "not_a_jwt", "token_truncated", "part_count", "empty_signature",
            "signature_length",
        ];
        prop_assert!(allowed.contains(&found.as_str()) && holds(&found, cut), "{found}: {cut}");
        if cut.starts_with("eyJ") && !cut.ends_with('.') && cut.split('.').count() < 3 {
            prop_assert!(found != "not_a_jwt", "{found}: {cut}");
        }
    }

    /// One character is changed, taken out or put in: every cause that speaks of the form is true.
    #[test]
    fn whatever_is_done_to_a_token_the_cause_is_true(
        at in 0usize..150, put in any::<char>(), how in 0u8..4, wrong in any::<bool>(),
    ) {
        let secret: &[u8] = if wrong { b"quite another secret of some length" } else { TEXT.as_bytes() };
        let mut chars: Vec<char> = hs256(secret).chars().collect();
        let at = at.min(chars.len() - 1);
        match how {
            0 => chars[at] = put,
            1 => chars.insert(at, put),
            2 => drop(chars.remove(at)),
            _ => chars.push(put),
        }
        let token: String = chars.into_iter().collect();
        let found = cause(&token);
        prop_assert!(holds(&found, &token), "{found}: {token:?}");
    }

    /// Whatever is signed as header and payload, no cause calls it cut off.
    #[test]
    fn whatever_is_signed_is_not_called_cut_off(
        header in prop_oneof![Just(HS.to_owned()), ".{0,30}", "\\{\"alg\":.{0,20}\\}"],
        payload in prop_oneof![Just(good().to_string()), ".{0,40}", "\\{\"sub\":.{0,20}\\}"],
    ) {
        let token = signed(&header, payload.as_bytes(), TEXT.as_bytes());
        let found = cause(&token);
        prop_assert!(found != "token_truncated" && found != "not_a_jwt", "{found}: {header} {payload}");
        prop_assert!(holds(&found, &token), "{found}: {header} {payload}");
    }
}
