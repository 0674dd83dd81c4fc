//! What travels on the wires: [`Command`] (what clients ask), [`Reply`] (the gateway's own
//! messages), [`Push`] (what the fan-out sends), [`Wire`] (the closed set of formats, which alone
//! knows how they look), and the tables of codes and of the gateway's own messages.
//!
//! Not here: sockets, access, delivery. Invariant: the bytes of a push depend on the wire alone,
//! never on the subscriber, so that one encoding serves all (the `id:` of a stream is a field in
//! front of them).

pub mod codes;
mod command;
pub mod kind;
pub mod payload;
mod plain;
mod reply;
pub mod sse;
pub mod stream_position;
mod wire;

use bytes::BytesMut;

use crate::channel::{ChannelName, GapReason, Publication};
pub use command::{ChannelRef, Command, Request, Subscribe};
pub use kind::Kind;
pub use reply::{Reply, Start};
pub use wire::{Ping, Wire};

/// What the fan-out sends to every subscriber of a channel.
#[derive(Debug, Clone)]
pub enum Push {
    Publication(Publication),
    /// Events of this channel may be missing.
    Gap(ChannelName, GapReason),
}

impl Push {
    #[must_use]
    pub fn channel(&self) -> &ChannelName {
        match self {
            Self::Publication(p) => &p.channel,
            Self::Gap(channel, _) => channel,
        }
    }

    /// When it was published, in microseconds; `None` if that is not known.
    #[must_use]
    pub fn published(&self) -> Option<u64> {
        match self {
            Self::Publication(p) => p.published,
            Self::Gap(..) => None,
        }
    }

    /// Appends the whole frame for one wire.
    pub fn encode(&self, wire: Wire, out: &mut BytesMut) {
        match self {
            Self::Publication(publication) => wire.append_event(publication, out),
            Self::Gap(channel, reason) => {
                wire.append(&Reply::Gap { channel, reason: *reason }, out);
            }
        }
    }
}
