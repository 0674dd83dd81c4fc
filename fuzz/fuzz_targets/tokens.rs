//! Tokens: no text panics or is accepted, whatever the doctor makes of it. A text that is signed
//! with the right key is accepted only while it is valid. The doctor's statements about a text's
//! form are true of the text, also for good tokens that were damaged.
#![no_main]
#![expect(clippy::unwrap_used, reason = "a target fails by panicking")]

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tollgate::auth::diagnose::{Report, examine};
use tollgate::auth::{
    Algorithm, Encoding, Key, KeySet, Secret, SessionCookie, Settings, UserClaim, Verifier,
};

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "Zk3#vQ9!mT7xW2pL8rY5nB6cJ4hD1gFs-fuzz";

fn key() -> Key {
    Key::new(None, vec![Algorithm::Hs256], Secret::new(SECRET, Encoding::Utf8).unwrap())
}

fn verifier(session: Option<SessionCookie>) -> Verifier {
    let settings = Settings {
        issuer: vec![],
        audience: vec!["rt".into()],
        leeway: 5,
        require_exp: true,
        user_claim: vec![UserClaim("user.id".into()), UserClaim("sub".into())],
        max_token_bytes: 4096,
        kept_claims: vec!["plan".into()],
        max_granted: 8,
    };
    Verifier::new(settings, KeySet::new(vec![key()], vec![])).with_session(session)
}

fn verifiers() -> &'static [Verifier; 2] {
    static VERIFIERS: OnceLock<[Verifier; 2]> = OnceLock::new();
    VERIFIERS.get_or_init(|| {
        let names = vec!["authjs.session-token".to_owned()];
        let session = SessionCookie { names, secrets: vec![SECRET.to_owned()] };
        [verifier(None), verifier(Some(session))]
    })
}

/// The object in a part of a token, as another reader sees it.
fn object(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
}

/// Checks a cause's statement about a text once more.
fn holds(cause: &str, text: &str) -> bool {
    let trimmed = text.trim();
    let parts: Vec<&str> = trimmed.split('.').collect();
    let header = object(parts[0]);
    let is_text = |name: &str| header.as_ref().is_some_and(|h| h[name].is_string());

    match cause {
        "token_truncated" => match parts[..] {
            [only] => only.starts_with("eyJ") && object(only).is_none(),
            [_, payload] => object(payload).is_none(),
            [_, _, signature] => !signature.is_empty() && signature.len() < 86,
            _ => false,
        },
        "no_token" => trimmed.is_empty(),
        "js_value" => trimmed.starts_with("[object ") || trimmed.len() < 10,
        "not_a_jwt" => parts.len() != 3,
        "part_count" => parts.len() != 3,
        "non_ascii" => !text.is_ascii(),
        "invalid_character" => {
            trimmed.chars().any(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.'))
        }
        "empty_signature" => trimmed.ends_with('.'),
        "alg_missing" => !is_text("alg"),
        "nextauth_cookie_chunk" => is_text("enc"),
        "nextauth_v4_session" | "authjs_v5_session" => {
            parts.len() == 5 && is_text("enc") && header.is_some_and(|h| h["alg"] == "dir")
        }
        "bearer_prefix" => text.contains(' '),
        "token_whitespace" | "plus_to_space" => text.contains(char::is_whitespace),
        "token_quoted" => trimmed.ends_with(['"', '\'', '`']),
        "url_encoded" => text.contains('%'),
        "base64_padding" | "cookie_pair" => text.contains('='),
        "standard_base64" => text.contains(['+', '/']),
        "json_wrapped" => trimmed.starts_with('{'),
        "text_around" => trimmed.contains("eyJ"),
        // Causes that need a key to be true are checked with it, in the gateway's own tests.
        _ => true,
    }
}

fn look(verifier: &Verifier, text: &str) -> Report {
    let report = examine(verifier, text, &[], NOW);
    let said = format!("{}{}", report.text(), serde_json::to_string(&report).expect("JSON"));
    assert!(!said.contains(&SECRET[5..20]), "a part of the secret");
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");

    let cause = report.cause.unwrap_or_default();
    assert!(holds(cause, text), "{cause} is not so: {text:?}");
    report
}

/// A good token that was damaged.
fn damaged(how: u8, at: usize, text: &str) -> String {
    let claims = json!({"sub": "u1", "aud": "rt", "exp": NOW + 60});
    let good = key().sign(&claims, None).expect("a secret signs");
    let (head, cache) = good.split_at(at % good.len());

    match how % 6 {
        0 => head.to_owned(),
        1 => format!("{head}{text}{cache}"),
        2 => format!("{head}{text}{}", cache.get(1..).unwrap_or_default()),
        3 => format!("{text}{good}"),
        4 => format!("{good}{text}"),
        _ => good.replacen('.', text, 1),
    }
}

/// Checks the text as claims, signed with the right key.
fn signed(v: &Verifier, text: &str) {
    let Ok(claims @ Value::Object(_)) = serde_json::from_str::<Value>(text) else { return };
    let token = key().sign(&claims, None).expect("a secret signs");

    let report = look(v, &token);
    assert!(report.cause != Some("token_truncated"), "it is whole");
    if let Ok(identity) = v.verify(&token, NOW) {
        assert!(claims["exp"].as_f64().is_some_and(|exp| exp + 5.0 > NOW as f64));
        assert!(!identity.user.is_empty());
        assert!(report.accepted());
    } else {
        assert!(!report.accepted());
    }
}

// Each run makes one report: the doctor tries hundreds of keys.
fuzz_target!(|input: (u8, u16, &str)| {
    let (how, at, text) = input;
    let v = &verifiers()[usize::from(how % 2)];
    assert!(v.verify(text, NOW).is_err(), "a token without our signature");

    match how / 64 {
        0 => assert!(!look(v, text).accepted()),
        1 => signed(v, text),
        _ => {
            let damaged = damaged(how / 2, usize::from(at), text);
            assert_eq!(look(v, &damaged).accepted(), v.verify(&damaged, NOW).is_ok());
        }
    }
});
