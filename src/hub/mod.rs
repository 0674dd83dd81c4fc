//! The hub: which connections there are, and which of them receive what.
//!
//! Connections are spread over shards. A shard owns the channel table of its connections, a timing
//! wheel and one fan-out task (`fanout`). DashMaps hold what is asked across shards: connections by
//! id, connections by user, and which shards have subscribers of a channel.
//!
//! Not here: brokers, access, sessions. Invariants: a connection's channels are listed in its slot
//! and nowhere else, so removing the slot removes every subscription; a shard's bit in `routes` is
//! set exactly while its table has the channel (both change under the table's lock).

mod batch;
mod connection;
mod fanout;
mod inbox;
mod outage;
mod queue;
mod queue_bounds;
mod ranges;
mod shard;
mod slot;
mod table;
mod tasks;
mod wheel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use dashmap::DashMap;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::channel::ChannelName;
use crate::protocol::stream_position::StreamPosition;
use crate::protocol::{Push, Reply, Wire};
use crate::sizes::shrink_shared;
pub use connection::{Connection, Wake};
use inbox::{Barrier, Item};
pub use outage::Outage;
pub use queue_bounds::{ConnId, QueueBounds};
use shard::Shard;
pub use table::{Activation, SubscribeError};
pub use wheel::{TICK, TICKS_PER_SECOND};

/// Each shard has one bit in a word of `routes`.
const MAX_SHARDS: usize = 64;

type Routes = DashMap<ChannelName, u64, ahash::RandomState>;

/// The connections of this process.
pub struct Hub {
    shards: Box<[Arc<Shard>]>,
    connections: DashMap<ConnId, Arc<Connection>, ahash::RandomState>,
    users: DashMap<Arc<str>, Vec<ConnId>, ahash::RandomState>,
    routes: Routes,
    bounds: Arc<QueueBounds>,
    next_id: AtomicU64,
    subscriptions: AtomicUsize,
    started: Instant,
    /// When the runtime of the deliveries last had a turn.
    beat: AtomicU32,
}

impl Hub {
    #[must_use]
    pub fn new(shards: usize, bounds: QueueBounds) -> Arc<Self> {
        let count = u32::try_from(shards.clamp(1, MAX_SHARDS)).unwrap_or(1);
        Arc::new(Self {
            shards: (0..count).map(|index| Arc::new(Shard::new(index))).collect(),
            connections: DashMap::default(),
            users: DashMap::default(),
            routes: Routes::default(),
            bounds: Arc::new(bounds),
            next_id: AtomicU64::new(1),
            subscriptions: AtomicUsize::new(0),
            started: Instant::now(),
            beat: AtomicU32::new(0),
        })
    }

    /// A hub of one shard whose bounds no test reaches, with its fan-out started.
    #[cfg(test)]
    pub(crate) fn unbounded() -> Arc<Self> {
        let unbounded = || AtomicUsize::new(1 << 20);
        let bounds = QueueBounds {
            queue_messages: unbounded(),
            queue_bytes: unbounded(),
            queue_bytes_total: unbounded(),
            channels_per_connection: unbounded(),
            queued: AtomicUsize::new(0),
        };
        let hub = Self::new(1, bounds);
        hub.start_fanout();
        hub
    }

    #[must_use]
    pub fn bounds(&self) -> &QueueBounds {
        &self.bounds
    }

    /// Ticks since the hub began: the clock of the wheels and sessions.
    #[must_use]
    pub fn now(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_millis() / TICK.as_millis()).unwrap_or(u32::MAX)
    }

    /// Adds a connection, which has no subscriptions yet. Without a stream it is an HTTP response,
    /// whose task takes the queued bytes.
    pub fn register(&self, stream: Option<TcpStream>, wire: Wire) -> Arc<Connection> {
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let shard = &self.shards[(id.0 % self.shards.len() as u64) as usize];
        let connection = Connection::new(id, shard.index, wire, stream, Arc::clone(&self.bounds));
        let connection = Arc::new(connection);

        let slot = shard.table.lock().insert(Arc::clone(&connection));
        connection.set_slot(slot);
        self.connections.insert(id, Arc::clone(&connection));
        connection
    }

    /// Removes a connection with all its subscriptions, and returns the channels that it had.
    pub fn remove(&self, connection: &Connection) -> Vec<ChannelName> {
        if self.connections.remove(&connection.id()).is_none() {
            return Vec::new();
        }
        if let Some(user) = connection.user() {
            self.unbind(&user, connection.id());
        }

        let shard = self.shard(connection);
        let channels = {
            let mut table = shard.table.lock();
            let (channels, emptied) = table.remove(connection.slot());
            for channel in emptied {
                self.clear_route(&channel, shard);
            }
            channels
        };

        self.subscriptions.fetch_sub(channels.len(), Ordering::Relaxed);
        channels
    }

    /// Binds a connection to its user. Changes nothing and returns false if the user has `max`
    /// connections already.
    pub fn bind(&self, connection: &Connection, user: &Arc<str>, max: usize) -> bool {
        let mut ids = self.users.entry(Arc::clone(user)).or_default();
        if ids.len() >= max {
            return false;
        }

        ids.push(connection.id());
        connection.set_user(Arc::clone(ids.key()));
        true
    }

    fn unbind(&self, user: &Arc<str>, id: ConnId) {
        self.users.remove_if_mut(user, |_, ids| {
            ids.retain(|other| *other != id);
            ids.is_empty()
        });
    }

    /// Adds a subscription whose events are held back until [`Hub::activate`].
    ///
    /// # Errors
    /// When the connection is subscribed to the channel already, or has too many subscriptions.
    pub fn subscribe(
        &self,
        connection: &Connection,
        channel: &ChannelName,
    ) -> Result<(), SubscribeError> {
        let shard = self.shard(connection);
        let max = self.bounds.channels_per_connection.load(Ordering::Relaxed);

        let mut table = shard.table.lock();
        let first = table.subscribe(connection.slot(), channel, max)?;
        if first {
            *self.routes.entry(channel.clone()).or_default() |= 1 << shard.index;
        }

        drop(table);
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Marks a subscription that the broker has confirmed. What is held back from now on belongs to
    /// it, whatever barrier [`Hub::barrier`] sends for other subscriptions.
    pub fn mark_confirmed(&self, connection: &Connection, channel: &ChannelName) {
        self.shard(connection).table.lock().mark_confirmed(connection.slot(), channel);
    }

    /// Sends `replies`, the missed events and those that were held back, and lets further
    /// events through.
    pub fn activate(
        &self,
        connection: &Connection,
        channel: &ChannelName,
        replies: &[Reply<'_>],
        begin: &Activation<'_>,
    ) {
        self.shard(connection).table.lock().activate(connection, channel, replies, begin);
        connection.flush();
    }

    /// Ends a subscription. Returns true if the connection had it.
    pub fn unsubscribe(&self, connection: &Connection, channel: &ChannelName) -> bool {
        let shard = self.shard(connection);
        let mut table = shard.table.lock();
        let Some(last) = table.unsubscribe(connection.slot(), channel) else {
            return false;
        };

        if last {
            self.clear_route(channel, shard);
        }

        drop(table);
        self.subscriptions.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Clears the shard's bit. The caller has to hold the lock of the shard's table.
    fn clear_route(&self, channel: &ChannelName, shard: &Shard) {
        self.routes.remove_if_mut(channel, |_, mask| {
            *mask &= !(1 << shard.index);
            *mask == 0
        });
    }

    /// Gives a push to every shard with subscribers. It waits only if one of them is far behind.
    pub async fn dispatch(&self, push: Push) {
        let mut mask = self.route(push.channel());
        while mask != 0 {
            let shard = &self.shards[mask.trailing_zeros() as usize];
            mask &= mask - 1;

            if mask == 0 {
                shard.inbox.push(Item::Push(push)).await;
                return;
            }
            shard.inbox.push(Item::Push(push.clone())).await;
        }
    }

    /// A barrier: calls `done` once every shard with subscribers of the channel has processed what
    /// was dispatched before. Unconfirmed subscriptions of the channel discard their buffers then:
    /// those events predate them.
    pub async fn barrier(&self, channel: &ChannelName, done: impl FnOnce() + Send + 'static) {
        let mut mask = self.route(channel);
        if mask == 0 {
            return done();
        }

        let mark = Barrier::new(mask.count_ones(), Box::new(done));
        while mask != 0 {
            let shard = &self.shards[mask.trailing_zeros() as usize];
            mask &= mask - 1;
            shard.inbox.push(Item::Barrier(channel.clone(), Arc::clone(&mark))).await;
        }
    }

    /// Tells all connections what is silent now, behind everything that was dispatched before.
    /// `None` means that nothing is.
    pub async fn tell(&self, outage: Option<Outage>) {
        let outage = outage.map(Arc::new);
        for shard in &self.shards {
            shard.inbox.push(Item::Outage(outage.clone())).await;
        }
    }

    /// Sends `connected`, the first message of an accepted connection.
    pub fn greet(&self, connection: &Connection, connected: &Reply<'_>) {
        self.shard(connection).table.lock().greet(connection, connected);
        connection.flush();
    }

    /// Waits until everything that was dispatched to the connection's shard before has been sent.
    pub async fn flush_barrier(&self, connection: &Connection) {
        let (passed, done) = oneshot::channel();
        self.shard(connection).inbox.push(Item::Flush(Some(passed))).await;
        // The shard's task lives as long as the hub.
        let _ = done.await;
    }

    /// Sets the positions that a stream's client has; `None` once it has been told of all of
    /// its channels.
    pub fn set_positions(&self, connection: &Connection, place: Option<&StreamPosition>) {
        self.shard(connection).table.lock().set_positions(connection.slot(), place);
    }

    /// The shards that have subscribers of a channel, as one bit each.
    fn route(&self, channel: &ChannelName) -> u64 {
        self.routes.get(channel.as_str()).map_or(0, |mask| *mask)
    }

    /// Requests the connection's timer for `tick`. This replaces an earlier request.
    pub fn schedule(&self, connection: &Connection, tick: u32) {
        // A repeated request must not add another entry.
        if connection.timer() == tick {
            return;
        }

        let mut wheel = self.shard(connection).wheel.lock();
        // A tick that has passed comes due with the next one, and the connection has to know which
        // one that is.
        let tick = wheel.insert(connection.id(), tick);
        connection.set_timer(tick);
    }

    fn shard(&self, connection: &Connection) -> &Shard {
        &self.shards[connection.shard() as usize]
    }

    #[must_use]
    pub fn get(&self, id: ConnId) -> Option<Arc<Connection>> {
        self.connections.get(&id).map(|c| Arc::clone(&c))
    }

    #[must_use]
    pub fn of_user(&self, user: &str) -> Vec<Arc<Connection>> {
        let ids = self.users.get(user).map(|ids| ids.clone()).unwrap_or_default();
        ids.into_iter().filter_map(|id| self.get(id)).collect()
    }

    /// The ids of all connections at this moment.
    #[must_use]
    pub fn ids(&self) -> Vec<ConnId> {
        self.connections.iter().map(|c| *c.key()).collect()
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.len(),
            users: self.users.len(),
            channels: self.routes.len(),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
        }
    }

    /// The channels of one connection, for debugging.
    #[must_use]
    pub fn channels_of(&self, connection: &Connection) -> Vec<ChannelName> {
        self.shard(connection).table.lock().channels_of(connection.slot())
    }

    /// How many ticks the slowest shard's timers, or the runtime of the deliveries, are behind: a
    /// measure of liveness.
    #[must_use]
    pub fn lag(&self) -> u32 {
        let now = self.now();
        let turns = self.shards.iter().map(|shard| &shard.ticked).chain([&self.beat]);
        turns.map(|at| now.saturating_sub(at.load(Ordering::Relaxed))).max().unwrap_or(0)
    }

    /// Returns memory after many connections have ended.
    pub fn shrink(&self) {
        shrink_shared(&self.connections);
        shrink_shared(&self.users);
        shrink_shared(&self.routes);
    }
}

/// The sizes of the registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub connections: usize,
    pub users: usize,
    pub channels: usize,
    pub subscriptions: usize,
}
