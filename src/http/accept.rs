//! Listening and serving HTTP/1.1 connections. An upgraded socket leaves here with its TCP stream.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_service::Service as _;

use super::wire::Wire;
use super::{MAX_HEAD, Peer, refuse};
use crate::lifecycle::{Lifecycle, Phase};
use crate::logging;
use crate::metrics::{self, Rejected};

/// Connections that the kernel may hold for us: a burst must not lose SYNs, which would come again
/// only after a second.
const BACKLOG: u32 = 4096;

/// How long a peer may leave bytes of ours unacknowledged, or its window closed, before the kernel
/// ends the connection (tcp(7), TCP_USER_TIMEOUT): whoever does not read an answer holds no place.
const UNREAD: Duration = Duration::from_secs(20);

/// An HTTP connection that did not become a socket ends after this and its answer in hand.
const LIFETIME: Duration = Duration::from_secs(600);

/// And gets this long for that answer.
const LAST_ANSWER: Duration = Duration::from_secs(30);

/// Bounds for one listener's HTTP connections.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub connections: usize,
    /// For a request's head, from the first wait for it: no slowloris.
    pub head: Duration,
}

/// A bound socket.
pub struct Listener {
    listener: TcpListener,
    bounds: Bounds,
}

impl Listener {
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr, connections: usize, head: Duration) -> std::io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // Linux gives these to every connection that it accepts (tcp(7)): two calls fewer for each.
        // Replies and events are whole when they are written; waiting for more would only add delay.
        socket.set_nodelay(true)?;
        SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD))?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        Ok(Self { listener, bounds: Bounds { connections, head } })
    }

    /// # Errors
    /// The socket's own.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Counts a connection while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an HTTP connection holds beside its socket; handlers find it among the request's extensions.
#[derive(Clone)]
pub(super) struct Tenure(Arc<State>);

struct State {
    /// Its place among the connections that are not sockets or streams.
    place: Mutex<Option<Counted>>,
    streams: AtomicUsize,
    /// What is written waits for the socket that the connection becomes.
    holds: AtomicBool,
}

/// An answer without end is under way on the connection.
pub(super) struct Streaming(Arc<State>);

impl Tenure {
    /// The connection becomes a stream: limited as a socket is, and not by its age.
    pub(super) fn stream(&self) -> Streaming {
        self.0.place.lock().take();
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Streaming(Arc::clone(&self.0))
    }

    /// The answer under way goes out with the first words of the socket that the connection becomes.
    pub(super) fn hold(&self) {
        self.0.holds.store(true, Ordering::Relaxed);
    }

    pub(super) fn holds(&self) -> bool {
        self.0.holds.load(Ordering::Relaxed)
    }

    fn is_stream(&self) -> bool {
        self.0.streams.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until the drain begins (`until` is reached), then closes the listening socket.
pub async fn serve(listener: Listener, router: Router, lifecycle: Lifecycle, until: Phase) {
    let Listener { listener, bounds } = listener;
    let open = Arc::new(AtomicUsize::new(0));
    let ended = lifecycle.reached(until);
    tokio::pin!(ended);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ended => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of file descriptors, mostly: shed, log, and do not spin.
                logging::repeated(("cannot accept", ""), &e.kind(), move |repeated| {
                    tracing::warn!(error = %e, repeated, "cannot accept");
                });
                metrics::rejected(Rejected::Connections);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let counted = Counted(Arc::clone(&open));
        if open.fetch_add(1, Ordering::Relaxed) >= bounds.connections {
            metrics::rejected(Rejected::HttpConnections);
            put_off(&stream);
            continue;
        }
        let router = router.clone();
        let ended = {
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reached(until).await }
        };
        let place = Mutex::new(Some(counted));
        let tenure = Tenure(Arc::new(State {
            place,
            streams: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
        }));
        lifecycle.spawn_connection(async move {
            connection((stream, peer), router, (bounds.head, tenure), ended).await;
        });
    }
}

/// RFC 9112 section 3.2: exactly one Host, and a valid one. Who disagrees with a proxy about the host of a request
/// can be made to answer in another's name. HTTP/1.0 needs none.
fn names_its_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => {
            let host = host.as_bytes();
            host.is_empty() || (Authority::try_from(host).is_ok() && !host.contains(&b'@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Says that it may come again (RFC 9110 section 15.6.4), as far as that goes without waiting.
fn put_off(stream: &TcpStream) {
    let mut socket = &*SockRef::from(stream);
    // Closing with unread bytes is a reset, which overtakes the answer. Failures leave it at that.
    let _ = socket.read(&mut [0; MAX_HEAD]);
    let _ = socket.write(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
          content-length: 0\r\n\r\n",
    );
}

/// Waits until the connection has had its time; a stream has no such end.
async fn outlived(tenure: &Tenure, time: Duration) {
    loop {
        tokio::time::sleep(time).await;
        if !tenure.is_stream() {
            return;
        }
    }
}

/// Serves one connection. When `ended` comes, an idle one is closed and a busy one after its answer.
async fn connection(
    (stream, peer): (TcpStream, SocketAddr),
    router: Router,
    (head, tenure): (Duration, Tenure),
    ended: impl Future<Output = ()>,
) {
    let held = tenure.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(held.clone());
        let named = names_its_host(request.version(), request.headers());
        let answer = named.then(|| router.clone().call(request));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => {
                    metrics::rejected(Rejected::BadRequest);
                    let why = "a request names its host, once (RFC 9112 section 3.2)\n";
                    Ok(refuse(StatusCode::BAD_REQUEST, why))
                }
            }
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Wire::new(stream, tenure.clone())), service)
        .with_upgrades();
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = ended => None,
        () = outlived(&tenure, LIFETIME) => None,
    };
    let served = match served {
        Some(served) => served,
        None => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                served = serving => served,
                () = outlived(&tenure, LAST_ANSWER) => return metrics::rejected(Rejected::Timeout),
            }
        }
    };
    if let Err(e) = served {
        if e.is_timeout() {
            metrics::rejected(Rejected::Timeout);
        }
        tracing::debug!(error = %e, "HTTP connection ended");
    }
}
