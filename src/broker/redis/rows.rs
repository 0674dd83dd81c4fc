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
use crate::broker::{BrokerError, RelayError, Relayed, Row, RowOutcome, Said};
use crate::channel::ChannelName;

/// The library's word for a term that is over.
const STALE: &str = "STALE";

/// Publishes rows of one channel in their order. Those that the channel has already keep their position.
pub(super) async fn publish(
    commands: &Commands,
    channel: &ChannelName,
    term: u64,
    rows: &[Row],
) -> Result<Relayed, RelayError> {
    let term = term.to_string();
    let mut arguments = vec![term.into_bytes()];
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
    term: u64,
    identities: &[String],
) -> Result<usize, RelayError> {
    let term = term.to_string();
    let texts = identities.iter().map(String::as_str);
    let arguments: Vec<_> =
        std::iter::once(&*term).chain(texts).map(|text| text.as_bytes().to_vec()).collect();
    call(commands, channel, &SETTLE, &arguments).await
}

async fn call<T: redis::FromRedisValue + Send>(
    commands: &Commands,
    channel: &ChannelName,
    entry: &Entry,
    arguments: &[Vec<u8>],
) -> Result<T, RelayError> {
    let core = &commands.core;
    let key = core.key(channel);
    let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();

    let (calling, arguments, name) = (&core.calling(), &*arguments, &*key);
    let run = |mut master: MasterConnection| async move {
        library::call(&mut master.connection, calling, entry, name, arguments).await
    };
    let answer = commands.on_master(&key, |master| Box::pin(run(master))).await;
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
    let outcome = |value: &Value| match value {
        Value::Array(position) => Ok(RowOutcome::Published(durable::published(position)?)),
        refusal => {
            let why: String = fault::read(refusal)?;
            Ok(RowOutcome::Refused(Said::new(&why)))
        }
    };
    Ok(Relayed {
        outcomes: outcomes.iter().map(outcome).collect::<RedisResult<_>>()?,
        others_in_doubt: fault::read(others)?,
    })
}
