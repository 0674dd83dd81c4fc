//! Purchases: what is committed with its announcement is on every device's screen at the end, whatever dies
//! between the two, and for however long.
//!
//! `rows` is the catalogue, `verdict` judges, `self_test` shows that it can judge badly.

mod api;
mod clocks;
mod device;
mod faults;
mod recorder;
mod records;
mod relay_faults;
mod report;
mod rows;
pub mod self_test;
mod stage;
mod verdict;

use std::time::{Duration, Instant};

use self::rows::Setup;
pub use self::rows::{ROWS, Row};
use self::stage::{Pace, Shop};

const LONG: Pace = Pace { quota: 5000, pause: Duration::from_millis(8), again: true };
const SHORT: Pace = Pace { quota: 300, pause: Duration::from_millis(50), again: false };

/// Rows that have one shop. In short those with the same setup share it, which loses nothing: what befell it
/// has to be healed before the next comes.
struct Round {
    setup: Setup,
    rows: Vec<Row>,
}

impl Round {
    fn name(&self) -> String {
        let short = |row: &Row| row.name.trim_start_matches("purchase-");
        format!("purchase-{}", self.rows.iter().map(short).collect::<Vec<_>>().join(", "))
    }
}

/// Plays the rows. Returns the table, and whether something was wrong.
pub async fn run(rows: &[Row], short: bool) -> (String, bool) {
    let mut rounds: Vec<Round> = Vec::new();
    for row in rows {
        match rounds.iter_mut().find(|round| short && round.setup == row.setup) {
            Some(round) => round.rows.push(*row),
            None => rounds.push(Round { setup: row.setup, rows: vec![*row] }),
        }
    }

    let mut results = Vec::new();
    for round in rounds {
        let (name, began) = (round.name(), Instant::now());
        eprintln!("{name}: {}", round.rows.iter().map(|r| r.what).collect::<Vec<_>>().join("; "));
        let played = tokio::spawn(play(round, if short { SHORT } else { LONG }));
        let result = report::Result { name, outcome: played.await.map_err(|e| e.to_string()) };
        eprint!("{}", report::offences(&result));
        let verdict = if result.failed() { "FAILED" } else { "ok" };
        eprintln!("{}: {verdict} in {:.1}s", result.name, began.elapsed().as_secs_f64());
        results.push(result);
    }
    (report::table(&results), results.iter().any(report::Result::failed))
}

async fn play(round: Round, pace: Pace) -> stage::Outcome {
    let mut shop = Shop::start(round.setup, pace).await;
    shop.open().await;
    for row in round.rows {
        let began = Instant::now();
        faults::inject(row.fault, &mut shop).await;
        while pace.again && row.fault.comes_again() && !shop.most_is_sold() {
            faults::inject(row.fault, &mut shop).await;
        }
        eprintln!("  {}: healed after {:.1}s", row.name, began.elapsed().as_secs_f64());
    }
    shop.close().await
}
