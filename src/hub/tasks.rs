//! The hub's tasks: the fan-out and the timers of the shards, and the heartbeat.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::{MissedTickBehavior, interval};

use super::shard::Shard;
use super::wheel::TICK;
use super::{Hub, fanout};
use crate::lifecycle;

impl Hub {
    /// Starts the fan-out of the shards on the current runtime.
    pub fn start_fanout(self: &Arc<Self>) {
        for shard in &self.shards {
            lifecycle::spawn("fanout", fanout::run(Arc::clone(shard)));
        }
        lifecycle::spawn("beat", beat(Arc::clone(self)));
    }

    /// Starts the timers of the shards on the current runtime, which is that of the connections.
    pub fn start_timers(self: &Arc<Self>) {
        for shard in &self.shards {
            lifecycle::spawn("wheel", drive_wheel(Arc::clone(self), Arc::clone(shard)));
        }
    }
}

/// Wakes the connections whose entries in the shard's wheel are due.
async fn drive_wheel(hub: Arc<Hub>, shard: Arc<Shard>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        ticks.tick().await;

        let now = hub.now();
        let due = shard.wheel.lock().take_due(now);
        for (i, (id, at)) in due.into_iter().enumerate() {
            if let Some(connection) = hub.get(id) {
                connection.fire_timer(at);
            }
            if i % 256 == 255 {
                tokio::task::yield_now().await;
            }
        }

        shard.ticked.store(now, Ordering::Relaxed);
    }
}

/// Notes that the runtime that this runs on, which is not that of the timers, has had a turn.
async fn beat(hub: Arc<Hub>) {
    let mut beats = interval(TICK);

    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        hub.beat.store(hub.now(), Ordering::Relaxed);
    }
}
