//! The demo page of `make run`, and what stands in for a shop's API. Both are routed only with
//! `--dev`, which listens on loopback only.

use std::net::IpAddr;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::channel::{ChannelName, GapReason, encode_id};
use crate::clock::unix_now;
use crate::http::answers::json as json_response;
use crate::http::{App, hosts};
use crate::strict::Object;

const PAGE: &str = include_str!("page.html");

/// The demo's routes, for the names of the address that is listened on.
pub(crate) fn routes(app: App, listen: IpAddr) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/dev/token", get(token))
        .route("/dev/purchase", post(purchase))
        .route("/dev/gap", post(gap))
        .route_layer(middleware::from_fn_with_state(listen, hosts::only_here))
        .with_state(app)
}

async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                  connect-src 'self' ws: wss:; img-src data:";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE).into_response()
}

#[derive(Deserialize)]
struct User {
    user: String,
}

/// Answers what a login would: a token of ten minutes. It is signed with a secret that only this
/// process has, never with a configured key, whose tokens other gateways accept too.
async fn token(State(app): State<App>, Query(User { user }): Query<User>) -> Response {
    let policy = app.context.policy.load();
    let claims = Value::Object(policy.verifier.claims_for(&user, unix_now(), 600));
    match policy.dev_key.as_ref().map(|key| key.sign(&claims, None)) {
        Some(Ok(token)) => json_response(StatusCode::OK, &json!({ "token": token })),
        _ => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "no key" })),
    }
}

#[derive(Deserialize)]
struct Purchase {
    user: String,
    post: String,
}

/// Does what a purchase API does after the payment: publishes one event on the buyer's channel.
async fn purchase(
    State(app): State<App>,
    axum::Json(Object(Purchase { user, post })): axum::Json<Object<Purchase>>,
) -> Response {
    let Ok(channel) = format!("user:{}", encode_id(&user)).parse::<ChannelName>() else {
        return json_response(StatusCode::BAD_REQUEST, &json!({ "error": "bad user" }));
    };

    let event = json!({ "type": "post_purchased", "postId": post, "at": unix_now() });
    let payload = Bytes::from(event.to_string());
    match app.context.gateway.publish(&channel, payload, None).await {
        Ok(_) => json_response(StatusCode::OK, &json!({ "published": channel.as_str() })),
        Err(e) => {
            json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": e.to_string() }))
        }
    }
}

/// Declares a gap on the user's channel, as sockets see one after an outage of Redis.
async fn gap(
    State(app): State<App>,
    axum::Json(Object(User { user })): axum::Json<Object<User>>,
) -> Response {
    if let Ok(channel) = format!("user:{}", encode_id(&user)).parse::<ChannelName>() {
        app.context.gateway.declare_gap(channel, GapReason::Requested).await;
    }
    StatusCode::NO_CONTENT.into_response()
}
