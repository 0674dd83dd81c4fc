//! Simulates everything that can happen between a publisher and its subscribers, and compares what
//! a [`ChannelSequencer`] delivers with what was published.
//!
//! Tests drive the simulation by seeds, the fuzz target `sequencer` by its input. It is compiled
//! for these two only.

use std::collections::VecDeque;

use bytes::Bytes;

use super::missing_range::{HeldEvent, MAX_WAITING};
use super::{ChannelSequencer, ReplayCache, Step};
use crate::broker::{BrokerError, History, HistoryBounds, Tracking};
use crate::channel::{GapReason, Position, Publication};

pub(super) const BOUNDS: HistoryBounds = HistoryBounds { messages: 100, bytes: 1 << 20 };

/// No head and no history has an offset from here on.
const MAX_OFFSET: u64 = 1_000_000_000_000_000;

/// Most resumed subscribers that are followed at once.
const MAX_SUBSCRIBERS: usize = 4;

pub(super) fn at(epoch: &str, offset: u64) -> Position {
    Position::new(epoch, offset).expect("a good epoch")
}

pub(super) fn durable(epoch: &str, offset: u64) -> Publication {
    let payload = Bytes::from(format!("{epoch}{offset}"));
    Publication { position: Some(at(epoch, offset)), ..plain(payload) }
}

pub(super) fn plain(payload: impl Into<Bytes>) -> Publication {
    let channel = "a".parse().expect("a good name");
    Publication { channel, payload: payload.into(), position: None, cut: None, published: None }
}

pub(super) fn history(epoch: &str, first: u64, top: u64) -> Result<Option<History>, BrokerError> {
    let publications = (first..=top).map(|n| durable(epoch, n)).collect();
    Ok(Some(History { top: at(epoch, top), publications }))
}

/// The sequencer of a channel with a history. `is_durable`: nothing plain is published on it.
pub(super) fn new_sequencer(is_durable: bool) -> ChannelSequencer {
    ChannelSequencer::new(if is_durable { Tracking::CreateDurable } else { Tracking::Create })
}

/// The source of random choices.
pub(super) enum Choices<'c> {
    #[cfg(test)]
    Seeded(fastrand::Rng),
    /// Consumes one or two bytes for each choice.
    Given(std::slice::Iter<'c, u8>),
}

impl Choices<'_> {
    /// A number below `n`; `None` when there is nothing left to choose by.
    fn below(&mut self, n: u32) -> Option<u32> {
        match self {
            #[cfg(test)]
            Self::Seeded(rng) => Some(rng.u32(..n)),
            Self::Given(bytes) if n <= 256 => bytes.next().map(|b| u32::from(*b) % n),
            Self::Given(bytes) => {
                let high = bytes.next()?;
                let low = bytes.next()?;
                Some((u32::from(*high) << 8 | u32::from(*low)) % n)
            }
        }
    }
}

/// The properties of a simulated world.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nature {
    /// How many of a hundred steps are false claims.
    pub(super) attacks: u32,
    /// Plain publications, which have no position, occur too.
    pub(super) plain: bool,
    /// Histories contain anything, so nothing can be promised about deliveries.
    pub(super) lies: bool,
    /// How many publications a history keeps.
    pub(super) kept: u64,
}

/// An entry of the queue from the broker.
enum Queued {
    Publication(Publication),
    Interrupted(Option<Position>),
    Subscribed(Position, bool),
}

type Answer = Result<Option<History>, BrokerError>;

/// A reading of the history. One for a missing range has a ticket, one for a replay cache has none.
struct Reading {
    ticket: Option<u64>,
    begun: bool,
    answer: Option<Answer>,
}

/// A published event, as epoch and offset.
type Published = (u32, u64);

/// A subscriber of the channel, which has to receive everything or be told of a gap.
struct Subscriber {
    /// The index of the last durable publication that was delivered.
    seen: Option<usize>,
    declared: bool,
    /// The number of the last plain publication, and whether a gap was declared after it.
    plain: u64,
    plain_declared: bool,
}

impl Subscriber {
    fn new(seen: Option<usize>, plain: u64, declared: bool) -> Self {
        Self { seen, declared, plain, plain_declared: declared }
    }

    fn hear_plain(&mut self, number: u64) {
        assert!(number > self.plain, "plain {number} twice or out of order");
        let next = number == self.plain + 1;
        assert!(next || self.plain_declared, "lost before plain {number}");

        (self.plain, self.plain_declared) = (number, false);
    }

    fn hear(&mut self, index: usize, may_repeat: bool, is_excused: impl Fn(usize) -> bool) {
        let next = self.seen.map_or(0, |seen| seen + 1);
        if may_repeat && self.declared && index < next {
            return;
        }

        assert!(index >= next, "publication {index} twice or out of order");
        let told = self.declared || (next..index).all(is_excused);
        assert!(told, "lost before publication {index}");

        (self.seen, self.declared) = (Some(index), false);
    }

    fn declare(&mut self) {
        (self.declared, self.plain_declared) = (true, true);
    }
}

/// A minimal Redis, whose messages get lost or come twice, and whose history is trimmed, read late,
/// or lost with the server.
pub(super) struct World<'c> {
    choices: Choices<'c>,
    nature: Nature,
    sequencer: ChannelSequencer,
    out: Vec<Step>,
    epoch: u32,
    top: u64,
    plain: u64,
    forged: u64,
    queue: VecDeque<Queued>,
    published: Vec<Published>,
    readings: Vec<Reading>,
    subscribers: Vec<Subscriber>,
    /// Where something false was delivered; and those of these positions where it can no
    /// longer be noticed.
    taken: Vec<Published>,
    excused: Vec<Published>,
    /// The number of all readings, the number of those that began at once, and how many events
    /// other than false claims may have caused them.
    pub(super) reads: usize,
    at_once: usize,
    reasons: usize,
}

fn epoch(epoch: u32) -> String {
    format!("e{epoch}x")
}

fn place(position: &Position) -> Published {
    let epoch = position.epoch.trim_matches(['e', 'x']).parse();
    (epoch.expect("one of ours"), position.offset)
}

impl<'c> World<'c> {
    pub(super) fn new(choices: Choices<'c>, nature: Nature) -> Self {
        let mut sequencer = new_sequencer(!nature.plain);
        let mut out = Vec::new();
        sequencer.subscribed(Some(at(&epoch(1), 0)), true, &mut out);

        Self {
            choices,
            nature,
            sequencer,
            out,
            epoch: 1,
            top: 0,
            plain: 0,
            forged: 0,
            queue: VecDeque::new(),
            published: Vec::new(),
            readings: Vec::new(),
            subscribers: vec![Subscriber::new(None, 0, false)],
            taken: Vec::new(),
            excused: Vec::new(),
            reads: 0,
            at_once: 0,
            reasons: 1,
        }
    }

    /// Runs for this many steps or until the choices are used up, and then until nothing is
    /// left to happen.
    pub(super) fn live(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.step().is_none() {
                break;
            }
            self.carry_out();
        }

        // A sequencer that never stops asking for the history is noticed here.
        self.choices = Choices::Given([].iter());
        let mut left = 4 * (self.queue.len() + self.readings.len()) + 400;

        while !self.queue.is_empty() || !self.readings.is_empty() {
            let is_queue_first = self.nature.kept.is_multiple_of(2) && !self.queue.is_empty();
            if is_queue_first || self.readings.is_empty() {
                self.arrive();
            } else {
                self.move_reading(self.readings.len() - 1);
            }

            self.carry_out();
            left = left.checked_sub(1).expect("it becomes quiet");
        }

        self.check_end();
    }

    /// Lets one thing happen; `None` when there is nothing left to choose by.
    fn step(&mut self) -> Option<()> {
        if self.nature.attacks > 0 && self.choices.below(100)? < self.nature.attacks {
            let forged = self.forged()?;
            self.sequencer.sequence(forged, BOUNDS, &mut self.out);
            return Some(());
        }

        match self.choices.below(100)? {
            0..4 if self.nature.plain => {
                self.plain += 1;
                self.queue.push_back(Queued::Publication(plain(format!("plain{}", self.plain))));
            }
            0..45 => {
                self.top += 1;
                self.published.push((self.epoch, self.top));
                self.queue.push_back(Queued::Publication(durable(&epoch(self.epoch), self.top)));
            }
            45..80 => self.arrive(),
            // The connection is lost together with the messages that were on their way.
            80..84 => {
                let lost = self.choices.below(8)?;
                let is_known = self.choices.below(8)? > 0;
                self.lose_end(lost);
                self.queue.push_back(Queued::Interrupted(is_known.then(|| self.position())));
            }
            84..86 => self.overflow(),
            // The server is lost together with its last writes.
            86 => {
                let lost = self.choices.below(8)?;
                self.lose_end(lost);
                (self.epoch, self.top) = (self.epoch + 1, 0);
                self.queue.push_back(Queued::Interrupted(Some(self.position())));
            }
            87 => {
                let is_fresh = self.choices.below(8)? == 0;
                self.queue.push_back(Queued::Subscribed(self.position(), is_fresh));
            }
            88..90 => self.resume()?,
            _ if self.readings.is_empty() => self.arrive(),
            _ => {
                let which = self.choices.below(self.readings.len().min(256) as u32)?;
                self.move_reading(which as usize);
            }
        }

        Some(())
    }

    fn position(&self) -> Position {
        at(&epoch(self.epoch), self.top)
    }

    /// A forged claim: close to the truth, anywhere, or a repetition of a real publication.
    fn forged(&mut self) -> Option<Publication> {
        self.forged += 1;

        let of = match self.choices.below(16)? {
            0 => self.epoch + 1,
            1 => self.epoch.saturating_sub(1),
            _ => self.epoch,
        };

        let offset = match self.choices.below(8)? {
            0 => u64::from(self.choices.below(60_000)?) + 1,
            1 => MAX_OFFSET - 1,
            2 => u64::from(self.choices.below(256)?) % self.top.max(1) + 1,
            near => (self.top + u64::from(near)).saturating_sub(4).max(1),
        };

        let truth = durable(&epoch(of), offset);
        // A publication that has not arrived yet cannot be repeated by anybody.
        let is_to_come = |queued: &Queued| matches!(queued, Queued::Publication(p) if p.position == truth.position);

        if self.choices.below(8)? == 0
            && self.published.contains(&(of, offset))
            && !self.queue.iter().any(is_to_come)
        {
            return Some(truth);
        }

        // Every two successive forgeries have the same payload.
        let payload = format!("forged{}", self.forged / 2);
        Some(Publication { payload: payload.into(), ..truth })
    }

    /// The next entry of the queue arrives, sometimes twice.
    fn arrive(&mut self) {
        let queued = self.queue.pop_front();
        if let Some(Queued::Interrupted(Some(stands)) | Queued::Subscribed(stands, _)) = &queued {
            let stands = place(stands);
            self.excuse(|place| place == stands);
        }

        let sequencer = &mut self.sequencer;
        let out = &mut self.out;
        match queued {
            Some(Queued::Publication(publication)) => {
                let is_durable = publication.position.is_some();
                if is_durable && self.choices.below(256).is_some_and(|n| n < 8) {
                    self.reasons += 1;
                    sequencer.sequence(publication.clone(), BOUNDS, out);
                }

                sequencer.sequence(publication, BOUNDS, out);
            }
            Some(Queued::Interrupted(position)) => {
                self.reasons += 1;
                sequencer.interrupted(GapReason::BrokerReconnected, position, out);
            }
            Some(Queued::Subscribed(position, fresh)) => {
                self.reasons += 1;
                sequencer.subscribed(Some(position.clone()), fresh, out);
                if fresh {
                    // The gaps that the previous subscriber was told of end with it. The next one
                    // begins at the sequencer's position, or at that of the history if the
                    // sequencer's is false.
                    let begins = [sequencer.position(), Some(&position)];
                    let index = |begin: &Position| {
                        self.published.iter().rposition(|published| *published == place(begin))
                    };

                    let seen = begins.into_iter().flatten().find_map(index);

                    self.subscribers = vec![Subscriber::new(seen, 0, true)];
                    self.subscribers[0].declared = seen.is_none();
                }
            }
            None => {}
        }
    }

    /// The publications at the end of the queue are lost on their way.
    fn lose_end(&mut self, lost: u32) {
        for _ in 0..lost {
            if !matches!(self.queue.back(), Some(Queued::Publication(_))) {
                break;
            }
            self.queue.pop_back();
        }
    }

    /// The queue was full: the publications at its front are lost, and the overflow takes
    /// their place.
    fn overflow(&mut self) {
        let mut lost = 0;
        let mut is_plain = false;
        while let Some(Queued::Publication(publication)) = self.queue.front()
            && lost < 3
        {
            is_plain |= publication.position.is_none();
            lost += 1;
            self.queue.pop_front();
        }

        if lost > 0 {
            self.reasons += 1;
            self.sequencer.overflowed(is_plain, &mut self.out);
        }
    }

    /// The answer of a reading at this moment.
    fn answer(&mut self) -> Answer {
        match self.choices.below(256) {
            Some(0..10) => {
                self.reasons += 1;
                return Err(BrokerError::TimedOut);
            }
            Some(10..12) => {
                // The history was from before a failover, and a new one has begun.
                self.reasons += 1;
                (self.epoch, self.top) = (self.epoch + 1, 0);
                return Ok(None);
            }
            Some(kind) if self.nature.lies => {
                let number = u64::from(self.choices.below(60_000).unwrap_or_default());
                let top = match kind % 4 {
                    0 => number,
                    1 => (self.top + number % 16).saturating_sub(8),
                    2 => MAX_OFFSET - 1 - number % 4,
                    _ => self.top,
                };

                let of = epoch(self.epoch + u32::from(kind % 5 == 0));
                return history(&of, top.saturating_sub(number % 128) + 1, top);
            }
            _ => {}
        }

        let first = (self.top + 1).saturating_sub(self.nature.kept).max(1);
        let of = self.epoch;
        self.excuse(|place| place.0 == of && place.1 < first);
        history(&epoch(of), first, self.top)
    }

    /// A reading goes one step further: it begins, it is read, or it is answered.
    fn move_reading(&mut self, which: usize) {
        let reading = &mut self.readings[which];
        if let (Some(ticket), false) = (reading.ticket, reading.begun) {
            reading.begun = true;
            self.sequencer.begin_reading(ticket);
        } else if reading.answer.is_none() {
            let answer = self.answer();
            self.readings[which].answer = Some(answer);
        } else {
            let Reading { ticket, answer, .. } = self.readings.swap_remove(which);
            let answer = answer.unwrap_or(Ok(None));

            match ticket {
                Some(ticket) => self.sequencer.apply_history(ticket, answer, BOUNDS, &mut self.out),
                None => self.complete_cache(answer),
            }
        }
    }

    /// Completes the replay cache, as `Gateway::fill_cache` does.
    fn complete_cache(&mut self, answer: Answer) {
        let sequencer = &mut self.sequencer;
        let of = sequencer.last().map(|last| last.epoch.clone());
        let is_whole = match (answer.ok().flatten(), &mut sequencer.cache) {
            (Some(history), Some(cache)) if of.as_ref() == Some(&history.top.epoch) => {
                cache.complete(history, BOUNDS)
            }
            _ => false,
        };

        if !is_whole {
            sequencer.cache = None;
        }
    }

    /// A client resumes that has everything up to one of the latest publications.
    fn resume(&mut self) -> Option<()> {
        let back = self.choices.below(8)? as usize;
        let index = self.subscribers[0].seen.and_then(|seen| seen.checked_sub(back));
        let Some(index) = index else { return Some(()) };

        let (of, offset) = self.published[index];
        let Some((recovered, publications)) = self.look(&at(&epoch(of), offset)) else {
            return Some(());
        };

        let first = &self.subscribers[0];
        let mut subscriber = Subscriber::new(Some(index), first.plain, !recovered);
        subscriber.plain_declared |= first.plain_declared;

        if self.subscribers.len() == MAX_SUBSCRIBERS {
            self.subscribers.remove(1);
        }
        self.subscribers.push(subscriber);
        let it = self.subscribers.len() - 1;

        for publication in publications {
            self.hear(it, &publication);
        }

        Some(())
    }

    /// Compares a position with the sequencer's, as `Gateway::plan_resume` does. Returns whether
    /// everything is there, and the publications; `None` means that the client has to wait.
    fn look(&mut self, since: &Position) -> Option<(bool, Vec<Publication>)> {
        let sequencer = &mut self.sequencer;
        let Some(last) = sequencer.position().cloned() else { return Some((false, vec![])) };
        let complete = sequencer.is_complete_since(since);

        if since.epoch != last.epoch {
            return Some((false, vec![]));
        }
        if since.offset > last.offset {
            return None;
        }
        if *since == last {
            return Some((complete, vec![]));
        }

        if let Some(cache) = sequencer.cache.as_mut().filter(|cache| cache.whole) {
            let publications = cache.since(since.offset).filter(|_| complete);
            return Some((publications.is_some(), publications.unwrap_or_default()));
        }

        if self.readings.iter().all(|reading| reading.ticket.is_some()) {
            sequencer.cache = Some(ReplayCache::begin(last.offset));
            self.readings.push(Reading { ticket: None, begun: true, answer: None });
        }

        None
    }

    /// A subscriber receives a publication.
    fn hear(&mut self, who: usize, publication: &Publication) {
        let text = std::str::from_utf8(&publication.payload).unwrap_or_default();
        if self.nature.lies {
            return;
        }

        if text.starts_with("forged") {
            return self.taken.extend(publication.position.as_ref().map(place));
        }
        if let Some(number) = text.strip_prefix("plain").and_then(|n| n.parse().ok()) {
            return self.subscribers[who].hear_plain(number);
        }

        let place = publication.position.as_ref().map(place);
        let index = self.published.iter().rposition(|published| Some(*published) == place);

        // Behind a declared gap a true publication may come again: where a false one was believed,
        // and where the history had a new epoch before the queue did.
        let may_repeat = self.nature.attacks > 0 || self.epoch > 1;

        let mut subscribers = std::mem::take(&mut self.subscribers);
        let index = index.expect("it was published");
        subscribers[who].hear(index, may_repeat, |index| self.is_excused(index));
        self.subscribers = subscribers;
    }

    fn is_excused(&self, index: usize) -> bool {
        self.excused.contains(&self.published[index])
    }

    /// Excuses false deliveries that cannot be noticed: the history is not read because it stands
    /// at the same position, or it does not reach back that far.
    fn excuse(&mut self, is_so: impl Fn(Published) -> bool) {
        self.excused.extend(self.taken.iter().filter(|place| is_so(**place)));
    }

    fn carry_out(&mut self) {
        for step in std::mem::take(&mut self.out) {
            match step {
                Step::Read(ticket, wait) => {
                    self.reads += 1;
                    self.at_once += usize::from(wait.is_zero());
                    self.readings.push(Reading {
                        ticket: Some(ticket),
                        begun: false,
                        answer: None,
                    });
                }
                Step::Refuted(_) => {}
                Step::Declare(_) => self.subscribers.iter_mut().for_each(Subscriber::declare),
                Step::Deliver(publication) => {
                    for who in 0..self.subscribers.len() {
                        self.hear(who, &publication);
                    }
                }
            }
        }

        // A server that ends may cause several readings.
        let most = 4 * self.reasons + 4;
        assert!(
            self.at_once <= most,
            "{} readings at once for {} reasons",
            self.at_once,
            self.reasons
        );

        self.check_room();
    }

    /// Checks that everything that is kept is bounded.
    fn check_room(&self) {
        let waiting = self.sequencer.missing.as_ref().map_or(&[][..], |missing| &missing.waiting);
        let publications = waiting.iter().filter(|held| matches!(held, HeldEvent::Publication(_)));
        assert!(publications.count() <= MAX_WAITING, "too much waits");

        let cache = self.sequencer.cache.as_ref().map_or(0, |cache| cache.publications.len());
        assert!(cache <= BOUNDS.messages, "{cache} publications in a cache");
    }

    fn check_end(&self) {
        if self.nature.lies {
            return;
        }
        for subscriber in &self.subscribers {
            let mut missing = subscriber.seen.map_or(0, |seen| seen + 1)..self.published.len();
            let told = subscriber.declared || missing.all(|index| self.is_excused(index));
            assert!(told, "the end is missing in silence");

            let has_all = subscriber.plain == self.plain;
            assert!(has_all || subscriber.plain_declared, "plain ones are missing in silence");
        }
    }
}

/// Runs the simulation once, by the input of the fuzz target `sequencer`.
#[cfg(fuzzing)]
pub fn live_by(input: &[u8]) {
    let Some(([attacks, kind, kept], rest)) = input.split_first_chunk() else { return };
    let attacks = [0, 4, 40][usize::from(attacks % 3)];
    let plain = kind % 2 == 1;
    let lies = kind % 8 > 5;
    let nature = Nature { attacks, plain, lies, kept: 1 + u64::from(kept % 40) };
    World::new(Choices::Given(rest.iter()), nature).live(4000);
}
