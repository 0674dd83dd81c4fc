//! Answers that several handlers give.

use std::time::SystemTime;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::logging;

/// A plain-text answer that ends the connection: bytes behind a refused request are not read.
pub fn refuse(status: StatusCode, message: &'static str) -> Response {
    refuse_with(status, message.to_owned())
}

pub fn refuse_with(status: StatusCode, message: String) -> Response {
    (status, [(header::CONNECTION, "close")], message).into_response()
}

pub fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    let body = body.to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What Prometheus is told.
pub(super) fn metrics(handle: &PrometheusHandle) -> Response {
    crate::metrics::log_lines_dropped(logging::dropped());
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], handle.render()).into_response()
}

/// The last error, as `/readyz` has it.
pub(super) fn last_error(error: Option<(SystemTime, String)>) -> Option<serde_json::Value> {
    error.map(|(at, what)| {
        serde_json::json!({ "at": humantime::format_rfc3339_seconds(at).to_string(), "what": what })
    })
}

pub(super) async fn not_found() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "not found: sockets are at /ws, streams at /sse, the server API at /api\n",
    )
}

pub(super) fn unavailable(message: &'static str) -> Response {
    refuse_for(StatusCode::SERVICE_UNAVAILABLE, message, "1")
}

pub(super) fn too_many_connections() -> Response {
    refuse_for(StatusCode::TOO_MANY_REQUESTS, "too many connections\n", "5")
}

/// A refusal for the moment: the client may come back after so many seconds.
fn refuse_for(status: StatusCode, message: &'static str, seconds: &'static str) -> Response {
    let mut response = refuse(status, message);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    response
}
