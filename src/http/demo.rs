//! The demo page, and what stands in for a shop's API. Both are routed only with `--dev`, which
//! listens on loopback only.

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, json as json_response};
use crate::channel::{ChannelName, GapReason, encode_id};
use crate::session::unix_now;
use crate::strict::Object;

const PAGE: &str = include_str!("demo.html");

pub(super) async fn page() -> Response {
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
pub(super) struct User {
    user: String,
}

/// Answers what a login would: a token of ten minutes. It is signed with a secret that only this
/// process has, never with a configured key, whose tokens other gateways accept too.
pub(super) async fn token(State(app): State<App>, Query(User { user }): Query<User>) -> Response {
    let policy = app.context.policy.load();
    let claims = Value::Object(policy.verifier.claims_for(&user, unix_now(), 600));
    match policy.dev_key.as_ref().map(|key| key.sign(&claims, None)) {
        Some(Ok(token)) => json_response(StatusCode::OK, &json!({ "token": token })),
        _ => json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "no key" })),
    }
}

#[derive(Deserialize)]
pub(super) struct Purchase {
    user: String,
    post: String,
}

/// Does what a purchase API does after the payment: publishes one event on the buyer's channel.
pub(super) async fn purchase(
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

/// Declares a gap on the user's channel, which sockets see after an outage of Redis.
pub(super) async fn gap(
    State(app): State<App>,
    axum::Json(Object(User { user })): axum::Json<Object<User>>,
) -> Response {
    if let Ok(channel) = format!("user:{}", encode_id(&user)).parse::<ChannelName>() {
        app.context.gateway.declare_gap(channel, GapReason::Requested).await;
    }
    StatusCode::NO_CONTENT.into_response()
}
