//! Brokers: where publications come from. [`Broker`] is the contract; `memory` and `redis` keep it,
//! and one conformance suite (`tests/it/conformance.rs`) holds both to it.
//!
//! Not here: sockets, who is subscribed locally (`gateway::interest`). The gateway calls `subscribe`
//! for a channel's first local subscriber and `unsubscribe` after its last.

mod events;
pub mod memory;
pub mod redis;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use tokio::sync::watch;

use crate::channel::{ChannelName, GapReason, Publication};
pub use events::{Batch, Events};

/// What a broker hands to the gateway, through [`Events`].
#[derive(Debug)]
pub enum Event {
    Publication(Publication),
    /// The subscription is live: what stands before this in the queue is older than it, everything
    /// that is published from now on comes after it. Whoever takes it answers the confirmation.
    Subscribed(ChannelName, Confirmation),
    /// Publications on this channel may have been missed before this point.
    Gap(ChannelName, GapReason),
    /// A message from this or another replica, see `gateway::control`.
    Control(Bytes),
}

/// Why a broker could not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot be reached")]
    Unavailable,
    #[error("the broker did not answer in time")]
    TimedOut,
    #[error("the broker refused the command")]
    Refused,
}

/// The answer to a subscription: `None` until there is one.
pub type Confirmation = watch::Sender<Option<Result<(), BrokerError>>>;

pub type BrokerFuture<'a, T = ()> =
    Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// What replicas share beside publications, and find again after a restart. Small, and read rarely.
pub trait Store: Send + Sync + 'static {
    /// Keeps an entry until a Unix second.
    fn remember(&self, entry: Bytes, until: u64) -> StoreFuture<'_, ()>;

    /// The entries whose time is not over at `now`.
    fn recall(&self, now: u64) -> StoreFuture<'_, Vec<Bytes>>;

    /// A value that others write: `<prefix><key>`.
    fn read(&self, key: &str) -> StoreFuture<'_, Option<String>>;
}

/// How a broker is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub kind: &'static str,
    /// There has been a first round trip.
    pub ready: bool,
    /// Publications can arrive now.
    pub subscriber: bool,
    /// Publications can be sent now.
    pub publisher: bool,
    /// What went wrong last, without secrets.
    pub last_error: Option<String>,
}

/// The contract.
///
/// - A `subscribe` is answered with [`Event::Subscribed`], or its confirmation with an error. After
///   that event every publication on the channel comes as an [`Event::Publication`], in the order
///   in which the broker had them, or an [`Event::Gap`] for the channel comes in the place of those
///   that may be missing.
/// - A lost connection is the broker's own to mend: it subscribes to everything again and says
///   `Gap` for each channel that had been confirmed, after that channel's new confirmation.
/// - `subscribe` and `unsubscribe` never wait and take effect in the order of the calls. A channel
///   that was unsubscribed may still yield what was on its way.
/// - Nothing is ever dropped without a `Gap`: when [`Events`] is full, it says so itself.
pub trait Broker: Send + Sync + 'static {
    fn subscribe(&self, channel: &ChannelName, confirmation: Confirmation);

    fn unsubscribe(&self, channel: &ChannelName);

    /// Publishes to all replicas; `Ok` means that the broker took it.
    fn publish(&self, channel: &ChannelName, payload: Bytes) -> BrokerFuture<'_>;

    /// Sends a control message to all replicas, this one included; the answer is how many it
    /// reached.
    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize>;

    /// Publications can arrive now: what was confirmed is live.
    fn is_up(&self) -> bool;

    fn health(&self) -> Health;
}
