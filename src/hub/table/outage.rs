//! What a shard's connections are told of an outage: that nothing can arrive, on which of their
//! channels, and when this is over.
//!
//! Invariant: no connection is told before `connected`, and none is told the same twice.

use std::sync::Arc;

use bytes::BytesMut;

use super::Table;
use crate::hub::batch::Batch;
use crate::hub::connection::Connection;
use crate::hub::outage::{Outage, Silent};
use crate::protocol::{Reply, Wire};
use crate::sizes::shrink;

impl Table {
    /// Sends `connected`, and behind it what is silent. From now on the connection is
    /// told of outages.
    pub(in crate::hub) fn greet(&mut self, connection: &Connection, connected: &Reply<'_>) {
        let index = connection.slot();
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.greeted = true;
        connection.enqueue(slot.wire.frame(connected));

        self.tell_one(connection);
    }

    /// Tells a connection which of its present channels are silent, unless it knows that already.
    pub(super) fn tell_one(&mut self, connection: &Connection) {
        let Some(outage) = &self.outage else { return };
        let index = connection.slot();
        let Some(slot) = self.slots.get(index as usize).filter(|slot| slot.greeted) else { return };
        let Some(silent) = outage.silent_of(&slot.channels) else { return };
        if self.told.get(&index) != Some(&silent) {
            connection.enqueue(slot.wire.frame(&outage.message(&silent)));
            self.told.insert(index, silent);
        }
    }

    /// Tells every connection that the change concerns, at this place among the pushes. Messages
    /// are encoded once per wire, except those with lists of channels.
    pub(in crate::hub) fn tell(&mut self, outage: Option<&Arc<Outage>>, batch: &mut Batch) {
        let mut ranges = [[None; Wire::COUNT]; 2];

        for (index, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.greeted) {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let silent = outage.and_then(|outage| outage.silent_of(&slot.channels));
            if silent.as_ref() == self.told.get(&index) {
                continue;
            }

            let wire = slot.wire;
            let mut encode = |reply: &Reply<'_>| {
                batch.encode(wire, |out: &mut BytesMut| wire.append(reply, out))
            };
            let range = match (outage, &silent) {
                (Some(outage), Some(silent @ Silent::These(_))) => encode(&outage.message(silent)),
                (Some(outage), Some(Silent::All)) => *ranges[0][wire as usize]
                    .get_or_insert_with(|| encode(&outage.message(&Silent::All))),
                _ => *ranges[1][wire as usize].get_or_insert_with(|| encode(&Reply::Live)),
            };

            batch.append(index, slot, range, 1);
            match silent {
                Some(silent) => drop(self.told.insert(index, silent)),
                None => drop(self.told.remove(&index)),
            }
        }

        shrink(&mut self.told);
        self.outage = outage.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Activation, Hub};

    fn join(hub: &Hub, connection: &Connection, channel: &str) {
        let channel = channel.parse().unwrap();
        hub.subscribe(connection, &channel).unwrap();
        hub.activate(connection, &channel, &[], &Activation::default());
    }

    fn of_some(since: u64, names: &'static [&'static str]) -> Option<Outage> {
        Some(Outage::of_some(since, |channel| names.contains(&channel.as_str())))
    }

    /// The types and data of the messages that have come since the last call.
    async fn came(hub: &Hub, connection: &Connection) -> Vec<String> {
        hub.flush_barrier(connection).await;
        let bytes = connection.take_queued().unwrap_or_default();
        let text = std::str::from_utf8(&bytes).unwrap();
        let messages = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let short = |line: &str| {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            let kind = json["type"].as_str().unwrap();
            match json["data"]["channels"].as_array().filter(|_| kind == "interrupted") {
                Some(channels) => {
                    let names: Vec<_> = channels.iter().filter_map(|c| c.as_str()).collect();
                    format!("{kind} {}", names.join(" "))
                }
                None => kind.to_owned(),
            }
        };
        messages.map(short).collect()
    }

    #[tokio::test]
    async fn each_is_told_what_concerns_it_and_nothing_twice() {
        let hub = Hub::unbounded();
        let greeting =
            Reply::Connected { user: None, connection_id: "c", expires_at: None, channels: &[] };
        let connection = || hub.register(None, Wire::Sse);
        let both = connection();
        let one = connection();
        let none = connection();
        let silent = connection();
        for (connection, channels) in
            [(&both, &["a", "b", "c"][..]), (&one, &["b"]), (&none, &["c"]), (&silent, &["a"])]
        {
            channels.iter().for_each(|channel| join(&hub, connection, channel));
        }

        // The fourth connection is not greeted yet, and is told nothing before that.
        for connection in [&both, &one, &none] {
            hub.greet(connection, &greeting);
            assert_eq!(came(&hub, connection).await, ["connected"]);
        }

        hub.tell(of_some(1, &["a", "b"])).await;
        assert_eq!(came(&hub, &both).await, ["interrupted a b"]);
        assert_eq!(came(&hub, &one).await, ["interrupted b"]);
        assert!(came(&hub, &none).await.is_empty() && came(&hub, &silent).await.is_empty());

        hub.greet(&silent, &greeting);
        assert_eq!(came(&hub, &silent).await, ["connected", "interrupted a"]);

        // A channel that is subscribed meanwhile is silent too.
        join(&hub, &none, "a");
        assert_eq!(came(&hub, &none).await, ["interrupted a"]);

        hub.tell(of_some(1, &["a"])).await;
        assert_eq!(came(&hub, &both).await, ["interrupted a"]);
        assert_eq!(came(&hub, &one).await, ["live"]);
        assert!(came(&hub, &none).await.is_empty() && came(&hub, &silent).await.is_empty());

        hub.tell(Some(Outage::of_all(1))).await;
        for connection in [&both, &one, &none, &silent] {
            assert_eq!(came(&hub, connection).await, ["interrupted"]);
        }

        // A connection that takes the slot of one that left has been told nothing yet.
        hub.remove(&silent);
        let late = connection();
        hub.tell(None).await;
        hub.flush_barrier(&late).await;
        hub.greet(&late, &greeting);
        assert_eq!(came(&hub, &late).await, ["connected"]);
        for connection in [&both, &one, &none] {
            assert_eq!(came(&hub, connection).await, ["live"]);
        }

        hub.tell(None).await;
        assert!(came(&hub, &both).await.is_empty());
    }
}
