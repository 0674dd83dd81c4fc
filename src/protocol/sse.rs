//! Server-sent events (HTML Standard, section 9.2, "Server-sent events"): framing, and positions as
//! text, which are also the `since` of a socket's URL.
//!
//! Not here: the content of an `id:` ([`super::stream_position`]). Invariant: every block that a
//! blank line ends has `data:`. Clients that read the stream by `fetch` take one without it for an
//! empty message.

use bytes::BytesMut;

use crate::channel::{ChannelName, Position};

/// The longest id in bytes. With its header's name it fits into the 8 KiB that proxies allow
/// for a header.
pub const MAX_ID: usize = 8000;

/// The milliseconds that a client waits before it reconnects, random in this range, so that clients
/// whose streams ended together do not all reconnect together.
const RETRY_MS: std::ops::RangeInclusive<u32> = 500..=2000;

/// Appends `data:` with this text, which ends the event that the fields before it began.
pub fn data(out: &mut BytesMut, text: &[u8]) {
    // A line break of any kind would end the field. JSON has them only between its tokens.
    let mut rest = text;
    loop {
        let end = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
        let (line, after) = end.map_or((rest, None), |at| (&rest[..at], Some(&rest[at + 1..])));

        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(b"\n");

        match after {
            Some(after) => rest = after,
            None => break,
        }
    }

    out.extend_from_slice(b"\n");
}

/// Appends the field that names the event's type.
pub fn event(out: &mut BytesMut, kind: &str) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\n");
}

/// Appends the field that holds the stream's positions, with its channels named.
pub fn id<'p>(
    out: &mut BytesMut,
    positions: impl IntoIterator<Item = &'p (ChannelName, Option<Position>)>,
) {
    let mut text = form_urlencoded::Serializer::new(String::new());
    for (channel, position) in positions {
        let position = position.as_ref().map_or_else(String::new, ToString::to_string);
        text.append_pair(channel.as_str(), &position);
    }
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(text.finish().as_bytes());
    out.extend_from_slice(b"\n");
}

/// Reads named positions, from an id or `?since=`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_id(text: &str) -> Result<Vec<(ChannelName, Option<Position>)>, &'static str> {
    if text.len() > MAX_ID {
        return Err("it is too long");
    }
    if !text.is_empty() && !text.split('&').all(|pair| pair.contains('=')) {
        return Err("it is <channel>=<epoch>-<offset>, joined by &");
    }

    let mut found: Vec<(ChannelName, Option<Position>)> = Vec::new();
    for (channel, position) in form_urlencoded::parse(text.as_bytes()) {
        let channel: ChannelName = channel.parse().map_err(|_| "it names no valid channel")?;
        let position = match &*position {
            "" => None,
            text => Some(text.parse().map_err(|()| "a position is <epoch>-<offset>")?),
        };

        if found.iter().any(|(c, _)| *c == channel) {
            return Err("it names a channel twice");
        }
        found.push((channel, position));
    }

    Ok(found)
}

/// Appends the field that says when to reconnect. It is part of a stream's first message and
/// of its last.
pub fn retry(out: &mut BytesMut) {
    out.extend_from_slice(format!("retry: {}\n", fastrand::u32(RETRY_MS)).as_bytes());
}

/// A comment, which ends no block. It keeps proxies from taking a quiet stream for a dead one.
pub const HEARTBEAT: &[u8] = b":\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_one_field_a_line() {
        for (text, expected) in [
            ("{}", "data: {}\n\n"),
            ("{\n}", "data: {\ndata: }\n\n"),
            ("{\r\n}", "data: {\ndata: \ndata: }\n\n"),
            ("\r", "data: \ndata: \n\n"),
        ] {
            let mut out = BytesMut::new();
            data(&mut out, text.as_bytes());
            assert_eq!(out, expected.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn ids_come_back_as_they_went() {
        let positions = [
            ("post:42".parse().unwrap(), Position::new("17a", 7)),
            ("user:a&b=c|é".parse().unwrap(), Position::new("9", 0)),
            ("news".parse().unwrap(), None),
        ];
        let mut out = BytesMut::new();
        id(&mut out, &positions);
        let text = std::str::from_utf8(&out).unwrap();
        let text = text.strip_prefix("id: ").unwrap().strip_suffix('\n').unwrap();
        assert!(text.bytes().all(|b| b.is_ascii_graphic()), "{text}");
        assert_eq!(parse_id(text).unwrap(), positions);
        assert_eq!(parse_id("").unwrap(), []);
    }

    #[test]
    fn w17_malformed_ids_are_refused() {
        for bad in [
            "post:42",
            "post:42=1",
            "post:42=1-",
            "post:42=-1",
            "post:42=1-x",
            "=1-1",
            "post:42=1-1&post:42=1-2",
            "post:*=1-1",
            "post:42=1-99999999999999999999",
            "a=\u{0}-1",
            "a=1-+1",
            "a=1-1-1",
            "\u{0}",
        ] {
            assert!(parse_id(bad).is_err(), "{bad:?}");
        }

        assert!(parse_id(&"a=1-1&".repeat(10_000)).is_err());
    }
}
