//! Revocation across replicas: at once through a control message, and again from the store after a
//! restart, a reconnect, and now and then, because a control message can be missed.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Control, ControlError, Gateway};
use crate::auth::{Revocation, Revocations};
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::hub::Connection;
use crate::lifecycle::unix_now;
use crate::logging;
use crate::metrics;
use crate::protocol::codes::{Close, CloseCode};
use crate::strict;

/// Seconds between two looks into the store while all is well.
const RECALL_EVERY: u64 = 30;
/// Most entries that one look puts back.
const RESTORED: usize = 10_000;

/// Why a revocation may not hold everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevokeError {
    #[error("there is no room for another revocation: give them an expire_at")]
    Full,
    #[error("not stored ({0}): it holds on this replica until it restarts; try again")]
    Store(BrokerError),
    /// Stored: the other replicas find it within 30 seconds.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Gateway {
    /// Revokes on every replica, for as long as the entry says, across restarts.
    ///
    /// # Errors
    /// When it could not be stored, or a replica was not reached.
    pub async fn revoke(&self, revocation: Revocation) -> Result<(), RevokeError> {
        if !self.revocations.add(&revocation) {
            return Err(RevokeError::Full);
        }
        let stored = self.keep(std::slice::from_ref(&revocation)).await;
        let sent = self.control(&Control::Revoke { revocation }).await;
        stored.map_err(RevokeError::Store)?;
        Ok(sent?)
    }

    /// Takes a revocation in and closes the sockets that it concerns.
    pub(super) fn take_revocation(&self, revocation: &Revocation) {
        self.revocations.add(revocation);
        metrics::revocations(self.revocations.len());
        let close = |connection: &Connection| {
            let user = connection.user().unwrap_or_default();
            if revocation.covers(&user, &connection.token()) {
                connection.close(Close::new(CloseCode::Disconnected, "revoked"));
            } else {
                // It may hold a subscription token that is revoked.
                connection.look();
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

    /// Reads the store again when that is due. `recalled_at` is the second of the last success.
    pub(super) async fn recall(&self, recalled_at: &mut Option<u64>, second: u64) {
        if !self.broker.is_up(&ChannelName::control()) {
            *recalled_at = None;
            return;
        }
        let due = self.recall_due.swap(false, Ordering::AcqRel);
        if !due && recalled_at.is_some_and(|at| second < at + RECALL_EVERY) {
            return;
        }
        let now = unix_now();
        self.revocations.sweep(now);
        match self.store.recall(now).await {
            Ok(Some(entries)) => {
                let stored = self.take_stored(&entries);
                self.restore(&stored).await;
            }
            Ok(None) => {}
            Err(e) => {
                *recalled_at = None;
                return logging::repeated(("revocations", "read"), "", move |repeated| {
                    tracing::warn!(error = %e, repeated, "revocations cannot be read from the store");
                });
            }
        }
        metrics::revocations(self.revocations.len());
        *recalled_at = Some(second);
    }

    /// Takes in what the store has, and gives it back as a table.
    fn take_stored(&self, entries: &[Bytes]) -> Revocations {
        let stored = Revocations::default();
        for entry in entries {
            let Ok(revocation) = strict::from_slice::<Revocation>(entry) else {
                logging::repeated(("revocations", "unknown"), "", |repeated| {
                    tracing::warn!(repeated, "a stored revocation that this version does not know");
                });
                continue;
            };
            stored.add(&revocation);
            if !self.revocations.has(&revocation) {
                self.take_revocation(&revocation);
            }
        }
        stored
    }

    /// Puts back what a store has lost: a Redis that began anew, or a write that a failover took with it.
    /// In one command, and what is too much for that at the next look: other housekeeping waits.
    async fn restore(&self, stored: &Revocations) {
        let lost = self.revocations.beyond(stored, RESTORED);
        if lost.is_empty() {
            return;
        }
        match self.keep(&lost).await {
            Ok(()) => {
                let revocations = lost.len();
                logging::repeated(("revocations", "put back"), "", move |repeated| {
                    let what = "the store lacked revocations: put back";
                    tracing::info!(revocations, repeated, "{what}");
                });
            }
            Err(e) => logging::repeated(("revocations", "write"), "", move |repeated| {
                tracing::warn!(error = %e, repeated, "the store lacks revocations, and takes none");
            }),
        }
    }

    async fn keep(&self, revocations: &[Revocation]) -> Result<(), BrokerError> {
        let entry = |r: &Revocation| (r.until(), serde_json::to_vec(r).unwrap_or_default().into());
        self.store.remember(revocations.iter().map(entry).collect()).await
    }
}
