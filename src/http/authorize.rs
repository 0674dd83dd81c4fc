//! Authorizing a request that becomes a socket or a stream: its permit, its token, its format.
//!
//! Not here: the checks of the token (`session::tokens`).

use std::net::IpAddr;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode, header};

use super::answers::{refuse, too_many_connections, unavailable};
use super::carriers::{self, Cookies};
use super::headers::{self, parameters};
use super::http_connection::HttpConnection;
use super::limits::{Permit, log_limit};
use super::shared::{App, Peer};
use crate::auth::Reason;
use crate::config::Policy;
use crate::lifecycle::Phase;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode};
use crate::session::{AuthOutcome, close_of};

/// What a request asks to become.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asking {
    /// `by_close`: a refusal is a socket that is closed with a reason.
    Socket {
        by_close: bool,
    },
    Stream,
}

/// Decides on a request. Returns the outcome for its token, and its permit; or the answer
/// that refuses it.
pub(super) async fn authorize(
    app: &App,
    policy: &Policy,
    request: &Parts,
    asking: Asking,
) -> Result<(AuthOutcome, Permit), Response<Body>> {
    let by_close = matches!(asking, Asking::Socket { by_close: true });
    let ip = client_ip(&request.extensions, &request.headers, policy);
    let seat = request.extensions.get::<HttpConnection>().map(HttpConnection::seat);
    let limits = &policy.limits;

    let take = || {
        // The connection itself is beyond its address's share.
        if seat.as_ref().is_some_and(|seat| seat.is_beyond()) {
            return Err(Rejected::PerIp);
        }
        app.limits.acquire(ip, limits.connections, limits.connections_per_ip)
    };

    let permit = match take() {
        Ok(permit) => permit.on(seat.clone()),
        Err(what) => {
            metrics::rejected(what);
            log_limit(what, ip);
            if what == Rejected::PerIp {
                hold_back(app, ip, policy).await;
            }
            let whose = if what == Rejected::PerIp { " of this address" } else { "" };
            let close = Close::new(CloseCode::TooMany, format!("too many connections{whose}"));
            if by_close && let Some(permit) = app.limits.courtesy() {
                return Ok((AuthOutcome::Refused(close), permit.on(seat)));
            }
            return Err(too_many_connections());
        }
    };

    let cookies = Cookies { token: policy.cookie.as_deref(), session: policy.verifier.session() };
    let brought = carriers::brought(&request.headers, &request.uri, cookies);

    let checked = if brought.is_empty() {
        match without_token(policy, request, asking) {
            Some(outcome) => return Ok((outcome, permit)),
            None => Err(app.context.no_token(ip)),
        }
    } else {
        app.context.check_first(&brought, ip).await
    };

    match checked {
        Ok(identity) => Ok((AuthOutcome::Identity(Box::new(identity)), permit)),
        Err(reason) if by_close && reason.is_ours() => {
            Ok((AuthOutcome::Refused(close_of(reason)), permit))
        }
        Err(reason) if reason.is_ours() => {
            Err(unavailable("the gateway's keys are not available\n"))
        }
        Err(reason) => {
            // While its answer waits, a refused client holds nothing but its own connection.
            drop(permit);
            hold_back(app, ip, policy).await;
            if !by_close {
                return Err(unauthorized(reason));
            }
            let permit =
                take().ok().or_else(|| app.limits.courtesy()).ok_or_else(too_many_connections)?;
            Ok((AuthOutcome::Refused(close_of(reason)), permit.on(seat).of_refused()))
        }
    }
}

/// The outcome for a request without a token. `None` means that the request is refused.
fn without_token(policy: &Policy, request: &Parts, asking: Asking) -> Option<AuthOutcome> {
    let announced = || parameters(&request.uri, "auth").any(|how| how == "message");
    let by_cookie = policy.cookie.is_some() || policy.verifier.session().is_some();

    match asking {
        Asking::Socket { .. } if announced() => Some(AuthOutcome::AwaitToken),
        _ if policy.anonymous => Some(AuthOutcome::Anonymous),
        // A page that relies on its cookie sends no first message: its user is signed out, and the
        // page has to learn that now.
        Asking::Socket { .. } if !by_cookie => Some(AuthOutcome::AwaitToken),
        Asking::Socket { .. } | Asking::Stream => None,
    }
}

/// Delays the answer to an address that is refused again and again.
pub(super) async fn hold_back(app: &App, ip: IpAddr, policy: &Policy) {
    let wait = app.limits.refusals.wait(ip, policy.limits.refusal_wait.0);
    if wait.is_zero() {
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = app.lifecycle.wait_for(Phase::Draining) => {}
    }
}

pub(super) fn client_ip(extensions: &Extensions, headers: &HeaderMap, policy: &Policy) -> IpAddr {
    let peer = extensions.get::<Peer>();
    let peer = peer.map_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), |p| p.0.ip());
    headers::client_ip(peer, headers, &policy.trusted_proxies)
}

/// Reads `?format=`.
pub(super) fn wants_envelope(request: &Parts) -> Result<bool, Response<Body>> {
    match parameters(&request.uri, "format").next().as_deref() {
        None | Some("plain") => Ok(false),
        Some("envelope") => Ok(true),
        Some(_) => {
            metrics::rejected(Rejected::BadRequest);
            Err(refuse(StatusCode::BAD_REQUEST, "format is plain or envelope\n"))
        }
    }
}

pub(super) fn unauthorized(reason: Reason) -> Response<Body> {
    let mut response = refuse(StatusCode::UNAUTHORIZED, reason.slug());
    let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}
