//! The gateway's messages to one connection, whatever its wire.
//!
//! Not here: how a message is written (`plain`, `sse`).

use super::codes::{Close, ErrorCode};
use super::command::ChannelRef;
use super::kind::Kind;
use crate::channel::{ChannelName, GapReason, Position};

/// A message of the gateway's own. `id` is the client's, as the client wrote it; times are in
/// Unix seconds.
#[derive(Debug, Clone, Copy)]
pub enum Reply<'r> {
    /// The first message of an accepted connection.
    Connected {
        user: Option<&'r str>,
        connection_id: &'r str,
        expires_at: Option<u64>,
        channels: &'r [(ChannelName, Start<'r>)],
    },
    /// `data` is JSON that came with the permission.
    Subscribed {
        id: Option<&'r str>,
        channel: &'r ChannelRef,
        data: Option<&'r str>,
        start: Start<'r>,
    },
    Unsubscribed {
        id: Option<&'r str>,
        channel: &'r ChannelRef,
    },
    /// The permission for a channel has ended.
    Ended {
        channel: &'r ChannelRef,
        code: ErrorCode,
        reason: &'r str,
    },
    Refreshed {
        id: Option<&'r str>,
        expires_at: Option<u64>,
    },
    Pong {
        id: Option<&'r str>,
    },
    /// The token ends soon; the client should send `refresh`.
    TokenExpiring {
        expires_at: u64,
    },
    /// Events of this channel may be missing.
    Gap {
        channel: &'r ChannelName,
        reason: GapReason,
    },
    /// Since this time nothing can arrive on these channels, or on any if they are `None`.
    Interrupted {
        since: u64,
        channels: Option<&'r [ChannelName]>,
    },
    /// Everything arrives again.
    Live,
    /// A drain is about to close the connection; the client should reconnect after this
    /// many milliseconds.
    Reconnect {
        after_ms: u64,
    },
    /// The stream ends. (On a socket a Close frame says that.)
    Close(&'r Close),
    /// `channel` is as the client wrote it.
    Error {
        id: Option<&'r str>,
        code: ErrorCode,
        message: &'r str,
        channel: Option<&'r str>,
    },
}

/// Where a subscription begins, for clients that know positions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'p> {
    pub position: Option<&'p Position>,
    pub recovered: Option<bool>,
}

impl Reply<'_> {
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Connected { .. } => Kind::Connected,
            Self::Subscribed { .. } => Kind::Subscribed,
            Self::Unsubscribed { .. } | Self::Ended { .. } => Kind::Unsubscribed,
            Self::Refreshed { .. } => Kind::Refreshed,
            Self::Pong { .. } => Kind::Pong,
            Self::TokenExpiring { .. } => Kind::TokenExpiring,
            Self::Gap { .. } => Kind::Gap,
            Self::Interrupted { .. } => Kind::Interrupted,
            Self::Live => Kind::Live,
            Self::Reconnect { .. } => Kind::Reconnect,
            Self::Close(_) => Kind::Close,
            Self::Error { .. } => Kind::Error,
        }
    }
}
