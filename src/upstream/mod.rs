//! Requests to the application's side: key sets (`jwks`) and permission for a channel (`callback`).
//!
//! Not here: what a key or a permission means (`auth`, `session`). Invariants: every request has a
//! deadline and a bound on what is read; redirects are not followed; only configured URLs are
//! asked, never one that a token or a client names.

pub mod callback;
pub mod jwks;

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response};

use crate::tls::Trust;

/// Why there is no usable answer. Safe to log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    #[error("no answer in time")]
    TimedOut,
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("status {0}")]
    Status(u16),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("the answer {0}")]
    Unusable(String),
}

impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::TimedOut;
        }
        // The innermost source says what happened; the outer ones repeat the URL.
        let error = error.without_url();
        let mut source: &dyn std::error::Error = &error;
        while let Some(inner) = source.source() {
            source = inner;
        }
        Self::Connect(source.to_string())
    }
}

/// Makes a client whose every request ends within `timeout`. `ca` takes the place of the system's
/// authorities; it may be the server's own certificate.
///
/// # Errors
/// `ca` contains no certificate, or the system has no authorities.
pub fn client(timeout: Duration, ca: Option<&[u8]>) -> Result<Client, String> {
    let mut builder = Client::builder()
        .timeout(timeout)
        .connect_timeout(timeout)
        .redirect(Policy::none())
        .no_proxy()
        .user_agent(concat!("tollgate/", env!("CARGO_PKG_VERSION")));

    if let Some(pem) = ca {
        let trust = Trust { given: Some(pem), by_name: true, ..Trust::default() };
        builder = builder.tls_backend_preconfigured(trust.client(None)?);
    }

    builder.build().map_err(|e| UpstreamError::from(e).to_string())
}

/// Reads the body of an answer with status 200.
async fn body(mut response: Response, max: usize) -> Result<Vec<u8>, UpstreamError> {
    let status = response.status().as_u16();
    if status != 200 {
        return Err(UpstreamError::Status(status));
    }

    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > max {
            return Err(UpstreamError::TooLarge(max));
        }
        body.extend_from_slice(&chunk);
    }

    Ok(body)
}
