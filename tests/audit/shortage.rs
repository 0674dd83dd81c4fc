//! There is not room for all clients: too few file descriptors, or one address that takes what it
//! can get. Newcomers are refused with a clear answer. Connected clients, and those from other
//! addresses, miss nothing.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tollgate_support::gateway::Gateway;
use tollgate_support::tokens::long_token;

use super::backend::Backend;
use super::crowd::{self, Answer, Crowd, Habit, knock};
use super::record::{ClientLog, Line, Manner, What, Wire};
use super::round::Round;

const PATIENCE: Duration = Duration::from_secs(15);
/// The connections to Redis of a gateway, by its metric: it subscribes, publishes and writes.
const TO_REDIS: f64 = 3.0;
/// Descriptors of a gateway that has few of them, besides those for its clients.
pub const FEW_FILES: usize = 52;
/// Strangers in front of each gateway.
const STRANGERS: usize = 40;
const ATTACKER: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const OPENED_WITHIN: Duration = Duration::from_secs(4);

/// The first gateway has few descriptors from its start, the second from now on.
pub async fn descriptors(round: &mut Round) {
    let gateways = &round.gateways;
    // The gateway sets a quarter aside; this leaves room for a few newcomers.
    gateways[1].allow_files((gateways[1].open_files() + 6) * 4 / 3 + 1);

    let addresses: Vec<Ipv4Addr> = (1..=20).map(|n| Ipv4Addr::new(127, 0, 1, n)).collect();
    let habits = [Habit::Full(Duration::from_millis(500)), Habit::Idle];
    let gather = |g: &Gateway| Crowd::gather(&g.public, STRANGERS, &habits, &addresses);
    let crowds: Vec<Crowd> = gateways.iter().map(gather).collect();
    let refused = "rejected_total{reason=\"limit_open_files\"}";
    round.shown = until_rejected(round, refused).await;

    let Backend::Alone(server) = &round.backend else { return };
    let (times, more) = if round.pace.full { (8, 100) } else { (2, 30) };
    let mut wrong = Vec::new();
    let mut slowest = Duration::ZERO;
    for _ in 0..times {
        let mut before = Vec::new();
        for gateway in &round.gateways {
            before.push(gateway.metric_or_zero("redis_reconnects_total").await);
        }

        for kind in ["pubsub", "normal"] {
            server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
        }
        let began = Instant::now();

        for (gateway, before) in round.gateways.iter().zip(before) {
            let back = async {
                loop {
                    let made = gateway.metric_or_zero("redis_reconnects_total").await > before;
                    if made && gateway.metric_or_zero("redis_connected").await == TO_REDIS {
                        return;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            };
            if tokio::time::timeout(PATIENCE, back).await.is_err() {
                wrong.push(format!("Redis is not connected again within {PATIENCE:?}"));
            }
            if !gateway.is_alive().await {
                wrong.push("/livez did not answer".to_owned());
            }
        }

        slowest = slowest.max(began.elapsed());
        more_come(&crowds, more).await;
    }

    round.notes.push(format!("Redis connected again {times} times, the slowest in {slowest:?}"));
    round.wrong.extend(wrong);
    judge(round, &crowds);
}

/// One address opens all the connections that it may, and more, in every way.
pub async fn one_address(round: &mut Round) {
    let habits = [Habit::Idle, Habit::Slow, Habit::Full(Duration::from_secs(2))];
    let size = if round.pace.full { 450 } else { 240 };
    let gather = |g: &Gateway| Crowd::gather(&g.public, size, &habits, &[ATTACKER]);
    let crowds: Vec<Crowd> = round.gateways.iter().map(gather).collect();
    let refused = "rejected_total{reason=\"limit_per_ip\"}";
    round.shown = until_rejected(round, refused).await;

    let lasts = Duration::from_secs(if round.pace.full { 15 } else { 2 });
    let (began, mut opened, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < lasts {
        for gateway in &round.gateways {
            let asked = Instant::now();
            let (answer, _) = knock(&gateway.public, ELSEWHERE, &long_token("elsewhere")).await;
            slowest = slowest.max(asked.elapsed());
            opened += 1;
            if answer != Answer::Served {
                round.wrong.push(format!("somebody from another address got {answer:?}"));
            }
        }
        sleep(Duration::from_millis(100)).await;
    }

    if slowest > OPENED_WITHIN {
        round.wrong.push(format!("somebody from another address waited for {slowest:?}"));
    }

    round.notes.push(format!("{opened} from elsewhere opened sockets, the slowest in {slowest:?}"));
    judge(round, &crowds);
    drop(crowds);
    round.wrong.extend(turned_away(&round.cast.seen(), round.injected.unwrap().1));
}

/// Waits until each gateway has answered `more` further newcomers, but no longer than `PATIENCE`.
async fn more_come(crowds: &[Crowd], more: usize) {
    let began = Instant::now();
    let due: Vec<usize> = crowds.iter().map(|crowd| crowd.answers().len() + more).collect();
    let come = || crowds.iter().zip(&due).all(|(crowd, due)| crowd.answers().len() >= *due);
    while !come() && began.elapsed() < PATIENCE {
        sleep(Duration::from_millis(50)).await;
    }
}

/// How long it took until every gateway had refused a newcomer.
async fn until_rejected(round: &Round, metric: &str) -> Option<Duration> {
    let began = Instant::now();
    for gateway in &round.gateways {
        while gateway.metric_or_zero(metric).await == 0.0 {
            if began.elapsed() > PATIENCE {
                return None;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    Some(began.elapsed())
}

fn judge(round: &mut Round, crowds: &[Crowd]) {
    for (replica, crowd) in crowds.iter().enumerate() {
        let answers = crowd.answers();
        let served = answers.iter().filter(|a| **a == Answer::Served).count();
        let all = answers.len();
        round.notes.push(format!("replica {replica}: {all} newcomers asked, {served} were served"));
        let wrong = crowd::problems(&answers).into_iter();
        round.wrong.extend(wrong.map(|why| format!("replica {replica}: {why}")));
    }
    round.lifted = Some(round.cast.clock.now());
}

/// Clients that were refused, though there was room for them.
fn turned_away(clients: &[ClientLog], since: Duration) -> Vec<String> {
    let refused = |what: &What| matches!(what, What::Note(n) if n.starts_with("refused by"));
    let mut wrong = Vec::new();
    for client in clients {
        let mut lines = client.lines.iter().filter(|line| line.at >= since);
        wrong.extend(
            lines
                .find(|line| refused(&line.what))
                .map(|line| format!("{}: {:?}", client.name, line.what)),
        );
    }
    wrong
}

/// Panics if a client that was turned away goes unnoticed.
pub fn self_test() {
    let log = |text: &str, seconds| ClientLog {
        name: "made-up".to_owned(),
        wire: Wire::Plain,
        manner: Manner::Wanders,
        channels: Vec::new(),
        lines: vec![Line { at: Duration::from_secs(seconds), what: What::Note(text.to_owned()) }],
    };
    let since = Duration::from_secs(10);
    let wrong = |text, seconds| turned_away(&[log(text, seconds)], since).len();
    assert_eq!(wrong("refused by replica 1: HTTP error: 503", 11), 1);
    assert_eq!(wrong("refused by replica 1: HTTP error: 503", 9), 0);
    assert_eq!(wrong("pong", 11), 0);
}
