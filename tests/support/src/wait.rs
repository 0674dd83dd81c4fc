//! Waiting for a condition.
//!
//! Not here: what is waited for. A condition that does not come in time fails the test by its name.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it missing.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `check` yields something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    check: impl FnMut() -> F,
) -> T {
    eventually_within(DEADLINE, what, check).await
}

/// Waits until `check` yields something, with a deadline of its own.
pub async fn eventually_within<T, F: Future<Output = Option<T>>>(
    deadline: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < deadline, "{what}: not within {deadline:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
