//! Checking tokens on behalf of a session: the verifier, and around it what takes time or is
//! reported: a fetch for an unknown `kid`, the metric, the log line, the diagnosis.
//!
//! Not here: the checks (`auth`). Invariant: a token that the verifier refuses is counted and logged
//! here and nowhere else; what a session finds out later (a revocation meanwhile, another user, the
//! token's end) it counts itself.

use std::borrow::Cow;
use std::net::IpAddr;

use super::context::Context;
use crate::access::Identity;
use crate::auth::{Reason, Verifier, kid_of};
use crate::channel::ChannelName;
use crate::clock::unix_now;
use crate::logging;
use crate::metrics;
use crate::upstream::jwks::KidLookup;

/// A token that came with a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Brought<'r> {
    /// `header`, `subprotocol`, `cookie`, `session_cookie` or `query`.
    pub by: &'static str,
    /// The session cookie's name, if the token is one.
    pub session: Option<&'r str>,
    pub token: Cow<'r, str>,
}

impl Brought<'_> {
    /// True if the browser added the token by itself: the page may know nothing of it.
    fn is_ambient(&self) -> bool {
        matches!(self.by, "cookie" | "session_cookie")
    }
}

/// How a token came, for the log.
#[derive(Debug, Clone, Copy)]
pub struct Carried {
    /// As in [`Brought`], or `message`, `refresh`, `subscribe`, `none`.
    pub by: &'static str,
    pub ip: Option<IpAddr>,
}

impl Carried {
    #[must_use]
    pub fn by(by: &'static str) -> Self {
        Self { by, ip: None }
    }
}

impl Context {
    /// Returns the identity of the first of these tokens that verifies.
    ///
    /// # Errors
    /// A reason that is our fault, if there is one; otherwise that of a token that the page gave
    /// itself. Every reason has been counted and logged.
    pub async fn check_first(
        &self,
        brought: &[Brought<'_>],
        ip: IpAddr,
    ) -> Result<Identity, Reason> {
        let mut refused: Vec<(&Brought<'_>, Reason)> = Vec::new();
        for one in brought {
            let check = |v: &Verifier| match one.session {
                Some(name) => v.verify_session(name, &one.token, unix_now()),
                None => v.verify(&one.token, unix_now()),
            };

            match self.verify_with_keys(&one.token, check).await {
                Ok(identity) => {
                    for (other, reason) in refused {
                        log_passed_over((other.by, reason), one.by, ip);
                    }
                    return Ok(identity);
                }
                Err(reason) => refused.push((one, reason)),
            }
        }

        for (one, reason) in &refused {
            self.refused(*reason, &one.token, Carried { by: one.by, ip: Some(ip) });
        }

        let ours = refused.iter().find(|(_, reason)| reason.is_ours());
        let given = refused.iter().find(|(one, _)| !one.is_ambient());
        let said = ours.or(given).or(refused.first());
        Err(said.map_or(Reason::Missing, |(_, reason)| *reason))
    }

    /// Refuses a request that brought no token and cannot bring one later.
    #[must_use]
    pub fn no_token(&self, ip: IpAddr) -> Reason {
        self.refused(Reason::Missing, "", Carried { by: "none", ip: Some(ip) });
        Reason::Missing
    }

    /// Returns the identity that the token stands for.
    ///
    /// # Errors
    /// The reason, which has been counted and logged.
    pub async fn check_token(&self, token: &str, carried: Carried) -> Result<Identity, Reason> {
        self.with_keys(token, carried, |v| v.verify(token, unix_now())).await
    }

    /// Checks that the token gives the user this channel. The answer holds the token's end, and the
    /// ids by which it can be revoked.
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
        let found = self.verify_with_keys(token, check).await;
        found.inspect_err(|reason| self.refused(*reason, token, carried))
    }

    /// Checks a token, with newly fetched keys if its own is unknown. Nothing is counted here.
    async fn verify_with_keys<T>(
        &self,
        token: &str,
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
            match self.jwks.find_kid(&kid).await {
                KidLookup::Changed => found = check(&policy.verifier),
                KidLookup::Unknown => {}
                KidLookup::Failed => found = Err(Reason::KeysUnavailable),
            }
        }

        found
    }

    /// Waits until the revocations are known: a replica that has just started reads them before it
    /// accepts any token. A client waits for as long as it may take to send its token; after that
    /// the verifier refuses the token as our fault.
    async fn revocations_known(&self) {
        let revocations = self.gateway.revocations();
        if !revocations.are_known() {
            let within = self.policy.load().auth_deadline;
            let _ = tokio::time::timeout(within, revocations.known()).await;
        }
    }

    /// Counts and logs a refusal, and offers the token to the diagnosis.
    fn refused(&self, reason: Reason, token: &str, carried: Carried) {
        metrics::auth_failure(reason);
        let Carried { by, ip } = carried;
        logging::repeated(("token refused", reason.slug()), "", move |repeated| {
            let ip = ip.map(tracing::field::display);
            tracing::info!(%reason, carrier = by, ip, repeated, "token refused");
        });

        // The diagnosis is for connection tokens: a subscription token of another channel or user
        // is no riddle.
        if carried.by != "subscribe" || reason != Reason::ClaimInvalid {
            self.sampler.offer(reason, token);
        }
    }
}

/// Logs a token that was refused while that of another carrier was accepted. Otherwise such a
/// token, for example a stale cookie, would go unnoticed.
fn log_passed_over((by, reason): (&'static str, Reason), counts: &'static str, ip: IpAddr) {
    logging::repeated(("token passed over", by), reason.slug(), move |repeated| {
        let what = "token ignored: a token from another carrier was accepted";
        tracing::info!(%reason, carrier = by, accepted = counts, %ip, repeated, "{what}");
    });
}
