//! Brokers: where publications come from. [`Broker`] is the contract; `memory` and `redis` keep it,
//! and one conformance suite (`tests/it/conformance.rs`) holds both to it.
//!
//! Not here: sockets, who is subscribed locally (`gateway::interest`), what is done about an
//! interruption (`gateway::continuity`). The gateway calls `subscribe` for a channel's first local
//! subscriber and `unsubscribe` after its last.

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
pub use events::{Batch, Events};

/// What a broker hands to the gateway, through [`Events`].
#[derive(Debug)]
pub enum Event {
    Publication(Publication),
    /// The subscription is live: what stands before this in the queue is older than it, everything
    /// that is published from now on comes after it. Whoever takes it answers the confirmation.
    Subscribed(ChannelName, Subscribed),
    /// Publications on this channel may have been missed before this point; with the position of its
    /// history at this point, where it is tracked and could be read.
    Interrupted(ChannelName, GapReason, Option<Position>),
    /// A message from this or another replica, see `gateway::control`.
    Control(Bytes),
}

/// What [`Event::Subscribed`] says.
#[derive(Debug)]
pub struct Subscribed {
    /// Of all who asked for it; nobody where only the position is told.
    pub confirmations: Vec<Confirmation>,
    /// Where the channel's history stood at a moment after the subscription began, for a tracked one: every
    /// durable publication after it comes as an event behind this one, and those before it that are of the
    /// subscription came as events ahead of it.
    pub position: Option<Position>,
    /// The channel was not live before.
    pub fresh: bool,
}

/// How closely a channel's history is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Track {
    /// Not at all.
    #[default]
    No,
    /// Its position is told where it has a history.
    Read,
    /// The same, and a history is begun where there is none: so its first publication can be missed
    /// and noticed.
    Open,
    /// The same, and nobody publishes anything there that the history does not have.
    OpenDurable,
}

/// Why a broker could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("the broker cannot be reached")]
    Unavailable,
    #[error("the broker did not answer in time")]
    TimedOut,
    /// It takes nothing now that has to be kept.
    #[error("the broker cannot write: {0}")]
    CannotWrite(Said),
    #[error("the broker refused the command: {0}")]
    Refused(Said),
}

/// Longest text of a broker that is passed on, in characters.
const MAX_SAID: usize = 200;

/// A broker's own words: bounded, and without characters that would change a terminal or a log line.
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

/// The answer to a subscription: `None` until there is one.
pub type Confirmation = watch::Sender<Option<Result<(), BrokerError>>>;

pub type BrokerFuture<'a, T = ()> =
    Pin<Box<dyn Future<Output = Result<T, BrokerError>> + Send + 'a>>;

/// What replicas share beside publications, and find again after a restart. Small, and read rarely.
pub trait Store: Send + Sync + 'static {
    /// Keeps entries, each until its Unix second.
    fn remember(&self, entries: Vec<(u64, Bytes)>) -> BrokerFuture<'_>;

    /// Entries outlive the process, so that it has to read what there was before it.
    fn outlives(&self) -> bool;

    /// The entries whose time is not over at `now`; `None` where nothing outlives the process.
    fn recall(&self, now: u64) -> BrokerFuture<'_, Option<Vec<Bytes>>>;

    /// A value that others write: `<prefix><key>`.
    fn read(&self, key: &str) -> BrokerFuture<'_, Option<String>>;
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
    /// And those that are to be kept are taken.
    pub writer: bool,
    /// What went wrong last and is not over, without secrets.
    pub last_error: Option<Failure>,
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub at: SystemTime,
    pub what: String,
}

/// What of a broker is silent now: no publication can arrive from there.
#[derive(Clone)]
pub struct Silence {
    pub parts: Vec<SilentPart>,
    pub spread: Arc<Spread>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SilentPart {
    pub part: u64,
    /// When it was noticed.
    pub noticed: Instant,
    /// What was published until then arrived.
    pub since: Instant,
}

impl SilentPart {
    #[must_use]
    pub fn new(part: u64, now: Instant) -> Self {
        Self { part, noticed: now, since: now }
    }
}

/// How channels are spread over a broker's parts; another one where that has changed.
pub struct Spread {
    pub parts: Vec<u64>,
    pub part_of: Box<dyn Fn(&ChannelName) -> u64 + Send + Sync>,
}

/// That a publication is to be kept.
#[derive(Debug, Clone)]
pub struct Durable {
    pub retention: Retention,
    /// The same key again within five minutes publishes nothing and gives the first answer.
    pub idempotency_key: Option<String>,
}

/// The end of a channel's history: `publications` are contiguous and end at `top`. There are fewer
/// than `top.offset` where the rest was not kept, or not asked for.
#[derive(Debug, Clone)]
pub struct History {
    pub top: Position,
    pub publications: Vec<Publication>,
}

/// How much of a history is read at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub messages: usize,
    pub bytes: usize,
}

/// The contract.
///
/// - A `subscribe` is answered with [`Event::Subscribed`], or its confirmation with an error. After
///   that event every publication on the channel comes as an [`Event::Publication`], in the order
///   in which the broker had them, or an [`Event::Interrupted`] for the channel comes in the place
///   of those that may be missing.
/// - Durable publications carry a [`Position`]; within an epoch their offsets are contiguous, so
///   whoever follows them sees a hole by itself. An epoch never comes again.
/// - A lost connection is the broker's own to mend: it subscribes to everything again and says
///   `Interrupted` for each channel that had been live, after that channel's new confirmation.
/// - `subscribe` and `unsubscribe` never wait and take effect in the order of the calls. A channel
///   that was unsubscribed may still yield what was on its way.
/// - Nothing is ever dropped without a word: when [`Events`] is full, it says so itself.
pub trait Broker: Send + Sync + 'static {
    fn subscribe(&self, channel: &ChannelName, track: Track, confirmation: Confirmation);

    fn unsubscribe(&self, channel: &ChannelName);

    /// Publishes to all replicas; `Ok` means that the broker took it. The position is that of a
    /// durable publication.
    fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> BrokerFuture<'_, Option<Position>>;

    /// The end of a channel's history; `None` when it has none.
    fn history(&self, channel: &ChannelName, bounds: Bounds) -> BrokerFuture<'_, Option<History>>;

    /// Sends a control message to all replicas, this one included; the answer is how many it
    /// reached.
    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize>;

    /// Publications of more bytes than this need not be brought whole, see [`Publication::cut`].
    fn limit_publications(&self, _bytes: usize) {}

    /// Publications can arrive now on this channel: what was confirmed is live.
    fn is_up(&self, channel: &ChannelName) -> bool;

    /// What is silent now; `None`: nothing.
    fn silence(&self) -> Option<Silence> {
        None
    }

    fn health(&self) -> Health;
}
