//! The verdict on made-up purchases: one that cannot be bad is worth nothing.

use std::time::Duration;

use super::records::{Device, Entry, Fate, Forgotten, Purchase, Records};
use super::verdict::{OFFENCES, Offence, judge};
use crate::record::{ClientLog, Line, Manner, What, Wire};

const EPOCH: u64 = 7;
const BOUGHT: usize = 10;

fn at(n: usize) -> Duration {
    Duration::from_millis(10 * n as u64)
}

fn entry(epoch: u64, offset: u64, purchase: usize) -> Entry {
    Entry { user: 0, epoch, offset, purchase }
}

fn event(number: usize) -> What {
    What::Event { stream: 0, number, position: None }
}

fn gap() -> What {
    What::Gap { channel: "user:u1".to_owned(), reason: "made up".to_owned() }
}

fn live(resumes: bool, recovered: Option<bool>) -> What {
    What::Live { channel: "user:u1".to_owned(), resumes, recovered, position: None }
}

fn device(what: impl IntoIterator<Item = What>) -> Device {
    let line = |(n, what)| Line { at: at(n) + Duration::from_millis(5), what };
    let log = ClientLog {
        name: "made-up".to_owned(),
        wire: Wire::Envelope,
        manner: Manner::Steady,
        channels: vec!["user:u1".to_owned()],
        lines: what.into_iter().enumerate().map(line).collect(),
    };
    Device { user: 0, log, answered: [].into(), asked: 0, owes: false }
}

/// Ten purchases, one behind the other, each of which came to all places once.
fn good() -> Records {
    let purchase = |n| Purchase {
        user: 0,
        began: at(n),
        fate: Fate::Committed(at(n) + Duration::from_millis(5)),
    };
    let history = (0..BOUGHT).map(|n| entry(EPOCH, n as u64 + 1, n));
    Records {
        purchases: (0..BOUGHT).map(purchase).collect(),
        table: (0..BOUGHT).collect(),
        history: history.clone().collect(),
        marks: history.collect(),
        devices: vec![device((0..BOUGHT).map(event))],
        ..Records::default()
    }
}

/// The verdict on good records that this was done to.
fn expect(name: &str, spoil: impl Fn(&mut Records), expected: &[(Offence, usize)]) {
    let mut records = good();
    spoil(&mut records);
    let verdict = judge(&records);
    for kind in OFFENCES {
        let count = expected.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n);
        let cases = &verdict.cases;
        assert_eq!(verdict.count(kind), count, "{name}: {kind:?} in {cases:#?}");
    }
}

const RESTARTED: Forgotten = Forgotten { histories: true, guards: true, commits: false };

/// Panics if a verdict is wrong.
pub fn run() {
    expect("all is well", |_| {}, &[]);
    devices();
    histories();
    databases();
}

fn devices() {
    let lost = &[(Offence::Lost, 1)];
    let but = |n: usize| (0..BOUGHT).filter(move |m| *m != n).map(event);
    expect("lost", |r| r.devices = vec![device(but(4))], lost);
    expect("the last lost", |r| r.devices = vec![device(but(BOUGHT - 1))], lost);
    expect("lost by one of two", |r| r.devices.push(device(but(0))), lost);
    let asked = |r: &mut Records| {
        r.devices = vec![device(but(4))];
        r.devices[0].answered = [4].into();
    };
    expect("asked for", asked, &[]);
    expect("not answered", |r| r.devices[0].owes = true, lost);

    let twice = |between: Vec<What>| {
        move |r: &mut Records| {
            let events = (0..BOUGHT).map(event).chain(between.clone()).chain([event(4)]);
            r.devices = vec![device(events)];
        }
    };
    let doubled = &[(Offence::Doubled, 1)];
    expect("doubled", twice(vec![]), doubled);
    expect("doubled over a reconnect", twice(vec![What::Left, live(true, Some(true))]), doubled);
    expect("doubled without a word", twice(vec![What::Left, live(true, None)]), doubled);
    expect("again behind a gap", twice(vec![gap()]), &[]);
    expect("again, not recovered", twice(vec![live(true, Some(false))]), &[]);
    expect("again, anew", twice(vec![live(false, None)]), &[]);

    let untrue = &[(Offence::Untrue, 1)];
    let more = |what: What| {
        move |r: &mut Records| {
            r.devices = vec![device((0..BOUGHT).map(event).chain([what.clone()]))]
        }
    };
    expect("announced and never bought", more(event(BOUGHT)), untrue);
    expect("something else", more(What::Foreign("{}".to_owned())), untrue);
    let of_another = What::Event { stream: 1, number: 3, position: None };
    let twice_wrong = &[(Offence::Untrue, 1), (Offence::Doubled, 1)];
    expect("another's", more(of_another), twice_wrong);
    let answered = |r: &mut Records| r.devices[0].answered = [BOUGHT].into();
    expect("answered and never bought", answered, untrue);
}

fn histories() {
    let drop_last = |r: &mut Records| {
        r.history.remove(&entry(EPOCH, 10, 9));
        r.marks.pop();
    };
    expect("in no history", drop_last, &[(Offence::Lost, 1)]);
    let forgotten = |r: &mut Records| {
        drop_last(r);
        r.forgotten = RESTARTED;
    };
    expect("in no history of a Redis that has lost some", forgotten, &[]);
    let twice = |r: &mut Records| _ = r.history.insert(entry(EPOCH, 11, 9));
    expect("twice in a history", twice, &[(Offence::Doubled, 1)]);
    let later = |r: &mut Records| _ = r.history.insert(entry(EPOCH + 1, 1, 9));
    expect("again in another epoch", later, &[(Offence::Doubled, 1)]);
    let restarted = |r: &mut Records| {
        later(r);
        r.forgotten = RESTARTED;
    };
    expect("again behind a restart", restarted, &[]);
    let twice_then = |r: &mut Records| {
        twice(r);
        r.forgotten = RESTARTED;
    };
    expect("twice in one epoch", twice_then, &[(Offence::Doubled, 1)]);

    let swap = |r: &mut Records| {
        for n in [3, 4] {
            r.history.remove(&entry(EPOCH, n + 1, usize::try_from(n).unwrap()));
        }
        r.history.extend([entry(EPOCH, 4, 4), entry(EPOCH, 5, 3)]);
        r.marks = r.history.iter().copied().collect();
    };
    expect("out of order", swap, &[(Offence::Disorder, 1)]);
    let together = |r: &mut Records| {
        swap(r);
        r.purchases[4].began = at(3);
    };
    expect("in another order, bought together", together, &[]);
    let unknown = |r: &mut Records| {
        swap(r);
        r.purchases[3].fate = Fate::Unknown;
    };
    expect("in another order, nobody knows since when", unknown, &[]);

    let elsewhere = |r: &mut Records| r.marks[3].offset = 5;
    expect("marked where another is", elsewhere, &[(Offence::Astray, 1)]);
    let nowhere = |r: &mut Records| r.marks[3].offset = 50;
    expect("marked where nothing is", nowhere, &[(Offence::Astray, 1)]);
}

fn databases() {
    let gone = |r: &mut Records| {
        r.table.remove(&9);
        r.forgotten.commits = true;
    };
    expect("PostgreSQL has lost one, as it may", gone, &[]);
    let not_forgiven = |r: &mut Records| _ = r.table.remove(&9);
    // In the history, on the device, and the commit itself.
    let wrong = &[(Offence::Untrue, 2), (Offence::Lost, 1)];
    expect("PostgreSQL has lost one, as it must not", not_forgiven, wrong);
    let rolled_back = |r: &mut Records| {
        gone(r);
        r.purchases[9].fate = Fate::RolledBack;
    };
    expect("rolled back and announced", rolled_back, &[(Offence::Untrue, 2)]);
    let came_true = |r: &mut Records| r.purchases[9].fate = Fate::RolledBack;
    expect("rolled back and in the table", came_true, &[(Offence::Untrue, 1)]);
    expect("nobody knows", |r| r.purchases[9].fate = Fate::Unknown, &[]);

    let left = &[(Offence::Undrained, 1)];
    expect("not drained", |r| r.pending = 3, left);
    expect("dead", |r| r.dead = 1, left);
    expect("in doubt for ever", |r| r.unsettled = vec!["u1".to_owned()], left);
}
