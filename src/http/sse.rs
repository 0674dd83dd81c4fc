//! `GET /sse`: the events of a session as server-sent events (HTML Standard, section 9.2).
//!
//! The session lives in a task of its own; the response's body takes from its queue. Permanent
//! errors are HTTP statuses: an `EventSource` stops after one. Temporary ones are a stream with
//! `retry:` that ends at once, because an `EventSource` reconnects after nothing else. Not here:
//! what the session does (`session::stream`).

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::answers::{refuse, refuse_with, unavailable};
use super::authorize::{Asking, authorize, wants_envelope};
use super::headers::{accepts, parameters};
use super::http_connection::{HttpConnection, OpenStream};
use super::limits::Permit;
use super::origins;
use super::shared::App;
use super::socket::{End, attend};
use crate::channel::ChannelName;
use crate::config::Policy;
use crate::hub::Connection;
use crate::lifecycle::Phase;
use crate::metrics::{self, Rejected};
use crate::protocol::Wire;
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::stream_position::StreamPosition;
use crate::session::stream::StreamSession;
use crate::session::{AuthOutcome, Context, Refusal};

const EVENTS: &str = "text/event-stream";

/// How long the messages that are still queued when a stream ends may take to leave.
const LAST_WORDS: Duration = Duration::from_secs(2);

type Opened = Result<mpsc::Receiver<Bytes>, Refusal>;

/// A stream that is about to begin.
struct Beginning {
    outcome: AuthOutcome,
    began: Instant,
    channels: Vec<ChannelName>,
    from: StreamPosition,
    /// Held for as long as the stream lives.
    held: (Permit, Option<OpenStream>),
}

/// The handler of `GET /sse`.
pub(super) async fn stream(State(app): State<App>, request: Request) -> Response<Body> {
    let began = Instant::now();
    let (request, _) = request.into_parts();

    let policy = app.context.policy.load_full();
    // A foreign page's `<img>` sends cookies and no origin. It could use up its
    // visitor's connections.
    let hidden = !request.headers.contains_key(header::ORIGIN)
        && request.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if hidden {
        metrics::rejected(Rejected::Origin);
    }
    if hidden || !origins::allowed(&request, &policy) {
        return refuse(
            StatusCode::FORBIDDEN,
            "this origin may not open a stream here: add it to server.allowed_origins\n",
        );
    }

    let mut response = match request.method {
        Method::OPTIONS => preflight(&policy.allowed_headers),
        _ => match begin(&app, &policy, &request, began).await {
            Ok(events) => body(events),
            Err(response) => response,
        },
    };

    // A page of another site that is allowed may read the answer, and send its cookies.
    if let Some(origin) = request.headers.get(header::ORIGIN) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        let credentials = HeaderValue::from_static("true");
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Headers that a page may send: those that the gateway reads, and those that tracing and HTTP
/// libraries add by themselves.
const ALLOWED_HEADERS: &str = "accept, authorization, cache-control, content-type, last-event-id, \
    pragma, x-requested-with, traceparent, tracestate, baggage, sentry-trace";

/// Answers a preflight, which a browser sends for a page that sets headers of its own.
fn preflight(more: &[String]) -> Response<Body> {
    let allowed = [&[ALLOWED_HEADERS.to_owned()], more].concat().join(", ");
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET".to_owned()),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, allowed),
        (header::ACCESS_CONTROL_MAX_AGE, "600".to_owned()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// Begins a stream, or says why not.
async fn begin(
    app: &App,
    policy: &Policy,
    request: &Parts,
    began: Instant,
) -> Result<mpsc::Receiver<Bytes>, Response<Body>> {
    if request.method != Method::GET {
        return Err(refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "a stream must be requested with GET\n",
        ));
    }

    let later = |message| for_now(&request.headers, message);
    if app.lifecycle.phase() >= Phase::Draining {
        metrics::rejected(Rejected::Draining);
        return Err(later("draining: connect again, another replica answers\n"));
    }

    let wire = if wants_envelope(request)? { Wire::SseEnvelope } else { Wire::Sse };
    let bad = |message: String| {
        metrics::rejected(Rejected::BadRequest);
        refuse_with(StatusCode::BAD_REQUEST, message)
    };

    let max = policy.limits.channels_per_connection;
    let channels = channels(request, max).map_err(bad)?;

    let (outcome, permit) = match authorize(app, policy, request, Asking::Stream).await {
        Ok(authorized) => authorized,
        Err(response) => {
            let temporary = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
            let temporary = temporary.contains(&response.status());
            return Err(if temporary {
                later("temporarily unavailable: connect again\n")
            } else {
                response
            });
        }
    };

    let from = from(request).map_err(bad)?;
    let stream = request.extensions.get::<HttpConnection>().map(HttpConnection::stream);
    let beginning = Beginning { outcome, began, channels, from, held: (permit, stream) };

    let (answer, answered) = oneshot::channel();
    let context = Arc::clone(&app.context);
    let connection = context.gateway.hub().register(None, wire);

    // The drain may have gone through the connections before this one was registered.
    if app.lifecycle.phase() >= Phase::Draining {
        connection.close(Close::new(CloseCode::Restart, "draining"));
    }

    // The session has a task of its own, so that it ends in order even if this request is dropped.
    app.lifecycle.spawn_connection(run(context, connection, beginning, answer));
    match answered.await {
        Ok(Ok(events)) => Ok(events),
        Ok(Err(why)) => Err(refusal(why, &request.headers)),
        Err(_) => Err(later("the stream could not be started\n")),
    }
}

/// Reads `?channels=a,b`, which may occur more than once.
fn channels(request: &Parts, max: usize) -> Result<Vec<ChannelName>, String> {
    let mut found: Vec<ChannelName> = Vec::new();
    for list in parameters(&request.uri, "channels") {
        for name in list.split(',').filter(|name| !name.is_empty()) {
            let channel = name.parse().map_err(|e| format!("channels: {e}\n"))?;
            if !found.contains(&channel) {
                found.push(channel);
            }
            if found.len() > max {
                return Err(format!("channels: at most {max} on one stream\n"));
            }
        }
    }
    Ok(found)
}

/// Names of query parameters with which clients send their last id, in lower case and without `-`
/// and `_`. Some replacements of `EventSource` cannot set the header, or save a preflight.
const LAST_ID: [&str; 2] = ["lasteventid", "evslasteventid"];

/// Where the client resumes: `Last-Event-ID`, which an `EventSource` sends when it reconnects, the
/// same in the query, and `?since=`. A page that opened its stream with one of them reconnects with
/// two: the later position counts.
fn from(request: &Parts) -> Result<StreamPosition, String> {
    let mut place = StreamPosition::default();
    for id in request.headers.get_all("last-event-id") {
        let id = std::str::from_utf8(id.as_bytes()).map_err(|_| "it is not UTF-8");
        let read = id.and_then(StreamPosition::read);
        place.merge(read.map_err(|why| format!("Last-Event-ID: {why}\n"))?);
    }

    let query = request.uri.query().unwrap_or_default();
    for (name, id) in form_urlencoded::parse(query.as_bytes()) {
        let plain: String = name.chars().filter(|c| !matches!(c, '-' | '_')).collect();
        if name == "since" || LAST_ID.contains(&&*plain.to_ascii_lowercase()) {
            place.merge(StreamPosition::read(&id).map_err(|why| format!("{name}: {why}\n"))?);
        }
    }
    Ok(place)
}

fn event_stream(body: Body) -> Response<Body> {
    let headers = [
        (header::CONTENT_TYPE.as_str(), EVENTS),
        // Middleware that compresses would hold events back. It leaves such an answer alone.
        (header::CACHE_CONTROL.as_str(), "no-cache, no-transform"),
        // nginx would otherwise hold events back.
        ("x-accel-buffering", "no"),
        // The connection has left the HTTP connections of its address, so it must carry no
        // other request.
        (header::CONNECTION.as_str(), "close"),
    ];
    (headers, body).into_response()
}

fn body(mut events: mpsc::Receiver<Bytes>) -> Response<Body> {
    let stream = futures_util::stream::poll_fn(move |cx| {
        events.poll_recv(cx).map(|event| event.map(Ok::<_, Infallible>))
    });
    event_stream(Body::from_stream(stream))
}

/// Refuses for the moment. A client that asks for an event stream gets one that ends, others
/// get a status.
fn for_now(headers: &HeaderMap, message: &'static str) -> Response<Body> {
    if accepts(headers, EVENTS) {
        let close = Close::new(CloseCode::TryAgainLater, message.trim_end());
        return event_stream(Body::from(Wire::Sse.close(&close)));
    }
    unavailable(message)
}

fn refusal(Refusal(code, message): Refusal, headers: &HeaderMap) -> Response<Body> {
    let status = match code {
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::TokenRefused | ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::BadRequest | ErrorCode::NotSupported | ErrorCode::NotSubscribed => {
            StatusCode::BAD_REQUEST
        }
        ErrorCode::LimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable | ErrorCode::CallbackFailed => {
            return for_now(headers, "temporarily unavailable: connect again\n");
        }
    };
    refuse_with(status, format!("{message}\n"))
}

/// Runs a stream to its end.
async fn run(
    context: Arc<Context>,
    connection: Arc<Connection>,
    beginning: Beginning,
    answer: oneshot::Sender<Opened>,
) {
    let gauge = metrics::connections(connection.wire());
    gauge.increment(1.0);

    let Beginning { outcome, began, channels, from, held } = beginning;
    let mut session = StreamSession::new(context, Arc::clone(&connection), began, channels, from);

    let end = match session.permit(&outcome).await {
        Ok(()) => {
            let (events, body) = mpsc::channel(1);

            // If the client is gone already, the first event that cannot be handed over shows it.
            let _ = answer.send(Ok(body));

            let end = match drive(&connection, &events, session.begin(outcome)).await {
                Ok(()) => live(&mut session, &connection, &events).await,
                Err(end) => end,
            };

            session.core.end();
            last_words(&connection, &events, &end).await;
            end
        }
        Err(refusal) => {
            session.core.end();
            let _ = answer.send(Err(refusal));
            End::Ours(Close::new(CloseCode::Normal, "refused"))
        }
    };

    drop(held);
    gauge.decrement(1.0);
    if session.core.was_opened() {
        end.count();
    }
}

/// Runs the session's work while the client takes what is queued: catching up may take more than
/// its queue holds.
async fn drive(
    connection: &Connection,
    events: &mpsc::Sender<Bytes>,
    work: impl Future<Output = Result<(), Close>>,
) -> Result<(), End> {
    let mut work = Box::pin(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done.map_err(End::Ours),
            wake = connection.wait(false) => attend(connection, wake)?,
            room = events.reserve(), if connection.has_queued() => hand_over(connection, room)?,
            () = events.closed() => return Err(End::Gone),
        }
    }
}

fn hand_over(
    connection: &Connection,
    room: Result<mpsc::Permit<'_, Bytes>, mpsc::error::SendError<()>>,
) -> Result<(), End> {
    let room = room.map_err(|_| End::Gone)?;
    if let Some(chunk) = connection.take_queued() {
        room.send(chunk);
    }
    Ok(())
}

/// Serves a stream until it has to end.
async fn live(
    session: &mut StreamSession,
    connection: &Connection,
    events: &mpsc::Sender<Bytes>,
) -> End {
    loop {
        tokio::select! {
            biased;
            wake = connection.wait(true) => {
                if wake.close && let Some(close) = connection.take_close() {
                    return End::Ours(close);
                }

                if wake.timer && let Err(close) = session.on_timer() {
                    return End::Ours(close);
                }

                if session.core.has_questions()
                    && let Err(end) = drive(connection, events, session.ask_questions()).await
                {
                    return end;
                }
            }

            room = events.reserve(), if connection.has_queued() => {
                if let Err(end) = hand_over(connection, room) {
                    return end;
                }
            }
            () = events.closed() => return End::Gone,
        }
    }
}

/// Hands over what is queued, and the reason of the stream's end.
async fn last_words(connection: &Connection, events: &mpsc::Sender<Bytes>, end: &End) {
    let End::Ours(close) = end else { return };
    connection.finish(connection.wire().close(close));

    let leave = async {
        while let Some(chunk) = connection.take_queued() {
            if events.send(chunk).await.is_err() {
                return;
            }
        }
    };

    // A client that does not read its last messages does without them.
    let _ = timeout(LAST_WORDS, leave).await;
}
