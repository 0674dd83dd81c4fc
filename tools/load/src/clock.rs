//! Time: nanoseconds of one monotonic clock for the whole process, and a sleep that is on time.
//! Durations in options are `humantime`'s.

use std::num::NonZeroU64;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The nanoseconds since the first call, plus 1 so that 0 can mean "never".
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1) + 1
}

pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

pub fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// Linux lets a sleep end up to 50 us late to save wake-ups; a publisher's lateness would count as
/// the server's latency.
pub fn sharpen_sleeps() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
}

/// Parks rather than sleeps, so that another thread can wake this one early.
pub fn park_until(due: u64) {
    let now = now();
    if due > now {
        std::thread::park_timeout(Duration::from_nanos(due - now));
    }
}
