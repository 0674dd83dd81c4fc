//! What gateways say of themselves in `/readyz` while a fault lasts: asking for it, and judging it.
//! The judge is pure, so that it can be tried on made-up answers.

use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use tollgate_support::http::try_get;

use super::record::{Clock, Shared};

const ASK_EVERY: Duration = Duration::from_millis(100);
/// Gateways try to write every 2 s, and test machines are busy.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);
const OVER_WITHIN: Duration = Duration::from_secs(8);

/// One answer of `/readyz`. A gateway that is not there gives none.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub at: Duration,
    pub replica: usize,
    pub well: bool,
}

/// How long it took until the last replica said that something was wrong, and until the last one
/// said that nothing was wrong any more.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Detection {
    pub shown: Option<Duration>,
    pub over: Option<Duration>,
}

/// Asks the gateways with these admin listeners, for ever.
pub async fn ask(clock: Clock, admins: Vec<String>, answers: Shared<Vec<Answer>>) {
    loop {
        for (replica, admin) in admins.iter().enumerate() {
            let Some((_, body)) = try_get(admin, "/readyz").await else { continue };
            let Ok(body) = serde_json::from_str::<Value>(&body) else { continue };
            let well = body["ready"] == true && body["degraded"] == false;
            answers.lock().push(Answer { at: clock.now(), replica, well });
        }
        sleep(ASK_EVERY).await;
    }
}

/// How soon a fault that came and went was shown, and how soon its end was.
pub fn detection(answers: &[Answer], came: Duration, went: Duration) -> Detection {
    let replicas: Vec<usize> = replicas(answers);
    let last = |times: Vec<Option<Duration>>| times.into_iter().max().flatten();
    let shown = replicas.iter().map(|n| Some(unwell(answers, *n, came).next()?.at - came));
    let over = replicas.iter().map(|n| {
        let until = unwell(answers, *n, came).last()?.at.max(went);
        let well = of(answers, *n).find(|a| a.well && a.at >= until)?;
        Some(well.at - went)
    });
    Detection { shown: last(shown.collect()), over: last(over.collect()) }
}

/// What is wrong with how a fault that has to be shown was shown.
pub fn problems(answers: &[Answer], came: Duration, went: Duration) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = replicas(answers);
    if all.is_empty() {
        wrong.push("no replica answered /readyz".to_owned());
    }

    for replica in all {
        let own = answers.iter().filter(|a| a.replica == replica).copied().collect::<Vec<_>>();
        let mut say = |what: String| wrong.push(format!("replica {replica}: {what}"));
        if own.iter().any(|a| !a.well && a.at < came) {
            say("/readyz was not well before the fault".to_owned());
        }

        match detection(&own, came, went).shown {
            None => say("/readyz never said what was wrong".to_owned()),
            Some(after) if after > SHOWN_WITHIN => say(format!("/readyz said so after {after:?}")),
            Some(_) => match detection(&own, came, went).over {
                None => say("/readyz never said that it is over".to_owned()),
                Some(after) if after > OVER_WITHIN => {
                    say(format!("/readyz said that it is over after {after:?}"));
                }
                Some(_) => {}
            },
        }
    }

    wrong
}

fn replicas(answers: &[Answer]) -> Vec<usize> {
    let mut all: Vec<usize> = answers.iter().map(|a| a.replica).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn of(answers: &[Answer], replica: usize) -> impl DoubleEndedIterator<Item = &Answer> {
    answers.iter().filter(move |a| a.replica == replica)
}

fn unwell(
    answers: &[Answer],
    replica: usize,
    came: Duration,
) -> impl DoubleEndedIterator<Item = &Answer> {
    of(answers, replica).filter(move |a| !a.well && a.at >= came)
}

/// Panics if a gateway that says nothing passes, or if a good one does not.
pub fn self_test() {
    let s = Duration::from_secs;
    // Two replicas, a fault from second 10 to 20.
    let answers = |ill: [std::ops::Range<u64>; 2]| {
        let all = (0..40).flat_map(|n| [(n, 0), (n, 1)]);
        let answer = |(n, replica): (u64, usize)| Answer {
            at: s(n),
            replica,
            well: !ill[replica].contains(&n),
        };
        all.map(answer).collect::<Vec<_>>()
    };

    let good = answers([11..22, 12..21]);
    assert_eq!(problems(&good, s(10), s(20)), Vec::<String>::new());
    let seen = Detection { shown: Some(s(2)), over: Some(s(2)) };
    assert_eq!(detection(&good, s(10), s(20)), seen);

    let bad = |ill, expected: &str| {
        let wrong = problems(&answers(ill), s(10), s(20));
        assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {wrong:?}");
    };

    bad([11..22, 0..0], "replica 1: /readyz never said what");
    bad([16..22, 11..22], "replica 0: /readyz said so after 6s");
    bad([11..22, 11..40], "replica 1: /readyz never said that it is over");
    bad([11..30, 11..22], "replica 0: /readyz said that it is over after 10s");
    bad([9..22, 11..22], "replica 0: /readyz was not well before");
    assert_eq!(problems(&[], s(10), s(20)).len(), 1, "nobody answered");
}
