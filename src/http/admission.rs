//! Who gets in: the counts, and where a token was carried. All pure but for the counts.

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

/// Sockets in all and per address.
#[derive(Default)]
pub(super) struct Admissions {
    pub(super) refusals: Refusals,
    total: AtomicUsize,
    by_ip: DashMap<IpAddr, usize, ahash::RandomState>,
    courtesies: AtomicUsize,
}

/// Sockets beyond a limit that may be open at once, only to be told why; more get a status.
const MAX_COURTESIES: usize = 256;

/// A socket's place; given back when dropped.
pub(super) struct Place {
    admissions: Arc<Admissions>,
    /// `None`: a socket beyond a limit, on its way out.
    ip: Option<IpAddr>,
    /// Its connection's place, which ends with the socket.
    seat: Option<Arc<Seat>>,
    /// Whoever has it was refused, and has waited for that.
    refused: bool,
}

impl Admissions {
    /// Takes a place for a socket from `ip`.
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

    /// A place for a socket that is opened only to be closed with a reason.
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

    /// For somebody whose token was refused in the handshake.
    pub(super) fn of_refused(mut self) -> Self {
        self.refused = true;
        self
    }

    /// Its socket's token is refused: how long the answer waits.
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

/// An IPv6 customer has a whole /64: it counts as one.
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

/// Where cookies are looked for.
#[derive(Clone, Copy, Default)]
pub(super) struct Cookies<'p> {
    /// One that holds a token.
    pub(super) token: Option<&'p str>,
    pub(super) session: Option<&'p SessionCookie>,
}

/// What a request brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credential<'r> {
    Token(&'static str, std::borrow::Cow<'r, str>),
    /// A session cookie's name and value.
    Session(&'r str, String),
}

/// Where a credential may be in a request, in this order.
pub(super) fn credential<'r>(
    headers: &'r HeaderMap,
    uri: &'r Uri,
    cookies: Cookies<'r>,
) -> Option<Credential<'r>> {
    use Credential::Token;
    if let Some(token) = bearer(headers) {
        return Some(Token("header", token));
    }
    if let Some(token) = offered(headers).find_map(|p| p.strip_prefix("bearer.")) {
        return Some(Token("subprotocol", token.into()));
    }
    let pairs: Vec<_> = headers::cookies(headers).collect();
    let found = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    if let Some(token) = cookies.token.and_then(found) {
        return Some(Token("cookie", token.into()));
    }
    if let Some((name, value)) = cookies.session.and_then(|s| s.find(&pairs)) {
        return Some(Credential::Session(name, value));
    }
    Some(Token("query", parameters(uri, "token").next()?))
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
    fn carriers_come_in_order() {
        let uri: Uri = "/ws?token=q%2Eq".parse().unwrap();
        let all = [
            ("authorization", "Bearer h"),
            ("sec-websocket-protocol", "tollgate, bearer.s"),
            ("cookie", "a=b; jwt=c"),
        ];
        for (from, carrier, value) in
            [(0, "header", "h"), (1, "subprotocol", "s"), (2, "cookie", "c"), (3, "query", "q.q")]
        {
            let map = headers(&all[from..]);
            let cookies = Cookies { token: Some("jwt"), session: None };
            let found = credential(&map, &uri, cookies);
            assert_eq!(found, Some(Credential::Token(carrier, value.into())));
        }
        let (map, uri) = (headers(&all[2..]), "/ws".parse().unwrap());
        assert!(credential(&map, &uri, Cookies::default()).is_none());
        let names = ["s".to_owned()].to_vec();
        let session = SessionCookie { names, secrets: vec![] };
        let map = headers(&[("cookie", "s.1=b; s.0=a; s.3=d")]);
        let cookies = Cookies { token: None, session: Some(&session) };
        assert_eq!(credential(&map, &uri, cookies), Some(Credential::Session("s", "ab".into())));
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
