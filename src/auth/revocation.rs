//! Tokens that were revoked before their end: one by its `jti`, or all tokens of a user that were
//! issued before a moment.
//!
//! This is memory only; `gateway` brings the revocations of other replicas and of the time before a
//! restart. Invariant: an entry is kept until no token that it covers can still be valid, and the
//! table has a bound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::access::Identity;
use crate::logging;

/// Most entries. A full table takes no further entry, and the caller is told.
const MAX_ENTRIES: usize = 1_000_000;

/// One revocation. `until` is the Unix second from which the entry is not needed any more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Revocation {
    Token {
        jti: String,
        until: u64,
    },
    /// All tokens of the user with `iat` before `issued_before`, and those without an `iat`.
    User {
        user: String,
        issued_before: u64,
        until: u64,
    },
}

impl Revocation {
    #[must_use]
    pub fn until(&self) -> u64 {
        match self {
            Self::Token { until, .. } | Self::User { until, .. } => *until,
        }
    }

    /// True if the revocation covers this token of this user.
    #[must_use]
    pub fn covers(&self, user: &str, token: &TokenId) -> bool {
        match self {
            Self::Token { jti, .. } => token.jti.as_deref() == Some(jti),
            Self::User { user: whose, issued_before, .. } => {
                whose == user && token.issued_at.is_none_or(|at| at < *issued_before)
            }
        }
    }
}

/// What a token can be revoked by.
pub(super) use crate::access::TokenId;

/// The revocations by what they cover.
#[derive(Debug, Default)]
struct Tables {
    tokens: HashMap<Box<str>, u64, ahash::RandomState>,
    /// For each user, `issued_before` and `until`.
    users: HashMap<Box<str>, (u64, u64), ahash::RandomState>,
}

/// The revocations that hold now.
#[derive(Debug)]
pub struct Revocations {
    tables: RwLock<Tables>,
    any: AtomicBool,
    /// True once all earlier revocations are in the tables. Until then any token might be among the
    /// revoked ones.
    known: watch::Sender<bool>,
}

impl Default for Revocations {
    fn default() -> Self {
        let known = watch::Sender::new(true);
        Self { tables: RwLock::default(), any: AtomicBool::new(false), known }
    }
}

impl Revocations {
    /// The table of a process that first has to read what others revoked before it started.
    #[must_use]
    pub fn unread() -> Self {
        Self { known: watch::Sender::new(false), ..Self::default() }
    }

    #[must_use]
    pub fn are_known(&self) -> bool {
        *self.known.borrow()
    }

    /// Notes that all earlier revocations have been read.
    pub fn mark_known(&self) {
        self.known.send_if_modified(|known| !std::mem::replace(known, true));
    }

    /// Waits until the earlier revocations are known.
    pub async fn known(&self) {
        // An error would mean that the sender is gone; we hold it.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Adds an entry. Of two entries for the same token or user the stricter values count. Returns
    /// false if there is no room.
    pub fn add(&self, revocation: &Revocation) -> bool {
        let mut tables = self.tables.write();
        if tables.tokens.len() + tables.users.len() >= MAX_ENTRIES {
            logging::repeated(("revocations", "full"), "", |repeated| {
                tracing::error!(
                    repeated,
                    "revocation table is full ({MAX_ENTRIES} entries): a revocation was dropped"
                );
            });
            return false;
        }

        match revocation {
            Revocation::Token { jti, until } => {
                let kept = tables.tokens.entry(jti.as_str().into()).or_default();
                *kept = (*kept).max(*until);
            }
            Revocation::User { user, issued_before, until } => {
                let kept = tables.users.entry(user.as_str().into()).or_default();
                *kept = (kept.0.max(*issued_before), kept.1.max(*until));
            }
        }

        self.any.store(true, Ordering::Release);
        true
    }

    /// True if the entry is in the table, and holds at least as long.
    #[must_use]
    pub fn has(&self, revocation: &Revocation) -> bool {
        let tables = self.tables.read();
        match revocation {
            Revocation::Token { jti, until } => {
                tables.tokens.get(jti.as_str()).is_some_and(|kept| kept >= until)
            }
            Revocation::User { user, issued_before, until } => tables
                .users
                .get(user.as_str())
                .is_some_and(|(before, kept)| before >= issued_before && kept >= until),
        }
    }

    /// At most `limit` entries that are not in the other table, or do not hold as long there.
    #[must_use]
    pub fn beyond(&self, other: &Self, limit: usize) -> Vec<Revocation> {
        let tables = self.tables.read();
        let tokens = tables
            .tokens
            .iter()
            .map(|(jti, until)| Revocation::Token { jti: jti.to_string(), until: *until });

        let users = tables.users.iter().map(|(user, (issued_before, until))| Revocation::User {
            user: user.to_string(),
            issued_before: *issued_before,
            until: *until,
        });

        tokens.chain(users).filter(|entry| !other.has(entry)).take(limit).collect()
    }

    /// True if this identity's token is revoked.
    #[must_use]
    pub fn covers(&self, identity: &Identity, now: u64) -> bool {
        self.covers_token(&identity.user, &identity.token, now)
    }

    /// True if this token of a user is revoked.
    #[must_use]
    pub fn covers_token(&self, user: &str, token: &TokenId, now: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }

        let tables = self.tables.read();
        let TokenId { jti, issued_at } = token;

        if let Some(jti) = jti
            && tables.tokens.get(jti).is_some_and(|until| now < *until)
        {
            return true;
        }

        tables
            .users
            .get(user)
            .is_some_and(|(before, until)| now < *until && issued_at.is_none_or(|at| at < *before))
    }

    /// Forgets entries whose tokens have all ended.
    pub fn sweep(&self, now: u64) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }

        let mut tables = self.tables.write();
        tables.tokens.retain(|_, until| now < *until);
        tables.users.retain(|_, (_, until)| now < *until);

        let any = !tables.tokens.is_empty() || !tables.users.is_empty();
        self.any.store(any, Ordering::Release);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        let tables = self.tables.read();
        tables.tokens.len() + tables.users.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, jti: Option<&str>, issued_at: Option<u64>) -> Identity {
        Identity {
            user: user.into(),
            expires_at: None,
            granted: Box::default(),
            claims: Box::default(),
            token: TokenId { jti: jti.map(Into::into), issued_at },
        }
    }

    #[test]
    fn tokens_and_users_are_revoked_until_their_end() {
        let table = Revocations::default();
        assert!(table.add(&Revocation::Token { jti: "a".into(), until: 100 }));
        assert!(table.add(&Revocation::User { user: "u".into(), issued_before: 50, until: 100 }));
        assert!(table.add(&Revocation::User { user: "u".into(), issued_before: 40, until: 90 }));

        for (id, covered) in [
            (identity("x", Some("a"), None), true),
            (identity("x", Some("b"), None), false),
            (identity("u", None, Some(49)), true),
            (identity("u", None, Some(50)), false),
            (identity("u", None, None), true),
            (identity("u1", None, Some(1)), false),
        ] {
            assert_eq!(table.covers(&id, 99), covered, "{id:?}");
            assert!(!table.covers(&id, 100), "over");
        }

        table.sweep(99);
        assert_eq!(table.len(), 2);

        let other = Revocations::default();
        assert!(other.add(&Revocation::User { user: "u".into(), issued_before: 50, until: 90 }));
        assert_eq!(table.beyond(&other, 9).len(), 2, "not for as long");
        assert!(other.add(&Revocation::User { user: "u".into(), issued_before: 51, until: 101 }));
        let token = Revocation::Token { jti: "a".into(), until: 100 };
        assert_eq!(table.beyond(&other, 9), [token]);
        assert!(table.beyond(&table, 9).is_empty() && table.beyond(&other, 0).is_empty());

        table.sweep(100);
        assert!(table.is_empty());
    }
}
