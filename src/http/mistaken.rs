//! Clients of other services that were given Tollgate's address. Each is told in its own protocol
//! that this is the wrong server and what to use, in the way that ends its retries.
//!
//! Not here: access. Nobody is given anything, so neither origin nor token is checked.

mod speak;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use hyper::upgrade::OnUpgrade;
use serde_json::json;
use tokio::sync::Semaphore;

use super::accept::Tenure;
use super::headers::{has_token, offered, parameters};
use super::websocket::{check_upgrade, switching};
use super::{App, not_found, refuse, unavailable};
use crate::logging;
use crate::metrics::{self, Rejected};

/// The text that every one of them gets. A close reason has 123 bytes.
const WHY: &str = "wrong server: Tollgate does not speak this protocol. Use a plain WebSocket at /ws, \
                   or EventSource at /sse";

/// How many such clients may be told at once, or be kept from reconnecting.
static PLACES: Semaphore = Semaphore::const_new(256);

/// The service that a client belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Centrifuge,
    /// pusher-js, and laravel-echo, which uses it.
    Pusher,
    /// phoenix and supabase-js.
    Phoenix,
    ActionCable,
    Ably,
    SocketIo,
    EngineIo,
    GraphQl,
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Self::Centrifuge => "centrifuge",
            Self::Pusher => "pusher-js",
            Self::Phoenix => "phoenix",
            Self::ActionCable => "actioncable",
            Self::Ably => "ably",
            Self::SocketIo => "socket.io",
            Self::EngineIo => "engine.io",
            Self::GraphQl => "graphql-ws",
        }
    }

    /// The subprotocols of which the client wants one selected.
    fn protocols(self) -> &'static [&'static str] {
        match self {
            Self::Centrifuge => &["centrifuge-protobuf", "centrifuge-json"],
            Self::Phoenix => &["phoenix"],
            Self::ActionCable => &["actioncable-v1-json"],
            Self::GraphQl => &["graphql-transport-ws", "graphql-ws"],
            Self::Pusher | Self::Ably | Self::SocketIo | Self::EngineIo => &[],
        }
    }

    /// Recognises a client by its subprotocol, on whatever path.
    pub(super) fn by_protocol(request: &Parts) -> Option<Self> {
        let known = [Self::Centrifuge, Self::ActionCable, Self::GraphQl, Self::Phoenix];
        known.into_iter().find(|client| client.offered(request).is_some())
    }

    fn offered(self, request: &Parts) -> Option<&'static str> {
        let wanted = self.protocols().iter();
        wanted.copied().find(|protocol| offered(&request.headers).any(|o| o == *protocol))
    }

    fn recognise(request: &Parts) -> Option<Self> {
        let has = |name| parameters(&request.uri, name).next().is_some();
        let path = request.uri.path();

        // Some services are mounted below a path of the application's own.
        let ends = |end: &str| path.trim_end_matches('/').ends_with(end);

        let by_path = if path.starts_with("/connection/") || path == "/emulation" {
            Some(Self::Centrifuge)
        } else if path.starts_with("/app/") && has("protocol") {
            Some(Self::Pusher)
        } else if ends("/socket.io") {
            Some(Self::SocketIo)
        } else if ends("/engine.io") {
            Some(Self::EngineIo)
        } else if has("vsn") && (ends("/websocket") || ends("/longpoll")) {
            Some(Self::Phoenix)
        } else if ends("/cable") {
            Some(Self::ActionCable)
        } else if path == "/" && has("v") && has("agent") {
            Some(Self::Ably)
        } else {
            None
        };

        by_path.or_else(|| Self::by_protocol(request))
    }
}

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
    // The answer says nothing that is not public, and without these headers a page could not read
    // it.
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
    if let Some(tenure) = request.extensions.get::<Tenure>() {
        tenure.hold();
    }

    let mut response = switching(&key, &request.headers);
    if let Some(protocol) = client.offered(&request) {
        let protocol = HeaderValue::from_static(protocol);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }

    let words = speak::Words::of(client, &request);
    let lifecycle = app.lifecycle.clone();
    // The client counts for its address until it ends.
    let seat = request.extensions.get::<Tenure>().map(Tenure::seat);
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
    let json = |status, body: serde_json::Value| super::json(status, &body);

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

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(uri: &str, protocols: &str) -> Option<Client> {
        let mut request = axum::http::Request::builder().uri(uri);
        if !protocols.is_empty() {
            request = request.header("sec-websocket-protocol", protocols);
        }
        Client::recognise(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn clients_are_known_by_their_paths_and_protocols() {
        for (uri, protocols, client) in [
            ("/connection/websocket", "", Some(Client::Centrifuge)),
            ("/anything", "centrifuge-protobuf", Some(Client::Centrifuge)),
            ("/app/KEY?protocol=7&client=js&version=8.4.0", "", Some(Client::Pusher)),
            ("/socket/websocket?vsn=2.0.0", "", Some(Client::Phoenix)),
            ("/live/websocket?vsn=2.0.0", "", Some(Client::Phoenix)),
            ("/realtime/v1/websocket?apikey=a&vsn=1.0.0", "", Some(Client::Phoenix)),
            ("/cable", "actioncable-v1-json, actioncable-unsupported", Some(Client::ActionCable)),
            ("/cable", "", Some(Client::ActionCable)),
            ("/?key=a.b&format=json&v=5&agent=ably-js%2F2", "", Some(Client::Ably)),
            ("/socket.io/?EIO=4&transport=polling", "", Some(Client::SocketIo)),
            ("/app/socket.io/?EIO=3&transport=websocket", "", Some(Client::SocketIo)),
            ("/engine.io/?EIO=4&transport=polling", "", Some(Client::EngineIo)),
            ("/graphql", "graphql-transport-ws", Some(Client::GraphQl)),
            ("/", "", None),
            ("/app/page", "", None),
            ("/socket/websocket", "", None),
            ("/wss", "tollgate, bearer.x", None),
        ] {
            assert_eq!(recognised(uri, protocols), client, "{uri} {protocols}");
        }

        assert!(WHY.len() <= 123);
    }
}
