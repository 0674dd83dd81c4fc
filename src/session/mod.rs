//! A client's session without its socket: what it may do, what it gets, when it ends.
//!
//! Not here: reading and writing (`http::socket`), the token's checks (`auth`), the rules
//! (`access`).
//!
//! Invariants: nothing is subscribed without `access::decide`; the first message of an accepted
//! session is `connected`, sent once its automatic subscriptions are live; every end of a session
//! is a [`Close`] with a code from the table.

mod commands;
pub mod doctor;
mod judge;
pub mod keys;
mod stream;
mod subscribe;
mod timers;
pub mod tokens;

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::access::{self, Identity};
use crate::auth::Reason;
use crate::channel::{ChannelName, Position};
use crate::config::Policy;
use crate::gateway::{Gateway, Resumed, Track, Waiting};
use crate::hub::Connection;
pub use crate::lifecycle::unix_now;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::{ChannelRef, Reply, Start};
use crate::upstream::callback::Callback;
use crate::upstream::jwks::Jwks;
use doctor::Doctor;
pub use judge::Change;
use judge::Questions;
pub use subscribe::Refusal;
pub use timers::Heard;
use timers::{Moment, Timers};

/// What all sessions share.
pub struct Context {
    pub gateway: Arc<Gateway>,
    pub policy: ArcSwap<Policy>,
    /// Stored after the policy that caused it: a session that sees the change sees that policy too.
    pub change: ArcSwap<Change>,
    pub jwks: Arc<Jwks>,
    pub callback: ArcSwapOption<Callback>,
    pub doctor: Doctor,
}

/// The outcome of the handshake for the token.
#[derive(Debug)]
pub enum Admission {
    /// A valid token.
    Identity(Box<Identity>),
    /// No token, and `auth.anonymous` allows that.
    Anonymous,
    /// No token yet: the first message has to bring one.
    AwaitToken,
    /// A refusal: the socket is closed at once, so that a browser can read the reason.
    Refused(Close),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitToken,
    Open,
}

/// A client's last position in each channel that it had before; `None` for a channel without one.
pub type Since = Vec<(ChannelName, Option<Position>)>;

pub struct Session {
    context: Arc<Context>,
    connection: Arc<Connection>,
    identity: Option<Box<Identity>>,
    state: State,
    timers: Timers,
    /// The positions that the client brought, each until its channel is subscribed again.
    since: Since,
    /// Whether a channel was given up whose events may still be in the fan-out.
    left: bool,
    /// The state that only a stream has.
    stream: Option<Box<stream::Stream>>,
    /// The subscription tokens that count, at most one per subscribed channel.
    grants: Vec<(ChannelName, subscribe::Grant)>,
    /// Channels that the application is to be asked about after a change of the rules.
    questions: Option<Box<Questions>>,
    /// The number of the change of the rules that was judged last.
    judged: u32,
    /// Token bucket of the command rate, in commands.
    allowance: f32,
    allowance_at: u32,
    began: Instant,
    /// Whether the session was accepted, and counted as opened.
    opened: bool,
}

fn start_of(resumed: &Resumed) -> Start<'_> {
    Start { position: resumed.position.as_ref(), recovered: resumed.recovered }
}

impl Session {
    /// A session whose handshake began at `began`.
    #[must_use]
    pub fn new(context: Arc<Context>, connection: Arc<Connection>, began: Instant) -> Self {
        // The change is read before the policy: at worst the same rules are judged twice.
        let judged = context.change.load().number;
        let policy = context.policy.load();
        let now = context.gateway.hub().now();
        let (allowance, timers) =
            (policy.limits.command_burst as f32, Timers::new(now, &policy.limits));
        drop(policy);

        Self {
            context,
            connection,
            identity: None,
            state: State::AwaitToken,
            timers,
            since: Vec::new(),
            left: false,
            stream: None,
            grants: Vec::new(),
            questions: None,
            judged,
            allowance,
            allowance_at: now,
            began,
            opened: false,
        }
    }

    /// Whether the session was ever accepted.
    #[must_use]
    pub fn was_opened(&self) -> bool {
        self.opened
    }

    /// How long a refusal waits at most.
    #[must_use]
    pub fn refusal_wait(&self) -> Duration {
        self.context.policy.load().limits.refusal_wait.0
    }

    /// Sets the positions from which the client resumes.
    #[must_use]
    pub fn resuming(mut self, since: Since) -> Self {
        self.since = since;
        self
    }

    /// Begins the session with the outcome of the handshake.
    ///
    /// # Errors
    /// Why the connection has to be closed.
    pub async fn begin(&mut self, admission: Admission) -> Result<(), Close> {
        match admission {
            Admission::Identity(identity) => self.open(Some(identity)).await,
            Admission::Anonymous => self.open(None).await,
            Admission::AwaitToken => {
                let deadline = self.context.policy.load().auth_deadline;
                self.timers.await_token(self.now(), deadline);
                self.schedule();
                Ok(())
            }
            Admission::Refused(close) => Err(close),
        }
    }

    /// The largest message that is read.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.context.policy.load().limits.message_bytes
    }

    fn now(&self) -> u32 {
        self.context.gateway.hub().now()
    }

    /// Takes one message from the command rate; false when none is left.
    pub fn allow_message(&mut self) -> bool {
        let limits = &self.context.policy.load().limits;
        let now = self.now();
        let ticks = now.saturating_sub(self.allowance_at);
        let rate = limits.commands_per_second as f32 / crate::hub::TICKS_PER_SECOND as f32;
        self.allowance = (self.allowance + ticks as f32 * rate).min(limits.command_burst as f32);
        self.allowance_at = now;

        if self.allowance < 1.0 {
            metrics::rejected(Rejected::Rate);
            return false;
        }

        self.allowance -= 1.0;
        true
    }

    /// Opens the session once the identity is known: claims its place, subscribes the automatic
    /// channels, and says `connected`.
    async fn open(&mut self, identity: Option<Box<Identity>>) -> Result<(), Close> {
        let policy = self.context.policy.load_full();
        if let Some(identity) = &identity {
            let hub = self.context.gateway.hub();
            let max = policy.limits.connections_per_user;
            if !hub.bind(&self.connection, &identity.user, max) {
                metrics::rejected(Rejected::PerUser);
                return Err(Close::new(CloseCode::TooMany, "too many connections of this user"));
            }

            self.connection.set_token(identity.token.clone());
            // A revocation during the check did not find this token on the connection yet.
            if self.context.gateway.revocations().covers(identity, unix_now()) {
                metrics::auth_failure(Reason::Revoked);
                return Err(tokens::close_of(Reason::Revoked));
            }
            self.timers.token_until(identity.expires_at, &policy);
        }

        self.identity = identity;
        // The policy may have changed since the handshake admitted a connection without a token.
        self.may_stay(policy.anonymous)?;

        let began = Instant::now();
        let channels = self.subscribe_automatic(&policy).await?;

        let user = self.identity.as_ref().map(|i| &*i.user);
        let expires_at = self.identity.as_ref().and_then(|i| i.expires_at);
        let id = self.context.gateway.connection_id(&self.connection);
        let named: Vec<_> =
            channels.iter().map(|(c, resumed)| (c.clone(), start_of(resumed))).collect();
        let connected = Reply::Connected { user, connection_id: &id, expires_at, channels: &named };
        self.context.gateway.hub().greet(&self.connection, &connected);

        for (channel, resumed) in &channels {
            let reference = ChannelRef::from_name(channel.clone());
            let replies = if self.stream.is_some() {
                stream::replies(&reference, None, resumed)
            } else {
                Vec::new()
            };
            self.connection.has_room(began).await;
            self.context.gateway.activate(&self.connection, channel, &replies, resumed);
        }

        self.state = State::Open;
        metrics::opened(self.began.elapsed());
        self.opened = true;
        self.schedule();
        Ok(())
    }

    /// How closely this session follows a channel's history.
    fn track(&self, channel: &ChannelName, policy: &Policy) -> Track {
        if let Some(retention) = access::history(channel, &policy.rules) {
            if retention.plain { Track::Open } else { Track::OpenDurable }
        } else if self.connection.wire().has_positions() {
            Track::Read
        } else {
            Track::No
        }
    }

    /// Determines where a confirmed subscription begins, and whether the client missed anything.
    async fn resume(
        &mut self,
        channel: &ChannelName,
        since: Option<Position>,
        began: Instant,
    ) -> Resumed {
        if !self.connection.wire().has_positions() {
            return Resumed::default();
        }

        let (was_there, since) = match (since, self.take_since(channel)) {
            (Some(since), _) => (true, Some(since)),
            (None, Some(since)) => (true, since),
            (None, None) => self.been(channel),
        };

        let mut resumed = self.context.gateway.resume(channel, since.as_ref(), began).await;
        if was_there && since.is_none() {
            resumed.recovered = Some(false);
        }

        resumed
    }

    async fn subscribe_automatic(
        &mut self,
        policy: &Policy,
    ) -> Result<Vec<(ChannelName, Resumed)>, Close> {
        let gateway = Arc::clone(&self.context.gateway);
        let wanted = access::automatic(self.identity.as_deref(), &policy.rules);

        let identity = self.identity.as_deref();
        if let Some(error) = identity.and_then(|id| access::unnameable(id, &policy.rules)) {
            let bytes = identity.map(|id| id.user.len());
            logging::repeated(("automatic channel", ""), "", move |repeated| {
                let what = "a user has no automatic channel: the id does not fit";
                tracing::warn!(%error, bytes, repeated, "{what}");
            });
        }

        self.begin_stream(&wanted)?;

        let mut begun: Vec<(ChannelName, Waiting)> = Vec::with_capacity(wanted.len());
        for channel in wanted {
            let track = self.track(&channel, policy);
            match gateway.subscribe(&self.connection, &channel, track) {
                Ok(waiting) => begun.push((channel, waiting)),
                Err(_) => {
                    metrics::rejected(Rejected::Channels);
                    return Err(Close::new(CloseCode::TooMany, "too many automatic channels"));
                }
            }
        }

        let mut live = Vec::with_capacity(begun.len());
        let began = Instant::now();
        // All channels are asked for before the first is waited for, so that the client waits once.
        for (channel, waiting) in begun {
            if let Err(e) = gateway.confirmed(&self.connection, &channel, waiting).await {
                tracing::debug!(%channel, error = %e, "automatic subscription failed");
                return Err(Close::new(CloseCode::TryAgainLater, "broker unavailable"));
            }
            let resumed = self.resume(&channel, None, began).await;
            live.push((channel, resumed));
        }

        Ok(live)
    }

    fn take_since(&mut self, channel: &ChannelName) -> Option<Option<Position>> {
        let at = self.since.iter().position(|(c, _)| c == channel)?;
        Some(self.since.swap_remove(at).1)
    }

    /// Acts on the session's timer, which came due.
    ///
    /// # Errors
    /// The deadline that passed.
    pub fn on_timer(&mut self) -> Result<(), Close> {
        let policy = self.context.policy.load_full();
        let moment = Moment { now: self.now(), unix: unix_now() };

        self.end_subscriptions(moment.now, moment.unix);
        self.judge()?;
        self.questions_due().into_iter().for_each(|due| self.timers.wake_at(due));

        self.timers.check(moment, &policy, &self.connection).map_err(|overdue| {
            let waits = self.state == State::AwaitToken;
            let failure = overdue.failure().or(waits.then_some(Reason::Missing));
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
