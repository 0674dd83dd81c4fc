//! Reading a request's headers and query.
//!
//! Pure. Invariant: headers are bytes, and an odd part of a header harms that part only. Another
//! application's cookie may hold Latin-1, and a client may write anything in front of what a
//! proxy appends.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, Uri, header};
use ipnet::IpNet;

/// The parts of all lines of a header, in order. A part that is not UTF-8 is `None`.
fn parts(
    headers: &HeaderMap,
    name: HeaderName,
    separator: u8,
) -> impl DoubleEndedIterator<Item = Option<&str>> {
    let lines = headers.get_all(name).into_iter();
    let parts = lines.flat_map(move |line| line.as_bytes().split(move |b| *b == separator));
    parts.map(|part| std::str::from_utf8(part.trim_ascii()).ok())
}

/// True if a list has this token, as `Connection: keep-alive, Upgrade` has `upgrade`.
#[must_use]
pub fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    parts(headers, name, b',').flatten().any(|part| part.eq_ignore_ascii_case(token))
}

/// True if the client accepts this media type by name, whatever it prefers.
#[must_use]
pub fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    let kinds = parts(headers, header::ACCEPT, b',').flatten();
    let named = |range: &str| range.split(';').next().unwrap_or_default().trim().to_owned();
    kinds.map(named).any(|named| named.eq_ignore_ascii_case(kind))
}

/// The token behind `Bearer`.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    headers.get_all(header::AUTHORIZATION).into_iter().find_map(|line| {
        let (scheme, token) = line.as_bytes().split_at_checked(7)?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
        is_bearer.then(|| String::from_utf8_lossy(token.trim_ascii()))
    })
}

/// The offered subprotocols.
pub fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    parts(headers, header::SEC_WEBSOCKET_PROTOCOL, b',').flatten()
}

/// The names and values of the cookies.
pub fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    parts(headers, header::COOKIE, b';').flatten().filter_map(|pair| pair.split_once('='))
}

/// True if the address is that of a proxy that is trusted to tell the client's address.
#[must_use]
pub fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    let ip = ip.to_canonical();
    trusted.iter().any(|net| net.contains(&ip))
}

/// The client's address: the TCP peer's or, if that is a trusted proxy, the last entry of
/// `X-Forwarded-For` that is not one. Entries that the client wrote itself come before that one and
/// are ignored.
#[must_use]
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let trusts = |ip: IpAddr| is_trusted(ip, trusted);
    let mut ip = peer.to_canonical();
    if !trusts(ip) {
        return ip;
    }

    for entry in parts(headers, HeaderName::from_static("x-forwarded-for"), b',').rev() {
        let Some(hop) = entry.and_then(address) else {
            return ip;
        };
        ip = hop.to_canonical();
        if !trusts(ip) {
            return ip;
        }
    }
    ip
}

/// Reads an address as proxies write it: some add the port, and brackets.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    let with_port = || entry.parse::<SocketAddr>().map(|address| address.ip());
    bare.parse().or_else(|_| with_port()).ok()
}

/// The values of a query parameter.
pub fn parameters<'r>(uri: &'r Uri, name: &'static str) -> impl Iterator<Item = Cow<'r, str>> {
    // Names are compared before they are decoded: the value of another parameter may be
    // a long token.
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(move |pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        if found == name && !value.contains(['%', '+']) {
            return Some(value.into());
        }
        if found != name && !found.contains('%') {
            return None;
        }
        let (found, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
        (found == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    /// Another application's cookie in raw UTF-8 or Latin-1 used to spoil the whole header.
    #[test]
    fn field_d1_one_odd_part_of_a_header_harms_itself_only() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for odd in
            [&b"n=J\xc3\xb6rg"[..], b"n=J\xf6rg", b"\xff", b"=", b"", b"a\tb", b"\"", b"n=\"x"]
        {
            let around = |separator: &[u8], good: &[u8]| [odd, good, odd].join(separator);

            let map = headers(&[("cookie", odd), ("cookie", &around(b"; ", b"jwt=good"))]);
            assert!(cookies(&map).any(|pair| pair == ("jwt", "good")), "{odd:?}");

            let offer = around(b", ", b"bearer.good");
            let map = headers(&[("sec-websocket-protocol", &offer)]);
            assert!(offered(&map).any(|p| p == "bearer.good"), "{odd:?}");

            let map = headers(&[("connection", &around(b",", b"Upgrade"))]);
            assert!(has_token(&map, header::CONNECTION, "upgrade"), "{odd:?}");
            let map = headers(&[("accept", &around(b",", b"text/event-stream;q=0.9"))]);
            assert!(accepts(&map, "text/event-stream"), "{odd:?}");

            // The proxy's entry follows the odd one.
            let forwarded = [odd, b"9.9.9.9"].join(&b", "[..]);
            let map = headers(&[("x-forwarded-for", odd), ("x-forwarded-for", &forwarded)]);
            assert_eq!(client_ip(ip("10.0.0.1"), &map, &trusted), ip("9.9.9.9"), "{odd:?}");

            let map = headers(&[("authorization", odd), ("authorization", b"bearer good")]);
            assert_eq!(bearer(&map).unwrap(), "good", "{odd:?}");
        }
    }

    #[test]
    fn addresses_are_what_proxies_write() {
        for (entry, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:4711", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("unknown", None),
            ("192.0.2.1:", None),
            ("[192.0.2.1", None),
            ("", None),
        ] {
            assert_eq!(address(entry), expected.map(|e| e.parse().unwrap()), "{entry}");
        }
    }

    #[test]
    fn a13_only_trusted_hops_are_believed() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        for (peer, forwarded, expected) in [
            ("1.2.3.4", vec!["9.9.9.9"], "1.2.3.4"),
            ("10.0.0.1", vec!["9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", vec!["6.6.6.6, 9.9.9.9, 10.0.0.2"], "9.9.9.9"),
            ("10.0.0.1", vec!["6.6.6.6", "9.9.9.9"], "9.9.9.9"),
            ("10.0.0.1", vec!["nonsense"], "10.0.0.1"),
            ("10.0.0.1", vec![""], "10.0.0.1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("::ffff:10.0.0.1", vec!["9.9.9.9"], "9.9.9.9"),
        ] {
            let lines: Vec<_> =
                forwarded.iter().map(|v| ("x-forwarded-for", v.as_bytes())).collect();
            assert_eq!(client_ip(ip(peer), &headers(&lines), &trusted), ip(expected), "{peer}");
        }
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![0x20u8..0x7f, 0x80u8..=0xff, Just(b'='), Just(b'"')];
        prop::collection::vec(byte, 0..40)
    }

    proptest! {
        /// A cookie is found whatever stands beside it, and so is the address that a
        /// proxy appended.
        #[test]
        fn field_d1_whatever_stands_beside(before in value(), after in value()) {
            let without = |bytes: &[u8], separator| bytes.iter().all(|b| *b != separator);
            if without(&before, b';') && without(&after, b';') && !before.starts_with(b"jwt") {
                let line = [&before[..], b"jwt=good", &after].join(&b"; "[..]);
                let map = headers(&[("cookie", &line)]);
                prop_assert!(cookies(&map).any(|pair| pair == ("jwt", "good")));
            }

            let line = [&before[..], b"9.9.9.9"].join(&b","[..]);
            let map = headers(&[("x-forwarded-for", &line)]);
            let trusted = ["10.0.0.0/8".parse().unwrap()];
            let ip = client_ip("10.0.0.1".parse().unwrap(), &map, &trusted);
            prop_assert_eq!(ip, "9.9.9.9".parse::<IpAddr>().unwrap());
        }
    }
}
