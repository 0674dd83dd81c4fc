//! A cluster of six servers: where its keys are, publishing, and slots that move.
//!
//! Not here: a client that follows redirections; each call asks anew who has the slot.
//!
//! A cluster is handed out only when all its slots are served and every replica follows.

use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

use super::{Redis, connect};
use crate::eventually_within;

/// Long enough for elections, and for servers that start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Three masters, each with a replica.
pub struct Cluster {
    /// All servers, in the order of their start.
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts a cluster and waits until it is whole.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..6 {
            nodes.push(Redis::with(&["cluster-enabled yes", "cluster-node-timeout 2000"]).await);
        }

        let cluster = Self { nodes };
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(cluster.addresses());
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let created = tokio::task::spawn_blocking(move || create.output());
        let created = created.await.unwrap().expect("redis-cli is needed");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));

        eventually_within(START, "the cluster is whole", || async {
            cluster.is_whole().await.then_some(())
        })
        .await;
        cluster
    }

    async fn is_whole(&self) -> bool {
        let mut replicas = 0;
        for node in &self.nodes {
            let info = node.text(&["CLUSTER", "INFO"]).await;
            if !info.contains("cluster_state:ok") || !info.contains("cluster_known_nodes:6") {
                return false;
            }
            let info = node.text(&["INFO", "replication"]).await;
            replicas += usize::from(info.contains("master_link_status:up"));
        }
        replicas == 3
    }

    /// The addresses of all servers.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::address).collect()
    }

    /// The URL of a master and of a replica, which have to say where the others are.
    pub fn url(&self) -> String {
        format!("redis+cluster://{},{}", self.nodes[0].address(), self.nodes[5].address())
    }

    /// The index of a key's master among the nodes, as the first node that answers knows it.
    pub async fn owner(&self, key: &str) -> usize {
        for node in self.nodes.iter().filter(|node| node.runs()) {
            let Some(slot) = number(node, &["CLUSTER", "KEYSLOT", key]).await else { continue };
            let Some(slots) = node.try_command(&["CLUSTER", "SLOTS"]).await else { continue };
            let ranges = masters(slots);
            let found = ranges.iter().find(|range| (range.first..=range.last).contains(&slot));
            if let Some(range) = found {
                return self.nodes.iter().position(|node| node.port == range.port).unwrap();
            }
        }
        panic!("nobody has the slot of {key}");
    }

    /// Publishes durably or plainly, as a cluster client would. Returns whether the server took it.
    pub async fn publish(&self, channel: &str, data: &str, durable: bool) -> bool {
        let key = format!("tollgate:{channel}");
        let node = &self.nodes[self.owner(&key).await];
        let words = match durable {
            true => vec!["FCALL", "tollgate_publish", "1", &key, data],
            false => vec!["SPUBLISH", &key, data],
        };
        node.try_command(&words).await.is_some()
    }

    /// Moves the slot of a key, with its keys, to another master, while it may be published to.
    pub async fn move_slot(&self, key: &str, to: usize) {
        let (source, target) = (&self.nodes[self.owner(key).await], &self.nodes[to]);
        let slot = number(source, &["CLUSTER", "KEYSLOT", key]).await.unwrap().to_string();
        let source_id = source.text(&["CLUSTER", "MYID"]).await;
        let target_id = target.text(&["CLUSTER", "MYID"]).await;
        target.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]).await;
        source.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]).await;
        sleep(Duration::from_millis(300)).await;

        // Publishers may make keys while others are moved.
        let port = target.port.to_string();
        for _ in 0..100 {
            let keys = source.command(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"]).await;
            let keys: Vec<String> = redis::from_redis_value(keys).unwrap();
            if keys.is_empty() {
                break;
            }
            let mut connection = connect(&source.address()).await.unwrap();
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(&port).arg("").arg(0).arg(2000).arg("REPLACE").arg("KEYS");
            migrate.arg(&keys).exec_async(&mut connection).await.unwrap();
            sleep(Duration::from_millis(30)).await;
        }

        for node in [target, source] {
            node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]).await;
        }
    }
}

/// One range of an answer to CLUSTER SLOTS, with the port of its master.
struct Range {
    first: u16,
    last: u16,
    port: u16,
}

fn masters(slots: redis::Value) -> Vec<Range> {
    let ranges: Vec<Vec<redis::Value>> = redis::from_redis_value(slots).unwrap();
    let read = |range: Vec<redis::Value>| {
        // First, last, master, replicas; the master is host, port, and more.
        let mut range = range.into_iter();
        let mut number = || redis::from_redis_value(range.next().unwrap()).unwrap();
        let (first, last) = (number(), number());
        let master: Vec<redis::Value> = redis::from_redis_value(range.next().unwrap()).unwrap();
        let port = redis::from_redis_value(master.into_iter().nth(1).unwrap()).unwrap();
        Range { first, last, port }
    };
    ranges.into_iter().map(read).collect()
}

async fn number(node: &Redis, words: &[&str]) -> Option<u16> {
    redis::from_redis_value(node.try_command(words).await?).ok()
}
