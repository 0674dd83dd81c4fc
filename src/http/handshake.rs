//! The opening handshake of a WebSocket (RFC 6455 section 4.2).
//!
//! Not here: who may open one (`authorize`, `origins`).

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use axum::response::IntoResponse as _;

use super::answers::refuse;
use super::carriers::SUBPROTOCOL;
use super::headers::{has_token, offered};
use crate::websocket::accept_key;

/// Checks the request (RFC 6455 section 4.2.1). Returns the accept key.
pub(super) fn check_upgrade(request: &Parts) -> Result<String, Response<Body>> {
    let headers = &request.headers;
    if request.method != Method::GET {
        return Err(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "a WebSocket handshake must be a GET request\n",
        ));
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
        return Err(refuse(StatusCode::BAD_REQUEST, "an upgrade request must not have a body\n"));
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
