//! Which subscribing connection has which channel, and what moves when the masters change.
//!
//! Invariant: every wanted channel is in the table of exactly one connection, or among the orphans
//! while no master serves it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::link::{self, Concerns, Subscriber};
use super::masters::Map;
use super::node::{self, Node};
use super::{Shared, demotion, wanted::Want};
use crate::broker::{BrokerError, Confirmation, Silence, Track};
use crate::channel::ChannelName;
use crate::lifecycle;
use crate::redis_url::Server;

pub(super) struct Routes {
    map: Arc<Map>,
    /// Since when some channels, or all, have no master.
    unserved_since: Option<Instant>,
    /// `connections` for each master, in the map's order.
    links: Vec<Arc<Subscriber>>,
    nodes: Vec<Arc<Node>>,
    orphans: HashMap<ChannelName, Want, ahash::RandomState>,
    hasher: ahash::RandomState,
    connections: usize,
}

impl Routes {
    pub(super) fn new(connections: usize) -> Self {
        Self {
            map: Arc::default(),
            unserved_since: Some(Instant::now()),
            links: Vec::new(),
            nodes: Vec::new(),
            orphans: HashMap::default(),
            hasher: ahash::RandomState::default(),
            connections,
        }
    }

    fn link(&self, shared: &Shared, channel: &ChannelName) -> Option<&Arc<Subscriber>> {
        let at = self.map.master_of(shared.key(channel).as_bytes())?;
        // Control has one place, whatever else is spread.
        let spread = self.connections > 1 && !channel.is_control();
        let index =
            if spread { self.hasher.hash_one(channel) as usize % self.connections } else { 0 };
        self.links.get(at * self.connections + index)
    }

    pub(super) fn node(&self, key: &[u8]) -> Option<Arc<Node>> {
        self.map.master_of(key).and_then(|at| self.nodes.get(at)).cloned()
    }

    /// Everything that could be wanted can arrive.
    pub(super) fn links_up(&self) -> bool {
        let links = !self.links.is_empty() && self.links.iter().all(|l| l.is_up());
        links && self.map.is_whole()
    }

    /// Since when the parts are silent that are.
    pub(super) fn silence(&self) -> Silence {
        let silent: Vec<_> = self.links.iter().filter_map(|l| l.hearing.silent_since()).collect();
        let all = silent.len() == self.links.len();
        Silence { since: silent.into_iter().chain(self.unserved_since).collect(), all }
    }

    /// And be sent.
    pub(super) fn nodes_up(&self) -> bool {
        let nodes = !self.nodes.is_empty() && self.nodes.iter().all(|n| n.is_up());
        nodes && !self.links.iter().any(|l| l.canary.is_mute())
    }

    /// And be kept.
    pub(super) fn writes_are_taken(&self) -> bool {
        self.nodes.iter().all(|node| node.writes.are_taken())
    }

    /// Takes over a new map: connections for new masters, an end for those of old ones, and every
    /// channel to where it belongs now.
    fn adopt(&mut self, shared: &Arc<Shared>, map: Arc<Map>) {
        let mut old: Vec<_> = std::mem::take(&mut self.links);
        let mut old_nodes: Vec<_> = std::mem::take(&mut self.nodes);
        let before = std::mem::replace(&mut self.map, map);
        // What a server that is gone had has been silent for as long as that was, wherever it is now.
        let gone = old.iter().filter(|link| !self.map.masters.contains(&link.server));
        let silent = gone.filter_map(|link| link.hearing.silent_since());
        let now = Instant::now();
        let since = silent.chain(self.unserved_since).min().unwrap_or(now);
        let is_served = self.map.is_whole() && !self.map.masters.is_empty();
        self.unserved_since =
            if is_served { None } else { Some(self.unserved_since.unwrap_or(now)) };
        for (index, server) in before.masters.iter().enumerate() {
            if !self.map.masters.contains(server) {
                demotion::switched(shared, &before, index);
            }
        }
        let mut started = Vec::new();
        for server in &self.map.masters {
            for index in 0..self.connections {
                let same = |l: &Arc<Subscriber>| l.server == *server && l.index == index;
                let link = match old.iter().position(same) {
                    // A canary that falls to another server now would never come back.
                    Some(at) if canary_stays(&self.map, server, &old[at]) => old.swap_remove(at),
                    _ => {
                        let shared = Arc::clone(shared);
                        let link = Arc::new(Subscriber::new(shared, server.clone(), index, since));
                        started.push(Arc::clone(&link));
                        link
                    }
                };
                self.links.push(link);
            }
            let node = match old_nodes.iter().position(|n| n.server == *server) {
                Some(at) => old_nodes.swap_remove(at),
                None => {
                    let node = Node::new(server.clone());
                    lifecycle::spawn(
                        "redis_publisher",
                        node::run(Arc::clone(shared), Arc::clone(&node)),
                    );
                    node
                }
            };
            self.nodes.push(node);
        }
        let mut moving: Vec<(ChannelName, Want)> = self.orphans.drain().collect();
        for link in &old {
            moving.extend(link.take_misplaced(|_| false));
            link.stop();
        }
        for link in &self.links {
            let stays = |channel: &ChannelName| {
                self.link(shared, channel).is_some_and(|at| Arc::ptr_eq(at, link))
            };
            moving.extend(link.take_misplaced(stays));
        }
        for (channel, want) in moving {
            match self.link(shared, &channel) {
                Some(link) => link.adopt(&channel, want),
                None => drop(self.orphans.insert(channel, want)),
            }
        }
        old_nodes.iter().for_each(|node| node.stop());
        for link in started {
            lifecycle::spawn("redis_subscriber", link::run(link));
        }
    }
}

fn canary_stays(map: &Map, server: &Server, link: &Subscriber) -> bool {
    let at = map.master_of(link.canary.channel().as_bytes());
    link.canary.is_none() || at.is_some_and(|at| map.masters[at] == *server)
}

impl Shared {
    pub(super) fn subscribe(
        &self,
        channel: &ChannelName,
        track: Track,
        confirmation: Option<Confirmation>,
    ) {
        let routes = self.routes.read();
        if let Some(link) = routes.link(self, channel) {
            return link.subscribe(channel, track, confirmation);
        }
        drop(routes);
        let mut routes = self.routes.write();
        if let Some(link) = routes.link(self, channel) {
            return link.subscribe(channel, track, confirmation);
        }
        routes.orphans.entry(channel.clone()).or_default().add(track, confirmation);
    }

    pub(super) fn unsubscribe(&self, channel: &ChannelName) {
        let routes = self.routes.read();
        if let Some(link) = routes.link(self, channel) {
            return link.unsubscribe(channel);
        }
        drop(routes);
        self.routes.write().orphans.remove(channel);
    }

    pub(super) fn is_live(&self, channel: &ChannelName) -> bool {
        self.routes.read().link(self, channel).is_some_and(|l| l.is_live(channel))
    }

    pub(super) fn silent_since(&self, channel: &ChannelName) -> Option<Instant> {
        let routes = self.routes.read();
        match routes.link(self, channel) {
            Some(link) => link.hearing.silent_since(),
            None => routes.unserved_since,
        }
    }

    /// Says of those channels that they may have missed something that no history has.
    pub(super) fn declare_lost(&self, concerns: Concerns<'_>) {
        self.routes.read().links.iter().for_each(|link| link.declare_lost(concerns));
    }

    /// Reads where the tracked histories stand; those of epochs that are too old begin another.
    pub(super) fn renew(&self) {
        self.routes.read().links.iter().for_each(|link| link.renew());
    }

    /// The command connection for a key.
    pub(super) fn node(&self, key: &[u8]) -> Result<Arc<Node>, BrokerError> {
        self.routes.read().node(key).ok_or(BrokerError::Unavailable)
    }
}

/// Follows the directory, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.directory.changes();
    loop {
        let map = Arc::clone(&changes.borrow_and_update());
        shared.routes.write().adopt(&shared, map);
        shared.report();
        if changes.changed().await.is_err() {
            return;
        }
    }
}
