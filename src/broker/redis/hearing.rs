//! Whether publications can arrive on a subscribing connection, and since when they cannot. An open
//! connection proves nothing: it hears once its canary has come back and it has subscribed to all
//! wanted channels.
//!
//! Pure: no connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::broker::SilentPart;

/// The part of the channels that no connection serves; no other part has this number.
pub(super) const UNSERVED: u64 = 0;

fn next_part() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(UNSERVED + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

struct State {
    /// `None` while the connection hears.
    silent: Option<SilentPart>,
    /// The time of the latest publication that is known to have arrived.
    proof: Option<Instant>,
    connected: bool,
    proven: bool,
    caught_up: bool,
}

/// Whether one subscribing connection hears.
pub(super) struct Hearing {
    /// The number of this connection, as a part of the broker.
    pub(super) part: u64,
    state: Mutex<State>,
}

impl Hearing {
    /// Begins silent: for as long as the channels that it takes over have been, or from now on.
    pub(super) fn new(before: Option<SilentPart>) -> Self {
        let part = next_part();
        let now = Instant::now();
        let silent = Some(SilentPart { part, ..before.unwrap_or(SilentPart::new(part, now)) });
        let state =
            State { silent, proof: None, connected: false, proven: false, caught_up: false };
        Self { part, state: Mutex::new(state) }
    }

    pub(super) fn connected(&self) {
        let mut state = self.state.lock();
        (state.connected, state.proven, state.caught_up) = (true, false, false);
    }

    pub(super) fn lost(&self) {
        let mut state = self.state.lock();
        state.connected = false;
        let now = Instant::now();
        let since = state.proof.unwrap_or(now);
        state.silent.get_or_insert(SilentPart { part: self.part, noticed: now, since });
    }

    /// Notes that the canary published at that time came back.
    pub(super) fn proven(&self, published: Instant) {
        let mut state = self.state.lock();
        state.proven = true;
        state.proof = Some(published);
    }

    /// Trusts the connection because no canary can prove it.
    pub(super) fn trusted(&self) {
        self.state.lock().proven = true;
    }

    /// Notes that the connection has subscribed to everything that was wanted when it was made.
    pub(super) fn caught_up(&self) {
        self.state.lock().caught_up = true;
    }

    /// Takes over channels that are silent.
    pub(super) fn takes_over(&self, silent: SilentPart) {
        self.state.lock().silent.get_or_insert(SilentPart { part: self.part, ..silent });
    }

    /// `None` while publications can arrive. `behind`: some channel has to be subscribed again.
    pub(super) fn silent(&self, behind: bool) -> Option<SilentPart> {
        let mut state = self.state.lock();
        if !behind && state.connected && state.proven && state.caught_up {
            state.silent = None;
        } else {
            state.silent.get_or_insert(SilentPart::new(self.part, Instant::now()));
        }
        state.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_hears_when_it_is_proven_and_has_everything_and_until_it_is_lost() {
        let hearing = Hearing::new(None);
        let began = hearing.silent(false);
        assert!(began.is_some());

        hearing.connected();
        hearing.caught_up();
        assert_eq!(hearing.silent(false), began, "it may be deaf");

        let proof = Instant::now();
        hearing.proven(proof);
        assert_eq!(hearing.silent(true), began, "something is not subscribed");
        assert_eq!(hearing.silent(false), None);

        hearing.lost();
        let lost = hearing.silent(false).unwrap();
        assert_eq!(lost.since, proof);
        assert!(lost.noticed >= proof);
        // A connection that becomes deaf repeatedly has been silent since the first time.
        hearing.connected();
        hearing.lost();
        hearing.connected();
        hearing.trusted();
        assert_eq!(hearing.silent(false), Some(lost));
        hearing.caught_up();
        assert_eq!(hearing.silent(false), None);

        // Channels of another connection bring the time of their silence along.
        hearing.takes_over(lost);
        assert_eq!(hearing.silent(true).map(|s| s.since), Some(proof));
    }
}
