//! The plain protocol: commands in, replies and events out, one JSON object per text message.
//!
//! Not here: which connection speaks it (`wire`). A channel's name holds nothing that JSON would
//! escape (see `channel`), so it is written as it is. Everything else that a client or a token
//! brought goes through `serde_json`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::codes::{ErrorCode, Reconnect};
use super::command::{ChannelRef, Command, Request, Subscribe};
use super::reply::{Reply, Start};
use crate::channel::{ChannelName, Position, Publication, check_id, encode_id};
use crate::strict;

/// The longest `id` that is echoed, in bytes of JSON.
const MAX_ID_BYTES: usize = 128;

#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    channel: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    since: Option<&'a RawValue>,
}

/// Reads one text message. This never fails: a wrong message becomes [`Command::Invalid`], with its
/// `id` if there is one.
#[must_use]
pub(super) fn parse(text: &str) -> Request {
    let invalid = |m| Command::Invalid(ErrorCode::BadRequest, Cow::Borrowed(m));

    let Ok(raw) = strict::from_str::<Raw<'_>>(text) else {
        return Request {
            id: None,
            command: invalid("a message is a JSON object with type, and id, channel or token"),
        };
    };

    let id = match raw.id.map(RawValue::get) {
        None => None,
        Some(id) if id.len() <= MAX_ID_BYTES && !id.starts_with(['{', '[']) => Some(id.into()),
        Some(_) => {
            return Request { id: None, command: invalid("id is a short string or a number") };
        }
    };

    let command = match raw.kind.as_deref() {
        Some("subscribe") => match (channel_ref(raw.channel), since(raw.since)) {
            (Ok(channel), Some(since)) => {
                let token = raw.token.map(Cow::into_owned);
                Command::Subscribe(Subscribe { channel, token, since })
            }
            (Ok(_), None) => {
                invalid("since is {\"epoch\":\"...\",\"offset\":7}, copied from an event")
            }
            (Err(invalid), _) => invalid,
        },
        Some("unsubscribe") => channel_ref(raw.channel).map_or_else(|e| e, Command::Unsubscribe),
        Some("auth") => match raw.token {
            Some(token) => Command::Auth(token.into_owned()),
            None => invalid("auth needs token"),
        },
        Some("refresh") => match raw.token {
            Some(token) => Command::Refresh(token.into_owned()),
            None => invalid("refresh needs token"),
        },
        Some("ping") => Command::Ping,
        Some(_) => invalid("type is one of subscribe, unsubscribe, refresh, auth, ping"),
        None => invalid("type is missing"),
    };

    Request { id, command }
}

/// Reads `since`. Returns `Some(None)` if there is none, and `None` if it is not a position.
fn since(raw: Option<&RawValue>) -> Option<Option<Position>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Since<'a> {
        #[serde(borrow)]
        epoch: Cow<'a, str>,
        offset: u64,
    }

    match raw.map(RawValue::get) {
        None | Some("null") => Some(None),
        Some(raw) => {
            let Since { epoch, offset } = strict::from_str(raw).ok()?;
            Position::new(&epoch, offset).map(Some)
        }
    }
}

/// Reads a channel: `"post:42"`, or an object with `type` and exactly one other field, whose
/// value is an id.
fn channel_ref(raw: Option<&RawValue>) -> Result<ChannelRef, Command> {
    let invalid = |m: String| Command::Invalid(ErrorCode::BadRequest, Cow::Owned(m));

    let shape = || {
        invalid(
            "channel is a string such as \"post:42\", or an object with type and one id".to_owned(),
        )
    };

    let raw = raw.ok_or_else(|| invalid("channel is missing".to_owned()))?.get();

    let name = if raw.starts_with('"') {
        serde_json::from_str::<String>(raw).map_err(|_| shape())?
    } else {
        let fields = serde_json::from_str::<Fields<'_>>(raw).map_err(|_| shape())?;

        let (kind, (field, id)) = fields.0.ok_or_else(shape)?;
        let kind = serde_json::from_str::<String>(kind)
            .map_err(|_| invalid("the type of a channel is a string".to_owned()))?;
        if kind.contains(':') {
            return Err(invalid("the type of a channel cannot hold a colon".to_owned()));
        }

        let id = id_text(id).ok_or_else(|| {
            let field = field.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
            invalid(format!("{field} of a channel is neither a string nor a whole number"))
        })?;
        check_id(&id).map_err(|e| invalid(format!("channel: {e}")))?;
        format!("{kind}:{}", encode_id(&id))
    };

    let name: ChannelName = name.parse().map_err(|e| invalid(format!("channel: {e}")))?;
    Ok(ChannelRef { raw: raw.into(), name })
}

/// The text of an id: the content of a JSON string, or the digits of a whole number, however many.
fn id_text(raw: &RawValue) -> Option<String> {
    let raw = raw.get();
    if raw.starts_with('"') {
        return serde_json::from_str::<String>(raw).ok();
    }
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    let is_whole = digits.bytes().all(|b| b.is_ascii_digit()) && raw != "-0";
    is_whole.then(|| raw.to_owned())
}

/// The `type` of a channel's object, and the one other field with its name; `None` for any other
/// shape. A field that is null counts as absent.
struct Fields<'a>(Option<(&'a str, (Cow<'a, str>, &'a RawValue))>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields<'de>, A::Error> {
                let mut kind = None;
                let mut id = None;
                let mut count = 0;
                while let Some((key, value)) = map.next_entry::<Cow<'_, str>, &'de RawValue>()? {
                    match &*key {
                        _ if value.get() == "null" => continue,
                        "type" => kind = Some(value.get()),
                        _ => id = Some((key, value)),
                    }
                    count += 1;
                }

                Ok(Fields(if count == 2 { kind.zip(id) } else { None }))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// An event with its channel and, if it is durable, its position.
#[must_use]
pub(super) fn envelope(publication: &Publication) -> Vec<u8> {
    let position = publication.position.as_ref().map_or_else(String::new, position_fields);
    let mut message = Vec::with_capacity(publication.payload.len() + position.len() + 64);
    message.extend_from_slice(b"{\"type\":\"event\",\"channel\":\"");
    message.extend_from_slice(publication.channel.as_str().as_bytes());
    message.push(b'"');
    message.extend_from_slice(position.as_bytes());
    message.extend_from_slice(b",\"data\":");
    message.extend_from_slice(&publication.payload);
    message.push(b'}');
    message
}

fn position_fields(position: &Position) -> String {
    format!(",\"offset\":{},\"epoch\":\"{}\"", position.offset, position.epoch)
}

/// A message of the gateway's own as JSON.
#[must_use]
pub(super) fn text(reply: &Reply<'_>) -> String {
    let mut out = String::with_capacity(128);
    out.push_str("{\"type\":\"");
    out.push_str(reply.kind().name());
    out.push('"');
    if let Some(id) = id_of(reply) {
        out.push_str(",\"id\":");
        out.push_str(id);
    }

    let data = data_of(reply);
    if !data.is_empty() {
        out.push_str(",\"data\":{");
        out.push_str(&data);
        out.push('}');
    }
    out.push('}');
    out
}

/// The `id` of the command that a message answers.
fn id_of<'r>(reply: &Reply<'r>) -> Option<&'r str> {
    match reply {
        Reply::Subscribed { id, .. }
        | Reply::Unsubscribed { id, .. }
        | Reply::Refreshed { id, .. }
        | Reply::Pong { id }
        | Reply::Error { id, .. } => *id,
        Reply::Connected { .. }
        | Reply::Ended { .. }
        | Reply::TokenExpiring { .. }
        | Reply::Gap { .. }
        | Reply::Interrupted { .. }
        | Reply::Live
        | Reply::Reconnect { .. }
        | Reply::Close(_) => None,
    }
}

/// The fields of `data`; empty if there is none.
fn data_of(reply: &Reply<'_>) -> String {
    match *reply {
        Reply::Connected { user, connection_id, expires_at, channels } => {
            connected(user, connection_id, expires_at, channels)
        }
        Reply::Subscribed { channel, data, start, .. } => {
            let data = data.map_or_else(String::new, |d| format!(",\"data\":{d}"));
            format!("{}{}{data}", channel_fields(channel), start_fields(start))
        }
        Reply::Unsubscribed { channel, .. } => channel_fields(channel),
        Reply::Ended { channel, code, reason } => {
            let channel = channel_fields(channel);
            let reason = json_string(reason);
            format!("{channel},\"code\":\"{}\",\"reason\":{reason}", code.slug())
        }
        Reply::Refreshed { expires_at, .. } => format!("\"expiresAt\":{}", time(expires_at)),
        Reply::TokenExpiring { expires_at } => format!("\"expiresAt\":{expires_at}"),
        Reply::Gap { channel, reason } => {
            format!("\"channel\":\"{channel}\",\"reason\":\"{}\"", reason.label())
        }
        Reply::Interrupted { since, channels } => interrupted(since, channels),
        Reply::Reconnect { after_ms } => format!("\"afterMs\":{after_ms}"),
        Reply::Close(close) => {
            let code = close.code.code();
            let reason = json_string(&close.reason);
            let again = close.code.row().reconnect == Reconnect::Yes;
            format!("\"code\":{code},\"reason\":{reason},\"reconnect\":{again}")
        }
        Reply::Error { code, message, channel, .. } => {
            let channel = channel.map_or_else(String::new, |c| format!(",\"channel\":{c}"));
            let message = json_string(message);
            format!("\"code\":\"{}\",\"message\":{message}{channel}", code.slug())
        }
        Reply::Pong { .. } | Reply::Live => String::new(),
    }
}

fn connected(
    user: Option<&str>,
    connection_id: &str,
    expires_at: Option<u64>,
    channels: &[(ChannelName, Start<'_>)],
) -> String {
    let user = user.map_or_else(|| "null".to_owned(), json_string);
    let expires_at = time(expires_at);
    let mut data = format!(
        "\"userId\":{user},\"connectionId\":\"{connection_id}\",\"expiresAt\":{expires_at},\"channels\":["
    );
    list(&mut data, channels.iter().map(|(c, _)| ["\"", c.as_str(), "\""]));
    data.push(']');

    let starts: Vec<_> = channels.iter().map(|(c, start)| (c, start_fields(*start))).collect();
    let known = || starts.iter().filter(|(_, fields)| !fields.is_empty());
    if known().next().is_some() {
        data.push_str(",\"positions\":{");
        list(&mut data, known().map(|(c, fields)| ["\"", c.as_str(), "\":{", &fields[1..], "}"]));
        data.push('}');
    }
    data
}

fn interrupted(since: u64, channels: Option<&[ChannelName]>) -> String {
    let mut data = format!("\"since\":{since}");
    if let Some(channels) = channels {
        data.push_str(",\"channels\":[");
        list(&mut data, channels.iter().map(|c| ["\"", c.as_str(), "\""]));
        data.push(']');
    }
    data
}

fn channel_fields(ChannelRef { raw, name }: &ChannelRef) -> String {
    format!("\"channel\":{raw},\"channelKey\":\"{name}\"")
}

fn start_fields(Start { position, recovered }: Start<'_>) -> String {
    let position = position.map_or_else(String::new, position_fields);
    let recovered = recovered.map_or_else(String::new, |r| format!(",\"recovered\":{r}"));
    format!("{position}{recovered}")
}

/// A Unix second, or null.
fn time(at: Option<u64>) -> String {
    at.map_or_else(|| "null".to_owned(), |at| at.to_string())
}

fn json_string(s: &str) -> String {
    serde_json::to_string(s).unwrap_or_default()
}

/// Appends the entries of a JSON array or object, each made of several pieces.
fn list<'p, const N: usize>(text: &mut String, entries: impl Iterator<Item = [&'p str; N]>) {
    for (n, entry) in entries.enumerate() {
        text.push_str(if n > 0 { "," } else { "" });
        text.extend(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::GapReason;

    fn subscribe(raw: &str) -> Result<String, String> {
        match parse(&format!("{{\"type\":\"subscribe\",\"channel\":{raw}}}")).command {
            Command::Subscribe(s) => Ok(s.channel.name.to_string()),
            Command::Invalid(code, m) => Err(format!("{}: {m}", code.slug())),
            Command::Unsubscribe(_) | Command::Auth(_) | Command::Refresh(_) | Command::Ping => {
                Err("another command".to_owned())
            }
        }
    }

    #[test]
    fn both_channel_forms_name_the_same_channel() {
        assert_eq!(subscribe("\"post:42\"").unwrap(), "post:42");
        assert_eq!(subscribe("{\"type\":\"post\",\"postId\":\"42\"}").unwrap(), "post:42");
        assert_eq!(subscribe("{\"id\":\"42\",\"type\":\"post\"}").unwrap(), "post:42");

        for bad in [
            "42",
            "null",
            "{}",
            "{\"type\":\"post\"}",
            "{\"type\":\"post\",\"a\":\"1\",\"b\":\"2\"}",
            "{\"type\":\"post\",\"a\":\"\"}",
            "{\"type\":\"post:x\",\"id\":\"1\"}",
            "{\"type\":7,\"id\":\"1\"}",
            "{\"type\":\"a\",\"type\":\"b\"}",
            "{\"type\":\"control\",\"id\":\"1\"}",
            "\"post:\"",
            "\"user:*\"",
        ] {
            assert!(subscribe(bad).unwrap_err().starts_with("bad_request"), "{bad}");
        }
    }

    #[test]
    fn field_c9_c10_the_object_form_takes_any_id_as_it_is() {
        for (raw, name) in [
            (r#"{"type":"post","postId":42}"#, "post:42"),
            (r#"{"type":"post","postId":9007199254740993}"#, "post:9007199254740993"),
            (
                r#"{"type":"post","postId":340282366920938463463374607431768211456}"#,
                "post:340282366920938463463374607431768211456",
            ),
            (r#"{"type":"post","postId":-7}"#, "post:-7"),
            (r#"{"type":"post","postId":"42","userId":null}"#, "post:42"),
            (r#"{"type":"user","userId":"did:privy:1"}"#, "user:did%3Aprivy%3A1"),
            (r#"{"type":"user","userId":"O'Brien 50%"}"#, "user:O%27Brien%2050%25"),
            (r#""user:did%3Aprivy%3A1""#, "user:did%3Aprivy%3A1"),
        ] {
            assert_eq!(subscribe(raw).as_deref(), Ok(name), "{raw}");
        }

        for (raw, field) in [
            ("1.0", "postId"),
            ("1e3", "postId"),
            ("-0", "postId"),
            ("true", "postId"),
            ("[1]", "postId"),
            ("{}", "postId"),
        ] {
            let why = subscribe(&format!(r#"{{"type":"post","{field}":{raw}}}"#)).unwrap_err();
            let expected =
                "bad_request: postId of a channel is neither a string nor a whole number";
            assert_eq!(why, expected, "{raw}");
        }
    }

    #[test]
    fn the_id_is_echoed_as_it_came() {
        let request = parse(r#"{"id":"a\"b","type":"ping"}"#);
        assert_eq!(request.id.as_deref(), Some(r#""a\"b""#));
        let pong = Reply::Pong { id: request.id.as_deref() };
        assert_eq!(text(&pong), r#"{"type":"pong","id":"a\"b"}"#);
        assert!(matches!(parse(r#"{"id":{},"type":"ping"}"#).command, Command::Invalid(..)));
    }

    #[test]
    fn since_is_a_position_or_an_error() {
        let since = |raw: &str| {
            let text = format!(r#"{{"type":"subscribe","channel":"a","since":{raw}}}"#);
            let command = parse(&text).command;
            let Command::Subscribe(s) = command else { return Err(command) };
            Ok(s.since.map(|p| p.to_string()))
        };
        assert_eq!(since(r#"{"epoch":"1a","offset":7}"#), Ok(Some("1a-7".to_owned())));
        assert_eq!(since("null"), Ok(None));

        for bad in [
            "7",
            "{}",
            r#"{"epoch":"1a"}"#,
            r#"{"epoch":"","offset":1}"#,
            r#"{"epoch":"a-b","offset":1}"#,
            r#"{"epoch":"a","offset":-1}"#,
            r#"{"epoch":"a","offset":1.5}"#,
            r#"{"epoch":"a","offset":1,"x":1}"#,
        ] {
            assert!(matches!(since(bad), Err(Command::Invalid(ErrorCode::BadRequest, _))), "{bad}");
        }
    }

    #[test]
    fn replies_are_json_whatever_the_values_hold() {
        let evil = "a\"\u{1}\\";
        let position = Position::new("1a", 7).unwrap();

        let start = Start { position: Some(&position), recovered: Some(true) };
        let channel = ChannelRef::from_name("a:b".parse().unwrap());
        let id = Some("1");
        let channels = [(channel.name.clone(), start)];
        let code = ErrorCode::BadRequest;
        let message = evil;

        for reply in [
            Reply::Subscribed { id, channel: &channel, data: Some("{}"), start },
            Reply::Gap { channel: &channel.name, reason: GapReason::Overflow },
            Reply::Ended { channel: &channel, code: ErrorCode::Forbidden, reason: evil },
            Reply::Connected {
                user: Some(evil),
                connection_id: "c-1",
                expires_at: Some(5),
                channels: &channels,
            },
            Reply::Error { id, code, message, channel: Some("\"x\"") },
            Reply::Interrupted { since: 7, channels: Some(std::slice::from_ref(&channel.name)) },
            Reply::TokenExpiring { expires_at: 7 },
            Reply::Live,
        ] {
            let json: serde_json::Value = serde_json::from_str(&text(&reply)).unwrap();
            assert_eq!(json["type"], reply.kind().name());
        }
    }
}
