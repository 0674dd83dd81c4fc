//! One subscribing connection to one master. Its reader only passes messages on to [`Events`]. The
//! wanted channels are kept in a table (`subscription_table`), and after every kind of loss the
//! same happens: connect again, subscribe to everything, read the positions of the histories, tell
//! what was interrupted.
//!
//! Not here: which connection has which channel (`routes`). Invariant: the reader never waits.
//!
//! [`Events`]: crate::broker::Events

mod operate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::FutureExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep};

use super::canary::{self, Canary};
use super::commands::Commands;
use super::connect::MasterConnection;
use super::core::{Core, Role};
use super::durable;
use super::fault::{self, Fault};
use super::fencing;
use super::hearing::Hearing;
use super::subscription_table::{Subscription, SubscriptionTable};
use super::tap::{OnPush, PushMessage};
use super::watch::{self, Backoff};
use crate::broker::{Confirmation, Event, SilentPart, Tracking};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::metrics::{self, Rejected};
use crate::redis_url::Server;

/// Selects the channels that a declaration concerns, by name and by how closely their history
/// is followed.
pub(super) type ChannelFilter<'a> = &'a dyn Fn(&ChannelName, Tracking) -> bool;

/// The time between two attempts to subscribe to the channel of a canary that Redis refuses.
const ASK_CANARY_AGAIN: Duration = Duration::from_secs(5);

/// The longest message between replicas, in bytes.
const MAX_CONTROL: usize = 16 * 1024;

/// One subscribing connection, and what it is to have.
pub(super) struct SubscribingConnection {
    core: Arc<Core>,
    /// The canary is published through these.
    commands: Arc<Commands>,
    pub(super) server: Server,
    /// The index of this connection among those to the same server.
    pub(super) index: usize,
    table: Mutex<SubscriptionTable>,
    changed: Notify,
    /// Notified when positions are to be read again.
    renew: Notify,
    disconnected: Notify,
    stopped: AtomicBool,
    stop: Notify,
    up: AtomicBool,
    pub(super) hearing: Hearing,
    /// Says whose messages count: an abandoned connection may still yield some.
    generation: AtomicU64,
    pub(super) canary: Canary,
}

impl SubscribingConnection {
    /// `silent`: for how long the channels that this connection takes over have been silent.
    pub(super) fn new(
        commands: Arc<Commands>,
        server: Server,
        index: usize,
        silent: Option<SilentPart>,
    ) -> Self {
        let core = Arc::clone(&commands.core);
        let canary = Canary::new(&core, &server, index);

        Self {
            core,
            commands,
            server,
            index,
            table: Mutex::default(),
            changed: Notify::new(),
            renew: Notify::new(),
            disconnected: Notify::new(),
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
            up: AtomicBool::new(false),
            hearing: Hearing::new(silent),
            generation: AtomicU64::new(0),
            canary,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// `None` while publications can arrive here on all wanted channels.
    pub(super) fn silent(&self) -> Option<SilentPart> {
        let behind = self.table.lock().is_behind();
        self.hearing.silent(behind)
    }

    /// True while the channel's publications arrive here.
    pub(super) fn is_live(&self, channel: &ChannelName) -> bool {
        self.is_up() && self.table.lock().channels.get(channel).is_some_and(|want| want.live)
    }

    /// Ends the task. Its channels have been moved to other connections.
    pub(super) fn stop(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.stopped.store(true, Ordering::Release);
        self.stop.notify_one();
    }

    pub(super) fn subscribe(
        &self,
        channel: &ChannelName,
        tracking: Tracking,
        confirmation: Option<Confirmation>,
    ) {
        let mut table = self.table.lock();
        table.channels.entry(channel.clone()).or_default().add(tracking, confirmation);
        table.ask(channel);
        drop(table);
        self.changed.notify_one();
    }

    pub(super) fn unsubscribe(&self, channel: &ChannelName) {
        self.table.lock().give_up(channel);
        self.changed.notify_one();
    }

    /// Removes and returns the channels that belong to another connection now.
    pub(super) fn take_misplaced(
        &self,
        belongs: impl Fn(&ChannelName) -> bool,
    ) -> Vec<(ChannelName, Subscription)> {
        let mut table = self.table.lock();
        let moving: Vec<_> = table.channels.keys().filter(|c| !belongs(c)).cloned().collect();
        let mut taken = Vec::with_capacity(moving.len());
        for channel in moving {
            if let Some(mut want) = table.give_up(&channel) {
                want.interrupt();
                taken.push((channel, want));
            }
        }
        drop(table);
        self.changed.notify_one();
        taken
    }

    /// Takes in a channel of another connection. `silent`: since when that one has been silent.
    pub(super) fn adopt(
        &self,
        channel: &ChannelName,
        want: Subscription,
        silent: Option<SilentPart>,
    ) {
        if let Some(silent) = silent.filter(|_| want.is_behind()) {
            self.hearing.takes_over(silent);
        }

        let mut table = self.table.lock();
        table.take_in(channel, want);
        drop(table);
        self.changed.notify_one();
    }

    /// Declares a loss on these channels that no history can fill. On a channel that is not live
    /// now it is declared when the channel is live again.
    pub(super) fn declare_lost(&self, concerns: ChannelFilter<'_>) {
        let mut table = self.table.lock();
        for (channel, want) in table.channels.iter_mut().filter(|(c, w)| concerns(c, w.tracking)) {
            if want.live {
                let reason = GapReason::HistoryLost;
                self.core.events.push(Event::Interrupted(channel.clone(), reason, None));
            } else {
                want.lost |= want.gap_due;
            }
        }
    }

    /// Has the positions of the followed histories read, which begins a new epoch for those from
    /// before the fence.
    pub(super) fn renew(&self) {
        self.renew.notify_one();
    }

    /// The reader's callback. It runs for every message and must not wait.
    fn on_push(&self, generation: u64, push: PushMessage<'_>) {
        if self.generation.load(Ordering::Acquire) != generation {
            return;
        }

        match push {
            PushMessage::Message { channel, payload } => {
                self.on_message(channel, payload, payload.len())
            }
            PushMessage::TooLarge { channel, begin, len } => self.on_message(channel, begin, len),
            PushMessage::Disconnected => self.disconnected.notify_one(),
            PushMessage::Subscribed(name) => self.on_subscribed(generation, name),
            PushMessage::Unsubscribed(name) => {
                let name = self.core.strip(name);
                name.map(|name| self.table.lock().ended_unasked(name));
            }
            PushMessage::ShardUnsubscribed(name) => self.on_unsubscribed(name),
        }
    }

    /// Handles a message. `payload` may be only the beginning of a message of `len` bytes.
    fn on_message(&self, name: &[u8], payload: &[u8], len: usize) {
        let Some(name) = self.core.strip(name) else { return };
        if self.canary.is(name) {
            return self.canary.arrived(payload);
        }

        let mut table = self.table.lock();
        let Some((channel, _)) = table.channels.get_key_value(name) else { return };
        let channel = channel.clone();

        let whole = payload.len() == len;
        let (payload, of) = durable::take_apart(payload);
        let mut waits = false;
        if let Some(want) = table.channels.get_mut(name) {
            let tracked = if of.position.is_some() { Tracking::Follow } else { Tracking::Off };
            want.tracking = want.tracking.max(tracked);
            waits = want.waits();
        }
        drop(table);

        let cut = (!whole || len > self.core.max_bytes()).then_some(len);
        // The payload is copied, so that keeping it does not keep everything that was read with it.
        let payload = if cut.is_some() { Bytes::new() } else { Bytes::copy_from_slice(payload) };

        let event = if channel.is_control() {
            if len > MAX_CONTROL {
                metrics::rejected(Rejected::PublicationSize);
                return;
            }
            Event::Control(payload)
        } else {
            let durable::Head { position, published } = of;
            let publication = Publication { channel, payload, cut, position, published };
            // The wait may have ended meanwhile, so it is checked again, under the lock.
            let passes =
                if waits { self.table.lock().hold(publication) } else { Some(publication) };
            let Some(publication) = passes else { return };
            Event::Publication(publication)
        };

        self.core.events.push(event);
    }

    /// Handles the confirmation of a subscription.
    fn on_subscribed(&self, generation: u64, name: &[u8]) {
        let Some(name) = self.core.strip(name) else { return };
        let mut table = self.table.lock();
        // The generation is checked again under the lock: what an abandoned connection confirmed
        // is not live.
        if self.generation.load(Ordering::Acquire) == generation {
            table.on_confirmed(name).into_iter().flatten().for_each(|e| self.core.events.push(e));
        }
    }

    /// Handles the end of a sharded subscription. Redis sends it unasked when the slot has moved to
    /// another server. The library mistakes it for the answer to a pending command, so the
    /// connection is of no use any more.
    fn on_unsubscribed(&self, name: &[u8]) {
        let Some(name) = self.core.strip(name) else { return };
        if self.canary.is(name) || self.table.lock().ended_unasked(name) {
            self.core.directory.doubt();
            self.disconnected.notify_one();
        }
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
        self.core.state_changed();
    }

    /// Runs until the connection fails or a canary is missed, and returns the reason. A canary that
    /// is refused is asked for again, since permissions may be restored.
    async fn watch_canary(&self, master: &MasterConnection, mut hears: bool) -> String {
        let name = [self.canary.channel().to_owned()];
        while !hears && !self.canary.is_none() {
            sleep(ASK_CANARY_AGAIN).await;
            hears = match self.command(master, true, &name).await {
                Ok(()) => true,
                Err(e) if Fault::of(&e).is_an_answer() && !fault::is_moved(&e) => false,
                Err(e) => return fault::describe(&e),
            };
        }
        canary::watch(&self.canary, &self.hearing, &self.commands, &self.server).await
    }

    /// Serves one connection to its end. Returns why it ended.
    async fn serve(&self, master: &MasterConnection) -> String {
        let name = [self.canary.channel().to_owned()];
        let mut hears_canary = !self.canary.is_none();

        if hears_canary && let Err(e) = self.command(master, true, &name).await {
            if !Fault::of(&e).is_an_answer() || fault::is_moved(&e) {
                return format!("cannot subscribe to the canary: {}", fault::describe(&e));
            }
            // The connection delivers what it can. Its state shows that no canary vouches for it.
            hears_canary = false;
            self.canary.is_refused();
            let what = "Redis refuses the canary: allow its channel";
            self.core.failed(Role::Subscriber, &self.server, what, &e);
        }

        self.table.lock().begin();
        self.hearing.connected();

        if !hears_canary {
            self.hearing.trusted();
        }
        self.set_up(true);

        let error = tokio::select! {
            error = watch::ping_until_lost(master.connection.clone(), &self.core.settings) => error,
            error = self.operate(master) => error,
            () = self.disconnected.notified() => "connection closed".to_owned(),
            error = self.watch_canary(master, hears_canary) => error,
            error = watch::watch_replication_id(master.clone()) => error,
            error = watch::watch_address(&self.core, &self.server, Arc::clone(&master.replication_id)) => error,
            error = self.keep_histories(master) => error,
            () = self.stop.notified() => "stopped".to_owned(),
            never = self.ask_again() => match never {},
        };

        self.generation.fetch_add(1, Ordering::AcqRel);
        self.table.lock().end();
        self.hearing.lost();
        self.set_up(false);
        error
    }
}

/// Keeps the subscribing connection up until it is stopped.
pub(super) async fn run(subscriber: Arc<SubscribingConnection>) {
    let core = Arc::clone(&subscriber.core);
    let server = &subscriber.server;
    let mut backoff = Backoff::new(&core.settings);

    while !subscriber.stopped.load(Ordering::Acquire) {
        let generation = subscriber.generation.fetch_add(1, Ordering::AcqRel) + 1;
        let on_push: OnPush = {
            let subscriber = Arc::clone(&subscriber);
            Arc::new(move |push| subscriber.on_push(generation, push))
        };

        let began = Instant::now();
        match fencing::open(&core, server, Some(on_push)).await {
            Ok(master) => {
                // A notification that is left over comes from an earlier connection or a
                // failed attempt.
                let _ = subscriber.disconnected.notified().now_or_never();
                watch::log_connected(Role::Subscriber, server);
                let error = subscriber.serve(&master).await;
                if subscriber.stopped.load(Ordering::Acquire) {
                    return;
                }
                core.note(Role::Subscriber, server, "connection to Redis lost", &error);
                metrics::redis_reconnect();
            }
            Err(e) => {
                core.failed(Role::Subscriber, server, "cannot connect to Redis", &e);
            }
        }

        core.directory.doubt();

        // A connection that is made and lost immediately must not become a hot loop.
        if began.elapsed() > core.settings.reconnect_max {
            backoff = Backoff::new(&core.settings);
        }

        tokio::select! {
            () = backoff.wait() => {}
            () = subscriber.stop.notified() => return,
        }
    }
}
