use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tests::{BASE64, TEXT, diagnosed, hs256, secret_key, verifier};
use crate::auth::Encoding;

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_secret_that_differs_is_explained() {
    let utf8 = Encoding::Utf8;
    let decoded = STANDARD.decode(BASE64).unwrap();
    let hex = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let quoted = format!("\"{TEXT}\"");
    let lines = format!("{}\n{}", "A1b2".repeat(16), "C3d4".repeat(6));
    let dollar = "abc$HOME-def-0123456789-0123456789-01234567";
    let twice = STANDARD.encode(TEXT);

    for (what, ours, encoding, theirs, cause, side) in [
        ("ours quoted", &*quoted, utf8, TEXT.into(), "secret_quoted", "gateway"),
        ("theirs quoted", TEXT, utf8, quoted.clone().into_bytes(), "secret_quoted", "issuer"),
        ("single", TEXT, utf8, format!("'{TEXT}'").into(), "secret_quoted", "issuer"),
        ("python", TEXT, utf8, format!("b'{TEXT}'").into(), "secret_quoted", "issuer"),
        ("stray", TEXT, utf8, format!("{TEXT}\"").into(), "secret_quoted", "issuer"),
        ("newline", TEXT, utf8, format!("{TEXT}\n").into(), "secret_whitespace", "issuer"),
        ("crlf", TEXT, utf8, format!("{TEXT}\r\n").into(), "secret_whitespace", "issuer"),
        ("blank", &format!("{TEXT} "), utf8, TEXT.into(), "secret_whitespace", "gateway"),
        ("bom", TEXT, utf8, format!("\u{feff}{TEXT}").into(), "secret_bom", "issuer"),
        ("our bom", &format!("\u{feff}{TEXT}"), utf8, TEXT.into(), "secret_bom", "gateway"),
        ("first line", &lines, utf8, "A1b2".repeat(16).into(), "secret_truncated", "gateway"),
        ("joined", &lines, utf8, lines.replace('\n', "").into(), "secret_multiline", "gateway"),
        (
            "hash",
            "front#back-0123456789-0123456789-0123",
            utf8,
            "front".into(),
            "secret_truncated",
            "issuer",
        ),
        (
            "column",
            &"xY7-".repeat(20),
            utf8,
            "xY7-".repeat(18).into(),
            "secret_truncated",
            "issuer",
        ),
        ("decoded", BASE64, utf8, decoded.clone(), "secret_encoding", "gateway"),
        ("as text", BASE64, Encoding::Base64, BASE64.into(), "secret_encoding", "gateway"),
        ("hex", hex, utf8, Encoding::Hex.decode(hex).unwrap(), "secret_encoding", "gateway"),
        ("as hex text", hex, Encoding::Hex, hex.into(), "secret_encoding", "gateway"),
        ("padding", BASE64, utf8, BASE64.trim_end_matches('=').into(), "secret_padding", "issuer"),
        (
            "our padding",
            BASE64.trim_end_matches('='),
            utf8,
            BASE64.into(),
            "secret_padding",
            "gateway",
        ),
        ("twice", &twice, utf8, TEXT.into(), "secret_double_base64", "gateway"),
        (
            "twice, echo",
            &STANDARD.encode(format!("{TEXT}\n")),
            utf8,
            TEXT.into(),
            "secret_double_base64",
            "gateway",
        ),
        ("they twice", TEXT, utf8, twice.clone().into(), "secret_double_base64", "issuer"),
        ("default", TEXT, utf8, "your-secret-key".into(), "secret_default", "issuer"),
        (
            "jwt.io",
            TEXT,
            utf8,
            "a-string-secret-at-least-256-bits-long".into(),
            "secret_default",
            "issuer",
        ),
        ("undefined", TEXT, utf8, "undefined".into(), "secret_default", "issuer"),
        ("unexpanded", TEXT, utf8, "${NEXTAUTH_SECRET}".into(), "secret_default", "issuer"),
        ("empty", TEXT, utf8, vec![], "secret_empty", "issuer"),
        (
            "expanded",
            dollar,
            utf8,
            dollar.replace("$HOME", "").into(),
            "secret_env_expansion",
            "issuer",
        ),
        (
            "latin",
            "schlüssel-0123456789-0123456789-abcdefgh",
            utf8,
            b"schl\xfcssel-0123456789-0123456789-abcdefgh".to_vec(),
            "secret_charset",
            "issuer",
        ),
        (
            "percent",
            "a%2Fb-0123456789-0123456789-0123456789",
            utf8,
            "a/b-0123456789-0123456789-0123456789".into(),
            "secret_percent_encoded",
            "gateway",
        ),
        ("case", hex, utf8, hex.to_uppercase().into(), "secret_case", "issuer"),
        ("prefix", &format!("base64:{BASE64}"), utf8, decoded, "secret_prefix", "gateway"),
        ("name", &format!("JWT_SECRET={TEXT}"), utf8, TEXT.into(), "secret_prefix", "gateway"),
        ("other", TEXT, utf8, "somebody else's secret".into(), "unknown_key", "issuer"),
    ] {
        let found = diagnosed(&verifier(vec![secret_key(ours, encoding)]), &hs256(&theirs));
        assert_eq!((found.0.as_str(), found.1), (cause, side), "{what}");
    }
}
