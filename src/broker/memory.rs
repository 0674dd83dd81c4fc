//! The broker within one process: the default without Redis. Same contract, no network.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Broker, BrokerFuture, Confirmation, Event, Events, Health, Store, StoreFuture};
use crate::channel::{ChannelName, Publication};

pub struct MemoryBroker {
    /// Held while an event is queued, so that a channel's events have one order for everyone.
    subscribed: Mutex<HashSet<ChannelName, ahash::RandomState>>,
    events: Arc<Events>,
}

impl MemoryBroker {
    #[must_use]
    pub fn new(events: Arc<Events>) -> Self {
        Self { subscribed: Mutex::default(), events }
    }
}

/// One process: what it remembers is in its tables already, and nobody else writes.
impl Store for MemoryBroker {
    fn remember(&self, _: Bytes, _: u64) -> StoreFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn recall(&self, _: u64) -> StoreFuture<'_, Vec<Bytes>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn read(&self, _: &str) -> StoreFuture<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl Broker for MemoryBroker {
    fn subscribe(&self, channel: &ChannelName, confirmation: Confirmation) {
        let mut subscribed = self.subscribed.lock();
        subscribed.insert(channel.clone());
        self.events.push(Event::Subscribed(channel.clone(), confirmation));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.subscribed.lock().remove(channel);
    }

    fn publish(&self, channel: &ChannelName, payload: Bytes) -> BrokerFuture<'_> {
        let subscribed = self.subscribed.lock();
        if let Some(name) = subscribed.get(channel) {
            let channel = name.clone();
            self.events.push(Event::Publication(Publication { channel, payload, position: None }));
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn control(&self, message: Bytes) -> BrokerFuture<'_, usize> {
        self.events.push(Event::Control(message));
        Box::pin(std::future::ready(Ok(1)))
    }

    fn is_up(&self) -> bool {
        true
    }

    fn health(&self) -> Health {
        Health { kind: "memory", ready: true, subscriber: true, publisher: true, last_error: None }
    }
}
