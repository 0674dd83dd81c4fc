//! What the parts of the diagnosis are given, and what they find.

use serde_json::{Map, Value};

use super::causes::{Cause, Side};
use crate::auth::{KeySet, Settings, jwk};

/// A secret that the operator names as one that the issuer may have used.
pub struct NamedSecret {
    pub name: String,
    pub text: String,
}

/// A cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub cause: Cause,
    pub side: Side,
    /// One or two sentences for the person who has to fix it.
    pub advice: String,
}

impl Finding {
    pub(super) fn new(cause: Cause, side: Side, advice: String) -> Self {
        Self { cause, side, advice }
    }
}

/// What the parts of the diagnosis are given.
pub(super) struct Subject<'a> {
    pub(super) keys: &'a KeySet,
    pub(super) settings: &'a Settings,
    pub(super) extra: &'a [NamedSecret],
    pub(super) now: u64,
    pub(super) payload: Option<Map<String, Value>>,
}

impl Subject<'_> {
    /// A claim of a token whose signature did not verify: for a hint, never for a decision.
    pub(super) fn unverified_claim(&self, name: &str) -> Option<String> {
        self.payload.as_ref()?.get(name)?.as_str().map(shown)
    }
}

/// Text from outside, fit for a terminal and a log: escaped, at most 64 characters.
#[must_use]
pub fn shown(text: &str) -> String {
    jwk::shown(text)
}

/// A Unix second as text.
pub(super) fn moment(unix: u64) -> String {
    // The format has no room for later years, and the library refuses to write them.
    if unix > 253_402_300_799 {
        return format!("Unix second {unix}, after the year 9999");
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(unix);
    humantime::format_rfc3339_seconds(time).to_string()
}
