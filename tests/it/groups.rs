//! Groups of servers that elect each other, one at a time: Sentinels that are starved stop acting
//! for half a minute.
//!
//! Not here: the groups (`tollgate_support::redis`).

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tollgate_support::redis::{Cluster, Sentinels, Timing};

static ONE_GROUP: Mutex<()> = Mutex::const_new(());

/// A group that runs while no other does.
pub struct Alone<G> {
    group: G,
    _turn: MutexGuard<'static, ()>,
}

impl<G> Deref for Alone<G> {
    type Target = G;

    fn deref(&self) -> &G {
        &self.group
    }
}

impl<G> DerefMut for Alone<G> {
    fn deref_mut(&mut self) -> &mut G {
        &mut self.group
    }
}

/// Starts a master with this many replicas, and three Sentinels.
pub async fn sentinels(replicas: usize) -> Alone<Sentinels> {
    let _turn = ONE_GROUP.lock().await;
    let timing = Timing { down_after: Duration::from_secs(3), failover: Duration::from_secs(10) };
    Alone { group: Sentinels::start(replicas, timing).await, _turn }
}

/// Starts three masters, each with a replica.
pub async fn cluster() -> Alone<Cluster> {
    let _turn = ONE_GROUP.lock().await;
    Alone { group: Cluster::start().await, _turn }
}
