//! The steps of a subscription, for sockets and streams: asking the broker, its confirmation,
//! where the events begin, and the end. The result of each step is returned; the two kinds of
//! session say it.

use std::sync::Arc;
use std::time::Instant;

use super::Session;
use super::permission::{Grant, Refusal};
use super::since::Had;
use crate::access::{self, Decision};
use crate::auth::Reason;
use crate::channel::{ChannelName, Position};
use crate::clock::unix_now;
use crate::config::Policy;
use crate::gateway::{BrokerError, PendingSubscription, Resumed, Tracking};
use crate::hub::SubscribeError;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::{Close, CloseCode, ErrorCode};
use crate::protocol::{ChannelRef, Reply};

impl Session {
    /// Asks the broker for a subscription.
    pub(super) fn request(
        &self,
        channel: &ChannelName,
    ) -> Result<PendingSubscription, SubscribeError> {
        let tracking = self.tracking(channel, &self.context.policy.load());
        let requested = self.context.gateway.subscribe(&self.connection, channel, tracking);
        requested.inspect_err(|error| {
            if *error == SubscribeError::TooMany {
                metrics::rejected(Rejected::Channels);
            }
        })
    }

    /// How closely this session follows a channel's history.
    fn tracking(&self, channel: &ChannelName, policy: &Policy) -> Tracking {
        if let Some(retention) = access::history(channel, &policy.rules) {
            if retention.plain { Tracking::Create } else { Tracking::CreateDurable }
        } else if self.connection.wire().has_positions() {
            Tracking::Follow
        } else {
            Tracking::Off
        }
    }

    /// Waits until the broker has confirmed a subscription, and finds out where it begins and
    /// whether the client missed anything. `since`: the position that came with the command.
    /// `began`: when the client began to wait for this channel and its others.
    pub(super) async fn await_start(
        &mut self,
        channel: &ChannelName,
        subscription: PendingSubscription,
        since: Option<Position>,
        began: Instant,
    ) -> Result<Resumed, BrokerError> {
        let gateway = Arc::clone(&self.context.gateway);
        gateway.await_confirmation(&self.connection, channel, subscription).await?;
        if !self.connection.wire().has_positions() {
            return Ok(Resumed::default());
        }

        let had = self.since.take(channel, || gateway.position(channel));
        let (was_there, since) = match (since, had) {
            (Some(since), _) | (None, Had::UpTo(since)) => (true, Some(since)),
            (None, Had::WithoutPosition) => (true, None),
            (None, Had::Nothing) => (false, None),
        };

        let mut resumed = gateway.resume(channel, since.as_ref(), began).await;
        if was_there && since.is_none() {
            resumed.recovered = Some(false);
        }
        Ok(resumed)
    }

    /// Sends `replies`, then the missed events, and lets the subscription's events through, as soon
    /// as the client's queue has room.
    pub(super) async fn activate(
        &self,
        channel: &ChannelName,
        replies: &[Reply<'_>],
        resumed: &Resumed,
        began: Instant,
    ) {
        self.connection.has_room(began).await;
        self.context.gateway.activate(&self.connection, channel, replies, resumed);
    }

    /// Subscribes to the automatic channels. All of them are requested before the first one is
    /// waited for, so that the client waits once.
    pub(super) async fn subscribe_automatic(
        &mut self,
        channels: Vec<ChannelName>,
    ) -> Result<Vec<(ChannelName, Resumed)>, Close> {
        let mut pending = Vec::with_capacity(channels.len());
        for channel in channels {
            let subscription = self
                .request(&channel)
                .map_err(|_| Close::new(CloseCode::TooMany, "too many automatic channels"))?;
            pending.push((channel, subscription));
        }

        let mut started = Vec::with_capacity(pending.len());
        let began = Instant::now();
        for (channel, subscription) in pending {
            let start = self.await_start(&channel, subscription, None, began).await;
            let resumed = start.map_err(|error| {
                tracing::debug!(%channel, %error, "automatic subscription failed");
                Close::new(CloseCode::TryAgainLater, "broker unavailable")
            })?;
            started.push((channel, resumed));
        }
        Ok(started)
    }

    /// Keeps the grant that counts for a channel from now on.
    pub(super) fn keep_grant(&mut self, channel: ChannelName, grant: Option<Grant>) {
        let Some(grant) = grant else { return };
        if let Some(until) = grant.until {
            self.timers.look_at(self.now(), until, unix_now());
        }
        self.grants.retain(|(c, _)| *c != channel);
        self.grants.push((channel, grant));
        self.schedule();
    }

    /// Gives a channel up. Returns true if it was subscribed.
    pub(super) fn give_up(&mut self, channel: &ChannelName) -> bool {
        self.grants.retain(|(c, _)| c != channel);
        let had = self.context.gateway.unsubscribe(&self.connection, channel);
        self.left |= had;
        had
    }

    /// Waits until no event of a channel that was given up is in the fan-out any more.
    pub(super) async fn await_fanout(&mut self) {
        if std::mem::take(&mut self.left) {
            self.context.gateway.flush_barrier(&self.connection).await;
        }
    }

    /// Ends the subscriptions whose token has ended or was revoked.
    pub(super) fn end_subscriptions(&mut self, now: u32, unix: u64) {
        self.timers.forget_ends();
        if self.grants.is_empty() {
            return;
        }

        let user = self.identity.as_ref().map(|i| Arc::clone(&i.user)).unwrap_or_default();
        let revocations = self.context.gateway.revocations();
        let over = |grant: &Grant| {
            if revocations.covers_token(&user, &grant.token, unix) {
                return Some(Reason::Revoked);
            }
            grant.until.is_some_and(|until| until <= unix).then_some(Reason::Expired)
        };

        let ended = self.grants.iter().filter_map(|(c, grant)| Some((c.clone(), over(grant)?)));
        for (channel, why) in ended.collect::<Vec<_>>() {
            self.end_subscription(channel, ErrorCode::TokenRefused, why.slug());
        }

        if let Some(until) = self.grants.iter().filter_map(|(_, grant)| grant.until).min() {
            self.timers.look_at(now, until, unix);
        }
    }

    /// Asks the application again, after a refresh, about the channels that it decides on. Only a
    /// clear no ends a subscription.
    pub(super) async fn ask_again(&mut self) {
        let policy = self.context.policy.load_full();
        let identity = self.identity.as_deref();
        let decided = self.channels().into_iter().filter(|channel| {
            matches!(access::decide(identity, channel, &policy.rules), Ok(Decision::Callback(_)))
        });

        for (channel, answer) in self.ask_about(decided.collect()).await {
            if let Err(code @ ErrorCode::Forbidden) = answer {
                let why = "the application does not allow this channel any more";
                self.end_subscription(channel, code, why);
            }
        }
    }

    /// Ends a subscription whose permission has ended, and says why.
    pub(super) fn end_subscription(&mut self, channel: ChannelName, code: ErrorCode, reason: &str) {
        if self.give_up(&channel) {
            metrics::subscription_ended(code);
            let channel = &ChannelRef::from_name(channel);
            self.connection.say(&Reply::Ended { channel, code, reason });
        }
    }

    /// Asks whether the session may keep these channels.
    pub(super) async fn ask_about(
        &self,
        channels: Vec<ChannelName>,
    ) -> Vec<(ChannelName, Result<(), ErrorCode>)> {
        let identity = self.identity.as_deref();
        let answers = channels.iter().map(|name| self.context.permit(identity, name, None));
        let answers = futures_util::future::join_all(answers).await;

        let answers = answers.into_iter().map(|a| a.map(|_| ()).map_err(|Refusal(code, _)| code));
        channels.into_iter().zip(answers).collect()
    }
}
