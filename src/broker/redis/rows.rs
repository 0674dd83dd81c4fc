//! Rows of an outbox: published once each, and settled when their database has marked them.
//!
//! The guarding is the function library's (`lua/relay.lua`). Not here: where rows come from, and terms
//! (`relay`).

use redis::{RedisResult, Value};

use super::commands::Commands;
use super::connect::MasterConnection;
use super::durable;
use super::fault;
use super::library::{self, Entry, RELAY, SETTLE};
use crate::broker::{BrokerError, Mandate, RelayError, Relayed, Row, RowOutcome, Said};
use crate::channel::ChannelName;

/// The library's word for a term that is over.
const STALE: &str = "STALE";

/// How long a trial stays in Redis, in milliseconds.
const TRIAL_MS: u64 = 60_000;

/// Publishes rows of one channel in their order. Those that the channel has already keep their position.
pub(super) async fn publish(
    commands: &Commands,
    channel: &ChannelName,
    mandate: &Mandate,
    rows: &[Row],
) -> Result<Relayed, RelayError> {
    let mut arguments = mandate_of(mandate);
    for row in rows {
        let number = |n: Option<u32>| n.map_or_else(String::new, |n| n.to_string()).into_bytes();
        arguments.push(row.identity.clone().into_bytes());
        arguments.push(row.payload.to_vec());
        arguments.push(number(row.ttl));
        arguments.push(number(row.maxlen));
        arguments.push(row.key.clone().unwrap_or_default().into_bytes());
    }

    let answer: Vec<Value> = call(commands, channel, &RELAY, &arguments).await?;
    let unreadable = |_| RelayError::Broker(BrokerError::Refused(Said::new("unexpected answer")));
    let relayed = relayed(&answer).map_err(unreadable)?;
    if relayed.outcomes.len() != rows.len() {
        return Err(unreadable(fault::unexpected("answers are missing")));
    }
    Ok(relayed)
}

/// Says that these rows are marked in their database. Returns how many of the channel remain in doubt.
pub(super) async fn settle(
    commands: &Commands,
    channel: &ChannelName,
    mandate: &Mandate,
    identities: &[String],
) -> Result<usize, RelayError> {
    let mut arguments = mandate_of(mandate);
    arguments.extend(identities.iter().map(|identity| identity.as_bytes().to_vec()));
    call(commands, channel, &SETTLE, &arguments).await
}

fn mandate_of(Mandate { outbox, term }: &Mandate) -> Vec<Vec<u8>> {
    vec![outbox.clone().into_bytes(), term.to_string().into_bytes()]
}

/// Publishes and settles a row of our own on every master, as rows are. What it leaves expires by
/// itself. Returns the first refusal.
pub(super) async fn try_out(commands: &Commands) -> Result<(), RelayError> {
    let core = &commands.core;
    for server in &core.directory.current().masters {
        let stem = format!("relay:{}", core.uid);
        let Some((_, key)) = core.own_name_on(server, &stem) else { continue };
        let row = ["0", "1", "0:0:0", "{}", "1", "1", ""].map(|text| text.as_bytes().to_vec());
        call_on::<Value>(commands, &key, &RELAY, &row).await?;
        call_on::<Value>(commands, &key, &SETTLE, &row[..3]).await?;

        let mut end = redis::cmd("PEXPIRE");
        end.arg(library::meta_key(&key)).arg(TRIAL_MS);
        commands.query::<Value>(&key, &end).await?;
    }
    Ok(())
}

async fn call<T: redis::FromRedisValue + Send>(
    commands: &Commands,
    channel: &ChannelName,
    entry: &Entry,
    arguments: &[Vec<u8>],
) -> Result<T, RelayError> {
    call_on(commands, &commands.core.key(channel), entry, arguments).await
}

async fn call_on<T: redis::FromRedisValue + Send>(
    commands: &Commands,
    key: &str,
    entry: &Entry,
    arguments: &[Vec<u8>],
) -> Result<T, RelayError> {
    let core = &commands.core;
    let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();

    let (calling, arguments) = (&core.calling(), &*arguments);
    let run = |mut master: MasterConnection| async move {
        library::call(&mut master.connection, calling, entry, key, arguments).await
    };
    let answer = commands.on_master(key, |master| Box::pin(run(master))).await;
    answer.map_err(|error| match later_term(&error) {
        Some(term) => RelayError::Stale(term),
        None => RelayError::Broker(error),
    })
}

/// The later term that the library names in a refusal.
fn later_term(error: &BrokerError) -> Option<u64> {
    let BrokerError::Refused(said) = error else { return None };
    let said = said.to_string();
    said.strip_prefix(STALE)?.split_whitespace().next()?.parse().ok()
}

/// Converts the library's answer: the identities in doubt that the call did not name, and what became
/// of each row.
fn relayed(answer: &[Value]) -> RedisResult<Relayed> {
    let [others, outcomes @ ..] = answer else { return Err(fault::unexpected("an empty answer")) };
    let outcome = |value: &Value| {
        if let Value::Array(position) = value {
            return Ok(RowOutcome::Published(durable::published(position)?));
        }
        let why: String = fault::read(value)?;
        Ok(RowOutcome::Refused(Said::new(&why)))
    };
    Ok(Relayed {
        outcomes: outcomes.iter().map(outcome).collect::<RedisResult<_>>()?,
        others_in_doubt: fault::read(others)?,
    })
}
