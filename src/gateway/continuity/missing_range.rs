//! A range of a channel's publications that are missing, or may be, while the history is read for
//! them; and what waits behind it meanwhile.
//!
//! Invariant: what waits is bounded, on one channel and on all channels together.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::channel::{GapReason, Position, Publication};

/// Most entries that may wait behind a missing range. It is small for the fuzz target, so that a
/// short input can reach it.
pub(super) const MAX_WAITING: usize = if cfg!(fuzzing) { 16 } else { 4096 };
const MAX_WAITING_BYTES: usize = 4 << 20;

/// Most bytes that may wait behind all missing ranges together.
const MAX_HELD: usize = 64 << 20;

/// The bytes that currently wait behind all missing ranges.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// What happened while the history was being read, to be handled once the answer is there.
pub(super) enum HeldEvent {
    Publication(Publication),
    /// Publications may be missing at this point too.
    Loss(Loss),
}

/// Publications may be missing at this point.
pub(super) struct Loss {
    pub(super) reason: GapReason,
    /// Something else may be missing, whatever the history holds.
    pub(super) declare: bool,
    /// Where the history stood at this point, if that is known.
    pub(super) until: Option<Position>,
}

/// Publications that are missing, or may be, until the history answers.
pub(super) struct MissingRange {
    pub(super) ticket: u64,
    pub(super) reason: GapReason,
    /// Something else may be missing, whatever the history holds.
    pub(super) declare: bool,
    pub(super) waiting: Vec<HeldEvent>,
    /// This many of `waiting` came before the history was read: it has them, or they are false.
    pub(super) before: usize,
    bytes: usize,
    /// Nothing waits until the reading begins: the channel has had false claims, and one more must
    /// not hold it up.
    pub(super) aside: bool,
    /// The furthest of the claims that were put aside.
    pub(super) claimed: Option<Position>,
}

impl MissingRange {
    pub(super) fn new(ticket: u64, (reason, declare): (GapReason, bool), aside: bool) -> Self {
        let waiting = Vec::new();
        let before = 0;
        let bytes = 0;
        let claimed = None;
        Self { ticket, reason, declare, waiting, before, bytes, aside, claimed }
    }

    /// The history is being read from now on.
    pub(super) fn begin(&mut self) {
        self.before = self.waiting.len();
        self.aside = false;
    }

    pub(super) fn hold(&mut self, publication: Publication) {
        let size = publication.payload.len() + size_of::<HeldEvent>();
        self.bytes += size;
        let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
        self.waiting.push(HeldEvent::Publication(publication));

        let full = self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES;
        if full || held > MAX_HELD {
            self.give_up_waiting();
        }
    }

    /// Publications may be missing at this point too.
    pub(super) fn lose(&mut self, loss: Loss) {
        self.waiting.push(HeldEvent::Loss(loss));
        if self.waiting.len() > MAX_WAITING {
            self.give_up_waiting();
        }
    }

    /// Discards what waits because it does not fit, so that it is read as well. Plain publications
    /// cannot be read, so a gap is declared if one of them was there.
    fn give_up_waiting(&mut self) {
        let declare = self.waiting.iter().any(|held| match held {
            HeldEvent::Publication(publication) => publication.position.is_none(),
            HeldEvent::Loss(loss) => loss.declare,
        });

        self.release();
        self.before = 0;
        let reason = GapReason::Overflow;
        self.waiting = vec![HeldEvent::Loss(Loss { reason, declare, until: None })];
    }

    fn release(&mut self) {
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }

    /// Drops publications that came before the reading and that were just delivered from the
    /// history, or that it does not have. Returns how many claims are false; those of an epoch that
    /// has ended meanwhile do not count.
    pub(super) fn refute(&mut self, top: &Position, limit: u64, last: Option<&Position>) -> usize {
        let is_false = |p: &Position| {
            let was_true = last.is_some_and(|l| l.epoch == p.epoch && l.epoch != top.epoch);
            !top.has_reached(p) && !was_true
        };

        let mut at = 0;
        let mut refuted = 0;
        let before = self.before;
        self.waiting.retain(|held| {
            at += 1;
            let HeldEvent::Publication(Publication { position: Some(position), .. }) = held else {
                return true;
            };

            if at > before {
                return true;
            }

            refuted += usize::from(is_false(position));
            top.has_reached(position) && position.offset > limit
        });

        refuted + usize::from(self.claimed.take().as_ref().is_some_and(is_false))
    }

    /// Drops publications that claim the offset of a different publication in the history; returns
    /// how many there were.
    pub(super) fn refute_rivals(&mut self, top: &Position, publications: &[Publication]) -> usize {
        let first = (top.offset + 1).saturating_sub(publications.len() as u64);
        let mut at = 0;
        let mut dropped_before = 0;
        let before = self.before;
        let all = self.waiting.len();

        self.waiting.retain(|held| {
            at += 1;
            let HeldEvent::Publication(Publication {
                position: Some(position), payload, cut, ..
            }) = held
            else {
                return true;
            };

            let index = position.offset.checked_sub(first).filter(|_| position.epoch == top.epoch);
            let true_one = index.and_then(|index| publications.get(usize::try_from(index).ok()?));
            let is_true = cut.is_some() || true_one.is_none_or(|p| p.payload == *payload);
            dropped_before += usize::from(!is_true && at <= before);
            is_true
        });

        self.before -= dropped_before;
        all - self.waiting.len()
    }

    /// The first waiting offset behind the last delivered one and within the history. `None` if
    /// the waiting offsets do not follow each other: one of them is false then, and the history
    /// has all of them.
    pub(super) fn first_after(&self, last: Option<u64>, top: &Position) -> Option<u64> {
        let until_loss = self.waiting.iter().map_while(|held| match held {
            HeldEvent::Publication(publication) => Some(publication.position.as_ref()),
            HeldEvent::Loss(_) => None,
        });
        let within = |p: &&Position| top.has_reached(p) && last.is_none_or(|l| p.offset > l);
        let mut offsets = until_loss.flatten().filter(within).map(|p| p.offset);

        let first = offsets.next()?;
        let mut next = first + 1;
        let follow = offsets.all(|offset| {
            let follows = (first..=next).contains(&offset);
            next += u64::from(offset == next);
            follows
        });
        follow.then_some(first)
    }

    /// Puts a claim aside: if it is true, the history has its publication.
    pub(super) fn put_aside(&mut self, claim: Position) {
        let further = |known: &Position| known.epoch != claim.epoch || known.offset < claim.offset;
        if self.claimed.as_ref().is_none_or(further) {
            self.claimed = Some(claim);
        }
    }
}

impl Drop for MissingRange {
    fn drop(&mut self) {
        self.release();
    }
}
