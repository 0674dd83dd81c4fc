//! Signatures of a JWS (RFC 7515 section 5): made and verified by the `jsonwebtoken` crate, with
//! aws-lc-rs underneath (ADR 4).
//!
//! Not here: which key fits, and everything that a token says. Invariant: a signature is verified
//! with the algorithm that the caller names; the crate is never asked what a header says.

use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{DecodingKey, EncodingKey};

use super::algorithm::Algorithm;

/// The crate's name for an algorithm; it has no ES512.
fn of_crate(alg: Algorithm) -> Option<jsonwebtoken::Algorithm> {
    use jsonwebtoken::Algorithm as Crate;
    Some(match alg {
        Algorithm::Hs256 => Crate::HS256,
        Algorithm::Hs384 => Crate::HS384,
        Algorithm::Hs512 => Crate::HS512,
        Algorithm::Rs256 => Crate::RS256,
        Algorithm::Rs384 => Crate::RS384,
        Algorithm::Rs512 => Crate::RS512,
        Algorithm::Ps256 => Crate::PS256,
        Algorithm::Ps384 => Crate::PS384,
        Algorithm::Ps512 => Crate::PS512,
        Algorithm::Es256 => Crate::ES256,
        Algorithm::Es384 => Crate::ES384,
        Algorithm::EdDsa => Crate::EdDSA,
        Algorithm::Es512 => return None,
    })
}

/// True if the signature is this key's. An HMAC is compared in constant time.
pub(super) fn verifies(alg: Algorithm, key: &DecodingKey, signed: &[u8], signature: &[u8]) -> bool {
    let Some(alg) = of_crate(alg) else { return false };
    let verifier = (DEFAULT_PROVIDER.verifier_factory)(&alg, key);

    verifier.is_ok_and(|verifier| verifier.verify(signed, &signature.to_vec()).is_ok())
}

/// Signs a text. Returns `None` if the key cannot sign with that algorithm.
pub(super) fn sign(alg: Algorithm, key: &EncodingKey, text: &[u8]) -> Option<Vec<u8>> {
    let signer = (DEFAULT_PROVIDER.signer_factory)(&of_crate(alg)?, key).ok()?;

    signer.try_sign(text).ok()
}
