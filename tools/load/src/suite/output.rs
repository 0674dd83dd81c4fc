//! What the suite leaves behind: the table on the terminal and as Markdown, all results as JSON,
//! the latencies as a drawing.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::rows::{Row, Target};
use super::{Measured, Side};
use crate::number::number;
use crate::plot::{self, Curve};
use crate::report;

pub struct Table {
    lines: Vec<Line>,
}

struct Line {
    text: &'static str,
    key: String,
    unit: &'static str,
    floor: Option<f64>,
    tollgate: Option<f64>,
    ratio: Option<f64>,
    target: Target,
    met: Option<bool>,
}

pub struct About<'a> {
    pub gateway: &'a Path,
    pub pins: String,
    pub quick: bool,
    pub rounds: usize,
}

pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Table {
    /// A quick round says nothing about speed, so nothing is judged.
    pub fn new(rows: &[&Row], measured: &[Measured], quick: bool) -> Self {
        let of = |row: &str, side: Side, round: Option<usize>, key: &str| {
            let fits = |m: &&Measured| {
                m.row == row && m.side == side && round.is_none_or(|round| m.round == round)
            };
            median(measured.iter().filter(fits).filter_map(|m| m.figure(key)).collect())
        };

        let mut lines = Vec::new();
        for row in rows {
            for cell in row.cells {
                let floor = of(row.name, Side::Floor, None, cell.key);
                let tollgate = of(row.name, Side::Tollgate, None, cell.key);

                let pairs =
                    measured.iter().filter(|m| m.row == row.name && m.side == Side::Tollgate);
                // The halves of a pair saw the same machine, so the ratio is the median of the
                // pairs' ratios.
                let ratios = pairs.filter_map(|tollgate| {
                    let floor = of(row.name, Side::Floor, Some(tollgate.round), cell.key)?;
                    (floor > 0.0).then_some(tollgate.figure(cell.key)? / floor)
                });
                let ratio = median(ratios.collect());
                let met = if quick { None } else { cell.target.met(tollgate, ratio) };

                lines.push(Line {
                    text: cell.text,
                    key: format!("{}.{}", row.name, cell.key),
                    unit: cell.unit,
                    floor,
                    tollgate,
                    ratio,
                    target: cell.target,
                    met,
                });
            }
        }
        Table { lines }
    }

    fn cells(&self) -> Vec<[String; 5]> {
        let head = ["work", "floor", "tollgate", "ratio", "target"].map(str::to_owned);
        let lines = self.lines.iter().map(|line| {
            let value = |value: Option<f64>| {
                value.map_or("-".to_owned(), |v| format!("{} {}", number(v), line.unit))
            };

            let ratio = line.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"));
            let verdict = match line.met {
                Some(true) => ", met",
                Some(false) => ", MISSED",
                None => "",
            };
            let target = format!("{}{verdict}", line.target.text());
            [line.text.to_owned(), value(line.floor), value(line.tollgate), ratio, target]
        });

        std::iter::once(head).chain(lines).collect()
    }

    pub fn print(&self) {
        let cells = self.cells();
        let width = |column: usize| cells.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths = [0, 1, 2, 3].map(width);
        for [work, floor, tollgate, ratio, target] in &cells {
            println!(
                "{work:a$}  {floor:>b$}  {tollgate:>c$}  {ratio:>d$}  {target}",
                a = widths[0],
                b = widths[1],
                c = widths[2],
                d = widths[3]
            );
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        for (number, line) in self.cells().iter().enumerate() {
            text.push_str(&format!("| {} |\n", line.join(" | ")));
            if number == 0 {
                text.push_str("| --- | ---: | ---: | ---: | --- |\n");
            }
        }
        text
    }

    fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            json!({
                "key": line.key, "text": line.text, "unit": line.unit, "floor": line.floor,
                "tollgate": line.tollgate, "ratio": line.ratio,
                "target": line.target.text(), "met": line.met,
            })
        });
        lines.collect()
    }
}

/// What every result begins with: when, what and on what.
pub struct Head {
    /// The name of the files, without their extension.
    pub name: String,
    pub title: String,
    pub markdown: String,
    pub json: Value,
}

pub fn head(about: &About<'_>) -> Head {
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or("unknown".to_owned());
    let version = said(&about.gateway.display().to_string(), &["--version"]).unwrap_or_default();

    let (date, machine) = (report::date(), report::machine());
    let day = date.split('T').next().unwrap_or_default();
    let text = |value: &Value| value.to_string().trim_matches('"').to_owned();

    let quick = if about.quick { " A quick round: it says nothing about speed." } else { "" };
    let markdown = format!(
        "# {version}, commit {commit}\n\n{date}. {}, {} cores, Linux {}; {}. Medians of {} rounds, a \
         ratio is the median of the pairs'.{quick}\n\n",
        text(&machine["cpu"]),
        text(&machine["cores"]),
        text(&machine["kernel"]),
        about.pins,
        about.rounds,
    );

    Head {
        name: format!("{day}-{commit}"),
        title: format!("{version}, {commit}"),
        markdown,
        json: json!({
            "date": date, "commit": commit, "gateway": version, "machine": machine,
            "pins": about.pins, "quick": about.quick, "rounds": about.rounds,
        }),
    }
}

pub fn write(folder: &Path, about: &About<'_>, table: &Table, measured: &[Measured]) -> Result<()> {
    let head = head(about);
    let path = |extension: &str| folder.join(format!("{}.{extension}", head.name));

    let mut all = head.json;
    all["table"] = table.json();
    all["runs"] = measured
        .iter()
        .map(|m| json!({"row": m.row, "side": m.side.name(), "round": m.round, "result": m.report}))
        .collect();

    report::write(&path("json"), &format!("{all:#}\n"))?;
    report::write(&path("md"), &format!("{}{}", head.markdown, table.markdown()))?;
    report::write(&path("html"), &plot::html(&head.title, &curves(measured)))?;
    println!("{}", path("{json,md,html}").display());
    Ok(())
}

/// The latency curves of the first round.
fn curves(measured: &[Measured]) -> Vec<Curve> {
    let first = measured.iter().filter(|m| m.round == 1 && m.row.starts_with("latency"));
    first
        .flat_map(|m| {
            let curves = m.report["curves"].clone();
            let curves: Vec<Curve> = serde_json::from_value(curves).unwrap_or_default();
            curves.into_iter().map(|curve| Curve {
                label: format!("{} %, {}", m.row.trim_start_matches("latency-"), m.side.name()),
                ..curve
            })
        })
        .collect()
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    fn measured(side: Side, round: usize, cpu: f64) -> Measured {
        let report = json!({"figures": {"cpu_us_per_delivery": cpu}});
        Measured { row: "fanout-w1", side, round, report }
    }

    #[test]
    fn the_ratio_is_the_median_of_the_pairs() {
        let mut all = Vec::new();
        for (round, floor, tollgate) in [(1, 2.0, 2.0), (2, 4.0, 6.0), (3, 3.0, 3.3)] {
            all.push(measured(Side::Floor, round, floor));
            all.push(measured(Side::Tollgate, round, tollgate));
        }

        let table = Table::new(&[&ROWS[0]], &all, false);
        let line = &table.lines[0];
        assert_eq!((line.floor, line.tollgate), (Some(3.0), Some(3.3)));
        assert!((line.ratio.unwrap() - 1.1).abs() < 1e-9);
        assert_eq!(line.met, Some(true));
        assert!(table.markdown().contains("| 1.10x | <= 1.10x, met |"));
        assert_eq!(Table::new(&[&ROWS[0]], &all, true).lines[0].met, None);
        assert_eq!(table.lines[1].tollgate, None);
    }
}
