//! Where the load goes: address, TLS, and the text of a WebSocket handshake.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

/// The key and its answer in RFC 6455, section 1.3. The answer proves that a WebSocket server is
/// there, and a constant key needs no SHA-1 for each connection.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// One server, or several replicas that clients are spread over in turn.
pub struct Target {
    peers: Vec<Peer>,
    /// The local addresses that connections leave from, in turn.
    sources: Vec<IpAddr>,
}

pub struct Peer {
    pub address: SocketAddr,
    pub tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    host: String,
    /// The path with {user} and {channel}.
    path: String,
}

impl Target {
    pub fn new(urls: &[String], sources: Vec<IpAddr>, authorities: Option<&Path>) -> Result<Self> {
        let peers =
            urls.iter().map(|url| Peer::new(url, authorities)).collect::<Result<Vec<_>>>()?;
        if peers.is_empty() {
            bail!("--url takes at least one");
        }
        Ok(Target { peers, sources })
    }

    pub fn peer(&self, client: usize) -> &Peer {
        &self.peers[client % self.peers.len()]
    }

    pub fn source(&self, client: usize) -> Option<IpAddr> {
        let count = self.sources.len();
        (count > 0).then(|| self.sources[client % count])
    }
}

impl Peer {
    fn new(url: &str, authorities: Option<&Path>) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            bail!("--url {url}: write it like ws://127.0.0.1:8000/ws");
        };

        let (tls, port) = match scheme {
            "ws" => (false, 80),
            "wss" => (true, 443),
            other => bail!("--url {url}: {other} is not supported; use ws or wss"),
        };

        let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let bare = |name: &str| name.trim_matches(['[', ']']).to_owned();
        let explicit = host.rsplit_once(':').filter(|(name, _)| !name.ends_with(':'));
        let (name, port) = match explicit {
            Some((name, port)) if !port.ends_with(']') => {
                let port = port.parse().with_context(|| format!("--url {url}: no port: {port}"))?;
                (bare(name), port)
            }
            _ => (bare(host), port),
        };

        let address = (name.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("--url {url}: cannot resolve {name}"))?
            .next()
            .with_context(|| format!("--url {url}: {name} has no address"))?;

        let tls =
            if tls { Some((tls_config(authorities)?, ServerName::try_from(name)?)) } else { None };
        Ok(Peer { address, tls, host: host.to_owned(), path: path.to_owned() })
    }

    /// The text of the handshake. The token goes into a header: the one carrier that no log holds.
    pub fn handshake(&self, user: &str, channel: &str, token: Option<&str>) -> String {
        let path = self.path.replace("{user}", user).replace("{channel}", channel);
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{authorization}\r\n",
            self.host
        )
    }
}

fn tls_config(authorities: Option<&Path>) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = authorities {
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("cannot read --ca {}", path.display()))?;
        for certificate in certificates {
            roots.add(certificate.with_context(|| format!("--ca {}", path.display()))?)?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }

    if roots.is_empty() {
        bail!("no certificate authority to trust: install ca-certificates, or name one with --ca");
    }

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Peer> {
        Peer::new(url, None)
    }

    #[test]
    fn clients_go_to_several_replicas_in_turn() {
        let urls = ["ws://127.0.0.1:1/ws".to_owned(), "ws://127.0.0.1:2/ws".to_owned()];
        let target = Target::new(&urls, vec![], None).unwrap();
        let ports: Vec<u16> = (0..4).map(|client| target.peer(client).address.port()).collect();
        assert_eq!(ports, [1, 2, 1, 2]);
        assert!(Target::new(&[], vec![], None).is_err());
    }

    #[test]
    fn an_url_says_where_and_what() {
        let target = target("ws://127.0.0.1:8000/sub/{channel}").unwrap();
        assert_eq!(target.address.to_string(), "127.0.0.1:8000");

        let text = target.handshake("u1", "post:42", Some("abc"));
        assert!(text.starts_with("GET /sub/post:42 HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n"));
        assert!(text.contains("\r\nAuthorization: Bearer abc\r\n"));
    }

    #[test]
    fn ports_have_defaults_and_addresses_brackets() {
        assert_eq!(target("ws://127.0.0.1").unwrap().address.to_string(), "127.0.0.1:80");
        assert_eq!(target("ws://[::1]:81/ws").unwrap().address.to_string(), "[::1]:81");
        assert_eq!(target("ws://[::1]/ws").unwrap().address.to_string(), "[::1]:80");
        assert!(target("http://127.0.0.1/ws").is_err());
        assert!(target("127.0.0.1:8000").is_err());
    }
}
