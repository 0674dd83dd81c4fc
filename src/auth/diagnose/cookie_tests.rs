//! Session cookies that do not open. `tests/js/issuers` has those of the real libraries.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use serde_json::json;

use super::tests::{BASE64, NOW, TEXT, b64, good, hs256, secret_key, verifier};
use super::*;
use crate::auth::{Encoding, SessionCookie};

struct Bytes32;

impl hkdf::KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

/// A cookie as NextAuth 4 makes it.
fn next_auth_4(secret: &str) -> String {
    next_auth_4_with(secret, &good())
}

fn next_auth_4_with(secret: &str, claims: &Value) -> String {
    let mut key = [0; 32];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"").extract(secret.as_bytes());
    let info: &[&[u8]] = &[b"NextAuth.js Generated Encryption Key"];
    prk.expand(info, Bytes32).unwrap().fill(&mut key).unwrap();

    let header = b64(json!({"alg": "dir", "enc": "A256GCM"}).to_string().as_bytes());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let mut data = claims.to_string().into_bytes();
    let nonce = Nonce::assume_unique_for_key([7; 12]);
    let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&header), &mut data).unwrap();
    format!("{header}..{}.{}.{}", b64(&[7; 12]), b64(&data), b64(tag.as_ref()))
}

fn cookies(secret: &str) -> Verifier {
    let names = vec!["next-auth.session-token".to_owned()];
    verifier(vec![]).with_session(Some(SessionCookie { names, secrets: vec![secret.into()] }))
}

fn said(v: &Verifier, token: &str) -> (&'static str, Option<Side>, String) {
    let report = examine(v, token, &[], NOW);
    let text = format!("{}{}", serde_json::to_string(&report).unwrap(), report.text());
    assert!(!text.contains(&TEXT[..12]) && !text.contains(&BASE64[..12]), "a secret: {text}");
    (report.cause.unwrap_or_default(), report.side, report.advice.unwrap_or_default())
}

#[test]
fn field_d10_a_cookie_of_another_spelling_of_the_secret_is_explained() {
    assert!(examine(&cookies(TEXT), &next_auth_4(TEXT), &[], NOW).accepted());
    let quoted = format!("\"{TEXT}\"");
    let newline = format!("{TEXT}\n");

    for (what, ours, theirs, cause, side) in [
        ("ours quoted", &*quoted, TEXT, "secret_quoted", Side::Gateway),
        ("theirs quoted", TEXT, &*quoted, "secret_quoted", Side::Issuer),
        ("a newline", TEXT, &*newline, "secret_whitespace", Side::Issuer),
        ("a placeholder", TEXT, "your-nextauth-secret", "secret_default", Side::Issuer),
        ("ours is one", "your-nextauth-secret", TEXT, "secret_default", Side::Gateway),
        ("another", TEXT, BASE64, "unknown_key", Side::Issuer),
    ] {
        let (found, whose, advice) = said(&cookies(ours), &next_auth_4(theirs));
        assert_eq!((found, whose), (cause, Some(side)), "{what}: {advice}");
        assert!(advice.contains("NextAuth 4") || cause == "secret_default", "{what}: {advice}");
    }

    // A damaged cookie is repaired like a signed token.
    let (found, _, advice) = said(&cookies(TEXT), &format!("\"{}\"", next_auth_4(TEXT)));
    assert_eq!(found, "token_quoted");
    assert!(advice.contains("Apart from that"), "{advice}");
}

/// Regression: a cookie whose secret was right was reported as one that no secret opens.
#[test]
fn a_cookie_that_opens_is_not_said_to_be_anothers() {
    let claims = |name: &str, value: Value| {
        let mut claims = good();
        claims[name] = value;
        next_auth_4_with(TEXT, &claims)
    };

    let v = cookies(TEXT);
    for (cookie, reason, cause) in [
        (claims("jti", json!({})), "claim_invalid", None),
        (claims("exp", json!(NOW - 60)), "expired", Some("token_expired")),
        (claims("exp", json!(NOW * 1000)), "claim_invalid", Some("exp_in_milliseconds")),
    ] {
        let report = examine(&v, &cookie, &[], NOW);
        assert_eq!((report.reason, report.cause), (Some(reason), cause), "{report:?}");
    }

    let zipped = b64(br#"{"alg":"dir","enc":"A256GCM","zip":"DEF"}"#);
    let cookie = next_auth_4(TEXT);
    let zipped = cookie.replacen(cookie.split('.').next().unwrap(), &zipped, 1);
    assert_eq!(said(&v, &zipped).0, "crit_unsupported");
}

#[test]
fn field_d10_a_cookie_in_a_tokens_place_is_named_by_its_header() {
    let tokens = verifier(vec![secret_key(TEXT, Encoding::Utf8)]);

    for (secret, part) in [
        (TEXT, "It comes from your own application"),
        (&*format!("'{TEXT}'"), "wrapped in single quotes"),
        (BASE64, "None of the gateway's secrets"),
    ] {
        let (cause, side, advice) = said(&tokens, &next_auth_4(secret));
        assert_eq!((cause, side), ("nextauth_v4_session", Some(Side::Gateway)), "{advice}");
        assert!(advice.contains(part), "{advice}");
    }

    let cookie = next_auth_4(TEXT);
    let end = cookie.len() - 5;
    for cut in [&cookie[..end], &cookie[..end - 60], &cookie[..cookie.len() - 30]] {
        assert_eq!(said(&tokens, cut).0, "nextauth_cookie_chunk", "{cut}");
        assert_eq!(said(&cookies(TEXT), cut).0, "nextauth_cookie_chunk", "{cut}");
    }

    assert_eq!(said(&tokens, "a.b.c.d.e").0, "not_a_jwt");
    let other = b64(br#"{"alg":"dir","enc":"A256GCM","typ":"JWT"}"#);
    let other = cookie.replacen(cookie.split('.').next().unwrap(), &other, 1);
    assert_eq!(said(&tokens, &other).0, "encrypted_token", "nobody's by its header");
}

#[test]
fn field_d10_the_gateways_own_placeholder_is_said_first() {
    for weak in ["your-secret-key", "${NEXTAUTH_SECRET}", "changeme"] {
        let v = verifier(vec![secret_key(weak, Encoding::Utf8)]);
        let (cause, side, advice) = said(&v, &hs256(TEXT.as_bytes()));
        assert_eq!((cause, side), ("secret_default", Some(Side::Gateway)), "{weak}");
        assert!(advice.contains("the gateway's own secret (auth.keys[0])"), "{advice}");
    }
    let v = verifier(vec![secret_key("your-secret-key", Encoding::Utf8)]);
    let named = [NamedSecret { name: "JWT_SECRET".into(), text: TEXT.into() }];
    let report = examine(&v, &hs256(TEXT.as_bytes()), &named, NOW);
    assert!(report.advice.unwrap().contains("verifies with JWT_SECRET"));
}
