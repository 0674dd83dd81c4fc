//! Every metric: one row each, whose doc text is its HELP. Only this module uses the `metrics`
//! macros, so a metric has one name and one place.
//!
//! Invariant: no label has an unbounded set of values. Handles on hot paths are resolved once.

mod rejected;
pub mod relay;

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::auth::Reason;
use crate::auth::diagnose::Cause;
use crate::channel::GapReason;
use crate::protocol::Wire;
use crate::protocol::codes::{CloseCode, ErrorCode};
pub use rejected::Rejected;

/// The kind of series that a row makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! table {
    ($($(#[doc = $help:literal])+ $kind:ident $const:ident $name:literal;)+) => {
        $($(#[doc = $help])+ pub const $const: &str = concat!("tollgate_", $name);)+
        /// Name, kind and help of every metric.
        pub const ALL: &[(&str, Kind, &str)] =
            &[$(($const, Kind::$kind, concat!($($help),+)),)+];
    };
}

table! {
    /// Open connections (WebSockets and streams) by wire format and transport.
    Gauge CONNECTIONS "connections";
    /// Largest number of connections that this replica accepts (`limits.connections`).
    Gauge CONNECTIONS_LIMIT "connections_limit";
    /// Connections accepted with a valid token (or as anonymous).
    Counter CONNECTIONS_OPENED "connections_opened_total";
    /// Opened connections that ended, by reason.
    Counter CONNECTIONS_CLOSED "connections_closed_total";
    /// Seconds from the request to the first message on an accepted connection.
    Histogram HANDSHAKE "handshake_seconds";
    /// Refused tokens by reason.
    Counter AUTH_FAILURES "auth_failures_total";
    /// Refused signatures that the doctor examined, by the cause that it found; sampled.
    Counter AUTH_DIAGNOSES "auth_diagnoses_total";
    /// Always 1; one series for each key that verifies tokens now, by kid, first algorithm and fingerprint.
    Gauge KEY_INFO "key_info";
    /// 1 while the issuer of that name has a key of this gateway, 0 while it has another key.
    Gauge ISSUER_KEY_MATCH "issuer_key_match";
    /// Fetches of key sets by result.
    Counter JWKS_FETCHES "jwks_fetches_total";
    /// Callbacks to the application by result.
    Counter CALLBACKS "callbacks_total";
    /// Tokens and users that are currently revoked.
    Gauge REVOCATIONS "revocations";
    /// 1 if the last attempt to read the revocations from Redis succeeded, 0 if it failed.
    Gauge REVOCATIONS_READABLE "revocations_readable";
    /// Stored revocations that this version cannot use.
    Gauge REVOCATIONS_UNUSABLE "revocations_unusable";
    /// Subscriptions of the connections of this replica.
    Gauge SUBSCRIPTIONS "subscriptions";
    /// Subscriptions that the gateway ended because their permission ended, by reason.
    Counter SUBSCRIPTIONS_ENDED "subscriptions_ended_total";
    /// Channels with at least one subscription on this replica.
    Gauge CHANNELS "channels";
    /// Publications received from the broker, by broker and kind.
    Counter PUBLICATIONS_RECEIVED "publications_received_total";
    /// Events delivered to connections, by wire format.
    Counter DELIVERIES "deliveries_total";
    /// Seconds from publication to the last write to a connection, observed once per shard with subscribers. The start
    /// is by Redis' clock (durable publications) or that of the receiving replica (server API). A plain `PUBLISH`
    /// carries no time and is not observed.
    Histogram DELIVERY "delivery_seconds";
    /// Seconds from taking a batch of publications to the last write to a connection.
    Histogram FANOUT "fanout_seconds";
    /// Gaps declared, once per channel, by reason.
    Counter GAPS_DECLARED "gaps_declared_total";
    /// Connections closed because the client read too slowly.
    Counter SLOW_CONSUMERS "slow_consumers_total";
    /// Bytes in the outbound queues of all connections: waiting messages and the memory overhead of the queues.
    Gauge OUTBOUND_QUEUE_BYTES "outbound_queue_bytes";
    /// 1 while the connection to Redis is up, by role.
    Gauge REDIS_CONNECTED "redis_connected";
    /// 1 while clients are told that publications cannot arrive, on all channels or on some.
    Gauge DELIVERY_INTERRUPTED "delivery_interrupted";
    /// Number of Sentinels that answer.
    Gauge SENTINELS_REACHED "redis_sentinels_reached";
    /// Connections to Redis that were lost and reestablished.
    Counter REDIS_RECONNECTS "redis_reconnects_total";
    /// Seconds from a canary's publication to its arrival on a subscribing connection.
    Histogram CANARY "canary_seconds";
    /// Error replies from Redis and lost connections to it, by kind of fault.
    Counter REDIS_ERRORS "redis_errors_total";
    /// Canaries that did not come back: the connection was deaf and was replaced.
    Counter CANARY_MISSED "canary_missed_total";
    /// Recoveries of missing ranges between delivered and received offsets, by result.
    Counter RECOVERIES "recoveries_total";
    /// Subscriptions that asked to resume, by result.
    Counter RESUMES "resumes_total";
    /// Publications whose position is not in the channel's history: they are forged, or belong to an ended epoch.
    Counter CLAIMS_REFUTED "claims_refuted_total";
    /// Empty histories that were not created because of `history.opens_per_user` or `history.opens`.
    Counter HISTORIES_NOT_BEGUN "histories_not_begun_total";
    /// Durable publications that arrived a second time and were dropped.
    Counter DUPLICATES "duplicates_dropped_total";
    /// Requests, connections and publications rejected by a limit or a check.
    Counter REJECTED "rejected_total";
    /// 1 while this relay leads.
    Gauge RELAY_LEADER "relay_leader";
    /// Rows of the outbox that wait, up to a million; 0 on relays that stand by.
    Gauge RELAY_PENDING "relay_pending";
    /// Age of the oldest row that waits; 0 on relays that stand by.
    Gauge RELAY_OLDEST "relay_oldest_pending_seconds";
    /// Rows of the outbox that were published and marked.
    Counter RELAY_PUBLISHED "relay_published_total";
    /// Rows that Redis had already, because the answer to their first publication, or their mark, was lost.
    Counter RELAY_REPEATED "relay_repeated_total";
    /// Published rows whose channel no replica was subscribed to: their users were away.
    Counter RELAY_UNHEARD "relay_unheard_total";
    /// Seconds from a row's insertion to its publication, by the database's clock.
    Histogram RELAY_PUBLISH "relay_publish_seconds";
    /// Rows that can never be published and lie in `tollgate_outbox_dead`; 0 on relays that stand by.
    Gauge RELAY_DEAD "relay_dead";
    /// Rows that were moved to `tollgate_outbox_dead`, by reason.
    Counter RELAY_DEAD_TOTAL "relay_dead_total";
    /// 1 while this relay's session with PostgreSQL stands.
    Gauge RELAY_POSTGRES_CONNECTED "relay_postgres_connected";
    /// Failures of a relay, by the side that failed.
    Counter RELAY_ERRORS "relay_errors_total";
    /// 1 while this replica drains.
    Gauge DRAINING "draining";
    /// Log lines dropped because they could not be written, or not fast enough.
    Counter LOG_LINES_DROPPED "log_lines_dropped_total";
    /// Always 1; the label is a hash of the effective configuration without secrets.
    Gauge CONFIG_INFO "config_info";
    /// Configuration reloads by result; `unchanged` means that the configuration was reread and was the same.
    Counter CONFIG_RELOADS "config_reloads_total";
    /// Always 1; the label is the running version.
    Gauge BUILD_INFO "build_info";
}

/// The table of all metrics for `docs/metrics.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| metric | kind | what |\n| --- | --- | --- |\n");
    for (name, kind, help) in ALL {
        let kind = format!("{kind:?}").to_lowercase();
        let _ = writeln!(out, "| `{name}` | {kind} | {} |", help.trim());
    }
    out
}

/// The bounds of the buckets of all `_seconds` histograms: from the fan-out of a single event to a
/// stuck handshake.
const SECONDS: [f64; 14] = [
    0.000_025, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    10.0,
];

/// Installs the recorder, once per process.
///
/// # Panics
/// When another recorder was installed before.
pub fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
                .and_then(PrometheusBuilder::install_recorder)
                .expect("the only metrics recorder of the process");
            describe();
            metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            metrics_process::Collector::default().describe();
            handle
        })
        .clone()
}

fn describe() {
    for (name, kind, help) in ALL {
        let help = help.trim();
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, help),
            Kind::Gauge => metrics::describe_gauge!(*name, help),
            Kind::Histogram => metrics::describe_histogram!(*name, help),
        }
    }
}

/// Makes every series of a gateway with a closed set of labels exist, so that its first increase is
/// visible as one.
pub fn begin_gateway() {
    for reason in Reason::ALL {
        metrics::counter!(AUTH_FAILURES, "reason" => reason.slug()).increment(0);
    }
    for reason in GapReason::ALL {
        metrics::counter!(GAPS_DECLARED, "reason" => reason.label()).increment(0);
    }
    for code in CloseCode::ALL {
        closed(code.label(), 0);
    }
    closed("client_gone", 0);
    for what in Rejected::ALL {
        metrics::counter!(REJECTED, "reason" => what.label()).increment(0);
    }

    for wire in Wire::ALL {
        connections(wire).set(0.0);
        deliveries(wire).increment(0);
    }

    for result in ["ok", "failed", "unchanged"] {
        metrics::counter!(CONFIG_RELOADS, "result" => result).increment(0);
    }
    for result in ["ok", "failed"] {
        metrics::counter!(JWKS_FETCHES, "result" => result).increment(0);
    }
    for code in [ErrorCode::Forbidden, ErrorCode::TokenRefused, ErrorCode::CallbackFailed] {
        metrics::counter!(SUBSCRIPTIONS_ENDED, "reason" => code.slug()).increment(0);
    }
    for result in ["allowed", "denied", "failed"] {
        metrics::counter!(CALLBACKS, "result" => result).increment(0);
    }

    for cause in Cause::ALL {
        metrics::counter!(AUTH_DIAGNOSES, "cause" => cause.slug()).increment(0);
    }

    metrics::counter!(CONNECTIONS_OPENED).increment(0);
    metrics::counter!(SLOW_CONSUMERS).increment(0);
    metrics::counter!(REDIS_RECONNECTS).increment(0);
    metrics::counter!(CANARY_MISSED).increment(0);
    metrics::counter!(DUPLICATES).increment(0);
    metrics::counter!(LOG_LINES_DROPPED).increment(0);
    metrics::counter!(CLAIMS_REFUTED).increment(0);
    metrics::counter!(HISTORIES_NOT_BEGUN).increment(0);

    for result in ["filled", "declared"] {
        metrics::counter!(RECOVERIES, "result" => result).increment(0);
    }
    for result in ["recovered", "lost"] {
        metrics::counter!(RESUMES, "result" => result).increment(0);
    }

    for gauge in [SUBSCRIPTIONS, CHANNELS, OUTBOUND_QUEUE_BYTES, DRAINING] {
        metrics::gauge!(gauge).set(0.0);
    }
}

/// Handles for the fan-out, resolved once per shard.
pub struct Fanout {
    pub deliveries: [Counter; Wire::COUNT],
    pub seconds: Histogram,
    pub delivery: Histogram,
}

impl Default for Fanout {
    fn default() -> Self {
        Self {
            deliveries: Wire::ALL.map(deliveries),
            seconds: metrics::histogram!(FANOUT),
            delivery: metrics::histogram!(DELIVERY),
        }
    }
}

fn deliveries(wire: Wire) -> Counter {
    metrics::counter!(DELIVERIES, "wire" => wire.label())
}

/// Counts deliveries outside of the fan-out: those with which a subscription begins.
pub fn delivered(wire: Wire, n: usize) {
    if n > 0 {
        deliveries(wire).increment(n as u64);
    }
}

pub fn connections(wire: Wire) -> Gauge {
    metrics::gauge!(CONNECTIONS, "wire" => wire.label(), "transport" => wire.transport())
}

pub fn connections_limit(n: usize) {
    metrics::gauge!(CONNECTIONS_LIMIT).set(n as f64);
}

pub fn opened(handshake: Duration) {
    metrics::counter!(CONNECTIONS_OPENED).increment(1);
    metrics::histogram!(HANDSHAKE).record(handshake);
}

pub fn closed(reason: &'static str, n: u64) {
    metrics::counter!(CONNECTIONS_CLOSED, "reason" => reason).increment(n);
}

pub fn auth_failure(reason: Reason) {
    metrics::counter!(AUTH_FAILURES, "reason" => reason.slug()).increment(1);
}

pub fn auth_diagnosis(cause: Cause) {
    metrics::counter!(AUTH_DIAGNOSES, "cause" => cause.slug()).increment(1);
}

/// Sets the gauge of one verifying key: `true` when it begins to count, `false` when it ends.
pub fn key_info(kid: &str, alg: &'static str, fingerprint: &str, now: bool) {
    let labels =
        [("kid", kid.to_owned()), ("alg", alg.to_owned()), ("fingerprint", fingerprint.to_owned())];
    metrics::gauge!(KEY_INFO, &labels).set(f64::from(u8::from(now)));
}

pub fn issuer_key_match(issuer: &str, matches: bool) {
    metrics::gauge!(ISSUER_KEY_MATCH, "issuer" => issuer.to_owned())
        .set(f64::from(u8::from(matches)));
}

pub fn jwks_fetched(ok: bool) {
    let result = if ok { "ok" } else { "failed" };
    metrics::counter!(JWKS_FETCHES, "result" => result).increment(1);
}

/// Counts a question of the callback rule; `None` means that there was no clear answer.
pub fn callback(allowed: Option<bool>) {
    let result = match allowed {
        Some(true) => "allowed",
        Some(false) => "denied",
        None => "failed",
    };
    metrics::counter!(CALLBACKS, "result" => result).increment(1);
}

pub fn subscription_ended(code: ErrorCode) {
    metrics::counter!(SUBSCRIPTIONS_ENDED, "reason" => code.slug()).increment(1);
}

pub fn revocations(n: usize) {
    metrics::gauge!(REVOCATIONS).set(n as f64);
}

pub fn revocations_readable(readable: bool) {
    metrics::gauge!(REVOCATIONS_READABLE).set(f64::from(u8::from(readable)));
}

pub fn revocations_unusable(n: usize) {
    metrics::gauge!(REVOCATIONS_UNUSABLE).set(n as f64);
}

pub fn rejected(what: Rejected) {
    metrics::counter!(REJECTED, "reason" => what.label()).increment(1);
}

/// The counter for a broker's publications; `kind` is plain or durable.
pub fn publications(broker: &'static str, kind: &'static str) -> Counter {
    metrics::counter!(PUBLICATIONS_RECEIVED, "broker" => broker, "kind" => kind)
}

pub fn gap_declared(reason: GapReason) {
    metrics::counter!(GAPS_DECLARED, "reason" => reason.label()).increment(1);
}

pub fn slow_consumer() {
    metrics::counter!(SLOW_CONSUMERS).increment(1);
}

/// The gauge of queued bytes, looked up once, because every reply changes it.
fn outbound() -> &'static Gauge {
    static GAUGE: OnceLock<Gauge> = OnceLock::new();
    GAUGE.get_or_init(|| metrics::gauge!(OUTBOUND_QUEUE_BYTES))
}

pub fn queued(bytes: usize) {
    outbound().increment(bytes as f64);
}

pub fn unqueued(bytes: usize) {
    if bytes > 0 {
        outbound().decrement(bytes as f64);
    }
}

pub fn redis_connected(role: &'static str, up: bool) {
    metrics::gauge!(REDIS_CONNECTED, "role" => role).set(f64::from(u8::from(up)));
}

pub fn delivery_interrupted(told: bool) {
    metrics::gauge!(DELIVERY_INTERRUPTED).set(f64::from(u8::from(told)));
}

pub fn sentinels_reached(n: usize) {
    metrics::gauge!(SENTINELS_REACHED).set(n as f64);
}

pub fn redis_reconnect() {
    metrics::counter!(REDIS_RECONNECTS).increment(1);
}

/// Counts an error; `fault` is what it concerns, from a closed set.
pub fn redis_error(fault: &'static str) {
    metrics::counter!(REDIS_ERRORS, "fault" => fault).increment(1);
}

/// Makes the series exist, so that the first error is an increase.
pub fn redis_errors_begin(fault: &'static str) {
    metrics::counter!(REDIS_ERRORS, "fault" => fault).increment(0);
}

pub fn canary(after: Duration) {
    metrics::histogram!(CANARY).record(after);
}

pub fn canary_missed() {
    metrics::counter!(CANARY_MISSED).increment(1);
}

/// Counts how a missing range ended: filled from the history, or declared.
pub fn recovery(filled: bool) {
    let result = if filled { "filled" } else { "declared" };
    metrics::counter!(RECOVERIES, "result" => result).increment(1);
}

pub fn resume(recovered: bool) {
    let result = if recovered { "recovered" } else { "lost" };
    metrics::counter!(RESUMES, "result" => result).increment(1);
}

pub fn claims_refuted(n: usize) {
    metrics::counter!(CLAIMS_REFUTED).increment(n as u64);
}

pub fn history_not_begun() {
    metrics::counter!(HISTORIES_NOT_BEGUN).increment(1);
}

pub fn duplicate_dropped() {
    metrics::counter!(DUPLICATES).increment(1);
}

pub fn draining() {
    metrics::gauge!(DRAINING).set(1.0);
}

pub fn config_info(sha: &str) {
    metrics::gauge!(CONFIG_INFO, "sha" => sha.to_owned()).set(1.0);
}

/// Sets the series of the old configuration to 0, because another one takes its place.
pub fn config_replaced(old: &str, new: &str) {
    metrics::gauge!(CONFIG_INFO, "sha" => old.to_owned()).set(0.0);
    config_info(new);
}

/// Counts a reload; `result` is ok, failed or unchanged.
pub fn config_reload(result: &'static str) {
    metrics::counter!(CONFIG_RELOADS, "result" => result).increment(1);
}

/// Sets the number of lines that were dropped since the start.
pub fn log_lines_dropped(n: u64) {
    metrics::counter!(LOG_LINES_DROPPED).absolute(n);
}

/// Sets the figures of the process, when metrics are read.
pub fn of_process() {
    metrics_process::Collector::default().collect();
}

/// Sets the sizes of the hub and the figures of the process, when metrics are read.
pub fn sizes(subscriptions: usize, channels: usize) {
    of_process();
    metrics::gauge!(SUBSCRIPTIONS).set(subscriptions as f64);
    metrics::gauge!(CHANNELS).set(channels as f64);
}
