//! A client's session without its connection: what it may do, what it receives, when it ends.
//!
//! [`Session`] is what all sessions have. [`socket::SocketSession`] adds the commands of a client
//! that can send, [`stream::StreamSession`] the channels that come with an HTTP request. Each says
//! the results of a subscription in its own way.
//!
//! Not here: reading and writing (`http`), the token's checks (`auth`), the rules (`access`).
//! Invariants: nothing is subscribed without `access::decide`; the first message of an accepted
//! session is `connected`, sent once its automatic subscriptions are live; every end of a session
//! is a [`Close`] with a code from the table.

mod context;
mod judge;
mod outcome;
mod permission;
mod since;
pub mod socket;
pub mod stream;
mod subscribe;
mod timers;
pub mod tokens;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::{self, Identity};
use crate::auth::Reason;
use crate::channel::ChannelName;
use crate::clock::unix_now;
use crate::config::Policy;
use crate::gateway::Resumed;
use crate::hub::Connection;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::{Reply, Start};
pub use context::{Change, Context};
pub use outcome::{AuthOutcome, close_of};
use permission::Grant;
pub use permission::Refusal;
pub use since::Positions;
use since::Since;
pub use timers::Heard;
use timers::{Moment, Timers};

/// What sockets and streams have in common.
pub struct Session {
    context: Arc<Context>,
    connection: Arc<Connection>,
    identity: Option<Box<Identity>>,
    timers: Timers,
    since: Since,
    /// True if a channel was given up whose events may still be in the fan-out.
    left: bool,
    /// The subscription tokens that count, at most one per subscribed channel.
    grants: Vec<(ChannelName, Grant)>,
    /// Channels that the application is to be asked about after a change of the rules.
    questions: Option<Box<Questions>>,
    /// The number of the latest change of the rules that was judged.
    judged: u32,
    began: Instant,
    /// True once the session was accepted, and counted as opened.
    opened: bool,
}

/// Channels that the application has to be asked about again.
struct Questions {
    channels: Vec<ChannelName>,
    attempts: u8,
    /// The tick of the hub's clock at which the application is asked.
    due: u32,
}

fn start_of(resumed: &Resumed) -> Start<'_> {
    Start { position: resumed.position.as_ref(), recovered: resumed.recovered }
}

impl Session {
    /// Creates a session whose handshake began at `began`.
    fn new(
        context: Arc<Context>,
        connection: Arc<Connection>,
        began: Instant,
        since: Since,
    ) -> Self {
        // The change is read before the policy: at worst the same rules are judged twice.
        let judged = context.change.load().number;
        let now = context.gateway.hub().now();
        let timers = Timers::new(now, &context.policy.load().limits);

        Self {
            context,
            connection,
            identity: None,
            timers,
            since,
            left: false,
            grants: Vec::new(),
            questions: None,
            judged,
            began,
            opened: false,
        }
    }

    /// True if the session was ever accepted.
    #[must_use]
    pub fn was_opened(&self) -> bool {
        self.opened
    }

    /// How long a refusal waits at most.
    #[must_use]
    pub fn refusal_wait(&self) -> Duration {
        self.context.policy.load().limits.refusal_wait.0
    }

    /// The largest message that is read.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.context.policy.load().limits.message_bytes
    }

    fn now(&self) -> u32 {
        self.context.gateway.hub().now()
    }

    fn channels(&self) -> Vec<ChannelName> {
        self.context.gateway.hub().channels_of(&self.connection)
    }

    fn error(&self, id: Option<&str>, code: ErrorCode, message: &str, channel: Option<&str>) {
        self.connection.say(&Reply::Error { id, code, message, channel });
    }

    /// Takes the identity once it is known: counts the connection among the user's, and finds the
    /// channels that it is subscribed to automatically.
    fn accept(
        &mut self,
        identity: Option<Box<Identity>>,
        policy: &Policy,
    ) -> Result<Vec<ChannelName>, Close> {
        if let Some(identity) = &identity {
            let hub = self.context.gateway.hub();
            let max = policy.limits.connections_per_user;
            if !hub.bind(&self.connection, &identity.user, max) {
                metrics::rejected(Rejected::PerUser);
                return Err(Close::new(CloseCode::TooMany, "too many connections of this user"));
            }

            self.connection.set_token(identity.token.clone());
            // A revocation that came during the check did not find this token on the
            // connection yet.
            if self.context.gateway.revocations().covers(identity, unix_now()) {
                metrics::auth_failure(Reason::Revoked);
                return Err(close_of(Reason::Revoked));
            }
            self.timers.token_until(identity.expires_at, policy);
        }

        self.identity = identity;
        // The policy may have changed since the handshake accepted a connection without a token.
        self.may_stay(policy.anonymous)?;

        // An automatic channel holds the user's id, which may be too long for a name.
        let identity = self.identity.as_deref();
        if let Some(error) = identity.and_then(|id| access::unnameable(id, &policy.rules)) {
            let bytes = identity.map(|id| id.user.len());
            logging::repeated(("automatic channel", ""), "", move |repeated| {
                let what = "a user is not subscribed automatically: the id does not fit into a \
                            channel name";
                tracing::warn!(%error, bytes, repeated, "{what}");
            });
        }

        Ok(access::automatic(identity, &policy.rules))
    }

    /// Says `connected`, with the automatic channels and where each of them begins.
    fn greet(&self, channels: &[(ChannelName, Resumed)]) {
        let user = self.identity.as_ref().map(|i| &*i.user);
        let expires_at = self.identity.as_ref().and_then(|i| i.expires_at);
        let id = self.context.gateway.connection_id(&self.connection);
        let named: Vec<_> =
            channels.iter().map(|(c, resumed)| (c.clone(), start_of(resumed))).collect();

        let connected = Reply::Connected { user, connection_id: &id, expires_at, channels: &named };
        self.context.gateway.hub().greet(&self.connection, &connected);
    }

    /// Counts the session as opened: everything that it begins with has been sent.
    fn mark_opened(&mut self) {
        metrics::opened(self.began.elapsed());
        self.opened = true;
        self.schedule();
    }

    /// Checks that a connection without a token may stay.
    ///
    /// # Errors
    /// This connection has no token, and `anonymous` does not allow that.
    fn may_stay(&self, anonymous: bool) -> Result<(), Close> {
        if self.identity.is_some() || anonymous {
            return Ok(());
        }

        metrics::auth_failure(Reason::Missing);
        Err(Close::new(CloseCode::TokenRefused, Reason::Missing.slug()))
    }

    /// Acts on the session's timer, which has come due.
    ///
    /// # Errors
    /// The deadline that passed, or a connection without a token that may not stay.
    pub fn on_timer(&mut self) -> Result<(), Close> {
        self.apply_rules()?;
        self.check_deadlines()
    }

    /// Ends the subscriptions whose token has ended, and those that changed rules do not allow. True
    /// if there were channels to judge.
    fn apply_rules(&mut self) -> Result<bool, Close> {
        self.end_subscriptions(self.now(), unix_now());
        self.judge()
    }

    fn check_deadlines(&mut self) -> Result<(), Close> {
        let policy = self.context.policy.load_full();
        let moment = Moment { now: self.now(), unix: unix_now() };
        let due = self.questions.as_ref().map(|questions| questions.due);
        due.into_iter().for_each(|due| self.timers.wake_at(due));

        self.timers.check(moment, &policy, &self.connection).map_err(|overdue| {
            let failure = overdue.failure().or((!self.opened).then_some(Reason::Missing));
            failure.into_iter().for_each(metrics::auth_failure);
            overdue.close()
        })?;

        self.schedule();
        Ok(())
    }

    /// Notes that bytes arrived: the client is alive.
    pub fn on_bytes(&mut self, heard: Heard) {
        let now = self.now();
        let pong = self.context.policy.load().limits.pong_timeout.0;
        if self.timers.heard(now, heard, pong) {
            self.schedule();
        }
    }

    fn schedule(&self) {
        self.context.gateway.hub().schedule(&self.connection, self.timers.next());
    }

    /// Removes the connection from all tables.
    pub fn end(&self) {
        self.context.gateway.remove(&self.connection);
    }
}
