//! Subscribing: permission, the broker, the reply. Neighbouring subscriptions go together, so that
//! a client with many channels waits once.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Map;
use serde_json::value::RawValue;

use super::{Session, start_of, stream, unix_now};
use crate::access::{self, Decision, TokenId};
use crate::auth::Reason;
use crate::channel::{ChannelName, Position};
use crate::gateway::Waiting;
use crate::hub::SubscribeError;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::codes::ErrorCode;
use crate::protocol::{ChannelRef, Reply, Start, Subscribe};
use crate::upstream::callback::Question;

/// A `subscribe` command.
pub(super) struct Wanted {
    pub(super) id: Option<Box<str>>,
    pub(super) what: Subscribe,
}

/// What comes with a permission.
#[derive(Default)]
pub(super) struct Permission {
    /// The application's data for the reply.
    data: Option<Arc<RawValue>>,
    grant: Option<Grant>,
}

/// A subscription token that was accepted for a channel.
pub(super) struct Grant {
    /// Unix seconds at which the token ends, leeway included.
    until: Option<u64>,
    token: TokenId,
}

/// Why a channel is refused.
pub struct Refusal(pub ErrorCode, pub String);

/// A subscription that waits for the broker's confirmation.
pub(super) struct Begun {
    id: Option<Box<str>>,
    channel: ChannelRef,
    since: Option<Position>,
    permission: Permission,
    waiting: Waiting,
}

impl Session {
    /// Carries out neighbouring subscriptions. Every one is answered.
    pub(super) async fn subscribe_all(&mut self, wanted: &mut Vec<Wanted>) {
        if wanted.is_empty() {
            return;
        }
        self.left_behind().await;

        let permissions = futures_util::future::join_all(wanted.iter().map(|w| self.permit(w)));
        let permissions = permissions.await;

        let mut begun: Vec<Begun> = Vec::with_capacity(wanted.len());
        for (Wanted { id, what }, permission) in wanted.drain(..).zip(permissions) {
            let channel = &what.channel;
            // Of two commands for one channel the second is answered `subscribed` too, after the
            // first.
            if begun.iter().any(|b| b.channel.name == channel.name) {
                self.finish(&mut begun).await;
            }

            match permission {
                Ok(permission) => begun.extend(self.begin_one(id, what, permission)),
                Err(Refusal(code, message)) => {
                    self.error(id.as_deref(), code, &message, Some(&channel.raw));
                }
            }
        }

        self.finish(&mut begun).await;
    }

    /// Checks that this session may have the channel.
    pub(super) async fn permit(&self, wanted: &Wanted) -> Result<Permission, Refusal> {
        let Subscribe { channel, token, .. } = &wanted.what;
        let name = &channel.name;

        let policy = self.context.policy.load_full();
        let identity = self.identity.as_deref();
        let decision = access::decide(identity, name, &policy.rules)
            .map_err(|why| Refusal(ErrorCode::Forbidden, why.reason().to_owned()))?;

        match (decision, token, identity) {
            (Decision::Allowed, None, _) => Ok(Permission::default()),
            (Decision::Allowed | Decision::Callback(_), Some(_), _) => Err(Refusal(
                ErrorCode::BadRequest,
                "this channel takes no subscription token".to_owned(),
            )),
            (Decision::Token, Some(token), Some(identity)) => {
                let checked = self.context.check_subscription(token, name, &identity.user).await;
                let accepted = checked.map_err(|reason| {
                    let ours = reason.is_ours();
                    let code = if ours { ErrorCode::Unavailable } else { ErrorCode::TokenRefused };
                    Refusal(code, reason.slug().to_owned())
                })?;

                let leeway = policy.leeway.as_secs();
                let until = accepted.expires_at.map(|exp| exp.saturating_add(leeway));
                let grant = Some(Grant { until, token: accepted.token });
                Ok(Permission { grant, data: None })
            }
            (Decision::Token, ..) => Err(Refusal(
                ErrorCode::TokenRefused,
                "missing: this channel needs a subscription token, send it with subscribe"
                    .to_owned(),
            )),
            (Decision::Callback(claims), None, identity) => {
                let user = identity.map(|i| &*i.user);
                let claim = |name: &str| Some((name.to_owned(), identity?.claim(name)?.clone()));
                let claims: Map<_, _> = claims.iter().filter_map(|name| claim(name)).collect();
                self.ask(&Question { user, channel: name.as_str(), claims }).await
            }
        }
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Permission, Refusal> {
        let failed = || {
            metrics::callback(None);
            Refusal(
                ErrorCode::CallbackFailed,
                "the application could not be asked; try again".to_owned(),
            )
        };

        let Some(callback) = self.context.callback.load_full() else {
            logging::repeated(("callback", "no url"), "", |repeated| {
                tracing::error!(repeated, "a rule asks the application, and callback.url is empty");
            });
            return Err(failed());
        };

        match callback.ask(question).await {
            Ok(answer) if answer.allow => {
                metrics::callback(Some(true));
                Ok(Permission { data: answer.data, grant: None })
            }
            Ok(_) => {
                metrics::callback(Some(false));
                let why = "the application does not allow this channel";
                Err(Refusal(ErrorCode::Forbidden, why.to_owned()))
            }
            Err(e) => {
                let channel = question.channel.to_owned();
                logging::repeated(("callback", "failed"), &e.to_string(), move |repeated| {
                    tracing::warn!(
                        error = %e, channel, repeated,
                        "the callback failed: the subscription is refused"
                    );
                });
                Err(failed())
            }
        }
    }

    /// Asks the broker for the subscription. Errors are answered at once.
    pub(super) fn begin_one(
        &mut self,
        id: Option<Box<str>>,
        what: Subscribe,
        permission: Permission,
    ) -> Option<Begun> {
        let Subscribe { channel, since, .. } = what;
        if since.is_some() && !self.connection.wire().has_positions() {
            let message = "since needs format=envelope: without it no event says where it is";
            self.error(id.as_deref(), ErrorCode::BadRequest, message, Some(&channel.raw));
            return None;
        }

        let track = self.track(&channel.name, &self.context.policy.load());
        match self.context.gateway.subscribe(&self.connection, &channel.name, track) {
            Ok(waiting) => Some(Begun { id, channel, since, permission, waiting }),
            Err(SubscribeError::Already) if since.is_some() => {
                let message = "this channel is subscribed already: unsubscribe first, or give \
                               since in the URL where it is subscribed at connect";
                self.error(id.as_deref(), ErrorCode::BadRequest, message, Some(&channel.raw));
                None
            }
            Err(SubscribeError::Already) => {
                // A repeated subscription, for example by two parts of a page, is answered
                // `subscribed` as well. A later token renews the grant.
                let data = permission.data.as_deref().map(RawValue::get);
                let (id, start) = (id.as_deref(), Start::default());
                self.connection.say(&Reply::Subscribed { id, channel: &channel, data, start });
                self.keep_grant(channel.name, permission.grant);
                None
            }
            Err(SubscribeError::TooMany) => {
                metrics::rejected(Rejected::Channels);
                let message = "too many channels on this connection";
                self.error(id.as_deref(), ErrorCode::LimitExceeded, message, Some(&channel.raw));
                None
            }
        }
    }

    pub(super) async fn finish(&mut self, begun: &mut Vec<Begun>) {
        let began = Instant::now();

        for Begun { id, channel, since, permission, waiting } in begun.drain(..) {
            let gateway = Arc::clone(&self.context.gateway);
            match gateway.confirmed(&self.connection, &channel.name, waiting).await {
                Ok(()) => {
                    let resumed = self.resume(&channel.name, since, began).await;
                    self.connection.has_room(began).await;

                    let data = permission.data.as_deref().map(RawValue::get);
                    let replies = if self.stream.is_some() {
                        stream::replies(&channel, data, &resumed)
                    } else {
                        let (id, start) = (id.as_deref(), start_of(&resumed));
                        vec![Reply::Subscribed { id, channel: &channel, data, start }]
                    };
                    gateway.activate(&self.connection, &channel.name, &replies, &resumed);
                    self.keep_grant(channel.name, permission.grant);
                }
                Err(e) => {
                    let message = e.to_string();
                    self.error(id.as_deref(), ErrorCode::Unavailable, &message, Some(&channel.raw));
                }
            }
        }
    }

    /// Keeps the grant that counts for a channel from now on.
    fn keep_grant(&mut self, channel: ChannelName, grant: Option<Grant>) {
        let Some(grant) = grant else { return };
        if let Some(until) = grant.until {
            self.timers.look_at(self.now(), until, unix_now());
        }
        self.grants.retain(|(c, _)| *c != channel);
        self.grants.push((channel, grant));
        self.schedule();
    }

    /// Gives a channel up; true if it was subscribed.
    pub(super) fn give_up(&mut self, channel: &ChannelName) -> bool {
        self.grants.retain(|(c, _)| c != channel);
        let had = self.context.gateway.unsubscribe(&self.connection, channel);
        self.left |= had;
        had
    }

    /// Waits until no event of a channel that was given up is in the fan-out any more.
    pub(super) async fn left_behind(&mut self) {
        if std::mem::take(&mut self.left) {
            self.context.gateway.passed(&self.connection).await;
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
        let channels = self.context.gateway.hub().channels_of(&self.connection);
        let identity = self.identity.as_deref();
        let decided = channels.into_iter().filter(|channel| {
            matches!(access::decide(identity, channel, &policy.rules), Ok(Decision::Callback(_)))
        });
        for (channel, answer) in self.ask_about(decided.collect()).await {
            if let Err(code @ ErrorCode::Forbidden) = answer {
                let why = "the application does not allow this channel any more";
                self.end_subscription(channel, code, why);
            }
        }
    }

    /// Whether the session may keep these channels.
    pub(super) async fn ask_about(
        &self,
        channels: Vec<ChannelName>,
    ) -> Vec<(ChannelName, Result<(), ErrorCode>)> {
        let wanted: Vec<Wanted> = channels
            .into_iter()
            .map(|name| {
                let channel = ChannelRef::from_name(name);
                Wanted { id: None, what: Subscribe { channel, token: None, since: None } }
            })
            .collect();
        let answers = futures_util::future::join_all(wanted.iter().map(|w| self.permit(w))).await;
        let answers = answers.into_iter().map(|a| a.map(|_| ()).map_err(|Refusal(code, _)| code));
        wanted.into_iter().map(|w| w.what.channel.name).zip(answers).collect()
    }
}
