//! Which subscribing connection has which channel, and what moves when the masters change.
//!
//! Invariant: every wanted channel is in the table of exactly one connection, or among the orphans
//! while no master serves it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::link::{self, Concerns, Subscriber, UNSERVED};
use super::masters::Map;
use super::node::{self, Node};
use super::{Settings, Shared, demotion, wanted::Want};
use crate::broker::{BrokerError, Confirmation, Silence, SilentPart, Spread, Track};
use crate::channel::ChannelName;
use crate::lifecycle;

/// Determines the subscribing connection that a channel belongs to.
#[derive(Clone, Default)]
struct Places {
    map: Arc<Map>,
    hasher: ahash::RandomState,
    /// The number of connections to each master.
    connections: usize,
}

impl Places {
    fn index(&self, key: &[u8], channel: &ChannelName) -> Option<usize> {
        let at = self.map.master_of(key)?;
        // The control channel has one place, however the others are spread.
        let spread = self.connections > 1 && !channel.is_control();
        let index =
            if spread { self.hasher.hash_one(channel) as usize % self.connections } else { 0 };
        Some(at * self.connections + index)
    }

    /// The spread of channels over the parts that these connections are.
    fn spread(&self, prefix: &str, links: &[Arc<Subscriber>]) -> Spread {
        let parts: Vec<u64> = links.iter().map(|link| link.hearing.part).collect();
        let is_served = self.map.is_whole() && !parts.is_empty();
        let (places, prefix, ids) = (self.clone(), prefix.to_owned(), parts.clone());
        let part_of = move |channel: &ChannelName| {
            let index = places.index(format!("{prefix}{channel}").as_bytes(), channel);
            index.and_then(|index| ids.get(index)).copied().unwrap_or(UNSERVED)
        };
        let unserved = (!is_served).then_some(UNSERVED);
        Spread { parts: parts.into_iter().chain(unserved).collect(), part_of: Box::new(part_of) }
    }
}

/// What works on every master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Roles {
    /// Publications on every possible channel can arrive.
    pub(super) subscriber: bool,
    /// They can be sent.
    pub(super) publisher: bool,
    /// Durable publications are accepted.
    pub(super) writer: bool,
}

impl Roles {
    pub(super) fn is_well(self) -> bool {
        self.subscriber && self.publisher && self.writer
    }
}

pub(super) struct Routes {
    places: Places,
    spread: Arc<Spread>,
    /// Set while some channels, or all, have no master.
    unserved: Option<SilentPart>,
    /// `connections` for each master, in the map's order.
    links: Vec<Arc<Subscriber>>,
    nodes: Vec<Arc<Node>>,
    orphans: HashMap<ChannelName, Want, ahash::RandomState>,
    prefix: String,
}

impl Routes {
    pub(super) fn new(settings: &Settings) -> Self {
        let places = Places { connections: settings.subscribers.max(1), ..Places::default() };
        Self {
            spread: Arc::new(places.spread(&settings.prefix, &[])),
            places,
            unserved: Some(SilentPart::new(UNSERVED, Instant::now())),
            links: Vec::new(),
            nodes: Vec::new(),
            orphans: HashMap::default(),
            prefix: settings.prefix.clone(),
        }
    }

    fn link(&self, shared: &Shared, channel: &ChannelName) -> Option<&Arc<Subscriber>> {
        let index = self.places.index(shared.key(channel).as_bytes(), channel)?;
        self.links.get(index)
    }

    pub(super) fn node(&self, key: &[u8]) -> Option<Arc<Node>> {
        self.places.map.master_of(key).and_then(|at| self.nodes.get(at)).cloned()
    }

    /// The parts that are silent now.
    pub(super) fn silence(&self) -> Option<Silence> {
        let silent = self.links.iter().filter_map(|link| link.silent());
        let parts: Vec<_> = silent.chain(self.unserved).collect();
        (!parts.is_empty()).then(|| Silence { parts, spread: Arc::clone(&self.spread) })
    }

    /// What works now.
    pub(super) fn roles(&self) -> Roles {
        let links = !self.links.is_empty() && self.links.iter().all(|link| link.is_up());
        let nodes = !self.nodes.is_empty() && self.nodes.iter().all(|node| node.is_up());
        let publisher = nodes && !self.links.iter().any(|link| link.canary.is_mute());
        let taken = self.nodes.iter().all(|node| node.writes.are_taken());

        Roles {
            subscriber: links && self.places.map.is_whole(),
            publisher,
            writer: publisher && taken,
        }
    }

    /// Adopts a new map: makes connections to new masters, ends those to old ones, and moves every
    /// channel to where it belongs now.
    fn adopt(&mut self, shared: &Arc<Shared>, map: &Arc<Map>) {
        let mut old = std::mem::take(&mut self.links);
        let mut old_nodes = std::mem::take(&mut self.nodes);
        let before = std::mem::replace(&mut self.places.map, Arc::clone(map));

        for (index, server) in before.masters.iter().enumerate() {
            if !map.masters.contains(server) {
                demotion::switched(shared, &before, index);
            }
        }
        // The channels of a connection that is gone have been silent for as long as it was,
        // wherever they are now.
        let gone = old.iter().filter(|link| !stays(map, link));
        let silent = gone.filter_map(|link| link.silent()).chain(self.unserved);
        let silent = silent.min_by_key(|silent| silent.noticed);

        let started = self.connect(shared, map, (&mut old, &mut old_nodes), silent);
        self.move_channels(shared, &old, silent);
        old_nodes.iter().for_each(|node| node.stop());

        let is_served = map.is_whole() && !map.masters.is_empty();
        let unserved = self.unserved.or(silent);
        let unserved = unserved.unwrap_or(SilentPart::new(UNSERVED, Instant::now()));
        self.unserved = (!is_served).then_some(SilentPart { part: UNSERVED, ..unserved });
        self.spread = Arc::new(self.places.spread(&self.prefix, &self.links));

        for link in started {
            lifecycle::spawn("redis_subscriber", link::run(link));
        }
    }

    /// Keeps the connections that continue and makes the others. Returns the new subscribing ones,
    /// which are to be started. What is left of the old ones is to be ended.
    fn connect(
        &mut self,
        shared: &Arc<Shared>,
        map: &Map,
        (old, old_nodes): (&mut Vec<Arc<Subscriber>>, &mut Vec<Arc<Node>>),
        silent: Option<SilentPart>,
    ) -> Vec<Arc<Subscriber>> {
        let mut started = Vec::new();

        for server in &map.masters {
            for index in 0..self.places.connections {
                let same = |l: &Arc<Subscriber>| l.server == *server && l.index == index;
                let link = match old.iter().position(|l| same(l) && stays(map, l)) {
                    Some(at) => old.swap_remove(at),
                    None => {
                        let shared = Arc::clone(shared);
                        let link = Subscriber::new(shared, server.clone(), index, silent);
                        let link = Arc::new(link);
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
                    let run = node::run(Arc::clone(shared), Arc::clone(&node));
                    lifecycle::spawn("redis_publisher", run);
                    node
                }
            };
            self.nodes.push(node);
        }

        started
    }

    /// Ends the old connections, and moves every channel to where it belongs now.
    fn move_channels(
        &mut self,
        shared: &Shared,
        old: &[Arc<Subscriber>],
        silent: Option<SilentPart>,
    ) {
        let mut moving: Vec<(ChannelName, Want)> = self.orphans.drain().collect();
        for link in old {
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
                Some(link) => link.adopt(&channel, want, silent),
                None => drop(self.orphans.insert(channel, want)),
            }
        }
    }
}

/// True if the connection continues. A canary whose slot moves to another server would never come
/// back.
fn stays(map: &Map, link: &Subscriber) -> bool {
    let at = map.master_of(link.canary.channel().as_bytes());
    let canary_stays = link.canary.is_none() || at.is_some_and(|at| map.masters[at] == link.server);
    map.masters.contains(&link.server) && canary_stays
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

    /// Declares on these channels that something may have been missed that no history has.
    pub(super) fn declare_lost(&self, concerns: Concerns<'_>) {
        self.routes.read().links.iter().for_each(|link| link.declare_lost(concerns));
    }

    /// Reads the positions of the tracked histories; those with epochs that are too old begin
    /// another.
    pub(super) fn renew(&self) {
        self.routes.read().links.iter().for_each(|link| link.renew());
    }

    /// The command connection of the master that has a key.
    pub(super) fn node(&self, key: &[u8]) -> Result<Arc<Node>, BrokerError> {
        self.routes.read().node(key).ok_or(BrokerError::Unavailable)
    }
}

/// Adopts every change of the directory, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.directory.changes();
    loop {
        let map = Arc::clone(&changes.borrow_and_update());
        shared.routes.write().adopt(&shared, &map);
        shared.report();
        if changes.changed().await.is_err() {
            return;
        }
    }
}
