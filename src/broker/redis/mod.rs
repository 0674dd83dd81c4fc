//! The Redis broker. Publications travel through pub/sub on `<prefix><channel>` (sharded in a
//! cluster), and histories are kept in streams beside it (`durable`, `history`, `library`). What
//! belongs to the gateway itself (control messages, canaries, revocations) is on
//! `gateway:<prefix>...`, which no publisher's ACL has to permit.
//!
//! `masters` knows where the masters are, and `sentinel` and `cluster` keep that up to date.
//! `routes` gives each master its connections: `link` subscribes and only drains, `node` publishes
//! and reads.
//!
//! Not here: who is subscribed locally, what happens to an event. Invariant: each connection proves
//! itself by answers: HELLO at connect, PING within a deadline ever after, and a canary that has to
//! arrive by the publishers' own path. An open TCP connection proves nothing.

mod canary;
mod cluster;
mod connect;
mod demotion;
mod durable;
mod fault;
mod fence;
mod history;
mod library;
mod link;
mod login;
mod masters;
mod node;
mod routes;
mod sentinel;
mod store;
mod tap;
mod tls;
mod wanted;
mod writes;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio_rustls::TlsConnector;

use self::connect::{Connector, Link};
use self::fault::Fault;
use self::fence::Fence;
use self::library::{Calling, Calls};
pub use self::login::Login;
use self::masters::{Directory, Map};
use self::routes::{Roles, Routes};
#[cfg(fuzzing)]
pub use self::tap::fuzzing as tap_fuzzing;
use super::{
    Bounds, Broker, BrokerError, BrokerFuture, Confirmation, Durable, Events, Failure, Health,
    History, Said, Silence, Track,
};
use crate::channel::{ChannelName, Position};
use crate::lifecycle;
use crate::logging;
use crate::metrics;
use crate::redis_url::{Server, Target, Topology, UrlError};

/// What the broker needs to know, taken from the `[redis]` section.
#[derive(Clone)]
pub struct Settings {
    /// The URL may hold a password: never log it.
    pub url: String,
    /// The file that holds the password if the URL does not; it is read for each connection.
    pub password_file: Option<PathBuf>,
    pub prefix: String,
    /// Used if the URL asks for TLS.
    pub tls: Option<TlsConnector>,
    /// The login at the Sentinels.
    pub sentinel: Login,
    /// The number of subscribing connections to each master.
    pub subscribers: usize,
    pub connect_timeout: Duration,
    pub command_timeout: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub canary_interval: Duration,
    pub canary_deadline: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
    /// True if replicas of version 0.1 run on the same Redis.
    pub beside_0_1: bool,
    /// The initial limit for publications that are delivered whole, in bytes.
    pub max_publication: usize,
    /// How often a server's address is checked for a change.
    pub address_interval: Duration,
}

/// The names of the gateway's own keys and channels begin with this, before the prefix.
pub const OWN: &str = "gateway:";

/// The state that the broker and its tasks share.
struct Shared {
    settings: Settings,
    connector: Connector,
    directory: Directory,
    routes: RwLock<Routes>,
    events: Arc<Events>,
    /// Identifies this process among the replicas, for its canaries.
    uid: String,
    /// True if the server runs scripts because it has no functions.
    scripts: AtomicBool,
    fence: Mutex<Fence>,
    watched: demotion::Watched,
    ready: AtomicBool,
    last_error: Mutex<Option<Failure>>,
    reporting: Mutex<()>,
    on_ready: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    /// Publishes the current state of the connections, after a change.
    fn report(&self) {
        // Reports come one at a time, so that the last one tells the latest state.
        let _reporting = self.reporting.lock();

        let roles = self.routes.read().roles();
        if roles.is_well() {
            *self.last_error.lock() = None;
        }

        metrics::redis_connected(Role::Subscriber.label(), roles.subscriber);
        metrics::redis_connected(Role::Publisher.label(), roles.publisher);
        metrics::redis_connected(Role::Writer.label(), roles.writer);

        if roles.subscriber && roles.publisher && !self.ready.swap(true, Ordering::AcqRel) {
            (self.on_ready)();
        }
    }

    /// Notes and logs what went wrong with a server. The text may name hosts, but never
    /// credentials.
    fn note(&self, role: Role, server: &Server, what: &'static str, error: &str) {
        let role = role.label();
        let (name, said) = (server.to_string(), error.to_owned());
        logging::repeated((role, what), &(server, error), move |repeated| {
            tracing::warn!(role, server = %name, error = said, repeated, "{what}");
        });
        let what = format!("{role}: {server}: {what}: {error}");
        *self.last_error.lock() = Some(Failure { at: SystemTime::now(), what });
    }

    /// Like [`Self::note`], for an error that came from the server.
    fn failed(&self, role: Role, server: &Server, what: &'static str, error: &RedisError) {
        metrics::redis_error(Fault::of(error).label());
        self.note(role, server, what, &fault::describe(error));
    }

    /// Notes that a key which only the function library writes holds something else. This harms
    /// only the key's own channel, which has no history then.
    fn bad_key(&self, key: &str, error: &str) {
        metrics::redis_error(Fault::BadKey.label());
        let (name, said) = (Said::new(key), error.to_owned());
        logging::repeated(("redis", "bad_key"), key, move |repeated| {
            let what = "a key in Redis holds what is not ours: no history there";
            tracing::warn!(key = %name, error = said, repeated, "{what}");
        });
    }

    /// How the library is called. The server that was examined last decides for all servers.
    fn calling(&self) -> Calling {
        let scripts = self.scripts.load(Ordering::Acquire);
        let calls = if scripts { Calls::Scripts } else { Calls::Functions };
        Calling { calls, max_bytes: self.max_bytes() }
    }

    fn max_bytes(&self) -> usize {
        self.connector.max_publication.load(Ordering::Relaxed).min(connect::MAX_STRING)
    }

    fn is_cluster(&self) -> bool {
        matches!(self.connector.target.topology, Topology::Cluster(_))
    }

    fn key(&self, channel: &ChannelName) -> String {
        if channel.is_control_0_1() {
            return self.key_0_1("control");
        }
        if channel.is_control() {
            return self.own_key(channel.as_str());
        }
        format!("{}{channel}", self.settings.prefix)
    }

    /// A key or channel of the gateway's own, which no pattern granted to publishers reaches.
    fn own_key(&self, name: &str) -> String {
        format!("{OWN}{}{name}", self.settings.prefix)
    }

    /// The name under which version 0.1 has it, which publishers' patterns reach.
    fn key_0_1(&self, name: &str) -> String {
        format!("{}{name}", self.settings.prefix)
    }

    /// A Redis channel's name without the prefix that `key` or `own_key` adds; `None` for any
    /// foreign name.
    fn strip<'n>(&self, name: &'n [u8]) -> Option<&'n str> {
        let prefix = self.settings.prefix.as_bytes();
        let own = name.strip_prefix(OWN.as_bytes()).and_then(|name| name.strip_prefix(prefix));
        if let Some(own) = own {
            return std::str::from_utf8(own).ok();
        }
        match std::str::from_utf8(name.strip_prefix(prefix)?).ok()? {
            // This channel is subscribed only where replicas of version 0.1 are expected.
            "control" => Some("control:0.1"),
            name => Some(name),
        }
    }

    /// Runs commands on the master that has a key, again on another one if the key's slot has
    /// moved.
    async fn on_master<'w, T>(
        &self,
        key: &str,
        work: impl Fn(Link) -> Work<'w, T> + Send,
    ) -> Result<T, BrokerError> {
        let mut tries = 0;
        loop {
            let node = self.node(key.as_bytes())?;
            let within = self.settings.command_timeout;
            let link = node.link(within).await.ok_or(BrokerError::Unavailable)?;

            let error = match work(link.clone()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };

            node.failed(&link, &error);
            if !fault::is_moved(&error) {
                let text = fault::describe(&error);
                tracing::debug!(server = %node.server, error = text, "a Redis command failed");
                metrics::redis_error(Fault::of(&error).label());
                return Err(fault::classify(&error));
            }

            self.directory.doubt();
            tries += 1;
            if tries > MOVED_TRIES || !self.is_cluster() {
                return Err(BrokerError::Unavailable);
            }
            tokio::time::sleep(MOVED_PAUSE * tries).await;
        }
    }

    /// Publishes without keeping. The answer is how many subscribers the server delivered it to.
    async fn publish_plain(&self, key: &str, message: &[u8]) -> Result<usize, BrokerError> {
        let mut command = redis::cmd(if self.is_cluster() { "SPUBLISH" } else { "PUBLISH" });
        command.arg(key).arg(message);
        self.on_master(key, |link| Box::pin(query(link, &command))).await
    }
}

/// The commands that are run on a master's connection.
type Work<'w, T> = Pin<Box<dyn Future<Output = RedisResult<T>> + Send + 'w>>;

async fn query<T: FromRedisValue>(mut link: Link, command: &Cmd) -> RedisResult<T> {
    fault::ask(&mut link.connection, command).await
}

/// An error that has not recurred for this long, with all connections up, is over.
const ERROR_LASTS: Duration = Duration::from_secs(30);

/// How many times a command is sent again because its slot has moved, and the first wait before
/// that.
const MOVED_TRIES: u32 = 5;
const MOVED_PAUSE: Duration = Duration::from_millis(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Subscriber,
    Publisher,
    /// The part that keeps durable publications.
    Writer,
}

impl Role {
    fn label(self) -> &'static str {
        match self {
            Self::Subscriber => "subscriber",
            Self::Publisher => "publisher",
            Self::Writer => "writer",
        }
    }
}

pub struct RedisBroker {
    shared: Arc<Shared>,
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

        let shared = Arc::new(Shared {
            connector: Connector::new(settings.clone(), target),
            directory: Directory::new(map),
            routes: RwLock::new(Routes::new(&settings)),
            settings,
            events,
            uid: format!("{:016x}", fastrand::u64(..)),
            scripts: AtomicBool::new(false),
            fence: Mutex::default(),
            watched: demotion::Watched::default(),
            ready: AtomicBool::new(false),
            last_error: Mutex::new(None),
            reporting: Mutex::new(()),
            on_ready: Box::new(on_ready),
        });

        Fault::ALL.into_iter().for_each(|fault| metrics::redis_errors_begin(fault.label()));
        shared.subscribe(&ChannelName::control(), Track::No, None);
        if shared.settings.beside_0_1 {
            shared.subscribe(&ChannelName::control_0_1(), Track::No, None);
        }
        shared.report();

        match topology {
            Topology::Standalone(_) => {}
            Topology::Sentinel(sentinels, name) => sentinel::start(&shared, sentinels, &name),
            Topology::Cluster(seeds) => {
                lifecycle::spawn("redis_cluster", cluster::run(Arc::clone(&shared), seeds));
            }
        }

        lifecycle::spawn("redis_routes", routes::follow(Arc::clone(&shared)));
        Ok(Self { shared })
    }
}

impl Broker for RedisBroker {
    fn subscribe(&self, channel: &ChannelName, track: Track, confirmation: Confirmation) {
        self.shared.subscribe(channel, track, Some(confirmation));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.shared.unsubscribe(channel);
    }

    fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> BrokerFuture<'_, Option<Position>> {
        let channel = channel.clone();
        Box::pin(async move {
            match durable {
                Some(durable) => self.publish_durable(&channel, &payload, &durable).await.map(Some),
                None => {
                    let key = self.shared.key(&channel);
                    let message = durable::stamped(&payload);
                    self.shared.publish_plain(&key, &message).await.map(|_| None)
                }
            }
        })
    }

    fn history(&self, channel: &ChannelName, bounds: Bounds) -> BrokerFuture<'_, Option<History>> {
        let channel = channel.clone();
        Box::pin(async move { self.read_history(&channel, bounds).await })
    }

    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize> {
        let key = self.shared.key(&ChannelName::control());
        let key_0_1 = self.shared.settings.beside_0_1.then(|| self.shared.key_0_1("control"));
        Box::pin(async move {
            let reached = self.shared.publish_plain(&key, &message).await?;
            match key_0_1 {
                // All replicas listen on the channel of version 0.1.
                Some(key) => self.shared.publish_plain(&key, &message).await,
                None => Ok(reached),
            }
        })
    }

    fn limit_publications(&self, bytes: usize) {
        self.shared.connector.max_publication.store(bytes, Ordering::Relaxed);
    }

    fn is_up(&self, channel: &ChannelName) -> bool {
        self.shared.is_live(channel)
    }

    fn silence(&self) -> Option<Silence> {
        self.shared.routes.read().silence()
    }

    fn health(&self) -> Health {
        let roles = self.shared.routes.read().roles();

        // An error that continues while everything is connected is noted repeatedly, so the error
        // of an old note is over.
        let is_over = |failure: &Failure| {
            let age = failure.at.elapsed().unwrap_or_default();
            roles.is_well() && age > ERROR_LASTS
        };

        let last_error = self.shared.last_error.lock().clone().filter(|error| !is_over(error));
        let ready = self.shared.ready.load(Ordering::Acquire);
        let Roles { subscriber, publisher, writer } = roles;
        Health { kind: "redis", ready, subscriber, publisher, writer, last_error }
    }
}
