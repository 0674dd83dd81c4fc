//! `GET /ws`: from a request to a socket.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use axum::response::IntoResponse as _;
use hyper::upgrade::OnUpgrade;

use super::accept::Tenure;
use super::admission::SUBPROTOCOL;
use super::admit::{Asking, admit, unavailable, wants_envelope};
use super::headers::{has_token, offered, parameters};
use super::{App, mistaken, origins, refuse, refuse_with, socket};
use crate::config::Reject;
use crate::lifecycle::Phase;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::{Wire, place, sse};
use crate::session::{Admission, Since};
use crate::websocket::accept_key;

/// The handler of `GET /ws`. It answers before anything is read from the socket; the socket's own
/// task begins when hyper hands the stream over.
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

    // Another service's client may have been given this address.
    if !offered(&request.headers).any(|protocol| protocol == SUBPROTOCOL)
        && let Some(client) = mistaken::Client::by_protocol(&request)
    {
        return mistaken::turn_away(&app, client, request);
    }

    let asked = wire(&request).and_then(|wire| Ok((wire, since(&request, wire)?)));
    let (wire, since) = match asked {
        Ok(asked) => asked,
        Err(response) => return response,
    };

    let policy = app.context.policy.load_full();
    if !origins::allowed(&request, &policy) {
        return refuse(
            StatusCode::FORBIDDEN,
            "this origin may not open a socket here: add it to server.allowed_origins\n",
        );
    }

    let Some(upgrade) = request.extensions.remove::<OnUpgrade>() else {
        return refuse(StatusCode::BAD_REQUEST, "this connection cannot be upgraded\n");
    };

    let asking = Asking::Socket { by_close: policy.reject == Reject::Close };
    let (admission, place) = match admit(&app, &policy, &request, asking).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };

    if let Some(tenure) = request.extensions.get::<Tenure>() {
        tenure.hold();
    }
    let response = switching(&key, &request.headers);

    let lifecycle = app.lifecycle.clone();
    // The future is boxed here because a task keeps room for all that it was given.
    let beginning = Box::pin(async move {
        let socket::HandedOver { stream, early, held } = socket::handed_over(upgrade).await?;
        let connection = app.context.gateway.hub().register(Some(stream), wire);
        // The drain may have looked for connections before this one was registered.
        let admission = match app.lifecycle.phase() {
            Phase::Running | Phase::Settling => admission,
            Phase::Draining => Admission::Refused(Close::new(CloseCode::Restart, "draining")),
        };
        let beginning = socket::Beginning { admission, began, early, held, since, place };
        socket::begin(app.context, connection, beginning).await
    });

    lifecycle.spawn_connection(async move {
        if let Some(socket) = beginning.await {
            socket::run(socket).await;
        }
    });

    response
}

/// Checks the request by RFC 6455 section 4.2.1. Returns the accept key.
pub(super) fn check_upgrade(request: &Parts) -> Result<String, Response<Body>> {
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
    Ok(if wants_envelope(request)? { Wire::Envelope } else { Wire::Plain })
}

/// Reads `?since=`: the client's positions in channels that it will be subscribed to.
fn since(request: &Parts, wire: Wire) -> Result<Since, Response<Body>> {
    let value = parameters(&request.uri, "since").next();
    let Some(value) = value else { return Ok(Vec::new()) };
    let why = match sse::parse_id(&value) {
        Ok(_) if place::is_short(&value) => {
            "it is the id of a stream, which only a stream can take"
        }
        Ok(since) if wire.has_positions() => return Ok(since),
        Ok(_) => "since needs format=envelope: without it no event says where it is",
        Err(why) => why,
    };
    metrics::rejected(Rejected::BadRequest);
    Err(refuse_with(StatusCode::BAD_REQUEST, format!("since: {why}\n")))
}

/// The 101 answer. A token that is offered as a subprotocol is never echoed.
pub(super) fn switching(key: &str, headers: &HeaderMap) -> Response<Body> {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let out = response.headers_mut();
    out.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(key) = HeaderValue::from_str(key) {
        out.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    if offered(headers).any(|p| p == SUBPROTOCOL) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    response
}
