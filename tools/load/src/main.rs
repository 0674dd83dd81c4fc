//! The entry: options to scenarios, results to exit codes. What a scenario does is in its module.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results and progress are its output"
)]

mod args;
mod arrivals;
mod backoff;
mod check;
mod client;
mod clock;
mod event;
mod fleet;
mod floor;
mod frame;
mod link;
#[path = "../../number.rs"]
mod number;
mod plot;
mod publisher;
mod relay;
mod report;
mod scale;
mod scenario;
mod server;
mod shared;
mod sink;
mod suite;
mod tally;
mod target;
mod token;
mod topology;
mod worker;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use args::{Cli, Plot, Scenario};

fn main() -> ExitCode {
    // The first call starts the clock.
    clock::now();

    let result = match Cli::parse().scenario {
        Scenario::Connect(args) => scenario::connect::connect(&args),
        Scenario::Idle(args) => scenario::connect::idle(&args),
        Scenario::Fanout(args) => scenario::deliver::fanout(&args),
        Scenario::Unicast(args) => scenario::deliver::unicast(&args),
        Scenario::Mixed(args) => scenario::mixed::mixed(&args),
        Scenario::Storm(args) => scenario::storm::storm(&args),
        Scenario::Floor(args) => floor::floor(&args),
        Scenario::RedisFloor(args) => scenario::redis_floor::redis_floor(&args),
        Scenario::Plot(args) => draw(&args),
        Scenario::Relay(args) => relay::relay(&args),
        Scenario::Suite(args) => suite::suite(&args),
        Scenario::Scale(args) => scale::scale(&args),
    };

    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tollgate-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn draw(args: &Plot) -> Result<bool> {
    let mut curves = Vec::new();
    for path in &args.results {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let mut result: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a result", path.display()))?;
        let found: Vec<plot::Curve> = serde_json::from_value(result["curves"].take())
            .with_context(|| format!("{} has no curves", path.display()))?;
        curves.extend(found);
    }

    report::write(&args.out, &plot::html("Latency", &curves))?;
    println!("{}", args.out.display());
    Ok(true)
}
