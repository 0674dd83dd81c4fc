//! The auditor: real gateways, real Redis, many clients, one fault at a time, and a check from
//! outside that nothing was lost in silence, doubled or put out of order.
//!
//! `make audit`, or `cargo test --test audit -- --short --only stop`. It ends with a table and with
//! status 1 if anything was wrong. `check` holds the verdict, `rows` the catalogue, `self_test` the
//! proof that the verdict can be a bad one. `shop` does the same for purchases through the outbox.

#![expect(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "a test")]
#![expect(clippy::disallowed_methods, clippy::wildcard_enum_match_arm, reason = "not the gateway")]

mod absence;
mod backend;
mod cast;
mod check;
mod client;
mod crowd;
mod drawing;
mod faults;
mod gateway;
mod health;
mod log_faults;
mod mixed;
mod nginx;
mod probe;
mod publisher;
mod record;
mod report;
mod rollout;
mod round;
mod rows;
mod self_test;
mod shop;
mod shortage;
mod sse;
mod websocket;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tokio::task::JoinHandle;

use self::backend::Backend;
use self::round::{Pace, Round};
use self::rows::{Fault, ROWS, Row, Setup};

#[derive(Parser)]
#[command(
    name = "audit",
    about = "Tries to catch the gateway losing, doubling or reordering events"
)]
struct Options {
    /// Each fault once, with a few seconds of load
    #[arg(long)]
    short: bool,
    /// Only the rows with this in their name; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Makes the clients' wandering repeatable, as far as time allows
    #[arg(long)]
    seed: Option<u64>,
    /// Lists the rows
    #[arg(long)]
    list: bool,
    /// Tries the checker on made-up logs
    #[arg(long)]
    self_test: bool,
    /// Hides every declaration from the checker: rounds that lose something must fail then
    #[arg(long)]
    blind: bool,
    /// Instead of the faults: both replicas behind nginx are replaced
    #[arg(long, conflicts_with_all = ["only", "short", "blind", "dump"])]
    rollout: bool,
    /// Instead of the faults: an earlier version (its program in TOLLGATE_OLD_BIN) beside today's
    #[arg(long, conflicts_with_all = ["only", "short", "blind", "dump", "rollout"])]
    mixed: bool,
    /// How many clients a rollout has
    #[arg(long, default_value_t = 2000, requires = "rollout")]
    clients: usize,
    /// Writes drawings of the rollouts to this folder
    #[arg(long, requires = "rollout")]
    drawings: Option<std::path::PathBuf>,
    /// Writes every client's log below this folder
    #[arg(long)]
    dump: Option<std::path::PathBuf>,
    /// Writes the table to this file too
    #[arg(long)]
    markdown: Option<std::path::PathBuf>,
}

const SHORT: Pace = Pace {
    before: Duration::from_millis(1000),
    after: Duration::from_millis(2000),
    pause: Duration::from_millis(40),
    clients: 1,
    full: false,
    blind: false,
};
const LONG: Pace = Pace {
    before: Duration::from_secs(5),
    after: Duration::from_secs(12),
    pause: Duration::from_millis(30),
    clients: 2,
    full: true,
    blind: false,
};

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        let (faults, shop) = (ROWS.iter(), shop::ROWS.iter());
        let all = faults.map(|r| (r.name, r.what)).chain(shop.map(|r| (r.name, r.what)));
        all.for_each(|(name, what)| println!("{name:32} {what}"));
        return ExitCode::SUCCESS;
    }

    self_test::run();
    if options.self_test {
        println!("the checker tells good logs from bad ones");
        return ExitCode::SUCCESS;
    }

    if let Some(seed) = options.seed {
        fastrand::seed(seed);
    }

    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let failed = runtime.block_on(async {
        let mut terminated =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::select! {
            failed = audit(&options), if !options.rollout && !options.mixed => failed,
            failed = mixed::run(), if options.mixed => failed,
            failed = rollout::run(options.clients, options.drawings.as_deref()),
                if options.rollout => failed,
            _ = tokio::signal::ctrl_c() => true,
            _ = terminated.recv() => true,
        }
    });

    // Dropping the runtime drops what still runs, and so kills its processes.
    drop(runtime);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn audit(options: &Options) -> bool {
    let wanted = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|only| name.contains(&**only))
    };
    let rows: Vec<Row> = ROWS.iter().filter(|row| wanted(row.name)).copied().collect();
    // What is declared there is judged by what it leads to.
    let purchases = shop::ROWS.iter().filter(|row| !options.blind && wanted(row.name));
    let purchases: Vec<shop::Row> = purchases.copied().collect();
    if rows.is_empty() && purchases.is_empty() {
        eprintln!("no such row; --list shows them");
        return true;
    }

    let (mut tables, mut failed) = (String::new(), false);
    if !rows.is_empty() {
        let results = gateways(options, rows).await;
        tables.push_str(&report::table(&results));
        failed |= results.iter().any(report::failed);
    }
    if !purchases.is_empty() {
        let (table, wrong) = shop::run(&purchases, options.short).await;
        tables = [tables, table].join("\n");
        failed |= wrong;
    }

    println!("{tables}");
    if let Some(file) = &options.markdown {
        std::fs::write(file, tables).unwrap();
    }
    failed
}

/// Plays the rows of faults around gateways.
async fn gateways(options: &Options, rows: Vec<Row>) -> Vec<report::Result> {
    let pace = Pace { blind: options.blind, ..if options.short { SHORT } else { LONG } };
    // Sentinels and clusters need a while to form. They do so while other rounds run.
    let slow = |row: &Row| matches!(row.setup, Setup::Sentinel | Setup::Cluster);
    let early = |row: &Row| slow(row).then(|| tokio::spawn(Backend::start(row.setup)));
    let mut backends: Vec<Option<JoinHandle<Backend>>> = rows.iter().map(early).collect();

    let mut results = Vec::new();
    for (row, backend) in rows.into_iter().zip(&mut backends) {
        if row.fault == Fault::Clock && round::faketime("").is_none() {
            eprintln!("{}: LEFT OUT, libfaketime is not installed (apt: faketime)", row.name);
            continue;
        }

        let began = Instant::now();
        eprintln!("{}: {}", row.name, row.what);
        let backend = backend.take().unwrap_or_else(|| tokio::spawn(Backend::start(row.setup)));
        let round = tokio::spawn(async move {
            let backend = backend.await.map_err(|e| e.to_string())?;
            Ok::<_, String>(Round::new(row, backend, pace).await.run().await)
        });

        let result = match round.await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(why)) => Err((row.name, why)),
            Err(error) => Err((row.name, error.to_string())),
        };

        if let Ok(outcome) = &result {
            eprint!("{}", report::offences(outcome));
            if let Some(folder) = &options.dump {
                report::dump(&folder.join(row.name), outcome);
            }
        }

        let verdict = if report::failed(&result) { "FAILED" } else { "ok" };
        eprintln!("{}: {verdict} in {:.1}s", row.name, began.elapsed().as_secs_f64());
        results.push(result);
    }

    results
}
