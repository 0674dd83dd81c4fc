//! The verdict on a round of purchases. Pure, so that `self_test` can try it on made-up records.
//!
//! What the table has at the end is true. Each device holds exactly that, out of events and of answers to
//! what it asked when it was told to ask. Each purchase is in its channel's history once, and behind
//! every one that was committed before it began.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::records::{Device, Entry, Fate, Records};
use crate::record::What;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offence {
    /// A device does not hold it, or no history has had it.
    Lost,
    /// It came twice without a word in between.
    Doubled,
    /// It was announced and is not in the table.
    Untrue,
    /// It came before one that was committed before it began.
    Disorder,
    /// It waits, is dead, or is guarded for ever.
    Undrained,
    /// It is not where the outbox says.
    Astray,
}

pub const OFFENCES: [Offence; 6] = [
    Offence::Lost,
    Offence::Doubled,
    Offence::Untrue,
    Offence::Disorder,
    Offence::Undrained,
    Offence::Astray,
];

#[derive(Debug, Default)]
pub struct Verdict {
    pub cases: Vec<(Offence, String)>,
    /// Purchases that the table has.
    pub bought: usize,
    /// Purchases that PostgreSQL had committed and lost, which only an asynchronous standby may.
    pub lost_by_postgres: usize,
    /// Purchases that came again in a later epoch.
    pub again: usize,
    pub events: usize,
    pub asked: usize,
    /// The longest time from a commit to its first event.
    pub longest_wait: Duration,
}

impl Verdict {
    pub fn count(&self, offence: Offence) -> usize {
        self.cases.iter().filter(|(kind, _)| *kind == offence).count()
    }

    fn add(&mut self, offence: Offence, text: String) {
        self.cases.push((offence, text));
    }
}

pub fn judge(records: &Records) -> Verdict {
    let mut verdict = Verdict { bought: records.table.len(), ..Verdict::default() };
    commits(records, &mut verdict);
    histories(records, &mut verdict);
    order(records, &mut verdict);
    marks(records, &mut verdict);
    rest(records, &mut verdict);
    for device in &records.devices {
        holds(records, device, &mut verdict);
        doubled(device, &mut verdict);
    }
    verdict.longest_wait = longest_wait(records);
    verdict
}

/// What PostgreSQL says of its commits.
fn commits(records: &Records, verdict: &mut Verdict) {
    for (number, purchase) in records.purchases.iter().enumerate() {
        match (purchase.fate, records.table.contains(&number)) {
            (Fate::Committed(_), false) if records.forgotten.commits => {
                verdict.lost_by_postgres += 1;
            }
            (Fate::Committed(_), false) => {
                verdict.add(Offence::Lost, format!("{number}: PostgreSQL lost the commit"));
            }
            (Fate::RolledBack, true) => {
                verdict.add(Offence::Untrue, format!("{number}: rolled back, and in the table"));
            }
            _ => {}
        }
    }
}

/// Whether a purchase may be announced: it is in the table, or PostgreSQL has lost it.
fn is_true(records: &Records, number: usize) -> bool {
    let may_be_lost = || {
        let fate = records.purchases.get(number).map(|purchase| purchase.fate);
        records.forgotten.commits && fate.is_some_and(|fate| fate != Fate::RolledBack)
    };
    records.table.contains(&number) || may_be_lost()
}

fn histories(records: &Records, verdict: &mut Verdict) {
    let mut epochs: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    let mut places: BTreeMap<(usize, u64, u64), usize> = BTreeMap::new();
    for entry in &records.history {
        let &Entry { user, epoch, offset, purchase: number } = entry;
        if !is_true(records, number) || records.purchases[number].user != user {
            verdict.add(Offence::Untrue, format!("{number}: not true, at {epoch}-{offset}"));
        }
        if let Some(other) = places.insert((user, epoch, offset), number) {
            verdict.add(Offence::Astray, format!("{other} and {number} at {epoch}-{offset}"));
        }

        let of_number = epochs.entry(number).or_default();
        let is_first = of_number.is_empty();
        if !of_number.insert(epoch) {
            let text = format!("{number}: twice in epoch {epoch}, again at {offset}");
            verdict.add(Offence::Doubled, text);
        } else if !is_first && records.forgotten.guards {
            verdict.again += 1;
        } else if !is_first {
            verdict.add(Offence::Doubled, format!("{number}: in {} epochs", of_number.len()));
        }
    }

    if !records.forgotten.histories {
        for number in records.table.iter().filter(|number| !epochs.contains_key(number)) {
            verdict.add(Offence::Lost, format!("{number}: in no history"));
        }
    }
}

/// A purchase whose commit was confirmed before another one began stands before that one.
fn order(records: &Records, verdict: &mut Verdict) {
    let mut channels: BTreeMap<(usize, u64), Vec<usize>> = BTreeMap::new();
    for entry in &records.history {
        let known = entry.purchase < records.purchases.len();
        channels
            .entry((entry.user, entry.epoch))
            .or_default()
            .extend(known.then_some(entry.purchase));
    }

    for ((_, epoch), numbers) in channels {
        let mut earliest: Option<(Duration, usize)> = None;
        for number in numbers.into_iter().rev() {
            let purchase = &records.purchases[number];
            if let Some((committed, behind)) = earliest
                && committed < purchase.began
            {
                let text = format!("{number}: before {behind}, which was there first ({epoch})");
                verdict.add(Offence::Disorder, text);
            }
            if let Fate::Committed(at) = purchase.fate
                && earliest.is_none_or(|(committed, _)| at < committed)
            {
                earliest = Some((at, number));
            }
        }
    }
}

fn marks(records: &Records, verdict: &mut Verdict) {
    let place = |entry: &Entry| (entry.user, entry.epoch, entry.offset);
    let held: BTreeMap<_, _> = records.history.iter().map(|e| (place(e), e.purchase)).collect();
    for mark in &records.marks {
        let is_right = match held.get(&place(mark)) {
            Some(number) => *number == mark.purchase,
            None => records.forgotten.histories,
        };
        if !is_right {
            let text = format!("{}: not at {}-{}", mark.purchase, mark.epoch, mark.offset);
            verdict.add(Offence::Astray, text);
        }
    }
}

fn rest(records: &Records, verdict: &mut Verdict) {
    for (count, what) in [(records.pending, "waiting"), (records.dead, "dead")] {
        if count != 0 {
            verdict.add(Offence::Undrained, format!("{count} rows are {what}"));
        }
    }
    for what in &records.unsettled {
        verdict.add(Offence::Undrained, what.clone());
    }
}

/// A device's set is the table's.
fn holds(records: &Records, device: &Device, verdict: &mut Verdict) {
    let name = &device.log.name;
    let mut held = device.answered.clone();
    for line in &device.log.lines {
        match &line.what {
            What::Event { stream, number, .. } => {
                verdict.events += 1;
                if *stream != device.user {
                    verdict.add(Offence::Untrue, format!("{number}: not {name}'s"));
                }
                held.insert(*number);
            }
            What::Foreign(text) => {
                verdict.add(Offence::Untrue, format!("{name} was sent {text}"));
            }
            _ => {}
        }
    }
    verdict.asked += device.asked;

    for number in held.iter().filter(|number| !is_true(records, **number)) {
        verdict.add(Offence::Untrue, format!("{number}: not true, and {name} holds it"));
    }
    let own = |number: &&usize| {
        records.purchases.get(**number).is_some_and(|purchase| purchase.user == device.user)
    };
    for number in records.table.iter().filter(own).filter(|number| !held.contains(number)) {
        verdict.add(Offence::Lost, format!("{number}: {name} does not hold it"));
    }
    if device.owes {
        verdict.add(Offence::Lost, format!("{name} got no answer from the shop"));
    }
}

/// An event does not come twice without a word in between.
fn doubled(device: &Device, verdict: &mut Verdict) {
    let mut seen = HashSet::new();
    for line in &device.log.lines {
        match &line.what {
            What::Event { number, .. } if !seen.insert(*number) => {
                let text = format!("{number}: twice at {}", device.log.name);
                verdict.add(Offence::Doubled, text);
            }
            what if declares(what) => seen.clear(),
            _ => {}
        }
    }
}

/// Whether this tells a device that something may be missing, so that it has to ask.
pub fn declares(what: &What) -> bool {
    match what {
        What::Gap { .. } => true,
        What::Live { resumes, recovered, .. } => !*resumes || *recovered == Some(false),
        _ => false,
    }
}

fn longest_wait(records: &Records) -> Duration {
    let mut first: BTreeMap<usize, Duration> = BTreeMap::new();
    for line in records.devices.iter().flat_map(|device| &device.log.lines) {
        if let What::Event { number, .. } = line.what {
            let at = first.entry(number).or_insert(line.at);
            *at = line.at.min(*at);
        }
    }

    let waited = |(number, at): (usize, Duration)| match records.purchases.get(number)?.fate {
        Fate::Committed(committed) => Some(at.saturating_sub(committed)),
        Fate::RolledBack | Fate::Unknown => None,
    };
    first.into_iter().filter_map(waited).max().unwrap_or_default()
}
