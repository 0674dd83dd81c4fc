//! Where the masters are: one for standalone and Sentinel, one per shard in a cluster.
//!
//! Not here: finding that out (`sentinel`, `cluster`).

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::logging;
use crate::redis_url::Server;

/// The number of slots of a cluster.
pub(super) const SLOTS: usize = 16_384;

/// Marks a slot that no master serves.
pub(super) const UNSERVED: u16 = u16::MAX;

/// The masters, and which slots each has in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Map {
    pub(super) masters: Vec<Server>,
    /// The index of the master of each slot; `None` outside a cluster.
    pub(super) slots: Option<Box<[u16]>>,
}

impl Map {
    pub(super) fn one(server: Server) -> Self {
        Self { masters: vec![server], slots: None }
    }

    /// True if every slot has a master.
    pub(super) fn is_whole(&self) -> bool {
        self.slots.as_ref().is_none_or(|slots| !slots.contains(&UNSERVED))
    }

    /// The index of the master that serves a key or channel.
    pub(super) fn master_of(&self, key: &[u8]) -> Option<usize> {
        let index = match &self.slots {
            None => 0,
            Some(slots) => usize::from(slots[usize::from(slot(key))]),
        };
        (index < self.masters.len()).then_some(index)
    }
}

/// The slot of a key. Only the text between the first `{` and the next `}` counts, if it is not
/// empty (Redis Cluster specification, "Hash tags").
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|b| *b == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|b| *b == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS as u16
}

/// The current map, and a notification for when it seems to be wrong.
pub(super) struct Directory {
    map: watch::Sender<Arc<Map>>,
    doubt: Notify,
}

impl Directory {
    pub(super) fn new(map: Map) -> Self {
        Self { map: watch::Sender::new(Arc::new(map)), doubt: Notify::new() }
    }

    pub(super) fn current(&self) -> Arc<Map> {
        Arc::clone(&self.map.borrow())
    }

    pub(super) fn changes(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    pub(super) fn set(&self, map: Map) {
        self.map.send_if_modified(|old| {
            let new = **old != map;
            if new {
                let masters = format!("{:?}", map.masters);
                logging::repeated(("redis", "masters"), &masters.clone(), move |repeated| {
                    tracing::info!(%masters, repeated, "Redis masters");
                });
                *old = Arc::new(map);
            }
            new
        });
    }

    /// Reports an error that a changed map would explain.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values come from `CLUSTER KEYSLOT`.
    #[test]
    fn slots_are_redis_own() {
        for (key, expected) in [
            ("tollgate:post:42", 2020),
            ("{tollgate:post:42}", 2020),
            ("tollgate:post:42:{tollgate:post:42}", 2020),
            ("foo", 12_182),
            ("{}foo", 9500),
            ("a{foo}{bar}", 12_182),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
