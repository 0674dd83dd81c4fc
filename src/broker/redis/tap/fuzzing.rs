//! What the fuzz target `tap` sees of a [`Tap`]: one stream in pieces of chosen sizes, and
//! what came out.
//!
//! Not here: what should have come out, which the target determines. It is compiled for
//! fuzzing only.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};

use super::{OnPush, PushMessage, Tap, TapLimits};

pub const BEGIN: usize = super::BEGIN;
pub const KEPT: usize = super::KEPT;
pub const MAX_DIGITS: usize = super::MAX_DIGITS;
pub const MAX_LINE: usize = super::MAX_LINE;
pub const MAX_STRING: usize = super::MAX_STRING;

/// A push that was reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The channel and the payload.
    Message(Vec<u8>, Vec<u8>),
    /// The channel, the beginning of the payload, and the payload's length.
    TooLarge(Vec<u8>, Vec<u8>, usize),
    Subscribed(Vec<u8>),
    Unsubscribed(Vec<u8>),
    ShardUnsubscribed(Vec<u8>),
    Disconnected,
}

impl From<PushMessage<'_>> for Told {
    fn from(push: PushMessage<'_>) -> Self {
        match push {
            PushMessage::Message { channel, payload } => {
                Self::Message(channel.into(), payload.into())
            }
            PushMessage::TooLarge { channel, begin, len } => {
                Self::TooLarge(channel.into(), begin.into(), len)
            }
            PushMessage::Subscribed(channel) => Self::Subscribed(channel.into()),
            PushMessage::Unsubscribed(channel) => Self::Unsubscribed(channel.into()),
            PushMessage::ShardUnsubscribed(channel) => Self::ShardUnsubscribed(channel.into()),
            PushMessage::Disconnected => Self::Disconnected,
        }
    }
}

/// What came out of a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub told: Vec<Told>,
    /// What the library was given, or would have been given next.
    pub passed: Vec<u8>,
    pub error: Option<String>,
}

/// What the reading cost.
#[derive(Debug)]
pub struct Cost {
    /// The most room that the tap had for bytes at any time.
    pub room: usize,
    /// Bytes that it searched for the end of a line.
    pub looked: usize,
}

thread_local! {
    static LOOKED: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn looked_at(bytes: usize) {
    LOOKED.set(LOOKED.get() + bytes);
}

/// A stream that yields at most as many bytes at a time as the function says.
struct Pieces<'w, F> {
    rest: &'w [u8],
    next: F,
}

impl<F: FnMut() -> usize + Unpin> AsyncRead for Pieces<'_, F> {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pieces = self.get_mut();
        let size = (pieces.next)().max(1).min(out.remaining()).min(pieces.rest.len());
        let (piece, rest) = pieces.rest.split_at(size);
        out.put_slice(piece);
        pieces.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// Reads a stream to its end or its error, in pieces of the sizes that `next` gives.
pub fn read(
    wire: &[u8],
    (payload, answer): (usize, usize),
    next: impl FnMut() -> usize + Unpin,
) -> (Seen, Cost) {
    LOOKED.set(0);
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = Arc::clone(&told);
    let on_push: OnPush = Arc::new(move |push| teller.lock().push(Told::from(push)));
    let limits = TapLimits { payload: Arc::new(AtomicUsize::new(payload)), answer };
    let next = RefCell::new(next);
    let piece = || (next.borrow_mut())();
    let mut tap = Tap::new(Pieces { rest: wire, next: piece }, limits, Some(on_push));

    let mut cx = Context::from_waker(Waker::noop());
    let mut passed = Vec::new();
    let mut room = 0;
    let mut error = None;
    let mut out = [0; 512];

    loop {
        let size = piece().clamp(1, out.len());
        let mut out = ReadBuf::new(&mut out[..size]);
        let read = Pin::new(&mut tap).poll_read(&mut cx, &mut out);
        room = room.max(tap.unread.capacity() + tap.passed.capacity());
        passed.extend_from_slice(out.filled());

        match read {
            Poll::Ready(Ok(())) if out.filled().is_empty() => break,
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(e)) => {
                error = Some(e.to_string());
                break;
            }
            Poll::Pending => unreachable!("the stream is always ready"),
        }
    }

    passed.extend_from_slice(&tap.passed);
    let told = std::mem::take(&mut *told.lock());
    (Seen { told, passed, error }, Cost { room, looked: LOOKED.get() })
}
