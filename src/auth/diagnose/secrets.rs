//! Common accidents of a secret on its way into two programs, tried one after the other: each
//! candidate is the bytes that the issuer would have signed with after that accident.
//!
//! Here are quotes, blanks and cuts; not here: other ways of writing a secret (`spellings`).
//! Invariant: the list is bounded, and no candidate is ever printed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::candidate::{Candidate, Candidates};
use super::causes::{Cause, Side};
use super::spellings;
use crate::auth::secret::{Encoding, Secret};

/// Every edit of one of our secrets, the likely ones first.
pub(super) fn edits(secret: &Secret) -> Vec<Candidate> {
    let mut all = Candidates(Vec::new());
    let text = secret.text();

    if secret.encoding() != Encoding::Utf8 {
        let how = format!(
            "the issuer uses the secret's text as it is, but the gateway decodes it ({})",
            secret.encoding().name()
        );
        all.add(Cause::SecretEncoding, Side::Gateway, text, how);
    }

    quotes(&mut all, text);
    blanks(&mut all, text);
    lines(&mut all, text);
    cuts(&mut all, text);
    prefixes(&mut all, text);
    spellings::encodings(&mut all, text, secret);
    spellings::spellings(&mut all, text);

    all.0
}

/// Quotes around a secret, and stray ones.
fn quotes(all: &mut Candidates, text: &str) {
    use Cause::SecretQuoted;
    let clean = text.trim();

    for (open, close) in [("\"", "\""), ("'", "'"), ("b'", "'"), ("b\"", "\""), ("`", "`")] {
        let name = match open {
            "\"" => "double quotes",
            "'" => "single quotes",
            "`" => "backticks",
            _ => "Python's b'…'",
        };

        if clean.len() > open.len() + close.len()
            && let Some(inner) = clean.strip_prefix(open).and_then(|t| t.strip_suffix(close))
        {
            all.add(
                SecretQuoted,
                Side::Gateway,
                inner,
                format!("the gateway's secret is wrapped in {name}"),
            );
            all.add(
                SecretQuoted,
                Side::Gateway,
                inner.trim(),
                format!("the gateway's secret is wrapped in {name}"),
            );
        }

        for quoted in [format!("{open}{text}{close}"), format!("{open}{clean}{close}\n")] {
            all.add(
                SecretQuoted,
                Side::Issuer,
                quoted,
                format!("the issuer's secret is wrapped in {name}"),
            );
        }

        if open.len() == 1 {
            let stray = "the issuer's secret has a stray quote";
            all.add(SecretQuoted, Side::Issuer, format!("{open}{text}"), stray);
            all.add(SecretQuoted, Side::Issuer, format!("{text}{close}"), stray);
            let stray = "the gateway's secret has a stray quote";
            if let Some(rest) = clean.strip_prefix(open) {
                all.add(SecretQuoted, Side::Gateway, rest, stray);
            }
            if let Some(rest) = clean.strip_suffix(close) {
                all.add(SecretQuoted, Side::Gateway, rest, stray);
            }
        }
    }
}

/// White space and other invisible characters.
fn blanks(all: &mut Candidates, text: &str) {
    use Cause::{SecretBom, SecretWhitespace};
    let invisible = ['\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{a0}'];

    if text.trim() != text {
        let what = if text.ends_with(['\n', '\r']) {
            "ends in a line break"
        } else {
            "has whitespace around it"
        };
        all.add(
            SecretWhitespace,
            Side::Gateway,
            text.trim(),
            format!("the gateway's secret {what}"),
        );
        all.add(
            SecretWhitespace,
            Side::Gateway,
            text.trim_end(),
            format!("the gateway's secret {what}"),
        );
    }

    if text.contains(invisible) {
        let clean = text.replace(invisible, "");
        all.add(
            SecretWhitespace,
            Side::Gateway,
            clean,
            "the gateway's secret contains an invisible character",
        );
    }

    if let Some(clean) = text.strip_prefix('\u{feff}') {
        all.add(
            SecretBom,
            Side::Gateway,
            clean,
            "the gateway's secret begins with a byte order mark",
        );
    }

    endings(all, text);
}

/// What may stand behind or in front of a secret by accident.
fn endings(all: &mut Candidates, text: &str) {
    use Cause::{SecretBom, SecretWhitespace};

    for (end, name) in [
        ("\n", "ends in a newline (\\n)"),
        ("\r\n", "ends in a Windows line break (\\r\\n)"),
        ("\r", "ends in a carriage return (\\r)"),
        (" ", "ends in a space"),
        ("\t", "ends in a tab"),
        ("\\n", "ends in the two characters \\n"),
        ("\0", "ends in a zero byte"),
        ("\u{a0}", "ends in a no-break space"),
        ("\u{200b}", "ends in an invisible character"),
    ] {
        all.add(
            SecretWhitespace,
            Side::Issuer,
            format!("{text}{end}"),
            format!("the issuer's secret {name}"),
        );
    }

    for (start, name) in [(" ", "a space"), ("\n", "a newline"), ("\t", "a tab")] {
        let how = format!("the issuer's secret begins with {name}");
        all.add(SecretWhitespace, Side::Issuer, format!("{start}{text}"), how);
    }

    all.add(
        SecretWhitespace,
        Side::Issuer,
        format!(" {text} "),
        "the issuer's secret has spaces around it",
    );
    all.add(
        SecretBom,
        Side::Issuer,
        format!("\u{feff}{text}"),
        "the issuer's secret begins with a byte order mark",
    );
}

/// A secret that spans lines on one side.
fn lines(all: &mut Candidates, text: &str) {
    use Cause::{SecretMultiline, SecretTruncated, SecretWhitespace};
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();

    if lines.len() > 1 {
        all.add(
            SecretTruncated,
            Side::Gateway,
            lines[0],
            "the issuer has only the first line of the gateway's secret",
        );
        let joined = "the issuer has joined the lines of the gateway's secret";
        all.add(SecretMultiline, Side::Gateway, lines.concat(), joined);
        all.add(SecretMultiline, Side::Gateway, lines.join(" "), joined);
        all.add(SecretMultiline, Side::Gateway, lines.join("\\n"), joined);
    }

    for width in [64, 76] {
        if text.len() > width && text.is_ascii() && lines.len() == 1 {
            let how = format!("the issuer's secret is broken into lines of {width} characters");
            let (head, tail) = text.split_at(width);
            all.add(SecretMultiline, Side::Issuer, format!("{head}\n{tail}"), how.clone());
            all.add(SecretMultiline, Side::Issuer, format!("{head}\n{tail}\n"), how);
            let first = format!(
                "the issuer has only the first {width} characters of the secret, which spans \
                 several lines there"
            );
            all.add(SecretTruncated, Side::Issuer, head, first);
        }
    }

    let solid: String = text.split_whitespace().collect();
    if solid != text {
        all.add(SecretWhitespace, Side::Gateway, solid, "the gateway's secret contains whitespace");
    }
}

/// Parts of a secret that a loader cuts off or expands.
fn cuts(all: &mut Candidates, text: &str) {
    use Cause::{SecretEnvExpansion, SecretPadding, SecretTruncated};

    if let Some((head, _)) = text.split_once('#') {
        let how = "the issuer's env loader cut the secret off at #: quote it in .env";
        all.add(SecretTruncated, Side::Issuer, head, how);
        all.add(SecretTruncated, Side::Issuer, head.trim_end(), how);
    }

    if let Some((head, _)) = text.trim_start().split_once(' ') {
        all.add(
            SecretTruncated,
            Side::Issuer,
            head,
            "the issuer has the secret only up to its first space",
        );
    }

    for length in [16, 24, 32, 48, 63, 64, 72, 127, 128, 255, 256] {
        if let Some(head) = text.as_bytes().get(..length).filter(|h| h.len() < text.len()) {
            let how = format!("the issuer has only the first {length} bytes of the secret");
            all.add(SecretTruncated, Side::Issuer, head, how);
        }
    }

    let bare = text.trim_end_matches('=');
    if bare != text {
        all.add(SecretPadding, Side::Issuer, bare, "the issuer's secret lacks the trailing =");
        if let Some((head, _)) = text.split_once('=') {
            all.add(
                SecretTruncated,
                Side::Issuer,
                head,
                "the issuer's secret is cut off at its first =",
            );
        }
    }

    for pad in ["=", "=="] {
        let how = "the gateway's secret lacks the trailing =";
        all.add(SecretPadding, Side::Gateway, format!("{text}{pad}"), how);
        all.add(SecretPadding, Side::Gateway, format!("{bare}{pad}"), how);
    }

    if text.contains('$') {
        for braces in [false, true] {
            let how = "the issuer's env loader expanded the $ in the secret";
            all.add(SecretEnvExpansion, Side::Issuer, without_variables(text, braces), how);
        }
        let how = "the gateway's secret still contains the backslash of \\$";
        all.add(SecretEnvExpansion, Side::Gateway, text.replace("\\$", "$"), how);
        all.add(
            SecretEnvExpansion,
            Side::Issuer,
            text.replace('$', "\\$"),
            "the issuer's secret contains the backslash of \\$",
        );
        all.add(
            SecretEnvExpansion,
            Side::Issuer,
            text.replace("$$", "$"),
            "the issuer's compose file reads $$ as $",
        );
        all.add(
            SecretEnvExpansion,
            Side::Issuer,
            text.replace('$', "$$"),
            "the issuer's secret contains $$ instead of $",
        );
    }
}

/// Text in front of a secret.
fn prefixes(all: &mut Candidates, text: &str) {
    use Cause::SecretPrefix;

    for prefix in ["base64:", "hex:", "secret:", "Bearer "] {
        all.add(
            SecretPrefix,
            Side::Issuer,
            format!("{prefix}{text}"),
            format!("the issuer's secret begins with {prefix:?}"),
        );
        if let Some(rest) = text.strip_prefix(prefix) {
            let how = format!("the gateway's secret begins with {prefix:?}");
            all.add(SecretPrefix, Side::Gateway, rest, how.clone());
            all.add(SecretPrefix, Side::Gateway, STANDARD.decode(rest).unwrap_or_default(), how);
        }
    }

    if let Some((name, rest)) = text.split_once('=')
        && !name.is_empty()
        && !rest.trim_matches('=').is_empty()
        && name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c == ' ')
    {
        let how = "the gateway's secret begins with the variable's name and =";
        all.add(SecretPrefix, Side::Gateway, rest, how);
        all.add(SecretPrefix, Side::Gateway, rest.trim_matches(['"', '\'']), how);
    }
}

/// The text after a loader replaced each `$name` and `${name}`, or only the latter, by nothing.
fn without_variables(text: &str, braces_only: bool) -> String {
    let mut out = String::new();
    let mut rest = text;

    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(inner) = after.strip_prefix('{') {
            rest = inner.split_once('}').map_or("", |(_, r)| r);
        } else if braces_only {
            out.push('$');
            rest = after;
        } else {
            rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        }
    }

    out + rest
}
