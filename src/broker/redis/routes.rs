//! Which subscribing connection has which channel, and what moves when the masters change.
//!
//! Not here: one connection (`subscribing`). Invariant: every wanted channel is in the table of
//! exactly one connection, or among the orphans while no master serves it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use super::commands::Commands;
use super::core::Core;
use super::hearing::UNSERVED;
use super::masters::Map;
use super::subscribing::{self, ChannelFilter, SubscribingConnection};
use super::subscription_table::Subscription;
use crate::broker::{Confirmation, Silence, SilentPart, Spread, Tracking};
use crate::channel::ChannelName;
use crate::lifecycle;

/// Says which subscribing connection a channel belongs to.
#[derive(Clone, Default)]
struct Placement {
    map: Arc<Map>,
    hasher: ahash::RandomState,
    /// The number of connections to each master.
    connections: usize,
}

impl Placement {
    /// The index of the channel's connection; `None` while no master serves it.
    fn index(&self, key: &[u8], channel: &ChannelName) -> Option<usize> {
        let at = self.map.master_of(key)?;
        // The control channel has one connection, however the others are spread.
        let spread = self.connections > 1 && !channel.is_control();
        let index =
            if spread { self.hasher.hash_one(channel) as usize % self.connections } else { 0 };
        Some(at * self.connections + index)
    }

    /// How channels are spread over the parts that these connections are.
    fn spread(&self, prefix: &str, connections: &[Arc<SubscribingConnection>]) -> Spread {
        let parts: Vec<u64> = connections.iter().map(|c| c.hearing.part).collect();
        let is_served = self.map.is_whole() && !parts.is_empty();
        let placement = self.clone();
        let prefix = prefix.to_owned();
        let ids = parts.clone();
        let part_of = move |channel: &ChannelName| {
            let index = placement.index(format!("{prefix}{channel}").as_bytes(), channel);
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
    /// Publications can be sent.
    pub(super) publisher: bool,
    /// Durable publications are accepted.
    pub(super) writer: bool,
}

impl Roles {
    pub(super) fn is_well(self) -> bool {
        self.subscriber && self.publisher && self.writer
    }
}

/// All subscribing connections, and which channel belongs to which.
pub(super) struct Routes {
    core: Arc<Core>,
    commands: Arc<Commands>,
    table: RwLock<RouteTable>,
}

/// The connections, and the channels that have none.
struct RouteTable {
    placement: Placement,
    spread: Arc<Spread>,
    /// Set while some or all channels have no master.
    unserved: Option<SilentPart>,
    /// `placement.connections` for each master, in the map's order.
    connections: Vec<Arc<SubscribingConnection>>,
    /// The wanted channels that no master serves.
    orphans: HashMap<ChannelName, Subscription, ahash::RandomState>,
}

impl RouteTable {
    /// The connection that a channel belongs to.
    fn connection(
        &self,
        core: &Core,
        channel: &ChannelName,
    ) -> Option<&Arc<SubscribingConnection>> {
        let index = self.placement.index(core.key(channel).as_bytes(), channel)?;
        self.connections.get(index)
    }

    /// Ends the old connections, and moves every channel to the connection that it belongs to now.
    fn move_channels(
        &mut self,
        core: &Core,
        old: &[Arc<SubscribingConnection>],
        silent: Option<SilentPart>,
    ) {
        let mut moving: Vec<(ChannelName, Subscription)> = self.orphans.drain().collect();
        for connection in old {
            moving.extend(connection.take_misplaced(|_| false));
            connection.stop();
        }
        for connection in &self.connections {
            let stays = |channel: &ChannelName| {
                self.connection(core, channel).is_some_and(|at| Arc::ptr_eq(at, connection))
            };
            moving.extend(connection.take_misplaced(stays));
        }

        for (channel, want) in moving {
            match self.connection(core, &channel) {
                Some(connection) => connection.adopt(&channel, want, silent),
                None => drop(self.orphans.insert(channel, want)),
            }
        }
    }
}

impl Routes {
    pub(super) fn new(commands: Arc<Commands>) -> Self {
        let core = Arc::clone(&commands.core);
        let connections = core.settings.subscribers.max(1);
        let placement = Placement { connections, ..Placement::default() };
        let table = RouteTable {
            spread: Arc::new(placement.spread(&core.settings.prefix, &[])),
            placement,
            unserved: Some(SilentPart::new(UNSERVED, Instant::now())),
            connections: Vec::new(),
            orphans: HashMap::default(),
        };
        Self { core, commands, table: RwLock::new(table) }
    }

    /// The parts that are silent now.
    pub(super) fn silence(&self) -> Option<Silence> {
        let table = self.table.read();
        let silent = table.connections.iter().filter_map(|connection| connection.silent());
        let parts: Vec<_> = silent.chain(table.unserved).collect();
        (!parts.is_empty()).then(|| Silence { parts, spread: Arc::clone(&table.spread) })
    }

    /// What works now.
    pub(super) fn roles(&self) -> Roles {
        let table = self.table.read();
        let connections = &table.connections;
        let up = !connections.is_empty() && connections.iter().all(|c| c.is_up());
        let mute = connections.iter().any(|connection| connection.canary.is_mute());
        let publisher = self.commands.are_up() && !mute;

        Roles {
            subscriber: up && table.placement.map.is_whole(),
            publisher,
            writer: publisher && self.commands.are_kept(),
        }
    }

    /// Adopts a new map: makes connections to new masters, ends those to old ones, and moves every
    /// channel to the connection that it belongs to now.
    pub(super) fn adopt(&self, map: &Arc<Map>) {
        let mut table = self.table.write();
        self.commands.adopt(map);
        let mut old = std::mem::take(&mut table.connections);
        table.placement.map = Arc::clone(map);

        // The channels of a connection that is gone have been silent for as long as it was,
        // whichever connection they belong to now.
        let gone = old.iter().filter(|connection| !stays(map, connection));
        let silent = gone.filter_map(|connection| connection.silent()).chain(table.unserved);
        let silent = silent.min_by_key(|silent| silent.noticed);

        let started = self.connect(&mut table, map, &mut old, silent);
        table.move_channels(&self.core, &old, silent);

        let is_served = map.is_whole() && !map.masters.is_empty();
        let unserved = table.unserved.or(silent);
        let unserved = unserved.unwrap_or(SilentPart::new(UNSERVED, Instant::now()));
        table.unserved = (!is_served).then_some(SilentPart { part: UNSERVED, ..unserved });
        let spread = table.placement.spread(&self.core.settings.prefix, &table.connections);
        table.spread = Arc::new(spread);

        for connection in started {
            lifecycle::spawn("redis_subscriber", subscribing::run(connection));
        }
    }

    /// Keeps the connections that continue and makes the others. Returns the new ones, which have
    /// to be started. Those that are left in `old` have to be ended.
    fn connect(
        &self,
        table: &mut RouteTable,
        map: &Map,
        old: &mut Vec<Arc<SubscribingConnection>>,
        silent: Option<SilentPart>,
    ) -> Vec<Arc<SubscribingConnection>> {
        let mut started = Vec::new();

        for server in &map.masters {
            for index in 0..table.placement.connections {
                let same = |c: &Arc<SubscribingConnection>| c.server == *server && c.index == index;
                let connection = match old.iter().position(|c| same(c) && stays(map, c)) {
                    Some(at) => old.swap_remove(at),
                    None => {
                        let commands = Arc::clone(&self.commands);
                        let made =
                            SubscribingConnection::new(commands, server.clone(), index, silent);
                        let made = Arc::new(made);
                        started.push(Arc::clone(&made));
                        made
                    }
                };
                table.connections.push(connection);
            }
        }

        started
    }

    pub(super) fn subscribe(
        &self,
        channel: &ChannelName,
        tracking: Tracking,
        confirmation: Option<Confirmation>,
    ) {
        let table = self.table.read();
        if let Some(connection) = table.connection(&self.core, channel) {
            return connection.subscribe(channel, tracking, confirmation);
        }

        drop(table);

        // The map may have changed while the lock was released.
        let mut table = self.table.write();
        if let Some(connection) = table.connection(&self.core, channel) {
            return connection.subscribe(channel, tracking, confirmation);
        }
        table.orphans.entry(channel.clone()).or_default().add(tracking, confirmation);
    }

    pub(super) fn unsubscribe(&self, channel: &ChannelName) {
        let table = self.table.read();
        if let Some(connection) = table.connection(&self.core, channel) {
            return connection.unsubscribe(channel);
        }
        drop(table);
        self.table.write().orphans.remove(channel);
    }

    pub(super) fn is_live(&self, channel: &ChannelName) -> bool {
        let table = self.table.read();
        table.connection(&self.core, channel).is_some_and(|c| c.is_live(channel))
    }

    /// Declares a loss on these channels that no history can fill.
    pub(super) fn declare_lost(&self, concerns: ChannelFilter<'_>) {
        self.table.read().connections.iter().for_each(|c| c.declare_lost(concerns));
    }

    /// Reacts to a fence that has moved. The new epochs declare the loss on channels whose history
    /// is followed, also to clients that are away now; on all other channels it is declared here.
    pub(super) fn fence_moved(&self) {
        self.declare_lost(&|_, tracking| tracking == Tracking::Off);
        self.table.read().connections.iter().for_each(|connection| connection.renew());
    }
}

/// True if the connection continues. A canary whose slot moves to another server would
/// never come back.
fn stays(map: &Map, connection: &SubscribingConnection) -> bool {
    let at = map.master_of(connection.canary.channel().as_bytes());
    let canary_stays =
        connection.canary.is_none() || at.is_some_and(|at| map.masters[at] == connection.server);
    map.masters.contains(&connection.server) && canary_stays
}
