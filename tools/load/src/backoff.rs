//! When a client that lost its connection tries again: full jitter, and the server's hints first.

use crate::client::End;
use crate::clock::nanos;

#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first: std::time::Duration,
    pub max: std::time::Duration,
}

impl Backoff {
    /// The nanoseconds to wait. `hint`: a `reconnect` message's milliseconds.
    pub fn wait(&self, attempt: u8, hint: Option<u32>, end: Option<&End>) -> u64 {
        let bound = nanos(self.first).saturating_mul(1 << attempt.min(20)).min(nanos(self.max));
        let jitter = fastrand::u64(0..=bound);
        match (hint, end) {
            (Some(ms), _) => u64::from(ms) * 1_000_000,
            // Retry-After names the earliest time; the jitter keeps clients from coming all
            // at once.
            (None, Some(End::Status(_, Some(after)))) => after + jitter,
            _ => jitter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn waits_grow_up_to_the_bound_and_hints_win() {
        let backoff =
            Backoff { first: Duration::from_millis(100), max: Duration::from_millis(400) };
        for _ in 0..100 {
            assert!(backoff.wait(0, None, None) <= 100_000_000);
            assert!(backoff.wait(60, None, None) <= 400_000_000);
            assert_eq!(backoff.wait(3, Some(7), None), 7_000_000);
            let refused = End::Status(503, Some(1_000_000_000));
            assert!(backoff.wait(3, None, Some(&refused)) >= 1_000_000_000);
        }

        let waits: Vec<u64> = (0..100).map(|_| backoff.wait(9, None, None)).collect();
        assert!(waits.iter().any(|w| *w > 200_000_000));
        assert!(waits.iter().any(|w| *w < 200_000_000));
    }
}
