//! The session of a WebSocket: a client that brings its token, sends commands and is answered.
//!
//! Not here: frames and bytes (`http::socket`). Neighbouring subscriptions are made together, so
//! that a client with many channels waits once.

use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;

use super::outcome::error_of;
use super::permission::{Permission, Refusal};
use super::since::{Positions, Since};
use super::tokens::Carried;
use super::{AuthOutcome, Context, Session, close_of, start_of};
use crate::access::{self, Identity};
use crate::auth::Reason;
use crate::channel::Position;
use crate::clock::unix_now;
use crate::gateway::PendingSubscription;
use crate::hub::{Connection, SubscribeError, TICKS_PER_SECOND};
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, ErrorCode};
use crate::protocol::{ChannelRef, Command, Reply, Request, Start, Subscribe};

/// A command's `id`, as the client wrote it.
type Id = Option<Box<str>>;

/// The session of a WebSocket.
pub struct SocketSession {
    /// What every session has.
    pub core: Session,
    /// The token bucket of the command rate, in commands.
    allowance: f32,
    allowance_at: u32,
}

/// A subscription that waits for the broker's confirmation.
struct Pending {
    id: Id,
    channel: ChannelRef,
    since: Option<Position>,
    permission: Permission,
    subscription: PendingSubscription,
}

impl SocketSession {
    /// Creates a session whose handshake began at `began`, of a client with these positions.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        connection: Arc<Connection>,
        began: Instant,
        since: Positions,
    ) -> Self {
        let since = Since::Positions(since);
        let core = Session::new(context, connection, began, since);
        let allowance = core.context.policy.load().limits.command_burst as f32;
        let allowance_at = core.now();
        Self { core, allowance, allowance_at }
    }

    /// Begins the session with the outcome of the handshake.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub async fn begin(&mut self, outcome: AuthOutcome) -> Result<(), Close> {
        match outcome {
            AuthOutcome::Identity(identity) => self.open(Some(identity)).await,
            AuthOutcome::Anonymous => self.open(None).await,
            AuthOutcome::AwaitToken => {
                let session = &mut self.core;
                let deadline = session.context.policy.load().auth_deadline;
                session.timers.await_token(session.now(), deadline);
                session.schedule();
                Ok(())
            }
            AuthOutcome::Refused(close) => Err(close),
        }
    }

    /// Opens the session once the identity is known: subscribes the automatic channels, and
    /// says `connected`.
    async fn open(&mut self, identity: Option<Box<Identity>>) -> Result<(), Close> {
        let session = &mut self.core;
        let policy = session.context.policy.load_full();
        let automatic = session.accept(identity, &policy)?;

        let began = Instant::now();
        let started = session.subscribe_automatic(automatic).await?;
        session.greet(&started);
        for (channel, resumed) in &started {
            session.activate(channel, &[], resumed, began).await;
        }

        session.mark_opened();
        Ok(())
    }

    /// Takes one message from the command rate. Returns false if none is left.
    pub fn allow_message(&mut self) -> bool {
        let limits = &self.core.context.policy.load().limits;
        let now = self.core.now();
        let ticks = now.saturating_sub(self.allowance_at);
        let rate = limits.commands_per_second as f32 / TICKS_PER_SECOND as f32;
        self.allowance = (self.allowance + ticks as f32 * rate).min(limits.command_burst as f32);
        self.allowance_at = now;

        if self.allowance < 1.0 {
            metrics::rejected(Rejected::Rate);
            return false;
        }

        self.allowance -= 1.0;
        true
    }

    /// Carries out the requests of one read, in order. Neighbouring subscriptions are
    /// made together.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub async fn handle(&mut self, requests: Vec<Request>) -> Result<(), Close> {
        let mut requested = Vec::new();
        for Request { id, command } in requests {
            match (self.core.opened, command) {
                (true, Command::Subscribe(what)) => requested.push((id, what)),
                (_, command) => {
                    self.subscribe_all(&mut requested).await;
                    self.carry_out(id.as_deref(), command).await?;
                }
            }
        }

        self.subscribe_all(&mut requested).await;
        Ok(())
    }

    /// Makes neighbouring subscriptions. Each of them is answered.
    async fn subscribe_all(&mut self, requested: &mut Vec<(Id, Subscribe)>) {
        if requested.is_empty() {
            return;
        }
        self.core.await_fanout().await;

        let context = &self.core.context;
        let identity = self.core.identity.as_deref();
        let permissions = requested
            .iter()
            .map(|(_, what)| context.permit(identity, &what.channel.name, what.token.as_deref()));
        let permissions = futures_util::future::join_all(permissions).await;

        let mut pending: Vec<Pending> = Vec::with_capacity(requested.len());
        for ((id, what), permission) in requested.drain(..).zip(permissions) {
            // Of two commands for one channel the second is answered `subscribed` too,
            // after the first.
            if pending.iter().any(|p| p.channel.name == what.channel.name) {
                self.finish(&mut pending).await;
            }

            match permission {
                Ok(permission) => pending.extend(self.subscribe(id, what, permission)),
                Err(Refusal(code, message)) => {
                    self.core.error(id.as_deref(), code, &message, Some(&what.channel.raw));
                }
            }
        }

        self.finish(&mut pending).await;
    }

    /// Asks the broker for a permitted subscription. Errors are answered at once.
    fn subscribe(&mut self, id: Id, what: Subscribe, permission: Permission) -> Option<Pending> {
        let Subscribe { channel, since, .. } = what;
        let session = &mut self.core;
        if since.is_some() && !session.connection.wire().has_positions() {
            let message = "since needs format=envelope: other events carry no position";
            session.error(id.as_deref(), ErrorCode::BadRequest, message, Some(&channel.raw));
            return None;
        }

        match session.request(&channel.name) {
            Ok(subscription) => Some(Pending { id, channel, since, permission, subscription }),
            Err(SubscribeError::Already) if since.is_some() => {
                let message = "this channel is already subscribed: unsubscribe first, or put \
                               since into the URL if the channel is subscribed automatically";
                session.error(id.as_deref(), ErrorCode::BadRequest, message, Some(&channel.raw));
                None
            }
            Err(SubscribeError::Already) => {
                // A repeated subscription, for example by two parts of a page, is answered
                // `subscribed` as well. A later token renews the grant.
                let data = permission.data.as_deref().map(RawValue::get);
                let id = id.as_deref();
                let start = Start::default();
                session.connection.say(&Reply::Subscribed { id, channel: &channel, data, start });
                session.keep_grant(channel.name, permission.grant);
                None
            }
            Err(SubscribeError::TooMany) => {
                let message = "too many channels on this connection";
                session.error(id.as_deref(), ErrorCode::LimitExceeded, message, Some(&channel.raw));
                None
            }
        }
    }

    /// Waits for the pending subscriptions in order, and answers each.
    async fn finish(&mut self, pending: &mut Vec<Pending>) {
        let began = Instant::now();
        let session = &mut self.core;

        for Pending { id, channel, since, permission, subscription } in pending.drain(..) {
            let id = id.as_deref();
            match session.await_start(&channel.name, subscription, since, began).await {
                Ok(resumed) => {
                    let data = permission.data.as_deref().map(RawValue::get);
                    let start = start_of(&resumed);
                    let reply = Reply::Subscribed { id, channel: &channel, data, start };
                    session.activate(&channel.name, &[reply], &resumed, began).await;
                    session.keep_grant(channel.name, permission.grant);
                }
                Err(error) => {
                    let message = error.to_string();
                    session.error(id, ErrorCode::Unavailable, &message, Some(&channel.raw));
                }
            }
        }
    }

    /// Carries out any command but `subscribe`.
    async fn carry_out(&mut self, id: Option<&str>, command: Command) -> Result<(), Close> {
        match (self.core.opened, command) {
            (_, Command::Invalid(code, message)) => self.core.error(id, code, &message, None),
            (_, Command::Ping) => self.core.connection.say(&Reply::Pong { id }),
            (false, Command::Auth(token)) => return self.auth(&token).await,
            (false, _) => {
                let hint = "send {\"type\":\"auth\",\"token\":...} first";
                self.core.error(id, ErrorCode::Unauthorized, hint, None);
            }
            (true, Command::Auth(_)) => {
                let hint = "this connection already has a token: send a new one with refresh";
                self.core.error(id, ErrorCode::BadRequest, hint, None);
            }
            (true, Command::Unsubscribe(channel)) => self.unsubscribe(id, &channel).await,
            (true, Command::Refresh(token)) => self.refresh(id, &token).await,
            // `handle` collects these before.
            (true, Command::Subscribe(_)) => {}
        }

        Ok(())
    }

    /// Checks the token that the first message brought. A refused token ends the connection, as it
    /// would have in the handshake.
    async fn auth(&mut self, token: &str) -> Result<(), Close> {
        match self.core.context.check_token(token, Carried::by("message")).await {
            Ok(identity) => {
                self.core.timers.token_came();
                self.open(Some(Box::new(identity))).await
            }
            Err(reason) => Err(close_of(reason)),
        }
    }

    async fn unsubscribe(&mut self, id: Option<&str>, channel: &ChannelRef) {
        if self.core.give_up(&channel.name) {
            // The answer waits for the fan-out: no event of the channel follows it, and a new
            // subscription begins behind it.
            self.core.await_fanout().await;
            self.core.connection.say(&Reply::Unsubscribed { id, channel });
        } else {
            let message = "this channel is not subscribed";
            self.core.error(id, ErrorCode::NotSubscribed, message, Some(&channel.raw));
        }
    }

    /// Takes a new token of the same user. A refused token changes nothing: the old one
    /// still counts.
    async fn refresh(&mut self, id: Option<&str>, token: &str) {
        let connection = Arc::clone(&self.core.connection);
        let refused = |reason: Reason| {
            let code = error_of(reason);
            connection.say(&Reply::Error { id, code, message: reason.slug(), channel: None });
        };

        let identity = match self.core.context.check_token(token, Carried::by("refresh")).await {
            Ok(identity) => identity,
            Err(reason) => return refused(reason),
        };

        let old_user = self.core.identity.as_ref().map(|i| &*i.user);
        if old_user != Some(&*identity.user) {
            metrics::auth_failure(Reason::ClaimInvalid);
            logging::repeated(("token refused", "another user"), "", |repeated| {
                tracing::info!(
                    reason = "claim_invalid",
                    carrier = "refresh",
                    repeated,
                    "refresh refused: the token belongs to another user"
                );
            });
            return refused(Reason::ClaimInvalid);
        }

        let before = self.core.connection.token();
        self.core.connection.set_token(identity.token.clone());
        // A revocation that came during the check did not find this token on the connection yet.
        if self.core.context.gateway.revocations().covers(&identity, unix_now()) {
            self.core.connection.set_token(before);
            metrics::auth_failure(Reason::Revoked);
            return refused(Reason::Revoked);
        }

        let policy = self.core.context.policy.load_full();
        self.core.timers.token_until(identity.expires_at, &policy);

        let expires_at = identity.expires_at;
        self.drop_what_is_denied(&identity, &policy.rules);
        self.core.identity = Some(Box::new(identity));

        self.core.ask_again().await;
        self.core.connection.say(&Reply::Refreshed { id, expires_at });
        self.core.schedule();
    }

    /// Ends the subscriptions that a new token does not allow.
    fn drop_what_is_denied(&mut self, identity: &Identity, rules: &[access::Rule]) {
        for channel in self.core.channels() {
            if let Err(why) = access::decide(Some(identity), &channel, rules) {
                self.core.end_subscription(channel, ErrorCode::Forbidden, why.reason());
            }
        }
    }
}
