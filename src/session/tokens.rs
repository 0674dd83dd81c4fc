//! Checking tokens on behalf of a session: the verifier, and around it what takes time or is told to
//! somebody: a fetch for an unknown `kid`, the metric, the log line, the doctor.
//!
//! Invariant: whatever refuses a token, its reason is counted and logged here and nowhere else.

use std::net::IpAddr;

use super::{Context, unix_now};
use crate::access::Identity;
use crate::auth::{Reason, Verifier, kid_of};
use crate::channel::ChannelName;
use crate::logging;
use crate::metrics;
use crate::protocol::codes::{Close, CloseCode};
use crate::upstream::jwks::Look;

/// How a token came, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// `header`, `subprotocol`, `cookie`, `query`, `message`, `refresh` or `subscribe`.
    pub by: &'static str,
    pub ip: Option<IpAddr>,
}

impl Carried {
    #[must_use]
    pub fn by(by: &'static str) -> Self {
        Self { by, ip: None }
    }
}

/// How a refused token ends its connection: our own faults let the client come back.
#[must_use]
pub fn close_of(reason: Reason) -> Close {
    let code = if reason.is_ours() { CloseCode::TryAgainLater } else { CloseCode::TokenRefused };
    Close::new(code, reason.slug())
}

impl Context {
    /// Whom does the token speak for?
    ///
    /// # Errors
    /// The reason, which has been counted and logged.
    pub async fn check_token(&self, token: &str, carried: Carried) -> Result<Identity, Reason> {
        self.with_keys(token, carried, |v| v.verify(token, unix_now())).await
    }

    /// The same for a session cookie of this name.
    ///
    /// # Errors
    /// The reason, which has been counted and logged.
    pub async fn check_session(
        &self,
        name: &str,
        token: &str,
        carried: Carried,
    ) -> Result<Identity, Reason> {
        self.revocations_known().await;
        let policy = self.policy.load_full();
        let found = policy.verifier.verify_session(name, token, unix_now());
        found.inspect_err(|reason| self.refused(*reason, token, carried))
    }

    /// May the user have this channel? The answer holds the token's end and what it is revoked by.
    ///
    /// # Errors
    /// The reason, which has been counted and logged.
    pub async fn check_subscription(
        &self,
        token: &str,
        channel: &ChannelName,
        user: &str,
    ) -> Result<Identity, Reason> {
        let check = |v: &Verifier| v.verify_subscription(token, channel, user, unix_now());
        self.with_keys(token, Carried::by("subscribe"), check).await
    }

    async fn with_keys<T>(
        &self,
        token: &str,
        carried: Carried,
        check: impl Fn(&Verifier) -> Result<T, Reason>,
    ) -> Result<T, Reason> {
        self.revocations_known().await;
        let policy = self.policy.load_full();
        let mut found = check(&policy.verifier);
        // A key may have been added since the set was fetched.
        if matches!(found, Err(Reason::KidUnknown))
            && !policy.verifier.keys().remotes().is_empty()
            && let Some(kid) = kid_of(token)
        {
            match self.jwks.wanted(&kid).await {
                Look::Changed => found = check(&policy.verifier),
                Look::Unknown => {}
                Look::Failed => found = Err(Reason::KeysUnavailable),
            }
        }
        found.inspect_err(|reason| self.refused(*reason, token, carried))
    }

    /// A replica that has just started reads what was revoked before any token is accepted. Who comes
    /// in that time waits, for as long as a client may take for its token; after that the token is
    /// refused for our fault.
    async fn revocations_known(&self) {
        let revocations = self.gateway.revocations();
        if !revocations.are_known() {
            let within = self.policy.load().auth_deadline;
            let _ = tokio::time::timeout(within, revocations.known()).await;
        }
    }

    fn refused(&self, reason: Reason, token: &str, carried: Carried) {
        metrics::auth_failure(reason);
        let Carried { by, ip } = carried;
        logging::repeated(("token refused", reason.slug()), "", move |repeated| {
            let ip = ip.map(tracing::field::display);
            tracing::info!(%reason, carrier = by, ip, repeated, "token refused");
        });
        // The doctor looks at connection tokens: another's channel or user is no riddle.
        if carried.by != "subscribe" || reason != Reason::ClaimInvalid {
            self.doctor.offer(reason, token);
        }
    }
}
