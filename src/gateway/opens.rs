//! Limits how many histories subscriptions may begin. A channel that nobody has published on has no
//! history, so one is begun for its subscriber: a missed first publication can be noticed then.
//! Each of them is a key in Redis for an hour, for any channel name that a client invents.
//!
//! Not here: beginning a history (`broker`). Invariant: memory is bounded, however many users ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Counts are forgotten after this time, which is also how long Redis keeps an empty history.
const WINDOW: Duration = Duration::from_secs(3600);

/// Most users that are counted one by one; any further user is refused until the window is over.
const MAX_USERS: usize = 65_536;

struct Window {
    began: Instant,
    all: u32,
    /// Counts by a hash of the user: two users with the same hash share a budget.
    users: HashMap<u64, u32>,
}

/// The budgets, and how much of them the current window has used.
pub(super) struct Opens {
    per_user: AtomicU32,
    all: AtomicU32,
    window: Mutex<Window>,
    hasher: ahash::RandomState,
}

impl Default for Opens {
    fn default() -> Self {
        let window = Window { began: Instant::now(), all: 0, users: HashMap::new() };
        Self {
            per_user: AtomicU32::new(u32::MAX),
            all: AtomicU32::new(u32::MAX),
            window: Mutex::new(window),
            hasher: ahash::RandomState::new(),
        }
    }
}

impl Opens {
    pub(super) fn set(&self, per_user: u32, all: u32) {
        self.per_user.store(per_user, Ordering::Relaxed);
        self.all.store(all, Ordering::Relaxed);
    }

    /// Counts one more history, and returns true if this user's subscription may begin it. All
    /// clients without a token count as one user.
    pub(super) fn allow(&self, user: &str) -> bool {
        let user = self.hasher.hash_one(user);
        let mut window = self.window.lock();
        if window.began.elapsed() > WINDOW {
            *window = Window { began: Instant::now(), all: 0, users: HashMap::new() };
        }

        let taken = window.users.get(&user).copied().unwrap_or(0);
        let has_room = taken > 0 || window.users.len() < MAX_USERS;
        let may = has_room
            && taken < self.per_user.load(Ordering::Relaxed)
            && window.all < self.all.load(Ordering::Relaxed);
        if may {
            window.all += 1;
            window.users.insert(user, taken + 1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_a11_each_user_and_all_together_begin_so_many_histories() {
        let opens = Opens::default();
        opens.set(2, 3);
        assert_eq!([opens.allow("u1"), opens.allow("u1"), opens.allow("u1")], [true, true, false]);
        assert_eq!([opens.allow("u2"), opens.allow("u2"), opens.allow("u3")], [true, false, false]);

        let opens = Opens::default();
        let taken = (0..MAX_USERS + 10).filter(|n| opens.allow(&n.to_string())).count();
        assert_eq!(taken, MAX_USERS);
    }
}
