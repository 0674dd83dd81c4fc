//! The function library `tollgate`: its text, making sure that a server has it, and calling
//! its entries.
//!
//! The text (`tollgate.lua`) is the contract with publishers. If the server has no functions, or
//! does not permit them, the same text runs as a script. Not here: what the answers mean
//! (`durable`, `history`).

use std::sync::LazyLock;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use sha1::{Digest as _, Sha1};

use super::fault;

/// The function library assigns only offsets below this one.
pub(super) const MAX_OFFSET: u64 = 1_000_000_000_000_000;

const LUA: &str = include_str!("tollgate.lua");

/// The library of a newer gateway serves this version too, so it is never replaced by an older one.
const VERSION: i64 = 4;

/// The line of the text in which the loading gateway states the size limit of an event. As a script
/// the text serves only this process, which has checked the size before.
const LIMIT: &str = "local MAX_BYTES = 536870912\n";

/// How the entries of the library are called on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    Functions,
    Scripts,
}

/// The text of the library as a server is given it.
fn library(max_bytes: usize) -> String {
    let text = LUA.replace(LIMIT, &format!("local MAX_BYTES = {max_bytes}\n"));
    format!(
        "#!lua name=tollgate\n{text}\n\
         redis.register_function('tollgate_publish', publish)\n\
         redis.register_function('tollgate_open', open)\n\
         redis.register_function{{function_name='tollgate_history', \
         callback=history, flags={{'no-writes'}}}}\n\
         redis.register_function{{function_name='tollgate_limit', \
         callback=function() return MAX_BYTES end, flags={{'no-writes'}}}}\n\
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
pub(super) static HISTORY: LazyLock<Entry> =
    LazyLock::new(|| Entry::new("tollgate_history", "history", "FCALL_RO"));

/// Makes sure that the server has the library, in this version or a later one, and that it accepts
/// events of that size: of several gateways' limits, the largest counts.
pub(super) async fn ensure(
    connection: &mut MultiplexedConnection,
    max_bytes: usize,
) -> RedisResult<Calls> {
    match has(connection, max_bytes).await {
        Ok(true) => return Ok(Calls::Functions),
        Ok(false) => {}
        Err(e) if is_unknown_command(&e) => return Ok(Calls::Scripts),
        Err(e) if is_missing(&e) || e.code() == Some("NOPERM") => {}
        Err(e) => return Err(e),
    }

    let mut load = redis::cmd("FUNCTION");
    load.arg("LOAD").arg("REPLACE").arg(library(max_bytes));
    match fault::ask::<Value>(connection, &load).await {
        Ok(_) => Ok(Calls::Functions),
        Err(e) if is_unknown_command(&e) || e.code() == Some("NOPERM") => {
            tracing::debug!(error = fault::describe(&e), "FUNCTION LOAD");
            Ok(Calls::Scripts)
        }
        Err(e) => Err(e),
    }
}

/// True if the server has the library, and accepts events of that size.
async fn has(connection: &mut MultiplexedConnection, max_bytes: usize) -> RedisResult<bool> {
    let number = |name: &str| {
        let mut call = redis::cmd("FCALL_RO");
        call.arg(name).arg(0);
        call
    };

    let version: i64 = fault::ask(connection, &number("tollgate_version")).await?;
    if version != VERSION {
        return Ok(version > VERSION);
    }
    let limit: usize = fault::ask(connection, &number("tollgate_limit")).await?;
    Ok(limit >= max_bytes)
}

fn is_unknown_command(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.to_lowercase().contains("unknown command"))
}

/// True if the function is missing, after `FUNCTION FLUSH` or a restart without persistence.
fn is_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|d| d.contains("Function not found"))
}

/// What a call depends on: how entries are called on the server, and the limit with which a missing
/// library is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calling {
    pub(super) calls: Calls,
    pub(super) max_bytes: usize,
}

/// The key of a history's fields.
pub(super) fn meta_key(key: &str) -> String {
    format!("{key}:{{{key}}}")
}

/// Calls an entry of the library.
pub(super) async fn call<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    Calling { calls, max_bytes }: Calling,
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
                    ensure(connection, max_bytes).await?;
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
    fn the_gateways_limit_stands_in_the_library() {
        assert!(LUA.contains(LIMIT));
        assert!(library(1234).contains("local MAX_BYTES = 1234\n"));
    }
}
