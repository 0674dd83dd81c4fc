//! How long clients were away in a rollout and how they came back, computed from their logs, and
//! what is wrong with it.
//!
//! Not here: the rollout itself (`rollout`).
//!
//! These are pure functions, so that they can be tried on made-up times.

use std::collections::HashSet;
use std::time::Duration;

use super::record::{ClientLog, What};

/// How much longer than its hint a client may stay away.
const PATIENCE: Duration = Duration::from_secs(1);
/// The busiest second may have this many times the mean.
const STEEPEST: usize = 3;

/// One client's absence: from the end of a socket until all its channels were live again.
#[derive(Debug, Clone)]
pub struct Absence {
    pub client: String,
    pub closed: Duration,
    pub hint: Option<Duration>,
    pub back: Option<Duration>,
}

/// The end of one replica, as seen by the process that sent SIGTERM.
#[derive(Debug, Clone, Copy)]
pub struct Replacement {
    pub term: Duration,
    pub settle: Duration,
    pub window: Duration,
    pub exited: Duration,
}

impl Replacement {
    fn begins(&self) -> Duration {
        self.term + self.settle
    }

    /// Whether a socket that ended at `at` belongs to this replacement. Sockets end within the
    /// window; clients notice the last ones a little later.
    fn covers(&self, at: Duration) -> bool {
        at >= self.begins() && at <= self.begins() + self.window + PATIENCE
    }

    /// How many of these moments are in each second of the window.
    pub fn each_second(&self, moments: impl Iterator<Item = Duration>) -> Vec<usize> {
        let seconds = usize::try_from(self.window.as_secs().max(1)).unwrap();
        let mut counts = vec![0; seconds];
        for moment in moments {
            let second = moment.saturating_sub(self.begins()).as_secs();
            counts[usize::try_from(second).unwrap().min(seconds - 1)] += 1;
        }
        counts
    }
}

pub fn absences(logs: &[ClientLog]) -> Vec<Absence> {
    let mut found = Vec::new();
    for log in logs {
        let (mut hint, mut live) = (None, HashSet::new());
        let mut away: Option<Absence> = None;

        for line in &log.lines {
            match &line.what {
                What::Hint(after) => hint = Some(*after),
                What::Closed { .. } => {
                    live.clear();
                    // A client that is closed again before it has all its channels is still away.
                    away.get_or_insert(Absence {
                        client: log.name.clone(),
                        closed: line.at,
                        hint: hint.take(),
                        back: None,
                    });
                }
                What::Live { channel, .. } => {
                    live.insert(channel.as_str());
                    if live.len() == log.channels.len() {
                        found.extend(away.take().map(|a| Absence { back: Some(line.at), ..a }));
                    }
                }
                _ => {}
            }
        }

        found.extend(away);
    }
    found
}

/// Everything that a good rollout would not show.
pub fn problems(absences: &[Absence], replacements: &[Replacement]) -> Vec<String> {
    let mut wrong: Vec<String> = absences.iter().filter_map(impatient).collect();
    for absence in absences {
        if !replacements.iter().any(|r| r.covers(absence.closed)) {
            let at = absence.closed.as_secs_f64();
            wrong.push(format!("{}: closed outside of a window, at {at:.1}s", absence.client));
        }
    }

    for (number, replacement) in replacements.iter().enumerate() {
        let own: Vec<&Absence> = absences.iter().filter(|a| replacement.covers(a.closed)).collect();
        let closed = replacement.each_second(own.iter().map(|a| a.closed));
        let back = replacement.each_second(own.iter().filter_map(|a| a.back));

        for (what, counts) in [("closed", closed), ("came back", back)] {
            let mean = own.len().div_ceil(counts.len());
            let most = counts.iter().max().copied().unwrap_or(0);
            if own.is_empty() || most > STEEPEST * mean {
                wrong.push(format!(
                    "replica {number}: not spread over the window: {what} {counts:?}"
                ));
            }
        }
    }

    wrong
}

fn impatient(absence: &Absence) -> Option<String> {
    let Absence { client, closed, hint, back } = absence;
    let at = closed.as_secs_f64();
    let Some(hint) = hint else {
        return Some(format!("{client}: closed without a hint at {at:.1}s"));
    };
    let Some(back) = back else { return Some(format!("{client}: away since {at:.1}s")) };
    let away = *back - *closed;
    (away > *hint + PATIENCE)
        .then(|| format!("{client}: away for {away:?} at {at:.1}s, told {hint:?}"))
}

/// Panics if a bad rollout passes, or if a good one does not.
pub fn self_test() {
    let ms = Duration::from_millis;
    let one = Replacement { term: ms(0), settle: ms(5000), window: ms(20_000), exited: ms(26_000) };
    let good: Vec<Absence> = (0..200)
        .map(|n| {
            let closed = ms(5000 + n * 100);
            let (hint, back) = (Some(ms(500)), Some(closed + ms(700)));
            Absence { client: format!("c{n}"), closed, hint, back }
        })
        .collect();
    assert_eq!(problems(&good, &[one]), Vec::<String>::new());

    let bad = |change: &dyn Fn(&mut Absence), expected: &str| {
        let mut changed = good.clone();
        change(&mut changed[7]);
        let wrong = problems(&changed, &[one]);
        assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {wrong:?}");
    };

    bad(&|a| a.back = Some(a.closed + ms(1501)), "away for");
    bad(&|a| a.back = None, "away since");
    bad(&|a| a.hint = None, "without a hint");
    bad(&|a| (a.closed, a.back) = (ms(4900), Some(ms(5600))), "outside of a window");
    bad(&|a| (a.closed, a.back) = (ms(26_100), Some(ms(26_500))), "outside of a window");

    let at_once = |a: &Absence| Absence { closed: ms(9000), back: Some(ms(9700)), ..a.clone() };
    let cliff: Vec<Absence> = good.iter().map(at_once).collect();
    assert_eq!(problems(&cliff, &[one]).len(), 2, "all in one second");
    assert_eq!(problems(&[], &[one]).len(), 2, "nobody was sent away");
}
