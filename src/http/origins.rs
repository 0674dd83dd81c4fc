//! Whether a page may open a socket or a stream (RFC 6455 section 10.2). Only browsers
//! send an origin.
//!
//! Not here: comparing origins (`crate::origin`).

use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use ipnet::IpNet;

use super::shared::Peer;
use crate::config::Policy;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::origin::Own;

/// The longest part of an origin that is logged, in bytes.
const MAX_SHOWN: usize = 200;

/// True if the page may. A refusal is counted and logged.
pub(super) fn allowed(request: &Parts, policy: &Policy) -> bool {
    let mut origins = request.headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else {
        return true;
    };

    let host = request.headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let peer = request.extensions.get::<Peer>().map(|peer| peer.0.ip());
    let secure = peer.is_some_and(|peer| by_tls(peer, &request.headers, &policy.trusted_proxies));
    let own = Own { host: host.unwrap_or_default(), secure };

    let text = origin.to_str().unwrap_or_default();
    if origins.next().is_none() && policy.allowed_origins.allow(text, &own) {
        return true;
    }

    metrics::rejected(Rejected::Origin);
    refused(origin.as_bytes(), policy);
    false
}

/// Logs a refused origin. A browser tells its user nothing, so the log says what to
/// write and where.
fn refused(origin: &[u8], policy: &Policy) {
    let shown = origin[..origin.len().min(MAX_SHOWN)].escape_ascii().to_string();
    let text = std::str::from_utf8(origin).unwrap_or_default();
    let line = policy.allowed_origins.line_with(text).filter(|_| text.len() <= MAX_SHOWN);

    let what = match line {
        Some(line) => format!(
            "origin refused; if it is yours, add this to [server] in the configuration: {line}"
        ),
        None => "origin refused: the header is not a valid origin".to_owned(),
    };
    logging::repeated(("origin refused", ""), &shown.clone(), move |repeated| {
        tracing::warn!(origin = shown, repeated, "{what}");
    });
}

/// True if a trusted proxy says that the client used TLS, to it or to a proxy in front of it.
fn by_tls(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> bool {
    let peer = peer.to_canonical();
    let values = headers.get_all("x-forwarded-proto").iter().filter_map(|v| v.to_str().ok());
    let mut schemes = values.flat_map(|v| v.split(',')).map(str::trim);
    trusted.iter().any(|net| net.contains(&peer))
        && schemes.any(|s| s.eq_ignore_ascii_case("https") || s.eq_ignore_ascii_case("wss"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn field_f9_only_a_trusted_proxy_says_that_there_was_tls() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        for (peer, proto, expected) in [
            ("10.0.0.1", &["https"][..], true),
            ("10.0.0.1", &["HTTPS"], true),
            ("10.0.0.1", &["wss"], true),
            ("10.0.0.1", &["https, http"], true),
            ("10.0.0.1", &["http", "https"], true),
            ("::ffff:10.0.0.1", &["https"], true),
            ("10.0.0.1", &["http"], false),
            ("10.0.0.1", &[], false),
            ("1.2.3.4", &["https"], false),
        ] {
            let mut headers = HeaderMap::new();
            for value in proto {
                headers.append("x-forwarded-proto", HeaderValue::from_static(value));
            }

            assert_eq!(
                by_tls(peer.parse().unwrap(), &headers, &trusted),
                expected,
                "{peer} {proto:?}"
            );
        }
    }
}
