//! One channel's durable publications, followed by offset: what is delivered, what came twice, what
//! is missing and has to be read, what has to be declared.
//!
//! Pure: no broker, no sockets. Invariants: within an epoch publications leave in the order of
//! their offsets, each once; an offset is passed over only behind a declaration. While a hole is
//! looked into, everything later waits, bounded. A position that comes with a publication is a claim,
//! since whoever may publish may write one: the history decides on those that do not follow.

mod hole;
mod recent;
#[cfg(any(test, fuzzing))]
pub(super) mod simulation;
mod tail;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::hole::{Held, Hole, Loss};
use self::recent::{Known, Recent};
pub(super) use self::tail::{Tail, tails_are_full};
use crate::broker::{Bounds, BrokerError, History, Track};
use crate::channel::{GapReason, Position, Publication};
use crate::metrics;

/// How often in a row a hole is read again because what waited behind it did not fit.
const MAX_ROUNDS: u32 = 8;

/// After false claims a channel's history is asked no more often than this, doubled with each of them.
const FIRST_DOUBT: Duration = Duration::from_millis(100);
const LAST_DOUBT: Duration = Duration::from_millis(6400);
/// Without a false claim for so long they are forgotten.
const DOUBT_LASTS: Duration = Duration::from_secs(60);

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Step {
    Deliver(Publication),
    Declare(GapReason),
    /// Wait so long, say [`Flow::begin`], read the history, and answer with this ticket.
    Read(u64, Duration),
    /// Publications came with positions that the history does not have; so many are known of.
    Refuted(usize),
}

/// False claims of late.
struct Doubt {
    claims: u32,
    last: Instant,
}

/// How a publication's position stands to what was delivered.
enum Place {
    /// It follows, or anything may.
    Next,
    /// Something was delivered there.
    Taken(Known),
    /// It does not follow: the history has to be asked.
    Claimed,
}

#[derive(Default)]
pub(super) struct Flow {
    track: Track,
    plain_seen: bool,
    /// What was delivered last.
    last: Option<Position>,
    /// What may be missing after `last` was declared already: the next publication may be anywhere.
    declared: bool,
    /// Where the last declaration was made.
    told: Option<Position>,
    recent: Recent,
    /// What the history has up to this offset was delivered from it or declared.
    settled: u64,
    hole: Option<Box<Hole>>,
    /// Holes in a row that were there because too much waited.
    rounds: u32,
    doubt: Option<Doubt>,
    pub(super) tail: Option<Tail>,
}

/// Never given twice: a late answer for a channel that was given up fits no hole of a new one.
fn next_ticket() -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(1);
    TICKETS.fetch_add(1, Ordering::Relaxed)
}

impl Flow {
    pub(super) fn new(track: Track) -> Self {
        Self { track, ..Self::default() }
    }

    pub(super) fn follow(&mut self, track: Track) {
        self.track = self.track.max(track);
    }

    pub(super) fn last(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    /// What the next publication follows, or says that it does not.
    pub(super) fn position(&self) -> Option<&Position> {
        self.last.as_ref().filter(|_| !self.declared)
    }

    /// True if a client at `since` that receives all later events has missed nothing: no plain
    /// publication was seen, nothing was declared missing since, and what follows `last` is known.
    pub(super) fn is_complete_since(&self, since: &Position) -> bool {
        let told = self.told.as_ref().is_some_and(|told| told.has_reached(since));
        !self.plain_seen && !self.declared && !told
    }

    /// True where a history that is whole is all that there was.
    fn has_plain(&self) -> bool {
        self.track < Track::OpenDurable || self.plain_seen
    }

    fn advance(&mut self, position: Position) {
        let last = self.last.replace(position);
        let epoch = self.last.as_ref().map(|last| &last.epoch);
        if last.is_none_or(|last| Some(&last.epoch) != epoch) {
            self.tail = None;
            self.recent.forget();
            self.settled = 0;
        }
        self.declared = false;
    }

    /// Declares a gap to current subscribers. A client that later resumes from this position or an
    /// earlier one gets `recovered: false`.
    fn declare(&mut self, reason: GapReason, out: &mut Vec<Step>) {
        out.push(Step::Declare(reason));
        self.told.clone_from(&self.last);
    }

    /// Delivers a publication that has a position, and remembers it; `proven` where the history has it.
    fn deliver(
        &mut self,
        publication: Publication,
        proven: bool,
        bounds: Bounds,
        out: &mut Vec<Step>,
    ) {
        if let Some(position) = publication.position.clone() {
            let offset = position.offset;
            self.advance(position);
            self.recent.push(offset, &publication, proven);
        }
        // A tail has no holes: beyond one it is over.
        if self.tail.as_mut().is_some_and(|tail| !tail.push(&publication, bounds)) {
            self.tail = None;
        }
        out.push(Step::Deliver(publication));
    }

    fn place(&self, position: &Position, publication: &Publication) -> Place {
        let Some(last) = &self.last else { return Place::Next };
        let same = last.epoch == position.epoch;
        if let Some(known) = self.recent.look(position.offset, publication).filter(|_| same) {
            Place::Taken(known)
        } else if same && position.offset <= self.settled {
            // Too old to be remembered, and nothing that the history could say anew.
            Place::Taken(Known::Delivered)
        } else if same && last.offset + 1 == position.offset
            || self.declared && !last.has_reached(position)
        {
            Place::Next
        } else {
            Place::Claimed
        }
    }

    /// A publication came from the broker.
    pub(super) fn take(&mut self, publication: Publication, bounds: Bounds, out: &mut Vec<Step>) {
        self.plain_seen |= publication.position.is_none();
        if let Some(hole) = self.hole.as_mut().filter(|hole| !hole.aside) {
            return hole.hold(publication);
        }

        let Some(position) = publication.position.clone() else {
            out.push(Step::Deliver(publication));
            return;
        };
        match self.place(&position, &publication) {
            Place::Next => self.deliver(publication, false, bounds, out),
            Place::Taken(Known::Delivered) => metrics::duplicate_dropped(),
            Place::Taken(Known::False) => out.push(Step::Refuted(1)),
            Place::Taken(Known::Contested) => {
                // Both are delivered, since nobody can tell which is true; and that it is so is declared.
                self.tail = None;
                self.declare(GapReason::HistoryLost, out);
                if self.recent.add_rival(position.offset, &publication) {
                    out.push(Step::Deliver(publication));
                }
                out.push(Step::Refuted(1));
            }
            Place::Claimed => self.question(position, publication, out),
        }
    }

    /// Asks the history about a publication that does not follow.
    fn question(&mut self, position: Position, publication: Publication, out: &mut Vec<Step>) {
        if let Some(hole) = &mut self.hole {
            return hole.put_aside(position);
        }
        self.open_hole(GapReason::HistoryLost, false, out);
        if let Some(hole) = &mut self.hole {
            if hole.aside {
                hole.put_aside(position);
            } else {
                hole.hold(publication);
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
            *self = Self { track: self.track, ..Self::default() };
        }
        if let Some(hole) = &mut self.hole {
            // The history that is being asked may be older than this.
            let reason = GapReason::HistoryLost;
            let loss = position.map(|until| Loss { reason, declare: false, until: Some(until) });
            loss.into_iter().for_each(|loss| hole.lose(loss));
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
        let loss = Loss { reason, declare: self.has_plain(), until: position };
        self.lost(loss, out);
    }

    /// The queue from the broker was full; `plain`: what no history has was among what was dropped.
    pub(super) fn overflowed(&mut self, plain: bool, out: &mut Vec<Step>) {
        let reason = GapReason::Overflow;
        if self.hole.is_none() && self.last.is_none() {
            out.push(Step::Declare(reason));
            return;
        }
        self.lost(Loss { reason, declare: plain, until: None }, out);
    }

    /// Something may be missing at this point.
    fn lost(&mut self, loss: Loss, out: &mut Vec<Step>) {
        if let Some(hole) = &mut self.hole {
            // The history that is being asked may be older than this.
            let (aside, reason) = (hole.aside, loss.reason);
            hole.lose(loss);
            if aside {
                self.declare(reason, out);
            }
            return;
        }
        let Loss { reason, declare, until } = loss;
        match (&self.last, until) {
            (Some(last), Some(until)) if *last == until => {
                // Nothing was missed, whatever was declared.
                self.declared = false;
                if declare {
                    self.declare(reason, out);
                }
            }
            (Some(last), Some(until)) if last.epoch != until.epoch => {
                self.declare(GapReason::HistoryLost, out);
                self.advance(until);
            }
            // Where it stands behind what was delivered the history says what of that was true.
            (Some(_), _) => self.open_hole(reason, declare, out),
            (None, until) => {
                self.declare(reason, out);
                self.last = until;
            }
        }
    }

    /// How long the history is left alone because of false claims.
    fn wait(&self) -> Option<Duration> {
        let doubt = self.doubt.as_ref().filter(|doubt| doubt.last.elapsed() < DOUBT_LASTS)?;
        Some((FIRST_DOUBT * (1 << doubt.claims.min(7).saturating_sub(1))).min(LAST_DOUBT))
    }

    /// `declare`: whatever the history holds, something else may be missing.
    fn open_hole(&mut self, reason: GapReason, declare: bool, out: &mut Vec<Step>) {
        let (ticket, wait) = (next_ticket(), self.wait());
        if wait.is_some() {
            // What comes does not wait for the answer, and must not come before the word.
            self.declare(reason, out);
        }
        out.push(Step::Read(ticket, wait.unwrap_or_default()));
        self.hole = Some(Box::new(Hole::new(ticket, (reason, declare), wait.is_some())));
    }

    /// The history is asked now, for the hole with this ticket.
    pub(super) fn begin(&mut self, ticket: u64) {
        if let Some(hole) = self.hole.as_mut().filter(|hole| hole.ticket == ticket) {
            hole.begin();
        }
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
        let refuted = match history {
            Ok(Some(history)) => self.fill(&mut hole, history, bounds, out),
            nothing => self.go_on_without(&mut hole, nothing.is_ok(), out),
        };
        if refuted > 0 {
            self.remember_false_claims();
            out.push(Step::Refuted(refuted));
        }

        self.go_through(std::mem::take(&mut hole.waiting), bounds, out);
    }

    /// Takes what waited, in its order. A hole that opens on the way holds the rest.
    fn go_through(&mut self, waiting: Vec<Held>, bounds: Bounds, out: &mut Vec<Step>) {
        let overflowed =
            |held: &Held| matches!(held, Held::Loss(Loss { reason: GapReason::Overflow, .. }));
        self.rounds = if waiting.iter().any(overflowed) { self.rounds + 1 } else { 0 };
        for held in waiting {
            match held {
                Held::Publication(publication) => self.take(publication, bounds, out),
                Held::Loss(loss) if self.rounds > MAX_ROUNDS => {
                    // It comes faster than it can be read.
                    self.declare(loss.reason, out);
                    self.declared = true;
                }
                // The history was asked meanwhile, and has more.
                Held::Loss(loss) if self.has_beyond(&loss) => {
                    if loss.declare {
                        self.declare(loss.reason, out);
                    }
                }
                // Which of two epochs came first only the history knows.
                Held::Loss(loss) if self.has_another_epoch(&loss) => {
                    self.open_hole(loss.reason, loss.declare, out);
                }
                Held::Loss(loss) => self.lost(loss, out),
            }
        }
    }

    /// Goes on where the history cannot say what is missing, because there is none or it cannot be read.
    fn go_on_without(&mut self, hole: &mut Hole, is_gone: bool, out: &mut Vec<Step>) -> usize {
        metrics::recovery(false);
        self.declare(hole.reason, out);
        self.declared = true;
        self.tail = None;
        if is_gone {
            // Whatever comes begins anew. No claim is ever borne out here: it is asked less often then.
            self.last = None;
            self.recent.forget();
            return 1;
        }

        let last = self.last.clone();
        let is_behind = |p: &Position| last.as_ref().is_some_and(|last| last.has_reached(p));
        let before = hole.waiting.len();
        hole.waiting.retain(|held| match held {
            Held::Publication(p) => !p.position.as_ref().is_some_and(is_behind),
            Held::Loss(_) => true,
        });
        if hole.waiting.len() < before || hole.claimed.as_ref().is_some_and(is_behind) {
            // They came twice, or what was delivered in their place was false: asked again later.
            self.remember_false_claims();
            self.open_hole(GapReason::HistoryLost, false, out);
        }
        0
    }

    fn has_beyond(&self, loss: &Loss) -> bool {
        let positions = self.last.as_ref().zip(loss.until.as_ref());
        self.hole.is_none() && positions.is_some_and(|(last, until)| last.has_reached(until))
    }

    fn has_another_epoch(&self, loss: &Loss) -> bool {
        let epochs = self.last.as_ref().zip(loss.until.as_ref());
        self.hole.is_none() && epochs.is_some_and(|(last, until)| last.epoch != until.epoch)
    }

    fn remember_false_claims(&mut self) {
        let before = self.doubt.take().filter(|doubt| doubt.last.elapsed() < DOUBT_LASTS);
        let claims = before.map_or(1, |doubt| doubt.claims.saturating_add(1));
        self.doubt = Some(Doubt { claims, last: Instant::now() });
    }

    /// Delivers what the history has of what is missing, and declares what it does not have. Returns how
    /// many claims it refutes; those do not wait any more.
    fn fill(
        &mut self,
        hole: &mut Hole,
        History { top, publications }: History,
        bounds: Bounds,
        out: &mut Vec<Step>,
    ) -> usize {
        let offset = |p: &Publication| p.position.as_ref().map_or(0, |p| p.offset);
        let last = self.last.as_ref().filter(|last| last.epoch == top.epoch).map(|l| l.offset);
        // Something else was delivered in its place: then it is due, and all that follows it.
        let replaced = publications.iter().map(|p| (offset(p), p)).find(|(offset, p)| {
            last.is_some_and(|last| *offset <= last)
                && self.recent.look(*offset, p).is_some_and(|known| known != Known::Delivered)
        });
        let replaced = replaced.map(|(offset, _)| offset);
        let due = replaced.or(last.map(|last| last + 1));
        let rivals = hole.refute_rivals(&top, &publications);
        // What comes by itself has its place behind what is missing. What was published while the
        // subscription was made came nowhere, so all that the history has is missing until then.
        let limit = hole.first_after(last, &top).map_or(top.offset, |offset| offset - 1);

        let first = publications.first().map_or(top.offset + 1, offset);
        let overtaken = last.is_some_and(|last| last > top.offset);
        let filled = due.is_some_and(|due| first <= due) && !overtaken && replaced.is_none();
        metrics::recovery(filled);
        let refuted = hole.refute(&top, limit, self.last.as_ref());
        let refuted = refuted + rivals + usize::from(overtaken || replaced.is_some());
        if !filled || refuted > 0 {
            self.declare(hole.reason, out);
        }

        let due = due.unwrap_or(1).min(if overtaken { top.offset + 1 } else { u64::MAX });
        for publication in publications {
            let offset = offset(&publication);
            let is_new = last.is_none_or(|last| offset > last);
            if is_new && (due..=limit).contains(&offset) {
                self.deliver(publication, true, bounds, out);
                continue;
            }
            let known = self.recent.look(offset, &publication);
            self.recent.prove(offset, &publication);
            if !is_new && known.is_some_and(|known| known != Known::Delivered) {
                // Something false was delivered in its place.
                self.tail = None;
                out.push(Step::Deliver(publication));
            }
        }
        let reached = self.last.as_ref().is_some_and(|last| {
            let further = last.offset > limit && !overtaken;
            last.epoch == top.epoch && (last.offset == limit || further)
        });
        if !reached {
            // Ahead of everything that was kept, or behind what was delivered: what comes now begins
            // there, behind the declaration.
            self.recent.end_at(limit);
            self.tail = None;
            self.advance(Position { offset: limit, ..top });
        }
        self.declared = false;
        self.settled = limit;

        if hole.declare {
            // Of another kind, somewhere among what was filled.
            self.declare(hole.reason, out);
        }
        refuted
    }
}

#[cfg(test)]
#[path = "continuity_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "continuity_simulation_tests.rs"]
mod simulation_tests;
