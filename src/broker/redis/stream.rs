//! TCP and TLS streams to a server. TLS is made here and not by the library, which neither supports
//! a pinned certificate nor accepts a certificate as its own authority.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::settings::Settings;
use crate::redis_url::Server;

pub(super) async fn handshake(
    settings: &Settings,
    server: &Server,
) -> io::Result<TlsStream<TcpStream>> {
    let tls = settings.tls.as_ref().ok_or_else(|| io::Error::other("TLS is not set up"))?;
    let name = ServerName::try_from(server.host.clone())
        .map_err(|_| io::Error::other("the host is neither a name nor an address"))?;
    tls.connect(name, dial(server).await?).await
}

/// How long sent bytes may stay unacknowledged before the kernel ends a connection (tcp(7),
/// TCP_USER_TIMEOUT), and how often the kernel probes a silent one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(5);

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

pub(super) async fn dial(server: &Server) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream)
}
