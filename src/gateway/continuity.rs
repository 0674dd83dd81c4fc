//! Follows one channel's durable publications by offset. It decides which of them are delivered,
//! which are duplicates, which are missing and have to be read, and where a gap is declared.
//!
//! Pure: no broker, no sockets. Invariants: within an epoch publications leave in the order of
//! their offsets, each once; an offset is passed over only behind a declared gap. While the history
//! is read for a missing range, everything later waits, bounded. A position that comes with a
//! publication is a claim, since anyone who may publish can write one: the history decides about
//! positions that do not follow the last one.

mod missing_range;
mod recent;
mod replay_cache;
#[cfg(any(test, fuzzing))]
pub(super) mod simulation;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use self::missing_range::{HeldEvent, Loss, MissingRange};
use self::recent::{Known, Recent};
pub(super) use self::replay_cache::{ReplayCache, caches_are_full};
use crate::broker::{BrokerError, History, HistoryBounds, Tracking};
use crate::channel::{GapReason, Position, Publication};
use crate::metrics;

/// Most readings in a row for what did not fit behind a missing range.
const MAX_ROUNDS: u32 = 8;

/// After false claims, the wait before the channel's history is read again. It begins with the
/// first value and doubles with each further false claim, up to the second one.
const FIRST_DOUBT: Duration = Duration::from_millis(100);
const LAST_DOUBT: Duration = Duration::from_millis(6400);
/// False claims are forgotten when none has followed for this long.
const DOUBT_LASTS: Duration = Duration::from_secs(60);

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Step {
    Deliver(Publication),
    Declare(GapReason),
    /// Wait this long, call [`ChannelSequencer::begin_reading`], read the history, and answer with
    /// this ticket.
    Read(u64, Duration),
    /// Publications came with positions that the history does not have; this many are known of.
    Refuted(usize),
}

/// The recent false claims.
struct Doubt {
    claims: u32,
    last: Instant,
}

/// How a publication's position relates to what was delivered.
enum Arrival {
    /// It is the next one, or any position is acceptable.
    Next,
    /// Something was delivered at this position already.
    Taken(Known),
    /// It does not follow the last one, so the history has to be asked.
    Claimed,
}

/// What is known of one channel's publications.
#[derive(Default)]
pub(super) struct ChannelSequencer {
    tracking: Tracking,
    plain_seen: bool,
    /// The position that was delivered last.
    last: Option<Position>,
    /// A possible loss after `last` was declared, so the next publication may have any position.
    declared: bool,
    /// Where the latest gap was declared.
    told: Option<Position>,
    recent: Recent,
    /// Everything in the history up to this offset was delivered from it or declared.
    settled: u64,
    missing: Option<Box<MissingRange>>,
    /// How many missing ranges in a row were opened because too much waited behind the one before.
    rounds: u32,
    doubt: Option<Doubt>,
    pub(super) cache: Option<ReplayCache>,
}

/// A ticket is never given twice, so a late answer for a channel that was given up matches no
/// missing range of its successor.
fn next_ticket() -> u64 {
    static TICKETS: AtomicU64 = AtomicU64::new(1);
    TICKETS.fetch_add(1, Ordering::Relaxed)
}

impl ChannelSequencer {
    pub(super) fn new(tracking: Tracking) -> Self {
        Self { tracking, ..Self::default() }
    }

    pub(super) fn follow(&mut self, tracking: Tracking) {
        self.tracking = self.tracking.max(tracking);
    }

    pub(super) fn last(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    /// The position that the next publication follows; `None` if that is not known.
    pub(super) fn position(&self) -> Option<&Position> {
        self.last.as_ref().filter(|_| !self.declared)
    }

    /// True if a client at `since` that receives all later events has missed nothing: no plain
    /// publication was seen, no gap was declared since, and it is known what follows `last`.
    pub(super) fn is_complete_since(&self, since: &Position) -> bool {
        let told = self.told.as_ref().is_some_and(|told| told.has_reached(since));
        !self.plain_seen && !self.declared && !told
    }

    /// True if plain publications are possible here, so that even a complete history may not
    /// contain everything.
    fn has_plain(&self) -> bool {
        self.tracking < Tracking::CreateDurable || self.plain_seen
    }

    fn advance(&mut self, position: Position) {
        let last = self.last.replace(position);
        let epoch = self.last.as_ref().map(|last| &last.epoch);

        if last.is_none_or(|last| Some(&last.epoch) != epoch) {
            self.cache = None;
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

    /// Delivers a publication and remembers its position, if it has one. `proven`: the publication
    /// is in the history.
    fn deliver(
        &mut self,
        publication: Publication,
        proven: bool,
        bounds: HistoryBounds,
        out: &mut Vec<Step>,
    ) {
        if let Some(position) = publication.position.clone() {
            let offset = position.offset;
            self.advance(position);
            self.recent.push(offset, &publication, proven);
        }

        // A replay cache has no missing ranges: it ends where a publication does not follow.
        if self.cache.as_mut().is_some_and(|cache| !cache.push(&publication, bounds)) {
            self.cache = None;
        }

        out.push(Step::Deliver(publication));
    }

    fn classify(&self, position: &Position, publication: &Publication) -> Arrival {
        let Some(last) = &self.last else { return Arrival::Next };
        let same = last.epoch == position.epoch;

        if let Some(known) = self.recent.lookup(position.offset, publication).filter(|_| same) {
            Arrival::Taken(known)
        } else if same && position.offset <= self.settled {
            // The offset is too old to be remembered, and the history has nothing new to
            // say about it.
            Arrival::Taken(Known::Delivered)
        } else if same && last.offset + 1 == position.offset
            || self.declared && !last.has_reached(position)
        {
            Arrival::Next
        } else {
            Arrival::Claimed
        }
    }

    /// Handles a publication from the broker.
    pub(super) fn sequence(
        &mut self,
        publication: Publication,
        bounds: HistoryBounds,
        out: &mut Vec<Step>,
    ) {
        self.plain_seen |= publication.position.is_none();
        // While the history is read, its answer goes first.
        if let Some(missing) = self.missing.as_mut().filter(|missing| !missing.aside) {
            return missing.hold(publication);
        }

        let Some(position) = publication.position.clone() else {
            out.push(Step::Deliver(publication));
            return;
        };

        match self.classify(&position, &publication) {
            Arrival::Next => self.deliver(publication, false, bounds, out),
            Arrival::Taken(Known::Delivered) => metrics::duplicate_dropped(),
            Arrival::Taken(Known::False) => out.push(Step::Refuted(1)),
            Arrival::Taken(Known::Contested) => {
                // Both are delivered, since nobody can tell which is true, and a gap is declared.
                self.cache = None;
                self.declare(GapReason::HistoryLost, out);
                if self.recent.add_rival(position.offset, &publication) {
                    out.push(Step::Deliver(publication));
                }
                out.push(Step::Refuted(1));
            }
            Arrival::Claimed => self.question(position, publication, out),
        }
    }

    /// Asks the history about a publication that does not follow the last one.
    fn question(&mut self, position: Position, publication: Publication, out: &mut Vec<Step>) {
        if let Some(missing) = &mut self.missing {
            return missing.put_aside(position);
        }

        self.open_missing_range(GapReason::HistoryLost, false, out);
        if let Some(missing) = &mut self.missing {
            if missing.aside {
                missing.put_aside(position);
            } else {
                missing.hold(publication);
            }
        }
    }

    /// The subscription is live. `fresh`: it was not live before.
    pub(super) fn subscribed(
        &mut self,
        position: Option<Position>,
        fresh: bool,
        out: &mut Vec<Step>,
    ) {
        if fresh {
            *self = Self { tracking: self.tracking, ..Self::default() };
        }

        if let Some(missing) = &mut self.missing {
            // The history may have been read before it reached this position.
            let reason = GapReason::HistoryLost;
            let loss = position.map(|until| Loss { reason, declare: false, until: Some(until) });
            loss.into_iter().for_each(|loss| missing.lose(loss));
            return;
        }

        match (&self.last, position) {
            (_, None) => {}
            (None, Some(position)) => self.advance(position),
            (Some(last), Some(position)) if last.has_reached(&position) => {}
            (Some(last), Some(position)) if last.epoch == position.epoch => {
                self.open_missing_range(GapReason::HistoryLost, false, out);
            }
            (Some(_), Some(position)) => {
                self.declare(GapReason::HistoryLost, out);
                self.advance(position);
            }
        }
    }

    /// Publications may be missing at this point. `position`: where the history stands, if
    /// that is known.
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

    /// The queue from the broker was full. `plain`: plain publications, which no history has, were
    /// among those dropped.
    pub(super) fn overflowed(&mut self, plain: bool, out: &mut Vec<Step>) {
        let reason = GapReason::Overflow;
        if self.missing.is_none() && self.last.is_none() {
            out.push(Step::Declare(reason));
            return;
        }

        self.lost(Loss { reason, declare: plain, until: None }, out);
    }

    /// Publications may be missing at this point.
    fn lost(&mut self, loss: Loss, out: &mut Vec<Step>) {
        if let Some(missing) = &mut self.missing {
            // The history may have been read before this loss.
            let aside = missing.aside;
            let reason = loss.reason;
            missing.lose(loss);

            if aside {
                self.declare(reason, out);
            }
            return;
        }

        let Loss { reason, declare, until } = loss;

        match (&self.last, until) {
            (Some(last), Some(until)) if *last == until => {
                // Nothing was missed, whatever was declared before.
                self.declared = false;
                if declare {
                    self.declare(reason, out);
                }
            }
            (Some(last), Some(until)) if last.epoch != until.epoch => {
                self.declare(GapReason::HistoryLost, out);
                self.advance(until);
            }
            // If the history stands behind what was delivered, reading it shows what of
            // that was true.
            (Some(_), _) => self.open_missing_range(reason, declare, out),
            (None, until) => {
                self.declare(reason, out);
                self.last = until;
            }
        }
    }

    /// How long the next question to the history waits because of false claims; `None` if
    /// there are none.
    fn wait(&self) -> Option<Duration> {
        let doubt = self.doubt.as_ref().filter(|doubt| doubt.last.elapsed() < DOUBT_LASTS)?;
        Some((FIRST_DOUBT * (1 << doubt.claims.min(7).saturating_sub(1))).min(LAST_DOUBT))
    }

    /// Opens a missing range and has the history read. `declare`: something else may be missing,
    /// whatever the history holds.
    fn open_missing_range(&mut self, reason: GapReason, declare: bool, out: &mut Vec<Step>) {
        let ticket = next_ticket();
        let wait = self.wait();

        if wait.is_some() {
            // Publications that come now do not wait for the answer, so the gap has to be
            // declared first.
            self.declare(reason, out);
        }

        out.push(Step::Read(ticket, wait.unwrap_or_default()));
        self.missing = Some(Box::new(MissingRange::new(ticket, (reason, declare), wait.is_some())));
    }

    /// The history is being asked from now on, for the missing range with this ticket.
    pub(super) fn begin_reading(&mut self, ticket: u64) {
        if let Some(missing) = self.missing.as_mut().filter(|missing| missing.ticket == ticket) {
            missing.begin();
        }
    }

    /// The history was read, for the missing range with this ticket.
    pub(super) fn apply_history(
        &mut self,
        ticket: u64,
        history: Result<Option<History>, BrokerError>,
        bounds: HistoryBounds,
        out: &mut Vec<Step>,
    ) {
        let Some(mut missing) = self.missing.take_if(|missing| missing.ticket == ticket) else {
            return;
        };

        let refuted = match history {
            Ok(Some(history)) => self.fill(&mut missing, history, bounds, out),
            nothing => self.go_on_without(&mut missing, nothing.is_ok(), out),
        };

        if refuted > 0 {
            self.remember_false_claims();
            out.push(Step::Refuted(refuted));
        }

        self.replay_held(std::mem::take(&mut missing.waiting), bounds, out);
    }

    /// Processes what waited, in its order. A missing range that opens on the way holds the rest.
    fn replay_held(&mut self, waiting: Vec<HeldEvent>, bounds: HistoryBounds, out: &mut Vec<Step>) {
        let overflowed = |held: &HeldEvent| {
            matches!(held, HeldEvent::Loss(Loss { reason: GapReason::Overflow, .. }))
        };
        self.rounds = if waiting.iter().any(overflowed) { self.rounds + 1 } else { 0 };

        for held in waiting {
            match held {
                HeldEvent::Publication(publication) => self.sequence(publication, bounds, out),
                HeldEvent::Loss(loss) if self.rounds > MAX_ROUNDS => {
                    // Publications come faster than the history can be read.
                    self.declare(loss.reason, out);
                    self.declared = true;
                }
                // The history was read after this loss, and reaches beyond it.
                HeldEvent::Loss(loss) if self.has_beyond(&loss) => {
                    if loss.declare {
                        self.declare(loss.reason, out);
                    }
                }
                // Only the history knows which of two epochs came first.
                HeldEvent::Loss(loss) if self.has_another_epoch(&loss) => {
                    self.open_missing_range(loss.reason, loss.declare, out);
                }
                HeldEvent::Loss(loss) => self.lost(loss, out),
            }
        }
    }

    /// Continues where the history cannot say what is missing, because there is none or it cannot
    /// be read.
    fn go_on_without(
        &mut self,
        missing: &mut MissingRange,
        is_gone: bool,
        out: &mut Vec<Step>,
    ) -> usize {
        metrics::recovery(false);
        self.declare(missing.reason, out);
        self.declared = true;
        self.cache = None;

        if is_gone {
            // Whatever comes begins anew. No claim can ever be confirmed without a history, so it
            // counts as a false claim and the history is asked less often.
            self.last = None;
            self.recent.forget();
            return 1;
        }

        let last = self.last.clone();
        let is_behind = |p: &Position| last.as_ref().is_some_and(|last| last.has_reached(p));
        let before = missing.waiting.len();
        missing.waiting.retain(|held| match held {
            HeldEvent::Publication(p) => !p.position.as_ref().is_some_and(is_behind),
            HeldEvent::Loss(_) => true,
        });

        if missing.waiting.len() < before || missing.claimed.as_ref().is_some_and(is_behind) {
            // Either these are duplicates, or something false was delivered in their place: the
            // history is asked again later.
            self.remember_false_claims();
            self.open_missing_range(GapReason::HistoryLost, false, out);
        }

        0
    }

    fn has_beyond(&self, loss: &Loss) -> bool {
        let positions = self.last.as_ref().zip(loss.until.as_ref());
        self.missing.is_none() && positions.is_some_and(|(last, until)| last.has_reached(until))
    }

    fn has_another_epoch(&self, loss: &Loss) -> bool {
        let epochs = self.last.as_ref().zip(loss.until.as_ref());
        self.missing.is_none() && epochs.is_some_and(|(last, until)| last.epoch != until.epoch)
    }

    fn remember_false_claims(&mut self) {
        let before = self.doubt.take().filter(|doubt| doubt.last.elapsed() < DOUBT_LASTS);
        let claims = before.map_or(1, |doubt| doubt.claims.saturating_add(1));
        self.doubt = Some(Doubt { claims, last: Instant::now() });
    }

    /// Delivers the missing publications that the history has, and declares a gap for those that
    /// it does not have. Returns how many claims the history refutes; the refuted publications
    /// stop waiting.
    fn fill(
        &mut self,
        missing: &mut MissingRange,
        History { top, publications }: History,
        bounds: HistoryBounds,
        out: &mut Vec<Step>,
    ) -> usize {
        let offset = |p: &Publication| p.position.as_ref().map_or(0, |p| p.offset);
        let last = self.last.as_ref().filter(|last| last.epoch == top.epoch).map(|l| l.offset);

        // If something else was delivered in a publication's place, that publication is due, and
        // all that follow it.
        let replaced = publications.iter().map(|p| (offset(p), p)).find(|(offset, p)| {
            last.is_some_and(|last| *offset <= last)
                && self.recent.lookup(*offset, p).is_some_and(|known| known != Known::Delivered)
        });
        let replaced = replaced.map(|(offset, _)| offset);
        let due = replaced.or(last.map(|last| last + 1));

        let rivals = missing.refute_rivals(&top, &publications);

        // Publications that wait come after those that are missing, so the history is delivered up
        // to the first of them. While a subscription is being made, publications arrive nowhere:
        // the history is the only source of everything up to that point.
        let limit = missing.first_after(last, &top).map_or(top.offset, |offset| offset - 1);

        let first = publications.first().map_or(top.offset + 1, offset);
        let overtaken = last.is_some_and(|last| last > top.offset);
        let filled = due.is_some_and(|due| first <= due) && !overtaken && replaced.is_none();
        metrics::recovery(filled);

        let refuted = missing.refute(&top, limit, self.last.as_ref());
        let refuted = refuted + rivals + usize::from(overtaken || replaced.is_some());

        if !filled || refuted > 0 {
            self.declare(missing.reason, out);
        }

        let due = due.unwrap_or(1).min(if overtaken { top.offset + 1 } else { u64::MAX });
        for publication in publications {
            let offset = offset(&publication);
            let is_new = last.is_none_or(|last| offset > last);
            if is_new && (due..=limit).contains(&offset) {
                self.deliver(publication, true, bounds, out);
                continue;
            }

            let known = self.recent.lookup(offset, &publication);
            self.recent.prove(offset, &publication);
            if !is_new && known.is_some_and(|known| known != Known::Delivered) {
                // Something false was delivered in its place.
                self.cache = None;
                out.push(Step::Deliver(publication));
            }
        }

        let reached = self.last.as_ref().is_some_and(|last| {
            let further = last.offset > limit && !overtaken;
            last.epoch == top.epoch && (last.offset == limit || further)
        });

        if !reached {
            // The history is ahead of everything that was kept, or behind what was delivered: the
            // next publication continues from the limit, behind the declared gap.
            self.recent.end_at(limit);
            self.cache = None;
            self.advance(Position { offset: limit, ..top });
        }
        self.declared = false;
        self.settled = limit;

        if missing.declare {
            // Something other than what was filled, such as a plain publication, may be
            // missing in between.
            self.declare(missing.reason, out);
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
