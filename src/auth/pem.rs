//! PEM as people configure it: with `\n` as two characters, on one line, in quotes, wrapped once
//! more in base64; a certificate or a private key in place of a public key. All of these forms are
//! read, and oddities are reported so that the operator can mend them.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::{
    self as sig, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

use super::public_key::{PublicKey, PublicKeyError};

/// Why a text is not a public key in PEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    #[error("contains no PEM block (-----BEGIN PUBLIC KEY-----)")]
    NoBlock,
    #[error("has a PEM block that is not base64: it may have been cut off or edited")]
    Base64,
    #[error("contains a {0} block, which is not a public key")]
    Kind(&'static str),
    #[error("contains a certificate that cannot be read")]
    Certificate,
    #[error(transparent)]
    Key(#[from] PublicKeyError),
}

/// A key, and the oddities of its text.
#[derive(Debug)]
pub struct Read {
    pub key: PublicKey,
    pub oddities: Vec<&'static str>,
}

/// Reads the first key of a PEM text.
///
/// # Errors
/// The first thing that is wrong with the text.
pub fn public_key(text: &str) -> Result<Read, PemError> {
    let (text, mut oddities) = normalised(text);
    let (kind, der) = block(&text)?;
    let key = match kind {
        "PUBLIC KEY" | "RSA PUBLIC KEY" => PublicKey::from_der(&der)?,
        "CERTIFICATE" => PublicKey::from_der(&spki_of_certificate(&der)?)?,
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
            oddities.push(
                "is a private key, but the gateway needs only the public key: create it with \
                 openssl pkey -in KEY.pem -pubout",
            );
            PublicKey::from_der(&public_half(&der).ok_or(PublicKeyError::Unreadable)?)?
        }
        "ENCRYPTED PRIVATE KEY" => return Err(PemError::Kind("ENCRYPTED PRIVATE KEY")),
        "CERTIFICATE REQUEST" => return Err(PemError::Kind("CERTIFICATE REQUEST")),
        _ => return Err(PemError::Kind("foreign")),
    };

    Ok(Read { key, oddities })
}

/// True if a text looks like PEM, however it was mangled.
#[must_use]
pub fn looks_like_pem(text: &str) -> bool {
    normalised(text).0.contains("-----BEGIN ")
}

/// Undoes what people do to a PEM text. Returns the text, and its oddities.
fn normalised(text: &str) -> (String, Vec<&'static str>) {
    let mut oddities = Vec::new();
    let mut text = text.trim().trim_start_matches('\u{feff}').to_owned();

    for quote in ['"', '\''] {
        if text.len() > 1 && text.starts_with(quote) && text.ends_with(quote) {
            oddities.push("is wrapped in quotes: remove them");
            text = text[1..text.len() - 1].to_owned();
        }
    }

    if !text.contains("-----BEGIN ")
        && let Ok(inner) = STANDARD.decode(text.split_whitespace().collect::<String>())
        && let Ok(inner) = String::from_utf8(inner)
        && inner.contains("-----BEGIN ")
    {
        oddities.push("is base64-encoded PEM: decode it once (base64 -d)");
        text = inner;
    }

    if text.contains("\\n") {
        oddities.push("contains \\n as two characters instead of line breaks");
        text = text.replace("\\r", "").replace("\\n", "\n");
    } else if text.contains("-----BEGIN ") && !text.trim().contains('\n') {
        oddities.push("has lost its line breaks");
    }

    (text, oddities)
}

/// The label and the content of the first block (RFC 7468), wherever its line breaks are.
fn block(text: &str) -> Result<(&str, Vec<u8>), PemError> {
    let (_, rest) = text.split_once("-----BEGIN ").ok_or(PemError::NoBlock)?;
    let (kind, rest) = rest.split_once("-----").ok_or(PemError::NoBlock)?;
    let end = rest.find("-----END ").ok_or(PemError::Base64)?;
    let body: String = rest[..end].split_whitespace().collect();
    Ok((kind, STANDARD.decode(body).map_err(|_| PemError::Base64)?))
}

fn spki_of_certificate(der: &[u8]) -> Result<Vec<u8>, PemError> {
    let certificate = Certificate::from_der(der).map_err(|_| PemError::Certificate)?;
    let spki = certificate.tbs_certificate().subject_public_key_info();
    spki.to_der().map_err(|_| PemError::Certificate)
}

/// The public half of a private key in PKCS#8, PKCS#1 or SEC 1.
fn public_half(der: &[u8]) -> Option<Vec<u8>> {
    if let Ok(pair) = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)) {
        return Some(pair.public_key().as_ref().to_vec());
    }

    let curves: [&'static EcdsaSigningAlgorithm; 3] = [
        &sig::ECDSA_P256_SHA256_FIXED_SIGNING,
        &sig::ECDSA_P384_SHA384_FIXED_SIGNING,
        &sig::ECDSA_P521_SHA512_FIXED_SIGNING,
    ];

    for curve in curves {
        let pair = EcdsaKeyPair::from_pkcs8(curve, der)
            .or_else(|_| EcdsaKeyPair::from_private_key_der(curve, der));
        if let Ok(pair) = pair {
            let spki: PublicKeyX509Der<'static> = pair.public_key().as_der().ok()?;
            return Some(spki.as_ref().to_vec());
        }
    }

    let pair = Ed25519KeyPair::from_pkcs8(der).ok()?;
    Some(pair.public_key().as_ref().to_vec())
}
