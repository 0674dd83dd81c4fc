//! `[[auth.keys]]`: from settings to keys. Secret and key files are read here too, and their
//! oddities are noted, each with its fix.
//!
//! Not here: what makes a key usable (`auth`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::content::Files;
use super::values::{Problem, Redacted, Span};
use crate::auth::algorithm::names;
use crate::auth::{Algorithm, Encoding, Family, Key, Remote, Secret, jwk, pem};

/// One `[[auth.keys]]` entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthKey {
    pub kid: Option<String>,
    pub secret: Option<Redacted>,
    pub secret_env: Option<String>,
    pub secret_file: Option<PathBuf>,
    pub public_key_pem: Option<String>,
    pub public_key_file: Option<PathBuf>,
    pub jwk: Option<Redacted>,
    pub jwks_file: Option<PathBuf>,
    pub jwks_url: Option<String>,
    #[serde(default)]
    pub encoding: Option<Encoding>,
    #[serde(default)]
    pub algs: Option<Vec<Algorithm>>,
    pub valid_until: Option<Moment>,
}

/// A moment in UTC, as a TOML date-time or as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub u64);

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Date(toml::value::Datetime),
            Text(String),
        }

        let text = match Raw::deserialize(deserializer)? {
            Raw::Date(date) => date.to_string(),
            Raw::Text(text) => text,
        };

        let since = humantime::parse_rfc3339(&text).ok();
        since
            .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok())
            .map(|d| Self(d.as_secs()))
            .ok_or_else(|| {
                let hint = "is not a time such as 2026-12-01T00:00:00Z (UTC, ending in Z)";
                serde::de::Error::custom(format!("{text:?} {hint}"))
            })
    }
}

/// The bounds for every `jwks_url`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    pub refresh: Span,
    pub max_age: Span,
    pub min_interval: Span,
    pub timeout: Span,
    pub max_bytes: usize,
    pub ca_file: String,
}

/// The keys, and what else reading them yields.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) keys: Vec<Key>,
    pub(super) remotes: Vec<Arc<Remote>>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// Files whose change requires a new reading of the configuration.
    pub(super) files: Files,
}

/// The circumstances of the reading.
pub(super) struct Reading<'a> {
    /// True if weak secrets and unencrypted JWKS URLs are allowed.
    pub(super) dev: bool,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    pub(super) max_age: Duration,
}

fn note(list: &mut Vec<Problem>, path: String, message: impl Into<String>) {
    list.push(Problem { path, origin: None, message: message.into() });
}

impl Found {
    pub(super) fn read(keys: &[AuthKey], reading: &Reading<'_>) -> Self {
        let mut found = Self::default();
        for (i, key) in keys.iter().enumerate() {
            let at = format!("auth.keys[{i}]");
            if key.algs.as_ref().is_some_and(Vec::is_empty) {
                note(&mut found.problems, format!("{at}.algs"), "must name at least one algorithm");
                continue;
            }
            found.one(&at, key, reading);
        }
        found
    }

    fn one(&mut self, at: &str, key: &AuthKey, reading: &Reading<'_>) {
        let sources = [
            ("secret", key.secret.is_some()),
            ("secret_env", key.secret_env.is_some()),
            ("secret_file", key.secret_file.is_some()),
            ("public_key_pem", key.public_key_pem.is_some()),
            ("public_key_file", key.public_key_file.is_some()),
            ("jwk", key.jwk.is_some()),
            ("jwks_file", key.jwks_file.is_some()),
            ("jwks_url", key.jwks_url.is_some()),
        ];

        let mut given = sources.iter().filter(|(_, is)| *is).map(|(name, _)| *name);
        let (Some(name), None) = (given.next(), given.next()) else {
            let names: Vec<_> = sources.iter().map(|(name, _)| *name).collect();
            let message = format!("must have exactly one of {}", names.join(", "));
            return note(&mut self.problems, at.to_owned(), message);
        };

        let path = format!("{at}.{name}");
        if key.encoding.is_some() && !name.starts_with("secret") {
            note(&mut self.problems, format!("{at}.encoding"), "applies only to a secret");
        }

        let text = match self.text(key, reading) {
            Ok(text) => text,
            Err(why) => return note(&mut self.problems, path, why),
        };

        let result = match name {
            "secret" | "secret_env" | "secret_file" => {
                self.secret(&path, (at, key), &text, reading.dev)
            }
            "public_key_pem" | "public_key_file" => self.public_key(&path, at, key, &text),
            "jwks_url" => self.remote(at, key, &text, reading),
            _ => self.set(&path, at, key, &text),
        };

        if let Err(why) = result {
            note(&mut self.problems, path, why);
        }
    }

    /// The text that the setting holds or points to.
    fn text(&mut self, key: &AuthKey, reading: &Reading<'_>) -> Result<String, String> {
        let files = [&key.secret_file, &key.public_key_file, &key.jwks_file];
        if let Some(path) = files.into_iter().flatten().next() {
            let text = self
                .files
                .read(path)
                .map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
            // Editors and `echo` put one newline at the end, which is not part of a secret.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            return Ok(text.strip_suffix('\r').unwrap_or(text).to_owned());
        }

        if let Some(name) = &key.secret_env {
            return (reading.env)(name)
                .ok_or_else(|| format!("the environment variable {name} is not set"));
        }

        let texts = [key.secret.as_ref().map(|s| &s.0), key.jwk.as_ref().map(|s| &s.0)];
        let texts = texts.into_iter().chain([key.public_key_pem.as_ref(), key.jwks_url.as_ref()]);
        texts.flatten().next().cloned().ok_or_else(|| "is missing".to_owned())
    }

    /// Reads a secret.
    fn secret(
        &mut self,
        path: &str,
        (at, key): (&str, &AuthKey),
        text: &str,
        dev: bool,
    ) -> Result<(), String> {
        let secret = Secret::new(text, key.encoding.unwrap_or_default());
        let secret = secret.map_err(|e| e.to_string())?;
        if let Some(weak) = secret.weakness() {
            if !dev {
                return Err(weak.to_string());
            }
            note(&mut self.warnings, path.to_owned(), weak.to_string());
        }

        for odd in secret.oddities() {
            note(&mut self.warnings, path.to_owned(), format!("the secret {odd}"));
        }

        let algs = bound(key, Family::Hmac, &[Algorithm::Hs256])?;
        self.keys.push(made(key, at, Key::new(key.kid.clone(), algs, secret)));
        Ok(())
    }

    /// Reads a public key in PEM.
    fn public_key(
        &mut self,
        path: &str,
        at: &str,
        key: &AuthKey,
        text: &str,
    ) -> Result<(), String> {
        let read = pem::public_key(text).map_err(|e| e.to_string())?;
        for odd in read.oddities {
            note(&mut self.warnings, path.to_owned(), format!("the key {odd}"));
        }

        let family = read.key.family();
        let default: Vec<_> = match family {
            Family::Rsa => vec![Algorithm::Rs256],
            Family::Hmac | Family::P256 | Family::P384 | Family::P521 | Family::Ed25519 => {
                family.algorithms().collect()
            }
        };

        let algs = bound(key, family, &default)?;
        self.keys.push(made(key, at, Key::new(key.kid.clone(), algs, read.key)));
        Ok(())
    }

    /// Reads a JWK, or a file with a set of them.
    fn set(&mut self, path: &str, at: &str, key: &AuthKey, text: &str) -> Result<(), String> {
        if key.kid.is_some() {
            return Err("contains keys with a `kid` of their own: leave kid out".to_owned());
        }
        let allowed = key.algs.clone().unwrap_or_else(|| Algorithm::ALL.to_vec());
        let set = jwk::read(text.as_bytes(), &allowed, true)?;

        if set.keys.is_empty() && set.left_out.is_empty() {
            return Err("contains no key".to_owned());
        }
        if set.keys.is_empty() {
            return Err(format!("contains no usable key: {}", set.left_out));
        }
        if !set.left_out.is_empty() {
            note(&mut self.warnings, path.to_owned(), set.left_out.to_string());
        }

        self.keys.extend(set.keys.into_iter().map(|one| made(key, at, one)));
        Ok(())
    }

    /// Notes a key set at a URL.
    fn remote(
        &mut self,
        at: &str,
        key: &AuthKey,
        url: &str,
        reading: &Reading<'_>,
    ) -> Result<(), String> {
        let parsed: Result<axum::http::Uri, _> = url.parse();
        let host = parsed.as_ref().ok().and_then(|u| u.host()).unwrap_or_default().to_owned();
        let is_local = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());

        match parsed.as_ref().ok().and_then(|u| u.scheme_str()) {
            Some("https") => {}
            Some("http") if is_local || reading.dev => {}
            Some("http") => {
                return Err(
                    "must be https: otherwise anyone on the network path could supply keys"
                        .to_owned(),
                );
            }
            _ => return Err("is not a URL such as https://issuer/.well-known/jwks.json".to_owned()),
        }

        if key.kid.is_some() || key.valid_until.is_some() {
            let wrong = if key.kid.is_some() { "kid" } else { "valid_until" };
            note(
                &mut self.problems,
                format!("{at}.{wrong}"),
                "comes with the key set: leave it out",
            );
        }

        let asymmetric = |a: &Algorithm| a.family() != Family::Hmac;
        let all = Algorithm::ALL.into_iter().filter(asymmetric).collect();
        let algs = key.algs.clone().unwrap_or(all);
        if let Some(symmetric) = algs.iter().find(|a| !asymmetric(a)) {
            let why =
                format!("{} needs a secret, which no public key set contains", symmetric.name());
            note(&mut self.problems, format!("{at}.algs"), why);
        }

        self.remotes.push(Arc::new(Remote::new(url.to_owned(), algs, reading.max_age.as_secs())));
        Ok(())
    }
}

/// Gives a key its end and the setting that it comes from.
fn made(key: &AuthKey, at: &str, made: Key) -> Key {
    made.until(key.valid_until.map(|m| m.0)).named(at)
}

/// The algorithms that a key is bound to: the configured ones, or the default. A configured
/// algorithm that keys of this kind do not have is an error.
fn bound(key: &AuthKey, family: Family, default: &[Algorithm]) -> Result<Vec<Algorithm>, String> {
    let algs = key.algs.clone().unwrap_or_else(|| default.to_vec());
    match algs.iter().find(|a| a.family() != family) {
        None => Ok(algs),
        Some(wrong) => Err(format!(
            "is an {} key, but `algs` names {}: possible are {}",
            family.label(),
            wrong.name(),
            names(&family.algorithms().collect::<Vec<_>>()),
        )),
    }
}
