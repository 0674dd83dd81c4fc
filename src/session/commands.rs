//! The commands of the plain protocol, one function each.

use super::{Session, State, unix_now};
use crate::access::{self, Identity};
use crate::auth::Reason;
use crate::gateway::Waiting;
use crate::hub::SubscribeError;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::plain::{self, ChannelRef, Command, Request};

/// A subscription that was begun and waits for the broker.
struct Begun {
    id: Option<Box<str>>,
    channel: ChannelRef,
    waiting: Waiting,
}

impl Session {
    /// Carries out the requests of one read, in order. Neighbouring subscriptions are begun
    /// together, so that a client with many channels waits for the broker once.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub async fn handle(&mut self, requests: Vec<Request>) -> Result<(), Close> {
        let mut begun = Vec::new();
        for Request { id, command } in requests {
            if let (State::Open, Command::Subscribe(channel)) = (self.state, &command) {
                // Asked for twice: the second answer is `subscribed` too, and no sooner than the first.
                if begun.iter().any(|b: &Begun| b.channel.name == channel.name) {
                    self.finish_subscribes(&mut begun).await;
                }
                begun.extend(self.begin_subscribe(id, channel.clone()));
                continue;
            }
            self.finish_subscribes(&mut begun).await;
            self.carry_out(id.as_deref(), command).await?;
        }
        self.finish_subscribes(&mut begun).await;
        Ok(())
    }

    async fn carry_out(&mut self, id: Option<&str>, command: Command) -> Result<(), Close> {
        match (self.state, command) {
            (_, Command::Invalid(code, message)) => self.error(id, code, &message, None),
            (_, Command::Ping) => self.connection.send(plain::pong(id)),
            (State::AwaitToken, Command::Auth(token)) => return self.auth(&token).await,
            (State::AwaitToken, _) => {
                let hint = "send {\"type\":\"auth\",\"token\":...} first";
                self.error(id, ErrorCode::Unauthorized, hint, None);
            }
            (State::Open, Command::Auth(_)) => {
                let hint = "this connection has its token; use refresh for a new one";
                self.error(id, ErrorCode::BadRequest, hint, None);
            }
            (State::Open, Command::Unsubscribe(channel)) => self.unsubscribe(id, &channel),
            (State::Open, Command::Refresh(token)) => self.refresh(id, &token),
            (State::Open, Command::Subscribe(_)) => {}
        }
        Ok(())
    }

    fn error(&self, id: Option<&str>, code: ErrorCode, message: &str, channel: Option<&str>) {
        self.connection.send(plain::error(id, code, message, channel));
    }

    /// The first message brought the token. A refused one ends the connection, as it would have in
    /// the handshake.
    async fn auth(&mut self, token: &str) -> Result<(), Close> {
        let verified = self.context.policy.load().verifier.verify(token, unix_now());
        match verified {
            Ok(identity) => {
                self.timers.token_came();
                self.open(Some(Box::new(identity))).await
            }
            Err(reason) => {
                metrics::auth_failure(reason);
                tracing::info!(%reason, carrier = "message", "token refused");
                Err(Close::new(CloseCode::TokenRefused, reason.slug()))
            }
        }
    }

    /// Decides, and asks the broker. Errors are answered at once.
    fn begin_subscribe(&self, id: Option<Box<str>>, channel: ChannelRef) -> Option<Begun> {
        let policy = self.context.policy.load();
        let refuse = |code, message: &str| {
            self.error(id.as_deref(), code, message, Some(&channel.raw));
        };
        if let Err(why) = access::decide(self.identity.as_deref(), &channel.name, &policy.rules) {
            refuse(ErrorCode::Forbidden, why.reason());
            return None;
        }
        match self.context.gateway.subscribe(&self.connection, &channel.name) {
            Ok(waiting) => Some(Begun { id, channel, waiting }),
            Err(SubscribeError::Already) => {
                // Asked for again, for example by two parts of a page: it is subscribed, so say so.
                self.connection.send(plain::subscribed(id.as_deref(), &channel));
                None
            }
            Err(SubscribeError::TooMany) => {
                metrics::rejected(Rejected::Channels);
                refuse(ErrorCode::LimitExceeded, "too many channels on this connection");
                None
            }
        }
    }

    async fn finish_subscribes(&self, begun: &mut Vec<Begun>) {
        let gateway = &self.context.gateway;
        for Begun { id, channel, waiting } in begun.drain(..) {
            match gateway.confirmed(&self.connection, &channel.name, waiting).await {
                Ok(()) => {
                    let reply = plain::subscribed(id.as_deref(), &channel);
                    gateway.activate(&self.connection, &channel.name, Some(reply));
                }
                Err(e) => {
                    let message = e.to_string();
                    self.error(id.as_deref(), ErrorCode::Unavailable, &message, Some(&channel.raw));
                }
            }
        }
    }

    fn unsubscribe(&self, id: Option<&str>, channel: &ChannelRef) {
        if self.context.gateway.unsubscribe(&self.connection, &channel.name) {
            self.connection.send(plain::unsubscribed(id, channel));
        } else {
            let message = "this channel is not subscribed";
            self.error(id, ErrorCode::NotSubscribed, message, Some(&channel.raw));
        }
    }

    /// A new token for the same user. A refused one changes nothing: the old one still counts.
    fn refresh(&mut self, id: Option<&str>, token: &str) {
        let policy = self.context.policy.load_full();
        let refused = |reason: &str| self.error(id, ErrorCode::TokenRefused, reason, None);
        let identity = match policy.verifier.verify(token, unix_now()) {
            Ok(identity) => identity,
            Err(reason) => {
                metrics::auth_failure(reason);
                tracing::info!(%reason, carrier = "refresh", "token refused");
                return refused(reason.slug());
            }
        };
        let old_user = self.identity.as_ref().map(|i| &*i.user);
        if old_user != Some(&*identity.user) {
            metrics::auth_failure(Reason::ClaimInvalid);
            tracing::info!(reason = "claim_invalid", carrier = "refresh", "token of another user");
            return refused(Reason::ClaimInvalid.slug());
        }
        self.timers.token_until(identity.expires_at, &policy);
        let expires_at = identity.expires_at;
        self.drop_what_is_denied(&identity, &policy.rules);
        self.identity = Some(Box::new(identity));
        self.connection.send(plain::refreshed(id, expires_at));
        self.schedule();
    }

    /// A new token may allow less than the old one did.
    fn drop_what_is_denied(&self, identity: &Identity, rules: &[access::Rule]) {
        for channel in self.context.gateway.hub().channels_of(&self.connection) {
            if access::decide(Some(identity), &channel, rules).is_err() {
                self.context.gateway.unsubscribe(&self.connection, &channel);
                let channel = ChannelRef::from_name(channel);
                self.connection.send(plain::unsubscribed(None, &channel));
            }
        }
    }
}
