//! Ids in channel names. An id is any text that the application has for a user or a thing, but a
//! part of a channel's name may not hold every character. The others are percent-encoded, so that
//! no two ids ever share a channel, and the id can be read back.

use std::borrow::Cow;

use super::is_forbidden;

/// The longest id in bytes, before it is encoded. A Kubernetes service account's name has up to
/// 339.
pub const MAX_ID_BYTES: usize = 512;

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("an id is empty")]
    Empty,
    #[error("an id is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    #[error("an id contains a control character")]
    Control,
}

/// Checks an id. Any text is one that is not empty, not too long, and without control characters.
///
/// # Errors
/// Why the text is not an id.
pub fn check_id(id: &str) -> Result<(), IdError> {
    if id.is_empty() {
        return Err(IdError::Empty);
    }
    if id.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong);
    }
    if id.chars().any(char::is_control) {
        return Err(IdError::Control);
    }
    Ok(())
}

/// The part of a channel's name that stands for an id: `did:privy:1` is `did%3Aprivy%3A1`. `%`, `:`
/// and everything that no name may hold are encoded, each byte of their UTF-8 as `%` and two
/// upper-case digits. All else stays as it is.
#[must_use]
pub fn encode_id(id: &str) -> Cow<'_, str> {
    let is_odd = |c: char| matches!(c, '%' | ':') || is_forbidden(c);
    if !id.contains(is_odd) {
        return Cow::Borrowed(id);
    }

    let mut encoded = String::with_capacity(id.len() + 16);
    for c in id.chars() {
        if is_odd(c) {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        } else {
            encoded.push(c);
        }
    }

    Cow::Owned(encoded)
}

/// The id that a part of a channel's name stands for, or `None` for a part that [`encode_id`]
/// never makes.
#[must_use]
pub fn decode_id(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());

    let mut rest = part.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }

        let (digits, after) = rest.split_at_checked(2)?;
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        bytes.push(digit(digits[0])? << 4 | digit(digits[1])?);
        rest = after;
    }

    let id = String::from_utf8(bytes).ok()?;
    (*encode_id(&id) == *part).then_some(id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::ChannelName;

    #[test]
    fn field_c10_what_a_name_cannot_hold_is_encoded() {
        for (id, part) in [
            ("u1", "u1"),
            ("auth0|x", "auth0|x"),
            ("a+b@c.de", "a+b@c.de"),
            ("9007199254740993", "9007199254740993"),
            ("5f0c8f0e-9b1a-4f0e-8f5e-0b1a4f0e8f5e", "5f0c8f0e-9b1a-4f0e-8f5e-0b1a4f0e8f5e"),
            ("José", "José"),
            ("did:privy:cm1", "did%3Aprivy%3Acm1"),
            ("eu-west-1:6a0b", "eu-west-1%3A6a0b"),
            ("system:serviceaccount:ns:name", "system%3Aserviceaccount%3Ans%3Aname"),
            ("eip155:1:0xab16a9", "eip155%3A1%3A0xab16a9"),
            ("O'Brien van", "O%27Brien%20van"),
            ("50%", "50%25"),
            ("a%3Ab", "a%253Ab"),
            ("*", "%2A"),
            ("a\u{3000}b", "a%E3%80%80b"),
            ("[{\\\"`<?>}]", "%5B%7B%5C%22%60%3C%3F%3E%7D%5D"),
        ] {
            assert_eq!(encode_id(id), part, "{id}");
            assert_eq!(decode_id(part).as_deref(), Some(id), "{part}");
        }

        for part in ["%", "%3", "%zz", "%3a", "%41", "a b", "a:b", "%FF", "%C3", "%+1"] {
            assert_eq!(decode_id(part), None, "{part}");
        }
    }

    #[test]
    fn ids_are_bounded_and_can_be_shown() {
        assert_eq!(check_id("did:privy:1"), Ok(()));
        assert_eq!(check_id(&"é".repeat(256)), Ok(()));
        assert_eq!(check_id(&"x".repeat(513)), Err(IdError::TooLong));
        assert_eq!(check_id(""), Err(IdError::Empty));
        for bad in ["a\nb", "a\u{0}", "\u{7f}", "a\u{85}"] {
            assert_eq!(check_id(bad), Err(IdError::Control), "{bad:?}");
        }
    }

    proptest! {
        /// Two ids always have two channels, and every id can be read back.
        #[test]
        fn field_c10_encoding_is_reversible_and_never_joins_two_ids(
            one in "([%:*a2A5 '\u{e9}\u{3000}]|\\PC){1,12}",
            other in "([%:*a2A5 '\u{e9}\u{3000}]|\\PC){1,12}",
        ) {
            let encoded = encode_id(&one);
            let decoded = decode_id(&encoded);
            prop_assert_eq!(decoded.as_deref(), Some(&*one));
            prop_assert_eq!(encoded == encode_id(&other), one == other);
            let name = format!("user:{encoded}:x");
            prop_assert!(name.parse::<ChannelName>().is_ok(), "{}", name);
            prop_assert_eq!(name.split(':').count(), 3);
            if one.chars().all(|c| c.is_alphanumeric()) {
                prop_assert_eq!(&*encoded, &*one);
            }
            if let Some(id) = decode_id(&one) {
                prop_assert_eq!(&*encode_id(&id), &*one);
            }
        }
    }
}
