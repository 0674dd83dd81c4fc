//! What replicas share in Redis beside publications: a sorted set of revocations, scored by the second
//! in which each ends and swept by every reading of it, and values that others write.

use bytes::Bytes;
use redis::{Cmd, FromRedisValue};

use super::RedisBroker;
use crate::broker::{BrokerError, BrokerFuture, Store};

/// Seconds that clocks of replicas may be apart.
const CLOCKS_DIFFER: u64 = 3600;

/// Longest value that is read of what others write.
const MAX_VALUE: usize = 1024;

impl RedisBroker {
    fn revoked(&self) -> String {
        format!("{}revoked", self.shared.settings.prefix)
    }

    async fn query<T: FromRedisValue>(&self, key: &str, command: &Cmd) -> Result<T, BrokerError> {
        self.shared.on_master(key, |link| Box::pin(super::query(link, command))).await
    }
}

impl Store for RedisBroker {
    fn remember(&self, entries: Vec<(u64, Bytes)>) -> BrokerFuture<'_> {
        let key = self.revoked();
        let mut add = redis::cmd("ZADD");
        add.arg(&key);
        for (until, entry) in &entries {
            add.arg(until).arg(&entry[..]);
        }
        Box::pin(async move { self.query::<i64>(&key, &add).await.map(|_| ()) })
    }

    fn recall(&self, now: u64) -> BrokerFuture<'_, Option<Vec<Bytes>>> {
        let key = self.revoked();
        Box::pin(async move {
            let mut old = redis::cmd("ZREMRANGEBYSCORE");
            // Another replica's clock may be behind ours.
            old.arg(&key).arg("-inf").arg(now.saturating_sub(CLOCKS_DIFFER));
            self.query::<i64>(&key, &old).await?;
            let mut rest = redis::cmd("ZRANGEBYSCORE");
            rest.arg(&key).arg(format!("({now}")).arg("+inf");
            let found: Vec<Vec<u8>> = self.query(&key, &rest).await?;
            Ok(Some(found.into_iter().map(Bytes::from).collect()))
        })
    }

    fn read(&self, key: &str) -> BrokerFuture<'_, Option<String>> {
        let key = format!("{}{key}", self.shared.settings.prefix);
        let mut get = redis::cmd("GETRANGE");
        get.arg(&key).arg(0).arg(MAX_VALUE);
        Box::pin(async move {
            let found: String = self.query(&key, &get).await?;
            Ok((!found.is_empty()).then_some(found))
        })
    }
}
