//! The configuration's shape: one struct per section of `default.toml`, which is the manual.
//!
//! Not here: reading it (`load`), judging it (`policy`). Invariant: every field has its default in
//! `default.toml` and nowhere else, so that file and these structs cannot disagree.

mod content;
mod keys;
mod limits;
mod load;
mod policy;
mod tree;
mod values;

use std::net::SocketAddr;

use serde::Deserialize;

pub use content::{Files, Values, is_reloaded};
pub use keys::{AuthKey, Jwks, Moment};
pub use load::{Loaded, Sources, load};
pub use policy::Policy;
pub use values::{Problem, Redacted, Span};

/// The built-in defaults, which are the manual too.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub broker: Broker,
    pub history: History,
    pub redis: Redis,
    pub relay: Relay,
    pub auth: Auth,
    #[serde(default)]
    pub channels: Vec<Channel>,
    pub callback: Callback,
    pub doctor: Doctor,
    pub drift: Drift,
    pub limits: Limits,
    pub drain: Drain,
    pub api: Api,
    pub log: Log,
}

/// The section `[server]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Server {
    pub listen: SocketAddr,
    pub allowed_origins: Vec<String>,
    pub allowed_headers: Vec<String>,
    pub trusted_proxies: Vec<ipnet::IpNet>,
    pub workers: usize,
}

/// The section `[admin]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Admin {
    pub listen: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BrokerKind {
    Memory,
    Redis,
}

/// The section `[broker]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Broker {
    pub kind: BrokerKind,
    pub queue_messages: usize,
    pub queue_bytes: usize,
    pub linger: Span,
    pub interrupted_after: Span,
    pub history_bytes: usize,
}

/// The section `[history]`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct History {
    pub max_messages: usize,
    pub max_bytes: usize,
    pub opens_per_user: u32,
    pub opens: u32,
}

/// The section `[redis]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Redis {
    pub url: Redacted,
    pub password_file: String,
    pub prefix: String,
    pub ca_file: String,
    pub tls_fingerprints: Vec<String>,
    pub cert_file: String,
    pub key_file: String,
    pub sentinel_username: String,
    pub sentinel_password: Redacted,
    pub sentinel_password_file: String,
    pub subscriber_connections: usize,
    pub connect_timeout: Span,
    pub command_timeout: Span,
    pub ping_interval: Span,
    pub ping_timeout: Span,
    pub canary_interval: Span,
    pub canary_deadline: Span,
    pub reconnect_min: Span,
    pub reconnect_max: Span,
    pub beside_0_1: bool,
    pub refuse_wrong: bool,
    pub address_interval: Span,
}

/// The section `[relay]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Relay {
    pub url: Redacted,
    pub password_file: String,
    pub listen_url: Redacted,
    pub ca_file: String,
    pub schema: String,
    pub poll_interval: Span,
    pub retention: Span,
    pub batch_rows: usize,
    pub batch_bytes: usize,
    pub connect_timeout: Span,
    pub statement_timeout: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reject {
    Close,
    Http,
}

/// The section `[auth]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Auth {
    pub issuer: Vec<String>,
    pub audience: Vec<String>,
    pub leeway: Span,
    pub require_exp: bool,
    pub user_claim: Vec<String>,
    pub max_token_bytes: usize,
    pub reject: Reject,
    pub deadline: Span,
    pub cookie: String,
    pub anonymous: bool,
    pub expiring_notice: Span,
    pub jwks: Jwks,
    pub session_cookie: SessionCookie,
    #[serde(default)]
    pub keys: Vec<AuthKey>,
}

/// The section `[auth.session_cookie]`.
#[derive(Debug, Clone, Deserialize)]
pub struct SessionCookie {
    pub enabled: bool,
    pub cookies: Vec<String>,
    pub secrets: Vec<Redacted>,
    pub secrets_env: Vec<String>,
    pub secret_files: Vec<std::path::PathBuf>,
}

/// The section `[callback]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Callback {
    pub url: String,
    pub secret: Redacted,
    pub secret_file: String,
    pub ca_file: String,
    pub timeout: Span,
    pub concurrency: usize,
    pub cache_ttl: Span,
    pub cache_entries: usize,
}

/// The section `[doctor]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Doctor {
    pub per_second: u32,
    pub log_interval: Span,
}

/// The section `[drift]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Drift {
    pub issuers: Vec<String>,
    pub interval: Span,
}

/// The `allow` of a `[[channels]]` rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllowKind {
    Owner,
    Authenticated,
    Public,
    Claim,
    Granted,
    Token,
    Callback,
}

/// One `[[channels]]` rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub pattern: String,
    pub allow: AllowKind,
    pub claim: Option<String>,
    pub value: Option<toml::Value>,
    #[serde(default)]
    pub send_claims: Vec<String>,
    #[serde(default)]
    pub auto_subscribe: bool,
    pub history: Option<Kept>,
}

/// The `history` of a `[[channels]]` rule.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub size: u32,
    pub ttl: Span,
    #[serde(default = "yes")]
    pub plain: bool,
}

fn yes() -> bool {
    true
}

/// The section `[limits]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Limits {
    pub connections: usize,
    pub connections_per_user: usize,
    pub connections_per_ip: usize,
    pub http_connections: usize,
    pub http_connections_per_ip: usize,
    pub refusal_wait: Span,
    pub handshake_timeout: Span,
    pub request_timeout: Span,
    pub request_body_bytes: usize,
    pub message_bytes: usize,
    pub publication_bytes: usize,
    pub commands_per_second: u32,
    pub command_burst: u32,
    pub channels_per_connection: usize,
    pub queue_messages: usize,
    pub queue_bytes: usize,
    pub queue_bytes_total: usize,
    pub ping_interval: Span,
    pub pong_timeout: Span,
}

/// The section `[drain]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Drain {
    pub settle: Span,
    pub window: Span,
}

/// The section `[api]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Api {
    pub keys: Vec<Redacted>,
    pub key_file: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// The section `[log]`.
#[derive(Debug, Clone, Deserialize)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
    pub summary_interval: Span,
}
