//! JSON Web Keys (RFC 7517), read one by one: an unusable key is skipped with a reason and never
//! makes the rest of its set unusable.
//!
//! Not here: fetching a set (`upstream::jwks`).

use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, Family};
use super::keys::{Key, Material};
use super::public_key::PublicKey;
use super::secret::{Encoding, Secret};

/// Most keys that are taken from one set.
const MAX_KEYS: usize = 64;

/// Most entries of a set that are looked at: reading a key costs time, and the set comes
/// from outside.
const MAX_LOOKED_AT: usize = 1024;

/// Most different reasons that are listed for keys that were left out.
const MAX_REASONS: usize = 4;

/// The content of a set: usable keys, and the keys that were left out with their reasons.
#[derive(Debug, Default)]
pub struct Set {
    pub keys: Vec<Key>,
    pub left_out: LeftOut,
}

/// The keys that were left out of a set, summed up: one line, however many there are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeftOut {
    count: usize,
    /// Each reason with one example, and the number of keys that it applies to.
    reasons: Vec<(String, String, usize)>,
}

impl LeftOut {
    fn add(&mut self, name: String, why: String) {
        self.add_all(1, name, why);
    }

    fn add_all(&mut self, count: usize, name: String, why: String) {
        self.count += count;
        if let Some((_, _, n)) = self.reasons.iter_mut().find(|(known, _, _)| *known == why) {
            *n += count;
        } else if self.reasons.len() < MAX_REASONS {
            self.reasons.push((why, name, count));
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} left out", self.count)?;
        let mut rest = self.count;

        for (i, (why, name, n)) in self.reasons.iter().enumerate() {
            let separator = if i == 0 { ": " } else { "; " };
            match n {
                1 => write!(f, "{separator}{name}: {why}")?,
                n => write!(f, "{separator}{name} and {} more: {why}", n - 1)?,
            }
            rest -= n;
        }

        if rest > 0 {
            write!(f, "; and {rest} for other reasons")?;
        }
        Ok(())
    }
}

/// Reads a set (`{"keys":[…]}`), or one key by itself. `allowed` bounds the algorithms of the keys;
/// `with_secrets` says whether symmetric keys may be in the set.
///
/// # Errors
/// When the text is neither.
pub fn read(text: &[u8], allowed: &[Algorithm], with_secrets: bool) -> Result<Set, String> {
    // Some editors put a byte order mark in front (RFC 8259 section 8.1).
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);

    let value = serde_json::from_slice::<Value>(text).map_err(|e| format!("is not JSON: {e}"))?;
    let list = match value {
        Value::Object(mut set) => match set.remove("keys") {
            Some(Value::Array(list)) => list,
            Some(_) => return Err("its `keys` is not a list".to_owned()),
            None if set.contains_key("kty") => vec![Value::Object(set)],
            None => return Err("has neither `keys` nor `kty`: is it a JWK set?".to_owned()),
        },
        Value::Array(_) => {
            return Err("is a list, but a JWK set is an object: {\"keys\":[…]}".to_owned());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return Err("is not a JWK set".to_owned());
        }
    };

    let mut set = Set::default();
    for (i, jwk) in list.iter().enumerate() {
        let kid = jwk.get("kid").and_then(Value::as_str).map_or_else(String::new, shown);
        let name = if kid.is_empty() { format!("keys[{i}]") } else { format!("kid {kid}") };
        let too_many = if set.keys.len() >= MAX_KEYS {
            Some(format!("a set may have at most {MAX_KEYS} keys; the others are ignored"))
        } else {
            let why = || format!("only the first {MAX_LOOKED_AT} entries of a set are read");
            (i >= MAX_LOOKED_AT).then(why)
        };

        if let Some(why) = too_many {
            set.left_out.add_all(list.len() - i, name, why);
            break;
        }
        match one(jwk, allowed, with_secrets) {
            Ok(key) => set.keys.push(key),
            Err(why) => set.left_out.add(name, why),
        }
    }
    Ok(set)
}

/// A text from outside, fit for a log: escaped, and cut to 64 characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// Reads one key of a set.
fn one(jwk: &Value, allowed: &[Algorithm], with_secrets: bool) -> Result<Key, String> {
    let Value::Object(jwk) = jwk else {
        return Err("not an object".to_owned());
    };

    match jwk.get("use") {
        None => {}
        Some(Value::String(use_)) if use_ == "sig" => {}
        Some(_) => return Err("`use` is not \"sig\"".to_owned()),
    }
    if let Some(ops) = jwk.get("key_ops") {
        let verifies =
            |o: &Value| o == "verify" || (o == "sign" && jwk.get("kty") == Some(&"oct".into()));
        if !ops.as_array().is_some_and(|ops| ops.iter().any(verifies)) {
            return Err("`key_ops` does not include \"verify\"".to_owned());
        }
    }

    let (family, material) = material(jwk, with_secrets)?;

    let algs: Vec<Algorithm> = match jwk.get("alg") {
        None => family.algorithms().filter(|a| allowed.contains(a)).collect(),
        Some(alg) => {
            let name = alg.as_str().unwrap_or_default();
            let alg = Algorithm::named(name)
                .filter(|a| a.family() == family)
                .ok_or_else(|| format!("`alg` {} is not one of {}", shown(name), family.label()))?;
            if !allowed.contains(&alg) {
                return Err(format!("`alg` {} is not in the key's `algs`", alg.name()));
            }
            vec![alg]
        }
    };
    if algs.is_empty() {
        return Err(format!("`algs` names no algorithm for {}", family.label()));
    }

    let kid = match jwk.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= 256 => Some(kid.clone()),
        Some(_) => return Err("`kid` is not a short string".to_owned()),
    };

    Ok(Key::new(kid, algs, material))
}

/// Reads the key itself, by its kind.
fn material(jwk: &Map<String, Value>, with_secrets: bool) -> Result<(Family, Material), String> {
    let kty = jwk.get("kty").and_then(Value::as_str).ok_or("has no `kty`")?;
    let crv = jwk.get("crv").and_then(Value::as_str).unwrap_or_default();
    let bytes = |name: &str| {
        let text = jwk.get(name).and_then(Value::as_str);
        let text = text.ok_or_else(|| format!("has no `{name}`"))?;
        let config =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        GeneralPurpose::new(&base64::alphabet::URL_SAFE, config)
            .decode(text)
            .map_err(|_| format!("`{name}` is not base64url"))
    };

    let key = match (kty, crv) {
        ("RSA", _) => PublicKey::from_rsa(&bytes("n")?, &bytes("e")?),
        ("EC", "P-256") => PublicKey::from_point(Family::P256, &bytes("x")?, &bytes("y")?),
        ("EC", "P-384") => PublicKey::from_point(Family::P384, &bytes("x")?, &bytes("y")?),
        ("EC", "P-521") => PublicKey::from_point(Family::P521, &bytes("x")?, &bytes("y")?),
        ("OKP", "Ed25519") => PublicKey::of_family(Family::Ed25519, &bytes("x")?),
        ("oct", _) if with_secrets => {
            let text = URL_SAFE_NO_PAD.encode(bytes("k")?);
            let secret = Secret::new(&text, Encoding::Base64url).map_err(|e| e.to_string())?;
            if let Some(weak) = secret.weakness() {
                return Err(weak.to_string());
            }
            return Ok((Family::Hmac, secret.into()));
        }
        ("oct", _) => return Err("a symmetric key does not belong in a public set".to_owned()),
        ("EC" | "OKP", crv) => return Err(format!("curve {} is not supported", shown(crv))),
        (kty, _) => return Err(format!("kty {} is not supported", shown(kty))),
    };

    let key = key.map_err(|e| e.to_string())?;
    Ok((key.family(), key.into()))
}
