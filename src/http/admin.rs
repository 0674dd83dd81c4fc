//! The admin listener: metrics, health, debugging. It must never be public.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::answers::{self, json as json_response};
use super::shared::App;
use crate::auth::diagnose;
use crate::clock::unix_now;
use crate::hub::TICKS_PER_SECOND;
use crate::lifecycle::Phase;

/// Most connections that one answer lists.
const MAX_LISTED: usize = 1000;

/// A shard whose task has had no turn for this long makes no progress.
const STUCK_TICKS: u32 = 20 * TICKS_PER_SECOND;

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let counts = app.context.gateway.hub().counts();
    crate::metrics::sizes(counts.subscriptions, counts.channels);
    answers::metrics(&app.metrics)
}

/// Liveness. It fails only if the process makes no progress, because a restart mends that and
/// nothing else.
pub(super) async fn livez(State(app): State<App>) -> Response {
    let lag = app.context.gateway.hub().lag();
    let alive = lag < STUCK_TICKS;
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let seconds = f64::from(lag) / f64::from(TICKS_PER_SECOND);
    json_response(status, &json!({ "alive": alive, "secondsBehind": seconds }))
}

/// Readiness. A replica is not ready before the first round trip to the broker, before the key sets
/// and the revocations have been read, and while it drains. A later outage of the broker leaves it
/// ready, or every replica would leave the load balancer at once; the outage shows in the checks
/// here, in the metrics and in the alerts.
pub(super) async fn readyz(State(app): State<App>) -> Response {
    let health = app.context.gateway.broker().health();
    let started = app.lifecycle.is_broker_ready();
    let keys = app.context.jwks.health();
    let has_keys = app.context.jwks.is_started();
    let problem = app.lifecycle.reload_problem();
    let draining = app.lifecycle.phase() > Phase::Running;
    let revocations = app.context.gateway.revocations_health();

    let ready = started && has_keys && revocations.known && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };

    let body = json!({
        "ready": ready,
        "checks": {
            "broker_started": { "ok": started },
            "broker_subscriber": { "ok": health.subscriber, "kind": health.kind },
            "broker_publisher": { "ok": health.publisher, "kind": health.kind },
            "revocations": {
                "ok": revocations.is_good(),
                "count": revocations.count,
                "unusable": revocations.unusable,
                "readAt": revocations.read_at,
                "error": revocations.error,
            },
            "broker_writer": { "ok": health.writer, "kind": health.kind },
            "draining": { "ok": !draining },
            "keys": { "ok": keys.iter().all(|k| k.usable), "sets": keys.iter().map(|k| json!({
                "url": k.url,
                "keys": k.keys,
                "fetchedAt": k.fetched_at,
                "usable": k.usable,
                "error": k.error,
            })).collect::<Vec<_>>() },
            "configuration": { "ok": problem.is_none(), "error": problem },
        },
        "degraded": ready
            && !(health.subscriber
                && health.publisher
                && health.writer
                && revocations.is_good()),
        "lastError": answers::last_error(health.last_error.map(|e| (e.at, e.what))),
    });

    json_response(status, &body)
}

/// The query of `/debug/connections`.
#[derive(Deserialize)]
pub(super) struct Filter {
    user: Option<String>,
    limit: Option<usize>,
}

/// The longest body of a request for a token's diagnosis.
const MAX_TOKEN: usize = 256 * 1024;

/// Answers the whole diagnosis of the token in the body.
pub(super) async fn check_token(State(app): State<App>, body: axum::body::Body) -> Response {
    let Ok(body) = axum::body::to_bytes(body, MAX_TOKEN).await else {
        return json_response(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "error": "too large" }));
    };
    let text = String::from_utf8_lossy(&body);
    let policy = app.context.policy.load_full();
    let report =
        diagnose::examine(&policy.verifier, text.trim_end_matches(['\r', '\n']), &[], unix_now());
    json_response(StatusCode::OK, &serde_json::to_value(&report).unwrap_or_default())
}

/// Lists the connections of this replica, or of one user with `?user=`.
pub(super) async fn connections(State(app): State<App>, Query(filter): Query<Filter>) -> Response {
    let gateway = &app.context.gateway;
    let hub = gateway.hub();
    let limit = filter.limit.unwrap_or(100).min(MAX_LISTED);

    let found: Vec<_> = match &filter.user {
        Some(user) => hub.of_user(user),
        None => hub.ids().into_iter().take(limit).filter_map(|id| hub.get(id)).collect(),
    };

    let listed: Vec<_> = found
        .iter()
        .take(limit)
        .map(|c| {
            json!({
                "id": gateway.connection_id(c),
                "user": c.user(),
                "wire": c.wire().label(),
                "channels": hub.channels_of(c).iter().map(|n| n.as_str()).collect::<Vec<_>>(),
                "queuedBytes": c.queued_bytes(),
                "openSeconds": c.opened().elapsed().as_secs(),
            })
        })
        .collect();

    let total = hub.counts().connections;
    json_response(StatusCode::OK, &json!({ "total": total, "connections": listed }))
}
