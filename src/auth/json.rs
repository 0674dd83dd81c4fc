//! The JSON of a token: one object. It is read as leniently as other libraries read it, and
//! strictly where strictness protects.
//!
//! Two readers that each take another of two equal names are an attack (RFC 7519 section 4 lets
//! a parser refuse equal names). The members that the gateway reads are therefore unique at any
//! depth, and their texts are texts. All other members only have to be JSON: numbers of any
//! size, halves of surrogate pairs and repeated names are the issuer's business, as with the
//! other libraries.

use std::fmt;

use super::reason::Reason;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine as _};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Deepest nesting of a member that is read.
const MAX_DEPTH: usize = 128;

/// Why a part of a token is not a usable object. The names come out of the token, so they are
/// hostile text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Defect {
    /// Not base64url.
    Base64,
    /// Base64url whose last character has bits that mean nothing (RFC 4648 section 3.5).
    StrayBits,
    Empty,
    NotUtf8,
    /// The JSON ends too early: it is only the beginning of an object.
    Ends,
    NotJson,
    /// JSON, but no object.
    NotObject,
    /// This member, or one inside it, comes twice.
    Duplicate(String),
    TooDeep(String),
    /// This member holds half of a surrogate pair, which is not text.
    NotText(String),
}

impl From<Defect> for Reason {
    fn from(_: Defect) -> Self {
        Self::Malformed
    }
}

/// Decodes strictly: no padding, no other alphabet, no stray bits (RFC 7515 section 2).
pub(super) fn decode(part: &str) -> Result<Vec<u8>, Defect> {
    URL_SAFE_NO_PAD.decode(part).map_err(|e| match e {
        DecodeError::InvalidLastSymbol(..) => Defect::StrayBits,
        DecodeError::InvalidByte(..) | DecodeError::InvalidLength(_) => Defect::Base64,
        DecodeError::InvalidPadding => Defect::Base64,
    })
}

/// Decodes a base64url part that holds one JSON object; `is_read` says which members the
/// gateway reads.
pub(super) fn object(
    part: &str,
    is_read: &dyn Fn(&str) -> bool,
) -> Result<Map<String, Value>, Defect> {
    object_of(&decode(part)?, is_read)
}

/// Reads a token's header.
pub(super) fn header(part: &str) -> Result<Map<String, Value>, Defect> {
    object(part, &|name| ["alg", "enc", "kid", "crit", "b64", "zip"].contains(&name))
}

/// Reads one JSON object, perhaps behind a byte order mark (RFC 8259 section 8.1).
pub(super) fn object_of(
    bytes: &[u8],
    is_read: &dyn Fn(&str) -> bool,
) -> Result<Map<String, Value>, Defect> {
    let text = std::str::from_utf8(bytes).map_err(|e| match e.error_len() {
        None => Defect::Ends,
        Some(_) => Defect::NotUtf8,
    })?;

    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r');

    let body = text.trim_start_matches(is_blank);
    if body.is_empty() {
        return Err(Defect::Empty);
    }
    if !body.starts_with('{') {
        let is_json = serde_json::from_str::<IgnoredAny>(body).is_ok();
        return Err(if is_json { Defect::NotObject } else { Defect::NotJson });
    }

    let Members(members) = members(body)?;
    let mut map = Map::new();
    for (name, raw) in members {
        let value = if is_read(&name) {
            if map.contains_key(&name) {
                return Err(Defect::Duplicate(name));
            }
            strict(raw.get(), 1).map_err(|flaw| flaw.of(&name))?
        } else {
            // The gateway does not read this member, so any value will do.
            serde_json::from_str::<Value>(raw.get()).unwrap_or(Value::Null)
        };
        map.insert(name, value);
    }
    Ok(map)
}

fn members(text: &str) -> Result<Members<'_>, Defect> {
    serde_json::from_str::<Members<'_>>(text).map_err(|e| match e.classify() {
        Category::Eof => Defect::Ends,
        Category::Io | Category::Syntax | Category::Data => Defect::NotJson,
    })
}

/// What is wrong inside a member that is read.
enum Flaw {
    Duplicate,
    TooDeep,
    NotText,
}

impl Flaw {
    fn of(self, name: &str) -> Defect {
        match self {
            Self::Duplicate => Defect::Duplicate(name.to_owned()),
            Self::TooDeep => Defect::TooDeep(name.to_owned()),
            Self::NotText => Defect::NotText(name.to_owned()),
        }
    }
}

/// Reads a value of which the gateway reads some part. The text is known to be JSON.
fn strict(raw: &str, depth: usize) -> Result<Value, Flaw> {
    if depth > MAX_DEPTH {
        return Err(Flaw::TooDeep);
    }

    match raw.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = members(raw).map_err(|_| Flaw::NotText)?;
            let mut map = Map::new();

            for (name, raw) in members {
                if map.insert(name, strict(raw.get(), depth + 1)?).is_some() {
                    return Err(Flaw::Duplicate);
                }
            }

            Ok(Value::Object(map))
        }
        Some(b'[') => {
            let list = serde_json::from_str::<Vec<&RawValue>>(raw).map_err(|_| Flaw::NotText)?;
            let list = list.into_iter().map(|raw| strict(raw.get(), depth + 1));
            Ok(Value::Array(list.collect::<Result<_, _>>()?))
        }
        Some(b'-' | b'0'..=b'9') => Ok(number(raw)),
        _ => serde_json::from_str::<Value>(raw).map_err(|_| Flaw::NotText),
    }
}

/// Reads a number. One that is larger than any float becomes the largest float, for which other
/// libraries read infinity.
fn number(raw: &str) -> Value {
    let largest = if raw.starts_with('-') { f64::MIN } else { f64::MAX };
    let number = serde_json::from_str::<Value>(raw).ok();
    number.or_else(|| Number::from_f64(largest).map(Value::Number)).unwrap_or_default()
}

/// An object's members in the order of the text, including names that come twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), raw)) = map.next_entry()? {
                    members.push((name, raw));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A member's name. It is read as bytes, the form in which serde_json accepts halves of
/// surrogate pairs.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Name, E> {
                Ok(Name(String::from_utf8_lossy(name).into_owned()))
            }
        }
        deserializer.deserialize_bytes(NameVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Map<String, Value>, Defect> {
        object_of(text.as_bytes(), &|name| ["sub", "exp", "user"].contains(&name))
    }

    #[test]
    fn what_is_read_is_kept_as_it_is() {
        let text = r#"{"user":[1,-2,3.5,true,null,"x\u00fc",{"b":{}}],"exp":18446744073709551615}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(Value::Object(read(text).unwrap()), plain);
        assert_eq!(read("\u{feff} {\"exp\": 1e400 }\n").unwrap()["exp"], f64::MAX);
        assert_eq!(read("{\"exp\":-1e400}").unwrap()["exp"], f64::MIN);
        assert_eq!(read(r#"{"s\u0075b":"a\u0000b"}"#).unwrap()["sub"], "a\0b");
    }

    #[test]
    fn what_nobody_reads_only_has_to_be_json() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        for other in [
            "1e400",
            "-1e999999",
            "123456789012345678901234567890",
            r#""half of a pair: \ud83d""#,
            r#"{"\udc00":1}"#,
            r#"{"a":1,"a":2}"#,
            &deep,
        ] {
            let map = read(&format!("{{\"x\":{other},\"sub\":\"u\",\"x\":{other}}}")).unwrap();
            assert_eq!(map["sub"], "u", "{other:.40}");
        }
        assert!(read(r#"{"\ud83d":1,"sub":"u"}"#).is_ok());
    }

    #[test]
    fn what_is_read_is_unique_text_and_shallow() {
        let of = |name: &str| name.to_owned();
        let deep = format!("{{\"user\":{}1{}}}", "[".repeat(500), "]".repeat(500));

        for (text, defect) in [
            (r#"{"sub":"a","sub":"b"}"#, Defect::Duplicate(of("sub"))),
            (r#"{"sub":"a","s\u0075b":"b"}"#, Defect::Duplicate(of("sub"))),
            (r#"{"user":{"id":"a","id":"b"}}"#, Defect::Duplicate(of("user"))),
            (r#"{"user":[{"x":1,"\u0078":2}]}"#, Defect::Duplicate(of("user"))),
            (r#"{"sub":"\ud800"}"#, Defect::NotText(of("sub"))),
            (&deep, Defect::TooDeep(of("user"))),
            ("[]", Defect::NotObject),
            ("1", Defect::NotObject),
            ("nonsense", Defect::NotJson),
            ("", Defect::Empty),
            (" \n", Defect::Empty),
            ("{} {}", Defect::NotJson),
            ("{\"a\":NaN}", Defect::NotJson),
            ("{\"a\":\"\0\"}", Defect::NotJson),
            ("{\"a\":1", Defect::Ends),
            ("{\"a", Defect::Ends),
        ] {
            assert_eq!(read(text), Err(defect), "{text:.40}");
        }

        assert_eq!(object_of(b"{\"a\":\"\xff\"}", &|_| true), Err(Defect::NotUtf8));
        assert_eq!(object_of(b"{\"a\":\"\xc3", &|_| true), Err(Defect::Ends));

        for (part, defect) in
            [("e30=", Defect::Base64), ("e", Defect::Base64), ("e31", Defect::StrayBits)]
        {
            assert_eq!(object(part, &|_| true), Err(defect), "{part}");
        }
    }
}
