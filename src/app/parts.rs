//! Makes the parts out of the configuration, at the start and again on reload.
//!
//! Not here: when that happens (`app`, `reload`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;

use crate::broker::memory::MemoryBroker;
use crate::broker::redis::{Login, RedisBroker, Settings};
use crate::broker::{self, Events};
use crate::clock::unix_now;
use crate::config::{self, BrokerKind, Config, Policy};
use crate::diagnosis::sampler::{self, Sampler};
use crate::gateway::{Gateway, NodeInfo};
use crate::http::App;
use crate::hub::{Hub, QueueBounds};
use crate::lifecycle::{self, Lifecycle};
use crate::metrics;
use crate::session::Context;
use crate::tls::Trust;
use crate::upstream;
use crate::upstream::callback::{self, Callback};
use crate::upstream::jwks::{self, Jwks};

/// Makes what all sessions share.
pub(super) fn context(
    config: &Config,
    policy: Policy,
    gateway: Arc<Gateway>,
) -> anyhow::Result<Context> {
    let jwks = jwks_of(&config.auth.jwks)?;
    let sampler = sampler::Settings {
        per_second: config.doctor.per_second,
        log_interval: config.doctor.log_interval.0,
    };

    let callback = ArcSwapOption::from(callback_of(&config.callback, &policy, None)?);
    let mut policy = with_revocations(policy, &gateway);
    jwks.adopt(policy.verifier.keys_mut());

    Ok(Context {
        gateway,
        policy: ArcSwap::from_pointee(policy),
        change: ArcSwap::default(),
        jwks,
        callback,
        sampler: Arc::new(Sampler::new(sampler)),
    })
}

/// Makes the fetcher of the key sets.
///
/// # Errors
/// A `ca_file` cannot be used.
pub(crate) fn jwks_of(section: &config::Jwks) -> anyhow::Result<Arc<Jwks>> {
    let ca = given("auth.jwks.ca_file", &section.ca_file)?;
    let client = upstream::client(section.timeout.0, ca.as_deref());
    let client = client.map_err(|e| anyhow::anyhow!("auth.jwks: {e}"))?;
    let settings = jwks::Settings {
        refresh: section.refresh.0,
        min_interval: section.min_interval.0,
        timeout: section.timeout.0,
        max_bytes: section.max_bytes,
    };
    Ok(Jwks::new(client, settings, unix_now))
}

/// The content of the file that a setting names, or `None` if it names none.
fn given(setting: &str, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let content = (!path.is_empty()).then(|| std::fs::read(path)).transpose();
    content.with_context(|| format!("{setting}: {path}"))
}

/// Makes the client of the callback rule, or `None` if no URL is configured. What `before` has is
/// kept as far as possible.
pub(super) fn callback_of(
    section: &config::Callback,
    policy: &Policy,
    before: Option<&Arc<Callback>>,
) -> anyhow::Result<Option<Arc<Callback>>> {
    if section.url.is_empty() {
        return Ok(None);
    }

    let settings = callback::Settings {
        url: section.url.clone(),
        secret: policy.callback_secret.clone(),
        ca: policy.callback_ca.clone(),
        timeout: section.timeout.0,
        concurrency: section.concurrency,
        cache_ttl: section.cache_ttl.0,
        cache_entries: section.cache_entries,
    };

    let callback = Callback::start(settings, before);
    Ok(Some(callback.map_err(|e| anyhow::anyhow!("callback: {e}"))?))
}

/// Gives a policy the gateway's table of revocations.
pub(super) fn with_revocations(policy: Policy, gateway: &Gateway) -> Policy {
    let Policy { verifier, .. } = policy;
    Policy { verifier: verifier.revoking(Arc::clone(gateway.revocations())), ..policy }
}

/// Makes the gateway with its hub and its broker, and starts their tasks.
pub(super) fn gateway(
    config: &Config,
    lifecycle: &Lifecycle,
    delivery: &Handle,
) -> anyhow::Result<Arc<Gateway>> {
    let limits = &config.limits;
    let shards = Handle::current().metrics().num_workers();
    let bounds = QueueBounds {
        queue_messages: AtomicUsize::new(limits.queue_messages),
        queue_bytes: AtomicUsize::new(limits.queue_bytes),
        queue_bytes_total: AtomicUsize::new(limits.queue_bytes_total),
        queued: AtomicUsize::new(0),
        channels_per_connection: AtomicUsize::new(limits.channels_per_connection),
    };

    let hub = Hub::new(shards, bounds);
    hub.start_timers();
    let _delivery = delivery.enter();
    hub.start_fanout();

    let events = Arc::new(Events::new(config.broker.queue_messages, config.broker.queue_bytes));
    let node = NodeInfo {
        uid: random_hex()?,
        name: hostname(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeInfo::default()
    };

    let linger = config.broker.linger.0;
    let gateway = match config.broker.kind {
        BrokerKind::Memory => {
            lifecycle.set_ready();
            let broker = MemoryBroker::new(Arc::clone(&events), config.broker.history_bytes);
            Gateway::new(hub, Arc::new(broker), linger, node)
        }
        BrokerKind::Redis => {
            let lifecycle = lifecycle.clone();
            let on_ready = move || lifecycle.set_ready();
            let started = RedisBroker::start(settings(config)?, Arc::clone(&events), on_ready);
            Gateway::new(hub, Arc::new(started.context("redis.url")?), linger, node)
        }
    };

    let gateway = gateway
        .confirm_within(config.redis.command_timeout.0)
        .interrupted_after(config.broker.interrupted_after.0);
    let gateway = Arc::new(gateway);

    lifecycle::spawn("pump", Arc::clone(&gateway).pump(events));
    lifecycle::spawn("housekeeping", Arc::clone(&gateway).housekeeping());
    lifecycle::spawn("revocations", Arc::clone(&gateway).recall_revocations());
    Ok(gateway)
}

/// Makes the broker's settings.
pub(super) fn settings(config: &Config) -> anyhow::Result<Settings> {
    let redis = &config.redis;
    let certificate = given("redis.cert_file", &redis.cert_file)?;
    let own = certificate.zip(given("redis.key_file", &redis.key_file)?);
    let given = given("redis.ca_file", &redis.ca_file)?;

    // These texts were checked with the configuration.
    let pinned = redis.tls_fingerprints.iter().filter_map(|text| text.parse().ok()).collect();
    let trust = Trust { given: given.as_deref(), pinned, ..Trust::default() };

    let connector = || {
        let own = own.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
        let client = trust.client(own).map_err(|e| anyhow::anyhow!("TLS to Redis: {e}"))?;
        anyhow::Ok(TlsConnector::from(Arc::new(client)))
    };

    let tls = redis.url.0.starts_with("rediss").then(connector).transpose()?;
    let file = |path: &String| (!path.is_empty()).then(|| path.into());

    Ok(Settings {
        url: redis.url.0.clone(),
        password_file: file(&redis.password_file),
        prefix: redis.prefix.clone(),
        tls,
        sentinel: Login::new(
            &redis.sentinel_username,
            &redis.sentinel_password.0,
            file(&redis.sentinel_password_file),
        ),
        subscribers: redis.subscriber_connections,
        connect_timeout: redis.connect_timeout.0,
        command_timeout: redis.command_timeout.0,
        ping_interval: redis.ping_interval.0,
        ping_timeout: redis.ping_timeout.0,
        canary_interval: redis.canary_interval.0,
        canary_deadline: redis.canary_deadline.0,
        reconnect_min: redis.reconnect_min.0,
        reconnect_max: redis.reconnect_max.0,
        beside_0_1: redis.beside_0_1,
        refuse_wrong: redis.refuse_wrong,
        max_publication: config.limits.publication_bytes,
        address_interval: redis.address_interval.0,
    })
}

/// Puts the limits in force that a reload may change.
pub(super) fn apply_limits(app: &App, config: &Config) {
    let limits = &config.limits;
    let history = &config.history;
    let gateway = &app.context.gateway;
    let bounds = gateway.hub().bounds();
    bounds.queue_messages.store(limits.queue_messages, Ordering::Relaxed);
    bounds.queue_bytes.store(limits.queue_bytes, Ordering::Relaxed);
    bounds.queue_bytes_total.store(limits.queue_bytes_total, Ordering::Relaxed);
    bounds.channels_per_connection.store(limits.channels_per_connection, Ordering::Relaxed);

    metrics::connections_limit(limits.connections);
    gateway.set_max_publication(limits.publication_bytes);
    // The events that a client missed have to fit into its queue, beside those that
    // arrive meanwhile.
    gateway.set_opens(history.opens_per_user, history.opens);
    gateway.set_history_bounds(broker::HistoryBounds {
        messages: history.max_messages.min(limits.queue_messages / 2),
        bytes: history.max_bytes.min(limits.queue_bytes / 2),
    });
}

/// Eight random bytes as hex: the name of this process among the replicas.
pub(super) fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("cannot get random bytes: {e}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// The replica's name. In Kubernetes it is the pod's.
pub(super) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "tollgate".to_owned() } else { name.to_owned() }
}

pub(super) fn short_hash(text: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text);
    digest[..6].iter().map(|b| format!("{b:02x}")).collect()
}
