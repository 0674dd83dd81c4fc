//! `suite`: the project's own comparison on one machine. It starts Redis, the floor and a gateway,
//! runs the scenarios against both in turn, each in a process of its own, and prints one table.

pub mod output;
pub mod processes;
mod rows;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::args::Suite;
use processes::{Pins, Processes, Setting};
use rows::{Row, Scale, Work};

pub const SECRET: &str = "the suite's secret, on this machine only";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Floor,
    Tollgate,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Floor => "floor",
            Side::Tollgate => "tollgate",
        }
    }

    /// Each side has channels of its own in Redis, so that what one is sent is not the
    /// other's work.
    pub fn prefix(self) -> &'static str {
        match self {
            Side::Floor => "floor:",
            Side::Tollgate => "tollgate:",
        }
    }
}

/// One scenario, run once.
pub struct Measured {
    pub row: &'static str,
    pub side: Side,
    pub round: usize,
    pub report: Value,
}

impl Measured {
    pub fn figure(&self, key: &str) -> Option<f64> {
        self.report["figures"][key].as_f64()
    }
}

pub fn suite(args: &Suite) -> Result<bool> {
    let gateway = prepare(args)?;
    let scale = if args.quick { Scale::quick() } else { Scale::full() };
    let most = scale.many.max(scale.users);
    crate::scenario::enough_files(most, 1)?;
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };

    let selected: Vec<&Row> =
        rows::ROWS.iter().filter(|row| wanted(row.name, &args.only)).collect();
    if selected.is_empty() {
        let names: Vec<&str> = rows::ROWS.iter().map(|row| row.name).collect();
        bail!("--only {}: there is {}", args.only.join(", "), names.join(", "));
    }

    let folder = tempfile::tempdir()?;
    let processes = Processes::new(folder.path(), Pins::find())?;
    let mut bench = Bench { processes, gateway, scale, rounds, measured: Vec::new(), wrong: 0 };
    bench.capacity(&selected)?;
    for row in &selected {
        if !bench.has(row.name) {
            bench.row(row, rounds)?;
        }
    }

    let Bench { processes, measured, wrong, gateway, .. } = bench;
    let pins = processes.pins.describe();
    drop(processes);

    let table = output::Table::new(&selected, &measured, args.quick);
    table.print();
    let about = output::About { gateway: &gateway, pins, quick: args.quick, rounds };
    output::write(&args.out, &about, &table, &measured)?;

    if wrong > 0 {
        println!("{wrong} runs were wrong: see above");
    }
    Ok(wrong == 0)
}

/// Finds the gateway, and makes the folder for the results.
pub fn prepare(args: &Suite) -> Result<PathBuf> {
    let gateway = args.gateway.canonicalize().with_context(|| {
        format!("--gateway {}: not there; `make build` builds it", args.gateway.display())
    })?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("--out {}: cannot make it", args.out.display()))?;
    Ok(gateway)
}

/// Whether --only asks for the row or series of that name.
pub fn wanted(name: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|part| name.contains(part.as_str()))
}

struct Bench {
    processes: Processes,
    gateway: PathBuf,
    scale: Scale,
    rounds: usize,
    measured: Vec<Measured>,
    wrong: usize,
}

impl Bench {
    fn has(&self, row: &str) -> bool {
        self.measured.iter().any(|measured| measured.row == row)
    }

    /// Latencies are taken at shares of what each side can do, so that is measured first.
    fn capacity(&mut self, selected: &[&Row]) -> Result<()> {
        let needed = selected.iter().any(|row| matches!(row.work, Work::Latency { .. }));
        let Some(row) = rows::ROWS.iter().find(|row| row.name == rows::CAPACITY) else {
            return Ok(());
        };

        let shown = selected.iter().any(|other| other.name == row.name);
        match (needed, shown) {
            (true, true) => self.row(row, self.rounds),
            (true, false) => self.row(row, 1),
            (false, _) => Ok(()),
        }
    }

    fn row(&mut self, row: &'static Row, rounds: usize) -> Result<()> {
        for round in 1..=rounds {
            for side in [Side::Floor, Side::Tollgate] {
                if side == Side::Floor && !row.work.has_floor() {
                    continue;
                }
                eprintln!("{} {round}/{rounds} {}", row.name, side.name());
                self.run(row, side, round)
                    .with_context(|| format!("{} against {}", row.name, side.name()))?;
            }
        }
        Ok(())
    }

    /// Runs a row once against a fresh server: its memory is that of this run alone.
    fn run(&mut self, row: &'static Row, side: Side, round: usize) -> Result<()> {
        let capacity = self.median(rows::CAPACITY, side, "deliveries_per_s");
        let server = match side {
            Side::Floor => self.processes.floor()?,
            Side::Tollgate => self.processes.gateway(&self.gateway, Setting::DEFAULT)?,
        };

        let arguments = rows::arguments(&row.work, &self.scale, capacity);
        let (report, wrong) = self.processes.drive(&arguments, side, &[&server])?;
        if let Some(said) = wrong {
            self.wrong += 1;
            eprintln!("{said}");
        }
        self.measured.push(Measured { row: row.name, side, round, report });
        Ok(())
    }

    fn median(&self, row: &str, side: Side, key: &str) -> Option<f64> {
        let of = |m: &&Measured| m.row == row && m.side == side;
        output::median(self.measured.iter().filter(of).filter_map(|m| m.figure(key)).collect())
    }
}
