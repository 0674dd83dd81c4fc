//! Tests of `continuity`: each case, and a simulation with a seed of everything that can happen between
//! a publisher and a subscriber.

use bytes::Bytes;

use super::*;

const BOUNDS: Bounds = Bounds { messages: 100, bytes: 1 << 20 };

fn at(epoch: &str, offset: u64) -> Position {
    Position::new(epoch, offset).unwrap()
}

fn durable(epoch: &str, offset: u64) -> Publication {
    Publication {
        channel: "a".parse().unwrap(),
        payload: Bytes::from(format!("{epoch}{offset}")),
        position: Some(at(epoch, offset)),
        published: None,
    }
}

fn plain(text: &str) -> Publication {
    let payload = Bytes::copy_from_slice(text.as_bytes());
    Publication { channel: "a".parse().unwrap(), payload, position: None, published: None }
}

fn history(epoch: &str, first: u64, top: u64) -> Result<Option<History>, BrokerError> {
    let publications = (first..=top).map(|n| durable(epoch, n)).collect();
    Ok(Some(History { top: at(epoch, top), publications }))
}

/// The steps as short words, and no more of them.
fn words(steps: &mut Vec<Step>) -> Vec<String> {
    let word = |step| match step {
        Step::Deliver(p) => String::from_utf8_lossy(&p.payload).into_owned(),
        Step::Declare(reason) => format!("gap:{}", reason.label()),
        Step::Read(_) => "read".to_owned(),
    };
    steps.drain(..).map(word).collect()
}

struct Case(Flow, Vec<Step>);

/// The ticket of the hole that is open.
fn ticket(flow: &Flow) -> u64 {
    flow.hole.as_ref().map_or(0, |hole| hole.ticket)
}

impl Case {
    /// A flow that has delivered `e5`.
    fn new(is_durable: bool) -> Self {
        let mut flow = Flow::new(is_durable);
        let mut steps = Vec::new();
        flow.subscribed(Some(at("e", 4)), true, &mut steps);
        flow.take(durable("e", 5), BOUNDS, &mut steps);
        assert_eq!(words(&mut steps), ["e5"]);
        Self(flow, steps)
    }

    fn take(&mut self, publication: Publication) -> Vec<String> {
        self.0.take(publication, BOUNDS, &mut self.1);
        words(&mut self.1)
    }

    fn interrupted(&mut self, position: Option<Position>) -> Vec<String> {
        self.0.interrupted(GapReason::BrokerReconnected, position, &mut self.1);
        words(&mut self.1)
    }

    fn read(&mut self, result: Result<Option<History>, BrokerError>) -> Vec<String> {
        let ticket = ticket(&self.0);
        self.0.read(ticket, result, BOUNDS, &mut self.1);
        words(&mut self.1)
    }
}

#[test]
fn r12_duplicates_and_old_publications_are_dropped() {
    let mut case = Case::new(true);
    for old in [5, 1, 4] {
        assert!(case.take(durable("e", old)).is_empty());
    }
    assert_eq!(case.take(durable("e", 6)), ["e6"]);
}

#[test]
fn a_hole_is_filled_and_what_came_meanwhile_waits() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("e", 8)), ["read"]);
    assert!(case.take(plain("p")).is_empty());
    assert!(case.take(durable("e", 9)).is_empty());
    assert_eq!(case.read(history("e", 1, 8)), ["e6", "e7", "e8", "p", "e9"]);
    assert_eq!(case.take(durable("e", 10)), ["e10"]);
}

#[test]
fn a_hole_that_cannot_be_filled_is_declared_before_what_follows() {
    let lost = "gap:history_lost";
    for (result, expected) in [
        (history("e", 7, 8), vec![lost, "e7", "e8", "e9"]),
        (history("f", 1, 2), vec![lost, "f1", "f2", "read"]),
        (Ok(None), vec![lost, "e9"]),
        (Err(BrokerError::TimedOut), vec![lost, "e9"]),
    ] {
        let mut case = Case::new(true);
        case.take(durable("e", 9));
        assert_eq!(case.read(result), expected);
    }
}

#[test]
fn an_interruption_is_silent_only_where_nothing_can_be_missing() {
    let reconnected = ["gap:broker_reconnected"];
    assert!(Case::new(true).interrupted(Some(at("e", 5))).is_empty());
    assert_eq!(Case::new(false).interrupted(Some(at("e", 5))), reconnected);
    assert_eq!(Case::new(true).interrupted(Some(at("f", 0))), ["gap:history_lost"]);
    let mut mixed = Case::new(true);
    mixed.take(plain("p"));
    assert_eq!(mixed.interrupted(Some(at("e", 5))), reconnected);
    let mut case = Case::new(true);
    assert_eq!(case.interrupted(Some(at("e", 7))), ["read"]);
    assert_eq!(case.read(history("e", 1, 7)), ["e6", "e7"]);
    assert_eq!(case.interrupted(None), ["read"]);
    assert_eq!(case.read(Ok(None)), reconnected);
    let mut unknown = Case(Flow::new(true), Vec::new());
    assert_eq!(unknown.interrupted(Some(at("e", 3))), reconnected);
    assert_eq!(unknown.take(durable("e", 4)), ["e4"]);
}

#[test]
fn what_does_not_fit_behind_a_hole_is_read_again() {
    let mut case = Case::new(true);
    case.take(durable("e", 7));
    for offset in 8..=(MAX_WAITING as u64 + 10) {
        assert!(case.take(durable("e", offset)).is_empty());
    }
    assert!(case.0.waiting() < 10);
    assert_eq!(case.read(history("e", 1, 7)), ["e6", "e7", "read"]);
    let top = MAX_WAITING as u64 + 10;
    let mut expected: Vec<_> = (8..=top).map(|n| format!("e{n}")).collect();
    assert_eq!(case.read(history("e", 1, top)), expected);
    expected.clear();
    assert!(case.read(history("e", 1, top)).is_empty(), "a late answer changes nothing");
}

#[test]
fn an_overflow_is_filled_unless_plain_ones_were_dropped() {
    for (is_plain, expected) in [(false, vec!["e6"]), (true, vec!["gap:overflow", "e6"])] {
        let mut case = Case::new(false);
        case.0.overflowed(is_plain, &mut case.1);
        assert_eq!(words(&mut case.1), ["read"]);
        assert_eq!(case.read(history("e", 1, 6)), expected);
    }
}

#[test]
fn a_tail_is_what_was_read_and_what_has_passed_since() {
    let mut case = Case::new(true);
    case.0.tail = Some(Tail::begin(5));
    case.take(durable("e", 6));
    let tail = case.0.tail.as_mut().unwrap();
    assert!(tail.complete(history("e", 3, 6).unwrap().unwrap(), BOUNDS));
    let offsets = |found: Option<Vec<Publication>>| {
        found.map(|p| p.iter().map(|p| p.position.as_ref().unwrap().offset).collect::<Vec<_>>())
    };
    assert_eq!(offsets(tail.since(2)), Some(vec![3, 4, 5, 6]));
    assert_eq!(offsets(tail.since(5)), Some(vec![6]));
    assert_eq!(offsets(tail.since(6)), Some(vec![]));
    assert_eq!(offsets(tail.since(1)), None);
    let small = Bounds { messages: 2, bytes: 1 << 20 };
    tail.cut(small);
    assert_eq!((offsets(tail.since(3)), offsets(tail.since(4))), (None, Some(vec![5, 6])));
    let mut short = Tail::begin(9);
    assert!(!short.complete(history("e", 1, 8).unwrap().unwrap(), BOUNDS));
}

/// What was passed over behind a declaration must not stand in a tail as if it were there; and whoever
/// comes then is not told that nothing is missing.
#[test]
fn a_declared_hole_ends_the_tail_and_is_told_to_who_resumes() {
    let mut case = Case::new(true);
    case.0.tail = Some(Tail::begin(5));
    case.take(durable("e", 9));
    assert_eq!(case.read(history("e", 8, 9)), ["gap:history_lost", "e8", "e9"]);
    assert!(case.0.tail.is_none(), "6 and 7 are not in it");
    assert!(case.0.is_complete_since(&at("e", 9)), "what follows 9 is known again");
    assert!(!case.0.is_complete_since(&at("e", 5)));
    // A reading that failed: nothing is known of what follows 9 until the next one.
    case.interrupted(None);
    assert_eq!(case.read(Err(BrokerError::Unavailable)), ["gap:broker_reconnected"]);
    assert!(!case.0.is_complete_since(&at("e", 9)));
    case.0.tail = Some(Tail::begin(9));
    assert_eq!(case.take(durable("e", 12)), ["e12"]);
    assert!(case.0.is_complete_since(&at("e", 12)) && case.0.tail.is_none());
}

/// The old master's events after a failover are declared when it is demoted: also to who was between two
/// sockets then.
#[test]
fn r4_who_comes_back_is_told_what_was_declared_meanwhile() {
    let mut case = Case::new(true);
    case.0.interrupted(GapReason::HistoryLost, None, &mut case.1);
    assert_eq!(words(&mut case.1), ["gap:history_lost"]);
    assert!(!case.0.is_complete_since(&at("e", 5)));
    case.take(durable("e", 6));
    assert!(!case.0.is_complete_since(&at("e", 5)));
    assert!(case.0.is_complete_since(&at("e", 6)));
}

/// The position that a subscription began with is older than what has come on it since.
#[test]
fn what_came_before_the_confirmation_is_not_forgotten() {
    let (mut flow, mut steps) = (Flow::new(true), Vec::new());
    flow.take(durable("e", 11), BOUNDS, &mut steps);
    flow.subscribed(Some(at("e", 10)), true, &mut steps);
    assert_eq!(flow.last(), Some(&at("e", 11)));
    flow.subscribed(Some(at("f", 1)), true, &mut steps);
    assert_eq!(flow.last(), Some(&at("f", 1)));
}

/// A Redis of a few lines, whose messages get lost, come twice, and whose history is trimmed, read
/// late, or lost with the server.
struct World {
    rng: fastrand::Rng,
    epoch: u32,
    top: u64,
    kept: u64,
    on_the_way: VecDeque<Publication>,
    published: Vec<(u32, u64)>,
    tickets: Vec<u64>,
}

impl World {
    fn history(&mut self) -> Result<Option<History>, BrokerError> {
        if self.rng.u8(..) < 10 {
            return Err(BrokerError::TimedOut);
        }
        let first = (self.top + 1).saturating_sub(self.kept).max(1);
        history(&format!("e{}x", self.epoch), first, self.top)
    }

    fn position(&self) -> Position {
        at(&format!("e{}x", self.epoch), self.top)
    }

    fn step(&mut self, flow: &mut Flow, out: &mut Vec<Step>) {
        match self.rng.u32(..100) {
            0..50 => {
                self.top += 1;
                self.published.push((self.epoch, self.top));
                self.on_the_way.push_back(durable(&format!("e{}x", self.epoch), self.top));
            }
            50..85 => {
                if let Some(publication) = self.on_the_way.pop_front() {
                    if self.rng.u8(..) < 8 {
                        flow.take(publication.clone(), BOUNDS, out);
                    }
                    flow.take(publication, BOUNDS, out);
                }
            }
            85..90 => {
                // The connection is lost with what was on its way.
                self.on_the_way.clear();
                flow.interrupted(GapReason::BrokerReconnected, Some(self.position()), out);
            }
            90..92 => {
                let lost = self.on_the_way.pop_front().is_some();
                if lost {
                    flow.overflowed(false, out);
                }
            }
            92 => {
                // The server is lost with its last writes.
                self.on_the_way.clear();
                self.epoch += 1;
                self.top = 0;
                flow.interrupted(GapReason::BrokerReconnected, Some(self.position()), out);
            }
            _ => {
                if let Some(ticket) = self.tickets.pop() {
                    let history = self.history();
                    flow.read(ticket, history, BOUNDS, out);
                }
            }
        }
    }
}

/// Every publication is delivered once and in order, or passed over behind a declaration.
#[test]
fn whatever_happens_nothing_is_lost_in_silence() {
    for seed in 0..150 {
        let rng = fastrand::Rng::with_seed(seed);
        let mut world = World {
            rng,
            epoch: 1,
            top: 0,
            kept: 1 + seed % 40,
            on_the_way: VecDeque::new(),
            published: Vec::new(),
            tickets: Vec::new(),
        };
        let (mut flow, mut out) = (Flow::new(true), Vec::new());
        flow.subscribed(Some(world.position()), true, &mut out);
        let (mut seen, mut declared): (Option<usize>, bool) = (None, false);
        for round in 0..3000 {
            if round < 2500 {
                world.step(&mut flow, &mut out);
            } else if let Some(publication) = world.on_the_way.pop_front() {
                flow.take(publication, BOUNDS, &mut out);
            } else if let Some(ticket) = world.tickets.pop() {
                let history = world.history();
                flow.read(ticket, history, BOUNDS, &mut out);
            }
            for step in out.drain(..) {
                match step {
                    Step::Read(ticket) => world.tickets.push(ticket),
                    Step::Declare(_) => declared = true,
                    Step::Deliver(p) => {
                        let position = p.position.unwrap();
                        let epoch = position.epoch.trim_matches(['e', 'x']).parse().unwrap();
                        let index =
                            world.published.iter().position(|q| *q == (epoch, position.offset));
                        let index = index.expect("it was published");
                        let next = seen.map_or(0, |seen| seen + 1);
                        assert!(index >= next, "seed {seed}: {position} twice or out of order");
                        assert!(index == next || declared, "seed {seed}: lost before {position}");
                        (seen, declared) = (Some(index), false);
                    }
                }
            }
        }
        let all = world.published.len().checked_sub(1);
        assert!(seen == all || declared, "seed {seed}: the end is missing in silence");
    }
}
