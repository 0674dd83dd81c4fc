//! Who is admitted: the counts of connections, and where a token was carried. All but the counts is
//! pure.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, Uri};
use dashmap::DashMap;

use super::headers::{self, bearer, offered, parameters};
use super::places::Seat;
use super::refusals::Refusals;
use crate::auth::SessionCookie;
use crate::metrics::Rejected;
use crate::session::tokens::Brought;

/// The counts of sockets and streams, in all and per address.
#[derive(Default)]
pub(super) struct Admissions {
    pub(super) refusals: Refusals,
    total: AtomicUsize,
    by_ip: DashMap<IpAddr, usize, ahash::RandomState>,
    courtesies: AtomicUsize,
}

/// How many sockets beyond a limit may be open at once, only to be told why. More of them get a
/// status.
const MAX_COURTESIES: usize = 256;

/// A socket's or stream's place; given back when dropped.
pub(super) struct Place {
    admissions: Arc<Admissions>,
    /// `None` for a socket beyond a limit, which is about to be closed.
    ip: Option<IpAddr>,
    /// The place of its HTTP connection, which ends with the socket.
    seat: Option<Arc<Seat>>,
    /// Whether the client was refused already, and has waited for its answer.
    refused: bool,
}

impl Admissions {
    /// Takes a place for a socket or stream from `ip`.
    pub(super) fn take(
        self: &Arc<Self>,
        ip: IpAddr,
        max_total: usize,
        max_per_ip: usize,
    ) -> Result<Place, Rejected> {
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
        Ok(Place { admissions: Arc::clone(self), ip: Some(ip), seat: None, refused: false })
    }

    /// Takes a place for a socket that is opened only to be closed with a reason.
    pub(super) fn courtesy(self: &Arc<Self>) -> Option<Place> {
        let place = Place { admissions: Arc::clone(self), ip: None, seat: None, refused: true };
        let before = self.courtesies.fetch_add(1, Ordering::Relaxed);
        (before < MAX_COURTESIES).then_some(place)
    }
}

impl Place {
    /// Keeps the connection's place as well.
    pub(super) fn on(mut self, seat: Option<Arc<Seat>>) -> Self {
        self.seat = seat;
        self
    }

    /// Marks the place as that of a client whose token was refused in the handshake.
    pub(super) fn of_refused(mut self) -> Self {
        self.refused = true;
        self
    }

    /// How long the answer waits when the token of the place's socket is refused.
    pub(super) fn refuse(&mut self, longest: Duration) -> Duration {
        match self.ip {
            Some(ip) if !self.refused => self.admissions.refusals.wait(ip, longest),
            _ => Duration::ZERO,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(ip) = self.ip else {
            self.admissions.courtesies.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        self.admissions.total.fetch_sub(1, Ordering::Relaxed);
        self.admissions.by_ip.remove_if_mut(&ip, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

/// The network that an address counts for: an IPv6 customer has a whole /64.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}

/// The subprotocol that a client offers beside `bearer.<jwt>`, and that is selected.
pub(super) const SUBPROTOCOL: &str = "tollgate";

/// The cookies that may hold a token.
#[derive(Clone, Copy, Default)]
pub(super) struct Cookies<'p> {
    /// The name of the cookie that holds a token.
    pub(super) token: Option<&'p str>,
    pub(super) session: Option<&'p SessionCookie>,
}

/// How many tokens of one request are checked: of each carrier that the page itself sets, and of
/// the cookies, which the browser adds.
const MAX_GIVEN: usize = 2;
const MAX_AMBIENT: usize = 6;

/// The tokens of a request, in the order in which they count.
pub(super) fn brought<'r>(
    headers: &'r HeaderMap,
    uri: &'r Uri,
    cookies: Cookies<'r>,
) -> Vec<Brought<'r>> {
    let given = |by, token| Brought { by, session: None, token };
    let header = bearer(headers).map(|token| given("header", token));
    let subprotocols = offered(headers).filter_map(|p| p.strip_prefix("bearer."));

    let pairs: Vec<_> = headers::cookies(headers).collect();
    // One name may come with several paths, and a sign-out leaves an empty cookie.
    let named = |pair: &&(&str, &str)| cookies.token == Some(pair.0) && !pair.1.is_empty();
    let tokens = pairs.iter().filter(named).map(|(_, token)| given("cookie", (*token).into()));
    let sessions = cookies.session.map(|session| session.find(&pairs)).unwrap_or_default();
    let sessions = sessions.into_iter().map(|(name, token)| Brought {
        by: "session_cookie",
        session: Some(name),
        token: token.into(),
    });

    let subprotocols = subprotocols.map(|token| given("subprotocol", token.into()));
    let queries = parameters(uri, "token").map(|token| given("query", token));
    let explicit = header.into_iter().chain(subprotocols.take(MAX_GIVEN));
    let ambient = tokens.chain(sessions).take(MAX_AMBIENT);
    explicit.chain(ambient).chain(queries.take(MAX_GIVEN)).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn field_c8_carriers_come_in_order_and_each_counts() {
        let uri: Uri = "/ws?token=q%2Eq&token=r".parse().unwrap();
        let map = headers(&[
            ("authorization", "Bearer h"),
            ("sec-websocket-protocol", "tollgate, bearer.s"),
            ("cookie", "a=b; jwt=; jwt=c; jwt=d"),
            ("cookie", "s.1=b; s.0=a; s.3=d; s=whole; t="),
        ]);

        let session =
            SessionCookie { names: ["s", "t"].map(str::to_owned).to_vec(), secrets: vec![] };
        let cookies = Cookies { token: Some("jwt"), session: Some(&session) };

        let found = brought(&map, &uri, cookies);
        let found: Vec<_> = found.iter().map(|b| (b.by, b.session, &*b.token)).collect();
        let expected = [
            ("header", None, "h"),
            ("subprotocol", None, "s"),
            ("cookie", None, "c"),
            ("cookie", None, "d"),
            ("session_cookie", Some("s"), "whole"),
            ("session_cookie", Some("s"), "ab"),
            ("query", None, "q.q"),
            ("query", None, "r"),
        ];
        assert_eq!(found, expected);

        let many: Uri = format!("/ws?{}", "token=x&".repeat(100)).parse().unwrap();
        assert_eq!(brought(&map, &many, cookies).len(), expected.len());

        let none = headers(&[("cookie", "jwt=; s=; a=b")]);
        assert!(brought(&none, &"/ws".parse().unwrap(), cookies).is_empty());
        assert!(
            brought(&headers(&[("cookie", "jwt=c")]), &"/ws".parse().unwrap(), Cookies::default())
                .is_empty()
        );
    }

    #[test]
    fn places_are_given_back() {
        let admissions = Arc::new(Admissions::default());
        let (a, b) = ("1.1.1.1".parse().unwrap(), "2001:db8::1".parse().unwrap());

        let first = admissions.take(a, 2, 1).ok().unwrap();
        assert_eq!(admissions.take(a, 2, 1).err(), Some(Rejected::PerIp));
        let second = admissions.take(b, 2, 1).ok().unwrap();

        let third = admissions.take("2001:db8::2".parse().unwrap(), 3, 1);
        assert_eq!(third.err(), Some(Rejected::PerIp), "one /64");
        assert_eq!(admissions.take(a, 2, 9).err(), Some(Rejected::Connections));

        let courtesies: Vec<_> = (0..300).filter_map(|_| admissions.courtesy()).collect();
        assert_eq!(courtesies.len(), MAX_COURTESIES);
        drop((first, second, courtesies));
        assert_eq!(admissions.courtesies.load(Ordering::Relaxed), 0);
        assert!(admissions.by_ip.is_empty());
        assert_eq!(admissions.total.load(Ordering::Relaxed), 0);
    }
}
