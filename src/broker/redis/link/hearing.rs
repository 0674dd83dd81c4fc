//! Whether publications can arrive on a subscribing connection, and since when they cannot. A connection
//! that is open proves nothing: one hears once its canary came back and it has subscribed to everything
//! that was wanted.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// After which a connection that has not subscribed to everything counts as hearing: in a rush of new
/// subscriptions there is always one on its way.
const CATCH_UP: Duration = Duration::from_secs(10);

struct State {
    silent_since: Option<Instant>,
    /// When the connection that there is was made.
    connected: Option<Instant>,
    proven: bool,
    caught_up: bool,
}

pub(in super::super) struct Hearing(Mutex<State>);

impl Hearing {
    /// Silent since then.
    pub(super) fn new(since: Instant) -> Self {
        let silent_since = Some(since);
        Self(Mutex::new(State { silent_since, connected: None, proven: false, caught_up: false }))
    }

    pub(super) fn connected(&self) {
        self.0.lock().connected = Some(Instant::now());
    }

    pub(super) fn lost(&self) {
        let since = self.silent_since().unwrap_or_else(Instant::now);
        *self.0.lock() =
            State { silent_since: Some(since), connected: None, proven: false, caught_up: false };
    }

    /// The canary came back, or there is none to wait for.
    pub(in super::super) fn proven(&self) {
        let mut state = self.0.lock();
        state.proven = true;
        state.settle();
    }

    /// It is subscribed to everything that was wanted when it was made.
    pub(super) fn caught_up(&self) {
        let mut state = self.0.lock();
        state.caught_up = true;
        state.settle();
    }

    /// `None` while publications can arrive.
    pub(in super::super) fn silent_since(&self) -> Option<Instant> {
        let mut state = self.0.lock();
        state.settle();
        state.silent_since
    }
}

impl State {
    fn settle(&mut self) {
        let Some(connected) = self.connected else { return };
        if self.proven && (self.caught_up || connected.elapsed() > CATCH_UP) {
            self.silent_since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_hears_when_it_is_proven_and_has_everything_and_until_it_is_lost() {
        let began = Instant::now();
        let hearing = Hearing::new(began);
        hearing.connected();
        hearing.caught_up();
        assert_eq!(hearing.silent_since(), Some(began), "it may be deaf");
        hearing.proven();
        assert_eq!(hearing.silent_since(), None);
        hearing.lost();
        let lost = hearing.silent_since();
        assert!(lost > Some(began));
        // One that is deaf again and again is silent since the first time.
        hearing.connected();
        hearing.lost();
        hearing.connected();
        hearing.proven();
        assert_eq!(hearing.silent_since(), lost);
        hearing.caught_up();
        assert_eq!(hearing.silent_since(), None);
    }
}
