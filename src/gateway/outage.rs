//! Decides when clients are told that nothing can arrive, and when they are told that this is over.
//!
//! Pure: no broker, no sockets, no clock. Invariants: an interruption that ends before clients are
//! told of it is never told. The end of an interruption is told after the gaps that it caused, as
//! far as those are known in time, and never while the channel is silent again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::{Silence, SilentPart, Spread};
use crate::channel::ChannelName;

/// How long the end of an interruption waits for readings of histories that are in progress,
/// because they may declare gaps.
const READINGS_WITHIN: Duration = Duration::from_secs(7);

/// What clients are to be told.
pub(super) enum Tell {
    Interrupted(Interruption),
    /// Everything arrives again.
    Live,
}

/// The parts that have been silent for long enough that clients are told.
pub(super) struct Interruption {
    /// Everything published before this time has arrived.
    pub(super) since: Instant,
    /// True if all parts are silent.
    pub(super) all: bool,
    parts: Vec<u64>,
    spread: Arc<Spread>,
}

impl Interruption {
    /// True if the channel belongs to a silent part.
    pub(super) fn concerns(&self, channel: &ChannelName) -> bool {
        self.parts.contains(&(self.spread.part_of)(channel))
    }
}

/// What clients were told of silent parts.
pub(super) struct Outages {
    /// A silence is told once it has lasted this long; `None` means never.
    after: Option<Duration>,
    /// The parts that clients were told of, and since when each of them has been silent.
    told: BTreeMap<u64, Instant>,
    /// How channels were spread over the parts at that time.
    spread: Option<Arc<Spread>>,
    /// Since when some of those parts have been heard again without clients having been told.
    fewer_since: Option<Instant>,
}

impl Outages {
    /// `after`: how long a silence lasts before it is told; zero means never.
    pub(super) fn new(after: Duration) -> Self {
        let after = (!after.is_zero()).then_some(after);
        Self { after, told: BTreeMap::new(), spread: None, fewer_since: None }
    }

    /// Compares the current silence with what clients were told. `reading`: histories are being
    /// read, so gaps may follow.
    pub(super) fn observe(
        &mut self,
        silence: Option<Silence>,
        reading: bool,
        now: Instant,
    ) -> Option<Tell> {
        let after = self.after?;
        let (parts, spread) = match silence {
            Some(Silence { parts, spread }) => (parts, Some(spread)),
            None => (Vec::new(), self.spread.clone()),
        };

        // A part that clients were told of stays among the tellable ones, even if its silence
        // is a new one.
        let lasts = |part: &&SilentPart| now.saturating_duration_since(part.noticed) >= after;
        let known = |part: &&SilentPart| self.told.contains_key(&part.part);
        let tellable = parts.iter().filter(|part| known(part) || lasts(part));
        let mut next: BTreeMap<_, _> = tellable.map(|part| (part.part, part.since)).collect();

        let grows = next.keys().any(|part| !self.told.contains_key(part));
        let ended = self.told.iter().filter(|(part, _)| !next.contains_key(part));
        let ended: Vec<_> = ended.map(|(part, since)| (*part, *since)).collect();

        if self.has_to_wait(&ended, reading, now) {
            if !grows {
                return None;
            }
            next.extend(ended);
        }

        self.tell(next, spread?)
    }

    /// True while the gaps of the parts that have ended may still be on their way.
    fn has_to_wait(&mut self, ended: &[(u64, Instant)], reading: bool, now: Instant) -> bool {
        if ended.is_empty() {
            self.fewer_since = None;
            return false;
        }

        let since = *self.fewer_since.get_or_insert(now);
        reading && now.saturating_duration_since(since) < READINGS_WITHIN
    }

    fn tell(&mut self, next: BTreeMap<u64, Instant>, spread: Arc<Spread>) -> Option<Tell> {
        let is_same = |before: &Arc<Spread>| Arc::ptr_eq(before, &spread);
        let is_known = next.keys().eq(self.told.keys());
        if is_known && (next.is_empty() || self.spread.as_ref().is_some_and(is_same)) {
            return None;
        }

        self.fewer_since = None;
        self.told = next;

        let Some(since) = self.told.values().min().copied() else {
            self.spread = None;
            return Some(Tell::Live);
        };

        self.spread = Some(Arc::clone(&spread));
        let all = spread.parts.iter().all(|part| self.told.contains_key(part));
        let parts = self.told.keys().copied().collect();
        Some(Tell::Interrupted(Interruption { since, all, parts, spread }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Spreads the channels `c:<part>` over this many parts.
    fn spread(parts: u64) -> Arc<Spread> {
        let part_of = |channel: &ChannelName| channel.as_str()[2..].parse().unwrap();
        Arc::new(Spread { parts: (1..=parts).collect(), part_of: Box::new(part_of) })
    }

    fn silence(spread: &Arc<Spread>, parts: &[(u64, Instant)]) -> Option<Silence> {
        let parts = parts.iter().map(|(part, at)| SilentPart::new(*part, *at)).collect();
        Some(Silence { parts, spread: Arc::clone(spread) })
    }

    /// What is told, as text: `all`, or which of the first three parts' channels are interrupted.
    fn told(tell: Option<Tell>) -> String {
        let name = |part: u64| format!("c:{part}").parse::<ChannelName>().unwrap();
        match tell {
            None => "nothing".to_owned(),
            Some(Tell::Live) => "live".to_owned(),
            Some(Tell::Interrupted(i)) if i.all => "all".to_owned(),
            Some(Tell::Interrupted(i)) => {
                let concerned = (1..=3).filter(|part| i.concerns(&name(*part)));
                concerned.map(|part| part.to_string()).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn what_lasts_is_told_once_and_its_end() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        let spread = spread(1);
        let mut look = |silent: bool, reading, at| {
            let silence = if silent { silence(&spread, &[(1, began)]) } else { None };
            told(outages.observe(silence, reading, began + at))
        };

        assert_eq!(look(true, false, SECOND / 2), "nothing", "it may be over soon");
        assert_eq!(look(true, false, SECOND), "all");
        assert_eq!(look(true, false, 2 * SECOND), "nothing");
        assert_eq!(look(false, true, 3 * SECOND), "nothing", "gaps may follow");
        assert_eq!(look(false, false, 4 * SECOND), "live");
        assert_eq!(look(false, false, 5 * SECOND), "nothing");
    }

    #[test]
    fn readings_that_never_end_do_not_hold_the_end_up_for_ever() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        let spread = spread(1);
        let gone = |at: Instant| silence(&spread, &[(1, at)]);
        let mut look = |silence, at| told(outages.observe(silence, true, began + at));

        assert_eq!(look(gone(began), SECOND), "all");
        assert_eq!(look(None, 10 * SECOND), "nothing");
        // The outage was not over after all, although this is a new silence.
        assert_eq!(look(gone(began + 11 * SECOND), 11 * SECOND), "nothing");
        assert_eq!(look(None, 20 * SECOND), "nothing");
        assert_eq!(look(None, 28 * SECOND), "live");
    }

    #[test]
    fn parts_are_told_as_they_go_and_their_ends_behind_the_gaps() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        let spread = spread(3);
        let one = (1, began);
        let two = (2, began + 5 * SECOND);
        let mut look = |parts: &[(u64, Instant)], reading, at| {
            let silence = if parts.is_empty() { None } else { silence(&spread, parts) };
            told(outages.observe(silence, reading, began + at))
        };

        assert_eq!(look(&[one], false, SECOND), "1");
        assert_eq!(look(&[one, two], false, 5 * SECOND), "nothing", "the second is young");
        assert_eq!(look(&[one, two], false, 6 * SECOND), "1 2");
        // The first part has recovered, and its histories are being read.
        assert_eq!(look(&[two], true, 7 * SECOND), "nothing");
        // A third part becomes silent meanwhile.
        let three = (3, began + 7 * SECOND);
        assert_eq!(look(&[two, three], true, 8 * SECOND), "all");
        assert_eq!(look(&[two, three], false, 9 * SECOND), "2 3");
        assert_eq!(look(&[], false, 10 * SECOND), "live");
    }

    /// A master is replaced: its channels belong to another part now, which has been silent for as
    /// long as the old one.
    #[test]
    fn channels_that_move_are_looked_at_again() {
        let mut outages = Outages::new(SECOND);
        let began = Instant::now();
        let before = spread(2);
        let after = spread(3);
        let mut look = |silence, at| told(outages.observe(silence, false, began + at));

        assert_eq!(look(silence(&before, &[(1, began)]), SECOND), "1");
        assert_eq!(look(silence(&after, &[(1, began)]), 2 * SECOND), "1");
        assert_eq!(look(silence(&after, &[(3, began)]), 3 * SECOND), "3");
        assert_eq!(look(None, 4 * SECOND), "live");
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut outages = Outages::new(Duration::ZERO);
        let began = Instant::now();
        let silence = silence(&spread(1), &[(1, began)]);
        assert_eq!(told(outages.observe(silence, false, began + 60 * SECOND)), "nothing");
    }
}
