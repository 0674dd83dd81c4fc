//! What travels on the wires: [`Wire`] (the closed set of formats), [`Push`] (what the fan-out
//! sends), commands and replies of the plain protocol, and the tables of codes and of the gateway's own
//! messages.
//!
//! Not here: sockets, access, delivery. Invariant: the bytes of a push depend on the wire alone,
//! never on the subscriber, so that one encoding serves all (the `id:` of a stream is a field before
//! them).

pub mod codes;
pub mod kind;
pub mod payload;
pub mod place;
pub mod plain;
pub mod sse;

use bytes::{Bytes, BytesMut};

use crate::channel::{ChannelName, GapReason, Publication};
use crate::websocket::{Opcode, encode};
pub use kind::Kind;

/// How a connection wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wire {
    /// `GET /ws`: an event is the published JSON itself.
    Plain,
    /// `GET /ws?format=envelope`: events wrapped with channel and position.
    Envelope,
    /// `GET /sse`: server-sent events with the published JSON as data.
    Sse,
    /// `GET /sse?format=envelope`.
    SseEnvelope,
}

impl Wire {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Envelope, Self::Sse, Self::SseEnvelope];
    pub const COUNT: usize = Self::ALL.len();

    /// Metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain | Self::Sse => "plain",
            Self::Envelope | Self::SseEnvelope => "envelope",
        }
    }

    /// Metric label.
    #[must_use]
    pub fn transport(self) -> &'static str {
        if self.is_stream() { "sse" } else { "websocket" }
    }

    /// An HTTP response without end rather than a socket.
    #[must_use]
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Sse | Self::SseEnvelope)
    }

    /// Its clients learn where a channel stands, and can resume there.
    #[must_use]
    pub fn has_positions(self) -> bool {
        self != Self::Plain
    }

    /// One message as it stands on this wire.
    #[must_use]
    pub fn frame(self, message: &Message) -> Bytes {
        let mut out = BytesMut::with_capacity(message.text.len() + 32);
        self.append(message, &mut out);
        out.freeze()
    }

    fn append(self, Message { kind, text }: &Message, out: &mut BytesMut) {
        if self.is_stream() {
            if matches!(*kind, Kind::Connected | Kind::Close) {
                sse::retry(out);
            }
            sse::event(out, kind.name());
            sse::data(out, text.as_bytes());
        } else {
            encode(out, Opcode::Text, text.as_bytes());
        }
    }
}

/// A message of the gateway's own: its `type`, and all of it as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub text: String,
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

    /// When it was published, in microseconds, where that is known.
    #[must_use]
    pub fn published(&self) -> Option<u64> {
        match self {
            Self::Publication(p) => p.published,
            Self::Gap(..) => None,
        }
    }

    /// Appends the whole frame for one wire.
    pub fn encode(&self, wire: Wire, out: &mut BytesMut) {
        match (self, wire) {
            (Self::Publication(p), Wire::Plain) => encode(out, Opcode::Text, &p.payload),
            (Self::Publication(p), Wire::Envelope) => {
                encode(out, Opcode::Text, &plain::envelope(p));
            }
            (Self::Publication(p), Wire::Sse) => sse::data(out, &p.payload),
            (Self::Publication(p), Wire::SseEnvelope) => sse::data(out, &plain::envelope(p)),
            (Self::Gap(channel, reason), wire) => wire.append(&plain::gap(channel, *reason), out),
        }
    }
}
