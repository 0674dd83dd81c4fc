//! What an HTTP connection holds beside its socket, for as long as it lives.
//!
//! Not here: the counting of seats (`seats`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::seats::Seat;

/// An HTTP connection, as handlers find it among a request's extensions.
#[derive(Clone)]
pub(super) struct HttpConnection(Arc<State>);

/// What all clones of an [`HttpConnection`] share.
struct State {
    seat: Arc<Seat>,
    streams: AtomicUsize,
    /// True while written bytes are held back for the socket that the connection becomes.
    holds: AtomicBool,
}

/// An endless answer on the connection, for as long as it is under way.
pub(super) struct OpenStream(Arc<State>);

impl HttpConnection {
    pub(super) fn new(seat: Seat) -> Self {
        Self(Arc::new(State {
            seat: Arc::new(seat),
            streams: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
        }))
    }

    /// True if the connection is beyond its address's share, so that it gets one answer.
    pub(super) fn is_beyond(&self) -> bool {
        self.0.seat.is_beyond()
    }

    /// Turns the connection into a stream, which is limited like a socket and not by its age.
    pub(super) fn stream(&self) -> OpenStream {
        self.0.seat.leave_http();
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(&self.0))
    }

    /// The connection's seat, for the socket that it becomes.
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.0.seat)
    }

    /// Holds the answer back, so that it leaves with the first messages of the socket that the
    /// connection becomes.
    pub(super) fn hold(&self) {
        self.0.holds.store(true, Ordering::Relaxed);
    }

    pub(super) fn holds(&self) -> bool {
        self.0.holds.load(Ordering::Relaxed)
    }

    pub(super) fn is_stream(&self) -> bool {
        self.0.streams.load(Ordering::Relaxed) > 0
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
