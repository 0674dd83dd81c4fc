//! Public keys in every form that people have them, and every algorithm.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaEncoding,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::pem::{PemError, public_key as pem_public_key};
use super::public_key::{PublicKey, PublicKeyError};
use super::*;

const NOW: u64 = 1_800_000_000;

type Sign = dyn Fn(Algorithm, &[u8]) -> Vec<u8>;

/// A private key with everything that the tests need of it.
struct Pair {
    family: Family,
    spki: Vec<u8>,
    pkcs8: Vec<u8>,
    jwk: Value,
    sign: Box<Sign>,
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn ec(family: Family, curve: &'static EcdsaSigningAlgorithm, crv: &str) -> Pair {
    let pair = EcdsaKeyPair::generate(curve).unwrap();
    let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();
    let point = &pair.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    let jwk = json!({"kty": "EC", "crv": crv, "x": b64(x), "y": b64(y)});
    let pkcs8 = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
    let sign =
        move |_, text: &[u8]| pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec();
    Pair { family, spki: spki.as_ref().to_vec(), pkcs8, jwk, sign: Box::new(sign) }
}

fn rsa() -> Pair {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();
    let pkcs8: Pkcs8V1Der<'static> = pair.as_der().unwrap();

    // The form is SEQUENCE { INTEGER n, INTEGER e }; a modulus of 2048 bits has a sign octet.
    let pkcs1 = pair.public_key().as_ref();
    let n = &pkcs1[9..9 + 256];
    let jwk = json!({"kty": "RSA", "n": b64(n), "e": "AQAB"});

    let sign = move |alg, text: &[u8]| {
        #[expect(clippy::wildcard_enum_match_arm, reason = "RSA only")]
        let encoding: &'static dyn RsaEncoding = match alg {
            Algorithm::Rs256 => &sig::RSA_PKCS1_SHA256,
            Algorithm::Rs384 => &sig::RSA_PKCS1_SHA384,
            Algorithm::Rs512 => &sig::RSA_PKCS1_SHA512,
            Algorithm::Ps256 => &sig::RSA_PSS_SHA256,
            Algorithm::Ps384 => &sig::RSA_PSS_SHA384,
            Algorithm::Ps512 => &sig::RSA_PSS_SHA512,
            other => panic!("{} is not RSA", other.name()),
        };
        let mut out = vec![0; pair.public_modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), text, &mut out).unwrap();
        out
    };

    let (spki, pkcs8) = (spki.as_ref().to_vec(), pkcs8.as_ref().to_vec());
    Pair { family: Family::Rsa, spki, pkcs8, jwk, sign: Box::new(sign) }
}

fn ed() -> Pair {
    let pair = Ed25519KeyPair::generate().unwrap();
    let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key().as_ref())});
    let pkcs8 = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
    let spki = spki.as_ref().to_vec();
    let sign = move |_, text: &[u8]| pair.sign(text).as_ref().to_vec();
    Pair { family: Family::Ed25519, spki, pkcs8, jwk, sign: Box::new(sign) }
}

fn pairs() -> [Pair; 5] {
    [
        rsa(),
        ec(Family::P256, &sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        ec(Family::P384, &sig::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
        ec(Family::P521, &sig::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
        ed(),
    ]
}

fn token(pair: &Pair, header: &Value, alg: Algorithm) -> String {
    let claims = json!({"sub": "u1", "exp": NOW + 60});
    let signed =
        format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.to_string().as_bytes()));
    format!("{signed}.{}", b64(&(pair.sign)(alg, signed.as_bytes())))
}

fn verifier(keys: Vec<Key>) -> Verifier {
    let settings = Settings {
        issuer: vec![],
        audience: vec![],
        leeway: 0,
        require_exp: true,
        user_claim: vec![UserClaim("sub".into())],
        max_token_bytes: 16384,
        kept_claims: vec![],
        max_granted: 4,
    };
    Verifier::new(settings, KeySet::new(keys, vec![]))
}

fn pem(kind: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<_> =
        body.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", lines.join("\n"))
}

#[test]
fn every_algorithm_verifies_what_its_key_signed_and_nothing_else() {
    let pairs = pairs();
    for pair in &pairs {
        let algs: Vec<_> = pair.family.algorithms().collect();
        let key = |p: &Pair, algs: &[Algorithm]| {
            let key = PublicKey::from_der(&p.spki).unwrap();
            assert_eq!(key.family(), p.family);
            Key::new(None, algs.to_vec(), key)
        };

        for alg in &algs {
            let signed = token(pair, &json!({"alg": alg.name()}), *alg);
            let verdict = |keys| verifier(keys).verify(&signed, NOW).map(|i| i.user.to_string());
            assert_eq!(verdict(vec![key(pair, &[*alg])]), Ok("u1".to_owned()), "{}", alg.name());

            let other = match pair.family {
                Family::Rsa => rsa(),
                Family::P256 => ec(Family::P256, &sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
                Family::P384 => ec(Family::P384, &sig::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384"),
                Family::P521 => ec(Family::P521, &sig::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
                Family::Ed25519 | Family::Hmac => ed(),
            };

            assert_eq!(verdict(vec![key(&other, &[*alg])]), Err(Reason::BadSignature));
            for wrong in algs.iter().filter(|a| *a != alg) {
                assert_eq!(verdict(vec![key(pair, &[*wrong])]), Err(Reason::AlgNotAllowed));
                // The header lies about the algorithm: RS256 is not PS256.
                let lies = token(pair, &json!({"alg": wrong.name()}), *alg);
                let found = verifier(vec![key(pair, &[*wrong])]).verify(&lies, NOW);
                assert_eq!(found.map(|_| ()), Err(Reason::BadSignature));
            }

            // Attack A2: the public key's text as an HMAC secret.
            let confused = {
                let claims = json!({"sub": "u1", "exp": NOW + 60});
                let signed = format!(
                    "{}.{}",
                    b64(br#"{"alg":"HS256"}"#),
                    b64(claims.to_string().as_bytes())
                );
                let key = aws_lc_rs::hmac::Key::new(
                    aws_lc_rs::hmac::HMAC_SHA256,
                    pem("PUBLIC KEY", &pair.spki).as_bytes(),
                );
                let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
                format!("{signed}.{}", b64(tag.as_ref()))
            };
            let found = verifier(vec![key(pair, &[*alg])]).verify(&confused, NOW);
            assert_eq!(found.map(|_| ()), Err(Reason::AlgNotAllowed));
        }
    }
}

#[test]
fn keys_are_read_in_every_form_people_have_them() {
    for pair in pairs() {
        let public = pem("PUBLIC KEY", &pair.spki);
        let literal = public.replace('\n', "\\n");
        for (text, oddity) in [
            (public.clone(), None),
            (literal.clone(), Some("\\n as two")),
            (format!("\"{literal}\""), Some("quotes")),
            (public.replace('\n', " "), Some("line breaks")),
            (public.replace('\n', ""), Some("line breaks")),
            (STANDARD.encode(&public), Some("base64-encoded PEM")),
            (public.replace('\n', "\r\n"), None),
            (pem("PRIVATE KEY", &pair.pkcs8), Some("private key")),
        ] {
            let read = pem_public_key(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(read.key.spki(), &*pair.spki, "{text}");
            let odd = read.oddities.join("; ");
            assert!(oddity.map_or(odd.is_empty(), |o| odd.contains(o)), "{odd}: {text}");
        }

        let set = jwk::read(pair.jwk.to_string().as_bytes(), &Algorithm::ALL, false).unwrap();
        let [key] = &set.keys[..] else { panic!("{}", set.left_out) };
        let Material::Public(key) = key.material() else { panic!("public") };
        assert_eq!(key.spki(), &*pair.spki);
    }

    for (text, error) in [
        ("nothing", PemError::NoBlock),
        ("-----BEGIN PUBLIC KEY-----\nAAAA", PemError::Base64),
        ("-----BEGIN PUBLIC KEY-----\n####\n-----END PUBLIC KEY-----", PemError::Base64),
        (
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
            PemError::Key(PublicKeyError::Unreadable),
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", PemError::Certificate),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
            PemError::Kind("foreign"),
        ),
    ] {
        assert_eq!(pem_public_key(text).map(|_| ()), Err(error), "{text}");
    }
}

#[test]
fn a_short_rsa_key_is_refused() {
    let components = PublicKeyComponents { n: vec![0xc1; 128], e: vec![1, 0, 1] };
    let der: PublicKeyX509Der<'static> = components.as_der().unwrap();
    let made = PublicKey::from_der(der.as_ref());
    assert_eq!(made.map(|_| ()), Err(PublicKeyError::RsaSize));
}

#[test]
fn a_set_is_read_key_by_key() {
    let [rsa, p256, ..] = pairs();
    let with = |jwk: &Value, name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };

    let set = json!({"keys": [
        with(&rsa.jwk, "kid", json!("a")),
        with(&with(&p256.jwk, "kid", json!("b")), "alg", json!("ES256")),
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "pq"},
        with(&rsa.jwk, "use", json!("enc")),
        with(&rsa.jwk, "alg", json!("ES256")),
        with(&rsa.jwk, "key_ops", json!(["encrypt"])),
        with(&rsa.jwk, "n", json!("AQAB")),
        with(&p256.jwk, "x", json!("AAAA")),
        {"kty": "oct", "k": b64(&[7; 32])},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        "nonsense",
    ]});

    let read = jwk::read(set.to_string().as_bytes(), &Algorithm::ALL, false).unwrap();
    let kids: Vec<_> = read.keys.iter().map(|k| k.kid().unwrap()).collect();
    assert_eq!(kids, ["a", "b"]);
    assert_eq!(read.keys[1].algs(), [Algorithm::Es256]);
    assert_eq!(read.left_out.len(), 9, "{}", read.left_out);

    let secrets = jwk::read(set.to_string().as_bytes(), &Algorithm::ALL, true).unwrap();
    assert_eq!(secrets.keys.len(), 3);

    for bad in ["", "[]", "{}", "{\"keys\":1}", "null"] {
        assert!(jwk::read(bad.as_bytes(), &Algorithm::ALL, false).is_err(), "{bad}");
    }
}

/// The points of small order in their one encoding, and every second encoding of these or of
/// other points.
fn unsafe_ed25519_points() -> Vec<[u8; 32]> {
    let hex = |text: &str| <[u8; 32]>::try_from(Encoding::Hex.decode(text).unwrap()).unwrap();
    let order_8 = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a";
    let other_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05";
    let minus_one = format!("ec{}7f", "ff".repeat(30));
    let (field, above) = (format!("ed{}7f", "ff".repeat(30)), format!("ee{}7f", "ff".repeat(30)));
    let one = format!("01{}", "00".repeat(31));

    let mut points: Vec<_> = [order_8, other_8, &minus_one, &field, &above, &one].map(hex).into();
    points.push([0; 32]);
    for i in 0..points.len() {
        let mut signed = points[i];
        signed[31] |= 0x80;
        points.push(signed);
    }
    // This one is not on the curve at all.
    points.push(hex(&format!("02{}", "00".repeat(31))));
    points
}

/// Regression: with the identity as the key, R = B and S = 1 was a signature of every text.
#[test]
fn field_f4_a_key_after_which_anything_verifies_is_refused_wherever_keys_enter() {
    let prefix = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    for point in unsafe_ed25519_points() {
        let refused = Err(PublicKeyError::Ed25519Point);
        let spki = [&prefix[..], &point].concat();
        assert_eq!(PublicKey::from_der(&spki).map(|_| ()), refused, "SPKI {point:02x?}");
        assert_eq!(PublicKey::from_der(&point).map(|_| ()), refused, "raw {point:02x?}");
        let read = pem_public_key(&pem("PUBLIC KEY", &spki)).map(|_| ());
        assert_eq!(read, Err(PemError::Key(PublicKeyError::Ed25519Point)), "PEM {point:02x?}");
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&point)});
        let set = json!({"keys": [jwk, ed().jwk]}).to_string();
        let set = jwk::read(set.as_bytes(), &Algorithm::ALL, false).unwrap();
        assert_eq!((set.keys.len(), set.left_out.len()), (1, 1), "JWK {point:02x?}");
        assert!(set.left_out.to_string().contains("small order"), "{}", set.left_out);
    }
}

/// The same kind of key in other families: keys that are impossible, or for which anybody can sign.
#[test]
fn weak_and_impossible_keys_of_every_family_are_refused() {
    let [rsa, p256, p384, p521, _] = pairs();
    let read = |jwk: &Value| {
        let set = jwk::read(jwk.to_string().as_bytes(), &Algorithm::ALL, true).unwrap();
        set.keys.len()
    };

    for exponent in [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[0, 0, 1]] {
        let mut jwk = rsa.jwk.clone();
        jwk["e"] = json!(b64(exponent));
        assert_eq!(read(&jwk), 0, "exponent {exponent:?}");
    }

    let mut even = URL_SAFE_NO_PAD.decode(rsa.jwk["n"].as_str().unwrap()).unwrap();
    *even.last_mut().unwrap() &= 0xfe;
    for modulus in [even, vec![], vec![0; 256], vec![7], vec![0xc1; 64], vec![0xc1; 128]] {
        let mut jwk = rsa.jwk.clone();
        jwk["n"] = json!(b64(&modulus));
        assert_eq!(read(&jwk), 0, "modulus of {} bytes", modulus.len());
    }

    for (pair, length) in [(p256, 32), (p384, 48), (p521, 66)] {
        for x in [vec![0; length], vec![1; length], vec![0xff; length]] {
            let mut jwk = pair.jwk.clone();
            jwk["x"] = json!(b64(&x));
            assert_eq!(read(&jwk), 0, "{} off the curve", pair.family.label());
        }
    }

    assert!(PublicKey::from_der(&[0]).is_err(), "the point at infinity");
    for secret in
        [&b""[..], b"secret", &[7; 31], b"super-secret-jwt-token-with-at-least-32-characters-long"]
    {
        assert_eq!(read(&json!({"kty": "oct", "k": b64(secret)})), 0, "{}", secret.len());
    }
}

/// Regression: each of 60,000 unusable keys had a line of its own in the log.
#[test]
fn field_f5_however_many_keys_a_set_has_what_is_left_out_is_one_line() {
    let [_, good, ..] = pairs();
    let junk = |i: usize| json!({"kty": format!("K{i}"), "kid": format!("junk-{i}")});
    let set = json!({"keys": std::iter::once(good.jwk.clone()).chain((0..60_000).map(junk)).collect::<Vec<_>>()});
    let read = jwk::read(set.to_string().as_bytes(), &Algorithm::ALL, false).unwrap();
    assert_eq!((read.keys.len(), read.left_out.len()), (1, 60_000));
    let line = read.left_out.to_string();
    assert!(
        line.len() < 1000 && line.starts_with("60000 left out: kid junk-0: kty K0 is not"),
        "{line}"
    );

    let same = json!({"keys": vec![json!({"kty": "AKP", "kid": "pq"}); 500]});
    let read = jwk::read(same.to_string().as_bytes(), &Algorithm::ALL, false).unwrap();
    let line = read.left_out.to_string();
    assert_eq!(line, "500 left out: kid pq and 499 more: kty AKP is not supported");

    let many = json!({"keys": vec![good.jwk.clone(); 5_000]});
    let read = jwk::read(many.to_string().as_bytes(), &Algorithm::ALL, false).unwrap();
    assert_eq!((read.keys.len(), read.left_out.len()), (64, 4_936));
}

#[test]
fn a_retired_key_verifies_nothing_and_is_still_known() {
    let secret = || Secret::new("0123456789abcdef0123456789abcdef", Encoding::Utf8).unwrap();
    let key = |until| {
        let key = Key::new(Some("old".into()), vec![Algorithm::Hs256], secret());
        key.until(until)
    };
    let claims = json!({"sub": "u1", "exp": NOW + 60});
    let token = key(None).sign(&claims, None).unwrap();
    for (until, expected) in
        [(None, Ok(())), (Some(NOW + 1), Ok(())), (Some(NOW), Err(Reason::BadSignature))]
    {
        assert_eq!(verifier(vec![key(until)]).verify(&token, NOW).map(|_| ()), expected);
    }
}

#[test]
fn a_remote_set_is_used_until_it_is_too_old() {
    let pair = ec(Family::P256, &sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    let signed = token(&pair, &json!({"alg": "ES256", "kid": "k1"}), Algorithm::Es256);
    let remote = Arc::new(Remote::new("https://x".into(), vec![Algorithm::Es256], 100));
    let v = Verifier::new(
        verifier(vec![]).settings.clone(),
        KeySet::new(vec![], vec![Arc::clone(&remote)]),
    );

    let verdict = |now| v.verify(&signed, now).map(|_| ());
    assert_eq!(verdict(NOW), Err(Reason::KeysUnavailable), "never fetched: our fault");

    let mut jwk = pair.jwk.clone();
    let mut fetch = |kid: &str| {
        jwk["kid"] = json!(kid);
        let keys = jwk::read(jwk.to_string().as_bytes(), &remote.algs, false).unwrap().keys;
        remote.replace(keys::Fetched { keys, fetched_at: Some(NOW - 100) });
    };

    fetch("k1");
    assert_eq!(verdict(NOW), Ok(()));
    assert_eq!(verdict(NOW + 1), Err(Reason::KeysUnavailable), "too old");
    fetch("k2");
    assert_eq!(verdict(NOW), Err(Reason::KidUnknown), "withdrawn");

    let hs = format!("{}.e30.AAAA", b64(br#"{"alg":"HS256"}"#));
    assert_eq!(v.verify(&hs, NOW).map(|_| ()), Err(Reason::AlgNotAllowed));
}

/// Regression: beside a secret without a `kid`, a new key of the set was `alg_not_allowed` and
/// never fetched.
#[test]
fn an_unknown_kid_is_one_beside_keys_of_other_algorithms() {
    let pair = ec(Family::P256, &sig::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256");
    let mut jwk = pair.jwk.clone();
    jwk["kid"] = json!("k1");
    let remote = Arc::new(Remote::new("https://x".into(), vec![Algorithm::Es256], 100));
    let keys = jwk::read(jwk.to_string().as_bytes(), &remote.algs, false).unwrap().keys;
    remote.replace(keys::Fetched { keys, fetched_at: Some(NOW) });

    let secret = Secret::new("kept-0123456789abcdef0123456789abcdef", Encoding::Utf8).unwrap();
    let fixed = vec![
        Key::new(None, vec![Algorithm::Hs256], secret),
        Key::new(
            Some("ed".into()),
            vec![Algorithm::EdDsa],
            PublicKey::from_der(&ed().spki).unwrap(),
        ),
    ];
    let keys = KeySet::new(fixed, vec![remote]);
    let v = Verifier::new(verifier(vec![]).settings.clone(), keys);

    for (header, expected) in [
        (json!({"alg": "ES256", "kid": "k1"}), Ok(())),
        (json!({"alg": "ES256", "kid": "k2"}), Err(Reason::KidUnknown)),
        (json!({"alg": "ES256", "kid": "ed"}), Err(Reason::AlgNotAllowed)),
        (json!({"alg": "RS256", "kid": "k1"}), Err(Reason::AlgNotAllowed)),
        (json!({"alg": "ES256"}), Ok(())),
    ] {
        let token = token(&pair, &header, Algorithm::Es256);
        assert_eq!(v.verify(&token, NOW).map(|_| ()), expected, "{header}");
    }
}

#[test]
fn urls_are_shown_without_what_may_be_secret() {
    for (url, shown) in [
        ("https://u:p@host:8443/a/b?api=key#x", "https://host:8443/a/b"),
        ("https://host", "https://host"),
        ("https://host?key=1", "https://host"),
        ("u:p@host", "<redacted>"),
    ] {
        assert_eq!(keys::shown_url(url), shown);
    }
}
