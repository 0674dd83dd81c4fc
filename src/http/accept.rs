//! Listening and serving HTTP/1.1 connections. An upgraded socket leaves here with its TCP stream.

use std::convert::Infallible;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_service::Service as _;

use super::admit::log_limit;
use super::places::{Places, Seat, Share};
use super::wire::Wire;
use super::{MAX_HEAD, Peer, refuse};
use crate::lifecycle::{self, Lifecycle, Phase};
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
struct Bounds {
    connections: usize,
    /// For a request's head, from the first wait for it: no slowloris.
    head: Duration,
}

pub type Shares = Box<dyn Fn(IpAddr, usize) -> Share + Send + Sync>;

/// What those who connect leave to others.
pub struct Clients {
    /// File descriptors that are not theirs.
    pub reserve: u64,
    /// What an address may hold, as it is configured now, where there are so many descriptors.
    pub share: Shares,
}

impl Default for Clients {
    fn default() -> Self {
        Self { reserve: 0, share: Box::new(|_, _| Share::ALL) }
    }
}

/// A bound socket.
pub struct Listener {
    listener: TcpListener,
    bounds: Bounds,
    clients: Clients,
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
        let bounds = Bounds { connections, head };
        Ok(Self { listener, bounds, clients: Clients::default() })
    }

    /// Holds whoever connects to this.
    #[must_use]
    pub fn limited(mut self, clients: Clients) -> Self {
        self.clients = clients;
        self
    }

    /// # Errors
    /// The socket's own.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What an HTTP connection holds beside its socket; handlers find it among the request's extensions.
#[derive(Clone)]
pub(super) struct Tenure(Arc<State>);

struct State {
    seat: Arc<Seat>,
    streams: AtomicUsize,
    /// What is written waits for the socket that the connection becomes.
    holds: AtomicBool,
}

/// An answer without end is under way on the connection.
pub(super) struct Streaming(Arc<State>);

impl Tenure {
    /// The connection becomes a stream: limited as a socket is, and not by its age.
    pub(super) fn stream(&self) -> Streaming {
        self.0.seat.leave_http();
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Streaming(Arc::clone(&self.0))
    }

    /// The connection's place, for the socket that it becomes.
    pub(super) fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.0.seat)
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
    let Listener { listener, bounds, clients } = listener;
    let places = Arc::new(Places::default());
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
        let seat = match seat(&stream, peer.ip(), (&places, &clients, bounds)) {
            Ok(seat) => Arc::new(seat),
            Err(what) => {
                metrics::rejected(what);
                log_limit(what, peer.ip());
                put_off(&stream);
                continue;
            }
        };
        let router = router.clone();
        let ended = {
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reached(until).await }
        };
        let tenure = Tenure(Arc::new(State {
            seat,
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

/// A place for a connection that was accepted.
fn seat(
    stream: &TcpStream,
    ip: IpAddr,
    (places, clients, bounds): (&Arc<Places>, &Clients, Bounds),
) -> Result<Seat, Rejected> {
    // The kernel gives the lowest number that is free: below this one all are taken.
    let taken = u64::try_from(stream.as_raw_fd()).unwrap_or(u64::MAX);
    let limit = lifecycle::open_files();
    // Where there are few at all, a quarter has to do.
    let room = limit - clients.reserve.min(limit / 4);
    if clients.reserve > 0 && taken >= room {
        return Err(Rejected::OpenFiles);
    }
    let share = (clients.share)(ip, usize::try_from(room).unwrap_or(usize::MAX));
    places.take(ip, share, bounds.connections)
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
        let beyond = held.0.seat.is_beyond();
        async move {
            let mut answer = match answer {
                Some(answer) => answer.await?,
                None => {
                    metrics::rejected(Rejected::BadRequest);
                    let why = "a request names its host, once (RFC 9112 section 3.2)\n";
                    refuse(StatusCode::BAD_REQUEST, why)
                }
            };
            // One too many of its address has one answer.
            if beyond && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
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
