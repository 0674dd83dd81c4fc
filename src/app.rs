//! The composition root: from a configuration to a running gateway, and its end.
//!
//! Not here: what the parts do; reading the configuration again (`app/reload.rs`). The order of a
//! drain: not ready (`settle`), no new connections, sockets closed one by one over `window`, exit.

mod reload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::auth::diagnose;
use crate::broker::memory::MemoryBroker;
use crate::broker::redis::{Login, RedisBroker, Settings};
use crate::broker::{self, Events};
use crate::config::{self, BrokerKind, Config, Loaded, Policy, Values};
use crate::demo;
use crate::diagnosis::key_drift;
use crate::diagnosis::sampler::{self, Sampler};
use crate::gateway::{Gateway, NodeInfo};
use crate::http::{self, App, Clients, Listener, Share};
use crate::hub::{Bounds, Hub};
use crate::lifecycle::{self, Hangup, Lifecycle, Phase, Termination};
use crate::logging;
use crate::metrics;
use crate::protocol::Reply;
use crate::protocol::codes::{Close, CloseCode};
use crate::session::{Context, unix_now};
use crate::tls::Trust;
use crate::upstream;
use crate::upstream::callback::{self, Callback};
use crate::upstream::jwks::{self, Jwks};
use reload::InForce;

/// The admin listener's connections. It serves scrapers and people, not clients.
const ADMIN_CONNECTIONS: usize = 64;

/// The admin listener's connections of one address.
const ADMIN_SHARE: usize = ADMIN_CONNECTIONS / 2;

/// Descriptors are set aside for connections to this many servers of Redis, and for whatever else
/// we open.
const REDIS_SERVERS: usize = 16;
const OTHER_FILES: usize = 64;

/// How long connections that are still open after the drain's window may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);
const _: () = assert!(LAST_WORDS.as_millis() > http::socket::LINGER.as_millis());

/// Reads the configuration again.
pub type Reload = Box<dyn Fn() -> Result<Loaded, Vec<config::Problem>> + Send>;

/// The addresses that the listeners are bound to. A port 0 has become a real one.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// A gateway that is ready to run.
pub struct Running {
    config: Config,
    app: App,
    public: Listener,
    admin: Listener,
    values: Values,
    sha: String,
    dev: bool,
    termination: Termination,
    hangup: Hangup,
}

impl Running {
    /// Binds the listeners and starts broker and hub. The tasks that bring events to sockets run on
    /// `delivery`: they must not wait behind a rush of new connections (ADR 7).
    ///
    /// # Errors
    /// A signal handler cannot be installed, an address cannot be bound, a file of the
    /// configuration cannot be used, or there is no randomness.
    pub fn start(loaded: Loaded, dev: bool, delivery: &Handle) -> anyhow::Result<Self> {
        let Loaded { config, policy, printed, values } = loaded;
        let termination = Termination::install().context("cannot handle signals")?;
        let hangup = Hangup::install().context("cannot handle signals")?;

        let metrics = metrics::install();
        let sha = short_hash(&printed);
        metrics::config_info(&sha);

        let limits = &config.limits;
        enough_files(limits.connections, dev);

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

        let gateway = gateway(&config, &lifecycle, delivery)?;
        let app = App::new(Arc::new(context(&config, policy, gateway)?), lifecycle, metrics);
        apply_limits(&app, &config);
        Ok(Self { config, app, public, admin, values, sha, dev, termination, hangup })
    }

    /// The addresses of the listeners.
    ///
    /// # Errors
    /// A listener's own.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses { public: self.public.address()?, admin: self.admin.address()? })
    }

    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// There is none at present: signal handlers are installed by `start`.
    pub async fn run(self, reload: Reload) -> anyhow::Result<()> {
        let Self { config, app, public, admin, values, sha, dev, mut termination, hangup } = self;
        let lifecycle = app.lifecycle.clone();

        let public = public.limited(clients(&app, &config));
        let admin = admin.limited(Clients {
            reserve: 0,
            share: Box::new(|_, _| Share { connections: ADMIN_SHARE, http: ADMIN_SHARE }),
        });

        let mut routes = http::public(app.clone());
        if dev {
            routes = routes.merge(demo::routes(app.clone(), config.server.listen.ip()));
        }
        lifecycle::spawn("accept", http::serve(public, routes, lifecycle.clone(), Phase::Draining));

        // The admin listener has a lifecycle of its own: a scraper must not hold up the end of a
        // drain.
        let admin_routes = http::admin(app.clone(), config.admin.listen.ip());
        lifecycle::spawn(
            "admin",
            http::serve(admin, admin_routes, Lifecycle::default(), Phase::Draining),
        );

        lifecycle::spawn("log", logging::sum_up());
        lifecycle::spawn("upkeep", upkeep(app.metrics.clone()));
        lifecycle::spawn("jwks", Arc::clone(&app.context.jwks).run());
        let context = Arc::clone(&app.context);
        let examine = move |token: &str| {
            diagnose::examine(&context.policy.load().verifier, token, &[], unix_now())
        };
        lifecycle::spawn("doctor", Arc::clone(&app.context.sampler).run(examine));

        let context = Arc::clone(&app.context);
        let current = move || key_drift::fingerprints(context.policy.load().verifier.keys());
        let store = Arc::clone(app.context.gateway.store());
        let (issuers, interval) = (config.drift.issuers.clone(), config.drift.interval.0);
        lifecycle::spawn("keys", key_drift::watch(store, current, issuers, interval));
        lifecycle::spawn(
            "reload",
            reload::watch(app.clone(), reload, hangup, InForce { values, sha }),
        );

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

/// What the clients of the public listener may hold, and what is left to others and to ourselves.
fn clients(app: &App, config: &Config) -> Clients {
    let context = Arc::clone(&app.context);
    let share = move |ip, files: usize| {
        let policy = context.policy.load();
        if http::headers::is_trusted(ip, &policy.trusted_proxies) {
            return Share::ALL;
        }

        let limits = &policy.limits;
        let (one, all) = (limits.connections_per_ip, limits.connections);
        // With fewer files than limits.connections an address has its share of them, and half of
        // them at least.
        let shared = files.saturating_mul(one) / all.max(1);
        let of_files = if one < all { shared.max(files / 2) } else { files };
        Share { connections: one.min(of_files), http: limits.http_connections_per_ip }
    };
    Clients { reserve: reserved_files(config), share: Box::new(share) }
}

/// The files that are ours: the admin listener's connections, those to Redis and to the
/// application, and a few for listeners, files that are read, and name servers.
fn reserved_files(config: &Config) -> u64 {
    let redis = match config.broker.kind {
        BrokerKind::Redis => REDIS_SERVERS * (config.redis.subscriber_connections + 2),
        BrokerKind::Memory => 0,
    };
    let upstream = if config.callback.url.is_empty() { 0 } else { config.callback.concurrency };
    (ADMIN_CONNECTIONS + redis + upstream + OTHER_FILES) as u64
}

/// Raises the limit on open files, and warns if it is too low: each socket is a file, and there are
/// others, such as listeners and the connections to Redis.
fn enough_files(connections: usize, dev: bool) {
    let allowed = lifecycle::raise_open_files();
    if allowed < connections as u64 + 1000 && !dev {
        tracing::warn!(
            allowed,
            limits.connections = connections,
            "this process may open fewer files than limits.connections needs: raise its hard limit \
             (ulimit -Hn, LimitNOFILE=), or lower limits.connections"
        );
    }
}

/// Makes what all sessions share.
fn context(config: &Config, policy: Policy, gateway: Arc<Gateway>) -> anyhow::Result<Context> {
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
pub fn jwks_of(section: &config::Jwks) -> anyhow::Result<Arc<Jwks>> {
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

/// The content of the file that a setting names; `None` if it names none.
fn given(setting: &str, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let content = (!path.is_empty()).then(|| std::fs::read(path)).transpose();
    content.with_context(|| format!("{setting}: {path}"))
}

fn callback_of(
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

fn with_revocations(policy: Policy, gateway: &Gateway) -> Policy {
    let Policy { verifier, .. } = policy;
    Policy { verifier: verifier.revoking(Arc::clone(gateway.revocations())), ..policy }
}

fn gateway(
    config: &Config,
    lifecycle: &Lifecycle,
    delivery: &Handle,
) -> anyhow::Result<Arc<Gateway>> {
    let limits = &config.limits;
    let shards = Handle::current().metrics().num_workers();
    let bounds = Bounds {
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

fn settings(config: &Config) -> anyhow::Result<Settings> {
    let redis = &config.redis;
    let certificate = given("redis.cert_file", &redis.cert_file)?;
    let own = certificate.zip(given("redis.key_file", &redis.key_file)?);
    let given = given("redis.ca_file", &redis.ca_file)?;

    // These texts were checked with the configuration.
    let pinned = redis.tls_fingerprints.iter().filter_map(|text| text.parse().ok()).collect();
    let trust = Trust { given: given.as_deref(), by_name: false, pinned };

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
        max_publication: config.limits.publication_bytes,
        address_interval: redis.address_interval.0,
    })
}

fn apply_limits(app: &App, config: &Config) {
    let (limits, history) = (&config.limits, &config.history);
    let gateway = &app.context.gateway;
    let bounds = gateway.hub().bounds();
    bounds.queue_messages.store(limits.queue_messages, Ordering::Relaxed);
    bounds.queue_bytes.store(limits.queue_bytes, Ordering::Relaxed);
    bounds.queue_bytes_total.store(limits.queue_bytes_total, Ordering::Relaxed);
    bounds.channels_per_connection.store(limits.channels_per_connection, Ordering::Relaxed);

    metrics::connections_limit(limits.connections);
    gateway.set_max_publication(limits.publication_bytes);
    // What a client missed has to fit into its queue, beside what arrives meanwhile.
    gateway.set_opens(history.opens_per_user, history.opens);
    gateway.set_history_bounds(broker::Bounds {
        messages: history.max_messages.min(limits.queue_messages / 2),
        bytes: history.max_bytes.min(limits.queue_bytes / 2),
    });
}

/// Eight random bytes as hex: this process's name among the replicas.
fn random_hex() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

/// The node's name. In Kubernetes it is the pod's.
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

/// Ends the replica: not ready, then no new connections, then every socket told to reconnect
/// elsewhere. The closes are spread evenly over the window, so that the other replicas see a ramp
/// and not a cliff.
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

    // A request that was on its way when the listener closed may have opened a connection since.
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
    if connection.is_closing() {
        return;
    }
    // The delay adds a short jitter to the spread, so that sockets of one moment do not reconnect
    // in one.
    connection.say(&Reply::Reconnect { after_ms: fastrand::u64(50..=1000) });
    connection.close(Close::new(CloseCode::Restart, "draining"));
}
