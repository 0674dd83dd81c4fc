//! When each event reached the last of its sockets, for runs that know only afterwards when it was
//! due: an event cannot carry the time at which its own transaction is committed.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

const CHUNK: usize = 1 << 16;
const CHUNKS: usize = 1 << 12;

/// Times by the event's channel and sequence number. Memory is taken as events come.
pub struct Arrivals {
    channels: usize,
    chunks: Vec<OnceLock<Vec<AtomicU64>>>,
}

impl Arrivals {
    pub fn new(channels: usize) -> Self {
        Arrivals {
            channels: channels.max(1),
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
        }
    }

    fn place(&self, channel: u32, sequence: u32) -> (usize, usize) {
        let number = (sequence as usize - 1) * self.channels + channel as usize;
        (number / CHUNK, number % CHUNK)
    }

    pub fn note(&self, channel: u32, sequence: u32, now: u64) {
        let (chunk, at) = self.place(channel, sequence);
        if let Some(chunk) = self.chunks.get(chunk) {
            let chunk = chunk.get_or_init(|| (0..CHUNK).map(|_| AtomicU64::new(0)).collect());
            chunk[at].fetch_max(now, Relaxed);
        }
    }

    /// `None`: it has reached nobody.
    pub fn of(&self, channel: u32, sequence: u32) -> Option<u64> {
        let (chunk, at) = self.place(channel, sequence);
        let time = self.chunks.get(chunk)?.get()?[at].load(Relaxed);
        (time > 0).then_some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_socket_counts() {
        let arrivals = Arrivals::new(3);
        for (channel, sequence, now) in [(2, 1, 7), (2, 1, 9), (2, 1, 8), (0, 100_000, 5)] {
            arrivals.note(channel, sequence, now);
        }
        assert_eq!((arrivals.of(2, 1), arrivals.of(0, 100_000)), (Some(9), Some(5)));
        assert_eq!((arrivals.of(1, 1), arrivals.of(0, 99_999)), (None, None));
        assert_eq!(arrivals.of(0, u32::MAX), None);
    }
}
