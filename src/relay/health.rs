//! How a relay is doing, for its probes and its metrics.

use std::time::SystemTime;

use parking_lot::Mutex;

use super::outbox::Counts;
use crate::metrics;

/// An error that has not come again for this long is over.
const ERROR_LASTS: std::time::Duration = std::time::Duration::from_secs(30);

/// How a relay is doing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Health {
    pub(crate) postgres: bool,
    /// What the schema lacks; `None` before it was looked at.
    pub(crate) missing: Option<Vec<String>>,
    /// The term, while this relay leads.
    pub(crate) term: Option<u64>,
    /// What waits, as the leader has counted it.
    pub(crate) counts: Option<Counts>,
    /// What went wrong last and is not over, without secrets.
    pub(crate) last_error: Option<(SystemTime, String)>,
}

/// The state that is shown.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<Health>);

impl Shown {
    pub(crate) fn now(&self) -> Health {
        let mut health = self.0.lock().clone();
        health.last_error =
            health.last_error.filter(|(at, _)| at.elapsed().is_ok_and(|age| age < ERROR_LASTS));
        health
    }

    /// The session stands.
    pub(super) fn connected(&self) {
        metrics::relay::postgres_connected(true);
        self.0.lock().postgres = true;
    }

    /// The session has ended.
    pub(super) fn ended(&self) {
        metrics::relay::postgres_connected(false);
        metrics::relay::leads(false);
        metrics::relay::counted(0, 0.0, 0);
        let mut health = self.0.lock();
        health.postgres = false;
        health.term = None;
        health.counts = None;
    }

    pub(super) fn checked(&self, missing: Vec<String>) {
        self.0.lock().missing = Some(missing);
    }

    pub(super) fn leads(&self, term: u64) {
        metrics::relay::leads(true);
        self.0.lock().term = Some(term);
    }

    pub(super) fn counted(&self, counts: Counts) {
        metrics::relay::counted(counts.pending, counts.oldest, counts.dead);
        self.0.lock().counts = Some(counts);
    }

    pub(super) fn failed(&self, what: String) {
        self.0.lock().last_error = Some((SystemTime::now(), what));
    }
}
