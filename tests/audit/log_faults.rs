//! The log's reader is gone, or hangs, or its disk is full, while refused tokens cause line after
//! line. The gateway serves as ever, ends when it is told to, and says afterwards what was dropped.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::sleep;
use tollgate_support::gateway::{Gateway, Reader};
use tollgate_support::tokens::long_token;

use super::crowd::{Answer, knock};
use super::probe::Probe;
use super::round::Round;
use super::rows::Fault;

/// Refused tokens on each gateway, in full and in short rounds. A hung reader's pipe and the
/// gateway's queue hold some 4,500 lines.
const HUNG: (usize, usize) = (50_000, 6_000);
const OTHERS: (usize, usize) = (5_000, 500);
/// How long the flood may take.
const MOST: Duration = Duration::from_secs(60);
const BATCH: usize = 100;
/// A drain of a second, the last messages to slow clients, and 2 s for the log.
const DRAINED: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(15);
const DROPPED: &str = "log_lines_dropped_total";

pub async fn inject(fault: Fault, round: &mut Round) {
    // A full disk has been there since the gateway's start.
    let (reader, many) = match fault {
        Fault::LogGone => (Some(Reader::Gone), OTHERS),
        Fault::LogHung => (Some(Reader::Hangs), HUNG),
        _ => (None, OTHERS),
    };
    let many = if round.pace.full { many.0 } else { many.1 };
    for gateway in &round.gateways {
        reader.into_iter().for_each(|reader| gateway.log_reader(reader));
    }

    let began = round.cast.clock.now();
    let gateways = &round.gateways;
    let over = AtomicBool::new(false);
    let floods = async {
        let floods = join_all(gateways.iter().map(|gateway| flood(gateway, many))).await;
        over.store(true, Ordering::Relaxed);
        floods
    };
    let (floods, served) = tokio::join!(floods, while_it_lasts(round, &over));

    let wrong = floods.iter().filter_map(|flood| flood.as_ref().err().cloned());
    let refused: Vec<usize> = floods.iter().filter_map(|f| f.as_ref().ok().copied()).collect();
    let wrong: Vec<String> = wrong.chain(served.wrong).collect();
    round.wrong.extend(wrong);
    round.shown = served.shown.map(|at| at.saturating_sub(began));
    let all: usize = refused.iter().sum();
    let took = (round.cast.clock.now() - began).as_secs_f64();
    round.notes.push(format!(
        "{all} tokens refused in {took:.1} s; {} asked meanwhile were answered, the slowest in {:?}",
        served.asked, served.slowest
    ));

    drains(round).await;
    if fault == Fault::LogHung {
        says_what_was_dropped(round, refused.get(1).copied().unwrap_or_default()).await;
    }
    round.lifted = Some(round.cast.clock.now());
}

/// Has tokens refused, most on one socket, some at the handshake. Returns how many.
async fn flood(gateway: &Gateway, many: usize) -> Result<usize, String> {
    let why = |(code, reason): (u16, String)| format!("a socket that refreshes: {code} {reason}");
    let mut probe = Probe::open(&gateway.public, &long_token("refreshes")).await.map_err(why)?;
    let (mut refused, began) = (0, Instant::now());
    while refused < many && began.elapsed() < MOST {
        refused += probe.refused_refreshes(BATCH).await.map_err(why)?;
        let (answer, _) = knock(&gateway.public, Ipv4Addr::LOCALHOST, "nonsense").await;
        if answer != Answer::Refused(4401) {
            return Err(format!("a bad token at the door: {answer:?}"));
        }
        refused += 1;
    }
    Ok(refused)
}

#[derive(Default)]
struct Served {
    wrong: Vec<String>,
    asked: usize,
    slowest: Duration,
    shown: Option<Duration>,
}

/// Asks all gateways for signs of life until the flood is over and each has dropped lines.
async fn while_it_lasts(round: &Round, over: &AtomicBool) -> Served {
    let mut served = Served::default();
    let began = Instant::now();

    loop {
        let mut dropped = true;
        for gateway in &round.gateways {
            let asked = Instant::now();
            if !gateway.is_alive().await {
                served.wrong.push("/livez did not answer".to_owned());
            }
            let (answer, _) = knock(&gateway.public, Ipv4Addr::LOCALHOST, &long_token("new")).await;
            if answer != Answer::Served {
                served.wrong.push(format!("a new socket was not opened: {answer:?}"));
            }
            served.slowest = served.slowest.max(asked.elapsed());
            served.asked += 2;
            dropped &= gateway.metric_or_zero(DROPPED).await > 0.0;
        }

        if dropped {
            served.shown.get_or_insert(round.cast.clock.now());
        }

        let late = began.elapsed() > MOST + PATIENCE;
        if late && !dropped {
            served.wrong.push("no line was dropped: this round proves nothing".to_owned());
        }
        if late || (dropped && over.load(Ordering::Relaxed)) {
            return served;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The first gateway ends in time, though nothing reads its last lines.
async fn drains(round: &mut Round) {
    round.cast.replicas.lock()[0].open = false;
    let gateway = &mut round.gateways[0];
    gateway.signal("-TERM");

    let began = Instant::now();
    let ended = loop {
        let ended = gateway.ended();
        if ended.is_some() || began.elapsed() > DRAINED {
            break ended;
        }
        sleep(Duration::from_millis(20)).await;
    };

    round.notes.push(format!("drained in {:.1} s", began.elapsed().as_secs_f64()));
    match ended {
        Some(status) if status.success() => {}
        Some(status) => round.wrong.push(format!("it ended with {status}")),
        None => round.wrong.push(format!("it does not end within {DRAINED:?} of SIGTERM")),
    }
}

/// Reads the second gateway's log again, and checks that it says what was dropped.
async fn says_what_was_dropped(round: &mut Round, refused: usize) {
    let gateway = &round.gateways[1];
    gateway.log_reader(Reader::Reads);

    let began = Instant::now();
    let account = loop {
        let counted = gateway.metric_or_zero(DROPPED).await;
        let account = account(&gateway.log(), refused, counted);
        if account.is_ok() || began.elapsed() > PATIENCE {
            break account;
        }
        sleep(Duration::from_millis(100)).await;
    };

    match account {
        Ok(text) => round.notes.push(text),
        Err(why) => round.wrong.push(why),
    }
}

/// Checks that every refused token is a line of the log, or one of the lines that the log, like the
/// metric, counts as dropped.
fn account(log: &str, refused: usize, counted: f64) -> Result<String, String> {
    let number = |line: &str, before: &str| -> Option<usize> {
        let head = &line[..line.find(before)?];
        head.rsplit(' ').next()?.parse().ok()
    };
    let said = |line: &str| {
        number(line, " log lines were dropped").or_else(|| number(line, " log line was dropped"))
    };
    let dropped: usize = log.lines().filter_map(said).sum();

    let stands_for = |line: &str| {
        let repeated = line.split("repeated=").nth(1).and_then(|rest| rest.split(' ').next());
        repeated.and_then(|n| n.parse::<usize>().ok()).unwrap_or(1)
    };
    let written: usize =
        log.lines().filter(|line| line.contains("token refused")).map(stands_for).sum();

    let text = format!(
        "of {refused} refused tokens {written} are in the log, which says that {dropped} lines were dropped"
    );

    if dropped == 0 {
        return Err("the log does not say that lines were dropped".to_owned());
    }
    if dropped as f64 != counted {
        return Err(format!("{text}; the metric says {counted}"));
    }
    if written + dropped < refused {
        return Err(format!("{text}: some are nowhere"));
    }
    Ok(text)
}

/// Panics if a log that hides something passes, or if a good one does not.
pub fn self_test() {
    let log = "1 WARN tollgate::session: token refused reason=malformed repeated=2\n\
               2  WARN tollgate::logging: 6 log lines were dropped: the reader of the log was slow\n\
               3 WARN tollgate::session: token refused reason=malformed\n\
               4  WARN tollgate::logging: 1 log line was dropped: the reader of the log was slow\n";
    assert!(account(log, 10, 7.0).is_ok(), "{:?}", account(log, 10, 7.0));
    for (log, refused, counted, expected) in [
        (log, 11, 7.0, "some are nowhere"),
        (log, 10, 8.0, "the metric says 8"),
        ("1 WARN tollgate::session: token refused", 1, 0.0, "does not say"),
    ] {
        let wrong = account(log, refused, counted).unwrap_err();
        assert!(wrong.contains(expected), "{expected}: {wrong}");
    }
}
