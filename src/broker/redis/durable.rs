//! Durable publications: the function library `tollgate`, and reading what it keeps.
//!
//! The library's own text (`tollgate.lua`) is the contract with publishers. Where the server has no
//! functions, or does not allow them, the same text runs as a script.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};
use sha1::{Digest as _, Sha1};

use super::connect::{self, Link};
use super::{RedisBroker, Shared};
use crate::broker::{Bounds, BrokerError, Durable, History, Track};
use crate::channel::{ChannelName, Position, Publication};
use crate::lifecycle;

const LUA: &str = include_str!("tollgate.lua");

/// A newer gateway's library serves this one too, so it is never replaced by an older.
const VERSION: i64 = 3;

/// What a message begins with that has a head; no JSON text does.
const MARK: u8 = 1;

/// Entries of a stream in one read.
const PER_READ: usize = 128;

/// How the entries of the library are called on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Functions,
    Scripts,
}

fn library() -> String {
    format!(
        "#!lua name=tollgate\n{LUA}\n\
         redis.register_function('tollgate_publish', publish)\n\
         redis.register_function('tollgate_open', open)\n\
         redis.register_function{{function_name='tollgate_version', \
         callback=function() return {VERSION} end, flags={{'no-writes'}}}}\n"
    )
}

/// An entry of the library; its text as a script, and that text's name on the server, are made once.
struct Entry {
    function: &'static str,
    script: String,
    sha: String,
}

impl Entry {
    fn new(function: &'static str, name: &str) -> Self {
        let script = format!("{LUA}\nreturn {name}(KEYS, ARGV)\n");
        let sha = format!("{:x}", Sha1::digest(&script));
        Self { function, script, sha }
    }
}

static OPEN: LazyLock<Entry> = LazyLock::new(|| Entry::new("tollgate_open", "open"));
static PUBLISH: LazyLock<Entry> = LazyLock::new(|| Entry::new("tollgate_publish", "publish"));

/// What stands before a payload: of a durable publication its position and mostly the time in microseconds,
/// of one by the server API the time alone, of what others `PUBLISH` nothing.
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
        let position = Position::new(epoch, offset.parse().ok()?)?;
        Some(Self { position: Some(position), published })
    }
}

/// A message's payload and head.
pub(super) fn take_apart(message: Bytes) -> (Bytes, Head) {
    let head = || {
        let rest = message.strip_prefix(&[MARK])?;
        let end = rest.iter().take(64).position(|b| *b == b'\n')?;
        Some((end + 2, Head::parse(std::str::from_utf8(&rest[..end]).ok()?)?))
    };
    match head() {
        Some((begin, head)) => (message.slice(begin..), head),
        None => (message, Head::default()),
    }
}

/// The message of a publication without a position.
pub(super) fn stamped(payload: &[u8]) -> Vec<u8> {
    let head = format!("{}{}\n", char::from(MARK), lifecycle::unix_micros());
    [head.as_bytes(), payload].concat()
}

/// Sees to it that the server has the library, in this version or a later one.
pub(super) async fn ensure(connection: &mut MultiplexedConnection) -> RedisResult<Calls> {
    let mut version = redis::cmd("FCALL_RO");
    version.arg("tollgate_version").arg(0);
    match version.query_async::<i64>(connection).await {
        Ok(version) if version >= VERSION => return Ok(Calls::Functions),
        Ok(_) => {}
        Err(e) if is_unknown_command(&e) => return Ok(Calls::Scripts),
        Err(e) if is_missing(&e) || e.code() == Some("NOPERM") => {}
        Err(e) => return Err(e),
    }
    let mut load = redis::cmd("FUNCTION");
    load.arg("LOAD").arg("REPLACE").arg(library());
    match load.query_async::<Value>(connection).await {
        Ok(_) => Ok(Calls::Functions),
        Err(e) if is_unknown_command(&e) || e.code() == Some("NOPERM") => {
            tracing::debug!(error = connect::describe(&e), "FUNCTION LOAD");
            Ok(Calls::Scripts)
        }
        Err(e) => Err(e),
    }
}

fn is_unknown_command(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.to_lowercase().contains("unknown command"))
}

/// The function is not there: `FUNCTION FLUSH`, or a restart without persistence.
fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.contains("Function not found"))
}

/// Calls an entry of the library.
async fn call(
    connection: &mut MultiplexedConnection,
    calls: Calls,
    entry: &Entry,
    key: &str,
    arguments: &[&[u8]],
) -> RedisResult<Position> {
    let with = |command: &mut Cmd| {
        command.arg(1).arg(key);
        arguments.iter().for_each(|a| {
            command.arg(*a);
        });
        command.clone()
    };
    let answer: (u64, String) = match calls {
        Calls::Functions => {
            let function = with(redis::cmd("FCALL").arg(entry.function));
            match function.query_async(connection).await {
                Err(e) if is_missing(&e) => {
                    ensure(connection).await?;
                    function.query_async(connection).await?
                }
                answer => answer?,
            }
        }
        Calls::Scripts => {
            match with(redis::cmd("EVALSHA").arg(&entry.sha)).query_async(connection).await {
                Err(e) if e.code() == Some("NOSCRIPT") => {
                    with(redis::cmd("EVAL").arg(&entry.script)).query_async(connection).await?
                }
                answer => answer?,
            }
        }
    };
    let (offset, epoch) = answer;
    Position::new(&epoch, offset)
        .ok_or_else(|| (redis::ErrorKind::UnexpectedReturnType, "not a position").into())
}

/// Where a history stands; `None` where there is none, or it is not to be trusted: another server
/// wrote last, and its last writes may be lost.
pub(super) async fn position(
    shared: &Shared,
    link: &Link,
    key: &str,
    track: Track,
) -> RedisResult<Option<Position>> {
    let mut connection = link.connection.clone();
    let mut read = redis::cmd("HMGET");
    read.arg(meta_key(key)).arg(FIELDS);
    let meta: Meta = read.query_async(&mut connection).await?;
    let found = match trusted(meta, link, shared.fence(link)) {
        Found::Position(position) => Some(position),
        Found::Nothing => None,
        Found::BehindFence => return open(shared, link, key).await.map(Some),
    };
    // An empty one that is found is kept for another hour.
    let begun = found.as_ref().is_some_and(|position| position.offset > 0);
    if begun || track < Track::Open || link.run.is_empty() {
        return Ok(found);
    }
    open(shared, link, key).await.map(Some)
}

/// Begins a history, or keeps one that is empty; begins it anew where its epoch is behind the fence.
pub(super) async fn open(shared: &Shared, link: &Link, key: &str) -> RedisResult<Position> {
    let fence = shared.fence(link).to_string();
    call(&mut link.connection.clone(), shared.calls(), &OPEN, key, &[fence.as_bytes()]).await
}

/// Epoch, last offset, reign, and when the epoch began by the clock of that reign's server; histories of
/// older versions have no such time, but the epoch is one.
const FIELDS: &[&str] = &["e", "o", "r", "b"];
type Meta = (Option<String>, Option<u64>, Option<String>, Option<u64>);

/// What is kept of a history.
enum Found {
    Position(Position),
    /// Nothing, or another reign's.
    Nothing,
    /// An epoch that began before the fence.
    BehindFence,
}

fn trusted((epoch, offset, run, began): Meta, link: &Link, fence: u64) -> Found {
    let same = run.is_some_and(|run| *run == *link.run && !run.is_empty());
    let position = || Position::new(&epoch?, offset?);
    match position().filter(|_| same) {
        Some(p) if began.or(p.epoch.parse().ok()).is_some_and(|at| at < fence) => {
            Found::BehindFence
        }
        Some(position) => Found::Position(position),
        None => Found::Nothing,
    }
}

fn meta_key(key: &str) -> String {
    format!("{key}:{{{key}}}")
}

impl RedisBroker {
    pub(super) async fn publish_durable(
        &self,
        channel: &ChannelName,
        payload: &Bytes,
        durable: &Durable,
    ) -> Result<Position, BrokerError> {
        let key = self.shared.key(channel);
        let ttl = durable.retention.ttl.as_secs().max(1).to_string();
        let size = durable.retention.size.to_string();
        let idempotency = durable.idempotency_key.as_deref().unwrap_or_default();
        let arguments = [&**payload, ttl.as_bytes(), size.as_bytes(), idempotency.as_bytes()];
        let calls = self.shared.calls();
        let (key, arguments) = (key.as_str(), &arguments);
        let publish = |mut link: Link| async move {
            call(&mut link.connection, calls, &PUBLISH, key, arguments).await
        };
        self.shared.on_master(key, |link| Box::pin(publish(link))).await
    }

    /// The end of a history, read backwards until a bound.
    pub(super) async fn read_history(
        &self,
        channel: &ChannelName,
        bounds: Bounds,
    ) -> Result<Option<History>, BrokerError> {
        let key = self.shared.key(channel);
        let shared = &self.shared;
        shared.on_master(&key, |link| Box::pin(read(shared, link, channel, &key, bounds))).await
    }
}

/// An entry of a stream: its id and fields.
type Kept = (String, Vec<(Bytes, Bytes)>);

async fn read(
    shared: &Shared,
    link: Link,
    channel: &ChannelName,
    key: &str,
    bounds: Bounds,
) -> RedisResult<Option<History>> {
    let mut connection = link.connection.clone();
    let mut top: Option<Position> = None;
    let mut newest_first: Vec<Publication> = Vec::new();
    let mut bytes = 0;
    loop {
        let left = (bounds.messages - newest_first.len()).min(PER_READ);
        let next = top.as_ref().map(|top| top.offset - newest_first.len() as u64);
        let (from, to) = match (&top, next) {
            (Some(top), Some(next)) => {
                (format!("{}-0", top.epoch), format!("{}-{next}", top.epoch))
            }
            _ => ("-".to_owned(), "+".to_owned()),
        };
        // Together, so that position and entries belong to one moment.
        let (meta, entries): (Meta, Vec<Kept>) = redis::pipe()
            .atomic()
            .cmd("HMGET")
            .arg(meta_key(key))
            .arg(FIELDS)
            .cmd("XREVRANGE")
            .arg(format!("{}:stream", meta_key(key)))
            .arg(to)
            .arg(from)
            .arg("COUNT")
            .arg(left)
            .query_async(&mut connection)
            .await?;
        let position = match trusted(meta, &link, shared.fence(&link)) {
            Found::Position(position) => position,
            Found::Nothing => return Ok(None),
            Found::BehindFence => return open(shared, &link, key).await.map(|_| None),
        };
        let top = top.get_or_insert(position.clone());
        if position.epoch != top.epoch {
            return Ok(None);
        }
        let read = entries.len();
        for (id, fields) in entries {
            let due = Position { offset: top.offset - newest_first.len() as u64, ..top.clone() };
            let payload = fields.into_iter().find(|(name, _)| **name == *b"d").map(|(_, d)| d);
            let contiguous = due.offset > 0 && id == due.to_string();
            let (Some(payload), true) = (payload, contiguous) else {
                return Ok(Some(finish(top, newest_first)));
            };
            bytes += payload.len();
            if bytes > bounds.bytes {
                return Ok(Some(finish(top, newest_first)));
            }
            let channel = channel.clone();
            newest_first.push(Publication {
                channel,
                payload,
                position: Some(due),
                published: None,
            });
        }
        let whole = newest_first.len() as u64 == top.offset;
        if read < left || newest_first.len() >= bounds.messages || whole {
            return Ok(Some(finish(top, newest_first)));
        }
    }
}

fn finish(top: &Position, mut publications: Vec<Publication>) -> History {
    publications.reverse();
    History { top: top.clone(), publications }
}

impl Shared {
    /// How the library is called; the last server that was looked at decides for all.
    pub(super) fn calls(&self) -> Calls {
        if self.scripts.load(std::sync::atomic::Ordering::Acquire) {
            Calls::Scripts
        } else {
            Calls::Functions
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_messages_are_told_from_plain_ones() {
        let apart = |text: &'static [u8]| take_apart(Bytes::from_static(text));
        for (message, time) in [
            (&b"\x011700000000000001:42:1795828520000001\n{\"a\":1}"[..], Some(1795828520000001)),
            (b"\x011700000000000001:42\n{\"a\":1}", None),
        ] {
            let (payload, of) = apart(message);
            assert_eq!((&*payload, of.published), (&b"{\"a\":1}"[..], time));
            assert_eq!(of.position.unwrap().to_string(), "1700000000000001-42");
        }
        let (payload, of) = take_apart(stamped(b"{\"a\":1}").into());
        assert_eq!((&*payload, &of.position), (&b"{\"a\":1}"[..], &None));
        assert!(of.published.unwrap().abs_diff(lifecycle::unix_micros()) < 60_000_000);
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
            let (payload, head) = take_apart(Bytes::from_static(plain));
            assert_eq!((&*payload, head), (plain, Head::default()));
        }
    }
}
