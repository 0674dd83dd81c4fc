//! Listening and serving HTTP/1.1 connections. An upgraded socket leaves here with its TCP stream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tower_service::Service as _;

use super::{MAX_HEAD, Peer};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::{self, Rejected};

/// Connections that the kernel may hold for us: a burst must not lose SYNs, which would come again
/// only after a second.
const BACKLOG: u32 = 4096;

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
                tracing::warn!(error = %e, "cannot accept");
                metrics::rejected(Rejected::Connections);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let counted = Counted(Arc::clone(&open));
        if open.fetch_add(1, Ordering::Relaxed) >= bounds.connections {
            metrics::rejected(Rejected::HttpConnections);
            continue;
        }
        let router = router.clone();
        lifecycle.spawn_connection(connection(stream, peer, router, bounds.head, counted));
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    head: Duration,
    _counted: Counted,
) {
    // Replies and events are whole when they are written; waiting for more would only add delay.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.clone().call(request)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(e) = served {
        tracing::debug!(error = %e, "HTTP connection ended");
    }
}
