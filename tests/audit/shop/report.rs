//! What is printed of rounds of purchases.

use super::stage::Outcome;
use super::verdict::{OFFENCES, Offence};

const SHOWN: usize = 5;
/// How much is shown of the end of each log.
const LINES: usize = 40;
const COLUMNS: [&str; 15] = [
    "fault",
    "times",
    "purchases",
    "API died",
    "lost by PostgreSQL",
    "clock moved",
    "longest wait s",
    "events",
    "asked",
    "again, told",
    "lost",
    "doubled",
    "untrue",
    "out of order",
    "left over",
];

/// How a round went: the outcome, or why there is none.
pub struct Result {
    pub name: String,
    pub outcome: std::result::Result<Outcome, String>,
}

impl Result {
    pub fn failed(&self) -> bool {
        self.outcome.as_ref().map_or(true, |outcome| !outcome.verdict.cases.is_empty())
    }
}

/// The offences, the first of each kind in full, and the logs' ends if there are any.
pub fn offences(result: &Result) -> String {
    let Ok(outcome) = &result.outcome else { return String::new() };
    let mut text = String::new();
    for kind in OFFENCES {
        let cases = outcome.verdict.cases.iter().filter(|(offence, _)| *offence == kind);
        for (_, case) in cases.take(SHOWN) {
            text.push_str(&format!("  {kind:?}: {case}\n"));
        }
    }

    let logs = outcome.logs.iter().flatten();
    for (number, log) in logs.enumerate().filter(|_| result.failed()) {
        let lines: Vec<_> = log.lines().collect();
        text.push_str(&format!("  end of log {number}:\n"));
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            text.push_str(&format!("      {line}\n"));
        }
    }
    text
}

/// The results as Markdown.
pub fn table(results: &[Result]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&COLUMNS.map(str::to_owned));
    text.push_str(&line(&COLUMNS.map(|_| "---".to_owned())));
    results.iter().for_each(|result| text.push_str(&line(&cells(result))));
    text
}

fn cells(result: &Result) -> Vec<String> {
    let outcome = match &result.outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            let mut cells = vec![result.name.clone(), format!("no result: {why}")];
            cells.resize(COLUMNS.len(), String::new());
            return cells;
        }
    };

    let v = &outcome.verdict;
    let moved = match outcome.moved.as_secs() / 3600 {
        0 => "-".to_owned(),
        hours => format!("{hours} h"),
    };
    let left_over = v.count(Offence::Undrained) + v.count(Offence::Astray);
    vec![
        result.name.clone(),
        outcome.faults.to_string(),
        v.bought.to_string(),
        outcome.deaths.to_string(),
        v.lost_by_postgres.to_string(),
        moved,
        format!("{:.2}", v.longest_wait.as_secs_f64()),
        v.events.to_string(),
        v.asked.to_string(),
        v.again.to_string(),
        v.count(Offence::Lost).to_string(),
        v.count(Offence::Doubled).to_string(),
        v.count(Offence::Untrue).to_string(),
        v.count(Offence::Disorder).to_string(),
        left_over.to_string(),
    ]
}
