//! When clients are told that nothing can arrive, and when that it is over.
//!
//! Pure: no broker, no sockets, no clock. Invariants: what is over before clients are told is never told;
//! the end is told behind the gaps that the outage caused, as far as those are known in time.

use std::time::{Duration, Instant};

use crate::broker::Silence;

/// How long the end waits for histories that are being read, which decide about gaps.
const READINGS_WITHIN: Duration = Duration::from_secs(7);

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// Nothing arrives on channels that have been silent since `until` or longer, the first of them since
    /// `since`; on any channel, if `all`.
    Interrupted { since: Instant, until: Instant, all: bool },
    /// Everything arrives again.
    Live,
}

pub(super) struct Outages {
    /// After so long it is told; `None`: never.
    after: Option<Duration>,
    /// The silences that were told, in order, and whether they are all there is.
    told: (Vec<Instant>, bool),
    /// Since when there is none any more, and the end is not told yet.
    over_since: Option<Instant>,
}

impl Outages {
    /// `after`: zero for never.
    pub(super) fn new(after: Duration) -> Self {
        let after = (!after.is_zero()).then_some(after);
        Self { after, told: (Vec::new(), false), over_since: None }
    }

    /// What is silent now; `reading`: histories are being read that may lead to gaps.
    pub(super) fn look(&mut self, silence: Silence, reading: bool, now: Instant) -> Option<Tell> {
        let after = self.after?;
        let parts = silence.since.len();
        let long = |since: &Instant| now.saturating_duration_since(*since) >= after;
        let mut lasting: Vec<_> = silence.since.into_iter().filter(long).collect();
        lasting.sort_unstable();
        let all = silence.all && lasting.len() == parts && parts > 0;

        let ends = lasting.first().copied().zip(lasting.last().copied());
        let Some((since, until)) = ends else { return self.over(reading, now) };
        self.over_since = None;
        let told = (lasting, all);
        if self.told == told {
            return None;
        }
        self.told = told;
        Some(Tell::Interrupted { since, until, all })
    }

    fn over(&mut self, reading: bool, now: Instant) -> Option<Tell> {
        if self.told.0.is_empty() {
            return None;
        }
        let over_since = *self.over_since.get_or_insert(now);
        if reading && now.saturating_duration_since(over_since) < READINGS_WITHIN {
            return None;
        }
        self.told = (Vec::new(), false);
        self.over_since = None;
        Some(Tell::Live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn silence(since: &[Instant], all: bool) -> Silence {
        Silence { since: since.to_vec(), all }
    }

    #[test]
    fn what_lasts_is_told_once_and_its_end() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        let gone = || silence(&[began], true);
        assert_eq!(outages.look(gone(), false, began + SECOND / 2), None, "it may be over soon");
        let told = Tell::Interrupted { since: began, until: began, all: true };
        assert_eq!(outages.look(gone(), false, began + SECOND), Some(told));
        assert_eq!(outages.look(gone(), false, began + 2 * SECOND), None);
        let over = || Silence::default();
        assert_eq!(outages.look(over(), true, began + 3 * SECOND), None, "gaps may follow");
        assert_eq!(outages.look(over(), false, began + 4 * SECOND), Some(Tell::Live));
        assert_eq!(outages.look(over(), false, began + 5 * SECOND), None);
    }

    #[test]
    fn readings_that_never_end_do_not_hold_the_end_up_for_ever() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        outages.look(silence(&[began], true), false, began + SECOND);
        let over = began + 10 * SECOND;
        assert_eq!(outages.look(Silence::default(), true, over), None);
        // It was not over after all.
        assert_eq!(outages.look(silence(&[began], true), true, over + SECOND), None);
        let over = began + 20 * SECOND;
        assert_eq!(outages.look(Silence::default(), true, over), None);
        assert_eq!(outages.look(Silence::default(), true, over + 8 * SECOND), Some(Tell::Live));
    }

    #[test]
    fn parts_are_told_as_they_go_and_come() {
        let mut outages = Outages::new(SECOND);
        let first = Instant::now();
        let second = first + 5 * SECOND;
        let of_one = Tell::Interrupted { since: first, until: first, all: false };
        let now = first + 5 * SECOND;
        assert_eq!(outages.look(silence(&[first], false), false, now), Some(of_one));
        // The second has not lasted: no more is told than before.
        let now = second + SECOND / 2;
        assert_eq!(outages.look(silence(&[second, first], true), false, now), None);
        let of_all = Tell::Interrupted { since: first, until: second, all: true };
        let now = second + SECOND;
        assert_eq!(outages.look(silence(&[second, first], true), false, now), Some(of_all));
        let of_rest = Tell::Interrupted { since: second, until: second, all: false };
        let now = second + 2 * SECOND;
        assert_eq!(outages.look(silence(&[second], false), false, now), Some(of_rest));
        let now = second + 3 * SECOND;
        assert_eq!(outages.look(Silence::default(), false, now), Some(Tell::Live));
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut outages = Outages::new(Duration::ZERO);
        let began = Instant::now();
        assert_eq!(outages.look(silence(&[began], true), false, began + 60 * SECOND), None);
    }
}
