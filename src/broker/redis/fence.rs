//! The fence: a time of the master's clock. Epochs that began before it began while an older master
//! still accepted publications, so a client with a position in one may lack what that master
//! accepted.
//!
//! A position alone does not tell whether its holder was there when the loss was declared. So any
//! replica that sees the old master's end records that time under a key of the new master's
//! identity. Every reader of a position then finds the epoch too old and begins another one.

use std::sync::Arc;

use redis::{RedisResult, Value};
use tokio::time::Instant;

use super::Shared;
use super::connect::Link;
use super::fault::{self, Fault};
use super::tap::OnPush;
use crate::broker::BrokerError;
use crate::logging;
use crate::redis_url::{Server, Topology};

/// How many seconds a fence is kept: no history is older.
const KEPT: u64 = 31_536_000;

/// The fence of the identity that was seen last; epochs of any other are not trusted anyway.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    reign: Arc<str>,
    at: u64,
}

impl Fence {
    /// The earliest trusted epoch of an identity.
    fn of(&self, reign: &str) -> u64 {
        if *self.reign == *reign { self.at } else { 0 }
    }
}

fn key(shared: &Shared, reign: &str) -> String {
    shared.own_key(&format!("fence:{reign}"))
}

/// True if a fence is used: with Sentinel only. The masters of a cluster share no keys; there, what
/// a cut-off master accepted is declared only to clients that are connected.
fn is_used(shared: &Shared, link: &Link) -> bool {
    matches!(shared.connector.target.topology, Topology::Sentinel(..)) && !link.run.is_empty()
}

/// Sets the fence to the current time, unless it stands after the moment at which the old master
/// was last seen as one: another replica has set it for the same end then. False if no fence is
/// used.
pub(super) async fn raise(shared: &Shared, seen: Instant) -> Result<bool, BrokerError> {
    let set = |mut link: Link| async move {
        if !is_used(shared, &link) {
            return Ok(false);
        }
        let (connection, key) = (&mut link.connection, key(shared, &link.run));

        let (seconds, micros): (u64, u64) = fault::ask(connection, &redis::cmd("TIME")).await?;
        let now = seconds * 1_000_000 + micros;
        let then = now.saturating_sub(u64::try_from(seen.elapsed().as_micros()).unwrap_or(now));
        let at: Option<u64> = fault::ask(connection, redis::cmd("GET").arg(&key)).await?;

        if at.is_none_or(|at| at < then) {
            let mut set = redis::cmd("SET");
            set.arg(&key).arg(now).arg("EX").arg(KEPT);
            // Several replicas that see the same end set it to about the same moment.
            set.arg(if at.is_none() { "NX" } else { "XX" });
            fault::ask::<Value>(connection, &set).await?;
        }

        learn(shared, &mut link).await.map(|()| true)
    };
    shared.on_master(&shared.settings.prefix, |link| Box::pin(set(link))).await
}

/// Reads a fence that any replica has set. If it is new, all channels are told.
pub(super) async fn learn(shared: &Shared, link: &mut Link) -> RedisResult<()> {
    if !is_used(shared, link) {
        return Ok(());
    }

    let mut get = redis::cmd("GET");
    get.arg(key(shared, &link.run));

    match fault::ask::<Option<u64>>(&mut link.connection, &get).await {
        Ok(Some(at)) => {
            let new = Fence { reign: Arc::clone(&link.run), at };
            let old = std::mem::replace(&mut *shared.fence.lock(), new.clone());
            if old != new {
                shared.fenced();
            }
        }
        Ok(None) => {}
        // An ACL that forbids reading the fence must not prevent everything else.
        Err(e) if Fault::of(&e).is_an_answer() => {
            let error = fault::describe(&e);
            logging::repeated(("redis", "fence"), &error.clone(), move |repeated| {
                let what = "cannot read the fence: allow GET on gateway:<prefix>fence:*";
                tracing::warn!(error, repeated, "{what}");
            });
        }
        Err(e) => return Err(e),
    }

    Ok(())
}

impl Shared {
    /// Opens a connection to a master, and reads the fence on it.
    pub(super) async fn master(
        &self,
        server: &Server,
        on_push: Option<OnPush>,
    ) -> RedisResult<Link> {
        let mut link = self.connector.master(server, on_push).await?;
        learn(self, &mut link).await?;
        Ok(link)
    }

    /// The earliest trusted epoch on this connection's server.
    pub(super) fn fence(&self, link: &Link) -> u64 {
        self.fence.lock().of(&link.run)
    }
}
