//! The composition root of a relay: from a configuration to a running process, and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{sleep, timeout};

use super::parts::{hostname, random_hex, settings as redis_settings, short_hash};
use crate::access;
use crate::broker::Events;
use crate::broker::redis::RedisBroker;
use crate::config::{BrokerKind, Config, Loaded};
use crate::http::{self, Clients, Listener, RelayAdmin, Share};
use crate::lifecycle::{self, Hangup, Lifecycle, Phase, Termination};
use crate::logging;
use crate::metrics;
use crate::relay::schema::is_identifier;
use crate::relay::{Address, Database, DeadReason, Relay, Settings};

/// The connections of the admin listener, and those of one address.
const CONNECTIONS: usize = 64;
const SHARE: usize = CONNECTIONS / 2;

/// How long a batch that has begun may take at the end.
const LAST_BATCH: Duration = Duration::from_secs(10);

/// Looks up an environment variable.
type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// The databases of the configuration: for rows, and for the lock.
///
/// # Errors
/// What is wrong with `[relay]`.
pub(crate) fn databases(config: &Config, env: Env<'_>) -> anyhow::Result<(Database, Database)> {
    let section = &config.relay;
    if !is_identifier(&section.schema) {
        anyhow::bail!(
            "relay.schema must be a plain name: lower-case letters, digits and _, not {:?}",
            section.schema
        );
    }

    let database = |setting: &str, url: &str| {
        let address = Address::parse(url, &section.password_file, &section.ca_file, env)
            .map_err(|e| anyhow::anyhow!("{setting}: {e}"))?;
        Database::new(address, section.connect_timeout.0, section.statement_timeout.0)
            .map_err(|e| anyhow::anyhow!("relay.ca_file: {e}"))
    };
    let work = database("relay.url", &section.url.0)?;
    let session = match &*section.listen_url.0 {
        "" => work.clone(),
        url => database("relay.listen_url", url)?,
    };
    Ok((work, session))
}

/// Connects to Redis as a relay does, and as `tollgate publish`. What replicas say to each other is
/// ignored.
///
/// # Errors
/// The broker is not Redis, or its settings cannot be used.
pub(crate) fn broker(config: &Config) -> anyhow::Result<Arc<RedisBroker>> {
    if config.broker.kind != BrokerKind::Redis {
        anyhow::bail!(
            "broker.kind is \"memory\", which other processes do not reach: set it to \"redis\", and redis.url"
        );
    }
    let events = Arc::new(Events::new(config.broker.queue_messages, config.broker.queue_bytes));
    let started = RedisBroker::start(redis_settings(config)?, Arc::clone(&events), || {});
    lifecycle::spawn("ignored_events", async move {
        loop {
            drop(events.drain().await);
        }
    });
    Ok(Arc::new(started.context("redis.url")?))
}

/// Runs a relay until a signal.
///
/// # Errors
/// A setting cannot be used, the admin address cannot be bound, or there is no randomness.
pub(crate) async fn run(loaded: Loaded, env: Env<'_>) -> anyhow::Result<()> {
    let Loaded { config, policy, printed, .. } = loaded;
    let mut termination = Termination::install().context("cannot handle signals")?;
    let mut hangup = Hangup::install().context("cannot handle signals")?;
    let handle = metrics::install();
    metrics::relay::begin(DeadReason::ALL.map(DeadReason::label).iter());
    metrics::config_info(&short_hash(&printed));

    let databases = databases(&config, env)?;
    for database in [&databases.0, &databases.1] {
        if database.may_be_overheard() {
            tracing::warn!(
                servers = database.servers(),
                "the connection to PostgreSQL may be unencrypted: use sslmode=verify-full"
            );
        }
    }
    let broker = broker(&config)?;
    let lifecycle = Lifecycle::default();

    let name = format!("{}-{}", hostname(), random_hex()?);
    let section = &config.relay;
    let settings = Settings {
        schema: section.schema.clone(),
        name: name.clone(),
        poll_interval: section.poll_interval.0.max(Duration::from_millis(10)),
        retention: section.retention.0,
        batch_rows: section.batch_rows,
        batch_bytes: section.batch_bytes,
        event_bytes: config.limits.publication_bytes,
    };
    let retained = Box::new(move |channel: &crate::channel::ChannelName| {
        let retention = access::history(channel, &policy.rules)?;
        let seconds = retention.ttl.as_secs().clamp(1, 31_536_000);
        Some((u32::try_from(seconds).unwrap_or(600), retention.size))
    });
    let relay = Relay::new(settings, databases, Arc::clone(&broker), retained, lifecycle.clone());

    let admin = serve_admin(
        config.admin.listen,
        RelayAdmin {
            shown: relay.health(),
            broker,
            lifecycle: lifecycle.clone(),
            metrics: handle.clone(),
        },
    )?;
    lifecycle::spawn("log", logging::sum_up());
    lifecycle::spawn("upkeep", async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            handle.run_upkeep();
        }
    });

    lifecycle::spawn("hangup", async move {
        loop {
            hangup.signalled().await;
            tracing::warn!(
                "a relay does not read its configuration again: start it anew, another one takes over"
            );
        }
    });
    tracing::info!(%admin, name, version = env!("CARGO_PKG_VERSION"), "tollgate relay runs");
    let ended = lifecycle::spawn("relay", relay.run());
    termination.signalled().await;
    tracing::info!("the relay ends: the batch that has begun is finished");
    lifecycle.advance(Phase::Draining);
    tokio::select! {
        _ = timeout(LAST_BATCH, ended) => {}
        () = termination.signalled() => tracing::warn!("second signal: exiting at once"),
    }
    Ok(())
}

/// Serves the operators' pages until the process ends. Returns the address.
fn serve_admin(listen: SocketAddr, parts: RelayAdmin) -> anyhow::Result<SocketAddr> {
    let listener = Listener::bind(listen, CONNECTIONS, Duration::from_secs(10))
        .with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.address()?;
    let listener = listener.limited(Clients {
        reserve: 0,
        share: Box::new(|_, _| Share { connections: SHARE, http: SHARE }),
    });

    let routes = http::relay_admin(parts);
    lifecycle::spawn("admin", http::serve(listener, routes, Lifecycle::default(), Phase::Draining));
    Ok(address)
}
