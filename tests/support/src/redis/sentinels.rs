//! A master, its replicas, and three Sentinels that know each other.
//!
//! Not here: waiting for a turn, which tests that run beside each other need, since starved
//! Sentinels stop acting.
//!
//! A group is handed out only when all Sentinels know all of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Redis;
use crate::eventually_within;

/// The name by which the Sentinels know the master.
pub const MASTER: &str = "mymaster";

/// Long enough for elections, and for servers that start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// After how long Sentinels act.
pub struct Timing {
    /// A server that is silent for this long is down.
    pub down_after: Duration,
    /// A failover that takes longer is given up.
    pub failover: Duration,
}

/// A master, its replicas and their Sentinels.
pub struct Sentinels {
    /// The master at the start.
    pub master: Redis,
    /// The replicas at the start.
    pub replicas: Vec<Redis>,
    /// The Sentinels; the first one leads planned failovers.
    pub sentinels: Vec<Redis>,
}

impl Sentinels {
    /// Starts a group with this many replicas and waits until its Sentinels know all of it.
    pub async fn start(replicas: usize, timing: Timing) -> Self {
        let master = Redis::start().await;
        let follow = format!("replicaof 127.0.0.1 {}", master.port);
        let lines = [follow.as_str(), "repl-diskless-sync-delay 0"];
        let mut group = Self { master, replicas: Vec::new(), sentinels: Vec::new() };
        for _ in 0..replicas {
            group.replicas.push(Redis::with(&lines).await);
        }

        let (port, down, failover) =
            (group.master.port, timing.down_after.as_millis(), timing.failover.as_millis());
        let lines = [
            format!("sentinel monitor {MASTER} 127.0.0.1 {port} 2"),
            format!("sentinel down-after-milliseconds {MASTER} {down}"),
            format!("sentinel failover-timeout {MASTER} {failover}"),
        ];
        let lines = lines.each_ref().map(String::as_str);
        for _ in 0..3 {
            group.sentinels.push(Redis::with(&lines).await);
        }

        eventually_within(START, "the Sentinels know each other", || async {
            group.know_each_other().await.then_some(())
        })
        .await;
        group
    }

    /// Whether every Sentinel knows the others and all replicas.
    pub async fn know_each_other(&self) -> bool {
        let replicas = self.replicas.len().to_string();
        for n in 0..self.sentinels.len() {
            let Some(fields) = self.fields(n).await else { return false };
            let known = |name: &str, expected: &str| {
                fields.get(name).is_some_and(|value| value == expected)
            };
            if !known("num-other-sentinels", "2") || !known("num-slaves", &replicas) {
                return false;
            }
        }
        true
    }

    async fn fields(&self, n: usize) -> Option<HashMap<String, String>> {
        let answer = self.sentinels[n].try_command(&["SENTINEL", "MASTER", MASTER]).await?;
        redis::from_redis_value(answer).ok()
    }

    /// One field of what a Sentinel says of the master, such as `port`.
    pub async fn field(&self, n: usize, name: &str) -> Option<String> {
        self.fields(n).await?.remove(name)
    }

    /// The addresses of the Sentinels.
    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(Redis::address).collect()
    }

    /// The URL of all Sentinels.
    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", self.addresses().join(","))
    }

    /// The URL of only the first Sentinel, which leads every planned failover here.
    pub fn url_of_the_leader(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", self.sentinels[0].address())
    }

    /// Has the first Sentinel fail over, as soon as it finds a good replica.
    pub async fn fail_over(&self) {
        let began = Instant::now();
        while self.sentinels[0].try_command(&["SENTINEL", "FAILOVER", MASTER]).await.is_none() {
            assert!(began.elapsed() < START, "the Sentinel does not agree");
            sleep(Duration::from_millis(200)).await;
        }
    }
}
