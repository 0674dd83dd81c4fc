//! Checking a payload before it goes out unchanged: it has to be JSON, and its `type` must not be
//! one of the gateway's own.
//!
//! The check is one pass, without a copy. Invariant: an error never contains a byte of the payload.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::kind::Kind;

/// What is wrong with a payload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadFault {
    #[error("byte {at} is not UTF-8")]
    NotUtf8 { at: usize },
    /// The library's text: what was expected, and the line and column.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    #[error("its type is \"{}\", which is reserved for the gateway's own messages", .0.name())]
    Reserved(Kind),
}

/// Checks that a payload can be delivered as an event.
///
/// # Errors
/// Why not, and where in the payload that shows.
pub fn check(payload: &[u8]) -> Result<(), PayloadFault> {
    let text = match std::str::from_utf8(payload) {
        Ok(text) => text,
        Err(e) => return Err(PayloadFault::NotUtf8 { at: e.valid_up_to() + 1 }),
    };

    let not_json = |e: serde_json::Error| PayloadFault::NotJson(e.to_string());
    if !text.trim_ascii_start().starts_with('{') {
        return serde_json::from_str::<IgnoredAny>(text).map(|_| ()).map_err(not_json);
    }

    match serde_json::from_str::<TopLevel>(text).map_err(not_json)?.0 {
        Some(kind) => Err(PayloadFault::Reserved(kind)),
        None => Ok(()),
    }
}

/// The reserved `type` of an object. If an object has several types, readers differ in which one
/// they take, so a single reserved one counts.
struct TopLevel(Option<Kind>);

impl<'de> Deserialize<'de> for TopLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Option<Kind>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut found = None;
                while let Some(name) = map.next_key::<&RawValue>()? {
                    if is_type(name.get()) {
                        let value: &RawValue = map.next_value()?;
                        found = found.or_else(|| reserved(value.get()));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Fields).map(Self)
    }
}

fn reserved(value: &str) -> Option<Kind> {
    let name = value.strip_prefix('"')?.strip_suffix('"')?;
    if name.contains('\\') {
        return Kind::named(serde_json::from_str::<String>(value).ok()?.as_bytes());
    }
    Kind::named(name.as_bytes())
}

/// True if a field's name is `type`, however it is escaped. Read as bytes, a name with a control character, which is
/// no JSON, would pass; read as a text, one with half of a surrogate pair, which is JSON, would not.
fn is_type(name: &str) -> bool {
    name == "\"type\""
        || name.contains('\\') && serde_json::from_str::<String>(name).is_ok_and(|n| n == "type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_c6_every_type_of_the_gateways_own_is_seen_however_it_is_written() {
        for kind in Kind::ALL {
            let name = kind.name();
            let escaped: String = name.bytes().map(|b| format!("\\u{b:04x}")).collect();
            for text in [
                format!(r#"{{"type":"{name}"}}"#),
                format!(r#" {{ "data" : [1,{{}}] , "type" : "{name}" }} "#),
                format!(r#"{{"type":"{escaped}"}}"#),
                format!(r#"{{"\u0074ype":"{name}"}}"#),
                format!(r#"{{"type":"mine","type":"{name}","type":1}}"#),
            ] {
                assert_eq!(check(text.as_bytes()), Err(PayloadFault::Reserved(kind)), "{text}");
            }
        }
    }

    #[test]
    fn field_c6_other_events_pass_as_they_did() {
        let deep = format!(r#"{{"type":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));

        for text in [
            r#"{"type":"post_purchased","postId":"p1"}"#,
            r#"{"type":"Gap"}"#,
            r#"{"type":"gap "}"#,
            r#"{"type":"event"}"#,
            r#"{"type":null}"#,
            r#"{"type":["gap"]}"#,
            r#"{"type":{"type":"gap"}}"#,
            r#"{"data":{"type":"gap"}}"#,
            r#"{"Type":"gap"}"#,
            r#"[{"type":"gap"}]"#,
            r#""gap""#,
            "1",
            "{}",
            // Half of a surrogate pair, which JavaScript reads and writes.
            r#"{"\ud800":1,"type":"\ud800"}"#,
            &deep,
        ] {
            assert_eq!(check(text.as_bytes()), Ok(()), "{text:.60}");
        }
    }

    /// Such an event was delivered, and clients could not read it.
    #[test]
    fn a_name_with_a_control_character_is_not_json() {
        for text in ["{\"a\nb\":1}", "{\"\t\":1}", "{\"type\0\":\"gap\"}"] {
            assert!(matches!(check(text.as_bytes()), Err(PayloadFault::NotJson(_))), "{text:?}");
        }
        assert_eq!(check(br#"{"a\nb":1}"#), Ok(()));
    }

    #[test]
    fn field_f15_what_is_wrong_is_said_with_its_place_and_without_the_content() {
        for (payload, said) in [
            (&b""[..], "it is not JSON: EOF while parsing a value at line 1 column 0"),
            (b"{\"a\":\"\xff\"}", "byte 7 is not UTF-8"),
            (b"secret", "it is not JSON: expected value at line 1 column 1"),
            (
                b"{\"secret\":1,\n secret}",
                "it is not JSON: key must be a string at line 2 column 2",
            ),
            (
                b"{\"type\":\"gap\"",
                "it is not JSON: EOF while parsing an object at line 1 column 13",
            ),
            (b"{\"type\":secret}", "it is not JSON: expected value at line 1 column 9"),
            (b"{} {}", "it is not JSON: trailing characters at line 1 column 4"),
            (b"1 2", "it is not JSON: trailing characters at line 1 column 3"),
        ] {
            assert_eq!(check(payload).unwrap_err().to_string(), said);
        }
    }
}
