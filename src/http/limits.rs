//! How many sockets and streams there may be, in all and per address.
//!
//! Not here: HTTP connections (`seats`). Behind a trusted proxy these limits count clients.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;

use super::network::network;
use super::refusals::Refusals;
use super::seats::Seat;
use crate::logging;
use crate::metrics::Rejected;

/// The counts of sockets and streams, in all and per address.
#[derive(Default)]
pub(super) struct ConnectionLimits {
    pub(super) refusals: Refusals,
    total: AtomicUsize,
    by_ip: DashMap<IpAddr, usize, ahash::RandomState>,
    courtesies: AtomicUsize,
}

/// How many sockets beyond a limit may be open at once, only to be told why. Any further client
/// gets a status.
const MAX_COURTESIES: usize = 256;

/// The permit of a socket or stream; it is given back when dropped.
pub(super) struct Permit {
    limits: Arc<ConnectionLimits>,
    /// `None` for a socket beyond a limit, which is about to be closed.
    ip: Option<IpAddr>,
    /// The seat of its HTTP connection, which ends with the socket.
    seat: Option<Arc<Seat>>,
    /// True if the client was refused already, and has waited for its answer.
    refused: bool,
}

impl ConnectionLimits {
    /// Takes a permit for a socket or stream from `ip`.
    pub(super) fn acquire(
        self: &Arc<Self>,
        ip: IpAddr,
        max_total: usize,
        max_per_ip: usize,
    ) -> Result<Permit, Rejected> {
        let ip = network(ip);
        if self.total.fetch_add(1, Ordering::Relaxed) >= max_total {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejected::Connections);
        }

        let mut count = self.by_ip.entry(ip).or_default();
        if *count >= max_per_ip {
            self.total.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejected::PerIp);
        }

        *count += 1;
        Ok(Permit { limits: Arc::clone(self), ip: Some(ip), seat: None, refused: false })
    }

    /// Takes a permit for a socket that is opened only to be closed with a reason.
    pub(super) fn courtesy(self: &Arc<Self>) -> Option<Permit> {
        let permit = Permit { limits: Arc::clone(self), ip: None, seat: None, refused: true };
        let before = self.courtesies.fetch_add(1, Ordering::Relaxed);
        (before < MAX_COURTESIES).then_some(permit)
    }
}

impl Permit {
    /// Keeps the connection's seat as well.
    pub(super) fn on(mut self, seat: Option<Arc<Seat>>) -> Self {
        self.seat = seat;
        self
    }

    /// Marks the permit as that of a client whose token was refused in the handshake.
    pub(super) fn of_refused(mut self) -> Self {
        self.refused = true;
        self
    }

    /// How long the answer waits when the token of the permit's socket is refused.
    pub(super) fn refuse(&mut self, longest: Duration) -> Duration {
        match self.ip {
            Some(ip) if !self.refused => self.limits.refusals.wait(ip, longest),
            _ => Duration::ZERO,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(ip) = self.ip else {
            self.limits.courtesies.fetch_sub(1, Ordering::Relaxed);
            return;
        };

        self.limits.total.fetch_sub(1, Ordering::Relaxed);
        self.limits.by_ip.remove_if_mut(&ip, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

/// Logs that a limit was hit.
pub(super) fn log_limit(what: Rejected, ip: IpAddr) {
    logging::repeated(("limit", what.label()), "", move |repeated| {
        tracing::warn!(limit = what.label(), %ip, repeated, "too many connections");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_given_back() {
        let limits = Arc::new(ConnectionLimits::default());
        let a = "1.1.1.1".parse().unwrap();
        let b = "2001:db8::1".parse().unwrap();

        let first = limits.acquire(a, 2, 1).ok().unwrap();
        assert_eq!(limits.acquire(a, 2, 1).err(), Some(Rejected::PerIp));
        let second = limits.acquire(b, 2, 1).ok().unwrap();

        let third = limits.acquire("2001:db8::2".parse().unwrap(), 3, 1);
        assert_eq!(third.err(), Some(Rejected::PerIp), "one /64");
        assert_eq!(limits.acquire(a, 2, 9).err(), Some(Rejected::Connections));

        let courtesies: Vec<_> = (0..300).filter_map(|_| limits.courtesy()).collect();
        assert_eq!(courtesies.len(), MAX_COURTESIES);
        drop((first, second, courtesies));
        assert_eq!(limits.courtesies.load(Ordering::Relaxed), 0);
        assert!(limits.by_ip.is_empty());
        assert_eq!(limits.total.load(Ordering::Relaxed), 0);
    }
}
