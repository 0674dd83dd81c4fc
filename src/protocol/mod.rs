//! What travels on the wires: [`Wire`] (the closed set of formats), [`Push`] (what the fan-out
//! sends), commands and replies of the plain protocol, and the table of codes.
//!
//! Not here: sockets, access, delivery. Invariant: the bytes of a push depend on the wire alone,
//! never on the subscriber, so that one encoding serves all.

pub mod codes;
pub mod plain;

use bytes::BytesMut;

use crate::channel::{ChannelName, GapReason, Publication};

/// How a connection wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// `GET /ws`: an event is the published JSON itself.
    Plain,
    /// `GET /ws?format=envelope`: events wrapped with channel and position.
    Envelope,
}

impl Wire {
    pub const ALL: [Self; 2] = [Self::Plain, Self::Envelope];
    pub const COUNT: usize = Self::ALL.len();

    /// Metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Envelope => "envelope",
        }
    }
}

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

    /// Appends the whole frame for one wire.
    pub fn encode(&self, wire: Wire, out: &mut BytesMut) {
        match (self, wire) {
            (Self::Publication(p), Wire::Plain) => plain::event(out, p),
            (Self::Publication(p), Wire::Envelope) => plain::envelope(out, p),
            (Self::Gap(channel, reason), Wire::Plain | Wire::Envelope) => {
                plain::gap(out, channel, *reason);
            }
        }
    }
}
