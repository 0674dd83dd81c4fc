use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef-test";
const NOW: u64 = 1_800_000_000;

fn key(kid: Option<&str>, secret: &str, algs: &[Algorithm]) -> Key {
    let secret = Secret::new(secret, Encoding::Utf8).unwrap();
    Key::new(kid.map(str::to_owned), algs.to_vec(), secret)
}

fn settings() -> Settings {
    Settings {
        issuer: vec![],
        audience: vec![],
        leeway: 0,
        require_exp: true,
        user_claim: vec![
            UserClaim("userId".into()),
            UserClaim("user.id".into()),
            UserClaim("sub".into()),
        ],
        max_token_bytes: 16384,
        kept_claims: vec!["isCreator".into()],
        max_granted: 4,
    }
}

fn verifier(settings: Settings) -> Verifier {
    Verifier::new(settings, KeySet::new(vec![key(None, SECRET, &[Algorithm::Hs256])], vec![]))
}

/// Signs exactly these texts, however odd.
fn raw(header: &str, payload: &str, secret: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = rustcrypto_jwt::EncodingKey::from_secret(secret.as_bytes());
    let signature =
        rustcrypto_jwt::crypto::sign(signed.as_bytes(), &key, rustcrypto_jwt::Algorithm::HS256)
            .unwrap();
    format!("{signed}.{signature}")
}

fn token(claims: &Value) -> String {
    raw(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string(), SECRET)
}

fn outcome(v: &Verifier, token: &str) -> Result<String, Reason> {
    v.verify(token, NOW).map(|i| i.user.to_string())
}

#[test]
fn the_order_of_checks() {
    let v = verifier(settings());
    let good = json!({"userId": "u1", "exp": NOW + 1});
    let hs = r#"{"alg":"HS256"}"#;
    let payload = good.to_string();

    for (what, token, expected) in [
        ("good", token(&good), Ok("u1".to_owned())),
        ("size", "x".repeat(16385), Err(Reason::Oversize)),
        ("parts", "a.b".into(), Err(Reason::Malformed)),
        ("empty", String::new(), Err(Reason::Malformed)),
        ("not base64", "!.!.!".into(), Err(Reason::Malformed)),
        ("jwe", "a.b.c.d.e".into(), Err(Reason::Encrypted)),
        ("none", raw(r#"{"alg":"nOnE"}"#, &payload, SECRET), Err(Reason::AlgNone)),
        ("no alg", raw("{}", &payload, SECRET), Err(Reason::Malformed)),
        (
            "crit",
            raw(r#"{"alg":"HS256","crit":["x"]}"#, &payload, SECRET),
            Err(Reason::CritUnsupported),
        ),
        (
            "b64",
            raw(r#"{"alg":"HS256","b64":false}"#, &payload, SECRET),
            Err(Reason::CritUnsupported),
        ),
        ("alg", raw(r#"{"alg":"RS256"}"#, &payload, SECRET), Err(Reason::AlgNotAllowed)),
        ("alg unbound", raw(r#"{"alg":"HS512"}"#, &payload, SECRET), Err(Reason::AlgNotAllowed)),
        ("signature", raw(hs, &payload, "another"), Err(Reason::BadSignature)),
        (
            "duplicate",
            raw(hs, r#"{"userId":"a","userId":"b","exp":2000000000}"#, SECRET),
            Err(Reason::Malformed),
        ),
        ("not an object", raw(hs, "[]", SECRET), Err(Reason::Malformed)),
        ("deep", raw(hs, &"[".repeat(3000), SECRET), Err(Reason::Malformed)),
    ] {
        assert_eq!(outcome(&v, &token), expected, "{what}");
    }

    // An expired token with a wrong signature is refused for its signature, not for its claims.
    let both = raw(hs, &json!({"userId": "u", "exp": 1}).to_string(), "another");
    assert_eq!(outcome(&v, &both), Err(Reason::BadSignature));

    // 32 bytes leave two unused bits in the last character; the next character sets one of them.
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut stray = token(&good);
    let last = ALPHABET.find(stray.pop().unwrap()).unwrap();
    stray.push_str(&ALPHABET[last + 1..last + 2]);
    assert_eq!(outcome(&v, &stray), Err(Reason::Malformed), "stray bits");
}

#[test]
fn claims_are_strict() {
    let strict = || Settings {
        issuer: vec!["https://app/".into()],
        audience: vec!["rt".into(), "ws".into()],
        leeway: 10,
        ..settings()
    };

    let base = json!({"iss":"https://app/","aud":["x","ws"],"exp":NOW+1,"sub":"u1"});
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

    for (claims, expected) in [
        (base.clone(), Ok("u1".to_owned())),
        (with("aud", json!("rt")), Ok("u1".to_owned())),
        (with("exp", json!(NOW - 9)), Ok("u1".to_owned())),
        (with("exp", json!(NOW as f64 + 0.5)), Ok("u1".to_owned())),
        (with("nbf", json!(NOW + 10)), Ok("u1".to_owned())),
        (with("user", json!({"id":"nested"})), Ok("nested".to_owned())),
        (with("exp", json!(NOW - 10)), Err(Reason::Expired)),
        (with("exp", json!("2000000000")), Err(Reason::ClaimInvalid)),
        (with("exp", json!(NOW * 1000)), Err(Reason::ClaimInvalid)),
        (with("exp", json!(NOW as f64 * 1e6)), Err(Reason::ClaimInvalid)),
        (with("exp", json!(NOW as f64 * 1e9)), Err(Reason::ClaimInvalid)),
        (with("exp", json!(-1)), Err(Reason::Expired)),
        (with("exp", json!(0)), Err(Reason::Expired)),
        // .NET writes this for a date that nobody set.
        (with("nbf", json!(-62_135_596_800i64)), Ok("u1".to_owned())),
        (with("iat", json!(-62_135_596_800i64)), Ok("u1".to_owned())),
        (without("exp"), Err(Reason::ExpMissing)),
        (with("nbf", json!(NOW + 11)), Err(Reason::NotYetValid)),
        (with("nbf", json!([])), Err(Reason::ClaimInvalid)),
        (with("iss", json!("https://app")), Err(Reason::IssuerMismatch)),
        (without("iss"), Err(Reason::IssuerMismatch)),
        (with("iss", json!(["https://app/"])), Err(Reason::ClaimInvalid)),
        (without("aud"), Err(Reason::AudienceMismatch)),
        (with("aud", json!("other")), Err(Reason::AudienceMismatch)),
        (with("aud", json!({"rt": 1})), Err(Reason::ClaimInvalid)),
        (with("aud", json!(["rt", 1])), Err(Reason::ClaimInvalid)),
        (without("sub"), Err(Reason::UserMissing)),
        (with("sub", json!("")), Err(Reason::ClaimInvalid)),
        (with("sub", json!(7.5)), Err(Reason::ClaimInvalid)),
        (with("sub", json!("a\nb")), Err(Reason::ClaimInvalid)),
        (with("sub", json!("x".repeat(513))), Err(Reason::ClaimInvalid)),
        (with("channels", json!(["a", "b", "c", "d", "e"])), Err(Reason::ClaimInvalid)),
        (with("channels", json!("a")), Err(Reason::ClaimInvalid)),
    ] {
        assert_eq!(outcome(&verifier(strict()), &token(&claims)), expected, "{claims}");
    }
}

/// Regression: every time after the year 5138 was taken for milliseconds.
#[test]
fn field_d7_a_far_year_is_a_far_year() {
    let v = verifier(settings());
    let until = |exp: &str| {
        let payload = format!("{{\"sub\":\"u1\",\"exp\":{exp}}}");
        v.verify(&raw(r#"{"alg":"HS256"}"#, &payload, SECRET), NOW).map(|i| i.expires_at)
    };
    const END_OF_9999: u64 = 253_402_300_799;
    assert_eq!(until("253402300799"), Ok(Some(END_OF_9999)));
    assert_eq!(until("100000000000"), Ok(Some(100_000_000_000)));
    assert_eq!(until("253402214400.5"), Ok(Some(253_402_214_400)));
    for endless in ["9999999999999", "1e99", "1e400"] {
        assert_eq!(until(endless), Ok(Some(END_OF_9999)), "{endless}");
    }
    for finer in ["1800000060000", "1800000060000000", "1800000060000000000", "1.8e12"] {
        assert_eq!(until(finer), Err(Reason::ClaimInvalid), "{finer}");
    }
}

/// Regression: tokens that jsonwebtoken, jose and PyJWT accept (`tests/js/issuers` compares) were
/// `malformed`.
#[test]
fn field_d8_json_that_other_libraries_read_is_read() {
    let v = verifier(settings());
    let hs = r#"{"alg":"HS256"}"#;
    let with = |member: &str| {
        let payload = format!("{{{member},\"sub\":\"u1\",\"exp\":{}}}", NOW + 1);
        outcome(&v, &raw(hs, &payload, SECRET))
    };

    let deep = format!("\"x\":{}{}", "[".repeat(3000), "]".repeat(3000));
    for member in [
        r#""x":1e400"#,
        r#""x":-1E+999999"#,
        r#""x":123456789012345678901234567890123456789012345678901234567890"#,
        r#""x":1e-999999"#,
        r#""name":"cut emoji \ud83d""#,
        r#""\udc00":true"#,
        r#""x":"\u0000\u001f\/\b""#,
        r#""\u0000":1"#,
        r#""":"","__proto__":{"sub":"admin"}"#,
        r#""x":{"a":1,"a":2}"#,
        r#""x":1,"x":2"#,
        r#""exp ":1"#,
        &deep,
    ] {
        assert_eq!(with(member), Ok("u1".to_owned()), "{member:.60}");
    }

    let marked = format!("\u{feff}{{\"sub\":\"u1\",\"exp\":{}}}\n", NOW + 1);
    assert_eq!(outcome(&v, &raw(hs, &marked, SECRET)), Ok("u1".to_owned()), "byte order mark");
    let header = r#"{"alg":"HS256","x":1e400,"x":"\ud83d"}"#;
    let good = json!({"sub": "u1", "exp": NOW + 1}).to_string();
    assert_eq!(outcome(&v, &raw(header, &good, SECRET)), Ok("u1".to_owned()));

    // The gateway is strict where that protects: a member that it reads has one value, and its
    // texts are texts.
    for member in [
        r#""sub":"admin""#,
        r#""s\u0075b":"admin""#,
        r#""exp":9999999999"#,
        r#""user":{"id":"a","id":"b"}"#,
        r#""user.id":"a","user.id":"b""#,
        r#""userId":"a\ud800""#,
        r#""isCreator":true,"isCreator":false"#,
        r#""channels":["a"],"channels":["b"]"#,
        r#""jti":"a","jti":"b""#,
    ] {
        assert_eq!(with(member), Err(Reason::Malformed), "{member}");
    }
    for header in [r#"{"alg":"HS256","alg":"none"}"#, r#"{"alg":"HS256","kid":"a","kid":"b"}"#] {
        assert_eq!(outcome(&v, &raw(header, &good, SECRET)), Err(Reason::Malformed), "{header}");
    }
}

#[test]
fn field_c10_any_text_is_a_user() {
    let v = verifier(settings());
    for user in [
        "did:privy:cm1",
        "eu-west-1:6a0b4f0e-8f5e-4b1a",
        "system:serviceaccount:my-ns:my-name",
        "eip155:1:0xab16a96D359eC26a11e2C2b3d8f8B8942d5Bfcdb",
        "Seán O'Brien <sean@example.com>",
        "*",
        "用户:一",
        &"x".repeat(512),
    ] {
        let claims = json!({"sub": user, "exp": NOW + 1});
        assert_eq!(outcome(&v, &token(&claims)).as_deref(), Ok(user));
    }
}

#[test]
fn field_c9_numbers_are_ids_exactly_and_null_is_absent() {
    let v = verifier(settings());

    for (claims, expected) in [
        (r#"{"sub":7}"#, Ok("7")),
        (r#"{"userId":9007199254740993}"#, Ok("9007199254740993")),
        (r#"{"sub":18446744073709551615}"#, Ok("18446744073709551615")),
        (r#"{"sub":-9223372036854775808}"#, Ok("-9223372036854775808")),
        (r#"{"userId":null,"sub":"s1"}"#, Ok("s1")),
        (r#"{"user.id":null,"user":{"id":5}}"#, Ok("5")),
        (
            r#"{"userId":null,"sub":"s1","nbf":null,"iat":null,"jti":null,"channels":null}"#,
            Ok("s1"),
        ),
        (r#"{"sub":"s1","jti":5}"#, Ok("s1")),
        (r#"{"userId":null,"sub":null}"#, Err(Reason::UserMissing)),
        (r#"{"sub":"s1","exp":null}"#, Err(Reason::ExpMissing)),
        // These numbers may have been rounded by their writer, or would be here.
        (r#"{"sub":18446744073709551616}"#, Err(Reason::ClaimInvalid)),
        (r#"{"sub":7.0}"#, Err(Reason::ClaimInvalid)),
        (r#"{"sub":1e3}"#, Err(Reason::ClaimInvalid)),
        (r#"{"sub":true}"#, Err(Reason::ClaimInvalid)),
    ] {
        let exp =
            if claims.contains("exp") { "{".to_owned() } else { format!("{{\"exp\":{},", NOW + 1) };
        let payload = claims.replacen('{', &exp, 1);
        let found = outcome(&v, &raw(r#"{"alg":"HS256"}"#, &payload, SECRET));
        assert_eq!(found, expected.map(str::to_owned), "{payload}");
    }
}

#[test]
fn exp_equal_to_now_is_expired() {
    let v = verifier(settings());
    assert_eq!(outcome(&v, &token(&json!({"sub":"u","exp":NOW}))), Err(Reason::Expired));
    assert!(outcome(&v, &token(&json!({"sub":"u","exp":NOW + 1}))).is_ok());
}

#[test]
fn keys_are_bound_to_kid_and_algorithm() {
    let other = "fedcba9876543210fedcba9876543210-other";
    let keys = KeySet::new(
        vec![
            key(Some("new"), SECRET, &[Algorithm::Hs256, Algorithm::Hs384]),
            key(Some("old"), other, &[Algorithm::Hs256]),
        ],
        vec![],
    );
    let v = Verifier::new(settings(), keys);

    let payload = json!({"sub":"u1","exp":NOW+1}).to_string();
    for (header, secret, expected) in [
        (r#"{"alg":"HS256","kid":"new"}"#, SECRET, Ok("u1".to_owned())),
        (r#"{"alg":"HS256","kid":"old"}"#, other, Ok("u1".to_owned())),
        (r#"{"alg":"HS256"}"#, other, Ok("u1".to_owned())),
        (r#"{"alg":"HS256","kid":"new"}"#, other, Err(Reason::BadSignature)),
        (r#"{"alg":"HS384","kid":"old"}"#, other, Err(Reason::AlgNotAllowed)),
        (r#"{"alg":"HS256","kid":"../../dev/null"}"#, SECRET, Err(Reason::KidUnknown)),
        (r#"{"alg":"HS256","kid":7}"#, SECRET, Err(Reason::Malformed)),
    ] {
        assert_eq!(outcome(&v, &raw(header, &payload, secret)), expected, "{header}");
    }
}

#[test]
fn secrets_are_decoded_and_judged() {
    use super::secret::SecretError;
    let make = |secret: &str, encoding| {
        let secret = Secret::new(secret, encoding)?;
        secret.weakness().map_or(Ok(()), Err)
    };

    let b64 = base64::engine::general_purpose::STANDARD.encode(SECRET);
    assert!(make(&b64, Encoding::Base64).is_ok());
    assert!(make(b64.trim_end_matches('='), Encoding::Base64).is_ok());
    assert!(make(&"ab".repeat(32), Encoding::Hex).is_ok());

    for (secret, encoding, error) in [
        ("", Encoding::Utf8, SecretError::Empty),
        ("-----BEGIN PUBLIC KEY-----", Encoding::Utf8, SecretError::Pem),
        ("abc", Encoding::Hex, SecretError::Undecodable("hex")),
        ("***", Encoding::Base64, SecretError::Undecodable("base64")),
        ("too short", Encoding::Utf8, SecretError::TooShort(9)),
        ("your-secret-key", Encoding::Utf8, SecretError::Placeholder),
        (
            "super-secret-jwt-token-with-at-least-32-characters-long",
            Encoding::Utf8,
            SecretError::Placeholder,
        ),
        ("${NEXTAUTH_SECRET}", Encoding::Utf8, SecretError::Placeholder),
    ] {
        assert_eq!(make(secret, encoding), Err(error), "{secret:?}");
    }

    let secret = Secret::new(SECRET, Encoding::Utf8).unwrap();
    assert!(!format!("{secret:?}").contains("0123"));

    for (odd, why) in [
        ("\"0123456789abcdef0123456789abcdef\"", "quotes"),
        ("0123456789abcdef0123456789abcdef\r\n", "line break"),
        ("\u{feff}0123456789abcdef0123456789abcdef", "byte order mark"),
        (" 0123456789abcdef0123456789abcdef", "whitespace"),
        ("0123456789abcdef\u{200b}0123456789abcdef", "invisible"),
    ] {
        let oddities = Secret::new(odd, Encoding::Utf8).unwrap().oddities();
        assert!(oddities.iter().any(|o| o.contains(why)), "{why}: {oddities:?}");
    }
}
