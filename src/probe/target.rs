//! Where the deployment is, and the way there: name, TCP, TLS.
//!
//! Invariant: nothing is sent over TLS that was not verified, because any server that answers would
//! receive the token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::causes::Cause;
use super::report::{Checked, Trouble};
use crate::clock::unix_now;
use crate::tls::Trust;

/// A certificate that ends within these seconds should have been renewed.
const SOON: u64 = 7 * 24 * 3600;

/// A connection, with TLS or without.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

pub(super) type Stream = Box<dyn Io>;

/// The URL that is examined.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) secure: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut url = Url::parse(text).map_err(|e| format!("--url: {e}"))?;
        let secure = match url.scheme() {
            "wss" | "https" => true,
            "ws" | "http" => false,
            other => return Err(format!("--url must begin with wss:// or ws://, not {other}://")),
        };

        if url.query_pairs().any(|(name, _)| name == "token") || url.password().is_some() {
            return Err("--url contains a secret: pass the token with --token-file FILE".to_owned());
        }

        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(if secure { 443 } else { 80 });
        if host.is_empty() {
            return Err("--url has no host".to_owned());
        }

        // The parameters that the doctor sets itself are left out; others stay, because a proxy may
        // route by them.
        let kept: Vec<_> = url.query_pairs().into_owned().collect();
        url.set_query(None);
        for (name, value) in kept.iter().filter(|(name, _)| name != "format" && name != "since") {
            url.query_pairs_mut().append_pair(name, value);
        }

        Ok(Self { url, secure, host, port })
    }

    /// The value of the `Host` header.
    pub(super) fn authority(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// The target of a request line: the path, and the query with these parameters added.
    pub(super) fn path(&self, query: &[(&str, &str)]) -> String {
        let mut url = self.url.clone();
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        match url.query().filter(|query| !query.is_empty()) {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        }
    }

    /// The same address with another last part of its path.
    pub(super) fn beside(&self, last: &str) -> Self {
        let mut url = self.url.clone();
        let folder = url.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let path = format!("{folder}/{last}");
        url.set_path(&path);
        Self { url, ..self.clone() }
    }

    /// This URL for an HTTP client.
    pub(super) fn http(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path(&[]))
    }
}

/// The way that every check takes: one address, and what is trusted.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) target: Target,
    /// The address that answered first; before that, all addresses of the name.
    pub(super) addresses: Vec<SocketAddr>,
    tls: Option<Tls>,
    pub(super) patience: Duration,
}

/// How TLS is made, and what the server showed.
#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

/// The addresses of the name.
pub(super) async fn resolve(target: &Target, patience: Duration) -> Checked<Vec<SocketAddr>> {
    let trouble = |why: String| Trouble::new(Cause::NameUnknown, format!("{}: {why}", target.host));

    let found = timeout(patience, lookup_host((target.host.as_str(), target.port))).await;
    let found = found.map_err(|_| trouble("no answer in time".to_owned()))?;
    let addresses: Vec<_> = found.map_err(|e| trouble(e.to_string()))?.collect();

    if addresses.is_empty() {
        return Err(trouble("no address".to_owned()));
    }

    let list: Vec<_> = addresses.iter().map(|a| a.ip().to_string()).collect();
    let said = format!("{} is {}", target.host, list.join(", "));
    Ok((addresses, said))
}

/// The first address that answers.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    patience: Duration,
) -> Checked<(SocketAddr, TcpStream)> {
    let mut failed = Vec::new();
    let mut cause = Cause::TcpSilent;

    for address in addresses {
        let began = Instant::now();
        match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let mut said = format!("{address} answers in {}", millis(began.elapsed()));
                if !failed.is_empty() {
                    said.push_str(&format!("; no connection to {}", failed.join(", ")));
                }
                return Ok(((*address, stream), said));
            }
            Ok(Err(e)) => {
                if e.kind() == std::io::ErrorKind::ConnectionRefused {
                    cause = Cause::TcpRefused;
                }
                failed.push(format!("{address}: {e}"));
            }
            Err(_) => failed.push(format!("{address}: no answer in {patience:?}")),
        }
    }

    Err(Trouble::new(cause, failed.join(", ")))
}

pub(super) fn millis(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

impl Line {
    /// `ca` is the PEM of the authorities to trust instead of the system's.
    pub(super) fn new(
        target: Target,
        patience: Duration,
        ca: Option<&[u8]>,
    ) -> Result<Self, String> {
        let tls = if target.secure { Some(Tls::new(&target.host, ca)?) } else { None };
        Ok(Self { target, addresses: Vec::new(), tls, patience })
    }

    /// Makes the TLS handshake and describes the certificate.
    pub(super) async fn secure(&self, stream: TcpStream) -> Checked<Stream> {
        let Some(tls) = &self.tls else {
            return Ok((Box::new(stream), String::new()));
        };

        let connecting = tls.connector.connect(tls.name.clone(), stream);
        let stream = match timeout(self.patience, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(tls.trouble(&e)),
            Err(_) => return Err(Trouble::new(Cause::TlsFailed, "no answer to the handshake")),
        };

        let version = stream.get_ref().1.protocol_version();
        let version = version.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        let said = format!("{version}, {}", describe(tls.leaf().as_ref()));
        Ok((Box::new(stream), said))
    }

    /// The trouble with a valid certificate that should have been renewed by now.
    pub(super) fn ends_soon(&self) -> Option<Trouble> {
        let leaf = self.tls.as_ref()?.leaf()?;
        let said = describe(Some(&leaf));
        (left(&leaf) < SOON).then(|| Trouble::new(Cause::CertificateEnds, said))
    }

    /// Makes another connection of the same kind.
    pub(super) async fn dial(&self) -> Result<Stream, Trouble> {
        let ((_, stream), _) = connect(&self.addresses, self.patience).await?;
        self.secure(stream).await.map(|(stream, _)| stream)
    }

    /// The same way to another path of the host.
    pub(super) fn beside(&self, last: &str) -> Self {
        Self { target: self.target.beside(last), ..self.clone() }
    }
}

impl Tls {
    fn new(host: &str, ca: Option<&[u8]>) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let trust = Trust { given: ca, by_name: true, ..Trust::default() };
        let inner = trust.verifier(&provider);
        let inner = inner.map_err(|e| if ca.is_some() { format!("--ca: {e}") } else { e })?;

        let seen = Arc::default();
        let verifier = Arc::new(Watching { inner: Arc::new(inner), seen: Arc::clone(&seen) });

        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();

        let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("--url: {e}"))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, seen })
    }

    fn leaf(&self) -> Option<Certificate> {
        Certificate::from_der(self.seen.lock().first()?).ok()
    }

    fn trouble(&self, error: &std::io::Error) -> Trouble {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<TlsError>());
        let leaf = self.leaf();

        let cause = if let Some(TlsError::InvalidCertificate(why)) = inner {
            self.certificate_cause(why, leaf.as_ref())
        } else if matches!(inner, Some(TlsError::InvalidMessage(_))) {
            Cause::NotTls
        } else {
            Cause::TlsFailed
        };

        let mut found = error.to_string();
        if leaf.is_some() {
            let sent = self.seen.lock().len();
            found = format!("{found} ({}; certificates sent: {sent})", describe(leaf.as_ref()));
        }

        Trouble::new(cause, found)
    }

    /// Names the cause for a refused certificate.
    fn certificate_cause(&self, why: &CertificateError, leaf: Option<&Certificate>) -> Cause {
        use CertificateError as E;
        let parts = leaf.map(Certificate::tbs_certificate);
        if matches!(why, E::NotValidForName | E::NotValidForNameContext { .. }) {
            Cause::CertificateName
        } else if matches!(why, E::Expired | E::ExpiredContext { .. }) {
            Cause::CertificateExpired
        } else if matches!(why, E::NotValidYet | E::NotValidYetContext { .. }) {
            Cause::CertificateNotYet
        } else if parts.is_some_and(|parts| parts.issuer() == parts.subject()) {
            Cause::SelfSigned
        } else if *why == E::UnknownIssuer && self.seen.lock().len() < 2 {
            Cause::ChainIncomplete
        } else {
            Cause::UnknownAuthority
        }
    }
}

/// Seconds until the certificate ends.
fn left(certificate: &Certificate) -> u64 {
    let end = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    end.as_secs().saturating_sub(unix_now())
}

fn describe(leaf: Option<&Certificate>) -> String {
    leaf.map_or_else(String::new, |leaf| {
        let parts = leaf.tbs_certificate();
        let days = left(leaf) / 86_400;
        let whose = parts.subject();
        let by = parts.issuer();
        format!("certificate of {whose} by {by}, expires in {days} days")
    })
}

/// The usual verification, which also keeps the certificates that the server sent: rustls says
/// little of a refused one.
#[derive(Debug)]
struct Watching {
    inner: Arc<dyn ServerCertVerifier>,
    seen: Arc<Mutex<Vec<CertificateDer<'static>>>>,
}

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let sent = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock() = sent.map(|c| c.clone().into_owned()).collect();
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
