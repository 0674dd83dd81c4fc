//! The one table of close codes and error codes of the plain protocol. `docs/protocol.md` is
//! generated from it, and a test compares the two.

use std::borrow::Cow;
use std::fmt::Write as _;

/// What a client should do after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Connect again, after a back-off.
    Yes,
    /// Connect again only with a new token.
    NewToken,
    /// Do not connect again automatically.
    No,
}

/// Why the gateway closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    Normal,
    GoingAway,
    Protocol,
    NotUtf8,
    TooBig,
    Restart,
    TryAgainLater,
    TokenRefused,
    Forbidden,
    Deadline,
    Disconnected,
    SlowConsumer,
    TooMany,
}

/// One row of the table of close codes.
pub struct CloseRow {
    pub code: u16,
    pub label: &'static str,
    pub reconnect: Reconnect,
    pub meaning: &'static str,
}

impl CloseCode {
    pub const ALL: [Self; 13] = [
        Self::Normal,
        Self::GoingAway,
        Self::Protocol,
        Self::NotUtf8,
        Self::TooBig,
        Self::Restart,
        Self::TryAgainLater,
        Self::TokenRefused,
        Self::Forbidden,
        Self::Deadline,
        Self::Disconnected,
        Self::SlowConsumer,
        Self::TooMany,
    ];

    #[must_use]
    pub fn row(self) -> CloseRow {
        use Reconnect::{NewToken, No, Yes};
        let (code, label, reconnect, meaning) = match self {
            Self::Normal => (1000, "normal", No, "The client asked to close the connection."),
            Self::GoingAway => (1001, "going_away", Yes, "The gateway stops immediately."),
            Self::Protocol => {
                (1002, "protocol", No, "A frame broke RFC 6455; the client has a defect.")
            }
            Self::NotUtf8 => (1007, "not_utf8", No, "A text message was not UTF-8."),
            Self::TooBig => {
                (1009, "too_big", No, "A message was larger than `limits.message_bytes`.")
            }
            Self::Restart => (
                1012,
                "restart",
                Yes,
                "This replica drains; a `reconnect` message with the delay was sent before.",
            ),
            Self::TryAgainLater => {
                (1013, "try_again_later", Yes, "The gateway cannot serve this now.")
            }
            Self::TokenRefused => (
                4401,
                "token_refused",
                NewToken,
                "The token was refused; the close reason says why (see Tokens).",
            ),
            Self::Forbidden => (4403, "forbidden", No, "The connection is not allowed."),
            Self::Deadline => (
                4408,
                "deadline",
                Yes,
                "A deadline passed: no token in time, no answer to a ping, an unfinished message.",
            ),
            Self::Disconnected => (
                4409,
                "disconnected",
                No,
                "The backend disconnected this user or revoked the token.",
            ),
            Self::SlowConsumer => (
                4410,
                "slow_consumer",
                Yes,
                "The client read too slowly and its queue was full; events were lost.",
            ),
            Self::TooMany => (
                4429,
                "too_many",
                Yes,
                "A limit was reached: connections (in all, per user or per IP address) or \
                 commands per second.",
            ),
        };

        CloseRow { code, label, reconnect, meaning }
    }

    #[must_use]
    pub fn code(self) -> u16 {
        self.row().code
    }

    /// The metric label, from a closed set.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.row().label
    }

    /// The code that answers a violation of RFC 6455.
    #[must_use]
    pub fn from_protocol_error(error: crate::websocket::ProtocolError) -> Self {
        use crate::websocket::ProtocolError as E;
        match error {
            E::NotUtf8 => Self::NotUtf8,
            E::TooBig => Self::TooBig,
            E::Reserved | E::Unmasked | E::Control | E::Fragments | E::Close => Self::Protocol,
        }
    }
}

/// A close that the gateway decided on: the code and a reason that is safe to show to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    pub code: CloseCode,
    pub reason: Cow<'static, str>,
}

impl Close {
    #[must_use]
    pub fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// The `data.code` of an `error` message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    BadRequest,
    Unauthorized,
    Forbidden,
    TokenRefused,
    NotSubscribed,
    LimitExceeded,
    NotSupported,
    CallbackFailed,
    Unavailable,
}

impl ErrorCode {
    pub const ALL: [Self; 9] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::TokenRefused,
        Self::NotSubscribed,
        Self::LimitExceeded,
        Self::NotSupported,
        Self::CallbackFailed,
        Self::Unavailable,
    ];

    /// The slug and what it means.
    #[must_use]
    pub fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest => (
                "bad_request",
                "The message is not JSON, has an unknown `type`, or has an invalid field.",
            ),
            Self::Unauthorized => {
                ("unauthorized", "The connection has no token yet: send `auth` first.")
            }
            Self::Forbidden => ("forbidden", "No rule lets this user subscribe to this channel."),
            Self::TokenRefused => (
                "token_refused",
                "The token in a `refresh` or `subscribe` was refused; `data.message` is the \
                 reason (see Tokens). The connection keeps its previous token.",
            ),
            Self::NotSubscribed => {
                ("not_subscribed", "`unsubscribe` names a channel that is not subscribed.")
            }
            Self::LimitExceeded => ("limit_exceeded", "The connection has too many channels."),
            Self::NotSupported => {
                ("not_supported", "This version does not support the requested feature.")
            }
            Self::CallbackFailed => (
                "callback_failed",
                "The application could not be asked whether the user may subscribe; try again.",
            ),
            Self::Unavailable => {
                ("unavailable", "The broker did not confirm the subscription in time; try again.")
            }
        }
    }

    #[must_use]
    pub fn slug(self) -> &'static str {
        self.row().0
    }
}

/// The tables as Markdown, for `docs/protocol.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out =
        String::from("| close code | label | reconnect | meaning |\n| --- | --- | --- | --- |\n");
    for code in CloseCode::ALL {
        let row = code.row();
        let reconnect = match row.reconnect {
            Reconnect::Yes => "yes, with back-off",
            Reconnect::NewToken => "with a new token",
            Reconnect::No => "no",
        };
        let _ = writeln!(out, "| {} | `{}` | {reconnect} | {} |", row.code, row.label, row.meaning);
    }
    out.push_str("\n| error code | meaning |\n| --- | --- |\n");
    for code in ErrorCode::ALL {
        let (slug, meaning) = code.row();
        let _ = writeln!(out, "| `{slug}` | {meaning} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_labels_are_unique_and_fit() {
        let rows: Vec<_> = CloseCode::ALL.iter().map(|c| c.row()).collect();
        for (i, row) in rows.iter().enumerate() {
            assert!(crate::websocket::is_valid_close_code(row.code));
            for other in &rows[i + 1..] {
                assert_ne!(row.code, other.code);
                assert_ne!(row.label, other.label);
            }
        }
    }
}
