//! `scale`: whether costs stay as they are while connections, channels, worker threads and replicas
//! grow. It starts Redis and gateways as `suite` does, and draws a line through each series. What
//! grows, and by how much, is in `series`.

mod chart;
mod output;
mod series;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::args::Suite;
use crate::suite::output::median;
use crate::suite::processes::{Pins, Processes, Server};
use crate::suite::{self, Side};
use series::{Column, Point, Series, Step, Together};

/// A series, and the medians of each of its points in the order of the columns.
pub struct Measured {
    pub series: Series,
    pub values: Vec<Vec<Option<f64>>>,
}

pub fn scale(args: &Suite) -> Result<bool> {
    let gateway = suite::prepare(args)?;

    let all = series::all(args.quick);
    let names: Vec<&str> = all.iter().map(|series| series.name).collect();
    let wanted = |name: &str| suite::wanted(name, &args.only);
    if !names.iter().any(|name| wanted(name)) {
        bail!("--only {}: there is {}", args.only.join(", "), names.join(", "));
    }

    let folder = tempfile::tempdir()?;
    let processes = Processes::new(folder.path(), Pins::find())?;
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let mut climb = Climb { processes, gateway, wrong: 0 };
    let mut measured = Vec::new();

    for series in all.into_iter().filter(|series| wanted(series.name)) {
        let values = climb.series(&series, rounds)?;
        let done = Measured { series, values };
        output::print(&done);
        measured.push(done);
    }

    let Climb { processes, gateway, wrong } = climb;
    let about = suite::output::About {
        gateway: &gateway,
        pins: processes.pins.describe(),
        quick: args.quick,
        rounds,
    };
    output::write(&args.out, &about, &measured)?;

    if wrong > 0 {
        println!("{wrong} runs were wrong: see above");
    }
    Ok(wrong == 0)
}

struct Climb {
    processes: Processes,
    gateway: std::path::PathBuf,
    wrong: usize,
}

impl Climb {
    fn series(&mut self, series: &Series, rounds: usize) -> Result<Vec<Vec<Option<f64>>>> {
        let mut values = Vec::new();
        for point in &series.points {
            let mut found: Vec<Vec<f64>> = Vec::new();
            for round in 1..=rounds {
                eprintln!("{} {} {round}/{rounds}", series.name, point.label);
                let figures = self.point(point).with_context(|| {
                    format!("{} with {} {}", series.name, point.label, series.size)
                })?;
                found.resize(figures.len(), Vec::new());
                for (of, figure) in found.iter_mut().zip(figures) {
                    of.extend(figure);
                }
            }

            values.push(found.into_iter().map(median).collect());
        }
        Ok(values)
    }

    fn point(&mut self, point: &Point) -> Result<Vec<Option<f64>>> {
        let mut figures = Vec::new();
        for step in &point.steps {
            let reports = self.step(point, step)?;
            figures.extend(step.columns.iter().map(|column| together(column, &reports)));
        }
        Ok(figures)
    }

    /// Runs a step against fresh servers: their memory is that of this step alone.
    fn step(&mut self, point: &Point, step: &Step) -> Result<Vec<Value>> {
        let servers: Vec<Server> = match step.side {
            Side::Floor => vec![self.processes.floor()?],
            Side::Tollgate => (0..point.gateways)
                .map(|_| self.processes.gateway(&self.gateway, point.setting))
                .collect::<Result<_>>()?,
        };

        let servers: Vec<&Server> = servers.iter().collect();
        let groups: Vec<&[&Server]> =
            if step.each { servers.chunks(1).collect() } else { vec![&servers] };

        let processes = &self.processes;
        let results: Vec<_> = std::thread::scope(|scope| {
            let runs: Vec<_> = groups
                .into_iter()
                .enumerate()
                .map(|(number, group)| {
                    let line = step.work.replace("{i}", &number.to_string());
                    let work = line.split(' ').map(str::to_owned).collect::<Vec<_>>();
                    scope.spawn(move || processes.drive(&work, step.side, group))
                })
                .collect();
            runs.into_iter().map(|run| run.join().expect("a driver's thread")).collect()
        });

        let mut reports = Vec::new();
        for result in results {
            let (report, wrong) = result?;
            if let Some(said) = wrong {
                self.wrong += 1;
                eprintln!("{said}");
            }
            reports.push(report);
        }
        Ok(reports)
    }
}

fn together(column: &Column, reports: &[Value]) -> Option<f64> {
    let figures: Vec<f64> =
        reports.iter().filter_map(|report| report["figures"][column.key].as_f64()).collect();
    if figures.len() < reports.len() || figures.is_empty() {
        return None;
    }

    let sum: f64 = figures.iter().sum();
    Some(match column.together {
        Together::Sum => sum,
        Together::Mean => sum / figures.len() as f64,
        Together::Most => figures.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn several_drivers_become_one_figure_or_none() {
        let column = |together| Column { key: "a", text: "a", unit: "us", together };
        let reports = [json!({"figures": {"a": 1.0}}), json!({"figures": {"a": 3.0}})];
        assert_eq!(together(&column(Together::Sum), &reports), Some(4.0));
        assert_eq!(together(&column(Together::Mean), &reports), Some(2.0));
        assert_eq!(together(&column(Together::Most), &reports), Some(3.0));

        let lacking = [json!({"figures": {"a": 1.0}}), json!({"figures": {}})];
        assert_eq!(together(&column(Together::Sum), &lacking), None);
    }
}
