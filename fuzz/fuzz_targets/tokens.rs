//! Tokens: no text panics or is accepted, whatever the doctor makes of it; and what is signed with the
//! right key is accepted only while it is valid.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tollgate::auth::{Algorithm, Encoding, Key, KeySet, Secret, Settings, UserClaim, Verifier};
use tollgate::auth::diagnose::examine;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "Zk3#vQ9!mT7xW2pL8rY5nB6cJ4hD1gFs-fuzz";

fn key() -> Key {
    Key::new(None, vec![Algorithm::Hs256], Secret::new(SECRET, Encoding::Utf8).unwrap())
}

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
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
        Verifier::new(settings, KeySet::new(vec![key()], vec![]))
    })
}

fuzz_target!(|text: &str| {
    let v = verifier();
    assert!(v.verify(text, NOW).is_err(), "a token without our signature");
    let report = examine(v, text, &[], NOW);
    assert!(!report.accepted());
    let said = format!("{}{}", report.text(), serde_json::to_string(&report).expect("JSON"));
    assert!(!said.contains(&SECRET[5..20]), "a part of the secret");
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
    // The same text as claims, signed with the right key.
    let Ok(claims @ Value::Object(_)) = serde_json::from_str::<Value>(text) else { return };
    let token = key().sign(&claims, None).expect("a secret signs");
    let report = examine(v, &token, &[], NOW);
    if let Ok(identity) = v.verify(&token, NOW) {
        assert!(claims["exp"].as_f64().is_some_and(|exp| exp + 5.0 > NOW as f64));
        assert!(!identity.user.is_empty() && !identity.user.contains(':'));
        assert!(report.accepted());
    } else {
        assert!(!report.accepted());
    }
});
