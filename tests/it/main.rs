//! One integration binary: the real program, a real Redis, real sockets.
//!
//! Every test starts what it needs on free ports of loopback and stops it again, so all of them run
//! in parallel. They wait for conditions, with one generous deadline, never for time to pass.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "not the gateway")]

mod access;
mod admin;
mod api;
mod cli;
mod client;
mod closing;
mod conformance;
mod docs;
mod doctor_url;
mod drain;
mod faults;
mod gateway;
mod history;
mod hostile;
mod identity;
mod isolation;
mod keys;
mod limits;
mod load;
mod logging;
mod old_masters;
mod origins;
mod outage;
mod passwords;
mod permissions;
mod places;
mod plain;
mod proxy;
mod redis;
mod redis_edges;
mod redis_faults;
mod reload;
mod reserved;
mod revocation;
mod simulation;
mod sse;
mod streams;
mod subscribing;
mod tokens;
mod topologies;
mod upstream;

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it missing.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `check` yields something.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, check: impl FnMut() -> F) -> T {
    eventually_within(DEADLINE, what, check).await
}

/// The same with a deadline of its own.
async fn eventually_within<T, F: Future<Output = Option<T>>>(
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
