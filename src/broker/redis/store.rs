//! What replicas share in Redis beside publications: a sorted set of revocations, scored by the second
//! in which each ends and swept by every reading of it, and values that others write.

use bytes::Bytes;
use redis::{Cmd, FromRedisValue};

use super::{RedisBroker, connect};
use crate::broker::{BrokerError, Store, StoreFuture};

/// Longest value that is read of what others write.
const MAX_VALUE: usize = 1024;

impl RedisBroker {
    fn revoked(&self) -> String {
        format!("{}revoked", self.shared.settings.prefix)
    }

    async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BrokerError> {
        let (mut connection, _) =
            self.shared.publisher.lock().clone().ok_or(BrokerError::Unavailable)?;
        command.query_async(&mut connection).await.map_err(|e| connect::classify(&e))
    }
}

impl Store for RedisBroker {
    fn remember(&self, entry: Bytes, until: u64) -> StoreFuture<'_, ()> {
        let key = self.revoked();
        let mut add = redis::cmd("ZADD");
        add.arg(key).arg(until).arg(&entry[..]);
        Box::pin(async move { self.query::<i64>(&add).await.map(|_| ()) })
    }

    fn recall(&self, now: u64) -> StoreFuture<'_, Vec<Bytes>> {
        let key = self.revoked();
        Box::pin(async move {
            let mut old = redis::cmd("ZREMRANGEBYSCORE");
            old.arg(&key).arg("-inf").arg(now);
            self.query::<i64>(&old).await?;
            let mut rest = redis::cmd("ZRANGEBYSCORE");
            rest.arg(&key).arg(format!("({now}")).arg("+inf");
            let found: Vec<Vec<u8>> = self.query(&rest).await?;
            Ok(found.into_iter().map(Bytes::from).collect())
        })
    }

    fn read(&self, key: &str) -> StoreFuture<'_, Option<String>> {
        let mut get = redis::cmd("GETRANGE");
        get.arg(format!("{}{key}", self.shared.settings.prefix)).arg(0).arg(MAX_VALUE);
        Box::pin(async move {
            let found: String = self.query(&get).await?;
            Ok((!found.is_empty()).then_some(found))
        })
    }
}
