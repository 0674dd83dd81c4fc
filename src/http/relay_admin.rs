//! The admin listener of a relay, which has no clients.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;

use super::answers::{self, json as json_response, not_found};
use crate::broker::Broker as _;
use crate::broker::redis::RedisBroker;
use crate::lifecycle::{Lifecycle, Phase};
use crate::relay::Shown;

/// What the routes show.
#[derive(Clone)]
pub struct RelayAdmin {
    pub(crate) shown: Arc<Shown>,
    pub(crate) broker: Arc<RedisBroker>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metrics: PrometheusHandle,
}

/// The routes.
pub fn relay_admin(admin: RelayAdmin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .fallback(not_found)
        .with_state(admin)
}

async fn metrics(State(admin): State<RelayAdmin>) -> Response {
    crate::metrics::of_process();
    answers::metrics(&admin.metrics)
}

/// Ready to lead, or leading. A relay that stands by needs its database only; one that leads and cannot
/// reach Redis stays ready, because another one could not either, but is degraded.
async fn readyz(State(admin): State<RelayAdmin>) -> Response {
    let health = admin.shown.now();
    let redis = admin.broker.health();
    let missing = health.missing.as_ref().map(|missing| missing.join("; "));
    let schema = missing.as_deref() == Some("");
    let draining = admin.lifecycle.phase() > Phase::Running;
    let ready = health.postgres && schema && redis.ready && !draining;

    let body = json!({
        "ready": ready,
        "checks": {
            "postgres": { "ok": health.postgres },
            "schema": { "ok": schema, "error": missing.filter(|missing| !missing.is_empty()) },
            "redis": { "ok": redis.publisher },
            "redis_writer": { "ok": redis.writer },
            "draining": { "ok": !draining },
        },
        "degraded": ready && !(redis.publisher && redis.writer),
        "leader": health.term.is_some(),
        "term": health.term,
        "pending": health.counts.as_ref().map(|counts| counts.pending),
        "oldestSeconds": health.counts.as_ref().map(|counts| counts.oldest),
        "dead": health.counts.as_ref().map(|counts| counts.dead),
        "lastError": answers::last_error(
            health.last_error.or(redis.last_error.map(|e| (e.at, e.what)))
        ),
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &body)
}
