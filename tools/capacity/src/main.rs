//! The capacity planner: how many replicas and Redis servers a load needs, what breaks first, and a
//! simulation that plays the load. `constants` has what things cost, `load` what there is to do,
//! `model` what each replica bears, `plan` how many are needed; `world` and `simulate` count where
//! the others compute.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the answer is its output")]

mod constants;
mod dice;
mod load;
mod model;
#[path = "../../number.rs"]
mod number;
mod options;
mod plan;
mod print;
mod simulate;
mod upheaval;
mod world;

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use serde_json::json;

use constants::Constants;
use load::Load;
use model::Model;
use options::Options;
use plan::{Need, Plan};

/// The answer for one load.
pub struct Answer {
    pub replicas: Vec<Need>,
    pub shards: Vec<Need>,
    pub plan: Plan,
    /// What the options ask for but cannot have.
    pub problems: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("tollgate-capacity: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Prints and writes the answer. False: not all that was asked for can be had.
fn run(args: &Options) -> Result<bool> {
    let constants = Constants::with(args.constants.as_deref(), &args.set)?;
    if args.print_constants {
        constants.print();
        return Ok(true);
    }

    let load = args.load()?;
    let model = Model { constants, machine: args.machine.clone() };
    let answer = answer(&model, &load, args)?;
    print::answer(&model, &load, &answer);

    let simulated = if args.simulate {
        let found = simulate::simulate(&model, &load, answer.plan, (args.seed, args.seconds))?;
        print::simulated(&found);
        print::simulated_json(&found)
    } else {
        serde_json::Value::Null
    };

    if let Some(path) = &args.json {
        let result = json!({
            "scenario": "capacity",
            "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
            "constants": model.constants.json(),
            "answer": print::json(&model, &load, &answer),
            "simulated": simulated,
        });
        std::fs::write(path, format!("{result:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }

    Ok(answer.problems.is_empty())
}

fn answer(model: &Model, load: &Load, args: &Options) -> Result<Answer> {
    let mut problems = Vec::new();
    let replicas = model.replicas_needed(load);

    let unmet = |needs: &[Need], what: &str| {
        let names: Vec<&str> = needs.iter().filter(|n| n.count.is_none()).map(|n| n.name).collect();
        format!("no number of {what} is enough: {}", names.join(", "))
    };

    let count = match (args.replicas, plan::most(&replicas)) {
        (Some(given), _) => given.max(1) as f64,
        (None, Some(count)) => count,
        (None, None) => bail!("{}", unmet(&replicas, "replicas of this size")),
    };

    let shards = model.shards_needed(load, count);
    let needed = plan::most(&shards);
    if needed.is_none() {
        problems.push(unmet(&shards, "Redis servers"));
    } else if model.one_shard_only() && needed > Some(1.0) {
        problems.push("one Redis server is not enough: --redis cluster".to_owned());
    }

    let shards_used = match args.shards {
        Some(given) => given.max(1) as f64,
        None if model.one_shard_only() => 1.0,
        None => needed.unwrap_or(1.0),
    };

    let plan = Plan { replicas: count, shards: shards_used };
    Ok(Answer { replicas, shards, plan, problems })
}
