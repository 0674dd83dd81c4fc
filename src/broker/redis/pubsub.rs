//! The subscribing connection: its reader only drains into [`Events`]; what is wanted is kept in a
//! table, and after a reconnect everything in it is subscribed again.
//!
//! Invariant: a channel that had been confirmed and whose connection was lost gets its `Gap` when,
//! and not before, it is confirmed again, and before anything published after that.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{FutureExt as _, join_all};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connect::{self, Connector, OnPush};
use super::{Role, Shared};
use crate::broker::{BrokerError, Confirmation, Event, Events};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::metrics;

/// Channels in one SUBSCRIBE.
const PER_COMMAND: usize = 512;
/// SUBSCRIBE commands on their way at once.
const IN_FLIGHT: usize = 8;
/// Between two attempts at a channel that Redis refuses.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A channel that the gateway wants.
#[derive(Default)]
struct Want {
    confirmation: Option<Confirmation>,
    /// Confirmed on the current connection.
    live: bool,
    /// It was live before the connection was lost.
    gap_due: bool,
}

enum Op {
    Subscribe(ChannelName),
    Unsubscribe(ChannelName),
}

#[derive(Default)]
struct Wanted {
    channels: HashMap<ChannelName, Want, ahash::RandomState>,
    ops: VecDeque<Op>,
    /// Subscriptions asked for on this connection and not yet confirmed, by channel. A channel that
    /// was given up and wanted again has two on the way, and only the last one's answer counts.
    unconfirmed: HashMap<ChannelName, u32, ahash::RandomState>,
    /// Channels that were live and that Redis now refuses: asked for again after a while.
    refused: Vec<ChannelName>,
    /// Without a connection no operations are queued: the next one subscribes to everything.
    connected: bool,
}

impl Wanted {
    /// Redis answered one subscription to this channel: was it the last one on the way?
    fn answered(&mut self, name: &str) -> bool {
        let Some(left) = self.unconfirmed.get_mut(name) else {
            return true;
        };
        *left -= 1;
        if *left > 0 {
            return false;
        }
        self.unconfirmed.remove(name);
        true
    }
}

pub(super) struct Subscriber {
    shared: Arc<Shared>,
    events: Arc<Events>,
    wanted: Mutex<Wanted>,
    changed: Notify,
    disconnected: Notify,
    /// Which connection's messages count: an abandoned one may still yield some.
    generation: AtomicU64,
    control: String,
}

impl Subscriber {
    pub(super) fn new(shared: Arc<Shared>, events: Arc<Events>) -> Self {
        Self {
            control: format!("{}control", shared.settings.prefix),
            shared,
            events,
            wanted: Mutex::default(),
            changed: Notify::new(),
            disconnected: Notify::new(),
            generation: AtomicU64::new(0),
        }
    }

    pub(super) fn subscribe(&self, channel: &ChannelName, confirmation: Confirmation) {
        let mut wanted = self.wanted.lock();
        // A channel that is wanted already keeps what is known of it: a gap may be due.
        wanted.channels.entry(channel.clone()).or_default().confirmation = Some(confirmation);
        if wanted.connected {
            wanted.ops.push_back(Op::Subscribe(channel.clone()));
            *wanted.unconfirmed.entry(channel.clone()).or_default() += 1;
            drop(wanted);
            self.changed.notify_one();
        }
    }

    pub(super) fn unsubscribe(&self, channel: &ChannelName) {
        let mut wanted = self.wanted.lock();
        if wanted.channels.remove(channel).is_some() && wanted.connected {
            wanted.ops.push_back(Op::Unsubscribe(channel.clone()));
            drop(wanted);
            self.changed.notify_one();
        }
    }

    /// The reader's callback; runs for every message and must not wait.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library's open set")]
    fn on_push(&self, generation: u64, info: PushInfo) {
        if self.generation.load(Ordering::Acquire) != generation {
            return;
        }
        match info.kind {
            PushKind::Message => self.on_message(info.data),
            PushKind::Subscribe => {
                if let Some(Value::BulkString(name)) = info.data.first() {
                    self.on_subscribed(generation, name);
                }
            }
            PushKind::Disconnection => self.disconnected.notify_one(),
            _ => {}
        }
    }

    fn on_message(&self, data: Vec<Value>) {
        let mut data = data.into_iter();
        let (Some(Value::BulkString(name)), Some(Value::BulkString(payload))) =
            (data.next(), data.next())
        else {
            return;
        };
        let payload = Bytes::from(payload);
        if let Some(name) = self.strip(&name) {
            let channel = self.wanted.lock().channels.get_key_value(name).map(|(c, _)| c.clone());
            if let Some(channel) = channel {
                let publication = Publication { channel, payload, position: None };
                self.events.push(Event::Publication(publication));
            }
        } else if name == self.control.as_bytes() {
            self.events.push(Event::Control(payload));
        }
    }

    fn on_subscribed(&self, generation: u64, name: &[u8]) {
        let Some(name) = self.strip(name) else { return };
        let mut wanted = self.wanted.lock();
        // Asked again under the lock: what an abandoned connection confirmed is not live.
        if self.generation.load(Ordering::Acquire) != generation || !wanted.answered(name) {
            return;
        }
        let Some((channel, _)) = wanted.channels.get_key_value(name) else {
            return;
        };
        let channel = channel.clone();
        let Some(want) = wanted.channels.get_mut(name) else {
            return;
        };
        want.live = true;
        if std::mem::take(&mut want.gap_due) {
            self.events.push(Event::Gap(channel.clone(), GapReason::BrokerReconnected));
        }
        if let Some(confirmation) = want.confirmation.take() {
            self.events.push(Event::Subscribed(channel, confirmation));
        }
    }

    /// The channel's name without the prefix; `None` for control and for anything foreign.
    fn strip<'n>(&self, name: &'n [u8]) -> Option<&'n str> {
        if name == self.control.as_bytes() {
            return None;
        }
        let name = name.strip_prefix(self.shared.settings.prefix.as_bytes())?;
        std::str::from_utf8(name).ok()
    }

    /// A new connection: everything wanted is to be subscribed on it.
    fn connected(&self) {
        let mut wanted = self.wanted.lock();
        let Wanted { channels, ops, unconfirmed, refused, connected } = &mut *wanted;
        *connected = true;
        refused.clear();
        ops.clear();
        ops.extend(channels.keys().cloned().map(Op::Subscribe));
        unconfirmed.clear();
        unconfirmed.extend(channels.keys().map(|channel| (channel.clone(), 1)));
    }

    fn lost(&self) {
        let mut wanted = self.wanted.lock();
        self.generation.fetch_add(1, Ordering::AcqRel);
        wanted.connected = false;
        wanted.ops = VecDeque::new();
        wanted.unconfirmed = HashMap::default();
        for want in wanted.channels.values_mut() {
            want.gap_due |= std::mem::take(&mut want.live);
        }
    }

    /// The next operations of one kind, as Redis names: true for subscriptions.
    fn next_ops(&self) -> Option<(bool, Vec<String>)> {
        let mut wanted = self.wanted.lock();
        let subscribe = matches!(wanted.ops.front()?, Op::Subscribe(_));
        let mut names = Vec::new();
        while names.len() < PER_COMMAND * IN_FLIGHT {
            match wanted.ops.front() {
                Some(Op::Subscribe(channel)) if subscribe => names.push(self.name(channel)),
                Some(Op::Unsubscribe(channel)) if !subscribe => names.push(self.name(channel)),
                _ => break,
            }
            wanted.ops.pop_front();
        }
        Some((subscribe, names))
    }

    fn name(&self, channel: &ChannelName) -> String {
        format!("{}{channel}", self.shared.settings.prefix)
    }

    /// Carries out what was asked, in order, until an operation fails for the connection's sake.
    async fn operate(&self, connection: &MultiplexedConnection) -> String {
        loop {
            let Some((subscribe, names)) = self.next_ops() else {
                self.changed.notified().await;
                continue;
            };
            let commands = names.chunks(PER_COMMAND).map(|chunk| {
                let mut connection = connection.clone();
                async move {
                    if subscribe {
                        (chunk, connection.subscribe(chunk).await)
                    } else {
                        (chunk, connection.unsubscribe(chunk).await)
                    }
                }
            });
            for (chunk, result) in join_all(commands).await {
                match result {
                    Ok(()) => {}
                    Err(e) if subscribe && connect::classify(&e) == BrokerError::Refused => {
                        if let Err(e) = self.one_by_one(connection, chunk).await {
                            return connect::describe(&e);
                        }
                    }
                    Err(e) => return connect::describe(&e),
                }
            }
        }
    }

    /// Redis refuses a whole command for the sake of one channel (ACL): which one was it?
    async fn one_by_one(
        &self,
        connection: &MultiplexedConnection,
        names: &[String],
    ) -> Result<(), redis::RedisError> {
        for name in names {
            if let Err(e) = connection.clone().subscribe(name).await
                && !self.refuse(name, &e)
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// Answers the waiting subscribers of a channel that Redis refused. Where the channel was live
    /// before, its sockets are told that it is not, and it is asked for again after a while. False
    /// when the error was the connection's.
    fn refuse(&self, name: &str, error: &redis::RedisError) -> bool {
        if connect::classify(error) != BrokerError::Refused {
            return false;
        }
        self.shared.note(Role::Subscriber, "Redis refused SUBSCRIBE", &connect::describe(error));
        let Some(name) = self.strip(name.as_bytes()) else {
            return true;
        };
        let mut wanted = self.wanted.lock();
        if !wanted.answered(name) {
            return true;
        }
        let Wanted { channels, refused, .. } = &mut *wanted;
        let Some(want) = channels.get_mut(name) else {
            return true;
        };
        if let Some(confirmation) = want.confirmation.take() {
            confirmation.send_replace(Some(Err(BrokerError::Refused)));
        }
        want.gap_due |= std::mem::take(&mut want.live);
        if !want.gap_due {
            channels.remove(name);
            return true;
        }
        if let Some((channel, _)) = channels.get_key_value(name) {
            self.events.push(Event::Gap(channel.clone(), GapReason::BrokerRefused));
            refused.push(channel.clone());
        }
        true
    }

    /// Asks again for what was refused, now and then; never returns.
    async fn ask_again(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            let mut wanted = self.wanted.lock();
            let refused = std::mem::take(&mut wanted.refused);
            for channel in refused {
                if wanted.channels.contains_key(&channel) {
                    *wanted.unconfirmed.entry(channel.clone()).or_default() += 1;
                    wanted.ops.push_back(Op::Subscribe(channel));
                }
            }
            drop(wanted);
            self.changed.notify_one();
        }
    }
}

/// Keeps the subscribing connection, for ever.
pub(super) async fn run(subscriber: Arc<Subscriber>, mut connector: Connector) {
    let shared = Arc::clone(&subscriber.shared);
    loop {
        let mut on_push = || -> OnPush {
            let generation = subscriber.generation.fetch_add(1, Ordering::AcqRel) + 1;
            let subscriber = Arc::clone(&subscriber);
            Box::new(move |info| subscriber.on_push(generation, info))
        };
        let mut connection = connector.connect(&shared, Role::Subscriber, Some(&mut on_push)).await;
        let began = Instant::now();
        // A late word of a connection before, or of an attempt that failed: it no longer counts.
        let _ = subscriber.disconnected.notified().now_or_never();
        // Control first: a subscription must not be live on a replica that cannot be told to end it.
        if let Err(e) = connection.subscribe(&subscriber.control).await {
            shared.note(Role::Subscriber, "cannot subscribe to control", &connect::describe(&e));
            tokio::time::sleep(shared.settings.reconnect_max).await;
            continue;
        }
        subscriber.connected();
        shared.set_up(Role::Subscriber, true);
        let error = tokio::select! {
            error = connect::ping_until_lost(connection.clone(), &shared.settings) => error,
            error = subscriber.operate(&connection) => error,
            () = subscriber.disconnected.notified() => "connection closed".to_owned(),
            never = subscriber.ask_again() => match never {},
        };
        subscriber.lost();
        shared.set_up(Role::Subscriber, false);
        shared.note(Role::Subscriber, "connection to Redis lost", &error);
        metrics::redis_reconnect();
        // A connection that is made and lost at once must not become a hot loop.
        if began.elapsed() < shared.settings.reconnect_max {
            let most = shared.settings.reconnect_max.as_millis() as u64;
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=most.max(1)))).await;
        }
    }
}
