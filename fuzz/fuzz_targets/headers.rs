//! Headers: whatever a client or another application writes into one part of them, the rest keeps
//! its meaning.
#![no_main]
#![expect(clippy::unwrap_used, reason = "a target fails by panicking")]

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use tollgate::http::headers::{accepts, bearer, client_ip, cookies, has_token, offered};

/// One line of a header, if HTTP allows it.
fn line(name: HeaderName, parts: &[&[u8]], separator: &[u8]) -> Option<HeaderMap> {
    let value = HeaderValue::from_bytes(&parts.join(separator)).ok()?;
    Some(HeaderMap::from_iter([(name, value)]))
}

fuzz_target!(|parts: (&[u8], &[u8])| {
    let (before, after) = parts;
    let apart = |separator: u8| !before.contains(&separator) && !after.contains(&separator);

    if apart(b';')
        && let Some(map) = line(header::COOKIE, &[before, b"jwt=good", after], b"; ")
    {
        let mut found = cookies(&map).filter(|(name, _)| *name == "jwt");
        assert!(found.any(|(_, value)| value == "good"));
        assert!(cookies(&map).count() <= 3);
    }

    let offers = [before, b"bearer.good", after];
    if apart(b',')
        && let Some(map) = line(header::SEC_WEBSOCKET_PROTOCOL, &offers, b", ")
    {
        assert!(offered(&map).any(|offer| offer == "bearer.good"));
        assert!(offered(&map).count() <= 3);
    }

    if let Some(map) = line(header::CONNECTION, &[before, b"Upgrade", after], b",") {
        assert!(has_token(&map, header::CONNECTION, "upgrade"));
    }

    if let Some(map) = line(header::ACCEPT, &[before, b"text/event-stream", after], b",") {
        assert!(accepts(&map, "text/event-stream"));
    }

    // The address that the last trusted proxy appended counts, whatever the client wrote before it.
    let (peer, trusted) = ("10.0.0.1".parse().unwrap(), ["10.0.0.0/8".parse().unwrap()]);
    let name = HeaderName::from_static("x-forwarded-for");
    if let Some(mut map) = line(name.clone(), &[before, b"192.0.2.9, 10.0.0.7"], b",") {
        assert_eq!(client_ip(peer, &map, &trusted).to_string(), "192.0.2.9");
        let stranger = "203.0.113.5".parse().unwrap();
        assert_eq!(client_ip(stranger, &map, &trusted), stranger);
        if let Ok(odd) = HeaderValue::from_bytes(after) {
            map.append(name.clone(), odd);
            map.append(name, HeaderValue::from_static("192.0.2.10"));
            assert_eq!(client_ip(peer, &map, &trusted).to_string(), "192.0.2.10");
        }
    }

    if let Some(mut map) = line(header::AUTHORIZATION, &[before], b"") {
        map.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer good"));
        let own = before.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "));
        assert!(own || bearer(&map).is_some_and(|token| token == "good"));
    }
});
