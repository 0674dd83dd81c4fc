//! What one load thread counts, and how the threads' counts become one.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::check::Counts;

/// Phases of a run by intended time: the warm-up is phase 0 and not recorded.
pub const PHASES: usize = 3;

/// How often each kind of something happened.
pub type Kinds = BTreeMap<String, u64>;

pub struct Tally {
    pub counts: Counts,
    /// Deliveries intended after the warm-up.
    pub measured: u64,
    /// Nanoseconds, for phases 1 to `PHASES`.
    pub latency: [Histogram<u64>; PHASES],
    /// From the start of an attempt until all subscriptions are confirmed.
    pub handshake: Histogram<u64>,
    pub attempts: u64,
    /// Attempts that the server put off (429, 503, 1012, 1013, 4429), to be tried again.
    pub refusals: u64,
    pub failures: Kinds,
    pub closes: Kinds,
    pub gaps: Kinds,
}

pub fn histogram() -> Histogram<u64> {
    // The bounds are constants that the constructor accepts.
    #[expect(clippy::expect_used, reason = "constant bounds")]
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("bounds")
}

pub fn record(histogram: &mut Histogram<u64>, nanos: u64) {
    histogram.saturating_record(nanos.max(1));
}

pub fn count(kinds: &mut Kinds, kind: impl Into<String>) {
    *kinds.entry(kind.into()).or_default() += 1;
}

impl Tally {
    pub fn new() -> Self {
        Tally {
            counts: Counts::default(),
            measured: 0,
            latency: [histogram(), histogram(), histogram()],
            handshake: histogram(),
            attempts: 0,
            refusals: 0,
            failures: Kinds::new(),
            closes: Kinds::new(),
            gaps: Kinds::new(),
        }
    }

    pub fn add(&mut self, other: &Tally) {
        self.counts.add(&other.counts);
        self.measured += other.measured;

        for (mine, others) in self.latency.iter_mut().zip(&other.latency) {
            // The bounds are the same, so nothing is out of range.
            let _ = mine.add(others);
        }
        let _ = self.handshake.add(&other.handshake);

        self.attempts += other.attempts;
        self.refusals += other.refusals;

        for (mine, others) in [
            (&mut self.failures, &other.failures),
            (&mut self.closes, &other.closes),
            (&mut self.gaps, &other.gaps),
        ] {
            for (kind, times) in others {
                *mine.entry(kind.clone()).or_default() += times;
            }
        }
    }
}
