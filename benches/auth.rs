//! The costs of a token: verification by each algorithm, a refusal, and the doctor's diagnosis. For
//! ADR 4, two others stand beside the verification: the signature alone by aws-lc-rs, with a key
//! that is parsed once, and decoding by `jsonwebtoken` over RustCrypto.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _,
    ParsedPublicKey, RsaKeyPair, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use rustcrypto_jwt::{DecodingKey, Validation};
use serde_json::json;
use tollgate::auth::diagnose::examine;
use tollgate::auth::public_key::PublicKey;
use tollgate::auth::{
    Algorithm, Encoding, Key, KeySet, Reason, Secret, Settings, UserClaim, Verifier,
};
use tollgate::diagnosis::sampler::{Sampler, Settings as SamplerSettings};

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "a benchmark's secret of sufficient length";

fn verifier(key: Key) -> Verifier {
    let settings = Settings {
        issuer: vec![],
        audience: vec![],
        leeway: 0,
        require_exp: true,
        user_claim: vec![UserClaim("userId".into()), UserClaim("sub".into())],
        max_token_bytes: 16384,
        kept_claims: vec![],
        max_granted: 128,
    };
    Verifier::new(settings, KeySet::new(vec![key], vec![]))
}

fn secret(alg: Algorithm, text: &str) -> Key {
    Key::new(None, vec![alg], Secret::new(text, Encoding::Utf8).unwrap())
}

fn token(alg: Algorithm, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({"alg": alg.name(), "typ": "JWT"}).to_string();
    let claims = json!({"sub": "u1", "iat": NOW, "exp": NOW + 600}).to_string();
    let signed = format!("{}.{}", b64(header.as_bytes()), b64(claims.as_bytes()));
    format!("{signed}.{}", b64(&sign(signed.as_bytes())))
}

/// Verifies a signature over some bytes.
type Direct = Box<dyn Fn(&[u8], &[u8]) -> bool>;

fn parsed(algorithm: &'static dyn VerificationAlgorithm, key: &[u8]) -> Direct {
    let key = ParsedPublicKey::new(algorithm, key).unwrap();
    Box::new(move |signed, signature| key.verify_sig(signed, signature).is_ok())
}

/// Measures our verification, the signature alone with a key that is parsed once, and the other
/// crate's decoding.
fn both(
    c: &mut Criterion,
    (alg, verifier): (Algorithm, &Verifier),
    token: &str,
    direct: &Direct,
    theirs: Option<DecodingKey>,
) {
    c.bench_function(&format!("verify {}", alg.name()), |b| {
        b.iter(|| verifier.verify(black_box(token), NOW).unwrap());
    });

    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    c.bench_function(&format!("aws-lc-rs {}", alg.name()), |b| {
        b.iter(|| assert!(direct(black_box(signed.as_bytes()), &signature)));
    });

    let Some(key) = theirs else { return };

    let mut validation = Validation::new(alg.name().parse().unwrap());
    validation.validate_exp = false;
    c.bench_function(&format!("jsonwebtoken {}", alg.name()), |b| {
        b.iter(|| {
            rustcrypto_jwt::decode::<serde_json::Value>(black_box(token), &key, &validation)
                .unwrap()
        });
    });
}

fn hmac(c: &mut Criterion) {
    for (alg, hash) in [
        (Algorithm::Hs256, hmac::HMAC_SHA256),
        (Algorithm::Hs384, hmac::HMAC_SHA384),
        (Algorithm::Hs512, hmac::HMAC_SHA512),
    ] {
        let key = secret(alg, SECRET);
        let claims = json!({"sub": "u1", "iat": NOW, "exp": NOW + 600});
        let token = key.sign(&claims, None).unwrap();

        let mac = hmac::Key::new(hash, SECRET.as_bytes());
        let direct: Direct = Box::new(move |signed, tag| hmac::verify(&mac, signed, tag).is_ok());
        let theirs = DecodingKey::from_secret(SECRET.as_bytes());
        both(c, (alg, &verifier(key)), &token, &direct, Some(theirs));
    }
}

fn ecdsa(c: &mut Criterion) {
    type Curve = (Algorithm, &'static EcdsaSigningAlgorithm, &'static dyn VerificationAlgorithm);
    let curves: [Curve; 3] = [
        (Algorithm::Es256, &sig::ECDSA_P256_SHA256_FIXED_SIGNING, &sig::ECDSA_P256_SHA256_FIXED),
        (Algorithm::Es384, &sig::ECDSA_P384_SHA384_FIXED_SIGNING, &sig::ECDSA_P384_SHA384_FIXED),
        (Algorithm::Es512, &sig::ECDSA_P521_SHA512_FIXED_SIGNING, &sig::ECDSA_P521_SHA512_FIXED),
    ];

    for (alg, curve, verification) in curves {
        let pair = EcdsaKeyPair::generate(curve).unwrap();
        let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();
        let key = Key::new(None, vec![alg], PublicKey::from_der(spki.as_ref()).unwrap());
        let rng = SystemRandom::new();
        let token = token(alg, |text| pair.sign(&rng, text).unwrap().as_ref().to_vec());

        // `jsonwebtoken` has no ES512.
        let theirs =
            (alg != Algorithm::Es512).then(|| DecodingKey::from_ec_der(pair.public_key().as_ref()));
        let direct = parsed(verification, spki.as_ref());
        both(c, (alg, &verifier(key)), &token, &direct, theirs);
    }
}

fn rsa_and_ed25519(c: &mut Criterion) {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().unwrap();

    type Rsa = (Algorithm, &'static dyn sig::RsaEncoding, &'static dyn VerificationAlgorithm);
    let paddings: [Rsa; 2] = [
        (Algorithm::Rs256, &sig::RSA_PKCS1_SHA256, &sig::RSA_PKCS1_2048_8192_SHA256),
        (Algorithm::Ps256, &sig::RSA_PSS_SHA256, &sig::RSA_PSS_2048_8192_SHA256),
    ];

    for (alg, encoding, verification) in paddings {
        let key = Key::new(None, vec![alg], PublicKey::from_der(spki.as_ref()).unwrap());
        let token = token(alg, |text| {
            let mut out = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &SystemRandom::new(), text, &mut out).unwrap();
            out
        });
        let theirs = DecodingKey::from_rsa_der(pair.public_key().as_ref());
        let direct = parsed(verification, spki.as_ref());
        both(c, (alg, &verifier(key)), &token, &direct, Some(theirs));
    }

    let pair = Ed25519KeyPair::generate().unwrap();
    let key = PublicKey::of_family(tollgate::auth::Family::Ed25519, pair.public_key().as_ref());
    let key = Key::new(None, vec![Algorithm::EdDsa], key.unwrap());
    let token = token(Algorithm::EdDsa, |text| pair.sign(text).as_ref().to_vec());
    let theirs = DecodingKey::from_ed_der(pair.public_key().as_ref());
    let direct = parsed(&sig::ED25519, pair.public_key().as_ref());
    both(c, (Algorithm::EdDsa, &verifier(key)), &token, &direct, Some(theirs));
}

/// Measures a flood of bad tokens: the refusal, and the offer of each to a doctor whose sample is
/// full. Measures one diagnosis too, of which at most `doctor.per_second` are made.
fn refusals(c: &mut Criterion) {
    let claims = json!({"sub": "u1", "exp": NOW + 600});
    let bad = secret(Algorithm::Hs256, "somebody else's").sign(&claims, None).unwrap();
    let verifier = verifier(secret(Algorithm::Hs256, SECRET));

    c.bench_function("refuse a bad signature", |b| {
        b.iter(|| verifier.verify(black_box(&bad), NOW).unwrap_err());
    });

    let doctor =
        Sampler::new(SamplerSettings { per_second: 1, log_interval: Duration::from_secs(60) });
    c.bench_function("refuse it and offer it to the doctor", |b| {
        b.iter(|| {
            let reason = verifier.verify(black_box(&bad), NOW).unwrap_err();
            doctor.offer(reason, &bad);
        });
    });

    c.bench_function("doctor: nothing fits", |b| {
        b.iter(|| examine(&verifier, black_box(&bad), &[], NOW));
    });

    let placeholder = secret(Algorithm::Hs256, "your-secret-key").sign(&claims, None).unwrap();
    c.bench_function("doctor: a placeholder", |b| {
        b.iter(|| {
            let report = examine(&verifier, black_box(&placeholder), &[], NOW);
            assert_eq!(report.reason, Some(Reason::BadSignature.slug()));
        });
    });
}

criterion_group!(benches, hmac, ecdsa, rsa_and_ed25519, refusals);
criterion_main!(benches);
