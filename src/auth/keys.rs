//! The set of verification keys. Each key is bound to its algorithms. Keys are looked up in a
//! fixed set and are never fetched or opened because of what a token says (RFC 8725 sections
//! 3.1 and 3.10).
//!
//! A remote set is filled by `upstream::jwks`; here it is only read. Invariant: a key past its
//! `valid_until` verifies nothing, but still counts as known, so that its tokens are refused for
//! their signature and the diagnosis can say which key it was.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::algorithm::{Algorithm, Family};
use super::public_key::PublicKey;
use super::reason::Reason;
use super::secret::Secret;

/// The material of a key: a shared secret or a public key.
#[derive(Debug)]
pub enum Material {
    Secret(Box<Secret>),
    Public(Box<PublicKey>),
}

impl From<Secret> for Material {
    fn from(secret: Secret) -> Self {
        Self::Secret(Box::new(secret))
    }
}

impl From<PublicKey> for Material {
    fn from(key: PublicKey) -> Self {
        Self::Public(Box::new(key))
    }
}

/// One verification key.
pub struct Key {
    kid: Option<Box<str>>,
    algs: Box<[Algorithm]>,
    material: Material,
    /// Unix seconds.
    valid_until: Option<u64>,
    /// Where the key is configured, for messages.
    name: Box<str>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("kid", &self.kid)
            .field("algs", &self.algs)
            .finish_non_exhaustive()
    }
}

/// Why a key cannot sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error(
        "only a secret can sign, but all configured keys are public: let the issuer sign, or add \
         [[auth.keys]] with a secret for tests"
    )]
    PublicOnly,
    #[error(
        "the key is not bound to that algorithm: add it to the key's `algs`, or leave --alg out"
    )]
    Algorithm,
    #[error("no key has that kid")]
    NoSuchKey,
    #[error("no key is configured: add [[auth.keys]] with a secret")]
    NoKey,
    #[error("its valid_until has passed: tokens that it signs are refused")]
    Retired,
}

impl Key {
    #[must_use]
    pub fn new(kid: Option<String>, algs: Vec<Algorithm>, material: impl Into<Material>) -> Self {
        let material = material.into();
        let kid = kid.map(Into::into);
        Self { kid, algs: algs.into(), material, valid_until: None, name: Box::default() }
    }

    /// Limits the key to tokens that arrive before this moment.
    #[must_use]
    pub fn until(mut self, valid_until: Option<u64>) -> Self {
        self.valid_until = valid_until;
        self
    }

    #[must_use]
    pub fn named(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = name.into();
        self
    }

    #[must_use]
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    #[must_use]
    pub fn algs(&self) -> &[Algorithm] {
        &self.algs
    }

    #[must_use]
    pub fn material(&self) -> &Material {
        &self.material
    }

    #[must_use]
    pub fn family(&self) -> Family {
        match &self.material {
            Material::Secret(_) => Family::Hmac,
            Material::Public(key) => key.family(),
        }
    }

    #[must_use]
    pub fn secret(&self) -> Option<&Secret> {
        match &self.material {
            Material::Secret(secret) => Some(secret),
            Material::Public(_) => None,
        }
    }

    #[must_use]
    pub fn valid_until(&self) -> Option<u64> {
        self.valid_until
    }

    #[must_use]
    pub fn is_retired(&self, now: u64) -> bool {
        self.valid_until.is_some_and(|until| now >= until)
    }

    /// Where the key is configured.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn allows(&self, alg: Algorithm) -> bool {
        self.algs.contains(&alg)
    }

    /// True if the signature is this key's, whatever the key is bound to.
    pub(super) fn verifies(&self, alg: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(secret) => secret.verifies(alg, signed, signature),
            Material::Public(key) => key.verifies(alg, signed, signature),
        }
    }

    /// Signs claims: for `token mint` and the development page.
    ///
    /// # Errors
    /// A public key cannot sign, nor any key with an algorithm that it is not bound to.
    pub fn sign(
        &self,
        claims: &serde_json::Value,
        alg: Option<Algorithm>,
    ) -> Result<String, SignError> {
        let secret = self.secret().ok_or(SignError::PublicOnly)?;
        let alg = alg.or(self.algs.first().copied()).ok_or(SignError::Algorithm)?;
        if !self.allows(alg) {
            return Err(SignError::Algorithm);
        }

        let mut header = serde_json::json!({ "alg": alg.name(), "typ": "JWT" });
        if let Some(kid) = &self.kid {
            header["kid"] = (**kid).into();
        }

        let part = |v: &serde_json::Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let tag = secret.sign(alg, signed.as_bytes()).ok_or(SignError::Algorithm)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag)))
    }
}

/// The keys of a remote set. `fetched_at` is the Unix second of the last successful fetch.
#[derive(Debug, Default)]
pub struct Fetched {
    pub keys: Vec<Key>,
    pub fetched_at: Option<u64>,
}

/// A URL without user, password, query and fragment, which may hold secrets.
#[must_use]
pub fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else {
        return "<redacted>".to_owned();
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// A set of keys at a URL, as it was at the last successful fetch.
#[derive(Debug)]
pub struct Remote {
    pub url: String,
    pub algs: Vec<Algorithm>,
    /// Seconds after which the keys of the last successful fetch may not be used any more.
    pub max_age: u64,
    state: ArcSwap<Fetched>,
}

impl Remote {
    #[must_use]
    pub fn new(url: String, algs: Vec<Algorithm>, max_age: u64) -> Self {
        Self { url, algs, max_age, state: ArcSwap::default() }
    }

    /// Replaces all keys: a key that was withdrawn from the set is gone.
    pub fn replace(&self, fetched: Fetched) {
        self.state.store(Arc::new(fetched));
    }

    /// True if both have the same keys: the same URL, and the same algorithms.
    #[must_use]
    pub fn is_same_set(&self, other: &Self) -> bool {
        self.url == other.url && self.algs == other.algs
    }

    /// Starts with the keys that another set has fetched.
    pub fn take_over(&self, other: &Self) {
        self.state.store(other.state());
    }

    /// The URL without the parts that may be secret: user, password, query and fragment.
    #[must_use]
    pub fn shown_url(&self) -> String {
        shown_url(&self.url)
    }

    #[must_use]
    pub fn state(&self) -> Arc<Fetched> {
        self.state.load_full()
    }

    /// True if the keys are fresh enough to be used.
    #[must_use]
    pub fn is_usable(&self, now: u64) -> bool {
        let fetched_at = self.state.load().fetched_at;
        fetched_at.is_some_and(|at| now.saturating_sub(at) <= self.max_age)
    }
}

/// The configured keys, in order, and the remote sets.
#[derive(Debug, Default)]
pub struct KeySet {
    fixed: Vec<Key>,
    remotes: Vec<Arc<Remote>>,
}

/// How far the search for a fitting key came.
#[derive(Default)]
struct Search {
    /// Some key has the algorithm.
    alg: bool,
    /// The token's `kid` is some key's, whatever its algorithms.
    known: bool,
    /// Some key fits in both.
    both: bool,
    unavailable: bool,
}

impl KeySet {
    #[must_use]
    pub fn new(fixed: Vec<Key>, remotes: Vec<Arc<Remote>>) -> Self {
        Self { fixed, remotes }
    }

    #[must_use]
    pub fn fixed(&self) -> &[Key] {
        &self.fixed
    }

    #[must_use]
    pub fn remotes(&self) -> &[Arc<Remote>] {
        &self.remotes
    }

    pub fn remotes_mut(&mut self) -> &mut [Arc<Remote>] {
        &mut self.remotes
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.remotes.is_empty()
    }

    /// The first key that can sign.
    #[must_use]
    pub fn first_secret(&self) -> Option<&Key> {
        self.fixed.iter().find(|k| k.secret().is_some())
    }

    /// The key that signs a token that is accepted now: the first secret, or the one with this
    /// `kid`.
    ///
    /// # Errors
    /// Why there is no such key.
    pub fn signing(&self, kid: Option<&str>, now: u64) -> Result<&Key, SignError> {
        let named = || self.fixed.iter().filter(|k| kid.is_none() || k.kid() == kid);
        let secrets = || named().filter(|k| k.secret().is_some());
        if let Some(key) = secrets().find(|k| !k.is_retired(now)) {
            return Ok(key);
        }

        Err(match kid {
            _ if secrets().next().is_some() => SignError::Retired,
            Some(_) if named().next().is_none() => SignError::NoSuchKey,
            None if self.is_empty() => SignError::NoKey,
            _ => SignError::PublicOnly,
        })
    }

    /// Tries the keys that fit `kid` and `alg`. A key without a `kid` fits any token, and a token
    /// without one fits any key.
    pub(super) fn verify(&self, token: &Signed<'_>, now: u64) -> Result<(), Reason> {
        let alg = Algorithm::named(token.alg).ok_or(Reason::AlgNotAllowed)?;

        let mut search = Search::default();
        let mut hit = |keys: &[Key]| keys.iter().any(|key| search.tries(key, alg, token, now));
        if hit(&self.fixed) {
            return Ok(());
        }

        for remote in &self.remotes {
            if remote.is_usable(now) && hit(&remote.state.load().keys) {
                return Ok(());
            }
        }

        for remote in self.remotes.iter().filter(|r| r.algs.contains(&alg)) {
            search.alg = true;
            search.unavailable |= !remote.is_usable(now);
        }

        Err(match search {
            Search { unavailable: true, .. } => Reason::KeysUnavailable,
            Search { both: true, .. } => Reason::BadSignature,
            Search { alg: false, .. } | Search { known: true, .. } => Reason::AlgNotAllowed,
            Search { .. } => Reason::KidUnknown,
        })
    }
}

impl Search {
    /// Tries one key, and notes what fits.
    fn tries(&mut self, key: &Key, alg: Algorithm, token: &Signed<'_>, now: u64) -> bool {
        let fits_alg = key.allows(alg);
        let fits_kid = token.kid.is_none() || key.kid.is_none() || key.kid() == token.kid;
        self.alg |= fits_alg;

        self.known |= token.kid.is_some() && key.kid() == token.kid;
        self.both |= fits_alg && fits_kid;

        fits_alg
            && fits_kid
            && !key.is_retired(now)
            && key.verifies(alg, token.signed, token.signature)
    }
}

/// A signature with what is needed to check it.
pub(super) struct Signed<'t> {
    pub(super) alg: &'t str,
    pub(super) kid: Option<&'t str>,
    pub(super) signed: &'t [u8],
    pub(super) signature: &'t [u8],
}
