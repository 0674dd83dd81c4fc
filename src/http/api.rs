//! The server API: Centrifugo's method names, shapes and error codes, so that existing backend
//! libraries work. The key comes as `X-API-Key: KEY` or `Authorization: apikey KEY`.
//!
//! As in Centrifugo, a call is answered with 200 and `result` or `error`, also where its body is not
//! JSON (error 107). A missing key is 401, a body that is too large 413, and one that does not
//! arrive in time 408. A field that this version does not have is refused by name with code 108
//! rather than ignored. Not here: what a call does (`gateway`).

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::{Instant, timeout_at};

use super::answers::{json as json_response, refuse};
use super::authorize::{client_ip, hold_back};
use super::shared::App;
use crate::access;
use crate::auth::{Revocation, id_text};
use crate::broker::Durable;
use crate::channel::{ChannelName, check_id};
use crate::clock::unix_now;
use crate::gateway::{Control, PublishError};
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::strict;

/// Most channels of one broadcast.
const MAX_BROADCAST: usize = 1000;

/// An error with Centrifugo's number.
struct ApiError(u32, String);

impl ApiError {
    fn bad_request(message: impl Into<String>) -> Self {
        Self(107, message.into())
    }

    fn not_available(message: impl Into<String>) -> Self {
        Self(108, message.into())
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::TooLarge
            | PublishError::Reserved(_)
            | PublishError::Invalid(_)
            | PublishError::NoId(_) => Self::bad_request(error.to_string()),
            PublishError::Broker(_) => Self(100, error.to_string()),
        }
    }
}

type ApiResult = Result<Value, ApiError>;

/// The handler of `POST /api/{method}`.
pub(super) async fn call(
    State(app): State<App>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    let policy = app.context.policy.load_full();
    if !key_accepted(request.headers(), &policy.api_keys) {
        metrics::rejected(Rejected::ApiKey);
        let ip = client_ip(request.extensions(), request.headers(), &policy);
        logging::repeated(("api key refused", ""), "", move |repeated| {
            tracing::warn!(%ip, repeated, "API key refused");
        });
        hold_back(&app, ip, &policy).await;
        return refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized: send a key of api.keys as X-API-Key\n",
        );
    }

    let limits = &policy.limits;
    let deadline = Instant::now() + limits.request_timeout.0;
    let body = Limited::new(request.into_body(), limits.request_body_bytes).collect();
    let body = match timeout_at(deadline, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            metrics::rejected(Rejected::MessageSize);
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or was cut off\n");
        }
        Err(_) => {
            metrics::rejected(Rejected::Timeout);
            return refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n");
        }
    };

    let work = dispatch(&app, &method, &body);
    let result = match timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError(100, "the broker did not answer in time".to_owned())),
    };

    match result {
        Ok(result) => json_response(StatusCode::OK, &json!({ "result": result })),
        Err(error) => json_response(StatusCode::OK, &json!({ "error": error_value(&error) })),
    }
}

fn error_value(ApiError(code, message): &ApiError) -> Value {
    json!({ "code": code, "message": message })
}

/// Compares the given key with every configured one, in a time that depends on no content: all are
/// compared, by hashes of equal length.
fn key_accepted(headers: &HeaderMap, keys: &[Arc<[u8]>]) -> bool {
    let given = headers.get("x-api-key").map(|v| v.as_bytes()).or_else(|| {
        let value = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"apikey ").then_some(key)
    });
    let Some(given) = given else { return false };

    let given = Sha256::digest(given);
    let hits = keys.iter().map(|key| Sha256::digest(key).ct_eq(&given));
    hits.fold(subtle::Choice::from(0), |any, hit| any | hit).into()
}

async fn dispatch(app: &App, method: &str, body: &Bytes) -> ApiResult {
    match method {
        "publish" => publish(app, parse(body)?).await,
        "broadcast" => broadcast(app, parse(body)?).await,
        "disconnect" => disconnect(app, parse(body)?).await,
        "revoke_token" => revoke_token(app, parse(body)?).await,
        "invalidate_user_tokens" => invalidate_user_tokens(app, parse(body)?).await,
        "info" => Ok(info(app)),
        "batch" | "subscribe" | "unsubscribe" | "refresh" | "presence" | "presence_stats"
        | "history" | "history_remove" | "channels" | "connections" => Err(
            ApiError::not_available(format!("this version does not support the method {method}")),
        ),
        _ => Err(ApiError(104, "method not found".to_owned())),
    }
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, ApiError> {
    strict::from_slice(body).map_err(|e| ApiError::bad_request(format!("bad request: {e}")))
}

/// Refuses fields that were sent and that this version does not have.
fn refuse_rest(rest: &Map<String, Value>) -> Result<(), ApiError> {
    let is_set = |v: &&Value| !matches!(v, Value::Null | Value::Bool(false)) && *v != "";
    match rest.iter().find(|(_, v)| is_set(v)) {
        Some((name, _)) => {
            let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
            Err(ApiError::not_available(format!("this version does not support the field {name}")))
        }
        None => Ok(()),
    }
}

fn channel(name: &str) -> Result<ChannelName, ApiError> {
    name.parse().map_err(|e| ApiError::bad_request(format!("channel: {e}")))
}

/// The parameters of `publish`.
#[derive(Deserialize)]
struct Publish<'a> {
    channel: String,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(flatten)]
    kept: Keep,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

async fn publish(app: &App, request: Publish<'_>) -> ApiResult {
    refuse_rest(&request.rest)?;
    let channel = channel(&request.channel)?;
    let payload = Bytes::copy_from_slice(request.data.get().as_bytes());
    publish_one(app, &channel, payload, request.kept).await
}

/// How a publication is to be kept. By default the channel's rule decides.
#[derive(Deserialize, Clone, Default)]
struct Keep {
    #[serde(default)]
    skip_history: bool,
    #[serde(default)]
    idempotency_key: Option<String>,
}

/// The longest idempotency key in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 256;

/// Publishes to one channel. The answer holds the position if the channel has a history, and how many
/// replicas' connections the event was handed to.
async fn publish_one(app: &App, channel: &ChannelName, payload: Bytes, keep: Keep) -> ApiResult {
    let idempotency_key = keep.idempotency_key.filter(|key| !key.is_empty());
    if idempotency_key.as_ref().is_some_and(|key| key.len() > MAX_IDEMPOTENCY_KEY) {
        return Err(ApiError::bad_request("idempotency_key: at most 256 bytes"));
    }

    let policy = app.context.policy.load();
    if !access::is_given(channel, &policy.rules) {
        let why = "no rule in [[channels]] matches this channel, so nobody can subscribe to it";
        return Err(ApiError(102, format!("unknown channel: {why}")));
    }

    let retention = access::history(channel, &policy.rules);
    drop(policy);
    let durable = match retention.filter(|_| !keep.skip_history) {
        Some(retention) => Some(Durable { retention, idempotency_key }),
        None if idempotency_key.is_some() => {
            return Err(ApiError::not_available(
                "idempotency_key needs a history: use a channel whose rule has one, and no \
                 skip_history",
            ));
        }
        None => None,
    };

    let published = app.context.gateway.publish(channel, payload, durable).await?;
    let mut result = Map::new();
    if let Some(position) = published.position {
        result.insert("offset".to_owned(), position.offset.into());
        result.insert("epoch".to_owned(), (*position.epoch).into());
    }
    if let Some(heard) = published.heard {
        result.insert("heard".to_owned(), heard.into());
    }
    Ok(Value::Object(result))
}

/// The parameters of `broadcast`.
#[derive(Deserialize)]
struct Broadcast<'a> {
    channels: Vec<String>,
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(flatten)]
    kept: Keep,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Publishes to several channels, with one answer per channel in their order. A bad channel does
/// not hold back the others.
async fn broadcast(app: &App, request: Broadcast<'_>) -> ApiResult {
    refuse_rest(&request.rest)?;
    if request.channels.is_empty() || request.channels.len() > MAX_BROADCAST {
        return Err(ApiError::bad_request(format!("channels: 1 to {MAX_BROADCAST} names")));
    }

    let payload = Bytes::copy_from_slice(request.data.get().as_bytes());
    let publications = request.channels.iter().map(|name| {
        let payload = payload.clone();
        let keep = request.kept.clone();
        async move {
            let published = async {
                let channel = channel(name)?;
                publish_one(app, &channel, payload, keep).await
            };
            match published.await {
                Ok(result) => json!({ "result": result }),
                Err(error) => json!({ "error": error_value(&error) }),
            }
        }
    });

    let responses = futures_util::future::join_all(publications).await;
    Ok(json!({ "responses": responses }))
}

/// Reads a text, or a whole number as its decimal text.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let text =
        id_text(&value).ok_or_else(|| D::Error::custom("expected a string or a whole number"))?;
    Ok(text.into_owned())
}

/// Reads a user's id in the form of the token, not in that of a channel's name.
fn user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let user = text(deserializer)?;
    check_id(&user).map_err(|e| D::Error::custom(format!("user: {e}")))?;
    Ok(user)
}

/// The parameters of `disconnect`.
#[derive(Deserialize)]
struct Disconnect {
    #[serde(deserialize_with = "user")]
    user: String,
    #[serde(default)]
    client: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

async fn disconnect(app: &App, request: Disconnect) -> ApiResult {
    refuse_rest(&request.rest)?;
    let client = request.client.filter(|c| !c.is_empty());
    let control = Control::Disconnect { user: request.user, client };
    let sent = app.context.gateway.control(&control).await;
    sent.map_err(|e| ApiError(100, e.to_string()))?;
    Ok(json!({}))
}

/// How long a revocation holds by default: longer than any honest token lives.
const REVOKED_FOR: u64 = 30 * 86_400;

/// The end of the year 9999. A larger number must be milliseconds.
const MAX_SECONDS: u64 = 253_402_300_799;

/// The parameters of `revoke_token`.
#[derive(Deserialize)]
struct RevokeToken {
    /// The token's `jti`; Centrifugo's name for it is `uid`.
    #[serde(alias = "uid", deserialize_with = "text")]
    jti: String,
    /// Unix seconds: the token's own end, after which the revocation may be forgotten.
    #[serde(default)]
    expire_at: Option<u64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

async fn revoke_token(app: &App, request: RevokeToken) -> ApiResult {
    refuse_rest(&request.rest)?;
    if request.jti.is_empty() || request.jti.len() > 256 {
        return Err(ApiError::bad_request("jti: 1 to 256 bytes"));
    }
    let until = until(request.expire_at)?;
    revoke(app, Revocation::Token { jti: request.jti, until }).await
}

/// The parameters of `invalidate_user_tokens`.
#[derive(Deserialize)]
struct InvalidateUserTokens {
    #[serde(deserialize_with = "user")]
    user: String,
    /// Unix seconds. Tokens with an earlier `iat` are revoked, and those without one. By default
    /// that is all tokens that were issued up to now, this second included.
    #[serde(default)]
    issued_before: Option<u64>,
    #[serde(default)]
    expire_at: Option<u64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

async fn invalidate_user_tokens(app: &App, request: InvalidateUserTokens) -> ApiResult {
    refuse_rest(&request.rest)?;
    if request.issued_before.is_some_and(|at| at > MAX_SECONDS) {
        return Err(ApiError::bad_request("issued_before must be in seconds, not milliseconds"));
    }
    let user = request.user;
    let until = until(request.expire_at)?;

    // `iat` has whole seconds: a token of this second may be older than the call. A token that is
    // issued after the call in the same second is refused as well, which costs one new token. If it
    // were accepted, a stolen token could stay valid.
    let issued_before = request.issued_before.unwrap_or_else(|| unix_now().saturating_add(1));
    revoke(app, Revocation::User { user, issued_before, until }).await
}

/// The end of a revocation: the given one, or the default.
fn until(expire_at: Option<u64>) -> Result<u64, ApiError> {
    match expire_at {
        Some(at) if at <= unix_now() => Err(ApiError::bad_request("expire_at is in the past")),
        Some(at) if at > MAX_SECONDS => {
            Err(ApiError::bad_request("expire_at must be in seconds, not milliseconds"))
        }
        Some(at) => Ok(at),
        None => Ok(unix_now() + REVOKED_FOR),
    }
}

async fn revoke(app: &App, revocation: Revocation) -> ApiResult {
    let revoked = app.context.gateway.revoke(revocation).await;
    revoked.map_err(|e| ApiError(100, e.to_string()))?;
    Ok(json!({}))
}

fn info(app: &App) -> Value {
    let gateway = &app.context.gateway;
    json!({ "nodes": gateway.nodes().all(gateway.hub().counts()) })
}
