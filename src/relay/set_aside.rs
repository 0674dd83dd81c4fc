//! Channels whose rows Redis refuses at the moment: they wait, and hold up nobody.
//!
//! Invariant: the number of channels is bounded. Beyond it, further ones are tried with each batch, and the
//! relay pauses between batches of which it could publish nothing.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const MOST: usize = 10_000;
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// So many channels that are due are tried with one batch, so that they never fill it.
const TRIED: usize = 50;
const NEXT_TRY: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(super) struct SetAside {
    /// Until when, and how long that is.
    channels: HashMap<String, (Instant, Duration)>,
}

impl SetAside {
    /// Sets a channel aside, each time for longer.
    pub(super) fn put(&mut self, channel: &str) {
        let last = self.channels.get(channel).map(|(_, wait)| *wait);
        let wait = last.map_or(FIRST, |wait| (wait * 2).clamp(FIRST, LONGEST));
        self.put_for(channel, wait);
    }

    /// Sets a channel aside for so long.
    pub(super) fn put_for(&mut self, channel: &str, wait: Duration) {
        if self.channels.len() >= MOST && !self.channels.contains_key(channel) {
            // Those that are due for long have no rows any more.
            let due = |until: &Instant| until.elapsed() > LONGEST;
            self.channels.retain(|_, (until, _)| !due(until));
            if self.channels.len() >= MOST {
                return;
            }
        }
        self.channels.insert(channel.to_owned(), (Instant::now() + wait, wait));
    }

    /// Forgets that a channel failed.
    pub(super) fn forgive(&mut self, channel: &str) {
        if !self.channels.is_empty() {
            self.channels.remove(channel);
        }
    }

    /// The channels that the next batch has to leave out. Of those that are due, some are tried.
    pub(super) fn left_out(&mut self) -> Vec<String> {
        let now = Instant::now();
        let mut left_out = Vec::with_capacity(self.channels.len());
        let mut tried = 0;
        for (channel, (until, wait)) in &mut self.channels {
            if *until <= now && tried < TRIED {
                tried += 1;
                // Those that have no rows any more make room for others.
                *until = now + *wait;
            } else {
                left_out.push(channel.clone());
            }
        }
        left_out
    }

    /// How long until a channel is due.
    pub(super) fn next(&self) -> Duration {
        let now = Instant::now();
        let waits = self.channels.values().map(|(until, _)| until.saturating_duration_since(now));
        waits.min().unwrap_or(LONGEST).max(NEXT_TRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn channels_wait_longer_each_time_and_others_do_not() {
        let mut aside = SetAside::default();
        aside.put("a");
        assert_eq!((aside.left_out(), aside.next()), (vec!["a".to_owned()], FIRST));
        tokio::time::advance(FIRST).await;
        assert!(aside.left_out().is_empty(), "tried again");
        aside.put("a");
        assert_eq!(aside.next(), FIRST * 2);
        aside.forgive("a");
        assert_eq!(aside.next(), LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn channels_that_are_due_never_fill_a_batch() {
        let mut aside = SetAside::default();
        (0..200).for_each(|n| aside.put(&n.to_string()));
        tokio::time::advance(FIRST).await;
        for left in [150, 150, 150, 150] {
            assert_eq!(aside.left_out().len(), left);
        }
        assert_eq!((aside.left_out().len(), aside.next()), (200, FIRST), "each was tried");
    }
}
