//! Whether publications can arrive on a subscribing connection, and since when they cannot. A connection
//! that is open proves nothing: one hears once its canary came back and it has subscribed to everything
//! that was wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::broker::SilentPart;

/// Channels that no connection has: no other part has this number.
pub(in super::super) const UNSERVED: u64 = 0;

fn next_part() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(UNSERVED + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

struct State {
    /// `None` while it hears.
    silent: Option<SilentPart>,
    /// The latest moment at which a publication was made that arrived.
    proof: Option<Instant>,
    connected: bool,
    proven: bool,
    caught_up: bool,
}

pub(in super::super) struct Hearing {
    /// Which part of the broker this is.
    pub(in super::super) part: u64,
    state: Mutex<State>,
}

impl Hearing {
    /// Silent, for as long as what it takes over was, or from now on.
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

    /// The canary that was published then came back.
    pub(in super::super) fn proven(&self, published: Instant) {
        let mut state = self.state.lock();
        state.proven = true;
        state.proof = Some(published);
    }

    /// No canary can prove it: it is trusted.
    pub(in super::super) fn trusted(&self) {
        self.state.lock().proven = true;
    }

    /// It is subscribed to everything that was wanted when it was made.
    pub(super) fn caught_up(&self) {
        self.state.lock().caught_up = true;
    }

    /// It takes over channels that are silent.
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
        // One that is deaf again and again is silent since the first time.
        hearing.connected();
        hearing.lost();
        hearing.connected();
        hearing.trusted();
        assert_eq!(hearing.silent(false), Some(lost));
        hearing.caught_up();
        assert_eq!(hearing.silent(false), None);
        // What another one had takes its time along.
        hearing.takes_over(lost);
        assert_eq!(hearing.silent(true).map(|s| s.since), Some(proof));
    }
}
