//! Reading what the function library keeps of a channel: its history's position, and its
//! history's end.
//!
//! Not here: writing (`durable`, `library`). Invariants: everything that is read is untrusted text,
//! and what makes no sense counts as no history, of that channel alone; no reading takes more than
//! its bounds, whatever a publisher has written.

use bytes::Bytes;
use redis::{RedisResult, Value};

use super::commands::Commands;
use super::connect::MasterConnection;
use super::core::Core;
use super::fault::{self, Fault};
use super::library::{self, HISTORY, MAX_OFFSET, OPEN, meta_key};
use crate::broker::{BrokerError, History, HistoryBounds, Tracking};
use crate::channel::{ChannelName, Position, Publication};

/// The fields of a history: epoch, last offset, the replication identity of the server that wrote
/// them, and when the epoch began by that server's clock. Histories of older versions lack that
/// time, but their epoch is such a time itself.
const FIELDS: [&str; 4] = ["e", "o", "r", "b"];

/// What was found of a history.
enum Found {
    Position(Position),
    /// There is no history, or it belongs to another replication identity.
    Nothing,
    /// The epoch began before the fence.
    BehindFence,
    /// This field holds something that the library never writes.
    Bad(&'static str),
}

/// Judges the fields of a history.
fn judge(fields: &[Value], replication_id: &str, fence: u64) -> Found {
    let mut texts = [None; 4];
    for ((text, value), name) in texts.iter_mut().zip(fields).zip(FIELDS) {
        if *value == Value::Nil {
            continue;
        }
        let Value::BulkString(bytes) = value else { return Found::Bad(name) };
        let Ok(found) = std::str::from_utf8(bytes) else { return Found::Bad(name) };
        *text = Some(found);
    }

    let [Some(epoch), Some(offset), Some(writer), began] = texts else { return Found::Nothing };
    // An offset that the library never assigns would leave no room to count on from.
    let offset = offset.parse().ok().filter(|offset| *offset < MAX_OFFSET);
    let Some(offset) = offset else { return Found::Bad("o") };
    let Some(position) = Position::new(epoch, offset) else { return Found::Bad("e") };
    let Ok(began) = began.unwrap_or(epoch).parse::<u64>() else { return Found::Bad("b") };

    if writer != replication_id || writer.is_empty() {
        Found::Nothing
    } else if began < fence {
        Found::BehindFence
    } else {
        Found::Position(position)
    }
}

/// Where a history stands. `None` if there is none, or if it cannot be trusted because another
/// server wrote last, whose last writes may be lost.
pub(super) async fn position(
    core: &Core,
    master: &MasterConnection,
    key: &str,
    tracking: Tracking,
) -> RedisResult<Option<Position>> {
    let mut read = redis::cmd("HMGET");
    read.arg(meta_key(key)).arg(&FIELDS);
    let fields = match fault::ask::<Vec<Value>>(&mut master.connection.clone(), &read).await {
        Ok(fields) => fields,
        Err(e) if Fault::of(&e) == Fault::BadKey => {
            core.bad_key(&meta_key(key), &fault::describe(&e));
            vec![]
        }
        Err(e) => return Err(e),
    };

    let found = match judge(&fields, &master.replication_id, core.fence_of(&master.replication_id))
    {
        Found::Position(position) => Some(position),
        Found::Nothing => None,
        Found::BehindFence => return open(core, master, key).await.map(Some),
        Found::Bad(field) => {
            core.bad_key(&meta_key(key), &format!("field {field} has an invalid value"));
            None
        }
    };

    // An empty history that is found is opened again, which keeps it for another hour.
    let begun = found.as_ref().is_some_and(|position| position.offset > 0);
    if begun || tracking < Tracking::Create || master.replication_id.is_empty() {
        return Ok(found);
    }
    open(core, master, key).await.map(Some)
}

/// Begins a history, keeps one that is empty, or begins it anew if its epoch is behind the fence.
pub(super) async fn open(
    core: &Core,
    master: &MasterConnection,
    key: &str,
) -> RedisResult<Position> {
    let fence = core.fence_of(&master.replication_id).to_string();
    let connection = &mut master.connection.clone();
    let answer =
        library::call(connection, &core.calling(), &OPEN, key, &[fence.as_bytes()]).await?;
    answered_position(answer)
}

/// Converts the position from the library's answer.
pub(super) fn answered_position((offset, epoch): (u64, String)) -> RedisResult<Position> {
    let position = Position::new(&epoch, offset).filter(|position| position.offset < MAX_OFFSET);
    position.ok_or_else(|| fault::unexpected("not a position"))
}

/// Reads the end of a channel's history, backwards until a bound is reached.
pub(super) async fn read(
    commands: &Commands,
    channel: &ChannelName,
    bounds: HistoryBounds,
) -> Result<Option<History>, BrokerError> {
    let core = &*commands.core;
    let key = core.key(channel);
    commands.on_master(&key, |master| Box::pin(read_on(core, master, channel, &key, bounds))).await
}

async fn read_on(
    core: &Core,
    master: MasterConnection,
    channel: &ChannelName,
    key: &str,
    bounds: HistoryBounds,
) -> RedisResult<Option<History>> {
    let mut connection = master.connection.clone();
    let bounds = [bounds.messages.to_string(), bounds.bytes.to_string()];
    let bounds = bounds.each_ref().map(String::as_bytes);

    let answer: RedisResult<Vec<Value>> =
        library::call(&mut connection, &core.calling(), &HISTORY, key, &bounds).await;
    let mut answer = match answer {
        Err(e) if Fault::of(&e) == Fault::BadKey => {
            core.bad_key(&meta_key(key), &fault::describe(&e));
            return Ok(None);
        }
        answer => answer?,
    };

    let Some(Value::Array(entries)) = answer.pop() else {
        return Err(fault::unexpected("a history without entries"));
    };

    match judge(&answer, &master.replication_id, core.fence_of(&master.replication_id)) {
        Found::Position(top) => Ok(Some(take_entries(top, entries, channel))),
        Found::Nothing => Ok(None),
        Found::BehindFence => open(core, &master, key).await.map(|_| None),
        Found::Bad(field) => {
            core.bad_key(&meta_key(key), &format!("field {field} has an invalid value"));
            Ok(None)
        }
    }
}

/// Converts entries for as long as they are contiguous. They come as id and payload in turn, the
/// newest first.
fn take_entries(top: Position, entries: Vec<Value>, channel: &ChannelName) -> History {
    let mut publications = Vec::with_capacity(entries.len() / 2);
    let mut entries = entries.into_iter();
    let mut due = top.offset;

    while let (Some(Value::BulkString(id)), Some(Value::BulkString(payload))) =
        (entries.next(), entries.next())
    {
        let position = Position { offset: due, ..top.clone() };
        if due == 0 || *id != *position.to_string().as_bytes() {
            break;
        }

        due -= 1;
        publications.push(Publication {
            channel: channel.clone(),
            payload: Bytes::from(payload),
            cut: None,
            position: Some(position),
            published: None,
        });
    }

    publications.reverse();
    History { top, publications }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client wrote the largest number into the key. A reader that counted on from it began at
    /// zero, and reported that nothing was missing.
    #[test]
    fn fuzz_an_offset_that_the_library_never_gives_is_no_history() {
        let fields = |offset: &str| {
            ["1700000000000001", offset, "a:b"].map(|f| Value::BulkString(f.into())).to_vec()
        };

        for (offset, good) in [
            ("0", true),
            ("999999999999999", true),
            ("1000000000000000", false),
            ("18446744073709551615", false),
            ("18446744073709551616", false),
            ("-1", false),
        ] {
            let mut fields = fields(offset);
            fields.push(Value::Nil);
            match judge(&fields, "a:b", 0) {
                Found::Position(position) => {
                    assert!(good && position.to_string().ends_with(offset))
                }
                Found::Bad(field) => assert!(!good && field == "o", "{offset}"),
                Found::Nothing | Found::BehindFence => panic!("{offset}"),
            }

            let number = offset.parse().unwrap_or(u64::MAX);
            assert_eq!(answered_position((number, "1".to_owned())).is_ok(), good, "{offset}");
        }
    }
}
