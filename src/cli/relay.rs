//! `tollgate relay`: runs a relay, and looks after its outbox.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::file::{File, problems, sources};
use super::log::init_log;
use crate::app::relaying;
use crate::broker::Broker as _;
use crate::config::{self, Loaded, Sources};
use crate::logging;
use crate::process_limits;
use crate::relay::schema::{is_identifier, migration, missing};
use crate::relay::{self, Outbox, Status};
use crate::terminal::{complain, print};

/// How long `check` waits for Redis.
const REDIS_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Relay {
    #[command(flatten)]
    file: File,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the migration that makes the outbox: `tollgate relay sql | psql`.
    Sql(Sql),
    /// Say what the database and Redis lack; exit with 1 if there is anything.
    Check(File),
    /// Show the leader, what waits, and what is dead.
    Status {
        #[command(flatten)]
        file: File,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put dead rows back into the outbox, as new rows at its end.
    Retry {
        #[command(flatten)]
        file: File,
        /// All dead rows
        #[arg(long, conflicts_with = "ids", required_unless_present = "ids")]
        all: bool,
        /// The ids of dead rows
        #[arg(value_name = "ID")]
        ids: Vec<i64>,
    },
}

#[derive(Debug, Args)]
struct Sql {
    /// The schema of the tables
    #[arg(long, default_value = "public", value_parser = identifier)]
    schema: String,
    /// The role that may call `tollgate_publish`; made if it does not exist
    #[arg(long, default_value = "tollgate_app", value_parser = identifier)]
    app_role: String,
    /// The role that the relay works with; made if it does not exist
    #[arg(long, default_value = "tollgate_relay", value_parser = identifier)]
    relay_role: String,
}

fn identifier(name: &str) -> Result<String, String> {
    if is_identifier(name) {
        return Ok(name.to_owned());
    }
    Err("use lower-case letters, digits and _, at most 63".to_owned())
}

pub(super) fn run(args: &Relay) -> anyhow::Result<ExitCode> {
    let command = match &args.command {
        Some(Command::Sql(sql)) => {
            return print(&migration(&sql.schema, &sql.app_role, &sql.relay_role));
        }
        command => command.as_ref(),
    };

    let file =
        match command {
            Some(
                Command::Check(file) | Command::Status { file, .. } | Command::Retry { file, .. },
            ) if file.is_given() => file,
            _ => &args.file,
        };
    // A relay has no clients, so it needs no keys.
    let sources = Sources { dev: true, ..sources(file) };
    let loaded = match config::load(&sources) {
        Ok(loaded) => loaded,
        Err(found) => return Ok(problems(&found)),
    };

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("relay")
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        match command {
            Some(Command::Check(_)) => check(&loaded, &sources).await,
            Some(Command::Status { json, .. }) => status(&loaded, &sources, *json).await,
            Some(Command::Retry { all, ids, .. }) => {
                retry(&loaded, &sources, (!all).then_some(ids)).await
            }
            Some(Command::Sql(_)) | None => serve(loaded, &sources).await,
        }
    });
    runtime.shutdown_background();
    result
}

async fn serve(loaded: Loaded, sources: &Sources<'_>) -> anyhow::Result<ExitCode> {
    process_limits::leave_no_core();
    init_log(&loaded.config)?;
    let result = relaying::run(loaded, &|name| sources.variable(name).map(str::to_owned)).await;
    logging::end();
    result.map(|()| ExitCode::SUCCESS)
}

/// Connects to the database of the configuration.
async fn connect(loaded: &Loaded, sources: &Sources<'_>) -> anyhow::Result<relay::Connection> {
    let env = |name: &str| sources.variable(name).map(str::to_owned);
    let (work, _) = relaying::databases(&loaded.config, &env)?;
    Ok(work.connect().await?)
}

async fn check(loaded: &Loaded, sources: &Sources<'_>) -> anyhow::Result<ExitCode> {
    let schema = &loaded.config.relay.schema;
    let mut lacking = match connect(loaded, sources).await {
        Ok(connection) => missing(&connection, schema).await?,
        Err(error) => vec![format!("{error:#}")],
    };

    match relaying::broker(&loaded.config) {
        Ok(broker) => {
            let up = async {
                while !(broker.health().publisher && broker.health().writer) {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            if timeout(REDIS_WITHIN, up).await.is_err() {
                let why = broker.health().last_error.map_or_else(String::new, |e| e.what);
                lacking.push(format!("Redis cannot be used: {why}"));
            } else if let Err(error) = broker.try_relay().await {
                let why = "the relay's user needs the permissions in docs/redis.md";
                lacking.push(format!("Redis refuses what a relay does: {error} ({why})"));
            }
        }
        Err(error) => lacking.push(format!("{error:#}")),
    }

    if lacking.is_empty() {
        return print("the outbox is complete, and Redis can be reached\n");
    }
    let list: String = lacking.iter().map(|what| format!("  {what}\n")).collect();
    complain(&format!("tollgate: the relay cannot work yet:\n{list}"));
    Ok(ExitCode::FAILURE)
}

async fn status(loaded: &Loaded, sources: &Sources<'_>, as_json: bool) -> anyhow::Result<ExitCode> {
    let connection = connect(loaded, sources).await?;
    let status = relay::status(&connection, &loaded.config.relay.schema).await?;
    print(&if as_json { in_json(&status) } else { in_words(&status) })
}

fn in_json(status: &Status) -> String {
    let dead = status.dead.iter().map(|(reason, rows, id, why)| {
        json!({ "reason": reason, "rows": rows, "lastId": id, "explanation": why })
    });
    let leader = status.leader.as_ref().map(
        |(name, since, heartbeat)| json!({ "name": name, "since": since, "heartbeatSeconds": heartbeat }),
    );
    let body = json!({
        "leader": leader,
        "term": status.term,
        "pending": status.counts.pending,
        "oldestSeconds": status.counts.oldest,
        "publishedLastMinute": status.last_minute,
        "medianSeconds": status.median,
        "dead": dead.collect::<Vec<_>>(),
    });
    format!("{body:#}\n")
}

fn in_words(status: &Status) -> String {
    let mut text = match &status.leader {
        Some((name, since, heartbeat)) => {
            let alive = if *heartbeat < 5.0 { "" } else { ": no relay works" };
            format!("leader     {name}, since {since}, last heard of {heartbeat:.1} s ago{alive}\n")
        }
        None => "leader     none has ever worked: run `tollgate relay`\n".to_owned(),
    };
    let counts = &status.counts;
    let _ = write!(text, "waiting    {} rows", counts.pending);
    if counts.pending > 0 {
        let _ = write!(text, ", the oldest for {:.1} s", counts.oldest);
    }
    let _ = write!(text, "\npublished  {} rows within the last minute", status.last_minute);
    if let Some(median) = status.median {
        let _ = write!(text, ", in the median {:.1} ms after their insertion", median * 1000.0);
    }
    let _ = writeln!(text, "\ndead       {} rows", counts.dead);
    for (reason, rows, id, why) in &status.dead {
        let _ = writeln!(text, "           {rows} {reason}, the last is {id}: {why}");
    }
    text
}

async fn retry(
    loaded: &Loaded,
    sources: &Sources<'_>,
    ids: Option<&Vec<i64>>,
) -> anyhow::Result<ExitCode> {
    let connection = connect(loaded, sources).await?;
    let outbox = Outbox::new(&loaded.config.relay.schema);
    let retried = outbox.retry(&connection, ids.map(Vec::as_slice)).await?;
    let rows = |n: i64| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
    print(&format!("{} put back into the outbox\n", rows(retried.back)))?;

    if !retried.unknown.is_empty() {
        let ids: Vec<_> = retried.unknown.iter().map(i64::to_string).collect();
        complain(&format!("tollgate: no dead row has the id {}\n", ids.join(", ")));
    }
    if retried.stay > 0 {
        complain(&format!(
            "tollgate: {} left dead: another row of the channel has the same key by now. To publish them all the \
             same, set their key to NULL in tollgate_outbox_dead; to give them up, delete them there\n",
            rows(retried.stay)
        ));
    }
    let is_done = retried.unknown.is_empty() && retried.stay == 0;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
