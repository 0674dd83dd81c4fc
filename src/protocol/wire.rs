//! The closed set of wires: how a connection's messages look, in both directions.
//!
//! Not here: the forms themselves (`plain`, `sse`), which nobody outside of `protocol` names.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};

use super::codes::{Close, ErrorCode};
use super::command::{Command, Request};
use super::kind::Kind;
use super::reply::Reply;
use super::{plain, sse};
use crate::channel::Publication;
use crate::websocket::{Opcode, close_frame, encode};

/// The format in which a connection receives its messages.
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

/// The message that keeps a quiet connection alive.
pub struct Ping {
    pub frame: Bytes,
    /// True if the client has to answer it in time.
    pub is_answered: bool,
}

impl Wire {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Envelope, Self::Sse, Self::SseEnvelope];
    pub const COUNT: usize = Self::ALL.len();

    /// The metric label of the format.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain | Self::Sse => "plain",
            Self::Envelope | Self::SseEnvelope => "envelope",
        }
    }

    /// The metric label of the transport.
    #[must_use]
    pub fn transport(self) -> &'static str {
        if self.is_stream() { "sse" } else { "websocket" }
    }

    /// True for an endless HTTP response, false for a socket.
    #[must_use]
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Sse | Self::SseEnvelope)
    }

    /// True if clients learn the positions of their channels, and can resume from them.
    #[must_use]
    pub fn has_positions(self) -> bool {
        self != Self::Plain
    }

    /// Reads a text message of a client. This never fails: a wrong message
    /// becomes [`Command::Invalid`].
    #[must_use]
    pub fn decode(self, text: &str) -> Request {
        plain::parse(text)
    }

    /// The request for a binary message, which the plain protocol does not have.
    #[must_use]
    pub fn decode_binary(self) -> Request {
        let why = Cow::Borrowed("the plain protocol is text, not binary");
        Request { id: None, command: Command::Invalid(ErrorCode::BadRequest, why) }
    }

    /// Encodes one message of the gateway's own.
    #[must_use]
    pub fn frame(self, reply: &Reply<'_>) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        self.append(reply, &mut out);
        out.freeze()
    }

    /// Appends one message of the gateway's own.
    pub fn append(self, reply: &Reply<'_>, out: &mut BytesMut) {
        let text = plain::text(reply);
        if !self.is_stream() {
            encode(out, Opcode::Text, text.as_bytes());
            return;
        }

        let kind = reply.kind();
        if matches!(kind, Kind::Connected | Kind::Close) {
            sse::retry(out);
        }
        sse::event(out, kind.name());
        sse::data(out, text.as_bytes());
    }

    /// Appends an event.
    pub fn append_event(self, publication: &Publication, out: &mut BytesMut) {
        match self {
            Self::Plain => encode(out, Opcode::Text, &publication.payload),
            Self::Envelope => encode(out, Opcode::Text, &plain::envelope(publication)),
            Self::Sse => sse::data(out, &publication.payload),
            Self::SseEnvelope => sse::data(out, &plain::envelope(publication)),
        }
    }

    #[must_use]
    pub fn ping(self) -> Ping {
        if self.is_stream() {
            return Ping { frame: Bytes::from_static(sse::HEARTBEAT), is_answered: false };
        }
        let mut frame = BytesMut::new();
        encode(&mut frame, Opcode::Ping, b"");
        Ping { frame: frame.freeze(), is_answered: true }
    }

    /// The last message of a connection.
    #[must_use]
    pub fn close(self, close: &Close) -> Bytes {
        if self.is_stream() {
            self.frame(&Reply::Close(close))
        } else {
            close_frame(close.code.code(), &close.reason)
        }
    }
}
