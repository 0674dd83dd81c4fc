//! The Redis broker: publications through pub/sub on `<prefix><channel>`, control messages on
//! `<prefix>control`. Two connections: one subscribes and only drains (`pubsub`), one publishes.
//!
//! Not here: who is subscribed locally, what happens to an event. Invariant: each connection
//! proves itself by an answer (HELLO at connect, PING within a deadline ever after); an open TCP
//! connection proves nothing.

mod connect;
mod pubsub;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;

use self::connect::Connector;
use self::pubsub::Subscriber;
use super::{Broker, BrokerError, BrokerFuture, Confirmation, Events, Health};
use crate::channel::ChannelName;
use crate::lifecycle;
use crate::metrics;

/// What the broker needs to know; taken from the `[redis]` section.
#[derive(Clone)]
pub struct Settings {
    /// Holds a password: never log it.
    pub url: String,
    pub prefix: String,
    pub connect_timeout: Duration,
    pub command_timeout: Duration,
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
}

/// The state that the broker and its tasks share.
struct Shared {
    settings: Settings,
    subscriber_up: AtomicBool,
    publisher_up: AtomicBool,
    ready: AtomicBool,
    last_error: Mutex<Option<String>>,
    /// The connection, and whom to tell that it is lost.
    publisher: Mutex<Option<(MultiplexedConnection, Arc<Notify>)>>,
    on_ready: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn set_up(&self, role: Role, up: bool) {
        let flag = match role {
            Role::Subscriber => &self.subscriber_up,
            Role::Publisher => &self.publisher_up,
        };
        flag.store(up, Ordering::Release);
        metrics::redis_connected(role.label(), up);
        let both =
            self.subscriber_up.load(Ordering::Acquire) && self.publisher_up.load(Ordering::Acquire);
        if both && !self.ready.swap(true, Ordering::AcqRel) {
            (self.on_ready)();
        }
    }

    /// Notes and logs an error. The library's text names hosts at most, never credentials.
    fn note(&self, role: Role, what: &str, error: &str) {
        tracing::warn!(role = role.label(), error, "{what}");
        *self.last_error.lock() = Some(format!("{}: {what}: {error}", role.label()));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Subscriber,
    Publisher,
}

impl Role {
    fn label(self) -> &'static str {
        match self {
            Self::Subscriber => "subscriber",
            Self::Publisher => "publisher",
        }
    }
}

pub struct RedisBroker {
    shared: Arc<Shared>,
    subscriber: Arc<Subscriber>,
}

impl RedisBroker {
    /// Starts connecting in the background, for ever; `on_ready` is called after the first round
    /// trip on both connections.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn start(
        settings: Settings,
        events: Arc<Events>,
        on_ready: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, BrokerError> {
        let connector = Connector::new(&settings).map_err(|_| BrokerError::Refused)?;
        let shared = Arc::new(Shared {
            settings,
            subscriber_up: AtomicBool::new(false),
            publisher_up: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            last_error: Mutex::new(None),
            publisher: Mutex::new(None),
            on_ready: Box::new(on_ready),
        });
        metrics::redis_connected(Role::Subscriber.label(), false);
        metrics::redis_connected(Role::Publisher.label(), false);
        let subscriber = Arc::new(Subscriber::new(Arc::clone(&shared), events));
        lifecycle::spawn(
            "redis_subscriber",
            pubsub::run(Arc::clone(&subscriber), connector.clone()),
        );
        lifecycle::spawn("redis_publisher", publish_loop(Arc::clone(&shared), connector));
        Ok(Self { shared, subscriber })
    }

    /// Publishes; the answer is how many subscribers Redis handed it to.
    async fn send(&self, channel: String, payload: Bytes) -> Result<usize, BrokerError> {
        let connection = self.shared.publisher.lock().clone();
        let (mut connection, lost) = connection.ok_or(BrokerError::Unavailable)?;
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(&*payload);
        command.query_async::<usize>(&mut connection).await.map_err(|e| {
            if e.is_timeout() || e.is_io_error() || e.is_unrecoverable_error() {
                lost.notify_one();
            }
            connect::classify(&e)
        })
    }
}

/// Keeps the publishing connection.
async fn publish_loop(shared: Arc<Shared>, mut connector: Connector) {
    loop {
        let connection = connector.connect(&shared, Role::Publisher, None).await;
        let lost = Arc::new(Notify::new());
        *shared.publisher.lock() = Some((connection.clone(), Arc::clone(&lost)));
        shared.set_up(Role::Publisher, true);
        tokio::select! {
            error = connect::ping_until_lost(connection, &shared.settings) => {
                shared.note(Role::Publisher, "connection to Redis lost", &error);
            }
            () = lost.notified() => {
                shared.note(Role::Publisher, "connection to Redis lost", "a command failed");
            }
        }
        *shared.publisher.lock() = None;
        shared.set_up(Role::Publisher, false);
        metrics::redis_reconnect();
    }
}

impl Broker for RedisBroker {
    fn subscribe(&self, channel: &ChannelName, confirmation: Confirmation) {
        self.subscriber.subscribe(channel, confirmation);
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.subscriber.unsubscribe(channel);
    }

    fn publish(&self, channel: &ChannelName, payload: Bytes) -> BrokerFuture<'_> {
        let channel = format!("{}{channel}", self.shared.settings.prefix);
        Box::pin(async move { self.send(channel, payload).await.map(|_| ()) })
    }

    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize> {
        Box::pin(self.send(format!("{}control", self.shared.settings.prefix), message))
    }

    fn is_up(&self) -> bool {
        self.shared.subscriber_up.load(Ordering::Acquire)
    }

    fn health(&self) -> Health {
        let shared = &self.shared;
        Health {
            kind: "redis",
            ready: shared.ready.load(Ordering::Acquire),
            subscriber: shared.subscriber_up.load(Ordering::Acquire),
            publisher: shared.publisher_up.load(Ordering::Acquire),
            last_error: shared.last_error.lock().clone(),
        }
    }
}
