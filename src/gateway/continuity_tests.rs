//! The tests of `continuity`, case by case.

use bytes::Bytes;

use super::missing_range::MAX_WAITING;
use super::simulation::{BOUNDS, at, durable, history, new_sequencer, plain};
use super::*;

/// Takes the steps, as short words.
fn words(steps: &mut Vec<Step>) -> Vec<String> {
    let word = |step| match step {
        Step::Deliver(p) => String::from_utf8_lossy(&p.payload).into_owned(),
        Step::Declare(reason) => format!("gap:{}", reason.label()),
        Step::Read(_, wait) if wait.is_zero() => "read".to_owned(),
        Step::Read(..) => "read later".to_owned(),
        Step::Refuted(n) => format!("refuted {n}"),
    };
    steps.drain(..).map(word).collect()
}

/// A sequencer, and the steps that it asked for.
struct Case(ChannelSequencer, Vec<Step>);

/// The ticket of the missing range that is open.
fn ticket(sequencer: &ChannelSequencer) -> u64 {
    sequencer.missing.as_ref().map_or(0, |missing| missing.ticket)
}

impl Case {
    /// A sequencer that has delivered `e5`.
    fn new(is_durable: bool) -> Self {
        let mut sequencer = new_sequencer(is_durable);
        let mut steps = Vec::new();
        sequencer.subscribed(Some(at("e", 4)), true, &mut steps);
        sequencer.sequence(durable("e", 5), BOUNDS, &mut steps);
        assert_eq!(words(&mut steps), ["e5"]);
        Self(sequencer, steps)
    }

    fn take(&mut self, publication: Publication) -> Vec<String> {
        self.0.sequence(publication, BOUNDS, &mut self.1);
        words(&mut self.1)
    }

    fn interrupted(&mut self, position: Option<Position>) -> Vec<String> {
        self.0.interrupted(GapReason::BrokerReconnected, position, &mut self.1);
        words(&mut self.1)
    }

    fn read(&mut self, result: Result<Option<History>, BrokerError>) -> Vec<String> {
        let ticket = ticket(&self.0);
        self.0.begin_reading(ticket);
        self.0.apply_history(ticket, result, BOUNDS, &mut self.1);
        words(&mut self.1)
    }
}

#[test]
fn r12_duplicates_and_old_publications_are_dropped() {
    let mut case = Case::new(true);
    assert!(case.take(durable("e", 5)).is_empty());

    // The offset is older than those that are remembered: the history shows that it is nothing new.
    assert_eq!(case.take(durable("e", 1)), ["read"]);
    assert!(case.read(history("e", 1, 5)).is_empty());

    assert_eq!(case.take(durable("e", 6)), ["e6"]);
    assert!(case.take(durable("e", 6)).is_empty());
}

#[test]
fn a_missing_range_is_filled_and_what_came_meanwhile_waits() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("e", 8)), ["read"]);
    assert!(case.take(plain("p")).is_empty());
    assert!(case.take(durable("e", 9)).is_empty());
    assert_eq!(case.read(history("e", 1, 9)), ["e6", "e7", "e8", "p", "e9"]);
    assert_eq!(case.take(durable("e", 10)), ["e10"]);
}

#[test]
fn a_missing_range_that_cannot_be_filled_is_declared_first() {
    let lost = "gap:history_lost";
    for (result, expected) in [
        (history("e", 7, 9), vec![lost, "e7", "e8", "e9"]),
        (history("f", 1, 2), vec![lost, "f1", "f2"]),
        (Ok(None), vec![lost, "refuted 1", "e9"]),
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
    assert_eq!(case.read(Err(BrokerError::TimedOut)), reconnected);

    let mut unknown = Case(new_sequencer(true), Vec::new());
    assert_eq!(unknown.interrupted(Some(at("e", 3))), reconnected);
    assert_eq!(unknown.take(durable("e", 4)), ["e4"]);
}

#[test]
fn what_does_not_fit_behind_a_missing_range_is_read_again() {
    let mut case = Case::new(true);
    case.take(durable("e", 7));
    case.0.begin_reading(ticket(&case.0));

    for offset in 8..=(MAX_WAITING as u64 + 10) {
        assert!(case.take(durable("e", offset)).is_empty());
    }
    assert!(case.0.missing.as_ref().unwrap().waiting.len() < 12);

    let first = ticket(&case.0);
    case.0.apply_history(first, history("e", 1, 7), BOUNDS, &mut case.1);
    assert_eq!(words(&mut case.1), ["e6", "e7", "read"]);

    let top = MAX_WAITING as u64 + 10;
    let mut expected: Vec<_> = (8..=top).map(|n| format!("e{n}")).collect();
    assert_eq!(case.read(history("e", 1, top)), expected);

    expected.clear();
    assert!(case.read(history("e", 1, top)).is_empty(), "a late answer changes nothing");
}

#[test]
fn an_overflow_is_filled_unless_plain_ones_were_dropped() {
    for (is_plain, expected) in [(false, vec!["e6"]), (true, vec!["e6", "gap:overflow"])] {
        let mut case = Case::new(false);
        case.0.overflowed(is_plain, &mut case.1);
        assert_eq!(words(&mut case.1), ["read"]);
        assert_eq!(case.read(history("e", 1, 6)), expected);
    }
}

#[test]
fn a_replay_cache_is_what_was_read_and_what_has_passed_since() {
    let mut case = Case::new(true);
    case.0.cache = Some(ReplayCache::begin(5));
    case.take(durable("e", 6));
    let cache = case.0.cache.as_mut().unwrap();
    assert!(cache.complete(history("e", 3, 6).unwrap().unwrap(), BOUNDS));

    let offsets = |found: Option<Vec<Publication>>| {
        found.map(|p| p.iter().map(|p| p.position.as_ref().unwrap().offset).collect::<Vec<_>>())
    };

    assert_eq!(offsets(cache.since(2)), Some(vec![3, 4, 5, 6]));
    assert_eq!(offsets(cache.since(5)), Some(vec![6]));
    assert_eq!(offsets(cache.since(6)), Some(vec![]));
    assert_eq!(offsets(cache.since(1)), None);

    let small = HistoryBounds { messages: 2, bytes: 1 << 20 };
    cache.cut(small);
    assert_eq!((offsets(cache.since(3)), offsets(cache.since(4))), (None, Some(vec![5, 6])));

    let mut short = ReplayCache::begin(9);
    assert!(!short.complete(history("e", 1, 8).unwrap().unwrap(), BOUNDS));
}

/// Offsets that were passed over behind a gap must not appear in a replay cache as if they were
/// there, and a client that resumes then is not told that nothing is missing.
#[test]
fn a_declared_range_ends_the_cache_and_is_told_to_clients_that_resume() {
    let mut case = Case::new(true);
    case.0.cache = Some(ReplayCache::begin(5));
    case.take(durable("e", 9));
    assert_eq!(case.read(history("e", 8, 9)), ["gap:history_lost", "e8", "e9"]);
    assert!(case.0.cache.is_none(), "6 and 7 are not in it");
    assert!(case.0.is_complete_since(&at("e", 9)), "what follows 9 is known again");
    assert!(!case.0.is_complete_since(&at("e", 5)));

    // After a failed reading, nothing is known of what follows 9 until the next publication.
    case.interrupted(None);
    assert_eq!(case.read(Err(BrokerError::Unavailable)), ["gap:broker_reconnected"]);
    assert!(!case.0.is_complete_since(&at("e", 9)));
    case.0.cache = Some(ReplayCache::begin(9));
    assert_eq!(case.take(durable("e", 12)), ["e12"]);
    assert!(case.0.is_complete_since(&at("e", 12)) && case.0.cache.is_none());
}

/// After a failover the old master's events are declared lost when it is demoted, also to a client
/// that was between two connections at that moment.
#[test]
fn r4_a_client_that_resumes_is_told_what_was_declared_meanwhile() {
    let mut case = Case::new(true);
    case.0.interrupted(GapReason::HistoryLost, None, &mut case.1);
    assert_eq!(words(&mut case.1), ["gap:history_lost"]);
    assert!(!case.0.is_complete_since(&at("e", 5)));

    case.take(durable("e", 6));
    assert!(!case.0.is_complete_since(&at("e", 5)));
    assert!(case.0.is_complete_since(&at("e", 6)));
}

/// A publication that arrived before a first subscription is false, or older than the position that
/// the subscription begins with.
#[test]
fn a_first_subscription_begins_where_the_history_stands() {
    let mut sequencer = new_sequencer(true);
    let mut steps = Vec::new();
    sequencer.sequence(durable("e", 1_000_000), BOUNDS, &mut steps);
    sequencer.subscribed(Some(at("e", 10)), true, &mut steps);
    assert_eq!(sequencer.last(), Some(&at("e", 10)));

    sequencer.subscribed(Some(at("f", 1)), true, &mut steps);
    assert_eq!(sequencer.last(), Some(&at("f", 1)));
}

/// A connection to Redis was made anew while a history was being read, and something was
/// published meanwhile.
#[test]
fn a_position_that_comes_while_a_history_is_read_is_compared_behind_it() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("e", 8)), ["read"]);
    case.0.interrupted(GapReason::BrokerReconnected, Some(at("e", 8)), &mut case.1);
    case.0.subscribed(Some(at("e", 9)), false, &mut case.1);
    assert!(case.1.is_empty(), "both wait");

    let told = case.read(history("e", 1, 8));
    assert_eq!(told.last().unwrap(), "read", "9 is missing: {told:?}");
    assert_eq!(case.read(history("e", 1, 9)), ["e9"]);
}

/// A publisher writes a forged head, far ahead of the history.
#[test]
fn field_a6_a_forged_offset_is_passed_over_after_one_read() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("e", 1005)), ["read"]);
    assert!(case.take(durable("e", 6)).is_empty(), "it waits for the answer");
    let told = ["gap:history_lost", "refuted 1", "e6"];
    assert_eq!(case.read(history("e", 1, 6))[..], told);
    assert_eq!(case.take(durable("e", 7)), ["e7"]);

    // The next claim holds nothing up, and the history is asked about it later.
    let told = ["gap:history_lost", "read later"];
    assert_eq!(case.take(durable("e", 999_999_999_999_999)), told);
    assert!(case.take(durable("e", 2007)).is_empty(), "one question for all of them");
    assert_eq!(case.take(plain("p")), ["p"]);
    assert_eq!(case.take(durable("e", 8)), ["e8"]);
    assert_eq!(case.read(history("e", 1, 8)), ["gap:history_lost", "refuted 1"]);
    assert_eq!(case.take(durable("e", 9)), ["e9"]);
}

#[test]
fn field_a6_a_true_claim_that_was_put_aside_is_delivered_from_the_history() {
    let mut case = Case::new(true);
    case.take(durable("e", 1005));
    case.read(history("e", 1, 5));

    // The publication with offset 6 is lost on the way.
    assert_eq!(case.take(durable("e", 7)), ["gap:history_lost", "read later"]);
    let ticket = ticket(&case.0);
    case.0.begin_reading(ticket);
    assert!(case.take(durable("e", 8)).is_empty());

    case.0.apply_history(ticket, history("e", 1, 8), BOUNDS, &mut case.1);
    assert_eq!(words(&mut case.1), ["e6", "e7", "e8"]);
    assert_eq!(case.take(durable("e", 9)), ["e9"]);
}

/// A forged publication with exactly the next offset used to make the next true event vanish as
/// a duplicate.
#[test]
fn field_a6_the_event_whose_place_was_taken_is_delivered() {
    let forged = |offset| Publication { payload: "{}".into(), ..durable("e", offset) };
    let mut case = Case::new(true);
    assert_eq!(case.take(forged(6)), ["{}"]);
    assert_eq!(case.take(durable("e", 6)), ["gap:history_lost", "e6", "refuted 1"]);
    assert!(case.take(durable("e", 6)).is_empty());
    assert_eq!(case.take(durable("e", 7)), ["e7"]);

    // The same holds for a series of forged publications.
    let mut case = Case::new(true);
    for offset in 6..106 {
        case.take(forged(offset));
    }
    assert_eq!(case.take(durable("e", 6)), ["read"]);
    assert_eq!(case.read(history("e", 1, 6))[0], "gap:history_lost");
    assert_eq!(case.take(durable("e", 7)), ["e7"]);
}

#[test]
fn field_a6_what_waits_behind_all_missing_ranges_is_bounded() {
    let payload = Bytes::from(vec![b'x'; 1 << 20]);
    let large = |offset| Publication { payload: payload.clone(), ..durable("e", offset) };
    let mut cases: Vec<_> = (0..40).map(|_| Case::new(true)).collect();
    for case in &mut cases {
        for offset in 8..11 {
            case.take(large(offset));
        }
    }

    let held = |case: &Case| case.0.missing.as_ref().map_or(0, |missing| missing.waiting.len());
    assert!(cases.iter().map(held).sum::<usize>() < 100, "120 MiB came");

    // No channel is forgotten: what did not fit is read.
    let all = || {
        let small = (1..8).map(|offset| durable("e", offset));
        let publications = small.chain((8..11).map(large)).collect();
        Ok(Some(History { top: at("e", 10), publications }))
    };

    for case in &mut cases {
        let words = case.read(all());
        assert_eq!(words[..2], ["e6", "e7"]);
        if words.last().is_some_and(|word| word == "read") {
            case.read(all());
        }
        assert_eq!(case.take(durable("e", 11)), ["e11"]);
    }
}

/// In a cluster an event of an ended epoch may arrive late. It does not bring the epoch back.
#[test]
fn field_f13_an_ended_epoch_does_not_come_back() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("f", 1)), ["read"]);
    assert_eq!(case.read(history("f", 1, 1)), ["gap:history_lost", "f1"]);

    assert_eq!(case.take(durable("e", 6)), ["read"]);
    assert_eq!(case.read(history("f", 1, 1)), ["gap:history_lost", "refuted 1"]);
    assert_eq!(case.take(durable("f", 2)), ["f2"]);
}

/// A lost plain publication on a channel with a history is declared behind the events that were
/// filled in and before those that follow. The plain publications that arrived keep their places.
#[test]
fn field_b4_a_lost_plain_publication_is_declared_in_its_place() {
    let mut case = Case::new(false);
    assert_eq!(case.interrupted(Some(at("e", 7))), ["read"]);
    for publication in [plain("p"), durable("e", 8), plain("q")] {
        assert!(case.take(publication).is_empty());
    }
    let told = ["e6", "e7", "gap:broker_reconnected", "p", "e8", "q"];
    assert_eq!(case.read(history("e", 1, 8)), told);

    // No durable publication was missed, but a plain one may have been.
    assert_eq!(case.interrupted(Some(at("e", 8))), ["gap:broker_reconnected"]);
}

/// A false claim whose offset later became true waited before the publications that it had
/// overtaken. The history used to be read, nothing of it delivered, and read again, for ever.
#[test]
fn fuzz_a_claim_ahead_of_what_waits_is_not_asked_about_again() {
    let forged = |offset| Publication { payload: "{}".into(), ..durable("e", offset) };
    let mut case = Case::new(true);
    assert_eq!(case.take(forged(7)), ["read"]);
    assert!(case.take(durable("e", 6)).is_empty() && case.take(durable("e", 7)).is_empty());
    let told = ["gap:history_lost", "refuted 1", "e6", "e7"];
    assert_eq!(case.read(history("e", 1, 7)), told);

    // The history no longer has the publication at the claimed offset.
    let mut case = Case::new(true);
    assert_eq!(case.take(forged(7)), ["read"]);
    assert!((6..9).all(|offset| case.take(durable("e", offset)).is_empty()));
    assert_eq!(case.read(history("e", 8, 8)), ["gap:history_lost", "e8"]);
    assert_eq!(case.take(durable("e", 9)), ["e9"]);
}

/// An event was lost, and a false claim for its offset waited while the history was read for it.
/// The claim used to be delivered, and the event was not.
#[test]
fn fuzz_a_false_claim_does_not_stand_for_a_lost_event() {
    let mut case = Case::new(true);
    case.0.overflowed(false, &mut case.1);
    assert_eq!(words(&mut case.1), ["read"]);
    let forged = Publication { payload: "{}".into(), ..durable("e", 6) };
    assert!(case.take(forged).is_empty());
    assert_eq!(case.read(history("e", 1, 6)), ["gap:overflow", "e6", "refuted 1"]);
    assert_eq!(case.take(durable("e", 7)), ["e7"]);
}

/// Claims of offsets that are too old to be remembered, and that the history does not keep, used to
/// cost one reading each.
#[test]
fn fuzz_old_claims_cost_one_reading() {
    let mut case = Case::new(true);
    assert_eq!(case.take(durable("e", 1)), ["read"]);
    assert!(case.read(history("e", 4, 5)).is_empty());

    for offset in 1..4 {
        assert!(case.take(durable("e", offset)).is_empty());
    }
    assert_eq!(case.take(durable("e", 6)), ["e6"]);
}
