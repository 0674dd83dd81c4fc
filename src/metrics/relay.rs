//! The metrics of a relay. They exist in its process alone.

use super::{
    RELAY_DEAD, RELAY_DEAD_TOTAL, RELAY_ERRORS, RELAY_LEADER, RELAY_OLDEST, RELAY_PENDING,
    RELAY_POSTGRES_CONNECTED, RELAY_PUBLISH, RELAY_PUBLISHED, RELAY_REPEATED, RELAY_UNHEARD,
};

/// Makes every series of a relay exist; `reasons` are those of dead rows.
pub fn begin<'r>(reasons: impl Iterator<Item = &'r &'static str>) {
    for reason in reasons {
        metrics::counter!(RELAY_DEAD_TOTAL, "reason" => *reason).increment(0);
    }
    for side in ["postgres", "redis"] {
        metrics::counter!(RELAY_ERRORS, "side" => side).increment(0);
    }
    for counter in [RELAY_PUBLISHED, RELAY_REPEATED, RELAY_UNHEARD] {
        metrics::counter!(counter).increment(0);
    }
    leads(false);
    postgres_connected(false);
    counted(0, 0.0, 0);
}

/// Counts rows that were published: how long each had waited, in seconds.
pub fn published(waited: &[f64], repeated: u64, unheard: u64) {
    metrics::counter!(RELAY_PUBLISHED).increment(waited.len() as u64);
    metrics::counter!(RELAY_REPEATED).increment(repeated);
    metrics::counter!(RELAY_UNHEARD).increment(unheard);
    let histogram = metrics::histogram!(RELAY_PUBLISH);
    waited.iter().for_each(|seconds| histogram.record(*seconds));
}

pub fn died(reason: &'static str) {
    metrics::counter!(RELAY_DEAD_TOTAL, "reason" => reason).increment(1);
}

/// Counts an error; `side` is postgres or redis.
pub fn failed(side: &'static str) {
    metrics::counter!(RELAY_ERRORS, "side" => side).increment(1);
}

pub fn leads(leads: bool) {
    metrics::gauge!(RELAY_LEADER).set(f64::from(u8::from(leads)));
}

pub fn postgres_connected(up: bool) {
    metrics::gauge!(RELAY_POSTGRES_CONNECTED).set(f64::from(u8::from(up)));
}

pub fn counted(pending: i64, oldest: f64, dead: i64) {
    metrics::gauge!(RELAY_PENDING).set(pending as f64);
    metrics::gauge!(RELAY_OLDEST).set(oldest);
    metrics::gauge!(RELAY_DEAD).set(dead as f64);
}
