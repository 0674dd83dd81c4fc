//! The HTTP side: every route but the demo's is on this page.
//!
//! Not here: what a session does (`session`). Invariant: everything that is read of a request has a
//! bound on its size and a deadline; tokens and query strings never reach a log.

mod accept;
mod admin;
pub mod answers;
mod api;
mod authorize;
mod carriers;
mod corked_stream;
mod handshake;
pub mod headers;
pub mod hosts;
mod http_connection;
mod limits;
mod mistaken;
mod network;
mod origins;
mod refusals;
mod relay_admin;
mod seats;
mod shared;
pub mod socket;
mod sse;
mod websocket;

use std::net::IpAddr;

use axum::routing::{any, get, post};
use axum::{Router, middleware};

pub use accept::{Clients, Listener, serve};
pub use relay_admin::{RelayAdmin, relay_admin};
pub use seats::Share;
pub use shared::{App, Peer};

/// The public listener's routes.
pub fn public(app: App) -> Router {
    Router::new()
        .route("/ws", any(websocket::upgrade))
        .route("/api/{method}", post(api::call))
        .route("/sse", any(sse::stream))
        .fallback(mistaken::answer)
        .with_state(app)
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
        .fallback(answers::not_found)
        .with_state(app)
}
