//! Short fingerprints of keys: two services that print the same one have the same key.
//!
//! A secret's fingerprint is keyed by the secret itself, so it reveals nothing beyond 64 bits
//! of a MAC. A weak secret could still be guessed from it, so a gateway with a weak secret
//! does not start.

use std::fmt;

use aws_lc_rs::{digest, hmac};

use super::keys::{Key, Material};

/// The text that is authenticated under the secret.
const LABEL: &[u8] = b"tollgate-fingerprint";

/// The first 8 bytes of a hash, shown as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

fn first_bytes(bytes: &[u8]) -> Fingerprint {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[..8]);
    Fingerprint(out)
}

/// The fingerprint of a secret: HMAC-SHA-256 of the label under the secret's bytes.
#[must_use]
pub fn of_secret(bytes: &[u8]) -> Fingerprint {
    first_bytes(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), LABEL).as_ref())
}

impl Key {
    /// The fingerprint of a key: for a secret that of [`of_secret`], for a public key the SHA-256
    /// of its SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        match self.material() {
            Material::Secret(secret) => of_secret(secret.bytes()),
            Material::Public(key) => {
                first_bytes(digest::digest(&digest::SHA256, key.spki()).as_ref())
            }
        }
    }
}

/// Commands with which the other side prints the fingerprint of the secret in a variable: name
/// and command.
pub const RECIPES: [(&str, &str); 3] = [
    (
        "Node",
        "node -e 'console.log(require(\"crypto\").createHmac(\"sha256\", process.env.NEXTAUTH_SECRET).update(\"tollgate-fingerprint\").digest(\"hex\").slice(0, 16))'",
    ),
    (
        "Python",
        "python3 -c 'import hmac, os; print(hmac.new(os.environ[\"NEXTAUTH_SECRET\"].encode(), b\"tollgate-fingerprint\", \"sha256\").hexdigest()[:16])'",
    ),
    (
        "shell",
        "printf tollgate-fingerprint | openssl dgst -sha256 -hmac \"$NEXTAUTH_SECRET\" | sed 's/.* //' | cut -c 1-16",
    ),
];
