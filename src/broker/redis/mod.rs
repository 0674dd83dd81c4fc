//! The Redis broker. Publications travel through pub/sub on `<prefix><channel>` (sharded in a
//! cluster), and histories are kept in Redis streams beside it (`durable`, `history`, `library`).
//! What belongs to the gateway itself (control messages, canaries, revocations) is on
//! `gateway:<prefix>...`, which no publisher's ACL has to permit.
//!
//! From below: `core` is what everything stands on; `masters` knows where the masters are, and
//! `sentinel` and `cluster` keep that up to date. Each master has its connections: `command`
//! publishes and reads, `subscribing` subscribes and only passes on. `commands` and `routes` have
//! all of them; `demotion` watches old masters; `upkeep` acts on what changes.
//!
//! Not here: which connection is subscribed to what, and what happens to an event. Invariant: each
//! connection proves itself by answers: HELLO at connect, PING within a deadline ever after, and a
//! canary that has to arrive by the publishers' own path. An open TCP connection proves nothing.

mod canary;
mod cluster;
mod command;
mod commands;
mod connect;
mod core;
mod demotion;
mod durable;
mod fault;
mod fencing;
mod hearing;
mod history;
mod library;
mod login;
mod masters;
mod routes;
mod rows;
mod sentinel;
mod settings;
mod stated;
mod store;
mod stream;
mod subscribing;
mod subscription_table;
mod tap;
mod upkeep;
mod watch;
mod writes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use self::commands::Commands;
use self::core::Core;
pub use self::core::OWN;
use self::demotion::OldMasters;
use self::fault::Fault;
pub use self::login::Login;
use self::masters::{Directory, Map};
use self::routes::{Roles, Routes};
pub use self::settings::Settings;
#[cfg(fuzzing)]
pub use self::tap::fuzzing as tap_fuzzing;
use self::upkeep::Readiness;
use super::{
    Broker, BrokerFuture, Confirmation, Durable, Events, Failure, Health, History, HistoryBounds,
    Mandate, Published, RelayError, Relayed, Row, Silence, Tracking,
};
use crate::channel::ChannelName;
use crate::lifecycle;
use crate::metrics;
use crate::redis_url::{Target, Topology, UrlError};

/// An error that has not recurred for this long, with all connections up, is over.
const ERROR_LASTS: Duration = Duration::from_secs(30);

/// The broker whose publications and histories are in Redis.
pub struct RedisBroker {
    core: Arc<Core>,
    commands: Arc<Commands>,
    routes: Arc<Routes>,
    readiness: Arc<Readiness>,
}

impl RedisBroker {
    /// Starts connecting in the background, for ever. `on_ready` is called after the first round
    /// trip on every connection.
    ///
    /// # Errors
    /// When the URL is invalid.
    pub fn start(
        settings: Settings,
        events: Arc<Events>,
        on_ready: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, UrlError> {
        let target = Target::parse(&settings.url)?;
        let topology = target.topology.clone();
        let map = match &topology {
            Topology::Standalone(server) => Map::one(server.clone()),
            Topology::Sentinel(..) | Topology::Cluster(_) => Map::default(),
        };

        let core = Arc::new(Core::new(settings, target, Directory::new(map), events));
        let commands = Arc::new(Commands::new(Arc::clone(&core)));
        let routes = Arc::new(Routes::new(Arc::clone(&commands)));
        let old_masters = OldMasters::new(Arc::clone(&commands), Arc::clone(&routes));
        let ready = AtomicBool::new(false);
        let on_ready = Box::new(on_ready);
        let readiness = Arc::new(Readiness { ready, on_ready });

        Fault::ALL.into_iter().for_each(|fault| metrics::redis_errors_begin(fault.label()));
        routes.subscribe(&ChannelName::control(), Tracking::Off, None);
        if core.settings.beside_0_1 {
            routes.subscribe(&ChannelName::control_0_1(), Tracking::Off, None);
        }
        upkeep::report(&core, routes.roles(), &readiness);

        match topology {
            Topology::Standalone(_) => {}
            Topology::Sentinel(sentinels, name) => {
                sentinel::start(&core, &old_masters, sentinels, &name);
            }
            Topology::Cluster(seeds) => {
                lifecycle::spawn("redis_cluster", cluster::run(Arc::clone(&core), seeds));
            }
        }

        let upkeep = upkeep::run(
            Arc::clone(&core),
            Arc::clone(&routes),
            old_masters,
            Arc::clone(&readiness),
        );
        lifecycle::spawn("redis_upkeep", upkeep);
        Ok(Self { core, commands, routes, readiness })
    }
}

/// What the relay of an outbox needs.
impl RedisBroker {
    /// Publishes rows of one channel in their order, each once, however often it is called.
    ///
    /// # Errors
    /// None of the rows may have been published, or all of them: only another call tells.
    pub async fn relay(
        &self,
        channel: &ChannelName,
        mandate: &Mandate,
        rows: &[Row],
    ) -> Result<Relayed, RelayError> {
        rows::publish(&self.commands, channel, mandate, rows).await
    }

    /// Says that rows are marked in their database and need no guard any more. Returns how many of
    /// the channel still have one.
    ///
    /// # Errors
    /// The rows keep their guard.
    pub async fn settle(
        &self,
        channel: &ChannelName,
        mandate: &Mandate,
        identities: &[String],
    ) -> Result<usize, RelayError> {
        rows::settle(&self.commands, channel, mandate, identities).await
    }

    /// Publishes and settles a row that nobody hears, on every master: does Redis permit all of it?
    ///
    /// # Errors
    /// The first refusal.
    pub async fn try_relay(&self) -> Result<(), RelayError> {
        rows::try_out(&self.commands).await
    }
}

impl Broker for RedisBroker {
    fn subscribe(&self, channel: &ChannelName, tracking: Tracking, confirmation: Confirmation) {
        self.routes.subscribe(channel, tracking, Some(confirmation));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.routes.unsubscribe(channel);
    }

    fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> BrokerFuture<'_, Published> {
        let channel = channel.clone();

        Box::pin(async move {
            match durable {
                Some(kept) => durable::publish(&self.commands, &channel, &payload, &kept).await,
                None => {
                    let key = self.core.key(&channel);
                    let message = durable::stamped(&payload);
                    let heard = self.commands.publish_plain(&key, &message).await?;
                    Ok(Published { position: None, heard: i64::try_from(heard).ok() })
                }
            }
        })
    }

    fn history(
        &self,
        channel: &ChannelName,
        bounds: HistoryBounds,
    ) -> BrokerFuture<'_, Option<History>> {
        let channel = channel.clone();
        Box::pin(async move { history::read(&self.commands, &channel, bounds).await })
    }

    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize> {
        let key = self.core.key(&ChannelName::control());
        let key_0_1 = self.core.settings.beside_0_1.then(|| self.core.key_0_1("control"));
        Box::pin(async move {
            let reached = self.commands.publish_plain(&key, &message).await?;
            match key_0_1 {
                // All replicas listen on the channel of version 0.1.
                Some(key) => self.commands.publish_plain(&key, &message).await,
                None => Ok(reached),
            }
        })
    }

    fn limit_publications(&self, bytes: usize) {
        self.core.connector.max_publication.store(bytes, Ordering::Relaxed);
    }

    fn is_up(&self, channel: &ChannelName) -> bool {
        self.routes.is_live(channel)
    }

    fn silence(&self) -> Option<Silence> {
        self.routes.silence()
    }

    fn health(&self) -> Health {
        let roles = self.routes.roles();

        // An error that continues while everything is connected is noted again and again, so an old
        // note means that its error is over.
        let is_over = |failure: &Failure| {
            let age = failure.at.elapsed().unwrap_or_default();
            roles.is_well() && age > ERROR_LASTS
        };

        let last_error = self.core.last_error.lock().clone().filter(|error| !is_over(error));
        let ready = self.readiness.ready.load(Ordering::Acquire);
        let Roles { subscriber, publisher, writer } = roles;
        Health { kind: "redis", ready, subscriber, publisher, writer, last_error }
    }
}
