//! `GET /ws`: from a request to a socket.
//!
//! Not here: the socket's life (`socket`).

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;

use super::answers::{refuse, refuse_with, unavailable};
use super::authorize::{Asking, authorize, wants_envelope};
use super::carriers::SUBPROTOCOL;
use super::handshake::{check_upgrade, switching};
use super::headers::{offered, parameters};
use super::http_connection::HttpConnection;
use super::shared::App;
use super::{mistaken, origins, socket};
use crate::config::Reject;
use crate::lifecycle::Phase;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::{Wire, sse, stream_position};
use crate::session::{AuthOutcome, Positions};

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

    // The client of another service may have been given this address.
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
    let (outcome, permit) = match authorize(&app, &policy, &request, asking).await {
        Ok(authorized) => authorized,
        Err(response) => return response,
    };

    if let Some(held) = request.extensions.get::<HttpConnection>() {
        held.hold();
    }
    let response = switching(&key, &request.headers);

    let lifecycle = app.lifecycle.clone();
    // The future is boxed here because a task keeps room for everything that it was given.
    let beginning = Box::pin(async move {
        let socket::HandedOver { stream, early, held } = socket::handed_over(upgrade).await?;
        let connection = app.context.gateway.hub().register(Some(stream), wire);
        // The drain may have gone through the connections before this one was registered.
        let outcome = match app.lifecycle.phase() {
            Phase::Running | Phase::Settling => outcome,
            Phase::Draining => AuthOutcome::Refused(Close::new(CloseCode::Restart, "draining")),
        };
        let beginning = socket::Beginning { outcome, began, early, held, since, permit };
        socket::begin(app.context, connection, beginning).await
    });

    lifecycle.spawn_connection(async move {
        if let Some(socket) = beginning.await {
            socket::run(socket).await;
        }
    });

    response
}

fn wire(request: &Parts) -> Result<Wire, Response<Body>> {
    Ok(if wants_envelope(request)? { Wire::Envelope } else { Wire::Plain })
}

/// Reads `?since=`: the client's positions on channels that it will be subscribed to.
fn since(request: &Parts, wire: Wire) -> Result<Positions, Response<Body>> {
    let value = parameters(&request.uri, "since").next();
    let Some(value) = value else { return Ok(Vec::new()) };

    let why = match sse::parse_id(&value) {
        Ok(_) if stream_position::is_short(&value) => {
            "this is the event id of a stream, from which only a stream can resume"
        }
        Ok(since) if wire.has_positions() => return Ok(since),
        Ok(_) => "since needs format=envelope: other events carry no position",
        Err(why) => why,
    };

    metrics::rejected(Rejected::BadRequest);
    Err(refuse_with(StatusCode::BAD_REQUEST, format!("since: {why}\n")))
}
