//! What the handshake found out about a connection's token.

use crate::access::Identity;
use crate::auth::Reason;
use crate::protocol::codes::{Close, CloseCode, ErrorCode};

/// The outcome of the handshake for the token.
#[derive(Debug)]
pub enum AuthOutcome {
    /// A valid token.
    Identity(Box<Identity>),
    /// No token, and `auth.anonymous` allows that.
    Anonymous,
    /// No token yet: the first message has to bring one.
    AwaitToken,
    /// A refusal: the socket is closed at once, so that a browser can read the reason.
    Refused(Close),
}

impl AuthOutcome {
    /// The identity, if there is one.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Identity(identity) => Some(identity),
            Self::Anonymous | Self::AwaitToken | Self::Refused(_) => None,
        }
    }
}

/// How a refused token ends its connection. If the fault is ours, the client may try again.
#[must_use]
pub fn close_of(reason: Reason) -> Close {
    let code = if reason.is_ours() { CloseCode::TryAgainLater } else { CloseCode::TokenRefused };
    Close::new(code, reason.slug())
}

/// How a refused token is answered on a connection that goes on. After a fault of ours the client
/// may try again.
pub(super) fn error_of(reason: Reason) -> ErrorCode {
    if reason.is_ours() { ErrorCode::Unavailable } else { ErrorCode::TokenRefused }
}
