//! The plain protocol: commands in, replies and events out, one JSON object per text message.
//!
//! A channel name holds nothing that JSON would escape (see `channel`), so it is written as it is;
//! everything else that a client or a token brought goes through `serde_json`.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::codes::ErrorCode;
use crate::channel::{ChannelName, GapReason, Publication};
use crate::websocket::{Opcode, encode};

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
    /// With the subscription token, where one came.
    Subscribe(ChannelRef, Option<String>),
    Unsubscribe(ChannelRef),
    Auth(String),
    Refresh(String),
    Ping,
    /// Nothing can be done but answer this.
    Invalid(ErrorCode, Cow<'static, str>),
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
    let Ok(raw) = serde_json::from_str::<Raw<'_>>(text) else {
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
        Some("subscribe") => match (&raw.since, raw.token) {
            (Some(_), _) => not_supported("since: this version keeps no history"),
            (None, token) => {
                let token = token.map(Cow::into_owned);
                channel_ref(raw.channel).map_or_else(|e| e, |c| Command::Subscribe(c, token))
            }
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

fn not_supported(message: &'static str) -> Command {
    Command::Invalid(ErrorCode::NotSupported, Cow::Borrowed(message))
}

/// `"post:42"`, or an object with `type` and exactly one other string field.
fn channel_ref(raw: Option<&RawValue>) -> Result<ChannelRef, Command> {
    let invalid = |m: String| Command::Invalid(ErrorCode::BadRequest, Cow::Owned(m));
    let shape = || {
        invalid(
            "channel is a string like \"post:42\", or an object with type and one id".to_owned(),
        )
    };
    let raw = raw.ok_or_else(|| invalid("channel is missing".to_owned()))?.get();
    let name = if raw.starts_with('"') {
        serde_json::from_str::<String>(raw).map_err(|_| shape())?
    } else {
        let fields: Fields = serde_json::from_str(raw).map_err(|_| shape())?;
        let (kind, id) = fields.0.ok_or_else(shape)?;
        if kind.contains(':') || id.contains(':') {
            return Err(invalid("type and id of a channel cannot hold a colon".to_owned()));
        }
        format!("{kind}:{id}")
    };
    let name: ChannelName = name.parse().map_err(|e| invalid(format!("channel: {e}")))?;
    Ok(ChannelRef { raw: raw.into(), name })
}

/// `type` and the one other field of a channel object; `None` for any other shape.
struct Fields(Option<(String, String)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields, A::Error> {
                let (mut kind, mut id, mut count) = (None, None, 0);
                while let Some((key, value)) = map.next_entry::<Cow<'_, str>, String>()? {
                    count += 1;
                    *if key == "type" { &mut kind } else { &mut id } = Some(value);
                }
                Ok(Fields(if count == 2 { kind.zip(id) } else { None }))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// An event as published.
pub fn event(out: &mut BytesMut, publication: &Publication) {
    encode(out, Opcode::Text, &publication.payload);
}

/// An event with its channel and, where it has one, its position.
pub fn envelope(out: &mut BytesMut, publication: &Publication) {
    let position = publication.position.as_ref().map_or_else(String::new, |p| {
        format!(",\"offset\":{},\"epoch\":{}", p.offset, json_string(&p.epoch))
    });
    let mut message = Vec::with_capacity(publication.payload.len() + position.len() + 64);
    message.extend_from_slice(b"{\"type\":\"event\",\"channel\":\"");
    message.extend_from_slice(publication.channel.as_str().as_bytes());
    message.push(b'"');
    message.extend_from_slice(position.as_bytes());
    message.extend_from_slice(b",\"data\":");
    message.extend_from_slice(&publication.payload);
    message.push(b'}');
    encode(out, Opcode::Text, &message);
}

/// Events of this channel may be missing.
pub fn gap(out: &mut BytesMut, channel: &ChannelName, reason: GapReason) {
    let message = format!(
        "{{\"type\":\"gap\",\"data\":{{\"channel\":\"{channel}\",\"reason\":\"{}\"}}}}",
        reason.label()
    );
    encode(out, Opcode::Text, message.as_bytes());
}

fn json_string(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

fn frame(message: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 4);
    encode(&mut out, Opcode::Text, message.as_bytes());
    out.freeze()
}

fn reply(kind: &str, id: Option<&str>, data: &str) -> Bytes {
    let id = id.map_or_else(String::new, |id| format!(",\"id\":{id}"));
    let data = if data.is_empty() { String::new() } else { format!(",\"data\":{{{data}}}") };
    frame(&format!("{{\"type\":\"{kind}\"{id}{data}}}"))
}

/// The first message of an accepted connection. `expires_at` is in Unix seconds.
#[must_use]
pub fn connected(
    user: Option<&str>,
    connection_id: &str,
    expires_at: Option<u64>,
    channels: &[ChannelName],
) -> Bytes {
    let user = user.map_or_else(|| "null".to_owned(), json_string);
    let expires = expires_at.map_or_else(|| "null".to_owned(), |t| t.to_string());
    let channels: Vec<_> = channels.iter().map(|c| format!("\"{c}\"")).collect();
    let channels = channels.join(",");
    reply(
        "connected",
        None,
        &format!(
            "\"userId\":{user},\"connectionId\":\"{connection_id}\",\"expiresAt\":{expires},\
             \"channels\":[{channels}]"
        ),
    )
}

fn channel_reply(kind: &str, id: Option<&str>, channel: &ChannelRef, data: Option<&str>) -> Bytes {
    let ChannelRef { raw, name } = channel;
    let data = data.map_or_else(String::new, |d| format!(",\"data\":{d}"));
    reply(kind, id, &format!("\"channel\":{raw},\"channelKey\":\"{name}\"{data}"))
}

/// `data`: JSON that came with the permission.
#[must_use]
pub fn subscribed(id: Option<&str>, channel: &ChannelRef, data: Option<&str>) -> Bytes {
    channel_reply("subscribed", id, channel, data)
}

#[must_use]
pub fn unsubscribed(id: Option<&str>, channel: &ChannelRef) -> Bytes {
    channel_reply("unsubscribed", id, channel, None)
}

#[must_use]
pub fn refreshed(id: Option<&str>, expires_at: Option<u64>) -> Bytes {
    let expires = expires_at.map_or_else(|| "null".to_owned(), |t| t.to_string());
    reply("refreshed", id, &format!("\"expiresAt\":{expires}"))
}

#[must_use]
pub fn pong(id: Option<&str>) -> Bytes {
    reply("pong", id, "")
}

/// The token ends soon; the client should send `refresh`.
#[must_use]
pub fn token_expiring(expires_at: u64) -> Bytes {
    reply("token_expiring", None, &format!("\"expiresAt\":{expires_at}"))
}

/// The connection is about to be closed by a drain; come back after `after_ms`.
#[must_use]
pub fn reconnect(after_ms: u64) -> Bytes {
    reply("reconnect", None, &format!("\"afterMs\":{after_ms}"))
}

#[must_use]
pub fn error(id: Option<&str>, code: ErrorCode, message: &str, channel: Option<&str>) -> Bytes {
    let channel = channel.map_or_else(String::new, |c| format!(",\"channel\":{c}"));
    let message = json_string(message);
    reply("error", id, &format!("\"code\":\"{}\",\"message\":{message}{channel}", code.slug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscribe(raw: &str) -> Result<String, String> {
        match parse(&format!("{{\"type\":\"subscribe\",\"channel\":{raw}}}")).command {
            Command::Subscribe(c, _) => Ok(c.name.to_string()),
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
            "{\"type\":\"post\",\"a\":1}",
            "{\"type\":\"user\",\"id\":\"1:2\"}",
            "{\"type\":\"post\",\"id\":\"*\"}",
            "\"post:\"",
        ] {
            assert!(subscribe(bad).unwrap_err().starts_with("bad_request"), "{bad}");
        }
    }

    #[test]
    fn the_id_is_echoed_as_it_came() {
        let request = parse(r#"{"id":"a\"b","type":"ping"}"#);
        assert_eq!(request.id.as_deref(), Some(r#""a\"b""#));
        assert_eq!(&pong(request.id.as_deref())[2..], br#"{"type":"pong","id":"a\"b"}"#);
        assert!(matches!(parse(r#"{"id":{},"type":"ping"}"#).command, Command::Invalid(..)));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let since = r#"{"type":"subscribe","channel":"a","since":{"offset":1}}"#;
        assert!(matches!(
            parse(since).command,
            Command::Invalid(ErrorCode::NotSupported, m) if m.contains("history")
        ));
    }

    #[test]
    fn replies_are_json_whatever_the_values_hold() {
        let evil = "a\"\u{1}\\";
        for bytes in [
            connected(Some(evil), "c-1", Some(5), &["a:b".parse().unwrap()]),
            error(Some("7"), ErrorCode::BadRequest, evil, Some("\"x\"")),
            token_expiring(7),
        ] {
            let start = bytes.iter().position(|b| *b == b'{').unwrap();
            serde_json::from_slice::<serde_json::Value>(&bytes[start..]).unwrap();
        }
    }
}
