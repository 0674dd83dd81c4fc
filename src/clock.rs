//! The wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock in Unix seconds, for `exp` and `nbf`.
#[must_use]
pub(crate) fn unix_now() -> u64 {
    unix_micros() / 1_000_000
}

/// The wall clock in Unix microseconds.
#[must_use]
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
