//! Session cookies. A cookie is found among whatever else a browser sends, whole or in chunks of
//! any length; it is opened only in the form in which it was made, and its content counts only
//! while it is valid.
#![no_main]

use std::sync::OnceLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tollgate::auth::diagnose::examine;
use tollgate::auth::{KeySet, SessionCookie, Settings, UserClaim, Verifier, session_cookie};
use tollgate::http::headers;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "Zk3#vQ9!mT7xW2pL8rY5nB6cJ4hD1gFs-fuzz";
const NAME: &str = "next-auth.session-token";
/// The most chunks that a cookie is read from.
const CHUNKS: usize = 16;

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let settings = Settings {
            issuer: vec![],
            audience: vec![],
            leeway: 5,
            require_exp: true,
            user_claim: vec![UserClaim("sub".into())],
            max_token_bytes: 4096,
            kept_claims: vec!["plan".into()],
            max_granted: 8,
        };

        let session =
            SessionCookie { names: vec![NAME.to_owned()], secrets: vec![SECRET.to_owned()] };
        Verifier::new(settings, KeySet::new(vec![], vec![])).with_session(Some(session))
    })
}

/// A text as NextAuth 4 seals it.
fn sealed(text: &str) -> String {
    let mut key = [0; 32];
    let info = [&b"NextAuth.js Generated Encryption Key"[..]];
    let prk = Salt::new(HKDF_SHA256, b"").extract(SECRET.as_bytes());
    let okm = prk.expand(&info, &AES_256_GCM).expect("a length");
    okm.fill(&mut key).expect("the same length");

    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("a key"));
    let header = URL_SAFE_NO_PAD.encode(br#"{"alg":"dir","enc":"A256GCM"}"#);
    let (iv, mut data) = ([7; 12], text.as_bytes().to_vec());
    let nonce = Nonce::assume_unique_for_key(iv);
    let aad = Aad::from(header.as_bytes());
    let tag = key.seal_in_place_separate_tag(nonce, aad, &mut data).expect("it is short");

    let [iv, data, tag] = [&iv[..], &data, tag.as_ref()].map(|b| URL_SAFE_NO_PAD.encode(b));
    format!("{header}..{iv}.{data}.{tag}")
}

fn good() -> &'static str {
    static GOOD: OnceLock<String> = OnceLock::new();
    GOOD.get_or_init(|| sealed(&json!({"sub": "u1", "exp": NOW + 60}).to_string()))
}

/// Checks that the good cookie is found in chunks, in any order, with other applications' cookies
/// around each.
fn in_chunks(how: &[u8], other: &[u8]) {
    if other.contains(&b';') || other.windows(9).any(|nine| nine == b"next-auth") {
        return;
    }

    let count = 1 + how.len() % CHUNKS;
    let mut ends: Vec<_> =
        how.iter().cycle().take(count - 1).enumerate().map(|(i, b)| usize::from(*b) + i).collect();
    ends.sort_unstable();

    let (mut rest, mut from, mut chunks) = (good(), 0, Vec::new());
    for end in ends {
        // No chunk is empty: a browser leaves an empty one where there was a longer cookie.
        let size = (end - from).clamp(1, rest.len() - (count - chunks.len() - 1));
        let (chunk, behind) = rest.split_at(size);
        chunks.push(chunk);
        (rest, from) = (behind, end);
    }
    chunks.push(rest);

    let mut pairs: Vec<_> = chunks.iter().enumerate().collect();
    pairs.rotate_left(how.first().map_or(0, |b| usize::from(*b) % count));
    if how.len() % 2 == 1 {
        pairs.reverse();
    }

    let mut line = format!("{NAME}=; ").into_bytes();
    for (number, chunk) in pairs {
        line.extend_from_slice(other);
        line.extend_from_slice(format!("; {NAME}.{number}={chunk};").as_bytes());
    }

    let Ok(value) = HeaderValue::from_bytes(&line) else { return };
    let map = HeaderMap::from_iter([(header::COOKIE, value)]);
    let pairs: Vec<_> = headers::cookies(&map).collect();
    let session = verifier().session().expect("it has one");
    assert_eq!(session.find(&pairs), [(NAME, good().to_owned())]);
}

/// Checks any Cookie header.
fn anything(line: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(line) else { return };
    let map = HeaderMap::from_iter([(header::COOKIE, value)]);
    let pairs: Vec<_> = headers::cookies(&map).collect();
    let found = verifier().session().expect("it has one").find(&pairs);

    assert!(found.len() <= 2, "whole and in chunks");
    for (name, token) in found {
        assert!(!token.is_empty() && token.len() <= line.len());
        let opened = verifier().verify_session(name, &token, NOW);
        assert!(opened.is_err() || token == good(), "not made with the secret");
    }
}

/// Checks the good cookie after it was damaged.
fn damaged(how: u8, at: usize, text: &str) {
    let (head, cache) = good().split_at(at % good().len());
    let token = match how % 5 {
        0 => head.to_owned(),
        1 => format!("{head}{text}{cache}"),
        2 => format!("{head}{text}{}", cache.get(text.len()..).unwrap_or_default()),
        3 => format!("{good}{text}", good = good()),
        _ => text.to_owned(),
    };

    let opened = verifier().verify_session(NAME, &token, NOW);
    assert_eq!(opened.is_ok(), token == good(), "{token:?}");
    assert!(token.len() <= session_cookie::MAX_BYTES || opened.is_err());

    // Only some runs ask the doctor, which tries hundreds of keys.
    if how >= 224 {
        let report = examine(verifier(), &token, &[], NOW);
        assert!(!report.accepted() || opened.is_ok());
        assert!(!report.text().contains(&SECRET[5..20]), "a part of the secret");
    }
}

/// Checks a text that the application sealed.
fn content(text: &str) {
    let Ok(identity) = verifier().verify_session(NAME, &sealed(text), NOW) else { return };
    let claims: Value = serde_json::from_str(text).expect("JSON");
    let exp = claims["exp"].as_f64().expect("an end");
    assert!(exp + session_cookie::TOLERANCE as f64 > NOW as f64);
    assert!(!identity.user.is_empty());
}

fuzz_target!(|input: (u8, u16, &[u8], &[u8])| {
    let (how, at, bytes, rest) = input;
    let text = String::from_utf8_lossy(rest);
    match how % 4 {
        0 => in_chunks(bytes, rest),
        1 => anything(rest),
        2 => damaged(how, usize::from(at), &text),
        _ => content(&text),
    }
});
