//! What replicas share in Redis beside publications: a sorted set of revocations, scored by
//! the second in which each ends and swept by every reading of it; and values that other
//! programs write.
//!
//! Not here: what an entry means (`gateway::revoke`).

use bytes::Bytes;

use super::RedisBroker;
use crate::broker::{BrokerError, BrokerFuture, Store};

/// By how many seconds the clocks of replicas may differ.
const CLOCKS_DIFFER: u64 = 3600;

/// Most members in one answer, and in all answers together.
const PAGE: usize = 1000;
const MAX_MEMBERS: usize = 1_000_000;

/// The longest value that is read.
const MAX_VALUE: usize = 1024;

impl RedisBroker {
    /// The sets that contain revocations; the first is this version's own.
    fn revoked(&self) -> Vec<String> {
        let old = self.core.settings.beside_0_1.then(|| self.core.key_0_1("revoked"));
        std::iter::once(self.core.own_key("revoked")).chain(old).collect()
    }

    /// Reads the members that end after a second, page by page: one answer with all of them would
    /// block Redis and this connection. A page begins behind those members of its first score that
    /// were seen already.
    async fn members_after(&self, key: &str, now: u64) -> Result<Vec<Bytes>, BrokerError> {
        let mut found = Vec::new();
        let mut from = format!("({now}");
        let mut skip = 0;
        loop {
            let mut range = redis::cmd("ZRANGEBYSCORE");
            range.arg(key).arg(&from).arg("+inf").arg("WITHSCORES").arg("LIMIT");
            let page: Vec<(Vec<u8>, f64)> =
                self.commands.query(key, range.arg(skip).arg(PAGE)).await?;

            let Some((_, last)) = page.last() else { return Ok(found) };
            let of_last = page.iter().rev().take_while(|(_, score)| score == last).count();
            let same = from == last.to_string();
            (from, skip) = (last.to_string(), if same { skip + of_last } else { of_last });
            let is_last = page.len() < PAGE;

            found.extend(page.into_iter().map(|(member, _)| Bytes::from(member)));
            if is_last || found.len() >= MAX_MEMBERS {
                return Ok(found);
            }
        }
    }
}

impl Store for RedisBroker {
    fn remember(&self, entries: Vec<(u64, Bytes)>) -> BrokerFuture<'_> {
        Box::pin(async move {
            for key in self.revoked() {
                let mut add = redis::cmd("ZADD");
                add.arg(&key);
                for (until, entry) in &entries {
                    add.arg(until).arg(&entry[..]);
                }
                self.commands.query::<i64>(&key, &add).await?;
            }
            Ok(())
        })
    }

    fn outlives(&self) -> bool {
        true
    }

    fn recall(&self, now: u64) -> BrokerFuture<'_, Option<Vec<Bytes>>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for key in self.revoked() {
                found.extend(self.members_after(&key, now).await?);

                let mut old = redis::cmd("ZREMRANGEBYSCORE");
                // The clock of another replica may be behind.
                old.arg(&key).arg("-inf").arg(now.saturating_sub(CLOCKS_DIFFER));
                // A server that accepts no writes now can still be read.
                let _ = self.commands.query::<i64>(&key, &old).await;
            }
            Ok(Some(found))
        })
    }

    fn read(&self, key: &str) -> BrokerFuture<'_, Option<String>> {
        let old = self.core.settings.beside_0_1.then(|| self.core.key_0_1(key));
        let keys = std::iter::once(self.core.own_key(key)).chain(old);
        Box::pin(async move {
            for key in keys {
                let mut get = redis::cmd("GETRANGE");
                get.arg(&key).arg(0).arg(MAX_VALUE);
                let found: Vec<u8> = self.commands.query(&key, &get).await?;
                if !found.is_empty() {
                    return Ok(Some(String::from_utf8_lossy(&found).into_owned()));
                }
            }
            Ok(None)
        })
    }
}
