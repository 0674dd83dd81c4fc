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

use super::connect::MasterConnection;
use super::core::{Core, Role};
use super::fault::{self, Fault};
use super::library::{self, PUBLISH, meta_key};
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
    pub(super) fn are_accepted(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Records an outcome. Returns true if it changes the state.
    fn record(&self, refusal: Option<String>) -> bool {
        let mut last = self.0.lock();
        let changed = last.is_some() != refusal.is_some();
        *last = refusal;
        changed
    }
}

/// Makes attempts for as long as the connection lasts. Returns why it ended.
pub(super) async fn watch(
    core: &Core,
    writes: &Writes,
    server: &Server,
    mut master: MasterConnection,
) -> String {
    let stem = format!("writes:{}", core.uid);
    let Some((_, key)) = core.own_name_on(server, &stem) else {
        return std::future::pending().await;
    };
    loop {
        match attempt(core, &mut master, &key).await {
            Ok(()) => settle(core, (writes, server), None),
            Err(e) if Fault::of(&e).is_an_answer() => {
                metrics::redis_error(Fault::of(&e).label());
                settle(core, (writes, server), Some(fault::describe(&e)));
            }
            Err(e) => return fault::describe(&e),
        }
        sleep(TRY_EVERY).await;
    }
}

/// Records an outcome, and reports a change.
fn settle(core: &Core, (writes, server): (&Writes, &Server), refusal: Option<String>) {
    let error = refusal.clone();
    if !writes.record(refusal) {
        return;
    }

    match error {
        Some(error) => {
            let what = "Redis refuses to keep a durable publication";
            core.note(Role::Writer, server, what, &error);
        }
        None => tracing::info!(%server, "Redis keeps durable publications again"),
    }
    core.state_changed();
}

/// Makes a real publication, as publishers do. What it leaves expires by itself.
async fn attempt(core: &Core, master: &mut MasterConnection, key: &str) -> RedisResult<()> {
    let arguments: [&[u8]; 3] = [b"{}", b"60", b"1"];
    let connection = &mut master.connection;
    library::call::<Value>(connection, &core.calling(), &PUBLISH, key, &arguments).await?;

    let mut end = redis::cmd("PEXPIRE");
    end.arg(meta_key(key)).arg(KEPT_MS);
    fault::ask::<Value>(connection, &end).await.map(|_| ())
}
