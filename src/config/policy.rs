//! From settings to what the sessions need: verifier, rules, origins, limits. Values that have the
//! right type but make no sense are judged here too.
//!
//! Not here: reading the settings (`load`). Invariant: a `Policy` that exists is usable. It is
//! swapped whole on reload.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::content::Files;
use super::keys::{Found, Reading};
use super::{AllowKind, Api, Auth, Callback, Channel, Config, Limits, Problem, Reject};
use crate::access::{Allow, Pattern, Rule};
use crate::auth::{
    Algorithm, Encoding, Key, KeySet, Secret, SessionCookie, Settings, UserClaim, Verifier,
};
use crate::origin::AllowedOrigins;
use crate::tls;

/// Everything that may change while the gateway runs.
#[derive(Debug)]
pub struct Policy {
    pub verifier: Verifier,
    pub rules: Vec<Rule>,
    pub limits: Limits,
    pub allowed_origins: AllowedOrigins,
    pub allowed_headers: Vec<String>,
    pub trusted_proxies: Vec<ipnet::IpNet>,
    pub cookie: Option<String>,
    pub reject: Reject,
    pub anonymous: bool,
    pub auth_deadline: Duration,
    pub expiring_notice: Duration,
    pub leeway: Duration,
    pub api_keys: Vec<Arc<[u8]>>,
    pub callback_secret: String,
    /// PEM of the certificates that the callback's server may have.
    pub callback_ca: Option<String>,
    /// The key of `--dev`; its tokens are accepted beside those of the configured keys.
    pub dev_key: Option<Key>,
    /// Settings that work but are probably not intended.
    pub warnings: Vec<Problem>,
    /// The files whose change requires a new reading of the configuration, with their contents.
    pub files: Files,
}

/// Fewest characters of an API key: 16 random letters and digits are 95 bits.
const MIN_API_KEY: usize = 16;

/// Collects the problems of a configuration.
#[derive(Default)]
pub(super) struct Judge {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    files: Files,
}

impl Judge {
    pub(super) fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), origin: None, message: message.into() });
    }

    fn warning(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem { path: path.into(), origin: None, message: message.into() });
    }

    /// Reads a secret from a file, which is watched from now on. The secret must not be in another
    /// setting too.
    pub(super) fn in_file(&mut self, path: &str, file: &str, other: (&str, bool)) -> String {
        let text = self.files.read(Path::new(file));
        if let (other, true) = other {
            self.problem(path, format!("set either this or {other}, not both"));
        }

        let secret = text.map(|t| t.trim_end_matches(['\r', '\n']).to_owned());
        match &secret {
            Err(e) => self.problem(path, format!("{file} cannot be read: {e}")),
            Ok(secret) if secret.is_empty() => self.problem(path, format!("{file} is empty")),
            Ok(secret) if secret.contains(char::is_control) => {
                self.problem(path, format!("{file} contains more than one line"));
            }
            Ok(_) => {}
        }

        secret.unwrap_or_default()
    }
}

impl Policy {
    /// Judges a configuration.
    ///
    /// # Errors
    /// All problems that were found.
    pub fn build(
        config: &Config,
        (dev, dev_secret): (bool, Option<&str>),
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, Vec<Problem>> {
        let mut judge = Judge::default();

        judge.limits(config);
        judge.redis(config);
        let allowed_origins = judge.origins(&config.server.allowed_origins, dev);
        judge.headers(&config.server.allowed_headers);
        let rules = judge.rules(&config.channels);
        let session = judge.session_cookie(&config.auth.session_cookie, dev, env);
        let callback_secret = judge.callback(config);
        let callback_ca = judge.callback_ca(config);

        let reading = Reading { dev, env, max_age: config.auth.jwks.max_age.0 };
        let mut found = Found::read(&config.auth.keys, &reading);
        judge.problems.append(&mut found.problems);
        judge.files.append(&mut found.files);
        judge.warnings.append(&mut found.warnings);

        let without_keys = config.auth.keys.is_empty() && session.is_none();
        if without_keys && !dev && !config.auth.anonymous {
            judge.problem(
                "auth.keys",
                "no key is configured, so no token could ever be accepted: add [[auth.keys]] \
                 with secret_env or secret_file, or set TOLLGATE_AUTH__KEYS",
            );
        }

        // The page has a key of its own, because tokens of the configured keys are accepted
        // elsewhere too.
        let dev_key = dev_secret.and_then(|text| judge.dev_key(text));
        found.keys.extend(dev_secret.and_then(|text| judge.dev_key(text)));

        let api_keys = judge.api_keys(&config.api);
        if config.auth.user_claim.is_empty() {
            judge.problem("auth.user_claim", "must name at least one claim");
        }

        if !judge.problems.is_empty() {
            return Err(judge.problems);
        }

        let auth = &config.auth;
        Ok(Self {
            verifier: Verifier::new(
                settings(auth, &rules, &config.limits),
                KeySet::new(found.keys, found.remotes),
            )
            .with_session(session),
            warnings: judge.warnings,
            files: judge.files,
            rules,
            limits: config.limits.clone(),
            allowed_origins,
            allowed_headers: config.server.allowed_headers.clone(),
            trusted_proxies: config.server.trusted_proxies.clone(),
            cookie: (!auth.cookie.is_empty()).then(|| auth.cookie.clone()),
            reject: auth.reject,
            anonymous: auth.anonymous,
            auth_deadline: auth.deadline.0,
            expiring_notice: auth.expiring_notice.0,
            leeway: auth.leeway.0,
            api_keys,
            callback_secret,
            callback_ca,
            dev_key,
        })
    }
}

/// The settings that tokens are checked against.
fn settings(auth: &Auth, rules: &[Rule], limits: &Limits) -> Settings {
    let kept = rules.iter().flat_map(|rule| match &rule.allow {
        Allow::Claim(name, _) => vec![name.to_string()],
        Allow::Callback(claims) => claims.iter().map(ToString::to_string).collect(),
        Allow::Owner | Allow::Authenticated | Allow::Public | Allow::Granted | Allow::Token => {
            vec![]
        }
    });

    Settings {
        issuer: auth.issuer.clone(),
        audience: auth.audience.clone(),
        leeway: auth.leeway.0.as_secs(),
        require_exp: auth.require_exp,
        user_claim: auth.user_claim.iter().cloned().map(UserClaim).collect(),
        max_token_bytes: auth.max_token_bytes,
        kept_claims: kept.collect(),
        max_granted: limits.channels_per_connection,
    }
}

impl Judge {
    fn dev_key(&mut self, secret: &str) -> Option<Key> {
        match Secret::new(secret, Encoding::Utf8) {
            Ok(secret) => Some(Key::new(None, vec![Algorithm::Hs256], secret).named("--dev")),
            Err(e) => {
                self.problem("--dev", e.to_string());
                None
            }
        }
    }

    fn headers(&mut self, names: &[String]) {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&b);
        for (i, name) in names.iter().enumerate() {
            if name.is_empty() || !name.bytes().all(is_token) {
                let what = "is not a header name such as x-tenant";
                self.problem(format!("server.allowed_headers[{i}]"), what);
            }
        }
    }

    fn origins(&mut self, origins: &[String], dev: bool) -> AllowedOrigins {
        AllowedOrigins::new(origins, dev).unwrap_or_else(|wrong| {
            for (i, why) in wrong {
                self.problem(format!("server.allowed_origins[{i}]"), why.to_string());
            }
            AllowedOrigins::default()
        })
    }

    /// Judges the rules.
    fn rules(&mut self, channels: &[Channel]) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (i, channel) in channels.iter().enumerate() {
            let at = |name: &str| format!("channels[{i}].{name}");
            let pattern: Pattern = match channel.pattern.parse() {
                Ok(pattern) => pattern,
                Err(why) => {
                    self.problem(at("pattern"), why);
                    continue;
                }
            };

            if channel.allow == AllowKind::Owner && pattern.placeholders() != 1 {
                self.problem(
                    at("pattern"),
                    "allow = \"owner\" needs exactly one placeholder, which stands for the user",
                );
            }
            let names_itself = matches!(channel.allow, AllowKind::Owner | AllowKind::Granted)
                || (pattern.placeholders() == 0
                    && !matches!(channel.allow, AllowKind::Token | AllowKind::Callback));
            if channel.auto_subscribe && !names_itself {
                self.problem(
                    at("auto_subscribe"),
                    "works only with allow = \"owner\" or \"granted\", or with a pattern without \
                     placeholders: other rules do not name a channel",
                );
            }

            let allow = match (channel.allow, &channel.claim) {
                (AllowKind::Owner, _) => Allow::Owner,
                (AllowKind::Authenticated, _) => Allow::Authenticated,
                (AllowKind::Public, _) => Allow::Public,
                (AllowKind::Granted, _) => Allow::Granted,
                (AllowKind::Token, _) => Allow::Token,
                (AllowKind::Callback, _) => {
                    Allow::Callback(channel.send_claims.iter().map(|c| c.as_str().into()).collect())
                }
                (AllowKind::Claim, Some(name)) => {
                    let value = channel.value.clone().and_then(|v| serde_json::to_value(v).ok());
                    Allow::Claim(name.as_str().into(), value)
                }
                (AllowKind::Claim, None) => {
                    self.problem(at("claim"), "allow = \"claim\" needs the claim's name");
                    continue;
                }
            };

            if channel.allow != AllowKind::Claim
                && (channel.claim.is_some() || channel.value.is_some())
            {
                self.problem(at("claim"), "claim and value apply only to allow = \"claim\"");
            }
            if channel.allow != AllowKind::Callback && !channel.send_claims.is_empty() {
                self.problem(at("send_claims"), "applies only to allow = \"callback\"");
            }

            let history = channel.history.and_then(|kept| self.history(&at("history"), kept));
            rules.push(Rule { pattern, allow, auto_subscribe: channel.auto_subscribe, history });
        }
        rules
    }

    /// Judges the section, and returns the secret that the gateway shows to the callback's server,
    /// or an empty text.
    fn callback(&mut self, config: &Config) -> String {
        let used = config.channels.iter().any(|c| c.allow == AllowKind::Callback);
        let url = &config.callback.url;
        if used && url.is_empty() {
            self.problem("callback.url", "is required by the rules with allow = \"callback\"");
        }

        let parsed: Option<axum::http::Uri> = url.parse().ok();
        let scheme = parsed.as_ref().and_then(|u| u.scheme_str());
        if !url.is_empty() && !matches!(scheme, Some("http" | "https")) {
            self.problem("callback.url", "is not a URL such as https://app/api/may-subscribe");
        }

        if config.callback.concurrency == 0 || config.callback.timeout.0.is_zero() {
            self.problem("callback", "concurrency and timeout must not be 0");
        }

        let Callback { secret, secret_file, .. } = &config.callback;
        if secret_file.is_empty() {
            return secret.0.clone();
        }
        self.in_file("callback.secret_file", secret_file, ("callback.secret", !secret.0.is_empty()))
    }

    fn callback_ca(&mut self, config: &Config) -> Option<String> {
        let setting = "callback.ca_file";
        let file = &config.callback.ca_file;
        if file.is_empty() {
            return None;
        }
        let pem =
            self.files.read(Path::new(file)).map_err(|e| format!("{file} cannot be read: {e}"));
        let checked = pem.and_then(|pem| match tls::certificates(pem.as_bytes()) {
            Ok(_) => Ok(pem),
            Err(e) => Err(format!("{file}: {e}")),
        });
        checked.map_err(|why| self.problem(setting, why)).ok()
    }

    fn session_cookie(
        &mut self,
        section: &super::SessionCookie,
        dev: bool,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Option<SessionCookie> {
        if !section.enabled {
            return None;
        }

        let at = "auth.session_cookie";
        let mut secrets: Vec<String> = section.secrets.iter().map(|s| s.0.clone()).collect();

        for name in &section.secrets_env {
            match env(name) {
                Some(secret) => secrets.push(secret),
                None => self.problem(
                    format!("{at}.secrets_env"),
                    format!("the environment variable {name} is not set"),
                ),
            }
        }

        for path in &section.secret_files {
            match self.files.read(path) {
                Ok(text) => secrets.push(text.trim_end_matches(['\r', '\n']).to_owned()),
                Err(e) => self.problem(
                    format!("{at}.secret_files"),
                    format!("{} cannot be read: {e}", path.display()),
                ),
            }
        }

        if secrets.is_empty() || section.cookies.is_empty() {
            self.problem(
                at,
                "needs at least one secret (secrets, secrets_env or secret_files) and one cookie \
                 name (cookies)",
            );
        }

        for secret in &secrets {
            let weak = Secret::new(secret, Encoding::Utf8).map(|s| s.weakness());
            match weak {
                Ok(None) => {}
                Ok(Some(why)) if dev => self.warning(at, why.to_string()),
                Ok(Some(why)) | Err(why) => self.problem(at, why.to_string()),
            }
            for odd in Secret::new(secret, Encoding::Utf8).iter().flat_map(Secret::oddities) {
                self.warning(at, format!("a secret {odd}"));
            }
        }

        Some(SessionCookie { names: section.cookies.clone(), secrets })
    }

    fn api_keys(&mut self, api: &Api) -> Vec<Arc<[u8]>> {
        let mut keys: Vec<(String, String)> = Vec::new();
        for (i, key) in api.keys.iter().enumerate() {
            keys.push((format!("api.keys[{i}]"), key.0.clone()));
        }

        if !api.key_file.is_empty() {
            match self.files.read(Path::new(&api.key_file)) {
                Ok(text) => {
                    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
                    keys.extend(lines.map(|l| ("api.key_file".to_owned(), l.to_owned())));
                }
                Err(e) => self.problem("api.key_file", format!("cannot be read: {e}")),
            }
        }

        for (path, key) in &keys {
            if key.len() < MIN_API_KEY {
                self.problem(
                    path,
                    format!("an API key must have at least {MIN_API_KEY} characters"),
                );
            }
        }

        keys.into_iter().map(|(_, key)| key.into_bytes().into()).collect()
    }
}
