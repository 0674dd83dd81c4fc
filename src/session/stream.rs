//! The session of an HTTP response. Its channels are given with the request, and it gets all of
//! them or none. It is told gaps and positions, so that its client can resume by itself.
//!
//! Not here: the response (`http::sse`), and what an `id:` looks
//! like (`protocol::stream_position`).

use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::permission::{Permission, Refusal};
use super::since::Since;
use super::{AuthOutcome, Context, Session, start_of};
use crate::access::Identity;
use crate::channel::{ChannelName, GapReason};
use crate::gateway::Resumed;
use crate::hub::{Connection, SubscribeError};
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::stream_position::{self, StreamPosition};
use crate::protocol::{ChannelRef, Reply};

/// A stream whose id is too long for the client's header could never be resumed.
const TOO_MANY: &str = "too many channels for one stream, whose position must fit into a header: \
                        ask for fewer, or use a WebSocket";

/// The session of a stream.
pub struct StreamSession {
    /// What every session has.
    pub core: Session,
    /// The channels that the client asks for, until they are subscribed.
    channels: Vec<ChannelName>,
    permissions: Vec<Permission>,
}

impl StreamSession {
    /// Creates a session whose request came at `began`, for these channels. `place` holds the
    /// positions in the client's last id.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        connection: Arc<Connection>,
        began: Instant,
        channels: Vec<ChannelName>,
        place: StreamPosition,
    ) -> Self {
        let core = Session::new(context, connection, began, Since::Id(Box::new(place)));
        Self { core, channels, permissions: Vec::new() }
    }

    /// Checks that the stream may have all of its channels, before any of them is subscribed.
    ///
    /// # Errors
    /// Why it may not have one of them.
    pub async fn permit(&mut self, outcome: &AuthOutcome) -> Result<(), Refusal> {
        if !stream_position::fits(self.channels.len()) {
            return Err(Refusal(ErrorCode::BadRequest, TOO_MANY.to_owned()));
        }

        let context = &self.core.context;
        let identity = outcome.identity();
        let permissions = self.channels.iter().map(|name| context.permit(identity, name, None));
        let permissions = futures_util::future::join_all(permissions).await;
        self.permissions = permissions.into_iter().collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Opens the session with the outcome of the handshake, and subscribes its channels.
    ///
    /// # Errors
    /// Why the stream has to end.
    pub async fn begin(&mut self, outcome: AuthOutcome) -> Result<(), Close> {
        match outcome {
            AuthOutcome::Identity(identity) => self.open(Some(identity)).await?,
            AuthOutcome::Anonymous => self.open(None).await?,
            // A stream cannot bring a token later.
            AuthOutcome::AwaitToken => self.core.may_stay(false)?,
            AuthOutcome::Refused(close) => return Err(close),
        }
        self.subscribe().await
    }

    async fn open(&mut self, identity: Option<Box<Identity>>) -> Result<(), Close> {
        let policy = self.core.context.policy.load_full();
        let automatic = self.core.accept(identity, &policy)?;
        self.begin_ids(&automatic)?;

        let began = Instant::now();
        let started = self.core.subscribe_automatic(automatic).await?;
        self.core.greet(&started);
        for (channel, resumed) in &started {
            let reference = ChannelRef::from_name(channel.clone());
            let replies = replies(&reference, None, resumed);
            self.core.activate(channel, &replies, resumed, began).await;
        }

        self.core.mark_opened();
        Ok(())
    }

    /// Sets the client's last positions as the beginning of the stream's ids: a client that is cut
    /// off while it catches up resumes from there.
    ///
    /// # Errors
    /// The ids could become too long for the client to send back.
    fn begin_ids(&mut self, automatic: &[ChannelName]) -> Result<(), Close> {
        let Self { core: session, channels, .. } = self;
        let others = automatic.iter().filter(|name| !channels.contains(name));
        if !stream_position::fits(channels.len() + others.count()) {
            return Err(Close::new(CloseCode::TooMany, TOO_MANY));
        }

        if let Since::Id(place) = &mut session.since {
            place.retain(|c| channels.contains(c) || automatic.contains(c));
            session.context.gateway.hub().set_positions(&session.connection, Some(place));
        }
        Ok(())
    }

    /// Subscribes the stream to its channels. All of them are requested before the first one
    /// is waited for.
    async fn subscribe(&mut self) -> Result<(), Close> {
        let session = &mut self.core;
        let began = Instant::now();
        let channels = std::mem::take(&mut self.channels).into_iter().map(ChannelRef::from_name);
        let permissions = std::mem::take(&mut self.permissions);

        // A failure does not stop the others, so that the client hears of each channel that it
        // cannot have.
        let mut failed = None;
        let mut pending = Vec::with_capacity(permissions.len());
        for (channel, permission) in channels.zip(permissions) {
            match session.request(&channel.name) {
                Ok(subscription) => pending.push((channel, permission, subscription)),
                // The channel is one of the automatic ones.
                Err(SubscribeError::Already) => {}
                Err(SubscribeError::TooMany) => {
                    let message = "too many channels on this connection";
                    session.error(None, ErrorCode::LimitExceeded, message, Some(&channel.raw));
                    failed = Some(Close::new(CloseCode::TooMany, message));
                }
            }
        }

        for (channel, permission, subscription) in pending {
            match session.await_start(&channel.name, subscription, None, began).await {
                Ok(resumed) => {
                    let data = permission.data.as_deref().map(RawValue::get);
                    let replies = replies(&channel, data, &resumed);
                    session.activate(&channel.name, &replies, &resumed, began).await;
                    session.keep_grant(channel.name, permission.grant);
                }
                Err(error) => {
                    let message = error.to_string();
                    session.error(None, ErrorCode::Unavailable, &message, Some(&channel.raw));
                    failed.get_or_insert_with(|| {
                        Close::new(CloseCode::TryAgainLater, "broker unavailable")
                    });
                }
            }
        }

        // From here on the ids tell what this stream has had.
        session.context.gateway.hub().set_positions(&session.connection, None);
        session.since = Since::Nothing;
        failed.map_or(Ok(()), Err)
    }

    /// Acts on the session's timer, which has come due.
    ///
    /// # Errors
    /// The deadline that passed, or the loss of the last channel.
    pub fn on_timer(&mut self) -> Result<(), Close> {
        if self.core.apply_rules()? {
            self.has_something()?;
        }
        self.core.check_deadlines()
    }

    /// Asks the application about channels that were subscribed under another rule.
    ///
    /// # Errors
    /// Why the stream has to end.
    pub async fn ask_questions(&mut self) -> Result<(), Close> {
        self.core.ask_questions().await;
        self.has_something()
    }

    /// Checks that the stream still has a channel. It cannot subscribe to another one, so without
    /// any it is over.
    fn has_something(&self) -> Result<(), Close> {
        if self.core.channels().is_empty() {
            return Err(Close::new(CloseCode::Forbidden, "no channel of this stream is allowed"));
        }
        Ok(())
    }
}

/// The replies that begin a channel. A gap comes before the position behind it, and pages that
/// listen for `gap` alone hear of every gap.
fn replies<'r>(
    channel: &'r ChannelRef,
    data: Option<&'r str>,
    resumed: &'r Resumed,
) -> Vec<Reply<'r>> {
    let reason = GapReason::HistoryLost;
    let lost = resumed.recovered == Some(false);
    let gap = lost.then_some(Reply::Gap { channel: &channel.name, reason });
    let subscribed = Reply::Subscribed { id: None, channel, data, start: start_of(resumed) };

    gap.into_iter().chain([subscribed]).collect()
}
