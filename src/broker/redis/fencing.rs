//! The fence: a time of the master's clock. An epoch from before it began while an older master
//! still accepted publications, so a client with a position in that epoch may lack what that
//! master accepted.
//!
//! A position alone does not tell whether its client was connected when the loss was declared. So
//! any replica that sees the old master's end records that time under a key of the new master's
//! replication identity. Every reader of a position then finds the epoch too old and begins
//! another one.

use std::sync::Arc;

use redis::RedisResult;

use super::connect::MasterConnection;
use super::core::{Core, Fence};
use super::fault::{self, Fault};
use super::tap::OnPush;
use crate::logging;
use crate::redis_url::{Server, Topology};

/// The key of the fence for a replication identity.
pub(super) fn key(core: &Core, replication_id: &str) -> String {
    core.own_key(&format!("fence:{replication_id}"))
}

/// True if a fence is used: with Sentinel only. The masters of a cluster share no keys; there, what
/// a cut-off master accepted is declared only to clients that are connected.
pub(super) fn is_used(core: &Core, master: &MasterConnection) -> bool {
    matches!(core.connector.target.topology, Topology::Sentinel(..))
        && !master.replication_id.is_empty()
}

/// Reads a fence that any replica has set. A new one is announced.
pub(super) async fn learn(core: &Core, master: &mut MasterConnection) -> RedisResult<()> {
    if !is_used(core, master) {
        return Ok(());
    }

    let mut get = redis::cmd("GET");
    get.arg(key(core, &master.replication_id));

    match fault::ask::<Option<u64>>(&mut master.connection, &get).await {
        Ok(Some(at)) => {
            let new = Fence { replication_id: Arc::clone(&master.replication_id), at };
            core.fence.send_if_modified(|fence| {
                let moved = *fence != new;
                *fence = new;
                moved
            });
        }
        Ok(None) => {}
        // An ACL that forbids reading the fence must not prevent everything else.
        Err(e) if Fault::of(&e).is_an_answer() => {
            let error = fault::describe(&e);
            logging::repeated(("redis", "fence"), &error.clone(), move |repeated| {
                let what = "Redis denies reading the failover fence: allow GET on \
                            gateway:<prefix>fence:*";
                tracing::warn!(error, repeated, "{what}");
            });
        }
        Err(e) => return Err(e),
    }

    Ok(())
}

/// Opens a connection to a master, and reads the fence on it.
pub(super) async fn open(
    core: &Core,
    server: &Server,
    on_push: Option<OnPush>,
) -> RedisResult<MasterConnection> {
    let mut master = core.connector.master(server, on_push).await?;
    learn(core, &mut master).await?;
    Ok(master)
}
