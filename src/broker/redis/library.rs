//! The function library `tollgate`: its text, making sure that a server has it, and calling
//! its entries.
//!
//! The text (`lua/`) is the contract with publishers. If the server has no functions, or
//! does not permit them, the same text runs as a script. Not here: what gateways
//! state in it (`stated`), and what the answers mean (`durable`, `history`, `rows`).

use std::cmp::Ordering;
use std::sync::LazyLock;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Value};
use sha1::{Digest as _, Sha1};

use super::fault;
use super::stated::{Stated, Statement};
use crate::clock::unix_now;

/// The function library assigns only offsets below this one.
pub(super) const MAX_OFFSET: u64 = 1_000_000_000_000_000;

/// The text: what is refused, then publishing and reading, then what the outbox's relay calls.
const LUA: &str = concat!(
    include_str!("lua/json.lua"),
    include_str!("lua/checks.lua"),
    include_str!("lua/tollgate.lua"),
    include_str!("lua/relay.lua")
);

/// The library of a newer gateway serves this version too, so it is never replaced by an older one.
const VERSION: i64 = 5;

/// How the entries of the library are called on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Functions,
    Scripts,
}

/// The text of the library as a server is given it.
fn library(stated: &Stated) -> String {
    let text = stated.write_into(LUA);
    format!(
        "#!lua name=tollgate\n{text}\n\
         redis.register_function('tollgate_publish', publish)\n\
         redis.register_function('tollgate_open', open)\n\
         redis.register_function('tollgate_relay', relay)\n\
         redis.register_function('tollgate_settle', settle)\n\
         redis.register_function{{function_name='tollgate_history', \
         callback=history, flags={{'no-writes'}}}}\n\
         redis.register_function{{function_name='tollgate_stated', \
         callback=stated, flags={{'no-writes'}}}}\n\
         redis.register_function{{function_name='tollgate_version', \
         callback=function() return {VERSION} end, flags={{'no-writes'}}}}\n"
    )
}

/// An entry of the library. Its text as a script, and that script's name on the server, are
/// computed once.
pub(super) struct Entry {
    function: &'static str,
    call: &'static str,
    script: String,
    sha: String,
}

impl Entry {
    fn new(function: &'static str, name: &str, call: &'static str) -> Self {
        let script = format!("{LUA}\nreturn {name}(KEYS, ARGV)\n");
        let sha = format!("{:x}", Sha1::digest(&script));
        Self { function, call, script, sha }
    }
}

pub(super) static OPEN: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_open", "open", "FCALL"));
pub(super) static PUBLISH: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_publish", "publish", "FCALL"));
pub(super) static RELAY: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_relay", "relay", "FCALL"));
pub(super) static SETTLE: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_settle", "settle", "FCALL"));
pub(super) static HISTORY: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_history", "history", "FCALL_RO"));

/// Makes sure that the server has the library, in this version or a later one, and that the gateway
/// stands in it.
pub(super) async fn ensure(
    connection: &mut MultiplexedConnection,
    statement: &Statement,
) -> RedisResult<Calls> {
    let mut replaces = true;
    let stated = match stated(connection).await {
        Ok(Some(stated)) => stated,
        Ok(None) => return Ok(Calls::Functions),
        Err(e) if is_unknown_command(&e) => return Ok(Calls::Scripts),
        Err(e) if is_missing(&e) => Stated::after_loss(unix_now()),
        // Whoever may not read what others have stated must not replace it.
        Err(e) if e.code() == Some("NOPERM") => {
            replaces = false;
            Stated::after_loss(unix_now())
        }
        Err(e) if is_unreadable(&e) => {
            tracing::warn!(
                error = fault::describe(&e),
                "the function library is replaced: it does not work"
            );
            Stated::after_loss(unix_now())
        }
        Err(e) => return Err(e),
    };
    let Some(stated) = stated.with(statement, unix_now()) else { return Ok(Calls::Functions) };

    let mut load = redis::cmd("FUNCTION");
    load.arg("LOAD");
    if replaces {
        load.arg("REPLACE");
    }
    load.arg(library(&stated));
    match fault::ask::<Value>(connection, &load).await {
        Ok(_) => Ok(Calls::Functions),
        Err(e) if !replaces && e.detail().is_some_and(|d| d.contains("already exists")) => {
            Ok(Calls::Functions)
        }
        Err(e) if is_unknown_command(&e) || e.code() == Some("NOPERM") => {
            tracing::debug!(error = fault::describe(&e), "FUNCTION LOAD");
            Ok(Calls::Scripts)
        }
        Err(e) => Err(e),
    }
}

/// What gateways have stated in the library of this server; `None` if it is of a later version.
async fn stated(connection: &mut MultiplexedConnection) -> RedisResult<Option<Stated>> {
    let ask = |name: &str| {
        let mut call = redis::cmd("FCALL_RO");
        call.arg(name).arg(0);
        call
    };

    let version: i64 = fault::ask(connection, &ask("tollgate_version")).await?;
    match version.cmp(&VERSION) {
        Ordering::Greater => Ok(None),
        Ordering::Less => Ok(Some(Stated::after_upgrade(unix_now()))),
        Ordering::Equal => {
            let answer: Vec<String> = fault::ask(connection, &ask("tollgate_stated")).await?;
            Ok(Some(Stated::read(&answer)))
        }
    }
}

fn is_unknown_command(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.to_lowercase().contains("unknown command"))
}

/// True if somebody else's library answers, in a way that ours never does.
fn is_unreadable(error: &RedisError) -> bool {
    error.code() == Some("ERR") || error.kind() == ErrorKind::UnexpectedReturnType
}

/// True if the function is missing, after `FUNCTION FLUSH` or a restart without persistence.
fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.contains("Function not found"))
}

/// What a call depends on: how entries are called on the server, and what a missing library is
/// loaded with.
#[derive(Debug, Clone)]
pub(super) struct Calling {
    pub(super) calls: Calls,
    pub(super) statement: Statement,
}

/// The key of a history's fields.
pub(super) fn meta_key(key: &str) -> String {
    format!("{key}:{{{key}}}")
}

/// Calls an entry of the library.
pub(super) async fn call<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    Calling { calls, statement }: &Calling,
    entry: &Entry,
    key: &str,
    arguments: &[&[u8]],
) -> RedisResult<T> {
    let with = |command: &mut Cmd| {
        command.arg(1).arg(key);
        arguments.iter().for_each(|a| {
            command.arg(*a);
        });
        command.clone()
    };

    match calls {
        Calls::Functions => {
            let function = with(redis::cmd(entry.call).arg(entry.function));
            match fault::ask(connection, &function).await {
                Err(e) if is_missing(&e) => {
                    ensure(connection, statement).await?;
                    fault::ask(connection, &function).await
                }
                answer => answer,
            }
        }
        Calls::Scripts => {
            let script = with(redis::cmd("EVALSHA").arg(&entry.sha));
            match fault::ask(connection, &script).await {
                Err(e) if e.code() == Some("NOSCRIPT") => {
                    fault::ask(connection, &with(redis::cmd("EVAL").arg(&entry.script))).await
                }
                answer => answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gateways_state_has_a_place_in_the_text() {
        let statement =
            Statement { prefix: "ws:".into(), max_bytes: 1234, refuses: true, beside_0_1: false };
        let stated = Stated::after_upgrade(5).with(&statement, 5).unwrap();
        let text = library(&stated);
        assert!(text.contains("['ws:'] = {seen = 5, bytes = 1234, lenient = 0, beside = 0}"));
        assert!(text.contains("local GRACE = 604805\n"));
    }
}
