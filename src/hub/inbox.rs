//! A shard's inbox: items wait here until the fan-out takes all of them at once.
//!
//! Invariant: the inbox is bounded; a push waits while it is full.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::outage::Outage;
use crate::channel::ChannelName;
use crate::protocol::Push;

/// Above either bound the pump waits; the broker's queue bounds what then accumulates behind it.
const MAX_ITEMS: usize = 8192;
const MAX_BYTES: usize = 16 << 20;

/// An item that a shard is given.
pub(super) enum Item {
    Push(Push),
    Barrier(ChannelName, Arc<Barrier>),
    /// What is silent now; `None` if nothing is.
    Outage(Option<Arc<Outage>>),
    /// Answered once everything before it has been sent.
    Flush(Option<oneshot::Sender<()>>),
}

/// A barrier that follows everything dispatched so far through each shard of a channel. `done` is
/// called once it has passed the last one.
pub(super) struct Barrier {
    left: AtomicU32,
    done: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Barrier {
    pub(super) fn new(shards: u32, done: Box<dyn FnOnce() + Send>) -> Arc<Self> {
        Arc::new(Self { left: AtomicU32::new(shards), done: Mutex::new(Some(done)) })
    }

    pub(super) fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(done) = self.done.lock().take()
        {
            done();
        }
    }
}

/// The items that wait, and the size of their payloads.
#[derive(Default)]
struct State {
    items: Vec<Item>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

fn size(item: &Item) -> usize {
    match item {
        Item::Push(Push::Publication(p)) => p.payload.len(),
        Item::Push(Push::Gap(..)) | Item::Barrier(..) | Item::Outage(_) | Item::Flush(_) => 0,
    }
}

impl Inbox {
    /// Adds one item; waits while the inbox is full.
    pub(super) async fn push(&self, item: Item) {
        loop {
            // The waiter registers before it checks the room, so that it cannot miss a drain right
            // after the check.
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();

            {
                let mut state = self.state.lock();
                if state.items.len() < MAX_ITEMS && state.bytes < MAX_BYTES {
                    state.bytes += size(&item);
                    state.items.push(item);
                    if state.items.len() == 1 {
                        self.filled.notify_one();
                    }
                    return;
                }
            }

            emptied.await;
        }
    }

    /// Waits for items and takes all of them. `spare` becomes the buffer for the next ones.
    pub(super) async fn drain(&self, mut spare: Vec<Item>) -> Vec<Item> {
        spare.clear();
        loop {
            {
                let mut state = self.state.lock();
                if !state.items.is_empty() {
                    mem::swap(&mut state.items, &mut spare);
                    state.bytes = 0;
                    self.emptied.notify_waiters();
                    return spare;
                }
            }

            self.filled.notified().await;
        }
    }
}
