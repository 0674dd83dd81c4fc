//! Public keys: read from DER, PEM or JWK components, and ready to verify.
//!
//! Invariant: a `PublicKey` that exists was parsed and is strong enough. A signature is
//! checked with the algorithm that the caller names, and only if that algorithm belongs to the
//! key's family.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{PublicEncryptingKey, PublicKeyComponents};
use aws_lc_rs::signature::{self as sig, ParsedPublicKey, VerificationAlgorithm};
use curve25519_dalek::edwards::CompressedEdwardsY;
use jsonwebtoken::DecodingKey;

use super::algorithm::{Algorithm, Family};
use super::signature;

/// Fewest bits of an RSA modulus (RFC 7518 section 3.3), and the most that verify in bounded time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why bytes are not a usable public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("is not an RSA, P-256, P-384, P-521 or Ed25519 public key")]
    Unreadable,
    #[error("is an RSA key whose size is not 2048 to 8192 bits (RFC 7518 section 3.3)")]
    RsaSize,
    #[error(
        "is not a safe Ed25519 point: it has a small order, is not on the curve, or is not in its \
         canonical encoding"
    )]
    Ed25519Point,
}

/// A public key of one family.
pub struct PublicKey {
    family: Family,
    spki: Box<[u8]>,
    key: Key,
}

/// The form in which a key verifies signatures.
enum Key {
    Crate(DecodingKey),
    /// `jsonwebtoken` has no P-521.
    P521(ParsedPublicKey),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.family.label())
    }
}

/// The aws-lc-rs algorithm that parses keys of a family.
fn parser(family: Family) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match family {
        Family::Hmac => return None,
        Family::Rsa => &sig::RSA_PKCS1_2048_8192_SHA256,
        Family::P256 => &sig::ECDSA_P256_SHA256_FIXED,
        Family::P384 => &sig::ECDSA_P384_SHA384_FIXED,
        Family::P521 => &sig::ECDSA_P521_SHA512_FIXED,
        Family::Ed25519 => &sig::ED25519,
    })
}

/// True if a point is safe to verify with. The library does not check that: it takes any 32 bytes.
/// With a point of small order, a signature that anybody can write down verifies every text. A
/// point in a second encoding is a second name of one key.
fn is_safe_point(spki: &[u8]) -> bool {
    let Some(bytes) = spki.last_chunk::<32>() else { return false };
    let encoded = CompressedEdwardsY(*bytes);
    let point = encoded.decompress();

    point.is_some_and(|point| point.compress() == encoded && !point.is_small_order())
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7), a PKCS#1 `RSAPublicKey`, an
    /// uncompressed EC point or the 32 bytes of an Ed25519 key.
    ///
    /// # Errors
    /// When the bytes are none of them, an RSA key of a size that is not accepted, or an unsafe
    /// Ed25519 point.
    pub fn from_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        let families =
            [Family::Rsa, Family::P256, Family::P384, Family::P521, Family::Ed25519].into_iter();
        families
            .map(|family| Self::of_family(family, der))
            .find(|made| !matches!(made, Err(PublicKeyError::Unreadable)))
            .unwrap_or(Err(PublicKeyError::Unreadable))
    }

    /// Reads bytes that are said to be of one family.
    ///
    /// # Errors
    /// As [`PublicKey::from_der`], when they are not.
    pub fn of_family(family: Family, der: &[u8]) -> Result<Self, PublicKeyError> {
        let parser = parser(family).ok_or(PublicKeyError::Unreadable)?;
        let parsed = ParsedPublicKey::new(parser, der).map_err(|_| PublicKeyError::Unreadable)?;
        let spki: PublicKeyX509Der<'static> =
            parsed.as_der().map_err(|_| PublicKeyError::Unreadable)?;
        let spki: Box<[u8]> = spki.as_ref().into();

        if family == Family::Rsa {
            // The library refuses keys that are too small, but does not say that size
            // is the reason.
            let bits = PublicEncryptingKey::from_der(&spki).map_or(0, |key| key.key_size_bits());
            if !RSA_BITS.contains(&bits) {
                return Err(PublicKeyError::RsaSize);
            }
        }

        if family == Family::Ed25519 && !is_safe_point(&spki) {
            return Err(PublicKeyError::Ed25519Point);
        }

        let key = match family {
            Family::P521 => Key::P521(parsed),
            Family::Rsa => Key::Crate(DecodingKey::from_rsa_der(&spki)),
            Family::Ed25519 => Key::Crate(DecodingKey::from_ed_der(&spki)),
            Family::Hmac | Family::P256 | Family::P384 => {
                Key::Crate(DecodingKey::from_ec_der(&spki))
            }
        };
        Ok(Self { family, spki, key })
    }

    /// Builds a key from the modulus and exponent of a JWK (RFC 7518 section 6.3.1), big-endian.
    ///
    /// # Errors
    /// As [`PublicKey::from_der`].
    pub fn from_rsa(n: &[u8], e: &[u8]) -> Result<Self, PublicKeyError> {
        // Some issuers write the sign octet of DER in front of the modulus; it changes nothing.
        let plain = |b: &[u8]| b.iter().copied().skip_while(|b| *b == 0).collect::<Vec<u8>>();
        let components = PublicKeyComponents { n: plain(n), e: plain(e) };
        let der: PublicKeyX509Der<'static> =
            components.as_der().map_err(|_| PublicKeyError::Unreadable)?;
        Self::of_family(Family::Rsa, der.as_ref())
    }

    /// Builds a key from the coordinates of a JWK (RFC 7518 section 6.2.1), each exactly as long as
    /// the field.
    ///
    /// # Errors
    /// When the point is not on the curve, or a coordinate has another length.
    pub fn from_point(family: Family, x: &[u8], y: &[u8]) -> Result<Self, PublicKeyError> {
        let length = match family {
            Family::P256 => 32,
            Family::P384 => 48,
            Family::P521 => 66,
            Family::Hmac | Family::Rsa | Family::Ed25519 => 0,
        };
        if x.len() != length || y.len() != length {
            return Err(PublicKeyError::Unreadable);
        }
        Self::of_family(family, &[&[4], x, y].concat())
    }

    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The SubjectPublicKeyInfo in DER, from which the fingerprint is made.
    #[must_use]
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// True if `signature` over `signed` was made with this key and this algorithm.
    #[must_use]
    pub fn verifies(&self, alg: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        if alg.family() != self.family {
            return false;
        }
        match &self.key {
            Key::Crate(key) => signature::verifies(alg, key, signed, signature),
            Key::P521(key) => key.verify_sig(signed, signature).is_ok(),
        }
    }
}
