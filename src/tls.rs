//! What our own TLS connections trust: the system's authorities, the certificates of a file
//! instead, or exactly the certificates with certain fingerprints.
//!
//! A certificate that signed itself is often given as its own authority. Other programs accept
//! that; strict verification does not, because an authority is not a server. Here a server whose
//! certificate is in the file is trusted directly. Not here: connecting.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

/// The SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|b| format!("{b:02X}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = &'static str;

    /// Reads hexadecimal digits, with colons or without, also behind `sha256 Fingerprint=`.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let wrong = "is not a SHA-256 fingerprint: 64 hexadecimal digits, as \
                     `openssl x509 -noout -fingerprint -sha256 -in FILE` prints them";
        let digits = text.rsplit_once('=').map_or(text, |(_, digits)| digits);
        let digits: Vec<u8> = digits.trim().bytes().filter(|b| *b != b':').collect();
        let mut found = Self([0; 32]);
        if digits.len() != 2 * found.0.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(wrong);
        }
        for (byte, pair) in found.0.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong)?;
        }
        Ok(found)
    }
}

/// Which servers are trusted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trust<'a> {
    /// PEM of the certificates to trust instead of the system's authorities.
    pub given: Option<&'a [u8]>,
    /// True if a given certificate has to name the host even if it is the server's own.
    pub by_name: bool,
    /// If not empty, exactly the certificates with these fingerprints are trusted, whoever signed
    /// them and whatever they name.
    pub pinned: Vec<Fingerprint>,
    /// True if any certificate will do: the connection is encrypted, to whoever answers.
    pub any: bool,
}

impl Trust<'_> {
    /// The configuration of a client. `own` is the client's certificates and key, in PEM.
    ///
    /// # Errors
    /// What is wrong with a file, or that the system has no authorities.
    pub(crate) fn client(&self, own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(self.verifier(&provider)?);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((certificates, key)) = own else { return Ok(config.with_no_client_auth()) };
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("the key: {e}"))?;
        config
            .with_client_auth_cert(self::certificates(certificates)?, key)
            .map_err(|e| e.to_string())
    }

    /// The verifier of servers' certificates.
    ///
    /// # Errors
    /// What is wrong with the given certificates, or that the system has no authorities.
    pub(crate) fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<impl ServerCertVerifier + 'static, String> {
        let mut verifier = Verifier {
            usual: None,
            given: Vec::new(),
            by_name: self.by_name,
            pinned: self.pinned.clone(),
            any: self.any,
            provider: Arc::clone(provider),
        };

        if !verifier.pinned.is_empty() || verifier.any {
            return Ok(verifier);
        }

        let mut roots = RootCertStore::empty();
        match self.given {
            Some(pem) => {
                verifier.given = certificates(pem)?;
                for certificate in &verifier.given {
                    roots.add(certificate.clone()).map_err(|e| e.to_string())?;
                }
            }
            None => {
                let system = rustls_native_certs::load_native_certs();
                let _ = roots.add_parsable_certificates(system.certs);
            }
        }

        if roots.is_empty() {
            return Err("this system has no trusted certificate authorities".to_owned());
        }

        let usual =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        verifier.usual = Some(usual.build().map_err(|e| e.to_string())?);
        Ok(verifier)
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|e| e.to_string())?;
    if all.is_empty() {
        return Err("contains no certificate".to_owned());
    }
    Ok(all)
}

/// Verifies servers as [`Trust`] says.
#[derive(Debug)]
struct Verifier {
    /// The verification against authorities; `None` if certificates are pinned, or any will do.
    usual: Option<Arc<WebPkiServerVerifier>>,
    given: Vec<CertificateDer<'static>>,
    by_name: bool,
    pinned: Vec<Fingerprint>,
    any: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Checks the dates, and the name if that is asked for, of a server's certificate that was
    /// given itself. No authority has to vouch for it.
    fn is_in_force(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed =
            Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;

        let validity = parsed.tbs_certificate().validity();
        if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
            return Err(CertificateError::Expired.into());
        }

        if self.by_name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }

        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(usual) = &self.usual else {
            let found = Fingerprint::of(end_entity);
            if self.any || self.pinned.contains(&found) {
                return Ok(ServerCertVerified::assertion());
            }

            let why = format!(
                "the server's certificate is not one of the trusted ones: its fingerprint is \
                 {found}"
            );
            return Err(Error::General(why));
        };

        if self.given.contains(end_entity) {
            self.is_in_force(end_entity, name, now)?;
            return Ok(ServerCertVerified::assertion());
        }

        usual.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_openssl_prints_them() {
        let hex = "0a".repeat(32);
        let colons = vec!["0A"; 32].join(":");
        for text in [hex.clone(), colons.clone(), format!("sha256 Fingerprint={colons}\n")] {
            assert_eq!(text.parse::<Fingerprint>().unwrap().to_string(), colons, "{text}");
        }
        for bad in ["", "0a", &hex[1..], &format!("{}zz", &hex[2..]), &format!("+{}", &hex[1..])] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
