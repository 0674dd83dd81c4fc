//! `GET /ws`: from a request to a socket.

use std::net::IpAddr;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use axum::response::IntoResponse as _;
use hyper::upgrade::OnUpgrade;

use super::admission::{self, Cookies, Credential, Place, SUBPROTOCOL};
use super::{App, Peer, refuse, refuse_with, socket};
use crate::auth::Reason;
use crate::config::{Policy, Reject};
use crate::lifecycle::Phase;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::{Wire, sse};
use crate::session::tokens::{Carried, close_of};
use crate::session::{Admission, Since};
use crate::websocket::accept_key;

/// The handler. It answers before anything is read from the socket; the socket's own task begins
/// when hyper hands the stream over.
pub(super) async fn upgrade(State(app): State<App>, request: Request) -> Response<Body> {
    let began = Instant::now();
    let (mut request, _) = request.into_parts();
    if app.lifecycle.phase() >= Phase::Draining {
        metrics::rejected(Rejected::Draining);
        return unavailable("draining: connect again, another replica answers\n");
    }
    let key = match check_upgrade(&request) {
        Ok(key) => key,
        Err(response) => {
            metrics::rejected(Rejected::BadRequest);
            return response;
        }
    };
    let asked = wire(&request).and_then(|wire| Ok((wire, since(&request, wire)?)));
    let (wire, since) = match asked {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let policy = app.context.policy.load_full();
    if !admission::origin_allowed(&request.headers, &policy.allowed_origins) {
        metrics::rejected(Rejected::Origin);
        return refuse(
            StatusCode::FORBIDDEN,
            "this origin may not open a socket here: add it to server.allowed_origins\n",
        );
    }
    let Some(upgrade) = request.extensions.remove::<OnUpgrade>() else {
        return refuse(StatusCode::BAD_REQUEST, "this connection cannot be upgraded\n");
    };
    let (admission, place) = match admit(&app, &policy, &request).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let response = switching(&key, &request.headers);
    let lifecycle = app.lifecycle.clone();
    lifecycle.spawn_connection(async move {
        if let Some((stream, early)) = socket::handed_over(upgrade).await {
            let connection = app.context.gateway.hub().register(Some(stream), wire);
            // The drain's last look may have been before this.
            let admission = match app.lifecycle.phase() {
                Phase::Running | Phase::Settling => admission,
                Phase::Draining => Admission::Refused(Close::new(CloseCode::Restart, "draining")),
            };
            let beginning = socket::Beginning { admission, began, early, since };
            socket::run(app.context, connection, beginning).await;
        }
        drop(place);
    });
    response
}

/// The token's fate, and the socket's place; or the answer that refuses it.
async fn admit(
    app: &App,
    policy: &Policy,
    request: &Parts,
) -> Result<(Admission, Place), Response<Body>> {
    let ip = client_ip(request, policy);
    let limits = &policy.limits;
    let by_close = policy.reject == Reject::Close;
    let place = match app.admissions.take(ip, limits.connections, limits.connections_per_ip) {
        Ok(place) => place,
        Err(what) => {
            metrics::rejected(what);
            let whose = if what == Rejected::PerIp { " of this address" } else { "" };
            let close = Close::new(CloseCode::TooMany, format!("too many connections{whose}"));
            if by_close && let Some(place) = app.admissions.courtesy() {
                return Ok((Admission::Refused(close), place));
            }
            return Err(too_many());
        }
    };
    let cookies = Cookies { token: policy.cookie.as_deref(), session: policy.verifier.session() };
    let carried = |by| Carried { by, ip: Some(ip) };
    let checked = match admission::credential(&request.headers, &request.uri, cookies) {
        None if policy.anonymous => return Ok((Admission::Anonymous, place)),
        None => return Ok((Admission::AwaitToken, place)),
        Some(Credential::Token(by, token)) => app.context.check_token(&token, carried(by)).await,
        Some(Credential::Session(name, token)) => {
            app.context.check_session(name, &token, carried("session_cookie"))
        }
    };
    match checked {
        Ok(identity) => Ok((Admission::Identity(Box::new(identity)), place)),
        Err(reason) if by_close => Ok((Admission::Refused(close_of(reason)), place)),
        Err(reason) if reason.is_ours() => Err(unavailable("our keys are not available\n")),
        Err(reason) => Err(unauthorized(reason)),
    }
}

fn client_ip(request: &Parts, policy: &Policy) -> IpAddr {
    let peer = request.extensions.get::<Peer>();
    let peer = peer.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |p| p.0.ip());
    admission::client_ip(peer, &request.headers, &policy.trusted_proxies)
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// RFC 6455 section 4.2.1; returns the accept key.
fn check_upgrade(request: &Parts) -> Result<String, Response<Body>> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET\n"));
    }
    if request.version != Version::HTTP_11 {
        return Err(refuse(StatusCode::BAD_REQUEST, "a WebSocket needs HTTP/1.1\n"));
    }
    if !has_token(headers, header::CONNECTION, "upgrade")
        || !has_token(headers, header::UPGRADE, "websocket")
    {
        let mut response = refuse(
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket: the request lacks Upgrade and Connection \
             (does a proxy on the way drop them?)\n",
        );
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        return Err(response);
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|v| v != "0")
    {
        return Err(refuse(StatusCode::BAD_REQUEST, "an upgrade has no body\n"));
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        let mut response = refuse(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 only\n");
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(response);
    }
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        .and_then(|key| accept_key(key.as_bytes()))
        .ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "bad Sec-WebSocket-Key\n"))
}

fn wire(request: &Parts) -> Result<Wire, Response<Body>> {
    let query = request.uri.query().unwrap_or_default();
    let format = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "format");
    match format.as_ref().map(|(_, value)| &**value) {
        None | Some("plain") => Ok(Wire::Plain),
        Some("envelope") => Ok(Wire::Envelope),
        Some(_) => {
            metrics::rejected(Rejected::BadRequest);
            Err(refuse(StatusCode::BAD_REQUEST, "format is plain or envelope\n"))
        }
    }
}

/// Where the client is in channels that it is to be subscribed to.
fn since(request: &Parts, wire: Wire) -> Result<Since, Response<Body>> {
    let query = request.uri.query().unwrap_or_default();
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "since");
    let Some((_, value)) = values.next() else { return Ok(Vec::new()) };
    let why = match sse::parse_id(&value) {
        Ok(since) if wire.has_positions() => return Ok(since),
        Ok(_) => "since needs format=envelope: without it no event says where it is",
        Err(why) => why,
    };
    metrics::rejected(Rejected::BadRequest);
    Err(refuse_with(StatusCode::BAD_REQUEST, format!("since: {why}\n")))
}

/// 101. A token offered as a subprotocol is never echoed.
fn switching(key: &str, headers: &HeaderMap) -> Response<Body> {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let out = response.headers_mut();
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(key) = HeaderValue::from_str(key) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    if admission::offered(headers).any(|p| p == SUBPROTOCOL) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}

fn unavailable(message: &'static str) -> Response<Body> {
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn too_many() -> Response<Body> {
    let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, "too many connections\n");
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

fn unauthorized(reason: Reason) -> Response<Body> {
    let mut response = refuse(StatusCode::UNAUTHORIZED, reason.slug());
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}
