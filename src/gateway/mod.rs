//! The mediator between hub and broker: it alone knows both. It turns local subscriptions into
//! broker subscriptions, pumps broker events into the hub in order, and carries control messages.
//!
//! Not here: sockets, tokens, access. Invariants: a channel is subscribed in the broker before its
//! subscriber is told so; whatever cannot be delivered is declared as a gap on its channel; a
//! channel's entry in the hub and its count in `interest` appear and disappear together.

mod carry_out;
mod continuity;
mod control;
mod interest;
mod nodes;
mod opens;
mod outage;
mod pump;
mod recall;
mod recovery;
mod resume;
mod revoke;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use crate::auth::Revocations;
use crate::broker::{Broker, HistoryBounds, Store};
pub use crate::broker::{BrokerError, Durable, Published, Tracking};
use crate::channel::{ChannelName, GapReason};
use crate::hub::{Connection, Hub, SubscribeError};
use crate::metrics;
use crate::protocol::payload::{self, PayloadFault};
use crate::protocol::{Kind, Push};
#[cfg(fuzzing)]
pub use continuity::simulation::live_by as live_in_simulation;
pub use control::{Control, ControlError};
use interest::Interest;
pub use interest::PendingSubscription;
use nodes::ANNOUNCE_EVERY;
pub use nodes::{NodeInfo, Nodes};
use opens::Opens;
use recall::Recall;
pub use recall::RevocationsHealth;
use recovery::Recovery;
pub use resume::Resumed;
pub use revoke::RevokeError;

/// Joins the hub and the broker of this replica.
pub struct Gateway {
    hub: Arc<Hub>,
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    recall: Recall,
    interest: Interest,
    opens: Opens,
    nodes: Nodes,
    max_publication: AtomicUsize,
    /// The bounds of one reading of a history.
    history_bounds: Mutex<HistoryBounds>,
    /// Limits how many histories are read at once; waiting readings get their turn in order.
    readings: Semaphore,
    /// Sends the pump what the readings for missing ranges found.
    read: mpsc::Sender<Recovery>,
    /// The pump's end of `read`, until the pump takes it.
    reads: Mutex<Option<mpsc::Receiver<Recovery>>>,
    /// The number of histories that are being read for missing ranges.
    recoveries: AtomicUsize,
    interrupted_after: Duration,
}

/// Seconds between two sweeps of the replay caches that no client resumes from any more.
const SWEEP_CACHES_EVERY: u64 = 5;

/// Seconds between two checks of the table sizes.
const SHRINK_EVERY: u64 = 10;

/// Most histories that are read at once.
const READINGS: usize = 64;

/// Why a publication was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the event is larger than limits.publication_bytes")]
    TooLarge,
    #[error(
        "the type \"{}\" is the gateway's own: clients could not tell this event from a message of the \
         gateway. Give the event another type, for example \"app.{}\"", .0.name(), .0.name()
    )]
    Reserved(Kind),
    #[error("data: {0}")]
    Invalid(String),
    #[error("channel: it has the id \"{0}\": the publisher had none")]
    NoId(String),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl Gateway {
    #[must_use]
    pub fn new<B: Broker + Store>(
        hub: Arc<Hub>,
        broker: Arc<B>,
        linger: Duration,
        node: NodeInfo,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::<B>::clone(&broker);
        let broker: Arc<dyn Broker> = broker;
        let revocations =
            if store.outlives() { Revocations::unread() } else { Revocations::default() };
        let (read, reads) = mpsc::channel(READINGS);

        Self {
            hub,
            store,
            revocations: Arc::new(revocations),
            recall: Recall::default(),
            interest: Interest::new(Arc::clone(&broker), linger),
            opens: Opens::default(),
            broker,
            nodes: Nodes::new(node),
            max_publication: AtomicUsize::new(usize::MAX),
            history_bounds: Mutex::new(HistoryBounds { messages: 1000, bytes: 512 << 10 }),
            readings: Semaphore::new(READINGS),
            read,
            reads: Mutex::new(Some(reads)),
            recoveries: AtomicUsize::new(0),
            interrupted_after: Duration::ZERO,
        }
    }

    /// Sets how many histories subscriptions may begin in an hour, for one user and for all users.
    pub fn set_opens(&self, per_user: u32, all: u32) {
        self.opens.set(per_user, all);
    }

    pub fn set_history_bounds(&self, bounds: HistoryBounds) {
        *self.history_bounds.lock() = bounds;
    }

    /// Sets how long a subscription waits for the broker's confirmation.
    #[must_use]
    pub fn confirm_within(mut self, wait: Duration) -> Self {
        self.interest.confirm_within = wait;
        self
    }

    /// Sets for how long nothing can arrive before clients are told of it; zero means never.
    #[must_use]
    pub fn interrupted_after(mut self, after: Duration) -> Self {
        self.interrupted_after = after;
        self
    }

    pub fn set_max_publication(&self, bytes: usize) {
        self.max_publication.store(bytes, Ordering::Relaxed);
        self.broker.limit_publications(bytes);
    }

    #[must_use]
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    #[must_use]
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The revocations that are known here; the token verifier checks against them.
    #[must_use]
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Begins a subscription: its events are held back until [`Gateway::activate`]. If it is the
    /// channel's first one, the broker is asked to subscribe. This function does not wait.
    ///
    /// # Errors
    /// When the connection is subscribed to the channel already, or has too many subscriptions.
    pub fn subscribe(
        &self,
        connection: &Connection,
        channel: &ChannelName,
        tracking: Tracking,
    ) -> Result<PendingSubscription, SubscribeError> {
        self.hub.subscribe(connection, channel)?;
        let user = connection.user().unwrap_or_default();

        let begins = tracking >= Tracking::Create && !self.interest.has_history_of(channel);
        if begins && !self.opens.allow(&user) {
            // A history that exists already is followed all the same.
            metrics::history_not_begun();
            return Ok(self.interest.acquire(channel, Tracking::Follow));
        }

        Ok(self.interest.acquire(channel, tracking))
    }

    /// Waits until the broker has confirmed the subscription.
    ///
    /// # Errors
    /// When the broker refused, or did not answer in time. The subscription is removed again.
    pub async fn await_confirmation(
        &self,
        connection: &Connection,
        channel: &ChannelName,
        pending: PendingSubscription,
    ) -> Result<(), BrokerError> {
        let first = pending.is_first();
        let result = pending.answer().await;

        if result.is_ok() {
            if first {
                self.interest.forget_answer(channel);
            }
            self.hub.mark_confirmed(connection, channel);
        } else {
            self.unsubscribe(connection, channel);
        }

        result
    }

    /// Waits until everything that was dispatched to the connection's shard before has been sent.
    pub async fn flush_barrier(&self, connection: &Connection) {
        self.hub.flush_barrier(connection).await;
    }

    /// Ends a subscription. Returns true if the connection had it.
    pub fn unsubscribe(&self, connection: &Connection, channel: &ChannelName) -> bool {
        let had = self.hub.unsubscribe(connection, channel);
        if had {
            self.interest.release(channel);
        }
        had
    }

    /// Removes a connection with all its subscriptions.
    pub fn remove(&self, connection: &Connection) {
        for channel in self.hub.remove(connection) {
            self.interest.release(&channel);
        }
    }

    /// Publishes to every replica. The answer is the position of a durable publication.
    ///
    /// # Errors
    /// When the event is too large, could be mistaken for a message of the gateway's own, or the
    /// broker did not accept it.
    pub async fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> Result<Published, PublishError> {
        if let Some(id) = channel.missing_id() {
            return Err(PublishError::NoId(id.to_owned()));
        }
        if payload.len() > self.max_publication.load(Ordering::Relaxed) {
            return Err(PublishError::TooLarge);
        }

        payload::check(&payload).map_err(|fault| match fault {
            PayloadFault::Reserved(kind) => PublishError::Reserved(kind),
            PayloadFault::NotUtf8 { .. } | PayloadFault::NotJson(_) => {
                PublishError::Invalid(fault.to_string())
            }
        })?;

        Ok(self.broker.publish(channel, payload, durable).await?)
    }

    /// Declares a gap on a channel to its local subscribers.
    pub async fn declare_gap(&self, channel: ChannelName, reason: GapReason) {
        metrics::gap_declared(reason);
        self.hub.dispatch(Push::Gap(channel, reason)).await;
    }

    /// Works periodically: releases the channels whose last subscription ended long enough ago,
    /// drops unused replay caches, shrinks tables, and announces this replica to the others.
    pub async fn housekeeping(self: Arc<Self>) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        for second in 0u64.. {
            seconds.tick().await;

            self.interest.sweep();
            if second % SWEEP_CACHES_EVERY == 0 || continuity::caches_are_full() {
                self.interest.sweep_caches();
            }

            if second % SHRINK_EVERY == 0 {
                self.interest.shrink();
                self.hub.shrink();
            }

            if second % ANNOUNCE_EVERY == 0 {
                let info = self.nodes.own(self.hub.counts());
                // Without the broker no other replica can be reached anyway.
                let _ = self.broker.control(Control::Node { info }.encode()).await;
            }
        }
    }
}
