//! The fence: a time of the master's clock. Epochs that began before it began while an older master
//! still took publications, so who holds a position in one may lack what that master took.
//!
//! A position alone does not tell whether its holder was there when the loss was declared. So whoever
//! sees the old master's end puts down when that was, under a key of the new master's reign;
//! whatever reads a position finds the epoch too old and begins another.

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

/// Seconds that a fence is kept: no history is older.
const KEPT: u64 = 31_536_000;

/// Of the reign that was heard of last; epochs of any other are not trusted anyway.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    reign: Arc<str>,
    at: u64,
}

impl Fence {
    /// The earliest epoch of a reign that is trusted.
    fn of(&self, reign: &str) -> u64 {
        if *self.reign == *reign { self.at } else { 0 }
    }
}

fn key(shared: &Shared, reign: &str) -> String {
    shared.own_key(&format!("fence:{reign}"))
}

/// The masters of a cluster share no keys, and what a master took that was cut off is declared there to
/// those who are connected only.
fn is_used(shared: &Shared, link: &Link) -> bool {
    matches!(shared.connector.target.topology, Topology::Sentinel(..)) && !link.run.is_empty()
}

/// Puts the fence to now, unless it stands behind the last moment at which the old master was seen as one:
/// then another replica put it there for the same end. False where there is none.
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
            // Several that see the same end put it to the same moment.
            set.arg(if at.is_none() { "NX" } else { "XX" });
            fault::ask::<Value>(connection, &set).await?;
        }
        learn(shared, &mut link).await.map(|()| true)
    };
    shared.on_master(&shared.settings.prefix, |link| Box::pin(set(link))).await
}

/// Reads what some replica put down. Where that is news, all channels are told.
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
        // An ACL that forbids it must not keep us from everything else.
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
    /// A connection to a master, and the fence there is on it.
    pub(super) async fn master(
        &self,
        server: &Server,
        on_push: Option<OnPush>,
    ) -> RedisResult<Link> {
        let mut link = self.connector.master(server, on_push).await?;
        learn(self, &mut link).await?;
        Ok(link)
    }

    /// The earliest epoch on this connection's server that is trusted.
    pub(super) fn fence(&self, link: &Link) -> u64 {
        self.fence.lock().of(&link.run)
    }
}
