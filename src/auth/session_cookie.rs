//! Session cookies of NextAuth 4 and Auth.js 5: compact JWE (RFC 7516) with `alg` `dir`, whose key
//! is derived from the application's secret (HKDF, RFC 5869). Only these two forms are read; any
//! other demand in the header is refused, `zip` above all.
//!
//! Invariant: a session cookie is looked for only in cookies of its name. A signed token is never
//! accepted in place of a session cookie, and a session cookie never in place of a signed token.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{constant_time, digest, hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::json;
use super::reason::Reason;

/// Seconds of clock difference that both libraries forgive.
pub const TOLERANCE: u64 = 15;

/// Longest cookie after its chunks were joined, in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// Most chunks of one cookie.
const MAX_CHUNKS: usize = 16;

/// The names that the two libraries give their cookies.
pub const NAMES: [&str; 4] = [
    "authjs.session-token",
    "__Secure-authjs.session-token",
    "next-auth.session-token",
    "__Secure-next-auth.session-token",
];

/// The library that made a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    NextAuth4,
    AuthJs5,
}

impl Maker {
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NextAuth4 => "NextAuth 4",
            Self::AuthJs5 => "Auth.js 5",
        }
    }

    /// Recognises the library by the header that it writes, which has nothing else in it: Auth.js
    /// adds a `kid`.
    pub(super) fn by_header(header: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| header.get(name).and_then(Value::as_str);
        match (text("alg")?, text("enc")?, text("kid"), header.len()) {
            ("dir", "A256GCM", None, 2) => Some(Self::NextAuth4),
            ("dir", "A256CBC-HS512", Some(_), 3) => Some(Self::AuthJs5),
            _ => None,
        }
    }
}

/// How a cookie is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Gcm,
    CbcHs512,
}

impl Encryption {
    fn key_bytes(self) -> usize {
        match self {
            Self::Gcm => 32,
            Self::CbcHs512 => 64,
        }
    }

    fn tag_bytes(self) -> usize {
        match self {
            Self::Gcm => 16,
            Self::CbcHs512 => 32,
        }
    }
}

/// The session cookies that are accepted.
#[derive(Clone)]
pub struct SessionCookie {
    /// Cookie names, without chunk numbers; the name is the salt of Auth.js 5.
    pub names: Vec<String>,
    /// The secrets, any of which may have made the cookie.
    pub secrets: Vec<String>,
}

impl std::fmt::Debug for SessionCookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionCookie").field("names", &self.names).finish_non_exhaustive()
    }
}

impl SessionCookie {
    /// Finds the cookies among `name=value` pairs and joins chunks in order: `name`, and `name.0`,
    /// `name.1` and so on. Returns names and values. There may be several: a browser may hold a
    /// cookie of an earlier version or length beside the one that counts.
    #[must_use]
    pub fn find<'n>(&'n self, cookies: &[(&str, &str)]) -> Vec<(&'n str, String)> {
        // A browser may still send a cookie that was emptied by signing out.
        let is = |name: &str, (n, v): &(&str, &str)| *n == name && !v.is_empty();
        let value = |name: &str| cookies.iter().find(|c| is(name, c)).map(|(_, v)| *v);

        let found = |name: &'n String| {
            let chunks = (0..MAX_CHUNKS).map_while(|i| value(&format!("{name}.{i}")));
            let joined: String = chunks.collect();
            let whole = value(name).map(str::to_owned);
            let joined = (!joined.is_empty()).then_some(joined);
            whole.into_iter().chain(joined).map(|value| (name.as_str(), value))
        };

        self.names.iter().flat_map(found).collect()
    }

    /// Returns the content of a cookie that one of the secrets decrypts.
    ///
    /// # Errors
    /// `malformed`, `alg_not_allowed`, `crit_unsupported`, or `bad_signature` if no secret fits;
    /// `oversize` above [`MAX_BYTES`].
    pub fn open(&self, name: &str, token: &str) -> Result<Vec<u8>, Reason> {
        let jwe = Jwe::split(token)?;
        let opened = self.secrets.iter().find_map(|secret| jwe.open(secret.as_bytes(), name));
        let (_, plain) = opened.ok_or(Reason::BadSignature)?;
        Ok(plain)
    }
}

/// The parts of a compact JWE whose header was accepted.
pub(super) struct Jwe<'t> {
    header: &'t str,
    kid: Option<String>,
    encryption: Encryption,
    iv: Vec<u8>,
    ciphertext: Vec<u8>,
    tag: Vec<u8>,
}

impl<'t> Jwe<'t> {
    pub(super) fn split(token: &'t str) -> Result<Self, Reason> {
        if token.len() > MAX_BYTES {
            return Err(Reason::Oversize);
        }

        let parts: Vec<&str> = token.split('.').collect();
        let [header, key, iv, ciphertext, tag] = parts[..] else {
            return Err(Reason::Malformed);
        };

        let fields = json::header(header)?;
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        if ["crit", "zip", "b64"].iter().any(|n| fields.contains_key(*n)) {
            return Err(Reason::CritUnsupported);
        }

        let encryption = match (text("alg"), text("enc")) {
            ("dir", "A256GCM") => Encryption::Gcm,
            ("dir", "A256CBC-HS512") => Encryption::CbcHs512,
            _ => return Err(Reason::AlgNotAllowed),
        };

        // With `dir` there is no encrypted key (RFC 7516 section 5.2 step 10).
        if !key.is_empty() {
            return Err(Reason::Malformed);
        }

        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::Malformed);
        let iv = bytes(iv)?;
        let ciphertext = bytes(ciphertext)?;
        let tag = bytes(tag)?;
        let lengths = match encryption {
            Encryption::Gcm => iv.len() == NONCE_LEN && tag.len() == encryption.tag_bytes(),
            Encryption::CbcHs512 => {
                iv.len() == 16
                    && tag.len() == encryption.tag_bytes()
                    && ciphertext.len() % 16 == 0
                    && !ciphertext.is_empty()
            }
        };
        if !lengths {
            return Err(Reason::Malformed);
        }

        let kid = fields.get("kid").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { header, kid, encryption, iv, ciphertext, tag })
    }

    /// True if the tag, which is the last part, is not whole.
    pub(super) fn is_cut_off(token: &str) -> bool {
        let parts: Vec<&str> = token.split('.').collect();
        let [header, _, _, _, tag] = parts[..] else { return false };
        let enc = json::header(header).ok().and_then(|h| h.get("enc")?.as_str().map(str::to_owned));
        let whole = match enc.as_deref() {
            Some("A256GCM") => Encryption::Gcm.tag_bytes(),
            Some("A256CBC-HS512") => Encryption::CbcHs512.tag_bytes(),
            _ => return false,
        };

        tag.len() < (whole * 4).div_ceil(3)
    }

    /// Returns the library whose way of making keys opens the cookie with this secret, under any
    /// of these names. Ways that no library takes by itself are not tried, because this runs for
    /// many secrets.
    pub(super) fn opener(&self, secret: &[u8], names: &[&str]) -> Option<Maker> {
        let bytes = self.encryption.key_bytes();
        match self.encryption {
            Encryption::Gcm => {
                let key = derive(Maker::NextAuth4, secret, "", bytes)?;
                self.open_gcm(&key).map(|_| Maker::NextAuth4)
            }
            Encryption::CbcHs512 => names.iter().find_map(|name| {
                let key = derive(Maker::AuthJs5, secret, name, bytes)?;
                // Auth.js names the key by its hash; comparing hashes costs less than decrypting.
                let is_named = self.kid.as_ref().is_none_or(|kid| *kid == thumbprint(&key));
                is_named.then(|| self.open_cbc(&key))?.map(|_| Maker::AuthJs5)
            }),
        }
    }

    /// Decrypts with a secret and a cookie name. Returns `None` if they do not fit.
    pub(super) fn open(&self, secret: &[u8], cookie: &str) -> Option<(Maker, Vec<u8>)> {
        let makers: &[Maker] = match self.encryption {
            Encryption::Gcm => &[Maker::NextAuth4, Maker::AuthJs5],
            Encryption::CbcHs512 => &[Maker::AuthJs5],
        };

        makers.iter().find_map(|maker| {
            let key = derive(*maker, secret, cookie, self.encryption.key_bytes())?;
            let plain = match self.encryption {
                Encryption::Gcm => self.open_gcm(&key),
                Encryption::CbcHs512 => self.open_cbc(&key),
            }?;
            Some((*maker, plain))
        })
    }

    fn open_gcm(&self, key: &[u8]) -> Option<Vec<u8>> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        let nonce = Nonce::try_assume_unique_for_key(&self.iv).ok()?;

        let mut data = [&self.ciphertext[..], &self.tag].concat();
        let length = key.open_in_place(nonce, Aad::from(self.header), &mut data).ok()?.len();
        data.truncate(length);
        Some(data)
    }

    /// AES_CBC_HMAC_SHA2 (RFC 7518 section 5.2.2.2): the tag is checked before anything
    /// is decrypted.
    fn open_cbc(&self, key: &[u8]) -> Option<Vec<u8>> {
        let (mac_key, enc_key) = key.split_at(32);
        let aad_bits = (self.header.len() as u64 * 8).to_be_bytes();
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA512, mac_key));
        for part in [self.header.as_bytes(), &self.iv, &self.ciphertext, &aad_bits] {
            mac.update(part);
        }
        constant_time::verify_slices_are_equal(&mac.sign().as_ref()[..32], &self.tag).ok()?;

        let key = UnboundCipherKey::new(&AES_256, enc_key).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
        let iv = DecryptionContext::Iv128(FixedLength::from(<[u8; 16]>::try_from(&*self.iv).ok()?));

        let mut data = self.ciphertext.clone();
        let length = key.decrypt(&mut data, iv).ok()?.len();
        data.truncate(length);
        Some(data)
    }
}

/// The length of a derived key, as the `hkdf` module asks for it.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-SHA-256 with the salts and labels that the two libraries use.
fn derive(maker: Maker, secret: &[u8], cookie: &str, length: usize) -> Option<Vec<u8>> {
    let (salt, info) = match maker {
        Maker::NextAuth4 => ("", "NextAuth.js Generated Encryption Key".to_owned()),
        Maker::AuthJs5 => (cookie, format!("Auth.js Generated Encryption Key ({cookie})")),
    };
    expand(secret, salt, &info, length)
}

/// The `kid` that Auth.js writes: the hash of the key as a JWK (RFC 7638), with SHA-512.
fn thumbprint(key: &[u8]) -> String {
    let jwk = format!("{{\"k\":\"{}\",\"kty\":\"oct\"}}", URL_SAFE_NO_PAD.encode(key));
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA512, jwk.as_bytes()))
}

/// The signing key of a next-auth 3 session, which was a JWS.
pub(super) fn next_auth_3_key(secret: &str) -> Option<Vec<u8>> {
    expand(secret.as_bytes(), "", "NextAuth.js Generated Signing Key", 64)
}

fn expand(secret: &[u8], salt: &str, info: &str, length: usize) -> Option<Vec<u8>> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt.as_bytes()).extract(secret);
    let mut key = vec![0; length];
    prk.expand(&[info.as_bytes()], Length(length)).ok()?.fill(&mut key).ok()?;
    Some(key)
}
