//! Addresses that are refused again and again wait for their answer, longer each time.
//!
//! Invariants: only a refusal waits; a waiting client holds its own connection and no permit; what
//! is remembered is bounded in number and time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use dashmap::DashMap;

use super::network::network;

/// Refusals in a row that are answered at once: a page with several tabs whose token has ended.
const AT_ONCE: u32 = 5;

/// The first wait. Each further one is twice as long.
const FIRST: Duration = Duration::from_millis(50);

/// An address without a refusal for this long begins anew.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Most addresses that are remembered at once.
const MAX_ADDRESSES: usize = 16_384;

/// How often each address was refused, and when last.
#[derive(Default)]
pub(super) struct Refusals(DashMap<IpAddr, (u32, Instant), ahash::RandomState>);

impl Refusals {
    /// Counts a refusal, and returns how long its answer waits.
    pub(super) fn wait(&self, ip: IpAddr, longest: Duration) -> Duration {
        if longest.is_zero() {
            return longest;
        }
        self.count(network(ip), longest, Instant::now())
    }

    fn count(&self, ip: IpAddr, longest: Duration, now: Instant) -> Duration {
        // A wait does not count as a time without refusals.
        let remembered = REMEMBERED + longest;

        let is_new = !self.0.contains_key(&ip);
        if is_new && self.0.len() >= MAX_ADDRESSES {
            self.0.retain(|_, (_, last)| now.duration_since(*last) < remembered);
            if self.0.len() >= MAX_ADDRESSES {
                return Duration::ZERO;
            }
        }

        let mut entry = self.0.entry(ip).or_insert((0, now));
        let (count, last) = *entry;
        let count = if now.duration_since(last) < remembered { count.saturating_add(1) } else { 1 };
        *entry = (count, now);

        match count.checked_sub(AT_ONCE + 1) {
            None => Duration::ZERO,
            Some(n) => (FIRST * 2u32.pow(n.min(20))).min(longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_c5_waits_grow_are_bounded_and_forgotten() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let longest = Duration::from_secs(1);
        let ip = "1.1.1.1".parse().unwrap();
        let waits: Vec<_> =
            (0..100).map(|_| refusals.count(ip, longest, now).as_millis()).collect();
        assert_eq!(waits[..11], [0, 0, 0, 0, 0, 50, 100, 200, 400, 800, 1000]);
        assert!(waits[11..].iter().all(|wait| *wait == 1000));
        assert!(refusals.count("1.1.1.2".parse().unwrap(), longest, now).is_zero(), "another's");
        assert!(refusals.count(ip, longest, now + REMEMBERED + longest).is_zero());
        assert!(refusals.wait(ip, Duration::ZERO).is_zero(), "switched off");
    }

    #[test]
    fn field_c5_what_is_remembered_is_bounded() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for n in 0..50_000_u32 {
            refusals.count(IpAddr::V4(n.into()), FIRST, now);
        }
        assert_eq!(refusals.0.len(), MAX_ADDRESSES);
        refusals.count("9.9.9.9".parse().unwrap(), FIRST, now + 2 * REMEMBERED);
        assert_eq!(refusals.0.len(), 1);
    }
}
