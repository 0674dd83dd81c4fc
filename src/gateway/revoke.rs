//! Revocation on all replicas: at once by a control message; and from the store after a restart,
//! after a reconnect, and at intervals, because a control message can be missed.
//!
//! Not here: which tokens a revocation covers (`auth::revocation`). Invariants: no token is
//! accepted until the store has been read completely once; an unusable entry harms only itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Gateway;
use super::control::{Control, ControlError};
use super::recall::RevocationsHealth;
use crate::auth::{Revocation, Revocations};
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::clock::unix_now;
use crate::hub::Connection;
use crate::logging;
use crate::metrics;
use crate::protocol::codes::{Close, CloseCode};
use crate::strict;

/// The time between two readings of the store: while all is well, after one that failed, and before
/// the first success. A starting replica accepts no tokens until that first success.
const RECALL_EVERY: Duration = Duration::from_secs(30);
const TRY_AGAIN: Duration = Duration::from_secs(1);
const FIRST_TRIES: Duration = Duration::from_millis(50);
/// Most entries that are put back after one reading.
const RESTORED: usize = 10_000;
/// Stored entries that are parsed, or connections that are checked, before other tasks get a turn.
const COMPARED: usize = 512;
/// The longest stored entry that is accepted.
const MAX_ENTRY: usize = 4096;

/// Why a revocation may not hold everywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    #[error("the revocation table is full: set `expire_at` so that entries end")]
    Full,
    #[error(
        "the revocation is not stored ({0}) and applies to this replica only, until it restarts: \
         try again"
    )]
    Store(BrokerError),
    /// The revocation is stored: the other replicas find it within 30 seconds.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Gateway {
    /// Revokes on every replica, until the entry's own end and across restarts.
    ///
    /// # Errors
    /// When the revocation could not be stored, or a replica was not reached.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), RevokeError> {
        if !self.revocations.add(&revocation) {
            return Err(RevokeError::Full);
        }

        let stored = self.keep(std::slice::from_ref(&revocation)).await;
        let sent = self.control(&Control::Revoke { revocation }).await;

        stored.map_err(RevokeError::Store)?;
        Ok(sent?)
    }

    /// Adds a revocation, and closes the connections that it covers.
    pub(super) fn apply_revocation(&self, revocation: &Revocation) {
        self.revocations.add(revocation);
        metrics::revocations(self.revocations.len());

        let close = |connection: &Connection| {
            let user = connection.user().unwrap_or_default();
            if revocation.covers(&user, &connection.token()) {
                connection.close(Close::new(CloseCode::Disconnected, "revoked"));
            } else {
                // The connection may hold a revoked subscription token.
                connection.recheck();
            }
        };

        match revocation {
            Revocation::User { user, .. } => {
                self.hub.of_user(user).iter().for_each(|c| close(c));
            }
            Revocation::Token { .. } => {
                self.hub
                    .ids()
                    .into_iter()
                    .filter_map(|id| self.hub.get(id))
                    .for_each(|c| close(&c));
            }
        }
    }

    #[must_use]
    pub fn revocations_health(&self) -> RevocationsHealth {
        let state = self.recall.state.lock();
        RevocationsHealth {
            known: self.revocations.are_known(),
            count: self.revocations.len(),
            unusable: state.unusable,
            read_at: state.read_at,
            error: state.error.as_ref().map(ToString::to_string),
        }
    }

    /// Reads the store at first, and again whenever that is due, for ever. No reading begins before
    /// control messages can arrive, so a revocation in between is received one way or the other.
    pub async fn recall_revocations(self: Arc<Self>) {
        metrics::revocations_readable(self.revocations.are_known());
        loop {
            let wait = if self.broker.is_up(&ChannelName::control()) {
                match self.recall().await {
                    Ok(()) => RECALL_EVERY,
                    Err(_) if self.revocations.are_known() => TRY_AGAIN,
                    Err(_) => FIRST_TRIES * 5,
                }
            } else {
                FIRST_TRIES
            };

            // Both the timeout and the notification are reasons to read; one reading serves both.
            let _ = tokio::time::timeout(wait, self.recall.due.notified()).await;
        }
    }

    async fn recall(&self) -> Result<(), BrokerError> {
        let (now, began) = (unix_now(), Instant::now());
        self.revocations.sweep(now);

        let found = match self.store.recall(now).await {
            Ok(found) => found,
            Err(error) => {
                self.note_unreadable(&error);
                return Err(error);
            }
        };

        if let Some(entries) = found {
            let stored = self.apply_stored(&entries).await;
            self.restore(&stored).await;
        }

        let failed = {
            let mut state = self.recall.state.lock();
            state.read_at = Some(now);
            state.error.take().is_some()
        };

        let count = self.revocations.len();
        metrics::revocations(count);
        metrics::revocations_readable(true);

        // This comes last, so that nobody sees a ready replica without all of the above.
        let first = !self.revocations.are_known();
        self.revocations.mark_known();
        if failed || (first && count > 0) {
            let took = began.elapsed();
            tracing::info!(revocations = count, ?took, "revocations read from the store");
        }

        Ok(())
    }

    /// Logs that the store cannot be read: once for each error, not with every attempt.
    fn note_unreadable(&self, error: &BrokerError) {
        metrics::revocations_readable(false);
        let before = self.recall.state.lock().error.replace(error.clone());

        if before.as_ref() != Some(error) {
            let until_then = if self.revocations.are_known() {
                "known ones still apply, but new ones may be missed"
            } else {
                "this replica is not ready and accepts no token until it has read them"
            };
            tracing::error!(
                error = %error,
                "revocations cannot be read from the store: {until_then}"
            );
        }
    }

    /// Adds the stored revocations, and returns them as a table of their own.
    async fn apply_stored(&self, entries: &[Bytes]) -> Revocations {
        let stored = Revocations::default();
        let mut news = false;
        let mut unusable = 0;

        for (n, entry) in entries.iter().enumerate() {
            if n % COMPARED == COMPARED - 1 {
                tokio::task::yield_now().await;
            }

            let parsed = (entry.len() <= MAX_ENTRY)
                .then(|| strict::from_slice::<Revocation>(entry).ok())
                .flatten();
            let Some(revocation) = parsed else {
                unusable += 1;
                continue;
            };

            stored.add(&revocation);
            if !self.revocations.has(&revocation) {
                news |= self.revocations.add(&revocation);
            }
        }

        let before = std::mem::replace(&mut self.recall.state.lock().unusable, unusable);
        metrics::revocations_unusable(unusable);
        if unusable > 0 && unusable != before {
            tracing::error!(
                entries = unusable,
                "this version cannot use some stored revocations: the others apply"
            );
        }

        if news {
            self.close_revoked().await;
        }

        stored
    }

    /// Checks every connection against all revocations once, however many of them are new.
    async fn close_revoked(&self) {
        let now = unix_now();
        for some in self.hub.ids().chunks(COMPARED) {
            for connection in some.iter().filter_map(|id| self.hub.get(*id)) {
                // A connection without a user has no token yet, or needs none.
                let Some(user) = connection.user() else { continue };
                if self.revocations.covers_token(&user, &connection.token(), now) {
                    connection.close(Close::new(CloseCode::Disconnected, "revoked"));
                } else {
                    // The connection may hold a revoked subscription token.
                    connection.recheck();
                }
            }

            tokio::task::yield_now().await;
        }
    }

    /// Puts back revocations that the store has lost, because a Redis began anew or a failover lost
    /// a write. They go in one command; any beyond `RESTORED` follow after the next reading.
    async fn restore(&self, stored: &Revocations) {
        let lost = self.revocations.beyond(stored, RESTORED);
        if lost.is_empty() {
            return;
        }

        match self.keep(&lost).await {
            Ok(()) => {
                let revocations = lost.len();
                logging::repeated(("revocations", "put back"), "", move |repeated| {
                    let what = "revocations were missing from the store and were written back";
                    tracing::info!(revocations, repeated, "{what}");
                });
            }
            Err(e) => logging::repeated(("revocations", "write"), "", move |repeated| {
                tracing::warn!(error = %e, repeated, "revocations are missing from the store and \
                                                      cannot be written back");
            }),
        }
    }

    async fn keep(&self, revocations: &[Revocation]) -> Result<(), BrokerError> {
        let entry = |r: &Revocation| (r.until(), serde_json::to_vec(r).unwrap_or_default().into());
        self.store.remember(revocations.iter().map(entry).collect()).await
    }
}
