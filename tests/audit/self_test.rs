//! The checker on made-up logs: an auditor that cannot find fault is worth nothing.

use std::time::Duration;

use super::check::{OFFENCES, Offence, Verdict, check};
use super::record::{ClientLog, Kind, Line, Manner, Published, Stream, StreamLog, What, Wire};
use super::{absence, crowd, health, log_faults, shop, shortage};

const CHANNEL: &str = "a";

fn at(n: u64) -> Duration {
    Duration::from_millis(n * 10)
}

/// Ten events: number n was published at n * 10 ms, and Redis did not answer for those
/// in `refused`.
fn publisher(kind: Kind, refused: &[usize]) -> StreamLog {
    let stream = Stream { channel: CHANNEL.to_owned(), kind, publisher: "main", kept: 10 };
    let published = (0..10).map(|n| Published {
        started: at(n as u64),
        accepted: !refused.contains(&n),
        position: None,
        error: None,
    });
    StreamLog { stream, published: published.collect() }
}

fn event(number: usize) -> What {
    What::Event { stream: 0, number, position: None }
}

fn gap() -> What {
    What::Gap { channel: CHANNEL.to_owned(), reason: "made up".to_owned() }
}

fn live(resumes: bool, recovered: Option<bool>) -> What {
    What::Live { channel: CHANNEL.to_owned(), resumes, recovered, position: None }
}

/// The verdict on a client that receives this. Each event, and what follows it, comes 5 ms after
/// the event's publication.
fn verdict(kind: Kind, refused: &[usize], what: &[What]) -> Verdict {
    let mut lines = vec![
        Line { at: at(0), what: What::Opened(0) },
        Line { at: at(0), what: live(false, None) },
    ];

    let mut now = at(0);
    for what in what {
        if let What::Event { number, .. } = what {
            now = now.max(at(*number as u64) + Duration::from_millis(5));
        }
        lines.push(Line { at: now, what: what.clone() });
    }

    let log = ClientLog {
        name: "made-up".to_owned(),
        wire: Wire::Envelope,
        manner: Manner::Steady,
        channels: vec![CHANNEL.to_owned()],
        lines,
    };
    check(&[publisher(kind, refused)], &[log], &|_, _, _| false)
}

fn expect(name: &str, verdict: &Verdict, expected: &[(Offence, usize)]) {
    for kind in OFFENCES {
        let count = expected.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n);
        let cases = &verdict.cases;
        assert_eq!(verdict.count(kind), count, "{name}: {kind:?} in {cases:#?}");
    }
}

fn events(numbers: impl IntoIterator<Item = usize>) -> Vec<What> {
    numbers.into_iter().map(event).collect()
}

/// Panics if a verdict is wrong, here or in a module that judges something else.
pub fn run() {
    for kind in [Kind::Durable, Kind::Plain] {
        live_sockets(kind);
    }
    resumed_sockets();
    other_offences();
    absence::self_test();
    health::self_test();
    crowd::self_test();
    shortage::self_test();
    log_faults::self_test();
    shop::self_test::run();
}

fn live_sockets(kind: Kind) {
    let none: &[(Offence, usize)] = &[];
    expect("all", &verdict(kind, &[], &events(0..10)), none);
    let lost = [(Offence::Lost, 1)];
    expect("one lost", &verdict(kind, &[], &events([0, 1, 2, 4, 5, 6, 7, 8, 9])), &lost);
    expect("the first lost", &verdict(kind, &[], &events(1..10)), &lost);
    expect("the last lost", &verdict(kind, &[], &events(0..9)), &lost);
    expect("all lost", &verdict(kind, &[], &[]), &[(Offence::Lost, 10)]);

    let doubled = events([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]);
    expect("doubled", &verdict(kind, &[], &doubled), &[(Offence::Doubled, 1)]);
    let late = events([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2]);
    expect("doubled late", &verdict(kind, &[], &late), &[(Offence::Doubled, 1)]);
    let swapped = events([0, 1, 3, 2, 4, 5, 6, 7, 8, 9]);
    expect("reordered", &verdict(kind, &[], &swapped), &[(Offence::Disorder, 1)]);

    // Redis did not answer for 3: it may come or not, anywhere, but once.
    for there in [&[0, 1, 2, 4, 5][..], &[0, 1, 2, 3, 4, 5], &[0, 1, 2, 4, 3, 5]] {
        let numbers = there.iter().copied().chain(6..10);
        expect("unanswered", &verdict(kind, &[3], &events(numbers)), none);
    }
    let twice = events([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]);
    expect("unanswered twice", &verdict(kind, &[3], &twice), &[(Offence::Doubled, 1)]);

    let with_gap = |before: usize, after: usize, gap_after: usize| {
        let mut what = events(0..before);
        what.extend(events(after..10));
        what.insert(gap_after, gap());
        verdict(kind, &[], &what)
    };

    // A gap has the time of the event before it. `told_at` gives a gap a later time.
    let declared = |what: &[What]| verdict(kind, &[], what);
    let mut what = events(0..4);
    what.push(What::Note("time passes".to_owned()));
    what.push(gap());
    what.extend(events(4..10));
    expect("a gap without a loss", &declared(&what), none);
    expect("a gap too early", &with_gap(4, 6, 2), &[(Offence::Lost, 2)]);
    expect("a gap too late", &with_gap(4, 6, 6), &[(Offence::Late, 2)]);

    // The gap came at 35 ms, and number 5 was published at 50 ms.
    expect("a gap before the publication", &with_gap(4, 6, 4), &[(Offence::Lost, 2)]);

    expect("declared", &told_at(kind, 4, 6, at(5)), none);
    let told = told_at(kind, 4, 6, at(5));
    let plain = if kind == Kind::Plain { Some(&2) } else { None };
    assert_eq!((told.declared, told.declared_plain.get(CHANNEL)), (2, plain));
    expect("declared at the end", &told_at(kind, 8, 10, at(9)), none);
    expect("declared too soon", &told_at(kind, 8, 10, at(8)), &[(Offence::Lost, 1)]);
}

/// Events from `from` to `to` are missing, and a gap came at `time`.
fn told_at(kind: Kind, from: usize, to: usize, time: Duration) -> Verdict {
    let mut lines = vec![
        Line { at: at(0), what: What::Opened(0) },
        Line { at: at(0), what: live(false, None) },
    ];
    let line = |n: usize| Line { at: at(n as u64), what: event(n) };
    lines.extend((0..from).map(line));
    lines.push(Line { at: time, what: gap() });
    lines.extend((to..10).map(line));
    let name = "made-up".to_owned();
    let (wire, manner, channels) = (Wire::Plain, Manner::Steady, vec![CHANNEL.to_owned()]);
    let log = ClientLog { name, wire, manner, channels, lines };
    check(&[publisher(kind, &[])], &[log], &|_, _, _| false)
}

fn resumed_sockets() {
    let durable = |what: &[What]| verdict(Kind::Durable, &[], what);
    let back = |resumes, recovered, after: std::ops::Range<usize>| {
        let mut what = events(0..5);
        what.extend([What::Left, What::Opened(1), live(resumes, recovered)]);
        what.extend(events(after));
        what
    };

    expect("resumed", &durable(&back(true, Some(true), 5..10)), &[]);
    let lost = [(Offence::Lost, 2)];
    expect("resumed with a hole", &durable(&back(true, Some(true), 7..10)), &lost);
    expect("resumed without a word", &durable(&back(true, None, 7..10)), &lost);
    let doubled = [(Offence::Doubled, 2)];
    expect("resumed twice", &durable(&back(true, Some(true), 3..10)), &doubled);
    expect("anew on a replica that is behind", &durable(&back(false, None, 3..10)), &[]);

    // The declaration came at 45 ms: 5 and 6 were published later.
    expect("not recovered, too soon", &durable(&back(true, Some(false), 7..10)), &lost);

    let mut what = events(0..5);
    what.push(What::Left);
    what.push(What::Opened(1));
    what.extend(events(5..10));
    expect("events before subscribed", &durable(&what), &[(Offence::Disorder, 5)]);

    let mut what = events([0, 1, 2, 4]);
    what.extend([What::Left, What::Opened(1), live(false, None)]);
    what.extend(events(5..10));
    expect("lost, and begun anew", &verdict(Kind::Plain, &[], &what), &[(Offence::Late, 1)]);

    // A plain channel makes no claim for the time away: 7 is the first event after it.
    let mut what = events(0..5);
    what.extend([What::Left, What::Opened(1), event(6)]);
    what.insert(7, live(false, None));
    let v = verdict(Kind::Plain, &[], &what);
    expect("plain, away", &v, &[(Offence::Lost, 3 + 1)]);
}

fn other_offences() {
    let mut what = events(0..10);
    what.push(What::Closed { code: 1006, reason: String::new() });
    expect("closed", &verdict(Kind::Plain, &[], &what), &[(Offence::Closed, 2)]);
    let mut what = events(0..10);
    what.push(What::Foreign("another's".to_owned()));
    expect("foreign", &verdict(Kind::Plain, &[], &what), &[(Offence::Foreign, 1)]);
    let what = events(0..11);
    expect("invented", &verdict(Kind::Plain, &[], &what), &[(Offence::Foreign, 1)]);
}
