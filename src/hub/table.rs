//! A shard's channel table: which slot is subscribed to which channel.
//!
//! Pure: no sockets, no waiting. Invariant: a channel's list of subscribers and the slots' lists of
//! channels agree.

mod outage;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use slab::Slab;

use super::batch::Batch;
use super::connection::Connection;
use super::outage::{Outage, Silent};
use super::ranges::NONE;
use super::slot::Slot;
use crate::channel::{ChannelName, GapReason, Position, Publication};
use crate::metrics;
use crate::protocol::stream_position::StreamPosition;
use crate::protocol::{Push, Reply, Wire};
use crate::sizes::shrink;

/// Why a subscription was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    #[error("already subscribed")]
    Already,
    #[error("too many channels on this connection")]
    TooMany,
}

/// Of the events that a stream of many channels missed, one in this many has an id.
const EACH: usize = 50;

/// Most pushes that are held back for one subscription while its reply is on the way.
const MAX_HELD: usize = 1024;

/// A subscriber: its slot, whether its events are held back, and whether it is ahead, which means
/// that it has some events already that are still on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subscriber(u32);

const HELD: u32 = 1 << 31;
const AHEAD: u32 = 1 << 30;

impl Subscriber {
    fn slot(self) -> u32 {
        self.0 & !(HELD | AHEAD)
    }

    /// True if the subscriber is neither held back nor ahead, as nearly all are.
    fn is_simple(self) -> bool {
        self.0 & (HELD | AHEAD) == 0
    }

    fn is_held(self) -> bool {
        self.0 & HELD != 0
    }
}

/// The pushes that are held back for one subscription.
#[derive(Default)]
struct Held {
    pushes: Vec<Push>,
    overflowed: bool,
    /// True once the broker has confirmed the subscription.
    confirmed: bool,
}

impl Held {
    fn hold(&mut self, push: &Push) {
        if self.pushes.len() < MAX_HELD {
            self.pushes.push(push.clone());
        } else {
            self.overflowed = true;
        }
    }
}

/// True for a publication that a client at `after` has already.
fn is_old(push: &Push, after: &Position) -> bool {
    match push {
        Push::Publication(p) => p.position.as_ref().is_some_and(|p| after.has_reached(p)),
        Push::Gap(..) => false,
    }
}

#[derive(Default)]
pub(super) struct Table {
    slots: Slab<Slot>,
    channels: HashMap<ChannelName, Vec<Subscriber>, ahash::RandomState>,
    /// The pushes of subscriptions that are held back; nearly always empty.
    held: HashMap<(u32, ChannelName), Held, ahash::RandomState>,
    /// The position up to which each subscription that is ahead has everything.
    ahead: HashMap<(u32, ChannelName), Position, ahash::RandomState>,
    /// What is silent now, for connections that are greeted meanwhile.
    outage: Option<Arc<Outage>>,
    /// The slots that were told of it, and what each was told.
    told: HashMap<u32, Silent, ahash::RandomState>,
}

impl Table {
    pub(super) fn insert(&mut self, connection: Arc<Connection>) -> u32 {
        u32::try_from(self.slots.insert(Slot::new(connection))).unwrap_or(AHEAD - 1)
    }

    /// Removes a slot. Returns its channels, and those of them that have no subscriber
    /// here any more.
    pub(super) fn remove(&mut self, slot: u32) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let Some(gone) = self.slots.try_remove(slot as usize) else {
            return (Vec::new(), Vec::new());
        };
        if self.slots.is_empty() {
            self.slots = Slab::new();
        }

        self.told.remove(&slot);

        let mut emptied = Vec::new();
        for channel in &gone.channels {
            if self.remove_subscriber(slot, channel) {
                emptied.push(channel.clone());
            }
        }
        (gone.channels, emptied)
    }

    /// Adds a held-back subscription. Returns true if it is the channel's first one here.
    pub(super) fn subscribe(
        &mut self,
        slot: u32,
        channel: &ChannelName,
        max: usize,
    ) -> Result<bool, SubscribeError> {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Err(SubscribeError::TooMany);
        };
        if entry.channels.contains(channel) {
            return Err(SubscribeError::Already);
        }
        if entry.channels.len() >= max {
            return Err(SubscribeError::TooMany);
        }

        // A name is allocated only once: every list shares the table's own.
        let name = match self.channels.get_key_value(channel) {
            Some((name, _)) => name.clone(),
            None => channel.clone(),
        };

        entry.channels.reserve_exact(1);
        entry.channels.push(name.clone());
        let subscribers = self.channels.entry(name.clone()).or_default();
        let first = subscribers.is_empty();
        if first {
            subscribers.reserve_exact(1);
        }

        subscribers.push(Subscriber(slot | HELD));
        self.held.insert((slot, name), Held::default());
        Ok(first)
    }

    /// Marks a subscription as confirmed; see [`super::Hub::mark_confirmed`].
    pub(super) fn mark_confirmed(&mut self, slot: u32, channel: &ChannelName) {
        if let Some(held) = self.held.get_mut(&(slot, channel.clone())) {
            held.confirmed = true;
        }
    }

    /// Lets events through, beginning with the missed events and those that were held back.
    pub(super) fn activate(
        &mut self,
        connection: &Connection,
        channel: &ChannelName,
        replies: &[Reply<'_>],
        begin: &Activation<'_>,
    ) {
        let index = connection.slot();
        let Some(slot) = self.slots.get_mut(index as usize) else { return };

        if let Some(positions) = &mut slot.positions {
            positions.moves(channel, begin.position);
        }

        for reply in replies {
            let mut frame = BytesMut::new();
            // The position is in the same frame as the reply: a client that comes back then has
            // both a gap and the position behind it, or neither.
            if matches!(reply, Reply::Subscribed { .. })
                && let Some(positions) = &slot.positions
            {
                positions.encode(&mut frame);
            }
            frame.extend_from_slice(&slot.wire.frame(reply));
            connection.enqueue(frame.freeze());
        }

        let Some(held) = self.held.remove(&(index, channel.clone())) else { return };
        shrink(&mut self.held);

        let flag = if begin.after.is_some() { AHEAD } else { 0 };
        if let Some(subscribers) = self.channels.get_mut(channel)
            && let Some(s) = subscribers.iter_mut().find(|s| s.0 == index | HELD)
        {
            s.0 = index | flag;
        }
        if let Some(after) = begin.after {
            self.ahead.insert((index, channel.clone()), after.clone());
        }

        let gap = held.overflowed.then(|| Push::Gap(channel.clone(), GapReason::Overflow));
        let missed = begin.publications.iter().cloned().map(Push::Publication);
        let new = |push: &Push| begin.after.is_none_or(|after| !is_old(push, after));

        // Many events follow each other here, and an id of many channels on each of them would be
        // larger than the events.
        let last = begin.publications.len().saturating_sub(1);
        let mut sent = 0;
        for (n, push) in missed.chain(held.pushes.into_iter().filter(new)).chain(gap).enumerate() {
            let mut frame = BytesMut::new();
            if let Push::Publication(publication) = &push
                && let Some(positions) = slot.advance_position(publication)
                && (positions.is_small() || n % EACH == 0 || n >= last)
            {
                positions.encode(&mut frame);
            }
            push.encode(slot.wire, &mut frame);
            connection.enqueue(frame.freeze());
            sent = n + 1;
        }

        metrics::delivered(slot.wire, sent);
        self.tell_one(connection);
    }

    /// Ends a subscription. Returns `None` if the slot did not have the channel, otherwise whether
    /// the channel has no subscriber here any more.
    pub(super) fn unsubscribe(&mut self, slot: u32, channel: &ChannelName) -> Option<bool> {
        let entry = self.slots.get_mut(slot as usize)?;
        let at = entry.channels.iter().position(|c| c == channel)?;
        entry.channels.swap_remove(at);
        if let Some(positions) = &mut entry.positions {
            positions.leaves(channel);
        }
        Some(self.remove_subscriber(slot, channel))
    }

    /// Removes a subscriber from a channel. Returns true if it was the channel's last one here.
    fn remove_subscriber(&mut self, slot: u32, channel: &ChannelName) -> bool {
        if !self.held.is_empty() {
            self.held.remove(&(slot, channel.clone()));
        }
        if !self.ahead.is_empty() {
            self.ahead.remove(&(slot, channel.clone()));
        }

        let Some(subscribers) = self.channels.get_mut(channel) else {
            return false;
        };

        if let Some(at) = subscribers.iter().position(|s| s.slot() == slot) {
            subscribers.swap_remove(at);
        }

        if subscribers.is_empty() {
            self.channels.remove(channel);
            shrink(&mut self.channels);
            return true;
        }

        false
    }

    pub(super) fn channels_of(&self, slot: u32) -> Vec<ChannelName> {
        self.slots.get(slot as usize).map(|s| s.channels.clone()).unwrap_or_default()
    }

    /// Sets the positions that a stream's client has; `None` once it has been told of all of
    /// its channels.
    pub(super) fn set_positions(&mut self, slot: u32, place: Option<&StreamPosition>) {
        let slot = self.slots.get_mut(slot as usize);
        if let Some(positions) = slot.and_then(|slot| slot.positions.as_mut()) {
            match place {
                Some(place) => positions.begin(place),
                None => positions.settle(),
            }
        }
    }

    /// Drops what was held back for the channel's unconfirmed subscriptions.
    pub(super) fn pass_barrier(&mut self, channel: &ChannelName) {
        let subscribers = self.channels.get(channel).into_iter().flatten();
        for subscriber in subscribers.filter(|s| s.is_held()) {
            if let Some(held) = self.held.get_mut(&(subscriber.slot(), channel.clone()))
                && !held.confirmed
            {
                *held = Held::default();
            }
        }
    }

    /// Puts one push on the lists of all its subscribers, encoded once per wire that occurs.
    pub(super) fn append(&mut self, push: &Push, batch: &mut Batch) {
        let Some(subscribers) = self.channels.get_mut(push.channel()) else {
            return;
        };

        let mut ranges = [None; Wire::COUNT];
        for subscriber in subscribers {
            let index = subscriber.slot();
            if !subscriber.is_simple() {
                let key = (index, push.channel().clone());
                if subscriber.is_held() {
                    if let Some(held) = self.held.get_mut(&key) {
                        held.hold(push);
                    }
                    continue;
                }
                if self.ahead.get(&key).is_some_and(|after| is_old(push, after)) {
                    continue;
                }
                // Plain publications have no position, so the next durable one decides.
                if matches!(push, Push::Publication(p) if p.position.is_some()) {
                    self.ahead.remove(&key);
                    *subscriber = Subscriber(index);
                }
            }

            let Some(slot) = self.slots.get_mut(index as usize) else {
                continue;
            };

            if let Push::Publication(publication) = push
                && let wire = slot.wire
                && let Some(positions) = slot.advance_position(publication)
            {
                let range = batch.encode(wire, |out| positions.encode(out));
                batch.append(index, slot, range, 0);
            }

            let wire = slot.wire;
            let range = *ranges[wire as usize]
                .get_or_insert_with(|| batch.encode(wire, |out| push.encode(wire, out)));
            batch.append(index, slot, range, 1);
        }
    }

    /// Takes the connection of a slot and the head of its list, which is cleared for
    /// the next batch.
    pub(super) fn take_list(&mut self, index: u32) -> Option<(Arc<Connection>, u32)> {
        let slot = self.slots.get_mut(index as usize)?;
        let head = std::mem::replace(&mut slot.head, NONE);
        slot.tail = NONE;
        (head != NONE).then(|| (Arc::clone(&slot.connection), head))
    }
}

/// What a subscription begins with: its position, the missed events, and the position up to which
/// the client then has everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activation<'b> {
    pub position: Option<&'b Position>,
    pub publications: &'b [Publication],
    pub after: Option<&'b Position>,
}
