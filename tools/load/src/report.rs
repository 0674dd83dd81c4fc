//! What a run found: a table for people, JSON for machines, and whether anything was wrong.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::clock::millis;
use crate::number::number;
use crate::plot::{self, Curve};
use crate::sink::redacted;
use crate::tally::{Kinds, Tally};

struct Figure {
    key: String,
    text: String,
    value: f64,
    unit: &'static str,
}

pub struct Report {
    scenario: &'static str,
    label: String,
    figures: Vec<Figure>,
    curves: Vec<Curve>,
    kinds: Vec<(&'static str, Kinds)>,
    /// What makes the run a failure.
    problems: Vec<String>,
    /// What the reader should know.
    notes: Vec<String>,
}

impl Report {
    pub fn new(scenario: &'static str, label: Option<&str>) -> Self {
        Report {
            scenario,
            label: label.unwrap_or(scenario).to_owned(),
            figures: Vec::new(),
            curves: Vec::new(),
            kinds: Vec::new(),
            problems: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn figure(&mut self, key: &str, text: &str, value: f64, unit: &'static str) {
        let (key, text) = (key.to_owned(), text.to_owned());
        self.figures.push(Figure { key, text, value, unit });
    }

    /// Adds p50, p90, p99, p99.9 and the maximum, in milliseconds.
    pub fn percentiles(&mut self, key: &str, text: &str, nanos: &Histogram<u64>) {
        if nanos.is_empty() {
            return;
        }

        for (name, quantile) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            let value = millis(nanos.value_at_quantile(quantile));
            let key = format!("{key}_{}_ms", name.replace('.', "_"));
            self.figure(&key, &format!("{text} {name}"), value, "ms");
        }
        self.figure(&format!("{key}_max_ms"), &format!("{text} max"), millis(nanos.max()), "ms");
    }

    pub fn curve(&mut self, label: &str, nanos: &Histogram<u64>) {
        if !nanos.is_empty() {
            self.curves.push(Curve::of(format!("{}{label}", self.label), nanos));
        }
    }

    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds what the connections have seen: the checks, gaps, and how they ended.
    pub fn connections(&mut self, tally: &Tally) {
        self.checks(tally);
        self.kinds("gap", &tally.gaps);
        self.kinds("closed", &tally.closes);
        if !tally.closes.is_empty() {
            self.problem("connections ended during the run; what they missed is not counted");
        }
    }

    /// Adds the results of the checks of every delivery.
    pub fn checks(&mut self, tally: &Tally) {
        let counts = &tally.counts;
        for (key, text, value, wrong) in [
            ("missing", "missing", counts.missing, true),
            ("doubled", "doubled", counts.doubled, true),
            ("out_of_order", "out of order", counts.out_of_order, true),
            ("stray", "on a channel not subscribed to", counts.stray, true),
            ("declared_missing", "missing, declared by a gap", counts.declared, false),
        ] {
            self.figure(key, text, value as f64, "");
            if wrong && value > 0 {
                self.problem(format!("{value} events {text}"));
            }
        }
    }

    pub fn kinds(&mut self, name: &'static str, kinds: &Kinds) {
        let advised: BTreeSet<&str> = kinds.keys().filter_map(|kind| advice(kind)).collect();
        self.notes.extend(advised.into_iter().map(str::to_owned));
        self.kinds.push((name, kinds.clone()));
    }

    pub fn print(&self) {
        println!("{}", self.label);
        let width = self.figures.iter().map(|f| f.text.len()).max().unwrap_or(0);
        for Figure { text, value, unit, .. } in &self.figures {
            println!("  {text:width$}  {:>14} {unit}", number(*value));
        }

        for (name, kinds) in &self.kinds {
            for (kind, times) in kinds {
                println!("  {name}: {times} x {kind}");
            }
        }

        for note in &self.notes {
            println!("  note: {note}");
        }
        for problem in &self.problems {
            println!("  WRONG: {problem}");
        }
    }

    pub fn json(&self) -> Value {
        let figures: Map<String, Value> =
            self.figures.iter().map(|f| (f.key.clone(), json!(f.value))).collect();
        let kinds: Map<String, Value> =
            self.kinds.iter().map(|(name, kinds)| ((*name).to_owned(), json!(kinds))).collect();

        json!({
            "scenario": self.scenario,
            "label": self.label,
            "date": date(),
            "machine": machine(),
            "arguments": arguments(std::env::args().skip(1)),
            "figures": figures,
            "kinds": kinds,
            "curves": self.curves,
            "notes": self.notes,
            "problems": self.problems,
        })
    }

    /// Prints the report and writes it. Answers whether nothing was wrong.
    pub fn finish(&self, json: Option<&Path>, html: Option<&Path>) -> Result<bool> {
        self.print();
        if let Some(path) = json {
            write(path, &format!("{:#}\n", self.json()))?;
        }
        if let Some(path) = html {
            write(path, &plot::html(&self.label, &self.curves))?;
        }
        Ok(self.problems.is_empty())
    }
}

/// What to do about a failure or a close.
fn advice(kind: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 10] = [
        ("unauthorized", "no token: give --secret, --tokens or --token"),
        ("4401 missing", "no token: give --secret, --tokens or --token"),
        ("4401", "--secret has to be the gateway's key; `tollgate token check` says what is wrong"),
        (
            "http 401",
            "--secret has to be the gateway's key; `tollgate token check` says what is wrong",
        ),
        ("4429", "a limit: limits.connections, connections_per_ip or connections_per_user"),
        (
            "http 503",
            "a limit: limits.http_connections or connections_per_ip, or the gateway drains",
        ),
        ("4410", "the driver read too slowly: --threads, or a machine of its own"),
        ("forbidden", "the gateway's [[channels]] have no rule for --channel"),
        ("connection refused", "nothing listens at --url"),
        ("invalid peer certificate", "--ca FILE names the authority to trust"),
    ];

    ADVICE.iter().find(|(start, _)| kind.starts_with(start)).map(|(_, advice)| *advice)
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

pub fn date() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

pub fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));

    json!({
        "cpu": model.map_or("unknown", |(_, name)| name.trim()),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// The command line as given, without its secrets.
fn arguments(given: impl Iterator<Item = String>) -> Vec<String> {
    const SECRET: [&str; 3] = ["--secret", "--token", "--api-key"];
    let mut hide = false;

    given
        .map(|argument| {
            if std::mem::take(&mut hide) {
                return "***".to_owned();
            }
            hide = SECRET.contains(&argument.as_str());
            match argument.split_once('=') {
                Some((name, _)) if SECRET.contains(&name) => format!("{name}=***"),
                _ => redacted(&argument),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_reach_a_report() {
        let given =
            ["fanout", "--secret", "s3", "--token=t3", "--redis", "redis://u:p3@h", "--auto"];
        let shown = arguments(given.iter().map(|a| (*a).to_owned())).join(" ");
        assert_eq!(shown, "fanout --secret *** --token=*** --redis redis://***@h --auto");
    }
}
