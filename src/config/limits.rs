//! Judges numbers, durations and the `[redis]` section: values of the right type that
//! make no sense.

use std::time::Duration;

use super::policy::Judge;
use super::{BrokerKind, Config, Kept, Span};
use crate::channel::Retention;
use crate::redis_url::Target;
use crate::tls::Fingerprint;

/// The gateway's own keys and channels in Redis begin with this.
const OWN: &str = "gateway:";

/// The largest message, event or request body that can be configured. A batch of events has to stay
/// far below the 4 GiB that its offsets reach.
const MAX_BYTES: usize = 64 << 20;

const MAX_SUBSCRIBERS: usize = 64;
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Judge {
    pub(super) fn limits(&mut self, config: &Config) {
        let l = &config.limits;

        for (name, value) in [
            ("limits.connections", l.connections),
            ("limits.connections_per_user", l.connections_per_user),
            ("limits.connections_per_ip", l.connections_per_ip),
            ("limits.http_connections", l.http_connections),
            ("limits.http_connections_per_ip", l.http_connections_per_ip),
            ("limits.request_body_bytes", l.request_body_bytes),
            ("limits.message_bytes", l.message_bytes),
            ("limits.publication_bytes", l.publication_bytes),
            ("limits.commands_per_second", l.commands_per_second as usize),
            ("limits.command_burst", l.command_burst as usize),
            ("limits.channels_per_connection", l.channels_per_connection),
            ("limits.queue_messages", l.queue_messages),
            ("limits.queue_bytes", l.queue_bytes),
            ("limits.queue_bytes_total", l.queue_bytes_total),
            ("history.max_messages", config.history.max_messages),
            ("history.max_bytes", config.history.max_bytes),
            ("broker.history_bytes", config.broker.history_bytes),
            ("redis.subscriber_connections", config.redis.subscriber_connections),
            ("broker.queue_messages", config.broker.queue_messages),
            ("broker.queue_bytes", config.broker.queue_bytes),
            ("relay.batch_rows", config.relay.batch_rows),
            ("relay.batch_bytes", config.relay.batch_bytes),
            ("auth.max_token_bytes", config.auth.max_token_bytes),
            ("auth.jwks.max_bytes", config.auth.jwks.max_bytes),
        ] {
            if value == 0 {
                self.problem(name, "must be at least 1: this limit cannot be switched off");
            }
        }

        for (name, value) in [
            ("limits.publication_bytes", l.publication_bytes),
            ("limits.message_bytes", l.message_bytes),
            ("limits.request_body_bytes", l.request_body_bytes),
        ] {
            if value > MAX_BYTES {
                self.problem(name, format!("must be at most {MAX_BYTES}"));
            }
        }

        self.times(config);
        self.proportions(config);
    }

    /// Judges durations.
    fn times(&mut self, config: &Config) {
        let l = &config.limits;
        if l.refusal_wait.0 > MAX_REFUSAL_WAIT {
            self.problem("limits.refusal_wait", "must be at most 30s");
        }

        let r = &config.redis;
        let second = Duration::from_secs(1);
        for (name, Span(value)) in [
            ("limits.handshake_timeout", l.handshake_timeout),
            ("limits.request_timeout", l.request_timeout),
            ("limits.ping_interval", l.ping_interval),
            ("limits.pong_timeout", l.pong_timeout),
            ("auth.deadline", config.auth.deadline),
            ("auth.jwks.refresh", config.auth.jwks.refresh),
            ("auth.jwks.max_age", config.auth.jwks.max_age),
            ("auth.jwks.min_interval", config.auth.jwks.min_interval),
        ] {
            if value < second {
                self.problem(name, "must be at least 1s");
            }
        }

        for (name, Span(value)) in [
            ("redis.connect_timeout", r.connect_timeout),
            ("redis.command_timeout", r.command_timeout),
            ("redis.ping_interval", r.ping_interval),
            ("redis.ping_timeout", r.ping_timeout),
            ("redis.canary_interval", r.canary_interval),
            ("redis.canary_deadline", r.canary_deadline),
            ("redis.reconnect_min", r.reconnect_min),
        ] {
            if value < Duration::from_millis(10) {
                self.problem(name, "must be at least 10ms");
            }
        }
    }

    /// Judges values that make sense only in proportion to others.
    fn proportions(&mut self, config: &Config) {
        let l = &config.limits;
        let r = &config.redis;
        if config.auth.jwks.max_age.0 < config.auth.jwks.refresh.0 {
            self.problem("auth.jwks.max_age", "must not be below auth.jwks.refresh");
        }

        if r.reconnect_max.0 < r.reconnect_min.0 {
            self.problem("redis.reconnect_max", "must not be below redis.reconnect_min");
        }

        if l.queue_bytes < l.publication_bytes {
            self.problem(
                "limits.queue_bytes",
                "must be at least limits.publication_bytes: otherwise one large event could close \
                 every client that receives it",
            );
        }

        if l.queue_bytes_total < l.queue_bytes {
            self.problem("limits.queue_bytes_total", "must be at least limits.queue_bytes");
        }

        if r.subscriber_connections > MAX_SUBSCRIBERS {
            let message = format!("must be at most {MAX_SUBSCRIBERS}");
            self.problem("redis.subscriber_connections", message);
        }
    }

    /// Judges a rule's `history`.
    pub(super) fn history(&mut self, path: &str, kept: Kept) -> Option<Retention> {
        let Kept { size, ttl, plain } = kept;
        let size_ok = (1..=100_000).contains(&size);
        let ttl_ok = (SECOND..=YEAR).contains(&ttl.0);

        if !size_ok {
            self.problem(format!("{path}.size"), "must be from 1 to 100000");
        }

        if !ttl_ok {
            self.problem(format!("{path}.ttl"), "must be from 1s to 365 days");
        }

        (size_ok && ttl_ok).then_some(Retention { size, ttl: ttl.0, plain })
    }

    /// Judges the section `[redis]`.
    pub(super) fn redis(&mut self, config: &Config) {
        if config.broker.kind != BrokerKind::Redis {
            return;
        }

        let redis = &config.redis;
        let mut in_url = false;
        match Target::parse(&redis.url.0) {
            Ok(target) => {
                in_url = target.redis.password().is_some();
                let files = [&redis.ca_file, &redis.cert_file, &redis.key_file];
                let pinned = !redis.tls_fingerprints.is_empty();
                if !target.tls && (pinned || files.iter().any(|f| !f.is_empty())) {
                    let why = "has no TLS, although certificate files or fingerprints are set: \
                               use rediss://";
                    self.problem("redis.url", why);
                }
            }
            Err(e) => self.problem("redis.url", e.to_string()),
        }

        let in_text = !redis.sentinel_password.0.is_empty();
        for (path, file, other) in [
            ("redis.password_file", &redis.password_file, ("redis.url", in_url)),
            (
                "redis.sentinel_password_file",
                &redis.sentinel_password_file,
                ("redis.sentinel_password", in_text),
            ),
        ] {
            if !file.is_empty() {
                // The file is read again for each connection. It is read here too, so that a bad
                // one is reported at the start, and is watched from now on.
                self.in_file(path, file, other);
            }
        }

        for (i, text) in redis.tls_fingerprints.iter().enumerate() {
            if let Err(why) = text.parse::<Fingerprint>() {
                self.problem(format!("redis.tls_fingerprints[{i}]"), why);
            }
        }

        if !redis.tls_fingerprints.is_empty() && !redis.ca_file.is_empty() {
            let why = "replaces redis.ca_file: set either this or redis.ca_file, not both";
            self.problem("redis.tls_fingerprints", why);
        }

        if redis.cert_file.is_empty() != redis.key_file.is_empty() {
            self.problem("redis.cert_file", "must be set together with redis.key_file");
        }

        let prefix = &redis.prefix;
        if prefix.is_empty() || prefix.chars().any(crate::channel::is_forbidden) {
            self.problem(
                "redis.prefix",
                "must not be empty, and must not contain whitespace or glob characters",
            );
        }

        // A publisher's Redis ACL pattern for the prefix would include the gateway's own names.
        if !prefix.is_empty() && (OWN.starts_with(prefix.as_str()) || prefix.starts_with(OWN)) {
            self.problem(
                "redis.prefix",
                "must not overlap with \"gateway:\", under which the gateway has keys and \
                 channels of its own",
            );
        }
    }
}
