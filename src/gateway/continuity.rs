//! One channel's durable publications, followed by offset: what is delivered, what came twice, what
//! is missing and has to be read, what has to be declared.
//!
//! Pure: no broker, no sockets. Invariants: within an epoch publications leave in the order of
//! their offsets, each once; an offset is passed over only behind a declaration. While a hole is
//! looked into, everything later waits, bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::broker::{Bounds, BrokerError, History};
use crate::channel::{GapReason, Position, Publication};
use crate::metrics;

/// What may wait behind a hole on one channel.
const MAX_WAITING: usize = 4096;
const MAX_WAITING_BYTES: usize = 4 << 20;

/// How often a hole is read again because what waited behind it did not fit.
const MAX_ROUNDS: u32 = 8;

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Step {
    Deliver(Publication),
    Declare(GapReason),
    /// Read the history, and answer with this ticket.
    Read(u64),
}

/// Publications after `last` are missing, or may be.
struct Hole {
    ticket: u64,
    reason: GapReason,
    /// Whatever the history holds, something else may be missing.
    declare: bool,
    waiting: Vec<Publication>,
    bytes: usize,
    /// What waited did not fit: it has to be read too.
    again: bool,
    rounds: u32,
}

/// The last publications, kept for those who resume.
pub(super) struct Tail {
    /// The publications are those after this offset.
    pub(super) from: u64,
    pub(super) publications: VecDeque<Publication>,
    bytes: usize,
    /// What was before the first that passed while the tail was there has been read.
    pub(super) whole: bool,
    pub(super) used: Instant,
}

#[derive(Default)]
pub(super) struct Flow {
    /// The channel's rule keeps a history, so plain publications are not expected: they alone do
    /// not call for a declaration after a loss, unless one was seen.
    durable: bool,
    plain_seen: bool,
    /// What was delivered last.
    last: Option<Position>,
    /// What may be missing after `last` was declared already: the next publication may be further on.
    declared: bool,
    /// Where the last declaration was made.
    told: Option<Position>,
    hole: Option<Hole>,
    pub(super) tail: Option<Tail>,
}

/// Never given twice: a late answer for a channel that was given up fits no hole of a new one.
fn next_ticket() -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(1);
    TICKETS.fetch_add(1, Ordering::Relaxed)
}

impl Flow {
    pub(super) fn new(durable: bool) -> Self {
        Self { durable, ..Self::default() }
    }

    pub(super) fn set_durable(&mut self) {
        self.durable = true;
    }

    pub(super) fn last(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    /// What the next publication follows, or says that it does not.
    pub(super) fn position(&self) -> Option<&Position> {
        self.last.as_ref().filter(|_| !self.declared)
    }

    /// True if who has everything up to `since` and gets what follows has everything: no plain
    /// publication was seen, nothing was declared missing since, and what follows `last` is known.
    pub(super) fn is_complete_since(&self, since: &Position) -> bool {
        let told = self.told.as_ref().is_some_and(|told| told.has_reached(since));
        !self.plain_seen && !self.declared && !told
    }

    fn advance(&mut self, position: Position) {
        let last = self.last.replace(position);
        let epoch = self.last.as_ref().map(|last| &last.epoch);
        if last.is_none_or(|last| Some(&last.epoch) != epoch) {
            self.tail = None;
        }
        self.declared = false;
    }

    /// Says that something may be missing. It reaches who is there now; who comes back from no further
    /// than here is told when it does.
    fn declare(&mut self, reason: GapReason, out: &mut Vec<Step>) {
        out.push(Step::Declare(reason));
        self.told.clone_from(&self.last);
    }

    /// Keeps a publication for those who resume. A tail has no holes: beyond one it is over.
    fn keep(&mut self, publication: &Publication, bounds: Bounds) {
        if self.tail.as_mut().is_some_and(|tail| !tail.push(publication, bounds)) {
            self.tail = None;
        }
    }

    /// A publication came from the broker.
    pub(super) fn take(&mut self, publication: Publication, bounds: Bounds, out: &mut Vec<Step>) {
        self.plain_seen |= publication.position.is_none();
        if let Some(hole) = &mut self.hole {
            return hole.hold(publication);
        }
        let Some(position) = publication.position.clone() else {
            out.push(Step::Deliver(publication));
            return;
        };
        match &self.last {
            Some(last) if last.has_reached(&position) => metrics::duplicate_dropped(),
            Some(last)
                if last.epoch == position.epoch
                    && position.offset > last.offset + 1
                    && !self.declared =>
            {
                self.open_hole(GapReason::HistoryLost, false, out);
                if let Some(hole) = &mut self.hole {
                    hole.hold(publication);
                }
            }
            last => {
                let epoch_changed = last.as_ref().is_some_and(|last| last.epoch != position.epoch);
                if epoch_changed && !self.declared {
                    self.declare(GapReason::HistoryLost, out);
                }
                self.advance(position);
                self.keep(&publication, bounds);
                out.push(Step::Deliver(publication));
            }
        }
    }

    /// The subscription is live; `fresh` if it was not before.
    pub(super) fn subscribed(
        &mut self,
        position: Option<Position>,
        fresh: bool,
        out: &mut Vec<Step>,
    ) {
        if fresh {
            // What came since the position was read is of this subscription already.
            let came = self.last.take().filter(|last| {
                position.as_ref().is_some_and(|position| last.has_reached(position))
            });
            *self = Self { durable: self.durable, last: came, ..Self::default() };
        }
        if self.hole.is_some() {
            return;
        }
        match (&self.last, position) {
            (_, None) => {}
            (None, Some(position)) => self.advance(position),
            (Some(last), Some(position)) if last.has_reached(&position) => {}
            (Some(last), Some(position)) if last.epoch == position.epoch => {
                self.open_hole(GapReason::HistoryLost, false, out);
            }
            (Some(_), Some(position)) => {
                self.declare(GapReason::HistoryLost, out);
                self.advance(position);
            }
        }
    }

    /// Publications may be missing here; the history stands at `position`, where that is known.
    pub(super) fn interrupted(
        &mut self,
        reason: GapReason,
        position: Option<Position>,
        out: &mut Vec<Step>,
    ) {
        if matches!(reason, GapReason::HistoryLost | GapReason::BrokerRefused) {
            self.declare(reason, out);
            return;
        }
        let declare = !self.durable || self.plain_seen;
        if let Some(hole) = &mut self.hole {
            // The read that is under way may be older than this.
            hole.declare |= declare;
            hole.again = true;
            return;
        }
        match (&self.last, position) {
            (Some(last), Some(position)) if *last == position => {
                // Nothing follows it, whatever was declared.
                self.declared = false;
                if declare {
                    self.declare(reason, out);
                }
            }
            (Some(last), Some(position)) if last.epoch != position.epoch => {
                self.declare(GapReason::HistoryLost, out);
                self.advance(position);
            }
            (Some(_), _) => self.open_hole(reason, declare, out),
            (None, position) => {
                self.declare(reason, out);
                self.last = position;
            }
        }
    }

    /// The queue from the broker was full; `plain`: what no history has was among what was dropped.
    pub(super) fn overflowed(&mut self, plain: bool, out: &mut Vec<Step>) {
        match &mut self.hole {
            Some(hole) => {
                hole.declare |= plain;
                hole.again = true;
            }
            None if self.last.is_some() => self.open_hole(GapReason::Overflow, plain, out),
            None => out.push(Step::Declare(GapReason::Overflow)),
        }
    }

    fn open_hole(&mut self, reason: GapReason, declare: bool, out: &mut Vec<Step>) {
        let ticket = next_ticket();
        let (waiting, bytes, again, rounds) = (Vec::new(), 0, false, 0);
        self.hole = Some(Hole { ticket, reason, declare, waiting, bytes, again, rounds });
        out.push(Step::Read(ticket));
    }

    /// The history was read, for the hole with this ticket.
    pub(super) fn read(
        &mut self,
        ticket: u64,
        history: Result<Option<History>, BrokerError>,
        bounds: Bounds,
        out: &mut Vec<Step>,
    ) {
        let Some(mut hole) = self.hole.take_if(|hole| hole.ticket == ticket) else { return };
        let history = history.ok().flatten();
        let filled = self.last.as_ref().zip(history.as_ref()).is_some_and(|(last, history)| {
            let first = history.publications.first().and_then(|p| p.position.as_ref());
            let begins = first.map_or(history.top.offset + 1, |p| p.offset);
            history.top.has_reached(last) && begins <= last.offset + 1
        });
        if hole.declare || !filled {
            self.declare(hole.reason, out);
        }
        let declared = std::mem::take(&mut hole.declare);
        if let Some(history) = &history {
            hole.keep_from(&history.top.epoch);
        }
        metrics::recovery(filled);
        let after = self.last.clone();
        match history {
            Some(History { top, publications }) => {
                let new = |p: &Publication| {
                    after.as_ref().zip(p.position.as_ref()).is_none_or(|(a, p)| !a.has_reached(p))
                };
                for publication in publications.into_iter().filter(new) {
                    if let Some(position) = publication.position.clone() {
                        self.advance(position);
                    }
                    self.keep(&publication, bounds);
                    out.push(Step::Deliver(publication));
                }
                // Ahead of everything that was kept; or behind what was delivered, which no history is
                // that has kept its word: what comes now begins there, behind the declaration.
                if self.last.as_ref() != Some(&top) {
                    self.advance(top);
                    self.tail = None;
                }
            }
            None => {
                self.declared = true;
                self.tail = None;
            }
        }
        if declared {
            // Other kinds may be missing among what was filled.
            self.told.clone_from(&self.last);
        }
        if hole.again && hole.rounds < MAX_ROUNDS {
            hole.ticket = next_ticket();
            hole.again = false;
            hole.rounds += 1;
            out.push(Step::Read(hole.ticket));
            self.hole = Some(hole);
            return;
        }
        if hole.again {
            self.declare(hole.reason, out);
            self.declared = true;
        }
        for publication in hole.waiting {
            self.take(publication, bounds, out);
        }
    }

    /// Bytes that wait behind a hole.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.hole.as_ref().map_or(0, |hole| hole.waiting.len())
    }
}

impl Hole {
    /// The history is in this epoch now: what waits from before it is over, as the declaration says.
    /// Where nothing waits from it, whatever else waits is from before or after: that is read.
    fn keep_from(&mut self, epoch: &Arc<str>) {
        let is_in = |p: &Publication| p.position.as_ref().is_some_and(|p| p.epoch == *epoch);
        let first = self.waiting.iter().position(is_in);
        let last = self.waiting.iter().rposition(|p| p.position.is_some());
        let over = first.or(last.map(|last| last + 1)).unwrap_or(0);
        self.again |= first.is_none() && over > 0;
        let mut at = 0;
        self.waiting.retain(|p| {
            at += 1;
            at > over || p.position.is_none()
        });
    }

    fn hold(&mut self, publication: Publication) {
        self.bytes += publication.payload.len();
        self.waiting.push(publication);
        if self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES {
            self.declare |= self.waiting.iter().any(|p| p.position.is_none());
            self.waiting = Vec::new();
            self.bytes = 0;
            self.again = true;
        }
    }
}

/// What all tails hold, in bytes.
static TAILS: AtomicUsize = AtomicUsize::new(0);

/// Above this no tail is begun, and idle ones end early.
const MAX_TAILS: usize = 64 << 20;

/// True while there is no room for another tail.
pub(super) fn tails_are_full() -> bool {
    TAILS.load(Ordering::Relaxed) > MAX_TAILS
}

impl Drop for Tail {
    fn drop(&mut self) {
        TAILS.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Tail {
    /// Begins to keep what comes after an offset.
    pub(super) fn begin(from: u64) -> Self {
        let (publications, bytes, whole) = (VecDeque::new(), 0, false);
        Self { from, publications, bytes, whole, used: Instant::now() }
    }

    /// False, and nothing added, where it is not the next one.
    fn push(&mut self, publication: &Publication, bounds: Bounds) -> bool {
        let next = self.from + self.publications.len() as u64 + 1;
        if publication.position.as_ref().is_none_or(|p| p.offset != next) {
            return false;
        }
        self.grow(publication.payload.len());
        self.publications.push_back(publication.clone());
        self.cut(bounds);
        true
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        TAILS.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&mut self, bytes: usize) {
        self.bytes -= bytes;
        TAILS.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn cut(&mut self, bounds: Bounds) {
        while self.publications.len() > bounds.messages || self.bytes > bounds.bytes {
            let Some(old) = self.publications.pop_front() else { return };
            self.shrink(old.payload.len());
            self.from += 1;
        }
    }

    /// Puts what was read before what has passed since. False if the two do not meet.
    pub(super) fn complete(&mut self, history: History, bounds: Bounds) -> bool {
        if history.top.offset < self.from {
            return false;
        }
        let offset = |p: &Publication| p.position.as_ref().map_or(0, |p| p.offset);
        for publication in history.publications.into_iter().rev() {
            if offset(&publication) == self.from && self.from > 0 {
                self.grow(publication.payload.len());
                self.from -= 1;
                self.publications.push_front(publication);
            }
        }
        self.whole = true;
        self.cut(bounds);
        true
    }

    /// Those after an offset, if they are all here.
    pub(super) fn since(&mut self, offset: u64) -> Option<Vec<Publication>> {
        let skip = usize::try_from(offset.checked_sub(self.from)?).ok()?;
        self.used = Instant::now();
        Some(self.publications.iter().skip(skip).cloned().collect())
    }
}

#[cfg(test)]
#[path = "continuity_tests.rs"]
mod tests;
