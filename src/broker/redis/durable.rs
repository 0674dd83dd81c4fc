//! Durable publications: the head that distinguishes them from plain ones, and how they
//! are published.
//!
//! Not here: the function library that keeps them (`library`), and reading what it
//! keeps (`history`).

use bytes::Bytes;
use redis::{RedisResult, Value};

use super::commands::Commands;
use super::connect::MasterConnection;
use super::fault;
use super::history::answered_position;
use super::library::{self, MAX_OFFSET, PUBLISH};
use crate::broker::{BrokerError, Durable, Published};
use crate::channel::{ChannelName, Position};
use crate::clock;

/// The first byte of a message that has a head; no JSON text begins with it.
const MARK: u8 = 1;

/// The longest head in bytes, including its mark and the end of its line.
pub(super) const MAX_HEAD: usize = 66;

/// What precedes a payload. A durable publication has its position and usually the time in
/// microseconds, one through the server API has the time alone, and what other programs `PUBLISH`
/// has nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) position: Option<Position>,
    pub(super) published: Option<u64>,
}

impl Head {
    fn parse(text: &str) -> Option<Self> {
        let Some((epoch, rest)) = text.split_once(':') else {
            return Some(Self { position: None, published: Some(text.parse().ok()?) });
        };

        let (offset, published) = match rest.split_once(':') {
            Some((offset, time)) => (offset, Some(time.parse().ok()?)),
            None => (rest, None),
        };

        let offset = offset.parse().ok().filter(|offset| (1..MAX_OFFSET).contains(offset))?;
        let position = Position::new(epoch, offset)?;
        Some(Self { position: Some(position), published })
    }
}

/// Splits a message into its payload and head.
pub(super) fn take_apart(message: &[u8]) -> (&[u8], Head) {
    let head = || {
        let rest = message.strip_prefix(&[MARK])?;
        let end = rest.iter().take(MAX_HEAD - 2).position(|b| *b == b'\n')?;
        Some((end + 2, Head::parse(std::str::from_utf8(&rest[..end]).ok()?)?))
    };

    match head() {
        Some((begin, head)) => (&message[begin..], head),
        None => (message, Head::default()),
    }
}

/// The message of a publication without a position.
pub(super) fn stamped(payload: &[u8]) -> Vec<u8> {
    let head = format!("{}{}\n", char::from(MARK), clock::unix_micros());
    [head.as_bytes(), payload].concat()
}

/// Publishes and keeps.
pub(super) async fn publish(
    commands: &Commands,
    channel: &ChannelName,
    payload: &Bytes,
    durable: &Durable,
) -> Result<Published, BrokerError> {
    let core = &commands.core;
    let key = core.key(channel);
    let ttl = durable.retention.ttl.as_secs().max(1).to_string();
    let size = durable.retention.size.to_string();
    let idempotency = durable.idempotency_key.as_deref().unwrap_or_default();
    let arguments = [&**payload, ttl.as_bytes(), size.as_bytes(), idempotency.as_bytes()];

    let calling = &core.calling();
    let key = key.as_str();
    let arguments = &arguments;
    let publish = |mut master: MasterConnection| async move {
        let answer =
            library::call::<Vec<Value>>(&mut master.connection, calling, &PUBLISH, key, arguments);
        published(&answer.await?)
    };
    commands.on_master(key, |master| Box::pin(publish(master))).await
}

/// Converts the library's answer: offset, epoch, and by how many it was heard. The last is missing where the
/// library serves version 0.1 too. A fourth element is a warning, which Redis has logged.
pub(super) fn published(answer: &[Value]) -> RedisResult<Published> {
    let [offset, epoch, rest @ ..] = answer else { return Err(fault::unexpected("no position")) };
    let position = answered_position((fault::read(offset)?, fault::read(epoch)?))?;
    Ok(Published { position: Some(position), heard: rest.first().map(fault::read).transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_messages_are_told_from_plain_ones() {
        let apart = take_apart;
        for (message, time) in [
            (&b"\x011700000000000001:42:1795828520000001\n{\"a\":1}"[..], Some(1795828520000001)),
            (b"\x011700000000000001:42\n{\"a\":1}", None),
        ] {
            let (payload, of) = apart(message);
            assert_eq!((payload, of.published), (&b"{\"a\":1}"[..], time));
            assert_eq!(of.position.unwrap().to_string(), "1700000000000001-42");
        }

        let stamped = stamped(b"{\"a\":1}");
        let (payload, of) = take_apart(&stamped);
        assert_eq!((payload, &of.position), (&b"{\"a\":1}"[..], &None));
        assert!(of.published.unwrap().abs_diff(clock::unix_micros()) < 60_000_000);

        for plain in [
            &b"{\"a\":1}"[..],
            b"",
            b"\x01",
            b"\x01\n",
            b"\x011:x\n1",
            b"\x011:1:x\n1",
            b"\x01:1\n1",
            b"\x011:99999999999999999999999\n1",
            b"1:1\n1",
            b"\x01-:1\n1",
            b"\x01x\n1",
            b"\x0142",
        ] {
            let (payload, head) = take_apart(plain);
            assert_eq!((payload, head), (plain, Head::default()));
        }
    }
}
