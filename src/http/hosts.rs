//! Pages that sign tokens or show connections answer only to names that lead to this machine.
//!
//! With DNS rebinding, the DNS of a foreign page's name is turned to this address. For the browser
//! this server is then of the page's own origin, so that the page could read its answers; but
//! `Host` holds the foreign name. The pages of scrapers and probes, which are asked for by pod
//! addresses or any name, are not protected like that.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::answers::refuse;
use crate::origin::{host_of, is_loopback};

/// Lets a request pass whose host is a loopback name or the address that is listened on.
pub async fn only_here(State(listen): State<IpAddr>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|h| h.to_str().ok()).and_then(host_of);
    let named = request.uri().host();

    let here = hosts.next().is_none()
        && host.is_some_and(|host| is_here(host, listen))
        && named.is_none_or(|host| is_here(host, listen));

    if here {
        return next.run(request).await;
    }

    refuse(
        StatusCode::MISDIRECTED_REQUEST,
        "this page is not served under this host name: use a loopback name (localhost, 127.0.0.1) \
         or the address that the gateway listens on\n",
    )
}

/// True if the host leads here. An address in `Host` is no name whose DNS somebody could turn.
fn is_here(host: &str, listen: IpAddr) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_loopback(host) || address.is_ok_and(|ip| ip == listen || listen.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_e5_only_names_of_this_machine_are_here() {
        for (host, listen, expected) in [
            ("localhost", "127.0.0.1", true),
            ("LocalHost", "127.0.0.1", true),
            ("app.localhost", "127.0.0.1", true),
            ("127.0.0.1", "10.1.2.3", true),
            ("[::1]", "127.0.0.1", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.4", "10.1.2.3", false),
            ("10.1.2.4", "0.0.0.0", true),
            ("[fd00::7]", "::", true),
            ("evil.example", "127.0.0.1", false),
            ("evil.example", "0.0.0.0", false),
            ("127.0.0.1.evil.example", "127.0.0.1", false),
            ("localhost.evil.example", "0.0.0.0", false),
            ("notlocalhost", "0.0.0.0", false),
        ] {
            assert_eq!(is_here(host, listen.parse().unwrap()), expected, "{host} at {listen}");
        }
    }
}
