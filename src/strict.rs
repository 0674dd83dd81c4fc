//! Foreign JSON as types of ours: an object has to be an object. A derived struct also accepts a
//! list of its fields in their order, which no caller means. This is the one place where foreign
//! JSON becomes a struct (`tests/tidy.rs` checks that).

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A type of ours that is read from a JSON object only.
#[derive(Debug)]
pub(crate) struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapOnly(PhantomData)).map(Self)
    }
}

struct MapOnly<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for MapOnly<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Reads a `T` from bytes.
///
/// # Errors
/// The bytes are not a JSON object that makes a `T`.
pub(crate) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Object<T>>(bytes).map(|Object(value)| value)
}

/// Reads a `T` from a text.
///
/// # Errors
/// The text is not a JSON object that makes a `T`.
pub(crate) fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> serde_json::Result<T> {
    serde_json::from_str::<Object<T>>(text).map(|Object(value)| value)
}

/// Reads a field that holds another struct: `#[serde(deserialize_with = "strict::object")]`.
///
/// # Errors
/// The field is not a JSON object that makes a `T`.
pub(crate) fn object<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Object::deserialize(deserializer).map(|Object(value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    struct Inner {
        n: u32,
    }

    #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
    struct Outer<'a> {
        name: &'a str,
        #[serde(deserialize_with = "object")]
        inner: Inner,
    }

    #[test]
    fn an_object_is_an_object_at_every_depth() {
        let good = r#"{"name":"x","inner":{"n":1}}"#;
        assert_eq!(from_str::<Outer<'_>>(good).unwrap().inner, Inner { n: 1 });
        assert_eq!(from_slice::<Outer<'_>>(good.as_bytes()).unwrap().name, "x");
        for bad in [
            r#"["x",{"n":1}]"#,
            r#"{"name":"x","inner":[1]}"#,
            r#"["x",[1]]"#,
            r#""x""#,
            "null",
            "[]",
            r#"{"name":"x","inner":{"n":1}} "#.trim_end().trim_end_matches('}'),
            r#"{"name":"x","inner":{"n":1}} x"#,
        ] {
            assert!(from_str::<Outer<'_>>(bad).is_err(), "{bad}");
        }
    }
}
