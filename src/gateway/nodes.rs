//! The replicas that have announced themselves.
//!
//! Invariant: a bounded number of replicas is remembered, and a silent one does not count.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::hub::Counts;

/// Seconds between two announcements of a replica.
pub(super) const ANNOUNCE_EVERY: u64 = 3;

/// A replica that has been silent for this long counts as gone.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// Most replicas that are remembered at once.
const MAX_NODES: usize = 1024;

/// One replica, as `/api/info` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub uid: String,
    pub name: String,
    pub version: String,
    pub num_clients: usize,
    pub num_users: usize,
    pub num_subs: usize,
    pub num_channels: usize,
    /// Seconds.
    pub uptime: u64,
}

/// The replicas that announced themselves recently.
pub struct Nodes {
    own: NodeInfo,
    started: Instant,
    seen: Mutex<HashMap<String, (NodeInfo, Instant)>>,
}

impl Nodes {
    pub(super) fn new(own: NodeInfo) -> Self {
        Self { own, started: Instant::now(), seen: Mutex::default() }
    }

    /// The id of this process, which is the first part of its connection ids.
    #[must_use]
    pub fn own_uid(&self) -> &str {
        &self.own.uid
    }

    /// This replica as it is now.
    pub(super) fn own(&self, counts: Counts) -> NodeInfo {
        NodeInfo {
            num_clients: counts.connections,
            num_users: counts.users,
            num_subs: counts.subscriptions,
            num_channels: counts.channels,
            uptime: self.started.elapsed().as_secs(),
            ..self.own.clone()
        }
    }

    pub(super) fn saw(&self, info: NodeInfo) {
        let mut seen = self.seen.lock();
        seen.retain(|_, (_, at)| at.elapsed() < FORGET_AFTER);
        if seen.len() < MAX_NODES || seen.contains_key(&info.uid) {
            seen.insert(info.uid.clone(), (info, Instant::now()));
        }
    }

    /// This replica as it is now, and the others as they last announced themselves, sorted by name.
    #[must_use]
    pub fn all(&self, counts: Counts) -> Vec<NodeInfo> {
        let fresh = |(_, at): &&(NodeInfo, Instant)| at.elapsed() < FORGET_AFTER;
        let seen = self.seen.lock();

        let others = seen.values().filter(fresh).map(|(info, _)| info);
        let mut all: Vec<_> = others.filter(|n| n.uid != self.own.uid).cloned().collect();

        all.push(self.own(counts));
        all.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        all
    }
}
