//! The broker within one process, which is the default without Redis. It keeps the same contract,
//! including histories and epochs, without a network; a restart begins new epochs.
//!
//! Invariant: the memory of all histories together is bounded. Beyond the bound, the channel whose
//! history would end first loses it, and its next publication shows that as a new epoch.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Broker, BrokerError, BrokerFuture, Confirmation, Durable, Event, Events, Health, History,
    HistoryBounds, Published, Store, Subscribed, Tracking,
};
use crate::channel::{ChannelName, Position, Publication, Retention};
use crate::clock;

/// How long a channel's position outlives its publications.
const POSITION_TTL: Duration = Duration::from_secs(7 * 86_400);

/// How long the position of a channel without any publication is kept. It ends before all others,
/// so it is also the first to be forgotten if room is short.
const EMPTY_TTL: Duration = Duration::from_secs(3600);

/// How long an idempotency key is remembered.
const KEY_TTL: Duration = Duration::from_secs(300);

/// What the bound counts for one channel, and for one publication, beside its payload.
const OVERHEAD: usize = 256;

type Names<T> = HashMap<ChannelName, T, ahash::RandomState>;

/// A channel's history.
struct Stream {
    position: Position,
    publications: VecDeque<Bytes>,
    /// Until when the publications are kept.
    kept_until: Instant,
    /// Until when the position is kept.
    ends: Instant,
}

#[derive(Default)]
struct State {
    /// The channels whose confirmation has been queued.
    subscribed: Names<()>,
    streams: Names<Stream>,
    /// The streams, sorted by their end.
    ends: BTreeSet<(Instant, ChannelName)>,
    keys: HashMap<(ChannelName, String), Position, ahash::RandomState>,
    key_ends: VecDeque<(Instant, (ChannelName, String))>,
    bytes: usize,
    epochs: u64,
}

/// Keeps the histories, and queues what is published.
pub struct MemoryBroker {
    /// The lock is held while an event is queued, so that a channel's events have one order for
    /// all readers.
    state: Mutex<State>,
    events: Arc<Events>,
    max_bytes: usize,
    /// The part of an epoch's name that distinguishes this process from others.
    nonce: String,
}

impl MemoryBroker {
    /// Creates a broker whose histories hold at most `max_bytes` together.
    #[must_use]
    pub fn new(events: Arc<Events>, max_bytes: usize) -> Self {
        let nonce = format!("{:012x}", fastrand::u64(..) >> 16);
        Self { state: Mutex::default(), events, max_bytes, nonce }
    }
}

impl State {
    /// Returns the channel's history, and begins one with a new epoch if there is none.
    fn open(&mut self, channel: &ChannelName, nonce: &str) -> &mut Stream {
        if !self.streams.contains_key(channel) {
            self.epochs += 1;
            let epoch = format!("{nonce}{:x}", self.epochs);
            let now = Instant::now();
            let stream = Stream {
                position: Position { epoch: Arc::from(epoch), offset: 0 },
                publications: VecDeque::new(),
                kept_until: now,
                ends: now + EMPTY_TTL,
            };
            self.bytes += OVERHEAD + channel.as_str().len();
            self.ends.insert((stream.ends, channel.clone()));
            self.streams.insert(channel.clone(), stream);
        }
        self.streams.get_mut(channel).expect("it was just put there")
    }

    /// Forgets everything that is too old. Then it forgets empty histories, other histories and
    /// idempotency keys, in this order, until the rest fits; of each kind, those that end first.
    fn sweep(&mut self, now: Instant, max_bytes: usize) {
        while let Some((end, channel)) = self.ends.first()
            && *end <= now
        {
            let end = *end;
            let channel = channel.clone();

            // A history that is followed and has had no publication yet is kept.
            match self.streams.get_mut(&channel) {
                Some(stream) if self.subscribed.contains_key(&channel) => {
                    stream.ends = now + EMPTY_TTL;
                    self.ends.remove(&(end, channel.clone()));
                    self.ends.insert((now + EMPTY_TTL, channel));
                }
                _ => drop(self.forget_stream()),
            }
        }

        while self.key_ends.front().is_some_and(|(end, _)| *end <= now) {
            self.forget_key();
        }

        while self.bytes > max_bytes && (self.forget_stream() || self.forget_key()) {}
    }

    /// Forgets the history that ends first. Returns false if there is none.
    fn forget_stream(&mut self) -> bool {
        let Some((_, channel)) = self.ends.pop_first() else { return false };
        if let Some(mut gone) = self.streams.remove(&channel) {
            self.bytes -= OVERHEAD + channel.as_str().len() + drop_all(&mut gone.publications);
        }
        true
    }

    /// Forgets the oldest idempotency key. Returns false if there is none.
    fn forget_key(&mut self) -> bool {
        let Some((_, key)) = self.key_ends.pop_front() else { return false };
        self.bytes -= OVERHEAD + key.1.len();
        self.keys.remove(&key);
        true
    }

    fn append(
        &mut self,
        channel: &ChannelName,
        payload: Bytes,
        retention: Retention,
        nonce: &str,
    ) -> Position {
        let now = Instant::now();
        let size = OVERHEAD + payload.len();
        let stream = self.open(channel, nonce);
        let mut freed =
            if stream.kept_until <= now { drop_all(&mut stream.publications) } else { 0 };

        stream.position.offset += 1;
        stream.publications.push_back(payload);
        while stream.publications.len() > retention.size as usize {
            let old = stream.publications.pop_front();
            freed += OVERHEAD + old.map_or(0, |p| p.len());
        }

        stream.kept_until = now + retention.ttl;
        let old_end = std::mem::replace(&mut stream.ends, now + POSITION_TTL.max(retention.ttl));
        let end = stream.ends;
        let position = stream.position.clone();

        self.ends.remove(&(old_end, channel.clone()));
        self.ends.insert((end, channel.clone()));
        self.bytes = (self.bytes + size).saturating_sub(freed);

        position
    }
}

/// Empties a history. Returns how much of the bound that frees.
fn drop_all(publications: &mut VecDeque<Bytes>) -> usize {
    std::mem::take(publications).iter().map(|p| OVERHEAD + p.len()).sum()
}

/// The broker is one process: what it remembers is in its tables already, and no other process
/// writes there.
impl Store for MemoryBroker {
    fn remember(&self, _: Vec<(u64, Bytes)>) -> BrokerFuture<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn outlives(&self) -> bool {
        false
    }

    fn recall(&self, _: u64) -> BrokerFuture<'_, Option<Vec<Bytes>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn read(&self, _: &str) -> BrokerFuture<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl Broker for MemoryBroker {
    fn subscribe(&self, channel: &ChannelName, tracking: Tracking, confirmation: Confirmation) {
        let mut state = self.state.lock();
        state.sweep(Instant::now(), self.max_bytes);

        let position = match tracking {
            Tracking::Off => None,
            Tracking::Follow => state.streams.get(channel).map(|s| s.position.clone()),
            Tracking::Create | Tracking::CreateDurable => {
                Some(state.open(channel, &self.nonce).position.clone())
            }
        };

        let fresh = state.subscribed.insert(channel.clone(), ()).is_none();
        let subscribed = Subscribed { confirmations: vec![confirmation], position, fresh };
        self.events.push(Event::Subscribed(channel.clone(), subscribed));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.state.lock().subscribed.remove(channel);
    }

    fn publish(
        &self,
        channel: &ChannelName,
        payload: Bytes,
        durable: Option<Durable>,
    ) -> BrokerFuture<'_, Published> {
        let mut state = self.state.lock();
        state.sweep(Instant::now(), self.max_bytes);

        let position = durable.map(|durable| {
            let key = durable.idempotency_key.map(|key| (channel.clone(), key));
            if let Some(position) = key.as_ref().and_then(|key| state.keys.get(key)) {
                return (position.clone(), true);
            }

            let position = state.append(channel, payload.clone(), durable.retention, &self.nonce);
            if let Some(key) = key {
                state.bytes += OVERHEAD + key.1.len();
                state.key_ends.push_back((Instant::now() + KEY_TTL, key.clone()));
                state.keys.insert(key, position.clone());
            }
            (position, false)
        });

        let (position, repeated) = position.map_or((None, false), |(p, again)| (Some(p), again));
        let mut heard = if repeated { -1 } else { 0 };
        if !repeated && let Some((name, ())) = state.subscribed.get_key_value(channel) {
            heard = 1;
            let channel = name.clone();
            let position = position.clone();
            let published = Some(clock::unix_micros());
            self.events.push(Event::Publication(Publication {
                channel,
                payload,
                position,
                cut: None,
                published,
            }));
        }

        state.sweep(Instant::now(), self.max_bytes);
        Box::pin(std::future::ready(Ok(Published { position, heard: Some(heard) })))
    }

    fn history(
        &self,
        channel: &ChannelName,
        bounds: HistoryBounds,
    ) -> BrokerFuture<'_, Option<History>> {
        let state = self.state.lock();
        let history = state.streams.get(channel).map(|stream| {
            let top = stream.position.clone();
            let mut bytes = 0;
            let kept = (stream.kept_until > Instant::now()).then_some(&stream.publications);
            let newest = kept.into_iter().flat_map(|p| p.iter().rev()).take(bounds.messages);
            let fits = newest.take_while(|payload| {
                bytes += payload.len();
                bytes <= bounds.bytes
            });

            let mut publications: Vec<_> = (0..)
                .zip(fits)
                .map(|(back, payload)| Publication {
                    channel: channel.clone(),
                    payload: payload.clone(),
                    position: Some(Position { offset: top.offset - back, ..top.clone() }),
                    cut: None,
                    published: None,
                })
                .collect();

            publications.reverse();
            History { top, publications }
        });

        Box::pin(std::future::ready(Ok::<_, BrokerError>(history)))
    }

    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize> {
        self.events.push(Event::Control(message));
        Box::pin(std::future::ready(Ok(1)))
    }

    fn is_up(&self, _: &ChannelName) -> bool {
        true
    }

    fn health(&self) -> Health {
        Health {
            kind: "memory",
            ready: true,
            subscriber: true,
            publisher: true,
            writer: true,
            last_error: None,
        }
    }
}
