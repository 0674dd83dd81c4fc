//! A shard: what a part of the connections has in common. One fan-out task and one timer
//! task serve it.

use std::sync::atomic::AtomicU32;

use parking_lot::Mutex;

use super::inbox::Inbox;
use super::table::Table;
use super::wheel::Wheel;

/// A part of the connections, with its own table, inbox and wheel.
pub(super) struct Shard {
    pub(super) index: u32,
    pub(super) table: Mutex<Table>,
    pub(super) inbox: Inbox,
    pub(super) wheel: Mutex<Wheel>,
    /// The tick that the shard's timer task processed last, which is its heartbeat.
    pub(super) ticked: AtomicU32,
}

impl Shard {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            table: Mutex::default(),
            inbox: Inbox::default(),
            wheel: Mutex::default(),
            ticked: AtomicU32::new(0),
        }
    }
}
