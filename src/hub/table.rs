//! A shard's channel table: which slot listens to which channel. Pure: no sockets, no waiting.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use slab::Slab;

use super::Connection;
use super::fanout::{Batch, NONE};
use crate::channel::{ChannelName, GapReason};
use crate::protocol::{Push, Wire};

/// Why a subscription was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    #[error("already subscribed")]
    Already,
    #[error("too many channels on this connection")]
    TooMany,
}

/// Most pushes held back for one subscription while its reply is on the way.
const MAX_HELD: usize = 1024;

pub(super) struct Slot {
    pub(super) connection: Arc<Connection>,
    pub(super) wire: Wire,
    /// The connection's list in the batch that is being put together.
    pub(super) head: u32,
    pub(super) tail: u32,
    channels: Vec<ChannelName>,
}

/// A subscriber: its slot, and whether its events are held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subscriber(u32);

const HELD: u32 = 1 << 31;

impl Subscriber {
    fn slot(self) -> u32 {
        self.0 & !HELD
    }

    fn is_held(self) -> bool {
        self.0 & HELD != 0
    }
}

#[derive(Default)]
struct Held {
    pushes: Vec<Push>,
    overflowed: bool,
}

#[derive(Default)]
pub(super) struct Table {
    slots: Slab<Slot>,
    channels: HashMap<ChannelName, Vec<Subscriber>, ahash::RandomState>,
    /// What came for subscriptions that are held back; empty nearly always.
    held: HashMap<(u32, ChannelName), Held, ahash::RandomState>,
}

impl Table {
    pub(super) fn insert(&mut self, connection: Arc<Connection>) -> u32 {
        let wire = connection.wire();
        let slot = Slot { connection, wire, head: NONE, tail: NONE, channels: Vec::new() };
        u32::try_from(self.slots.insert(slot)).unwrap_or(HELD - 1)
    }

    /// The channels that the slot had, and those of them that nobody here has any more.
    pub(super) fn remove(&mut self, slot: u32) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let Some(gone) = self.slots.try_remove(slot as usize) else {
            return (Vec::new(), Vec::new());
        };
        let mut emptied = Vec::new();
        for channel in &gone.channels {
            if self.remove_subscriber(slot, channel) {
                emptied.push(channel.clone());
            }
        }
        (gone.channels, emptied)
    }

    /// Adds a held-back subscription; true if it is the channel's first here.
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
        // One allocation per name: every list shares the table's own.
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

    /// Lets events through, beginning with those that were held back.
    pub(super) fn activate(&mut self, connection: &Connection, channel: &ChannelName) {
        let slot = connection.slot();
        let Some(held) = self.held.remove(&(slot, channel.clone())) else {
            return;
        };
        if let Some(subscribers) = self.channels.get_mut(channel)
            && let Some(s) = subscribers.iter_mut().find(|s| s.0 == slot | HELD)
        {
            s.0 = slot;
        }
        let gap = held.overflowed.then(|| Push::Gap(channel.clone(), GapReason::Overflow));
        for push in held.pushes.iter().chain(&gap) {
            let mut frame = BytesMut::new();
            push.encode(connection.wire(), &mut frame);
            connection.enqueue(frame.freeze());
        }
    }

    /// `None` if the slot did not have the channel; else whether nobody here has it any more.
    pub(super) fn unsubscribe(&mut self, slot: u32, channel: &ChannelName) -> Option<bool> {
        let entry = self.slots.get_mut(slot as usize)?;
        let at = entry.channels.iter().position(|c| c == channel)?;
        entry.channels.swap_remove(at);
        Some(self.remove_subscriber(slot, channel))
    }

    fn remove_subscriber(&mut self, slot: u32, channel: &ChannelName) -> bool {
        if !self.held.is_empty() {
            self.held.remove(&(slot, channel.clone()));
        }
        let Some(subscribers) = self.channels.get_mut(channel) else {
            return false;
        };
        if let Some(at) = subscribers.iter().position(|s| s.slot() == slot) {
            subscribers.swap_remove(at);
        }
        if subscribers.is_empty() {
            self.channels.remove(channel);
            return true;
        }
        false
    }

    pub(super) fn channels_of(&self, slot: u32) -> Vec<ChannelName> {
        self.slots.get(slot as usize).map(|s| s.channels.clone()).unwrap_or_default()
    }

    /// Drops what held-back subscriptions of the channel have collected.
    pub(super) fn mark(&mut self, channel: &ChannelName) {
        let subscribers = self.channels.get(channel).into_iter().flatten();
        for subscriber in subscribers.filter(|s| s.is_held()) {
            if let Some(held) = self.held.get_mut(&(subscriber.slot(), channel.clone())) {
                *held = Held::default();
            }
        }
    }

    /// Puts one push on the lists of all its subscribers, encoding it once per wire that occurs.
    pub(super) fn append(&mut self, push: &Push, batch: &mut Batch) {
        let Some(subscribers) = self.channels.get(push.channel()) else {
            return;
        };
        let mut ranges = [None; Wire::COUNT];
        for subscriber in subscribers {
            let index = subscriber.slot();
            if subscriber.is_held() {
                if let Some(held) = self.held.get_mut(&(index, push.channel().clone())) {
                    if held.pushes.len() < MAX_HELD {
                        held.pushes.push(push.clone());
                    } else {
                        held.overflowed = true;
                    }
                }
                continue;
            }
            let Some(slot) = self.slots.get_mut(index as usize) else {
                continue;
            };
            let range =
                *ranges[slot.wire as usize].get_or_insert_with(|| batch.encode(push, slot.wire));
            batch.append(index, slot, range);
        }
    }

    /// The connection of a slot and the head of its list, which is cleared for the next batch.
    pub(super) fn take_list(&mut self, index: u32) -> Option<(Arc<Connection>, u32)> {
        let slot = self.slots.get_mut(index as usize)?;
        let head = std::mem::replace(&mut slot.head, NONE);
        slot.tail = NONE;
        (head != NONE).then(|| (Arc::clone(&slot.connection), head))
    }
}
