//! The mediator between hub and broker: it alone knows both. It turns local subscriptions into
//! broker subscriptions, pumps broker events into the hub in order, and carries control messages.
//!
//! Not here: sockets, tokens, access. Invariants: a channel is subscribed in the broker before its
//! subscriber is told so; whatever cannot be delivered is declared as a gap on its channel; an
//! entry of a channel in the hub and its count in `interest` come and go together.

mod control;
mod interest;
mod revoke;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::auth::Revocations;
use crate::broker::{Broker, BrokerError, Event, Events, Store};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::hub::{Connection, Hub, SubscribeError};
use crate::metrics::{self, Rejected};
use crate::protocol::Push;
pub use control::{Control, NodeInfo, Nodes};
use interest::Interest;
pub use interest::Waiting;
pub use revoke::RevokeError;

pub struct Gateway {
    hub: Arc<Hub>,
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    revocations: Arc<Revocations>,
    interest: Interest,
    nodes: Nodes,
    max_publication: AtomicUsize,
}

/// Why a publication was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the event is larger than limits.publication_bytes")]
    TooLarge,
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Why a control message may not have reached everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("done here, but {reached} of {known} replicas were reached: try again")]
    Partly { reached: usize, known: usize },
    #[error("done here, but {0}: try again for the other replicas")]
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
        Self {
            hub,
            store,
            revocations: Arc::default(),
            interest: Interest::new(Arc::clone(&broker), linger),
            broker,
            nodes: Nodes::new(node),
            max_publication: AtomicUsize::new(usize::MAX),
        }
    }

    /// Sets how long a subscriber waits for the broker.
    #[must_use]
    pub fn confirm_within(mut self, wait: Duration) -> Self {
        self.interest.confirm_within = wait;
        self
    }

    pub fn set_max_publication(&self, bytes: usize) {
        self.max_publication.store(bytes, Ordering::Relaxed);
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

    /// What is revoked; the verifier looks here.
    #[must_use]
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Begins a subscription: events are held back until [`Gateway::activate`], and the broker is
    /// asked if this is the channel's first. Does not wait.
    ///
    /// # Errors
    /// When the connection has the channel already, or too many.
    pub fn subscribe(
        &self,
        connection: &Connection,
        channel: &ChannelName,
    ) -> Result<Waiting, SubscribeError> {
        self.hub.subscribe(connection, channel)?;
        Ok(self.interest.acquire(channel))
    }

    /// Waits until the broker has the subscription.
    ///
    /// # Errors
    /// When it refused, or did not answer in time. The subscription is taken back.
    pub async fn confirmed(
        &self,
        connection: &Connection,
        channel: &ChannelName,
        waiting: Waiting,
    ) -> Result<(), BrokerError> {
        let result = waiting.answer().await;
        if result.is_err() {
            self.unsubscribe(connection, channel);
        }
        result
    }

    /// Sends `reply` and lets the subscription's events through.
    pub fn activate(&self, connection: &Connection, channel: &ChannelName, reply: Option<Bytes>) {
        self.hub.activate(connection, channel, reply);
    }

    /// True if the connection had the subscription.
    pub fn unsubscribe(&self, connection: &Connection, channel: &ChannelName) -> bool {
        let had = self.hub.unsubscribe(connection, channel);
        if had {
            self.interest.release(channel);
        }
        had
    }

    /// Takes a connection out with everything it had.
    pub fn remove(&self, connection: &Connection) {
        for channel in self.hub.remove(connection) {
            self.interest.release(&channel);
        }
    }

    /// Publishes to every replica.
    ///
    /// # Errors
    /// When the event is too large or the broker did not take it.
    pub async fn publish(&self, channel: &ChannelName, payload: Bytes) -> Result<(), PublishError> {
        if payload.len() > self.max_publication.load(Ordering::Relaxed) {
            return Err(PublishError::TooLarge);
        }
        Ok(self.broker.publish(channel, payload).await?)
    }

    /// Carries out a control message here, and sends it to every other replica.
    ///
    /// # Errors
    /// When the broker did not take it, or it reached fewer replicas than there are: then some did
    /// not hear it, and it has to be sent again.
    pub async fn control(&self, control: &Control) -> Result<(), ControlError> {
        self.carry_out(control.clone());
        let known = self.nodes.all(self.hub.counts()).len();
        let reached = self.broker.control(control.encode()).await?;
        if reached < known { Err(ControlError::Partly { reached, known }) } else { Ok(()) }
    }

    /// Declares a gap on a channel to its local subscribers.
    pub async fn declare_gap(&self, channel: ChannelName, reason: GapReason) {
        metrics::gap_declared(reason);
        self.hub.dispatch(Push::Gap(channel, reason)).await;
    }

    /// Moves events from the broker to the hub, in order, for ever.
    pub async fn pump(self: Arc<Self>, events: Arc<Events>) {
        let received = metrics::publications(self.broker.health().kind);
        loop {
            let batch = events.take().await;
            for event in batch.events {
                match event {
                    Event::Publication(publication) => {
                        received.increment(1);
                        self.deliver(publication).await;
                    }
                    Event::Subscribed(channel, confirmation) => {
                        let confirm = move || {
                            confirmation.send_replace(Some(Ok(())));
                        };
                        self.hub.mark(&channel, confirm).await;
                    }
                    Event::Gap(channel, reason) => self.declare_gap(channel, reason).await,
                    Event::Control(message) => self.apply(&message),
                }
            }
            for channel in batch.overflowed {
                self.declare_gap(channel, GapReason::Overflow).await;
            }
        }
    }

    /// Anyone who may publish in Redis may write anything there: what is not JSON text of a
    /// permitted size cannot be delivered, and that is declared too.
    async fn deliver(&self, publication: Publication) {
        let payload = &publication.payload;
        if payload.len() > self.max_publication.load(Ordering::Relaxed) {
            metrics::rejected(Rejected::PublicationSize);
            tracing::warn!(channel = %publication.channel, bytes = payload.len(), "publication too large");
            return self.declare_gap(publication.channel, GapReason::PayloadTooLarge).await;
        }
        let valid = std::str::from_utf8(payload)
            .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        if !valid {
            metrics::rejected(Rejected::PublicationInvalid);
            tracing::warn!(channel = %publication.channel, "publication is not JSON");
            return self.declare_gap(publication.channel, GapReason::InvalidPayload).await;
        }
        self.hub.dispatch(Push::Publication(publication)).await;
    }

    /// Periodic work: channels whose last subscriber left long enough ago, and the announcement of
    /// this node to the others.
    pub async fn housekeeping(self: Arc<Self>) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        let mut recalled_at = None;
        for second in 0u64.. {
            seconds.tick().await;
            self.interest.sweep();
            self.recall(&mut recalled_at, second).await;
            if second % control::ANNOUNCE_EVERY == 0 {
                let counts = self.hub.counts();
                // Without the broker there is nobody to tell.
                let _ = self.broker.control(self.nodes.announcement(counts).encode()).await;
            }
        }
    }
}
