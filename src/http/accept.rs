//! Listening, and serving HTTP/1.1 connections. A connection that is upgraded leaves with
//! its TCP stream.
//!
//! Not here: the routes (`mod`), and the bounds per address (`seats`).

use std::convert::Infallible;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
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

use super::answers::refuse;
use super::corked_stream::CorkedStream;
use super::http_connection::HttpConnection;
use super::limits::log_limit;
use super::seats::{Seat, Seats, Share};
use super::shared::{MAX_HEAD, Peer};
use crate::lifecycle::{Lifecycle, Phase};
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::process_limits;

/// Connections that the kernel may hold for us. A burst must not lose SYNs, which clients repeat
/// only after a second.
const BACKLOG: u32 = 4096;

/// How long a peer may leave bytes of ours unacknowledged, or its window closed, before the
/// kernel ends the connection (tcp(7), TCP_USER_TIMEOUT). A client that does not read its answer
/// keeps no seat.
const UNREAD: Duration = Duration::from_secs(20);

/// An HTTP connection that has become neither a socket nor a stream ends after this time, with the
/// answer that it is waiting for.
const LIFETIME: Duration = Duration::from_secs(600);

/// How long the last answer may take after `LIFETIME`.
const LAST_ANSWER: Duration = Duration::from_secs(30);

/// The bounds on one listener's HTTP connections.
#[derive(Debug, Clone, Copy)]
struct ListenerBounds {
    connections: usize,
    /// The time for a request's head, from the first wait for it. It ends slowloris attacks.
    head: Duration,
}

/// Says what an address may hold; see [`Clients::share`].
pub(super) type Shares = Box<dyn Fn(IpAddr, usize) -> Share + Send + Sync>;

/// The bounds on a listener's clients, on all together and by address.
pub struct Clients {
    /// File descriptors that clients may not take.
    pub reserve: u64,
    /// What an address may hold, by the current configuration and the number of descriptors
    /// for clients.
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
    bounds: ListenerBounds,
    clients: Clients,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(address: SocketAddr, connections: usize, head: Duration) -> std::io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;

        // Linux copies these options to every connection that it accepts (tcp(7)), which saves two
        // calls for each. Replies and events are whole when they are written; waiting for more
        // would only add delay.
        socket.set_nodelay(true)?;
        SockRef::from(&socket).set_tcp_user_timeout(Some(UNREAD))?;

        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bounds = ListenerBounds { connections, head };
        Ok(Self { listener, bounds, clients: Clients::default() })
    }

    /// Sets the bounds for clients.
    #[must_use]
    pub fn limited(mut self, clients: Clients) -> Self {
        self.clients = clients;
        self
    }

    /// The bound address.
    ///
    /// # Errors
    /// The socket's own.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Accepts connections until the phase is `until`, then closes the listening socket.
pub async fn serve(listener: Listener, router: Router, lifecycle: Lifecycle, until: Phase) {
    let Listener { listener, bounds, clients } = listener;
    let seats = Arc::new(Seats::default());
    let ended = lifecycle.wait_for(until);
    tokio::pin!(ended);

    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ended => return,
        };

        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Mostly the process is out of file descriptors. The pause keeps the loop
                // from spinning.
                logging::repeated(("cannot accept", ""), &e.kind(), move |repeated| {
                    tracing::warn!(error = %e, repeated, "cannot accept");
                });
                metrics::rejected(Rejected::Connections);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };

        let seat = match seat(&stream, peer.ip(), (&seats, &clients, bounds)) {
            Ok(seat) => seat,
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
            async move { lifecycle.wait_for(until).await }
        };
        let http_connection = HttpConnection::new(seat);

        lifecycle.spawn_connection(async move {
            connection((stream, peer), router, (bounds.head, http_connection), ended).await;
        });
    }
}

/// Checks that a request has exactly one Host, and a valid one (RFC 9112 section 3.2). A server
/// that disagrees with a proxy about a request's host can be made to answer in another's name.
/// HTTP/1.0 needs no Host.
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

/// Takes a seat for a connection that was accepted.
fn seat(
    stream: &TcpStream,
    ip: IpAddr,
    (seats, clients, bounds): (&Arc<Seats>, &Clients, ListenerBounds),
) -> Result<Seat, Rejected> {
    // The kernel gives the lowest free number: all below this one are taken.
    let taken = u64::try_from(stream.as_raw_fd()).unwrap_or(u64::MAX);
    let limit = process_limits::open_files();

    // If the limit is low, no more than a quarter of it is set aside.
    let room = limit - clients.reserve.min(limit / 4);
    if clients.reserve > 0 && taken >= room {
        return Err(Rejected::OpenFiles);
    }

    let share = (clients.share)(ip, usize::try_from(room).unwrap_or(usize::MAX));
    seats.acquire(ip, share, bounds.connections)
}

/// Answers that the client may come again (RFC 9110 section 15.6.4), as far as that is possible
/// without waiting.
fn put_off(stream: &TcpStream) {
    let mut socket = &*SockRef::from(stream);
    // Closing with unread bytes is a reset, which would overtake the answer. Errors are ignored:
    // the connection ends in any case.
    let _ = socket.read(&mut [0; MAX_HEAD]);
    let _ = socket.write(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
          content-length: 0\r\n\r\n",
    );
}

/// Waits until the connection has had its time. A stream has no such end.
async fn outlived(http_connection: &HttpConnection, time: Duration) {
    loop {
        tokio::time::sleep(time).await;
        if !http_connection.is_stream() {
            return;
        }
    }
}

/// Serves one connection. When `ended` completes, an idle connection is closed at once and a busy
/// one after its answer.
async fn connection(
    (stream, peer): (TcpStream, SocketAddr),
    router: Router,
    (head, http_connection): (Duration, HttpConnection),
    ended: impl Future<Output = ()>,
) {
    let for_requests = http_connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(for_requests.clone());

        let named = names_its_host(request.version(), request.headers());
        let answer = named.then(|| router.clone().call(request));
        let beyond = for_requests.is_beyond();
        async move {
            let mut answer = match answer {
                Some(answer) => answer.await?,
                None => {
                    metrics::rejected(Rejected::BadRequest);
                    let why = "a request must have exactly one Host header (RFC 9112 section \
                               3.2)\n";
                    refuse(StatusCode::BAD_REQUEST, why)
                }
            };

            // A connection beyond its address's share gets one answer.
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
        .serve_connection(TokioIo::new(CorkedStream::new(stream, http_connection.clone())), service)
        .with_upgrades();
    tokio::pin!(serving);

    let served = tokio::select! {
        served = &mut serving => Some(served),
        () = ended => None,
        () = outlived(&http_connection, LIFETIME) => None,
    };

    let served = match served {
        Some(served) => served,
        None => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                served = serving => served,
                () = outlived(&http_connection, LAST_ANSWER) => return metrics::rejected(Rejected::Timeout),
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
