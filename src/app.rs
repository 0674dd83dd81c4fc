//! The composition root: from a configuration to a running gateway, and its end.
//!
//! Not here: what the parts do. The order of a drain: not ready (`settle`), no new connections,
//! sockets told to go over `window`, exit.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::time::{Instant, sleep, timeout};

use crate::broker::Events;
use crate::broker::memory::MemoryBroker;
use crate::broker::redis::{RedisBroker, Settings};
use crate::config::{BrokerKind, Config, Limits, Loaded, Policy};
use crate::gateway::{Gateway, NodeInfo};
use crate::http::{self, App, Listener};
use crate::hub::{Bounds, Hub};
use crate::lifecycle::{self, Hangup, Lifecycle, Phase, Termination};
use crate::metrics;
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::plain;
use crate::session::doctor::{self, Doctor};
use crate::session::{Context, keys, unix_now};
use crate::upstream;
use crate::upstream::callback::{self, Callback};
use crate::upstream::jwks::{self, Jwks};

/// The admin listener serves scrapers and people, not clients.
const ADMIN_CONNECTIONS: usize = 64;

/// After the drain's window, what is still there gets this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How often watched files are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Reads the configuration again; `None` when there is nothing to read.
pub type Reload = Box<dyn Fn() -> Result<Loaded, Vec<crate::config::Problem>> + Send>;

/// Where the listeners ended up; port 0 has become a real one.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// A gateway that is about to run.
pub struct Running {
    config: Config,
    app: App,
    public: Listener,
    admin: Listener,
    sha: String,
    dev: bool,
    termination: Termination,
    hangup: Hangup,
}

impl Running {
    /// Binds the listeners and starts broker and hub.
    ///
    /// # Errors
    /// An address that cannot be bound.
    pub fn start(loaded: Loaded, dev: bool) -> anyhow::Result<Self> {
        let Loaded { config, policy, printed, .. } = loaded;
        let termination = Termination::install().context("cannot handle signals")?;
        let hangup = Hangup::install().context("cannot handle signals")?;
        let metrics = metrics::install();
        let sha = short_hash(&printed);
        metrics::config_info(&sha);
        let limits = &config.limits;
        let listen = |address, connections| {
            Listener::bind(address, connections, limits.handshake_timeout.0)
                .with_context(|| format!("cannot listen on {address}"))
        };
        let public = listen(config.server.listen, limits.http_connections)?;
        let admin = listen(config.admin.listen, ADMIN_CONNECTIONS)?;
        let lifecycle = Lifecycle::default();
        for warning in &policy.warnings {
            tracing::warn!("configuration: {warning}");
        }
        let gateway = gateway(&config, &lifecycle)?;
        let app = App::new(Arc::new(context(&config, policy, gateway)?), lifecycle, metrics);
        apply_limits(&app, &config.limits);
        Ok(Self { config, app, public, admin, sha, dev, termination, hangup })
    }

    /// # Errors
    /// A listener's own.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses { public: self.public.address()?, admin: self.admin.address()? })
    }

    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// When signals cannot be handled.
    pub async fn run(self, reload: Reload, file: Option<PathBuf>) -> anyhow::Result<()> {
        let Self { config, app, public, admin, sha, dev, mut termination, hangup } = self;
        let lifecycle = app.lifecycle.clone();
        let accepting =
            http::serve(public, http::public(app.clone(), dev), lifecycle.clone(), Phase::Draining);
        lifecycle::spawn("accept", accepting);
        // The admin listener's tasks are its own: a scraper must not hold up the end of a drain.
        let admin_routes = http::admin(app.clone());
        lifecycle::spawn(
            "admin",
            http::serve(admin, admin_routes, Lifecycle::default(), Phase::Draining),
        );
        lifecycle::spawn("upkeep", upkeep(app.metrics.clone()));
        lifecycle::spawn("jwks", Arc::clone(&app.context.jwks).run());
        lifecycle::spawn("doctor", Doctor::run(Arc::clone(&app.context)));
        let drift = (config.drift.issuers.clone(), config.drift.interval.0);
        lifecycle::spawn("keys", keys::watch(Arc::clone(&app.context), drift.0, drift.1));
        lifecycle::spawn("reload", watch(app.clone(), reload, (hangup, file), sha));
        termination.signalled().await;
        tokio::select! {
            () = drain(&app, &config) => {}
            () = termination.signalled() => {
                tracing::warn!("second signal: exiting at once");
            }
        }
        Ok(())
    }
}

/// What the sessions share.
fn context(config: &Config, policy: Policy, gateway: Arc<Gateway>) -> anyhow::Result<Context> {
    let jwks = &config.auth.jwks;
    let ca = (!jwks.ca_file.is_empty()).then(|| std::fs::read(&jwks.ca_file)).transpose();
    let ca = ca.with_context(|| format!("auth.jwks.ca_file: {}", jwks.ca_file))?;
    let client = |timeout, ca: Option<&[u8]>| {
        upstream::client(timeout, ca).map_err(|e| anyhow::anyhow!("auth.jwks: {e}"))
    };
    let settings = jwks::Settings {
        refresh: jwks.refresh.0,
        min_interval: jwks.min_interval.0,
        timeout: jwks.timeout.0,
        max_bytes: jwks.max_bytes,
    };
    let jwks = Jwks::new(client(jwks.timeout.0, ca.as_deref())?, settings, unix_now);
    let callback = &config.callback;
    let callback = if callback.url.is_empty() {
        None
    } else {
        let settings = callback::Settings {
            url: callback.url.clone(),
            secret: callback.secret.0.clone(),
            timeout: callback.timeout.0,
            concurrency: callback.concurrency,
            cache_ttl: callback.cache_ttl.0,
            cache_entries: callback.cache_entries,
        };
        Some(Arc::new(Callback::new(client(callback.timeout.0, None)?, settings)))
    };
    let doctor = doctor::Settings {
        per_second: config.doctor.per_second,
        log_interval: config.doctor.log_interval.0,
    };
    let mut policy = with_revocations(policy, &gateway);
    jwks.adopt(policy.verifier.keys_mut());
    Ok(Context {
        gateway,
        policy: ArcSwap::from_pointee(policy),
        jwks,
        callback: ArcSwapOption::from(callback),
        doctor: Doctor::new(doctor),
    })
}

fn with_revocations(policy: Policy, gateway: &Gateway) -> Policy {
    let Policy { verifier, .. } = policy;
    Policy { verifier: verifier.revoking(Arc::clone(gateway.revocations())), ..policy }
}

fn gateway(config: &Config, lifecycle: &Lifecycle) -> anyhow::Result<Arc<Gateway>> {
    let limits = &config.limits;
    let shards = tokio::runtime::Handle::current().metrics().num_workers();
    let bounds = Bounds {
        queue_messages: AtomicUsize::new(limits.queue_messages),
        queue_bytes: AtomicUsize::new(limits.queue_bytes),
        channels_per_connection: AtomicUsize::new(limits.channels_per_connection),
    };
    let hub = Hub::new(shards, bounds);
    hub.start();
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
            Gateway::new(hub, Arc::new(MemoryBroker::new(Arc::clone(&events))), linger, node)
        }
        BrokerKind::Redis => {
            let lifecycle = lifecycle.clone();
            let on_ready = move || lifecycle.set_ready();
            let started = RedisBroker::start(settings(config), Arc::clone(&events), on_ready);
            Gateway::new(hub, Arc::new(started.context("redis.url")?), linger, node)
        }
    };
    let gateway = Arc::new(gateway.confirm_within(config.redis.command_timeout.0));
    lifecycle::spawn("pump", Arc::clone(&gateway).pump(events));
    lifecycle::spawn("housekeeping", Arc::clone(&gateway).housekeeping());
    Ok(gateway)
}

fn settings(config: &Config) -> Settings {
    let redis = &config.redis;
    Settings {
        url: redis.url.0.clone(),
        prefix: redis.prefix.clone(),
        connect_timeout: redis.connect_timeout.0,
        command_timeout: redis.command_timeout.0,
        ping_interval: redis.ping_interval.0,
        ping_timeout: redis.ping_timeout.0,
        reconnect_min: redis.reconnect_min.0,
        reconnect_max: redis.reconnect_max.0,
    }
}

fn apply_limits(app: &App, limits: &Limits) {
    let gateway = &app.context.gateway;
    let bounds = gateway.hub().bounds();
    bounds.queue_messages.store(limits.queue_messages, Ordering::Relaxed);
    bounds.queue_bytes.store(limits.queue_bytes, Ordering::Relaxed);
    bounds.channels_per_connection.store(limits.channels_per_connection, Ordering::Relaxed);
    gateway.set_max_publication(limits.publication_bytes);
}

/// Eight random bytes as hex: this process's name among the replicas.
fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// The node's name: in Kubernetes the pod's.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "tollgate".to_owned() } else { name.to_owned() }
}

fn short_hash(text: &str) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(text);
    digest[..6].iter().map(|b| format!("{b:02x}")).collect()
}

/// Lets the metrics recorder fold its histograms even when nobody scrapes.
async fn upkeep(handle: metrics_exporter_prometheus::PrometheusHandle) {
    loop {
        sleep(Duration::from_secs(5)).await;
        handle.run_upkeep();
    }
}

/// What the watched files hold: the configuration, and the secrets and keys that it points to.
/// Compared by content, because a Kubernetes mount swaps a symlink and keeps the path.
fn contents(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|f| std::fs::read(f).ok()).collect()
}

fn watched(file: Option<&PathBuf>, policy: &Policy) -> Vec<PathBuf> {
    file.into_iter().chain(&policy.files).cloned().collect()
}

/// Reloads on SIGHUP, and when a watched file's content changes.
async fn watch(
    app: App,
    reload: Reload,
    (mut hangup, file): (Hangup, Option<PathBuf>),
    mut sha: String,
) {
    let mut files = watched(file.as_ref(), &app.context.policy.load());
    // What changed between the start's own reading and this one is taken in without a word.
    let mut content = contents(&files);
    if let Ok(Loaded { config, policy, .. }) = reload() {
        put_in_force(&app, policy, &config.limits);
    }
    loop {
        let asked = tokio::select! {
            () = hangup.signalled() => true,
            () = sleep(WATCH_EVERY) => false,
        };
        let now = contents(&files);
        // A file that is being swapped may be missing for a moment; that is not a new content.
        let changed = now.iter().zip(&content).any(|(new, old)| new.is_some() && new != old);
        if !asked && !changed {
            continue;
        }
        for (kept, new) in content.iter_mut().zip(now) {
            *kept = new.or(kept.take());
        }
        match reload() {
            Ok(Loaded { config, policy, printed, .. }) => {
                let new = short_hash(&printed);
                if new != sha {
                    metrics::config_replaced(&sha, &new);
                    sha = new;
                }
                files = watched(file.as_ref(), &policy);
                content = contents(&files);
                for warning in &policy.warnings {
                    tracing::warn!("configuration: {warning}");
                }
                put_in_force(&app, policy, &config.limits);
                app.lifecycle.reloaded(None);
                metrics::config_reload(true);
                tracing::info!(
                    "configuration reloaded: tokens, keys, rules, limits, origins, API keys"
                );
            }
            Err(problems) => {
                metrics::config_reload(false);
                let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
                for problem in &all {
                    tracing::error!(%problem, "configuration not reloaded; the old one stays");
                }
                app.lifecycle.reloaded(Some(all.join("; ")));
            }
        }
    }
}

fn put_in_force(app: &App, policy: Policy, limits: &Limits) {
    let mut policy = with_revocations(policy, &app.context.gateway);
    app.context.jwks.adopt(policy.verifier.keys_mut());
    app.context.policy.store(Arc::new(policy));
    apply_limits(app, limits);
}

/// Not ready, then no new connections, then every socket told to come back elsewhere, spread
/// evenly over the window so that the other replicas see a ramp and not a cliff.
async fn drain(app: &App, config: &Config) {
    let hub = app.context.gateway.hub();
    metrics::draining();
    app.lifecycle.advance(Phase::Settling);
    tracing::info!(sockets = hub.counts().connections, "draining: not ready any more");
    sleep(config.drain.settle.0).await;
    app.lifecycle.advance(Phase::Draining);
    let mut ids = hub.ids();
    fastrand::shuffle(&mut ids);
    let window = config.drain.window.0;
    let began = Instant::now();
    let total = ids.len().max(1) as f64;
    for (i, id) in ids.into_iter().enumerate() {
        let due = began + window.mul_f64(i as f64 / total);
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        if let Some(connection) = hub.get(id) {
            send_away(&connection);
        }
    }
    // A request that was already on its way when the listener closed may have made one more.
    for connection in hub.ids().into_iter().filter_map(|id| hub.get(id)) {
        send_away(&connection);
    }
    if timeout(LAST_WORDS, app.lifecycle.connections_ended()).await.is_err() {
        tracing::warn!(sockets = hub.counts().connections, "drained: some did not close in time");
    } else {
        tracing::info!("drained");
    }
}

fn send_away(connection: &crate::hub::Connection) {
    // A short jitter on top of the spread, so that one moment's sockets come back as several.
    connection.send(plain::reconnect(fastrand::u64(50..=1000)));
    connection.close(Close::new(CloseCode::Restart, "draining"));
}
