//! The plain protocol: commands in, replies and events out, one JSON object per text message.
//!
//! A channel name holds nothing that JSON would escape (see `channel`), so it is written as it is;
//! everything else that a client or a token brought goes through `serde_json`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::codes::{Close, ErrorCode, Reconnect};
use super::{Kind, Message};
use crate::channel::{ChannelName, GapReason, Position, Publication, check_id, encode_id};
use crate::strict;

/// Longest `id` that is echoed, in bytes of JSON.
const MAX_ID_BYTES: usize = 128;

/// A client's message: what it wants and the `id` to answer with.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The JSON of `id`, as the client wrote it.
    pub id: Option<Box<str>>,
    pub command: Command,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Subscribe(Subscribe),
    Unsubscribe(ChannelRef),
    Auth(String),
    Refresh(String),
    Ping,
    /// Nothing can be done but answer this.
    Invalid(ErrorCode, Cow<'static, str>),
}

/// A `subscribe`.
#[derive(Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub channel: ChannelRef,
    /// A subscription token.
    pub token: Option<String>,
    /// What the client has of the channel already.
    pub since: Option<Position>,
}

/// A channel as the client wrote it (string or object), and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRef {
    pub raw: Box<str>,
    pub name: ChannelName,
}

impl ChannelRef {
    /// The reference that a bare name makes, for subscriptions the gateway starts itself.
    #[must_use]
    pub fn from_name(name: ChannelName) -> Self {
        Self { raw: format!("\"{name}\"").into(), name }
    }
}

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

/// Reads one text message. It never fails: what is wrong comes back as [`Command::Invalid`] with
/// the `id`, where there was one.
#[must_use]
pub fn parse(text: &str) -> Request {
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
                invalid("since is {\"epoch\":\"...\",\"offset\":7} as an event had it")
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

/// The position of `since`, if there is one; `None` when it is not a position.
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

/// `"post:42"`, or an object with `type` and exactly one other field, whose value is an id.
fn channel_ref(raw: Option<&RawValue>) -> Result<ChannelRef, Command> {
    let invalid = |m: String| Command::Invalid(ErrorCode::BadRequest, Cow::Owned(m));
    let shape = || {
        invalid("channel is a text like \"post:42\", or an object with type and one id".to_owned())
    };
    let raw = raw.ok_or_else(|| invalid("channel is missing".to_owned()))?.get();
    let name = if raw.starts_with('"') {
        serde_json::from_str::<String>(raw).map_err(|_| shape())?
    } else {
        let fields = serde_json::from_str::<Fields<'_>>(raw).map_err(|_| shape())?;
        let (kind, (field, id)) = fields.0.ok_or_else(shape)?;
        let kind = serde_json::from_str::<String>(kind)
            .map_err(|_| invalid("the type of a channel is a text".to_owned()))?;
        if kind.contains(':') {
            return Err(invalid("the type of a channel cannot hold a colon".to_owned()));
        }
        let id = id_text(id).ok_or_else(|| {
            let field = field.chars().filter(|c| !c.is_control()).take(40).collect::<String>();
            invalid(format!("{field} of a channel is neither a text nor a whole number"))
        })?;
        check_id(&id).map_err(|e| invalid(format!("channel: {e}")))?;
        format!("{kind}:{}", encode_id(&id))
    };
    let name: ChannelName = name.parse().map_err(|e| invalid(format!("channel: {e}")))?;
    Ok(ChannelRef { raw: raw.into(), name })
}

/// The text of an id: of a JSON string, or the digits of a whole number, however many they are.
fn id_text(raw: &RawValue) -> Option<String> {
    let raw = raw.get();
    if raw.starts_with('"') {
        return serde_json::from_str::<String>(raw).ok();
    }
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    let is_whole = digits.bytes().all(|b| b.is_ascii_digit()) && raw != "-0";
    is_whole.then(|| raw.to_owned())
}

/// `type`, and the one other field of a channel object with its name; `None` for any other shape. What
/// is null counts as absent.
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
                let (mut kind, mut id, mut count) = (None, None, 0);
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

/// An event with its channel and, where it has one, its position.
#[must_use]
pub fn envelope(publication: &Publication) -> Vec<u8> {
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

/// Events of this channel may be missing.
#[must_use]
pub fn gap(channel: &ChannelName, reason: GapReason) -> Message {
    let reason = reason.label();
    reply(Kind::Gap, None, &format!("\"channel\":\"{channel}\",\"reason\":\"{reason}\""))
}

/// Nothing can arrive since that Unix second, on these channels or on any.
#[must_use]
pub fn interrupted(since: u64, channels: Option<&[ChannelName]>) -> Message {
    let mut data = format!("\"since\":{since}");
    if let Some(channels) = channels {
        data.push_str(",\"channels\":[");
        list(&mut data, channels.iter().map(|c| ["\"", c.as_str(), "\""]));
        data.push(']');
    }
    reply(Kind::Interrupted, None, &data)
}

/// Everything arrives again.
#[must_use]
pub fn live() -> Message {
    reply(Kind::Live, None, "")
}

fn json_string(s: &str) -> String {
    serde_json::to_string(s).unwrap_or_default()
}

fn reply(kind: Kind, id: Option<&str>, data: &str) -> Message {
    let id = id.map_or_else(String::new, |id| format!(",\"id\":{id}"));
    let data = if data.is_empty() { String::new() } else { format!(",\"data\":{{{data}}}") };
    let name = kind.name();
    Message { kind, text: format!("{{\"type\":\"{name}\"{id}{data}}}") }
}

/// What a subscription begins with, for clients that know positions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'p> {
    pub position: Option<&'p Position>,
    pub recovered: Option<bool>,
}

impl Start<'_> {
    fn fields(self) -> String {
        let position = self.position.map_or_else(String::new, position_fields);
        let recovered = self.recovered.map_or_else(String::new, |r| format!(",\"recovered\":{r}"));
        format!("{position}{recovered}")
    }
}

/// The first message of an accepted connection. `expires_at` is in Unix seconds.
#[must_use]
pub fn connected(
    user: Option<&str>,
    connection_id: &str,
    expires_at: Option<u64>,
    channels: &[(ChannelName, Start<'_>)],
) -> Message {
    let mut text = String::with_capacity(256);
    text.push_str("{\"type\":\"connected\",\"data\":{\"userId\":");
    text.push_str(user.map(json_string).as_deref().unwrap_or("null"));
    text.push_str(",\"connectionId\":\"");
    text.push_str(connection_id);
    text.push_str("\",\"expiresAt\":");
    text.push_str(expires_at.map(|t| t.to_string()).as_deref().unwrap_or("null"));
    text.push_str(",\"channels\":[");
    list(&mut text, channels.iter().map(|(c, _)| ["\"", c.as_str(), "\""]));
    text.push(']');
    let starts: Vec<_> = channels.iter().map(|(c, start)| (c, start.fields())).collect();
    if starts.iter().any(|(_, fields)| !fields.is_empty()) {
        text.push_str(",\"positions\":{");
        let known = starts.iter().filter(|(_, fields)| !fields.is_empty());
        list(&mut text, known.map(|(c, fields)| ["\"", c.as_str(), "\":{", &fields[1..], "}"]));
        text.push('}');
    }
    text.push_str("}}");
    Message { kind: Kind::Connected, text }
}

/// The entries of a JSON array or object, each of several pieces.
fn list<'p, const N: usize>(text: &mut String, entries: impl Iterator<Item = [&'p str; N]>) {
    for (n, entry) in entries.enumerate() {
        text.push_str(if n > 0 { "," } else { "" });
        text.extend(entry);
    }
}

/// `data`: JSON that came with the permission.
#[must_use]
pub fn subscribed(
    id: Option<&str>,
    ChannelRef { raw, name }: &ChannelRef,
    data: Option<&str>,
    start: Start<'_>,
) -> Message {
    let data = data.map_or_else(String::new, |d| format!(",\"data\":{d}"));
    let start = start.fields();
    reply(
        Kind::Subscribed,
        id,
        &format!("\"channel\":{raw},\"channelKey\":\"{name}\"{start}{data}"),
    )
}

#[must_use]
pub fn unsubscribed(id: Option<&str>, ChannelRef { raw, name }: &ChannelRef) -> Message {
    reply(Kind::Unsubscribed, id, &format!("\"channel\":{raw},\"channelKey\":\"{name}\""))
}

/// The permission for a channel has ended.
#[must_use]
pub fn ended(channel: &ChannelRef, code: ErrorCode, why: &str) -> Message {
    let ChannelRef { raw, name } = channel;
    let (code, why) = (code.slug(), json_string(why));
    let data =
        format!("\"channel\":{raw},\"channelKey\":\"{name}\",\"code\":\"{code}\",\"reason\":{why}");
    reply(Kind::Unsubscribed, None, &data)
}

#[must_use]
pub fn refreshed(id: Option<&str>, expires_at: Option<u64>) -> Message {
    let expires = expires_at.map_or_else(|| "null".to_owned(), |t| t.to_string());
    reply(Kind::Refreshed, id, &format!("\"expiresAt\":{expires}"))
}

#[must_use]
pub fn pong(id: Option<&str>) -> Message {
    reply(Kind::Pong, id, "")
}

/// The token ends soon; the client should send `refresh`.
#[must_use]
pub fn token_expiring(expires_at: u64) -> Message {
    reply(Kind::TokenExpiring, None, &format!("\"expiresAt\":{expires_at}"))
}

/// The connection is about to be closed by a drain; come back after `after_ms`.
#[must_use]
pub fn reconnect(after_ms: u64) -> Message {
    reply(Kind::Reconnect, None, &format!("\"afterMs\":{after_ms}"))
}

/// The stream ends, as a close frame says on a socket.
#[must_use]
pub fn close(close: &Close) -> Message {
    let (code, reason) = (close.code.code(), json_string(&close.reason));
    let again = close.code.row().reconnect == Reconnect::Yes;
    reply(Kind::Close, None, &format!("\"code\":{code},\"reason\":{reason},\"reconnect\":{again}"))
}

#[must_use]
pub fn error(id: Option<&str>, code: ErrorCode, message: &str, channel: Option<&str>) -> Message {
    let channel = channel.map_or_else(String::new, |c| format!(",\"channel\":{c}"));
    let message = json_string(message);
    reply(Kind::Error, id, &format!("\"code\":\"{}\",\"message\":{message}{channel}", code.slug()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let expected = "bad_request: postId of a channel is neither a text nor a whole number";
            assert_eq!(why, expected, "{raw}");
        }
    }

    #[test]
    fn the_id_is_echoed_as_it_came() {
        let request = parse(r#"{"id":"a\"b","type":"ping"}"#);
        assert_eq!(request.id.as_deref(), Some(r#""a\"b""#));
        assert_eq!(pong(request.id.as_deref()).text, r#"{"type":"pong","id":"a\"b"}"#);
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
        for message in [
            subscribed(Some("1"), &channel, Some("{}"), start),
            gap(&channel.name, GapReason::Overflow),
            ended(&channel, ErrorCode::Forbidden, evil),
            connected(Some(evil), "c-1", Some(5), &[("a:b".parse().unwrap(), start)]),
            error(Some("7"), ErrorCode::BadRequest, evil, Some("\"x\"")),
            token_expiring(7),
        ] {
            let json: serde_json::Value = serde_json::from_str(&message.text).unwrap();
            assert_eq!(json["type"], message.kind.name());
        }
    }
}
