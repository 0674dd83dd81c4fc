//! Clients of other services that were given Tollgate's address. Each is told in its own protocol
//! that this is the wrong server and what to use, in the way that ends its retries.
//!
//! Not here: access. Such a client is given nothing, so neither origin nor token is checked.

mod client;
mod speak;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper::upgrade::OnUpgrade;
use serde_json::json;
use tokio::sync::Semaphore;

use super::answers::{self, not_found, refuse, unavailable};
use super::handshake::{check_upgrade, switching};
use super::headers::{has_token, parameters};
use super::http_connection::HttpConnection;
use super::shared::App;
use crate::logging;
use crate::metrics::{self, Rejected};
pub(super) use client::Client;
use speak::WHY;

/// How many such clients may be told at once, or be kept from reconnecting.
static PLACES: Semaphore = Semaphore::const_new(256);

/// The handler of everything without a route.
pub(super) async fn answer(State(app): State<App>, request: Request) -> Response<Body> {
    let (request, _) = request.into_parts();
    match Client::recognise(&request) {
        Some(client) => turn_away(&app, client, request),
        None => not_found().await,
    }
}

/// Tells a client where it should have gone.
pub(super) fn turn_away(app: &App, client: Client, request: Parts) -> Response<Body> {
    metrics::rejected(Rejected::ForeignClient);
    logging::repeated(("foreign client", client.name()), "", move |repeated| {
        tracing::warn!(
            client = client.name(),
            repeated,
            "a client of another service: Tollgate's address is /ws for a plain WebSocket, /sse for EventSource"
        );
    });

    if has_token(&request.headers, header::UPGRADE, "websocket") {
        return upgrade(app, client, request);
    }

    let mut response = over_http(client, &request);
    // The answer says nothing that is not public, and without these headers a page could
    // not read it.
    if let Some(origin) = request.headers.get(header::ORIGIN) {
        let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        let credentials = HeaderValue::from_static("true");
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(asked) = asked {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
    }

    response
}

/// Answers 101, so that the client can be told on its WebSocket.
fn upgrade(app: &App, client: Client, mut request: Parts) -> Response<Body> {
    let key = match check_upgrade(&request) {
        Ok(key) => key,
        Err(response) => return response,
    };
    let Some(upgrade) = request.extensions.remove::<OnUpgrade>() else {
        return refuse(StatusCode::BAD_REQUEST, "this connection cannot be upgraded\n");
    };
    let Ok(place) = PLACES.try_acquire() else {
        return unavailable("too many clients of other services\n");
    };

    if let Some(held) = request.extensions.get::<HttpConnection>() {
        held.hold();
    }

    let mut response = switching(&key, &request.headers);
    if let Some(protocol) = client.offered(&request) {
        let protocol = HeaderValue::from_static(protocol);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }

    let words = speak::Words::of(client, &request);
    let lifecycle = app.lifecycle.clone();

    // The client counts for its address until it ends.
    let seat = request.extensions.get::<HttpConnection>().map(HttpConnection::seat);
    app.lifecycle.spawn_connection(async move {
        let _places = (place, seat);
        speak::to(upgrade, words, lifecycle).await;
    });

    response
}

/// Answers long polling and everything else that is not a WebSocket.
fn over_http(client: Client, request: &Parts) -> Response<Body> {
    if request.method == Method::OPTIONS {
        let headers = [(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST")];
        return (StatusCode::NO_CONTENT, headers).into_response();
    }

    let path = request.uri.path();
    let is_json = request
        .headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"application/json"));
    let first = parameters(&request.uri, "sid").next().is_none();
    let json = |status, body: serde_json::Value| answers::json(status, &body);

    match client {
        Client::Centrifuge if is_json && path.ends_with("/http_stream") => {
            (StatusCode::OK, format!("{}\n", speak::disconnect())).into_response()
        }
        Client::Centrifuge if path.ends_with("/sse") => {
            let headers = [(header::CONTENT_TYPE, "text/event-stream")];
            (headers, format!("data: {}\n\n", speak::disconnect())).into_response()
        }
        Client::Centrifuge => (StatusCode::NOT_IMPLEMENTED, format!("{WHY}\n")).into_response(),
        Client::SocketIo if request.method == Method::POST => "ok".into_response(),
        Client::SocketIo if first => speak::socket_io(request).join("\u{1e}").into_response(),
        Client::SocketIo | Client::EngineIo => {
            json(StatusCode::BAD_REQUEST, json!({ "code": 3, "message": WHY }))
        }
        Client::Ably => json(
            StatusCode::NOT_FOUND,
            json!({ "error": { "code": 40400, "statusCode": 404, "message": WHY } }),
        ),
        Client::Phoenix | Client::ActionCable | Client::Pusher | Client::GraphQl => {
            (StatusCode::NOT_FOUND, format!("{WHY}\n")).into_response()
        }
    }
}
