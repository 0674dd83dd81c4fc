//! What is printed: a line for each round, the offences, the table.

use std::path::Path;

use super::check::{OFFENCES, Offence};
use super::record::Line;
use super::round::Outcome;

const SHOWN: usize = 5;
const COLUMNS: [&str; 18] = [
    "fault",
    "accepted",
    "refused",
    "deliveries",
    "gaps told",
    "missing, told",
    "resumed whole / not",
    "told late",
    "lost in silence",
    "doubled",
    "out of order",
    "closed",
    "foreign",
    "else",
    "logged s",
    "told s",
    "shown s",
    "over s",
];

/// A round that has an outcome, or why it has none.
pub type Result = std::result::Result<Outcome, (&'static str, String)>;

pub fn failed(result: &Result) -> bool {
    match result {
        Ok(outcome) => outcome.failed() || outcome.without_effect,
        Err(_) => true,
    }
}

/// A round's notes and its offences, the first of each kind in full.
pub fn offences(outcome: &Outcome) -> String {
    let mut text = String::new();
    if outcome.without_effect {
        text.push_str("  the fault left no trace: this round proves nothing\n");
    }
    outcome.notes.iter().for_each(|note| text.push_str(&format!("  {note}\n")));
    for wrong in outcome.wrong.iter().take(SHOWN) {
        text.push_str(&format!("  WRONG: {wrong}\n"));
    }

    for kind in OFFENCES.into_iter().filter(|o| outcome.is_wrong(*o)) {
        let cases = outcome.verdict.cases.iter().filter(|c| c.offence == kind);
        for case in cases.filter(|c| !c.text.is_empty()).take(SHOWN) {
            text.push_str(&format!("  {kind:?}: {}\n", case.text));
        }
    }

    if outcome.failed() {
        for (replica, log) in outcome.gateway_logs.iter().enumerate() {
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(40);
            text.push_str(&format!("  end of the log of replica {replica}:\n"));
            for line in &lines[from..] {
                text.push_str(&format!("      {line}\n"));
            }
        }
    }

    text
}

fn cells(result: &Result) -> Vec<String> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err((name, why)) => {
            let mut cells = vec![(*name).to_owned(), format!("no result: {why}")];
            cells.resize(COLUMNS.len(), String::new());
            return cells;
        }
    };

    let v = &outcome.verdict;
    let seconds = |d: Option<std::time::Duration>| {
        d.map_or_else(|| "-".to_owned(), |d| format!("{:.2}", d.as_secs_f64()))
    };
    let count = |o: Offence| v.count(o).to_string();

    vec![
        outcome.row.name.to_owned(),
        v.accepted.to_string(),
        v.refused.to_string(),
        v.deliveries.to_string(),
        v.gaps.to_string(),
        v.declared.to_string(),
        format!("{} / {}", v.resumed, v.not_resumed),
        count(Offence::Late),
        count(Offence::Lost),
        count(Offence::Doubled),
        count(Offence::Disorder),
        count(Offence::Closed),
        count(Offence::Foreign),
        outcome.wrong.len().to_string(),
        seconds(outcome.logged),
        seconds(outcome.told),
        seconds(outcome.detection.shown),
        seconds(outcome.detection.over),
    ]
}

/// The results as Markdown that is also readable as it stands.
pub fn table(results: &[Result]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
    rows.extend(results.iter().map(cells));
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
    let mut text = line(&rows[0]) + &line(&rule);
    rows[1..].iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// Writes the logs of every client and gateway to a folder.
pub fn dump(folder: &Path, outcome: &Outcome) {
    std::fs::create_dir_all(folder).unwrap();
    for client in &outcome.clients {
        let line = |l: &Line| format!("{:9.3} {:?}\n", l.at.as_secs_f64(), l.what);
        let text: String = client.lines.iter().map(line).collect();
        std::fs::write(folder.join(format!("{}.log", client.name)), text).unwrap();
    }
    for (replica, log) in outcome.gateway_logs.iter().enumerate() {
        std::fs::write(folder.join(format!("replica-{replica}.log")), log).unwrap();
    }
}
