//! What a client may ask for, whatever its wire.
//!
//! Not here: how a command is written (`plain`), and carrying it out (`session`).

use std::borrow::Cow;

use super::codes::ErrorCode;
use crate::channel::{ChannelName, Position};

/// A client's message: its command, and the `id` to answer with.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The JSON of `id`, as the client wrote it.
    pub id: Option<Box<str>>,
    pub command: Command,
}

/// What a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Subscribe(Subscribe),
    Unsubscribe(ChannelRef),
    Auth(String),
    Refresh(String),
    Ping,
    /// A message that cannot be carried out. It is answered with this error.
    Invalid(ErrorCode, Cow<'static, str>),
}

/// A `subscribe` command.
#[derive(Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub channel: ChannelRef,
    /// A subscription token.
    pub token: Option<String>,
    /// The client's last position in the channel.
    pub since: Option<Position>,
}

/// A channel as the client wrote it (string or object), and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelRef {
    pub raw: Box<str>,
    pub name: ChannelName,
}

impl ChannelRef {
    /// The reference for a bare name, for subscriptions that the gateway starts itself.
    #[must_use]
    pub fn from_name(name: ChannelName) -> Self {
        Self { raw: format!("\"{name}\"").into(), name }
    }
}
