//! Other ways of writing a secret: encodings, character sets, case; and placeholders that a program
//! uses if it did not load a secret. This is the second half of `secrets`.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::candidate::{Candidate, Candidates};
use super::causes::{Cause, Side};
use crate::auth::placeholders::PLACEHOLDERS;
use crate::auth::secret::{Encoding, Secret};
use crate::auth::session_cookie;

/// Encodings that only one side applies.
pub(super) fn encodings(all: &mut Candidates, text: &str, secret: &Secret) {
    use Cause::{SecretDoubleBase64, SecretEncoding};

    for encoding in [Encoding::Hex, Encoding::Base64, Encoding::Base64url] {
        if encoding == secret.encoding() {
            continue;
        }
        // The text is trimmed first, because blanks and line breaks from Kubernetes tools or a
        // wrapped line decode in no encoding.
        let Some(bytes) = encoding.decode(text.trim()).filter(|b| !b.is_empty()) else { continue };
        let printable = std::str::from_utf8(&bytes)
            .is_ok_and(|t| t.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r')));
        if printable && secret.encoding() == Encoding::Utf8 && encoding != Encoding::Hex {
            let how = "the gateway has the issuer's secret in base64";
            let inner = String::from_utf8_lossy(&bytes).into_owned();
            all.add(SecretDoubleBase64, Side::Gateway, inner.trim_end(), how);
            all.add(SecretDoubleBase64, Side::Gateway, bytes, how);
        } else {
            all.add_decoded(encoding, bytes);
        }
    }

    // Node's Buffer.from(text, "base64") takes any text and skips characters outside of
    // the alphabet.
    let loose: String = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_'))
        .collect();
    let loose = loose.replace('-', "+").replace('_', "/");
    let whole = &loose[..loose.len() - usize::from(loose.len() % 4 == 1)];
    if let Some(bytes) = Encoding::Base64.decode(whole) {
        all.add_decoded(Encoding::Base64, bytes);
    }

    for (inner, side_text) in [(text.as_bytes(), "text"), (secret.bytes(), "bytes")] {
        let how = format!("the issuer uses the base64 form of the secret's {side_text} as text");
        all.add(SecretDoubleBase64, Side::Issuer, STANDARD.encode(inner), how.clone());
        all.add(SecretDoubleBase64, Side::Issuer, STANDARD_NO_PAD.encode(inner), how.clone());
        all.add(SecretDoubleBase64, Side::Issuer, URL_SAFE_NO_PAD.encode(inner), how.clone());
        all.add(SecretDoubleBase64, Side::Issuer, STANDARD.encode([inner, b"\n"].concat()), how);
        let hex: String = inner.iter().map(|b| format!("{b:02x}")).collect();
        all.add(SecretEncoding, Side::Issuer, hex, "the issuer uses the secret's hex form as text");
    }
}

/// Other character sets, percent-encoding, another case, and keys that a library derives.
pub(super) fn spellings(all: &mut Candidates, text: &str) {
    use Cause::{SecretCase, SecretCharset, SecretPercentEncoded};

    if !text.is_ascii() {
        if text.chars().all(|c| u32::from(c) < 256) {
            let latin: Vec<u8> =
                text.chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect();
            all.add(SecretCharset, Side::Issuer, latin, "the issuer reads the secret as Latin-1");
        }
        let twice: String = text.bytes().map(char::from).collect();
        all.add(SecretCharset, Side::Issuer, twice, "the issuer reads UTF-8 as Latin-1");
        let question: String = text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
        all.add(
            SecretCharset,
            Side::Issuer,
            question,
            "the issuer has ? in place of non-ASCII characters",
        );
    }

    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    all.add(SecretCharset, Side::Issuer, utf16, "the issuer reads the secret as UTF-16");

    let decoded: String = form_urlencoded::parse(
        format!("k={}", text.replace('&', "%26").replace('+', "%2B")).as_bytes(),
    )
    .next()
    .map(|(_, v)| v.into_owned())
    .unwrap_or_default();
    if decoded != text {
        all.add(
            SecretPercentEncoded,
            Side::Gateway,
            decoded,
            "the gateway's secret is percent-encoded",
        );
    }
    let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    if encoded != text {
        all.add(
            SecretPercentEncoded,
            Side::Issuer,
            encoded.replace('+', "%20"),
            "the issuer's secret is percent-encoded",
        );
    }

    let plus = text.replace('+', " ");
    if plus != text {
        all.add(
            SecretPercentEncoded,
            Side::Issuer,
            plus,
            "the issuer's secret has a space in place of each +",
        );
    }

    for (other, name) in [(text.to_lowercase(), "lower"), (text.to_uppercase(), "upper")] {
        if other != text {
            all.add(
                SecretCase,
                Side::Issuer,
                other,
                format!("the issuer's secret is in {name} case"),
            );
        }
    }

    if let Some(key) = session_cookie::next_auth_3_key(text) {
        all.add(
            Cause::NextauthV3Session,
            Side::Issuer,
            key,
            "the token is signed with the key that next-auth 3 derives from the secret",
        );
    }
}

/// Texts that a program signs with if it did not load a secret.
pub(super) fn placeholders() -> Vec<Candidate> {
    let mut all = Candidates(Vec::new());

    for text in PLACEHOLDERS {
        let how = format!("the token is signed with the well-known text {text:?}");
        all.add(Cause::SecretDefault, Side::Issuer, text, how.clone());
        for quote in ['"', '\''] {
            all.add(
                Cause::SecretDefault,
                Side::Issuer,
                format!("{quote}{text}{quote}"),
                how.clone(),
            );
        }
        if let Ok(bytes) = STANDARD.decode(text) {
            all.add(Cause::SecretDefault, Side::Issuer, bytes, how);
        }
    }

    for name in ["JWT_SECRET", "NEXTAUTH_SECRET", "AUTH_SECRET", "SECRET_KEY", "SECRET"] {
        for text in [
            format!("${{{name}}}"),
            format!("${name}"),
            format!("<{name}>"),
            format!("process.env.{name}"),
        ] {
            let how = format!(
                "the token is signed with the text {text:?}: the variable was never expanded"
            );
            all.add(Cause::SecretDefault, Side::Issuer, text, how);
        }
    }

    all.add(Cause::SecretEmpty, Side::Issuer, "", "the token is signed with an empty secret");
    all.0
}
