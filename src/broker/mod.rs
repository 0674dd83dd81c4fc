//! Brokers are where publications come from. [`Broker`] is the contract; `memory` and `redis`
//! implement it, and one conformance suite (`tests/it/conformance.rs`) holds both to it.
//!
//! Not here: sockets, which connection is subscribed to what (`hub`), what is done about an
//! interruption (`gateway::continuity`). The gateway calls `subscribe` for a channel's first local
//! subscription and `unsubscribe` after its last one.

mod events;
pub mod memory;
pub mod redis;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::watch;

use crate::channel::{ChannelName, GapReason, Position, Publication, Retention};
pub use events::{EventBatch, Events};

/// What a broker hands to the gateway, through [`Events`].
#[derive(Debug)]
pub enum Event {
    Publication(Publication),
    /// The subscription is live: everything before this event in the queue is older than the
    /// subscription, and everything that is published from now on comes after it. The receiver of
    /// the event answers the confirmations.
    Subscribed(ChannelName, Subscribed),
    /// Publications on this channel may have been missed before this point. The position is that of
    /// its history at this point, if the history is followed and could be read.
    Interrupted(ChannelName, GapReason, Option<Position>),
    /// A message from this or another replica; see `gateway::control`.
    Control(Bytes),
}

/// The content of [`Event::Subscribed`].
#[derive(Debug)]
pub struct Subscribed {
    /// The confirmations that wait for the channel; empty if the event only tells the position.
    pub confirmations: Vec<Confirmation>,
    /// Where the history of a followed channel stood at a moment after the subscription began.
    /// Every durable publication after it comes as an event behind this one; earlier ones that
    /// belong to the subscription came as events ahead of it.
    pub position: Option<Position>,
    /// True if the channel was not live before.
    pub fresh: bool,
}

/// How closely a channel's history is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Tracking {
    /// The history is not followed.
    #[default]
    Off,
    /// The position is told if the channel has a history.
    Follow,
    /// Like `Follow`. If there is no history, one is begun, so that a missed first publication
    /// can be noticed.
    Create,
    /// Like `Create`. Nothing is published on the channel that the history does not have.
    CreateDurable,
}

/// Why a broker could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot be reached")]
    Unavailable,
    #[error("the broker did not answer in time")]
    TimedOut,
    /// The broker accepts nothing at the moment that has to be kept.
    #[error("the broker cannot write: {0}")]
    CannotWrite(Said),
    #[error("the broker refused the command: {0}")]
    Refused(Said),
}

/// The longest text of a broker that is passed on, in characters.
const MAX_SAID: usize = 200;

/// A broker's own words: bounded, and without characters that could change a terminal
/// or a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said(Arc<str>);

impl Said {
    #[must_use]
    pub fn new(text: &str) -> Self {
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Self(text.chars().take(MAX_SAID).map(printable).collect::<String>().into())
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the answer to a subscription goes; `None` until there is one.
pub type Confirmation = watch::Sender<Option<Result<(), BrokerError>>>;

/// What a broker's function returns, to be awaited.
pub type BrokerFuture<'a, T = ()> =
    Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// What replicas share beside publications, and find again after a restart. It is small and
/// rarely read.
pub trait Store: Send + Sync + 'static {
    /// Keeps entries, each until its Unix second.
    fn remember(&self, entries: Vec<(u64, Bytes)>) -> BrokerFuture<'_>;

    /// True if entries outlive the process, so that the process has to read the earlier ones.
    fn outlives(&self) -> bool;

    /// Returns the entries whose time is not over at `now`, or `None` if nothing outlives
    /// the process.
    fn recall(&self, now: u64) -> BrokerFuture<'_, Option<Vec<Bytes>>>;

    /// Reads a value that other programs write, under `<prefix><key>`.
    fn read(&self, key: &str) -> BrokerFuture<'_, Option<String>>;
}

/// How a broker is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub kind: &'static str,
    /// There has been a first round trip on every connection.
    pub ready: bool,
    /// Publications can arrive now.
    pub subscriber: bool,
    /// Publications can be sent now.
    pub publisher: bool,
    /// Publications that are to be kept are accepted now.
    pub writer: bool,
    /// What went wrong last and is not over yet, without secrets.
    pub last_error: Option<Failure>,
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub at: SystemTime,
    pub what: String,
}

/// The parts of a broker that are silent now: no publication can arrive from them.
#[derive(Clone)]
pub struct Silence {
    pub parts: Vec<SilentPart>,
    pub spread: Arc<Spread>,
}

/// A part of a broker that is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SilentPart {
    pub part: u64,
    /// When the silence was noticed.
    pub noticed: Instant,
    /// Everything published before this time has arrived.
    pub since: Instant,
}

impl SilentPart {
    #[must_use]
    pub fn new(part: u64, now: Instant) -> Self {
        Self { part, noticed: now, since: now }
    }
}

/// How channels are spread over a broker's parts. A changed spread is a new value.
pub struct Spread {
    pub parts: Vec<u64>,
    pub part_of: Box<dyn Fn(&ChannelName) -> u64 + Send + Sync>,
}

/// Says that a publication is to be kept, and how.
#[derive(Debug, Clone)]
pub struct Durable {
    pub retention: Retention,
    /// The same key again within five minutes publishes nothing and returns the first answer.
    pub idempotency_key: Option<String>,
}

/// What became of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The position of a durable publication.
    pub position: Option<Position>,
    /// How many subscribing connections of replicas it was handed to; -1 if its idempotency key was known
    /// already. `None` if the broker does not tell.
    pub heard: Option<i64>,
}

/// On whose behalf rows are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mandate {
    /// The outbox' name among all that publish on the same channels: hexadecimal digits.
    pub outbox: String,
    /// The term of the relay that leads. It only grows.
    pub term: u64,
}

/// A row of an outbox, to be published once.
#[derive(Debug, Clone)]
pub struct Row {
    /// What tells it from all other rows for ever: `<outbox>:<number>:<uuid>`.
    pub identity: String,
    pub payload: Bytes,
    /// How long the history is kept after its last event, in seconds, and how many events of it.
    pub ttl: Option<u32>,
    pub maxlen: Option<u32>,
    /// An idempotency key, as for [`Durable`].
    pub key: Option<String>,
}

/// What became of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOutcome {
    Published(Published),
    /// It can never be published.
    Refused(Said),
}

/// What became of the rows of one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// In the order of the rows.
    pub outcomes: Vec<RowOutcome>,
    /// The identities of other rows of the channel that are guarded because they are not settled.
    pub others_in_doubt: Vec<String>,
}

/// Why rows could not be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// A relay of this later term has published on the channel.
    #[error("a relay of the later term {0} has published on the channel")]
    Stale(u64),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The end of a channel's history: `publications` are contiguous and end at `top`. There are fewer
/// than `top.offset` if the rest was not kept or not asked for.
#[derive(Debug, Clone)]
pub struct History {
    pub top: Position,
    pub publications: Vec<Publication>,
}

/// The bounds of one reading of a history.
#[derive(Debug, Clone, Copy)]
pub struct HistoryBounds {
    pub messages: usize,
    pub bytes: usize,
}

/// Where publications come from, and what a receiver may rely on.
///
/// - A `subscribe` is answered with [`Event::Subscribed`], or its confirmation with an error. After
///   that event every publication on the channel comes as an [`Event::Publication`], in the order
///   in which the broker had them, or an [`Event::Interrupted`] for the channel comes in the place
///   of those that may be missing.
/// - Durable publications carry a [`Position`]; within an epoch their offsets are contiguous, so
///   a receiver that follows them notices a missing range without being told. An epoch never
///   comes again.
/// - Restoring a lost connection is the broker's own task: it subscribes to everything again and
///   sends `Interrupted` for each channel that had been live, after the channel's new confirmation.
/// - `subscribe` and `unsubscribe` never wait and take effect in the order of the calls. A channel
///   that was unsubscribed may still yield publications that were on their way.
/// - Nothing is ever dropped silently: when [`Events`] is full, it reports that itself.
pub trait Broker: Send + Sync + 'static {
    fn subscribe(&self, channel: &ChannelName, tracking: Tracking, confirmation: Confirmation);

    fn unsubscribe(&self, channel: &ChannelName);

    /// Publishes to all replicas; `Ok` means that the broker accepted the publication.
    fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> BrokerFuture<'_, Published>;

    /// Reads the end of a channel's history; `None` if it has none.
    fn history(
        &self,
        channel: &ChannelName,
        bounds: HistoryBounds,
    ) -> BrokerFuture<'_, Option<History>>;

    /// Sends a control message to all replicas, this one included. The answer is how many of
    /// them it reached.
    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize>;

    /// Publications larger than this many bytes need not be delivered whole;
    /// see [`Publication::cut`].
    fn limit_publications(&self, _bytes: usize) {}

    /// True if publications can arrive on this channel now.
    fn is_up(&self, channel: &ChannelName) -> bool;

    /// The parts that are silent now; `None` if there are none.
    fn silence(&self) -> Option<Silence> {
        None
    }

    fn health(&self) -> Health;
}
