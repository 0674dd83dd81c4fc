//! Keys as people and key sets write them: PEM, JWK, secrets. No text panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::auth::secret::describe;
use tollgate::auth::{Algorithm, Encoding, Secret, jwk, pem};

fuzz_target!(|text: &str| {
    let _ = pem::public_key(text);

    if let Ok(set) = jwk::read(text.as_bytes(), &Algorithm::ALL, true) {
        assert!(set.keys.len() <= 64);
        for key in &set.keys {
            assert!(!key.algs().is_empty());
            let _ = key.fingerprint().to_string();
        }

        // However many keys are left out, one line reports them.
        if !set.left_out.is_empty() {
            assert!(set.left_out.to_string().len() < 4096);
        }
    }

    for encoding in Encoding::ALL {
        if let Ok(secret) = Secret::new(text, encoding) {
            assert!(!secret.bytes().is_empty());
            let _ = (secret.weakness(), secret.oddities());
        }
    }

    let _ = describe(text);
});
