//! Whether Redis accepts what has to be kept: at intervals each master is given a durable
//! publication of the gateway's own, by the function that publishers call.
//!
//! A server that is out of memory, cannot save, or lacks replicas still serves PUBLISH and
//! SUBSCRIBE but refuses every durable publication. So a refusal is no reason to connect again; it
//! is a state, with a metric and a place in `/readyz`.

use std::time::Duration;

use parking_lot::Mutex;
use redis::{RedisResult, Value};
use tokio::time::sleep;

use super::connect::Link;
use super::fault::{self, Fault};
use super::history::meta_key;
use super::library::{self, PUBLISH};
use super::masters::Map;
use super::{Role, Shared, node::Node};
use crate::metrics;
use crate::redis_url::Server;

const TRY_EVERY: Duration = Duration::from_secs(2);

/// How long a trial publication stays in Redis, in milliseconds.
const KEPT_MS: u64 = 60_000;

/// Why the last attempt failed; `None` if it succeeded.
#[derive(Default)]
pub(super) struct Writes(Mutex<Option<String>>);

impl Writes {
    /// True also before the first attempt.
    pub(super) fn are_taken(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Records an outcome; true if it changes the state.
    fn record(&self, refusal: Option<String>) -> bool {
        let mut last = self.0.lock();
        let changed = last.is_some() != refusal.is_some();
        *last = refusal;
        changed
    }
}

/// Tries for as long as the connection lasts; returns why it ended.
pub(super) async fn watch(shared: &Shared, node: &Node, mut link: Link) -> String {
    let Some(key) = key(shared, &node.server) else { return std::future::pending().await };
    loop {
        match attempt(shared, &mut link, &key).await {
            Ok(()) => settle(shared, node, None),
            Err(e) if Fault::of(&e).is_an_answer() => {
                metrics::redis_error(Fault::of(&e).label());
                settle(shared, node, Some(fault::describe(&e)));
            }
            Err(e) => return fault::describe(&e),
        }
        sleep(TRY_EVERY).await;
    }
}

fn settle(shared: &Shared, node: &Node, refusal: Option<String>) {
    let (server, error) = (&node.server, refusal.clone());
    if !node.writes.record(refusal) {
        return;
    }
    match error {
        Some(error) => {
            let what = "Redis refuses to keep a durable publication";
            shared.note(Role::Writer, server, what, &error);
        }
        None => tracing::info!(%server, "Redis keeps durable publications again"),
    }
    shared.report();
}

/// Makes a real publication, as publishers do; what it leaves expires by itself.
async fn attempt(shared: &Shared, link: &mut Link, key: &str) -> RedisResult<()> {
    let arguments: [&[u8]; 3] = [b"{}", b"60", b"1"];
    let connection = &mut link.connection;
    library::call::<Value>(connection, shared.calling(), &PUBLISH, key, &arguments).await?;

    let mut end = redis::cmd("PEXPIRE");
    end.arg(meta_key(key)).arg(KEPT_MS);
    fault::ask::<Value>(connection, &end).await.map(|_| ())
}

/// A key of the gateway's own on that server; in a cluster names are tried until one falls to it.
fn key(shared: &Shared, server: &Server) -> Option<String> {
    let map: &Map = &shared.directory.current();
    let at = map.masters.iter().position(|master| master == server)?;
    let names = (0..100_000).map(|n| shared.own_key(&format!("writes:{}:{n}", shared.uid)));
    names.into_iter().find(|name| map.master_of(name.as_bytes()) == Some(at))
}
