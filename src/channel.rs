//! Channels and what travels on them: [`ChannelName`], [`Publication`], [`Position`].
//!
//! Not here: who may subscribe (`access`), how a publication looks on a wire (`protocol`).
//! Invariant: a `ChannelName` that exists is valid; two are the same channel exactly if their bytes
//! are equal. There are no patterns and no case folding, so `user:1` is never `user:12`.

mod id;

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use id::{IdError, MAX_ID_BYTES, check_id, decode_id, encode_id};

/// The longest channel name in bytes.
pub const MAX_CHANNEL_BYTES: usize = 255;

/// First parts of names that the Redis contract uses for itself under the same prefix.
const RESERVED: [&str; 3] = [CONTROL, "canary", "gateway"];

/// What a missing id becomes when programs put it into a text.
const NO_IDS: [&str; 3] = ["undefined", "null", "NaN"];

const CONTROL: &str = "control";
/// The control channel of replicas of version 0.1, which listen to another name.
const CONTROL_0_1: &str = "control:0.1";

/// A valid channel name, for example `post:42`: segments joined by `:`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

/// Why a text is not a channel name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChannelNameError {
    #[error("a channel name is empty or has an empty part")]
    Empty,
    #[error("a channel name is longer than {MAX_CHANNEL_BYTES} bytes")]
    TooLong,
    #[error(
        "a channel name contains whitespace, a control character or one of * ? [ ] {{ }} \\ \" ' \
         ` < >"
    )]
    BadCharacter,
    #[error("this channel name is reserved for the gateway")]
    Reserved,
}

/// True for characters that never belong in a channel name or an id in one: white space, control
/// characters, and those that Redis, JSON or a shell would read as more than a letter.
#[must_use]
pub fn is_forbidden(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\' | '"' | '\'' | '`' | '<' | '>')
}

impl ChannelName {
    /// The channel on which replicas talk to each other. No client can name it, and no publisher
    /// through the gateway.
    #[must_use]
    pub fn control() -> Self {
        Self(Arc::from(CONTROL))
    }

    /// The control channel of replicas of version 0.1.
    #[must_use]
    pub fn control_0_1() -> Self {
        Self(Arc::from(CONTROL_0_1))
    }

    #[must_use]
    pub fn is_control(&self) -> bool {
        *self.0 == *CONTROL || self.is_control_0_1()
    }

    #[must_use]
    pub fn is_control_0_1(&self) -> bool {
        *self.0 == *CONTROL_0_1
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first part that is what programs make of an id that they do not have. A client may subscribe
    /// to such a name, but nobody means to publish on it.
    #[must_use]
    pub fn missing_id(&self) -> Option<&str> {
        self.0.split(':').skip(1).find(|part| NO_IDS.contains(part))
    }
}

impl FromStr for ChannelName {
    type Err = ChannelNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() > MAX_CHANNEL_BYTES {
            return Err(ChannelNameError::TooLong);
        }
        if s.split(':').any(str::is_empty) {
            return Err(ChannelNameError::Empty);
        }
        if s.chars().any(is_forbidden) {
            return Err(ChannelNameError::BadCharacter);
        }
        if RESERVED.contains(&s.split(':').next().unwrap_or(s)) {
            return Err(ChannelNameError::Reserved);
        }
        Ok(Self(Arc::from(s)))
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The longest epoch in bytes.
pub const MAX_EPOCH_BYTES: usize = 32;

/// A place in a channel's history: `offset` counts publications from 1 within one `epoch`. A new
/// epoch means that the history started over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    pub epoch: Arc<str>,
    pub offset: u64,
}

impl Position {
    /// Makes a position. Returns `None` for an epoch that no broker gives: empty, too long, or not
    /// of letters and digits.
    #[must_use]
    pub fn new(epoch: &str, offset: u64) -> Option<Self> {
        let good = !epoch.is_empty()
            && epoch.len() <= MAX_EPOCH_BYTES
            && epoch.bytes().all(|b| b.is_ascii_alphanumeric());
        good.then(|| Self { epoch: Arc::from(epoch), offset })
    }

    /// True if both are in one epoch, and this one is not behind `other`.
    #[must_use]
    pub fn has_reached(&self, other: &Self) -> bool {
        self.epoch == other.epoch && self.offset >= other.offset
    }
}

/// `<epoch>-<offset>`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

impl FromStr for Position {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let (epoch, offset) = s.split_once('-').ok_or(())?;
        let digits = (1..=20).contains(&offset.len()) && offset.bytes().all(|b| b.is_ascii_digit());
        let offset = digits.then(|| offset.parse().ok()).flatten().ok_or(())?;
        Self::new(epoch, offset).ok_or(())
    }
}

/// How a channel's history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How many publications are kept.
    pub size: u32,
    /// How long publications are kept after the last one.
    pub ttl: Duration,
    /// True if plain publications may come beside the durable ones. They are not kept.
    pub plain: bool,
}

/// A published event. The payload is opaque JSON; the gateway checks it and never edits it.
#[derive(Debug, Clone)]
pub struct Publication {
    pub channel: ChannelName,
    pub payload: Bytes,
    /// The size of a payload that was too large to be accepted. The payload is empty then.
    pub cut: Option<usize>,
    /// Set for durable publications only; a plain `PUBLISH` has no position.
    pub position: Option<Position>,
    /// When it was published, in microseconds since 1970, if that is known: for durable
    /// publications by Redis' clock, for those of the server API by the replica's. It is not known
    /// for what other programs `PUBLISH`, and for what is read from the history.
    pub published: Option<u64>,
}

/// Why a channel's subscribers may have missed events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The subscription in Redis was lost and is restored.
    BrokerReconnected,
    /// Redis now refuses a channel that it allowed before (its ACL changed). Nothing arrives until
    /// it is allowed again.
    BrokerRefused,
    /// The queue between the broker and the fan-out was full.
    Overflow,
    /// A publisher sent something that is not JSON.
    InvalidPayload,
    /// A publisher sent something that is larger than `limits.publication_bytes`.
    PayloadTooLarge,
    /// A publisher sent an event whose `type` is one of the gateway's own messages.
    ReservedType,
    /// The channel's history began anew (Redis lost its data, was restarted or failed over), no
    /// longer reaches back far enough, or could not be read.
    HistoryLost,
    /// The demo page asked for a gap.
    Requested,
}

impl GapReason {
    pub const ALL: [Self; 8] = [
        Self::BrokerReconnected,
        Self::BrokerRefused,
        Self::Overflow,
        Self::InvalidPayload,
        Self::PayloadTooLarge,
        Self::ReservedType,
        Self::HistoryLost,
        Self::Requested,
    ];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::BrokerReconnected => "broker_reconnected",
            Self::BrokerRefused => "broker_refused",
            Self::Overflow => "overflow",
            Self::InvalidPayload => "invalid_payload",
            Self::PayloadTooLarge => "payload_too_large",
            Self::ReservedType => "reserved_type",
            Self::HistoryLost => "history_lost",
            Self::Requested => "requested",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["post:42", "user:u1", "a", "room:a:b", "user:auth0|x", "user:a@b.c"] {
            assert_eq!(good.parse::<ChannelName>().unwrap().as_str(), good);
        }

        for (bad, why) in [
            ("", ChannelNameError::Empty),
            ("post:", ChannelNameError::Empty),
            (":x", ChannelNameError::Empty),
            ("a::b", ChannelNameError::Empty),
            ("post:*", ChannelNameError::BadCharacter),
            ("post:4 2", ChannelNameError::BadCharacter),
            ("post:\u{0}", ChannelNameError::BadCharacter),
            ("post:[1]", ChannelNameError::BadCharacter),
            ("control", ChannelNameError::Reserved),
            ("canary", ChannelNameError::Reserved),
            ("canary:1", ChannelNameError::Reserved),
            ("control:a:b", ChannelNameError::Reserved),
        ] {
            assert_eq!(bad.parse::<ChannelName>(), Err(why), "{bad:?}");
        }

        assert_eq!("x".repeat(256).parse::<ChannelName>(), Err(ChannelNameError::TooLong));
    }
}
