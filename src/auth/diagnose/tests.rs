use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;
use crate::auth::{Encoding, Key, KeySet, Secret, Settings, UserClaim, public_key::PublicKey};

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const BASE64: &str = "q8Xb0N7sJk2vV5tYwZr3uHc6mEoPaLdF9gTiRxKyQnA=";
pub(super) const TEXT: &str = "correct-horse-battery-staple-and-more-of-it";

fn settings() -> Settings {
    Settings {
        issuer: vec![],
        audience: vec![],
        leeway: 0,
        require_exp: true,
        user_claim: vec![UserClaim("userId".into()), UserClaim("sub".into())],
        max_token_bytes: 16384,
        kept_claims: vec![],
        max_granted: 4,
    }
}

pub(super) fn secret_key(text: &str, encoding: Encoding) -> Key {
    let secret = Secret::new(text, encoding).unwrap();
    Key::new(None, vec![Algorithm::Hs256], secret).named("auth.keys[0]")
}

pub(super) fn verifier(keys: Vec<Key>) -> Verifier {
    Verifier::new(settings(), KeySet::new(keys, vec![]))
}

pub(super) fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    signed(&header.to_string(), claims.to_string().as_bytes(), secret)
}

/// Signs exactly these texts.
pub(super) fn signed(header: &str, payload: &[u8], secret: &[u8]) -> String {
    use aws_lc_rs::hmac;
    let algorithm = if header.contains("HS384") {
        hmac::HMAC_SHA384
    } else if header.contains("HS512") {
        hmac::HMAC_SHA512
    } else {
        hmac::HMAC_SHA256
    };
    let signed = format!("{}.{}", b64(header.as_bytes()), b64(payload));
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", b64(tag.as_ref()))
}

pub(super) fn good() -> Value {
    json!({"sub": "u1", "exp": NOW + 60})
}

pub(super) fn hs256(secret: &[u8]) -> String {
    token(&json!({"alg": "HS256"}), &good(), secret)
}

/// Cause and side of a token. Fails if the report holds a part of a secret.
pub(super) fn diagnosed(verifier: &Verifier, token: &str) -> (String, &'static str) {
    let report = examine(verifier, token, &[], NOW);
    let said = format!("{}{}", serde_json::to_string(&report).unwrap(), report.text());
    for key in verifier.keys().fixed() {
        let Some(secret) = key.secret() else { continue };
        let text: Vec<char> = secret.text().chars().collect();
        for window in text.windows(9) {
            let part: String = window.iter().collect();
            assert!(!said.contains(&part), "a part of the secret in: {said}");
        }
    }
    let side = report.side.map_or("", Side::label);
    (report.cause.unwrap_or_default().to_owned(), side)
}

#[test]
fn keys_algorithms_and_other_secrets_are_explained() {
    let key = |kid: &str, text: &str| {
        let secret = Secret::new(text, Encoding::Utf8).unwrap();
        Key::new(Some(kid.into()), vec![Algorithm::Hs256], secret)
    };
    let two = || verifier(vec![key("k1", TEXT), key("k2", BASE64)]);
    let by = |kid: &str, alg: &str, secret: &str| {
        token(&json!({"alg": alg, "kid": kid}), &good(), secret.as_bytes())
    };
    let retired = verifier(vec![key("k1", TEXT).until(Some(NOW - 1))]);
    let cookie = session_key_v3(TEXT);

    for (what, verifier, token, cause) in [
        ("kid", two(), by("k1", "HS256", BASE64), "kid_mismatch"),
        ("unknown kid", two(), by("k3", "HS256", "other"), "kid_unknown"),
        ("unknown kid, our key", two(), by("k3", "HS256", TEXT), "kid_mismatch"),
        ("alg", two(), by("k1", "HS512", TEXT), "alg_mismatch"),
        ("retired", retired, by("k1", "HS256", TEXT), "secret_retired"),
        (
            "next-auth 3",
            two(),
            token(&json!({"alg": "HS512"}), &good(), &cookie),
            "nextauth_v3_session",
        ),
        ("rs", two(), token(&json!({"alg": "RS256"}), &good(), b"x"), "alg_asymmetric_token"),
        ("unknown alg", two(), token(&json!({"alg": "XY1"}), &good(), b"x"), "alg_unsupported"),
        ("none", two(), token(&json!({"alg": "None"}), &good(), b"x"), "alg_none"),
        (
            "crit",
            two(),
            token(&json!({"alg": "HS256", "crit": ["x"]}), &good(), b"x"),
            "crit_unsupported",
        ),
        ("b64", two(), token(&json!({"alg": "HS256", "b64": false}), &good(), b"x"), "b64_false"),
    ] {
        assert_eq!(diagnosed(&verifier, &token).0, cause, "{what}");
    }

    let named = [NamedSecret { name: "JWT_SECRET".into(), text: BASE64.into() }];
    for theirs in [BASE64.as_bytes().to_vec(), STANDARD.decode(BASE64).unwrap()] {
        let report = examine(
            &verifier(vec![secret_key(TEXT, Encoding::Utf8)]),
            &hs256(&theirs),
            &named,
            NOW,
        );
        assert_eq!(report.cause, Some("secret_other_variable"));
        assert!(report.advice.unwrap().contains("JWT_SECRET"));
    }
}

fn session_key_v3(secret: &str) -> Vec<u8> {
    crate::auth::session_cookie::next_auth_3_key(secret).unwrap()
}

#[test]
fn public_keys_are_explained() {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();

    let key = || {
        let key = PublicKey::from_der(spki.as_ref()).unwrap();
        verifier(vec![Key::new(None, vec![Algorithm::Es256], key)])
    };

    let signed = format!("{}.{}", b64(br#"{"alg":"ES256"}"#), b64(good().to_string().as_bytes()));
    let der = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let azure = format!(
        "{}.{}.{}",
        b64(br#"{"alg":"ES256","nonce":"abc"}"#),
        b64(br#"{"aud":"00000003-0000-0000-c000-000000000000"}"#),
        b64(&[1; 64])
    );
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD
            .encode(spki.as_ref())
            .as_bytes()
            .chunks(64)
            .map(|l| std::str::from_utf8(l).unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    );

    for (token, cause) in [
        (format!("{signed}.{}", b64(der.as_ref())), "es_der_signature"),
        (format!("{signed}.{}", b64(&[0; 64])), "es_zero_signature"),
        (format!("{signed}.{}", b64(&[7; 64])), "unknown_key"),
        (azure, "azure_graph_token"),
        (hs256(pem.as_bytes()), "public_key_as_hmac_secret"),
        (hs256(spki.as_ref()), "public_key_as_hmac_secret"),
        (hs256(b"a shared secret"), "alg_symmetric_token"),
        (hs256(b"secret"), "secret_default"),
    ] {
        assert_eq!(diagnosed(&key(), &token).0, cause, "{token}");
    }
}

#[test]
fn claims_are_explained() {
    let strict = Settings {
        issuer: vec!["https://tenant.example/".into()],
        audience: vec!["realtime".into()],
        user_claim: vec![UserClaim("userId".into())],
        ..settings()
    };
    let keys = KeySet::new(vec![secret_key(TEXT, Encoding::Utf8)], vec![]);
    let v = Verifier::new(strict, keys);

    let base = json!({"iss": "https://tenant.example/", "aud": "realtime", "userId": "u1", "exp": NOW + 60});
    let with = |name: &str, value: Value| {
        let mut claims = base.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = base.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };

    let mut renamed = without("userId");
    renamed["sub"] = json!("u1");
    let mut anon = without("userId");
    anon["role"] = json!("anon");
    let mut skewed = with("nbf", json!(NOW + 7200));
    skewed["iat"] = json!(NOW + 7200);
    let mut early = with("iat", json!(NOW * 1000));
    early["exp"] = json!(NOW - 5);
    let mut before = with("exp", json!(NOW - 5));
    before["iat"] = json!(NOW + 7200);
    let mut misplaced = without("exp");
    misplaced["expiresIn"] = json!("1h");

    for (claims, cause) in [
        (with("iss", json!("https://tenant.example")), "issuer_trailing_slash"),
        (with("iss", json!("http://tenant.example/")), "issuer_scheme"),
        (with("iss", json!("https://Tenant.example/")), "issuer_case"),
        (with("iss", json!("https://other.example/")), "issuer_other"),
        (without("iss"), "issuer_missing"),
        (with("aud", json!(["a", "b"])), "audience_other"),
        (without("aud"), "audience_missing"),
        (with("exp", json!(NOW * 1000)), "exp_in_milliseconds"),
        (with("exp", json!(3600)), "exp_is_duration"),
        (with("exp", json!("1800000060")), "exp_not_number"),
        (with("exp", json!(NOW - 5)), "token_expired"),
        (misplaced, "exp_missing"),
        (skewed, "clock_skew"),
        (with("nbf", json!(NOW + 30)), "nbf_in_future"),
        (renamed, "user_claim_other"),
        (anon, "wrong_token_kind"),
        (with("userId", json!(7.5)), "user_claim_unusable"),
        (with("userId", json!("a\nb")), "user_claim_unusable"),
        (with("userId", json!(["u1"])), "user_claim_unusable"),
        (early, "exp_in_milliseconds"),
        (before, "token_expired"),
        (with("channel", json!("room:1")), "wrong_token_kind"),
        // Another check refuses these: no cause is better than a wrong one.
        (with("jti", json!([5])), ""),
        (with("aud", json!({"x": 1})), ""),
        (with("channels", json!(["a", "b", "c", "d", "e", "f"])), ""),
    ] {
        let token = token(&json!({"alg": "HS256"}), &claims, TEXT.as_bytes());
        assert_eq!(diagnosed(&v, &token).0, cause, "{claims}");
    }
}

#[test]
fn damage_on_the_way_is_explained() {
    let v = verifier(vec![secret_key(TEXT, Encoding::Utf8)]);
    let good = hs256(TEXT.as_bytes());
    let cookie = "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..abc.def";

    for (token, cause) in [
        (String::new(), "no_token"),
        (format!("Bearer {good}"), "bearer_prefix"),
        (format!("Bearer Bearer {good}"), "bearer_prefix"),
        (format!("JWT {good}"), "bearer_prefix"),
        (format!("\"{good}\""), "token_quoted"),
        (format!("b'{good}'"), "token_quoted"),
        (format!("{{\"token\":\"{good}\"}}"), "json_wrapped"),
        (format!("token={good}; Path=/"), "cookie_pair"),
        ("undefined".into(), "js_value"),
        ("[object Promise]".into(), "js_value"),
        (good.replace('.', "%2E"), "url_encoded"),
        (format!("%22{good}%22"), "url_encoded"),
        (
            format!(
                "{}=.{}==.{}=",
                good.split('.').next().unwrap(),
                good.split('.').nth(1).unwrap(),
                good.split('.').nth(2).unwrap()
            ),
            "base64_padding",
        ),
        (format!("{}\n{}", &good[..20], &good[20..]), "token_whitespace"),
        (format!("{}\u{200b}{}", &good[..20], &good[20..]), "non_ascii"),
        (good[..good.len() / 2].to_owned(), "token_truncated"),
        (good[..30].to_owned(), "token_truncated"),
        // The rest of the signature may still be valid base64url, as one in sixteen is.
        (good[..good.len() - 3].to_owned(), "token_truncated"),
        // A short signature that is not the beginning of the right one proves no cut.
        (format!("{}.AA", good.rsplit_once('.').unwrap().0), "signature_length"),
        (format!("{good}\n"), "token_whitespace"),
        (cookie.to_owned(), "nextauth_cookie_chunk"),
        ("one two".into(), "not_a_jwt"),
    ] {
        assert_eq!(diagnosed(&v, &token).0, cause, "{token}");
    }

    let report = examine(&v, &format!("\"{good}\""), &[], NOW);
    assert!(report.advice.unwrap().contains("Apart from that, the token is valid"));

    // The other base64 alphabet is found if the payload has characters that it writes differently.
    let claims = json!({"sub": "u1", "exp": NOW + 60, "n": "???>>>~~~ÿÿÿ"});
    let text = token(&json!({"alg": "HS256"}), &claims, TEXT.as_bytes());
    let standard = text.replace('-', "+").replace('_', "/");
    assert_ne!(text, standard);
    assert_eq!(diagnosed(&v, &standard).0, "standard_base64");
}

#[test]
fn encrypted_tokens_are_explained() {
    let v = verifier(vec![secret_key(TEXT, Encoding::Utf8)]);
    let auth0 = format!(
        "{}..AAAA.BBBB.CCCC",
        b64(br#"{"alg":"dir","enc":"A256GCM","iss":"https://x.eu.auth0.com/"}"#)
    );
    let foreign = format!("{}.AA.AAAA.BBBB.CCCC", b64(br#"{"alg":"RSA-OAEP","enc":"A256GCM"}"#));
    assert_eq!(diagnosed(&v, &auth0).0, "auth0_opaque_token");
    assert_eq!(diagnosed(&v, &foreign).0, "encrypted_token");
}

/// Regression: the diagnosis did not know the secrets and claims of session cookies.
#[test]
fn refused_session_cookies_are_explained() {
    // `tests/js/issuers` has cookies that the real library made with NextAuth 4's derivation; nothing
    // opens this one.
    let session = crate::auth::SessionCookie {
        names: vec!["next-auth.session-token".into()],
        secrets: vec![TEXT.into()],
    };
    let v = verifier(vec![]).with_session(Some(session));
    let cookie = format!(
        "{}..{}.{}.{}",
        b64(br#"{"alg":"dir","enc":"A256GCM"}"#),
        b64(&[1; 12]),
        b64(&[2; 40]),
        b64(&[3; 16])
    );
    let report = examine(&v, &cookie, &[], NOW);
    assert_eq!((report.reason, report.cause), (Some("bad_signature"), Some("unknown_key")));
    assert!(report.advice.unwrap().contains("session cookie of NextAuth 4"));
}

/// Regression: a token of nothing but prefixes kept a copy for each.
#[test]
fn many_prefixes_cost_little() {
    let v = verifier(vec![secret_key(TEXT, Encoding::Utf8)]);
    assert_eq!(diagnosed(&v, &"jwt ".repeat(4000)).0, "not_a_jwt");
}

#[test]
fn hostile_text_is_escaped_and_cut() {
    let v = verifier(vec![secret_key(TEXT, Encoding::Utf8)]);
    let evil = format!("\u{1b}[31m{}", "x".repeat(500));
    let token = token(&json!({"alg": evil, "kid": evil}), &good(), b"x");
    let report = examine(&v, &token, &[], NOW);
    let said = format!("{}{}", report.text(), serde_json::to_string(&report).unwrap());
    assert!(!said.contains('\u{1b}') && !said.contains(&"x".repeat(100)), "{said}");
}

#[test]
fn the_slugs_are_unique() {
    let mut slugs: Vec<_> = Cause::ALL.iter().map(|c| c.slug()).collect();
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), Cause::ALL.len());
}
