//! The composition root: from a configuration to a running gateway, and its end.
//!
//! Not here: what the parts do; reading the configuration again (`app/reload.rs`). The order of
//! a drain: not ready (`settle`), no new connections, connections closed one by one over
//! `window`, exit.

mod parts;
pub(crate) mod relaying;
mod reload;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use crate::auth::diagnose;
use crate::clock::unix_now;
use crate::config::{BrokerKind, Config, Loaded, Values};
use crate::demo;
use crate::diagnosis::key_drift;
use crate::http::{self, App, Clients, Listener, Share};
use crate::lifecycle::{self, Hangup, Lifecycle, Phase, Termination};
use crate::logging;
use crate::metrics;
use crate::process_limits;
use crate::protocol::Reply;
use crate::protocol::codes::{Close, CloseCode};
pub(crate) use parts::jwks_of;
use parts::{apply_limits, context, gateway, short_hash};
use reload::InForce;
pub(crate) use reload::Reload;

/// The admin listener's connections. It serves scrapers and people, not clients.
const ADMIN_CONNECTIONS: usize = 64;

/// The admin listener's connections of one address.
const ADMIN_SHARE: usize = ADMIN_CONNECTIONS / 2;

/// Descriptors are set aside for connections to this many servers of Redis, and for everything else
/// that we open.
const REDIS_SERVERS: usize = 16;
const OTHER_FILES: usize = 64;

/// How long connections that are still open after the drain's window may take to end.
const LAST_WORDS: Duration = Duration::from_secs(3);
const _: () = assert!(LAST_WORDS.as_millis() > http::socket::LINGER.as_millis());

/// The addresses that the listeners are bound to. A port 0 has become a real one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// A gateway that is ready to run.
pub(crate) struct Running {
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
    pub(crate) fn start(loaded: Loaded, dev: bool, delivery: &Handle) -> anyhow::Result<Self> {
        let Loaded { config, policy, printed, values } = loaded;
        let termination = Termination::install().context("cannot handle signals")?;
        let hangup = Hangup::install().context("cannot handle signals")?;

        let metrics = metrics::install();
        metrics::begin_gateway();
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
    pub(crate) fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses { public: self.public.address()?, admin: self.admin.address()? })
    }

    /// Serves until a signal, then drains.
    ///
    /// # Errors
    /// There is none at present: signal handlers are installed by `start`.
    pub(crate) async fn run(self, reload: Reload) -> anyhow::Result<()> {
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

        // The admin listener has a lifecycle of its own: a scraper must not hold up the
        // end of a drain.
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
        let issuers = config.drift.issuers.clone();
        let interval = config.drift.interval.0;
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

/// What the clients of the public listener may hold, and how many files are kept from them.
fn clients(app: &App, config: &Config) -> Clients {
    let context = Arc::clone(&app.context);
    let share = move |ip, files: usize| {
        let policy = context.policy.load();
        if http::headers::is_trusted(ip, &policy.trusted_proxies) {
            return Share::ALL;
        }

        let limits = &policy.limits;
        let one = limits.connections_per_ip;
        let all = limits.connections;
        // If there are fewer files than limits.connections, an address has its share of them, and
        // at least half of them.
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
    let allowed = process_limits::raise_open_files();
    if allowed < connections as u64 + 1000 && !dev {
        tracing::warn!(
            allowed,
            limits.connections = connections,
            "this process may open fewer files than limits.connections needs: raise its hard limit \
             (ulimit -Hn, LimitNOFILE=), or lower limits.connections"
        );
    }
}

/// Folds the histograms of the metrics recorder, even if nobody scrapes.
async fn upkeep(handle: metrics_exporter_prometheus::PrometheusHandle) {
    loop {
        sleep(Duration::from_secs(5)).await;
        handle.run_upkeep();
    }
}

/// Ends the replica: not ready, then no new connections, then every connection told to reconnect
/// elsewhere. The closes are spread evenly over the window, so that the other replicas see a ramp
/// and not a cliff.
async fn drain(app: &App, config: &Config) {
    let hub = app.context.gateway.hub();
    metrics::draining();
    app.lifecycle.advance(Phase::Settling);
    tracing::info!(sockets = hub.counts().connections, "draining: this replica is no longer ready");
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
        tracing::warn!(
            sockets = hub.counts().connections,
            "drained: some sockets did not close in time"
        );
    } else {
        tracing::info!("drained");
    }
}

/// Tells a connection to reconnect elsewhere, and closes it.
fn send_away(connection: &crate::hub::Connection) {
    if connection.is_closing() {
        return;
    }
    // The delay adds a short jitter to the spread, so that connections that are closed in one
    // moment do not reconnect in one.
    connection.say(&Reply::Reconnect { after_ms: fastrand::u64(50..=1000) });
    connection.close(Close::new(CloseCode::Restart, "draining"));
}
