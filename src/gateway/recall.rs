//! What is known here of the stored revocations, and what the readiness body says of it.
//!
//! Not here: reading the store (`revoke`).

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::broker::BrokerError;

/// The state of reading the store.
#[derive(Default)]
pub(super) struct Recall {
    pub(super) state: Mutex<RecallState>,
    /// Notified when control messages may have been missed.
    pub(super) due: Notify,
}

/// What the latest readings of the store found.
#[derive(Default)]
pub(super) struct RecallState {
    /// When the store was last read successfully, in Unix seconds.
    pub(super) read_at: Option<u64>,
    /// Why the store could not be read since then.
    pub(super) error: Option<BrokerError>,
    /// The number of unusable entries in the last reading.
    pub(super) unusable: usize,
}

impl Recall {
    /// Has the store read at once.
    pub(super) fn now(&self) {
        self.due.notify_one();
    }
}

/// Whether the revocations are known, for the readiness body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationsHealth {
    /// True once the store has been read completely.
    pub known: bool,
    pub count: usize,
    pub unusable: usize,
    /// Unix seconds.
    pub read_at: Option<u64>,
    /// Why the last reading failed.
    pub error: Option<String>,
}

impl RevocationsHealth {
    /// True if every stored revocation is in force here.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.known && self.error.is_none()
    }
}
