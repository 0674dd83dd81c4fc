//! How many connections an address holds. A connection counts for its address from accept to its
//! end, whatever is asked on it and whatever it becomes.
//!
//! Not here: the limits on sockets and streams (`limits`), which behind a trusted proxy count
//! clients. Invariants: one address leaves seats for the others; an address that has its share gets
//! a few more connections, for one request each, so that it can be told; every map entry stands for
//! an open connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dashmap::DashMap;

use super::network::network;
use crate::metrics::Rejected;

/// Connections beyond its share that an address may have, to be answered and closed.
const BEYOND_PER_ADDRESS: usize = 8;

/// Connections beyond their shares that all addresses together may have.
const BEYOND: usize = 256;

/// What one address may hold.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Connections of any kind.
    pub connections: usize,
    /// Those of them that are neither sockets nor streams.
    pub http: usize,
}

impl Share {
    /// The share of a proxy, which carries everybody.
    pub const ALL: Self = Self { connections: usize::MAX, http: usize::MAX };
}

/// How many connections an address has.
#[derive(Debug, Default)]
struct AddressCount {
    connections: usize,
    http: usize,
    beyond: usize,
}

/// The connections of one listener.
#[derive(Default)]
pub(super) struct Seats {
    http: AtomicUsize,
    beyond: AtomicUsize,
    by_ip: DashMap<IpAddr, AddressCount, ahash::RandomState>,
}

/// A connection's seat; it is given back when the connection ends.
pub(super) struct Seat {
    seats: Arc<Seats>,
    ip: IpAddr,
    /// True if its address had its share already.
    beyond: bool,
    /// True while the connection is neither a socket nor a stream.
    http: AtomicBool,
}

impl Seats {
    /// Takes a seat for a connection from `ip`. At most `http` connections may be neither sockets
    /// nor streams.
    pub(super) fn acquire(
        self: &Arc<Self>,
        ip: IpAddr,
        share: Share,
        http: usize,
    ) -> Result<Seat, Rejected> {
        let ip = network(ip);
        if self.http.fetch_add(1, Ordering::Relaxed) >= http {
            self.http.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejected::HttpConnections);
        }

        let mut held = self.by_ip.entry(ip).or_default();
        let beyond = held.connections >= share.connections || held.http >= share.http;
        if !beyond {
            held.connections += 1;
            held.http += 1;
        } else if held.beyond < BEYOND_PER_ADDRESS
            && self.beyond.fetch_add(1, Ordering::Relaxed) < BEYOND
        {
            held.beyond += 1;
        } else {
            if held.beyond < BEYOND_PER_ADDRESS {
                self.beyond.fetch_sub(1, Ordering::Relaxed);
            }
            drop(held);
            self.forget(ip, |_| {});
            self.http.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejected::PerIp);
        }

        Ok(Seat { seats: Arc::clone(self), ip, beyond, http: AtomicBool::new(true) })
    }

    /// Subtracts something from what an address holds, and removes its entry with the
    /// last connection.
    fn forget(&self, ip: IpAddr, what: impl FnOnce(&mut AddressCount)) {
        self.by_ip.remove_if_mut(&ip, |_, held| {
            what(held);
            held.connections == 0 && held.beyond == 0
        });
    }
}

impl Seat {
    /// True if the connection is beyond its address's share: it gets one answer that says so.
    pub(super) fn is_beyond(&self) -> bool {
        self.beyond
    }

    /// Notes that the connection has become a socket or a stream, or has ended.
    pub(super) fn leave_http(&self) {
        if !self.http.swap(false, Ordering::Relaxed) {
            return;
        }

        self.seats.http.fetch_sub(1, Ordering::Relaxed);
        if !self.beyond
            && let Some(mut held) = self.seats.by_ip.get_mut(&self.ip)
        {
            held.http -= 1;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave_http();
        if self.beyond {
            self.seats.beyond.fetch_sub(1, Ordering::Relaxed);
        }
        let beyond = self.beyond;
        self.seats.forget(self.ip, |held| {
            let count = if beyond { &mut held.beyond } else { &mut held.connections };
            *count -= 1;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_a8_places_are_counted_by_address_and_given_back() {
        let places = Arc::new(Seats::default());
        let a = "1.1.1.1".parse().unwrap();
        let b = "2.2.2.2".parse().unwrap();
        let share = Share { connections: 5, http: 3 };
        let mut seats: Vec<_> =
            (0..3).map(|_| places.acquire(a, share, 100).ok().unwrap()).collect();
        assert!(seats.iter().all(|seat| !seat.is_beyond()));
        assert!(
            places.acquire(a, share, 100).ok().unwrap().is_beyond(),
            "three are not sockets yet"
        );

        seats.iter().for_each(Seat::leave_http);
        for n in 3..20 {
            match places.acquire(a, share, 100) {
                Ok(seat) => {
                    assert_eq!(seat.is_beyond(), n >= 5, "{n}");
                    seats.push(seat);
                }
                Err(why) => {
                    assert_eq!((why, seats.len()), (Rejected::PerIp, 5 + BEYOND_PER_ADDRESS))
                }
            }
        }
        assert!(!places.acquire(b, share, 100).ok().unwrap().is_beyond(), "the others have room");
        assert_eq!(places.acquire(b, share, 10).err(), Some(Rejected::HttpConnections));
        assert!(!places.acquire(b, Share::ALL, 100).ok().unwrap().is_beyond());

        drop(seats);
        assert_eq!(places.http.load(Ordering::Relaxed) + places.beyond.load(Ordering::Relaxed), 0);
        assert!(places.by_ip.is_empty());
    }

    #[test]
    fn field_a8_what_is_beyond_is_bounded_over_all_addresses() {
        let places = Arc::new(Seats::default());
        let share = Share { connections: 0, http: 0 };
        let take = |n: u32| places.acquire(IpAddr::V4(n.into()), share, 10_000);

        let seats: Vec<_> = (0..1000).filter_map(|n| take(n).ok()).collect();
        assert_eq!((seats.len(), places.by_ip.len()), (BEYOND, BEYOND));

        drop(seats);
        assert_eq!(take(7).ok().map(|seat| seat.is_beyond()), Some(true));
        assert!(places.by_ip.is_empty());
    }
}
