//! Whether an identity may have a channel: by the rules, by a subscription token, or by the
//! application's answer.
//!
//! Not here: the rules (`access`), the token's checks (`tokens`), the request to the
//! application (`upstream::callback`).

use std::sync::Arc;

use serde_json::Map;
use serde_json::value::RawValue;

use super::context::Context;
use super::outcome::error_of;
use crate::access::{self, Decision, Identity, TokenId};
use crate::channel::ChannelName;
use crate::logging;
use crate::metrics;
use crate::protocol::codes::ErrorCode;
use crate::upstream::callback::Question;

/// What comes with a permission.
#[derive(Default)]
pub(super) struct Permission {
    /// The application's data for the reply.
    pub(super) data: Option<Arc<RawValue>>,
    pub(super) grant: Option<Grant>,
}

/// A subscription token that was accepted for a channel.
pub(super) struct Grant {
    /// Unix seconds at which the token ends, leeway included.
    pub(super) until: Option<u64>,
    pub(super) token: TokenId,
}

/// Why a channel is refused.
#[derive(Debug)]
pub struct Refusal(pub ErrorCode, pub String);

impl Context {
    /// Checks that this identity, or a client without one, may have the channel.
    pub(super) async fn permit(
        &self,
        identity: Option<&Identity>,
        channel: &ChannelName,
        token: Option<&str>,
    ) -> Result<Permission, Refusal> {
        let policy = self.policy.load_full();
        let decision = access::decide(identity, channel, &policy.rules)
            .map_err(|why| Refusal(ErrorCode::Forbidden, why.reason().to_owned()))?;

        match (decision, token, identity) {
            (Decision::Allowed, None, _) => Ok(Permission::default()),
            (Decision::Allowed | Decision::Callback(_), Some(_), _) => Err(Refusal(
                ErrorCode::BadRequest,
                "this channel takes no subscription token".to_owned(),
            )),
            (Decision::Token, Some(token), Some(identity)) => {
                let checked = self.check_subscription(token, channel, &identity.user).await;
                let accepted = checked
                    .map_err(|reason| Refusal(error_of(reason), reason.slug().to_owned()))?;

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
                self.ask(&Question { user, channel: channel.as_str(), claims }).await
            }
        }
    }

    /// Asks the application.
    async fn ask(&self, question: &Question<'_>) -> Result<Permission, Refusal> {
        let failed = || {
            metrics::callback(None);
            Refusal(
                ErrorCode::CallbackFailed,
                "the application could not be asked; try again".to_owned(),
            )
        };

        let Some(callback) = self.callback.load_full() else {
            logging::repeated(("callback", "no url"), "", |repeated| {
                tracing::error!(
                    repeated,
                    "subscription refused: its rule has allow = \"callback\", but callback.url is \
                     empty"
                );
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
}
