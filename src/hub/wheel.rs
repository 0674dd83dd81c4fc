//! One timing wheel per shard: the pings, deadlines and token ends of all its connections cost one
//! interval timer.
//!
//! Not here: what is due (`session::timers`). A due entry only wakes its connection, whose session
//! decides what to do.

use std::time::Duration;

use super::queue_bounds::ConnId;

/// The wheel's resolution.
pub const TICK: Duration = Duration::from_millis(250);
pub const TICKS_PER_SECOND: u32 = 4;

/// The number of slots, which reach 128 s ahead; later entries go round again.
const SLOTS: u32 = 512;

/// The entries that are to come due, by the tick at which that is.
pub(super) struct Wheel {
    slots: Box<[Vec<(ConnId, u32)>]>,
    /// All entries up to this tick have been taken.
    taken: u32,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), taken: 0 }
    }
}

impl Wheel {
    /// Adds an entry. Returns when it will come due, which is not before the next tick.
    pub(super) fn insert(&mut self, id: ConnId, due: u32) -> u32 {
        let due = due.max(self.taken + 1);
        let at = due.min(self.taken + SLOTS - 1);
        self.slots[(at % SLOTS) as usize].push((id, due));
        due
    }

    /// Takes the entries that are due at or before `now`.
    pub(super) fn take_due(&mut self, now: u32) -> Vec<(ConnId, u32)> {
        let mut due = Vec::new();
        while self.taken < now {
            self.taken += 1;
            let slot = std::mem::take(&mut self.slots[(self.taken % SLOTS) as usize]);
            for (id, at) in slot {
                if at <= self.taken {
                    due.push((id, at));
                } else {
                    self.insert(id, at);
                }
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_due_once_and_never_early() {
        let mut wheel = Wheel::default();
        for (id, due) in [(1, 0), (2, 3), (3, SLOTS - 1), (4, SLOTS), (5, 5 * SLOTS + 7)] {
            wheel.insert(ConnId(id), due);
        }

        let mut seen = Vec::new();
        for now in (0..6 * SLOTS).step_by(3) {
            seen.extend(wheel.take_due(now).into_iter().map(|(id, due)| {
                assert!(due <= now && now < due + 3, "{id:?} due {due} at {now}");
                id.0
            }));
        }

        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
