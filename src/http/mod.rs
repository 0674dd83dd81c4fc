//! The HTTP side: every route is on this page, and what the handlers share.
//!
//! Not here: what a session does (`session`). Invariant: everything that is read of a request has a
//! bound on its size and a deadline; tokens and query strings never reach a log.

mod accept;
mod admin;
mod admission;
mod admit;
mod api;
mod demo;
pub mod headers;
mod hosts;
mod mistaken;
mod origins;
mod places;
mod refusals;
pub mod socket;
mod sse;
mod websocket;
mod wire;

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::lifecycle::Lifecycle;
use crate::session::Context;
pub use accept::{Clients, Listener, serve};
use admission::Admissions;
use admit::unavailable;
pub use places::Share;

/// The longest request head, of which a token may be 16 KiB.
const MAX_HEAD: usize = 64 * 1024;

/// The client's TCP address.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub std::net::SocketAddr);

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub context: Arc<Context>,
    pub lifecycle: Lifecycle,
    pub metrics: PrometheusHandle,
    admissions: Arc<Admissions>,
}

impl App {
    #[must_use]
    pub fn new(context: Arc<Context>, lifecycle: Lifecycle, metrics: PrometheusHandle) -> Self {
        Self { context, lifecycle, metrics, admissions: Arc::default() }
    }
}

/// The public listener's routes. With `--dev` the demo page is one of them, for the address that is
/// listened on.
pub fn public(app: App, dev: Option<IpAddr>) -> Router {
    let mut router = Router::new()
        .route("/ws", any(websocket::upgrade))
        .route("/api/{method}", post(api::call))
        .route("/sse", any(sse::stream));
    if let Some(listen) = dev {
        let demo = Router::new()
            .route("/", get(demo::page))
            .route("/dev/token", get(demo::token))
            .route("/dev/purchase", post(demo::purchase))
            .route("/dev/gap", post(demo::gap))
            .route_layer(middleware::from_fn_with_state(listen, hosts::only_here));
        router = router.merge(demo);
    }
    router.fallback(mistaken::answer).with_state(app)
}

/// The admin listener's routes. Probes and scrapers may use any name or address; the debug pages
/// are for this machine's names.
pub fn admin(app: App, listen: IpAddr) -> Router {
    let debug = Router::new()
        .route("/debug/connections", get(admin::connections))
        .route("/debug/token/check", post(admin::check_token))
        .route_layer(middleware::from_fn_with_state(listen, hosts::only_here));
    Router::new()
        .merge(debug)
        .route("/metrics", get(admin::metrics))
        .route("/livez", get(admin::livez))
        .route("/readyz", get(admin::readyz))
        .fallback(not_found)
        .with_state(app)
}

/// A plain-text answer that ends the connection: bytes behind a refused request are not read.
fn refuse(status: StatusCode, message: &'static str) -> Response {
    refuse_with(status, message.to_owned())
}

fn refuse_with(status: StatusCode, message: String) -> Response {
    (status, [(header::CONNECTION, "close")], message).into_response()
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    let body = body.to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn not_found() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "not found: sockets are at /ws, streams at /sse, the server API at /api\n",
    )
}
