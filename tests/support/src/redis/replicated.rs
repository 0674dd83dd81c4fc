//! A master with a replica.
//!
//! Not here: failovers, since no Sentinel watches the two.
//!
//! The master takes no writes without its replica.

use std::time::Duration;

use super::Redis;
use crate::eventually_within;

const START: Duration = Duration::from_secs(20);

/// A master that takes no writes without its replica.
pub struct Replicated {
    /// The one that takes writes.
    pub master: Redis,
    /// The one that follows.
    pub replica: Redis,
}

impl Replicated {
    /// Starts both and waits until the master takes writes.
    pub async fn start() -> Self {
        let lines = ["repl-diskless-sync-delay 0", "min-replicas-to-write 1"];
        let master = Redis::with(&lines).await;
        let replica = Redis::with(&[&format!("replicaof 127.0.0.1 {}", master.port)]).await;
        let both = Self { master, replica };
        both.follows().await;
        both
    }

    /// Waits until the master takes writes.
    pub async fn follows(&self) {
        eventually_within(START, "the replica follows", || async {
            let info = self.master.text(&["INFO", "replication"]).await;
            info.contains("good_slaves:1").then_some(())
        })
        .await;
    }
}
