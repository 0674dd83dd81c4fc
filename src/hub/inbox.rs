//! A shard's inbox: pushes wait here until the fan-out takes all of them at once.

use std::mem;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::protocol::Push;

/// Above either bound the pump waits; what then piles up behind it is the broker queue's to bound.
const MAX_PUSHES: usize = 8192;
const MAX_BYTES: usize = 16 << 20;

#[derive(Default)]
struct State {
    pushes: Vec<Push>,
    bytes: usize,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

fn size(push: &Push) -> usize {
    match push {
        Push::Publication(p) => p.payload.len(),
        Push::Gap(..) => 0,
    }
}

impl Inbox {
    /// Adds one push, waiting while the inbox is full. Only the pump calls this.
    pub(super) async fn push(&self, push: Push) {
        loop {
            {
                let mut state = self.state.lock();
                if state.pushes.len() < MAX_PUSHES && state.bytes < MAX_BYTES {
                    state.bytes += size(&push);
                    state.pushes.push(push);
                    if state.pushes.len() == 1 {
                        self.filled.notify_one();
                    }
                    return;
                }
            }
            // notify_one keeps a permit, so a take between the check and this wait is not missed.
            self.emptied.notified().await;
        }
    }

    /// Waits for pushes and takes them all; `spare` becomes the next batch's buffer.
    pub(super) async fn take(&self, mut spare: Vec<Push>) -> Vec<Push> {
        spare.clear();
        loop {
            {
                let mut state = self.state.lock();
                if !state.pushes.is_empty() {
                    mem::swap(&mut state.pushes, &mut spare);
                    state.bytes = 0;
                    self.emptied.notify_one();
                    return spare;
                }
            }
            self.filled.notified().await;
        }
    }
}
