//! The JSON of a token, read strictly: one object, and no name twice in any object.
//!
//! RFC 7519 section 4 lets a parser refuse duplicate names; two readers that each take another of them
//! are an attack. The depth is bounded by the library.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::Reason;

/// A base64url part that holds one JSON object. Strict: no padding, no other alphabet, no stray bits
/// (RFC 7515 section 2).
pub(super) fn object(part: &str) -> Result<Map<String, Value>, Reason> {
    object_of(&URL_SAFE_NO_PAD.decode(part).map_err(|_| Reason::Malformed)?)
}

/// One JSON object.
pub(super) fn object_of(bytes: &[u8]) -> Result<Map<String, Value>, Reason> {
    match serde_json::from_slice::<Unique>(bytes) {
        Ok(Unique(Value::Object(map))) => Ok(map),
        Ok(_) | Err(_) => Err(Reason::Malformed),
    }
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(value)) = access.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unique(value))) = access.next_entry::<String, Unique>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate name"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_duplicates_refused_at_any_depth() {
        let text = r#"{"a":[1,-2,3.5,true,null,"x\u00fc",{"b":{}}],"n":18446744073709551615}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(Value::Object(object_of(text.as_bytes()).unwrap()), plain);
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        for bad in [
            r#"{"a":1,"a":2}"#,
            r#"{"user":{"id":"a","id":"b"}}"#,
            r#"{"l":[{"x":1,"\u0078":2}]}"#,
            "[]",
            "1",
            "",
            "{} {}",
            &deep,
        ] {
            assert_eq!(object_of(bad.as_bytes()), Err(Reason::Malformed), "{bad:.40}");
        }
    }
}
