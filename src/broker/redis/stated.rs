//! What gateways state in the function library: which prefixes are theirs, and how strict the library
//! is. A publisher's ACL reaches no key that could hold it, so it stands in the text of the library,
//! and each gateway that loads the library keeps what the others have stated.
//!
//! Pure. Not here: loading the library (`library`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The marks in the text at which the statements are put.
const GATEWAYS: &str = "local GATEWAYS = {}\n";
const GRACE: &str = "local GRACE = 0\n";

/// A statement is renewed when it is this old, and forgotten when it is that old, in seconds.
const RENEWED: u64 = 86_400;
const FORGOTTEN: u64 = 7 * 86_400;

/// How long a gateway's wish for leniency holds, in seconds; it is renewed when half of it is over. The
/// library is strict again when the last lenient gateway has been gone for this long.
const WISH: u64 = 600;

/// How long unknown prefixes are warnings after a gateway has joined others: two that join at one time may
/// overwrite each other's statement, and notice it seconds later.
const JOINING: u64 = 15;

/// The same where there was no library: a server that has lost it may have had several gateways. Each looks
/// every 5 seconds.
const LOST: u64 = 8;

/// The same after the library of an earlier version was replaced: the gateways that loaded it state nothing.
const UPGRADING: u64 = 7 * 86_400;

/// What one gateway states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) prefix: String,
    pub(super) max_bytes: usize,
    /// False if mistakes are to be warnings.
    pub(super) refuses: bool,
    pub(super) beside_0_1: bool,
}

/// What stands in the library for one prefix. Times are in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Entry {
    seen: u64,
    bytes: usize,
    lenient: u64,
    beside: u64,
}

/// What stands in the library.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stated {
    grace: u64,
    gateways: BTreeMap<String, Entry>,
}

impl Stated {
    /// Reads what the library answers: the grace, then prefix, seen, bytes, lenient and beside of each gateway.
    /// What cannot be read is left out.
    pub(super) fn read(answer: &[String]) -> Self {
        let Some((grace, rest)) = answer.split_first() else { return Self::default() };
        let entry = |fields: &[String]| {
            let [prefix, seen, bytes, lenient, beside] = fields else { return None };
            let entry = Entry {
                seen: seen.parse().ok()?,
                bytes: bytes.parse().ok()?,
                lenient: lenient.parse().ok()?,
                beside: beside.parse().ok()?,
            };
            Some((prefix.clone(), entry))
        };
        Self {
            grace: grace.parse().unwrap_or_default(),
            gateways: rest.chunks(5).filter_map(entry).collect(),
        }
    }

    /// What replaces the library of an earlier version.
    pub(super) fn after_upgrade(now: u64) -> Self {
        Self { grace: now + UPGRADING, ..Self::default() }
    }

    /// What is put where there is no library, or one that cannot be read.
    pub(super) fn after_loss(now: u64) -> Self {
        Self { grace: now + LOST, ..Self::default() }
    }

    /// Adds a gateway's statement. Returns what has to be loaded, or `None` if what stands there will do.
    pub(super) fn with(&self, statement: &Statement, now: u64) -> Option<Self> {
        let old = self.gateways.get(&statement.prefix).copied();
        // A clock that was put back must keep neither a wish nor a statement for ever.
        let wish = |wished: bool, until: u64| {
            if wished && until < now + WISH / 2 { now + WISH } else { until.min(now + WISH) }
        };

        let known = old.unwrap_or_default();
        let renews = old.is_none() || known.seen.abs_diff(now) > RENEWED;
        let entry = Entry {
            seen: if renews { now } else { known.seen },
            // The largest limit of a prefix's gateways counts. A limit that was lowered everywhere does when the
            // statement is renewed.
            bytes: if renews { statement.max_bytes } else { known.bytes.max(statement.max_bytes) },
            lenient: wish(!statement.refuses, known.lenient),
            beside: wish(statement.beside_0_1, known.beside),
        };
        if old == Some(entry) {
            return None;
        }

        let mut stated = self.clone();
        stated.gateways.retain(|_, other| other.seen.abs_diff(now) <= FORGOTTEN);
        if old.is_none() && !stated.gateways.is_empty() {
            stated.grace = stated.grace.max(now + JOINING);
        }
        stated.gateways.insert(statement.prefix.clone(), entry);
        Some(stated)
    }

    /// The text of the library with these statements.
    pub(super) fn write_into(&self, text: &str) -> String {
        let mut gateways = String::from("local GATEWAYS = {\n");
        for (prefix, Entry { seen, bytes, lenient, beside }) in &self.gateways {
            let prefix = quoted(prefix);
            let _ = writeln!(
                gateways,
                "  [{prefix}] = {{seen = {seen}, bytes = {bytes}, lenient = {lenient}, beside = {beside}}},"
            );
        }
        gateways.push_str("}\n");
        let grace = format!("local GRACE = {}\n", self.grace);
        text.replacen(GATEWAYS, &gateways, 1).replacen(GRACE, &grace, 1)
    }
}

/// A text as a literal of Lua, whatever it holds.
fn quoted(text: &str) -> String {
    let mut literal = String::from("'");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.') {
            literal.push(char::from(byte));
        } else {
            let _ = write!(literal, "\\{byte:03}");
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn statement(prefix: &str) -> Statement {
        let prefix = prefix.to_owned();
        Statement { prefix, max_bytes: 1000, refuses: true, beside_0_1: false }
    }

    #[test]
    fn gateways_that_share_a_server_keep_each_others_statements() {
        let one = Stated::default().with(&statement("a:"), 100 * DAY).unwrap();
        assert_eq!(one.with(&statement("a:"), 100 * DAY + 5), None, "nothing has changed");
        assert_eq!(one.grace, 0, "alone on a new server it is strict at once");

        let both = one.with(&statement("b'\n:"), 100 * DAY + 9).unwrap();
        let text = both.write_into(&format!("{GRACE}{GATEWAYS}"));
        assert!(text.contains("['a:'] = {seen = 8640000, bytes = 1000, lenient = 0, beside = 0}"));
        assert!(
            text.contains(r"['b\039\010:']") && both.grace == 100 * DAY + 9 + JOINING,
            "{text}"
        );

        let later = both.with(&statement("b'\n:"), 102 * DAY).unwrap();
        assert_eq!(later.gateways.len(), 2, "renewed");
        let alone = later.with(&statement("b'\n:"), 108 * DAY).unwrap();
        assert_eq!(alone.gateways.keys().collect::<Vec<_>>(), ["b'\n:"], "the other one is gone");
    }

    #[test]
    fn the_largest_limit_counts_and_leniency_ends_by_itself() {
        let lenient = Statement { max_bytes: 2000, refuses: false, ..statement("a:") };
        let first = Stated::default().with(&statement("a:"), DAY).unwrap();
        let wished = first.with(&lenient, DAY + 10).unwrap();
        assert_eq!(wished.with(&statement("a:"), DAY + 20), None, "a strict one does not undo it");
        let entry = wished.gateways["a:"];
        assert_eq!((entry.bytes, entry.lenient), (2000, DAY + 10 + WISH));
        assert_eq!(wished.with(&lenient, DAY + 20), None);
        assert!(wished.with(&lenient, DAY + 10 + WISH).is_some(), "renewed");

        let back = wished.with(&statement("a:"), 100).unwrap();
        assert_eq!(back.gateways["a:"].lenient, 100 + WISH, "the clock was put back");
    }

    /// The largest limit that was ever stated stayed, and what no gateway delivered any more was accepted.
    #[test]
    fn a_limit_that_was_lowered_counts_in_the_end() {
        let large = Statement { max_bytes: 2000, ..statement("a:") };
        let first = Stated::default().with(&large, DAY).unwrap();
        assert_eq!(first.with(&statement("a:"), 2 * DAY), None, "not at once");
        let renewed = first.with(&statement("a:"), 2 * DAY + 1).unwrap();
        assert_eq!(renewed.gateways["a:"].bytes, 1000);
        let larger = renewed.with(&large, 2 * DAY + 2).unwrap();
        assert_eq!(larger.gateways["a:"].bytes, 2000, "one gateway still has it");
    }

    #[test]
    fn what_the_library_answers_is_read() {
        let texts = |t: &[&str]| t.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let read = Stated::read(&texts(&["7", "a:", "1", "2", "3", "4", "b:", "x", "2", "3", "4"]));
        assert_eq!(read.gateways["a:"], Entry { seen: 1, bytes: 2, lenient: 3, beside: 4 });
        assert_eq!((read.grace, read.gateways.len()), (7, 1));
        assert_eq!(Stated::read(&[]), Stated::default());
    }
}
