//! The one table of the `type`s of the gateway's own messages. On the plain wires an event is the
//! published JSON itself, so an event of one of these types could not be told from the gateway's
//! own message. They are reserved.

/// The `type` of a message of the gateway's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Connected,
    Subscribed,
    Unsubscribed,
    Refreshed,
    Pong,
    TokenExpiring,
    Gap,
    Interrupted,
    Live,
    Reconnect,
    Close,
    Error,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Connected,
        Self::Subscribed,
        Self::Unsubscribed,
        Self::Refreshed,
        Self::Pong,
        Self::TokenExpiring,
        Self::Gap,
        Self::Interrupted,
        Self::Live,
        Self::Reconnect,
        Self::Close,
        Self::Error,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Subscribed => "subscribed",
            Self::Unsubscribed => "unsubscribed",
            Self::Refreshed => "refreshed",
            Self::Pong => "pong",
            Self::TokenExpiring => "token_expiring",
            Self::Gap => "gap",
            Self::Interrupted => "interrupted",
            Self::Live => "live",
            Self::Reconnect => "reconnect",
            Self::Close => "close",
            Self::Error => "error",
        }
    }

    /// The kind with exactly this name, compared by bytes.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

/// The reserved types as a list, for `docs/publishing.md`.
#[must_use]
pub fn markdown() -> String {
    let names: Vec<_> = Kind::ALL.iter().map(|kind| format!("`{}`", kind.name())).collect();
    format!("{}\n", names.join(", "))
}
