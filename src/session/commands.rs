//! The commands of the plain protocol, one function each. `subscribe` is in `session::subscribe`.

use std::sync::Arc;

use super::subscribe::Wanted;
use super::tokens::{Carried, close_of};
use super::{Session, State, unix_now};
use crate::access::{self, Identity};
use crate::auth::Reason;
use crate::logging;
use crate::metrics;
use crate::protocol::codes::{Close, ErrorCode};
use crate::protocol::{ChannelRef, Command, Reply, Request};

impl Session {
    /// Carries out the requests of one read, in order. Neighbouring subscriptions go together.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub async fn handle(&mut self, requests: Vec<Request>) -> Result<(), Close> {
        let mut wanted = Vec::new();
        for Request { id, command } in requests {
            match (self.state, command) {
                (State::Open, Command::Subscribe(what)) => wanted.push(Wanted { id, what }),
                (_, command) => {
                    self.subscribe_all(&mut wanted).await;
                    self.carry_out(id.as_deref(), command).await?;
                }
            }
        }

        self.subscribe_all(&mut wanted).await;
        Ok(())
    }

    async fn carry_out(&mut self, id: Option<&str>, command: Command) -> Result<(), Close> {
        match (self.state, command) {
            (_, Command::Invalid(code, message)) => self.error(id, code, &message, None),
            (_, Command::Ping) => self.connection.say(&Reply::Pong { id }),
            (State::AwaitToken, Command::Auth(token)) => return self.auth(&token).await,
            (State::AwaitToken, _) => {
                let hint = "send {\"type\":\"auth\",\"token\":...} first";
                self.error(id, ErrorCode::Unauthorized, hint, None);
            }
            (State::Open, Command::Auth(_)) => {
                let hint = "this connection has its token; use refresh for a new one";
                self.error(id, ErrorCode::BadRequest, hint, None);
            }
            (State::Open, Command::Unsubscribe(channel)) => self.unsubscribe(id, &channel).await,
            (State::Open, Command::Refresh(token)) => self.refresh(id, &token).await,
            // `handle` collects these before.
            (State::Open, Command::Subscribe(_)) => {}
        }

        Ok(())
    }

    pub(super) fn error(
        &self,
        id: Option<&str>,
        code: ErrorCode,
        message: &str,
        channel: Option<&str>,
    ) {
        self.connection.say(&Reply::Error { id, code, message, channel });
    }

    /// Checks the token that the first message brought. A refused one ends the connection, as it
    /// would have in the handshake.
    async fn auth(&mut self, token: &str) -> Result<(), Close> {
        match self.context.check_token(token, Carried::by("message")).await {
            Ok(identity) => {
                self.timers.token_came();
                self.open(Some(Box::new(identity))).await
            }
            Err(reason) => Err(close_of(reason)),
        }
    }

    async fn unsubscribe(&mut self, id: Option<&str>, channel: &ChannelRef) {
        if self.give_up(&channel.name) {
            // The answer waits for the fan-out: no event of the channel follows it, and a new
            // subscription begins behind it.
            self.left_behind().await;
            self.connection.say(&Reply::Unsubscribed { id, channel });
        } else {
            let message = "this channel is not subscribed";
            self.error(id, ErrorCode::NotSubscribed, message, Some(&channel.raw));
        }
    }

    /// Takes a new token of the same user. A refused one changes nothing: the old one still counts.
    async fn refresh(&mut self, id: Option<&str>, token: &str) {
        let connection = Arc::clone(&self.connection);
        let refused = |reason: Reason| {
            let ours = reason.is_ours();
            let code = if ours { ErrorCode::Unavailable } else { ErrorCode::TokenRefused };
            connection.say(&Reply::Error { id, code, message: reason.slug(), channel: None });
        };

        let identity = match self.context.check_token(token, Carried::by("refresh")).await {
            Ok(identity) => identity,
            Err(reason) => return refused(reason),
        };

        let old_user = self.identity.as_ref().map(|i| &*i.user);
        if old_user != Some(&*identity.user) {
            metrics::auth_failure(Reason::ClaimInvalid);
            logging::repeated(("token refused", "another user"), "", |repeated| {
                let (reason, carrier) = ("claim_invalid", "refresh");
                tracing::info!(reason, carrier, repeated, "token of another user");
            });
            return refused(Reason::ClaimInvalid);
        }

        let before = self.connection.token();
        self.connection.set_token(identity.token.clone());
        // A revocation during the check did not find this token on the connection yet.
        if self.context.gateway.revocations().covers(&identity, unix_now()) {
            self.connection.set_token(before);
            metrics::auth_failure(Reason::Revoked);
            return refused(Reason::Revoked);
        }

        let policy = self.context.policy.load_full();
        self.timers.token_until(identity.expires_at, &policy);

        let expires_at = identity.expires_at;
        self.drop_what_is_denied(&identity, &policy.rules);
        self.identity = Some(Box::new(identity));

        self.ask_again().await;
        self.connection.say(&Reply::Refreshed { id, expires_at });
        self.schedule();
    }

    /// Ends the subscriptions that a new token does not allow any more.
    fn drop_what_is_denied(&mut self, identity: &Identity, rules: &[access::Rule]) {
        for channel in self.context.gateway.hub().channels_of(&self.connection) {
            if let Err(why) = access::decide(Some(identity), &channel, rules) {
                self.end_subscription(channel, ErrorCode::Forbidden, why.reason());
            }
        }
    }
}
