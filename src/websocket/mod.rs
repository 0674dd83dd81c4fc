//! RFC 6455 framing without IO: [`Decoder`] turns received bytes into [`Message`]s, [`encode()`]
//! writes server frames.
//!
//! Not here: sockets, time, what a message means. Invariant: an idle decoder owns no memory. Bytes
//! are parsed where they were read; only a frame or a message that is still incomplete is copied,
//! and only as far as it has arrived, so an announced length never allocates.
//!
//! Extensions are never negotiated: without permessage-deflate there are no decompression bombs.
//! See `docs/adr/0001-own-websocket-codec.md`.

mod decode;
mod encode;
mod handshake;
mod tail;

pub use decode::{Decoder, Message, ProtocolError};
pub use encode::{MAX_HEADER, close_frame, encode, header};
pub use handshake::accept_key;
pub use tail::Tail;

/// Frame opcodes (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// True if a peer may send this close code (RFC 6455 section 7.4).
#[must_use]
pub fn is_valid_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}
