//! A hole: publications that are missing on a channel, or may be, while the history is asked; and what
//! waits behind it meanwhile.
//!
//! Invariant: what waits is bounded, on one channel and on all of them together.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::channel::{GapReason, Position, Publication};

/// What may wait behind a hole on one channel; the fuzz target comes to it with a short input.
pub(super) const MAX_WAITING: usize = if cfg!(fuzzing) { 16 } else { 4096 };
const MAX_WAITING_BYTES: usize = 4 << 20;

/// And behind all holes together, in bytes.
const MAX_HELD: usize = 64 << 20;

/// What waits behind all holes, in bytes.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// What happened while the history was asked, to be gone through when it has answered.
pub(super) enum Held {
    Publication(Publication),
    /// Publications may be missing here too.
    Loss(Loss),
}

/// Publications may be missing at this point.
pub(super) struct Loss {
    pub(super) reason: GapReason,
    /// Whatever the history holds, something else may be missing.
    pub(super) declare: bool,
    /// Where the history stood at this point, if that is known.
    pub(super) until: Option<Position>,
}

pub(super) struct Hole {
    pub(super) ticket: u64,
    pub(super) reason: GapReason,
    /// Whatever the history holds, something else may be missing.
    pub(super) declare: bool,
    pub(super) waiting: Vec<Held>,
    /// So many of `waiting` were there before the history was asked: it knows of them, or they are false.
    pub(super) before: usize,
    bytes: usize,
    /// Nothing waits until the history is asked: the channel has had false claims, and one more must not
    /// hold it up.
    pub(super) aside: bool,
    /// The furthest claim that was put aside.
    pub(super) claimed: Option<Position>,
}

impl Hole {
    pub(super) fn new(ticket: u64, (reason, declare): (GapReason, bool), aside: bool) -> Self {
        let (waiting, before, bytes, claimed) = (Vec::new(), 0, 0, None);
        Self { ticket, reason, declare, waiting, before, bytes, aside, claimed }
    }

    /// The history is asked now.
    pub(super) fn begin(&mut self) {
        self.before = self.waiting.len();
        self.aside = false;
    }

    pub(super) fn hold(&mut self, publication: Publication) {
        let size = publication.payload.len() + size_of::<Held>();
        self.bytes += size;
        let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
        self.waiting.push(Held::Publication(publication));

        let full = self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES;
        if full || held > MAX_HELD {
            self.give_up_waiting();
        }
    }

    /// Something may be missing at this point too.
    pub(super) fn lose(&mut self, loss: Loss) {
        self.waiting.push(Held::Loss(loss));
        if self.waiting.len() > MAX_WAITING {
            self.give_up_waiting();
        }
    }

    /// What waits does not fit: it has to be read too. Of plain publications there is nothing to read.
    fn give_up_waiting(&mut self) {
        let declare = self.waiting.iter().any(|held| match held {
            Held::Publication(publication) => publication.position.is_none(),
            Held::Loss(loss) => loss.declare,
        });
        self.release();
        self.before = 0;
        let reason = GapReason::Overflow;
        self.waiting = vec![Held::Loss(Loss { reason, declare, until: None })];
    }

    fn release(&mut self) {
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }

    /// Drops what came before the history was asked and was delivered from it just now, or claims what it
    /// does not have; returns how many claims are false. Those of an epoch that has ended since are not.
    pub(super) fn refute(&mut self, top: &Position, limit: u64, last: Option<&Position>) -> usize {
        let is_false = |p: &Position| {
            let was_true = last.is_some_and(|l| l.epoch == p.epoch && l.epoch != top.epoch);
            !top.has_reached(p) && !was_true
        };
        let (mut at, mut refuted, before) = (0, 0, self.before);
        self.waiting.retain(|held| {
            at += 1;
            let Held::Publication(Publication { position: Some(position), .. }) = held else {
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

    /// Drops what claims the place of another publication that the history has; returns how many did.
    pub(super) fn refute_rivals(&mut self, top: &Position, publications: &[Publication]) -> usize {
        let first = (top.offset + 1).saturating_sub(publications.len() as u64);
        let (mut at, mut dropped_before, before) = (0, 0, self.before);
        let all = self.waiting.len();
        self.waiting.retain(|held| {
            at += 1;
            let Held::Publication(Publication { position: Some(position), payload, cut, .. }) =
                held
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

    /// The first offset that waits, of those after the last one that was delivered and within the history;
    /// none where they do not follow each other, since one of them is false then and the history has all.
    pub(super) fn first_after(&self, last: Option<u64>, top: &Position) -> Option<u64> {
        let until_loss = self.waiting.iter().map_while(|held| match held {
            Held::Publication(publication) => Some(publication.position.as_ref()),
            Held::Loss(_) => None,
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

impl Drop for Hole {
    fn drop(&mut self) {
        self.release();
    }
}
