//! Connections over TLS. They are made here and not by the library, which neither supports a pinned
//! certificate nor accepts a certificate as its own authority. Their streams are tapped like the
//! others.

use std::io;

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Settings;
use super::connect::dial;
use crate::redis_url::Server;

pub(super) async fn handshake(
    settings: &Settings,
    server: &Server,
) -> io::Result<TlsStream<TcpStream>> {
    let tls = settings.tls.as_ref().ok_or_else(|| io::Error::other("no TLS is set up"))?;
    let name = ServerName::try_from(server.host.clone())
        .map_err(|_| io::Error::other("the host is neither a name nor an address"))?;
    tls.connect(name, dial(server).await?).await
}
