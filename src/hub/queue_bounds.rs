//! What identifies a connection, and the bounds that all connections share.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::metrics;

/// Identifies a connection within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// The bounds on fan-out and queues, which a reload may change.
#[derive(Debug)]
pub struct QueueBounds {
    pub queue_messages: AtomicUsize,
    pub queue_bytes: AtomicUsize,
    /// The bound for all queues together.
    pub queue_bytes_total: AtomicUsize,
    pub channels_per_connection: AtomicUsize,
    /// The bytes that all queues hold now.
    pub queued: AtomicUsize,
}

impl QueueBounds {
    pub(super) fn queued(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        metrics::queued(bytes);
    }

    pub(super) fn unqueued(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        metrics::unqueued(bytes);
    }

    /// True while all queues together exceed their bound. A connection whose queue grows now is
    /// closed: it reads too slowly, like every connection that has a queue.
    pub(super) fn is_full(&self) -> bool {
        let queued = self.queued.load(Ordering::Relaxed);
        queued > self.queue_bytes_total.load(Ordering::Relaxed)
    }
}
