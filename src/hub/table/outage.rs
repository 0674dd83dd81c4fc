//! What a shard's connections are told of an outage: that nothing can arrive, on which of their channels,
//! and that it is over. Nobody is told before `connected`, or twice the same.

use bytes::BytesMut;

use super::Table;
use crate::channel::ChannelName;
use crate::hub::Connection;
use crate::hub::fanout::Batch;
use crate::protocol::{Message, Wire, plain};
use crate::sizes::shrink;

/// A connection with more silent channels than these is told that all are: lists for everybody could take
/// more memory than everything else.
const LISTED: usize = 32;

/// Nothing can arrive now on all channels, or on some.
pub struct Outage {
    /// When it began, in Unix seconds.
    since: u64,
    concerns: Option<Concerns>,
}

type Concerns = Box<dyn Fn(&ChannelName) -> bool + Send + Sync>;

/// Which channels of a connection are silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silent {
    All,
    These(Box<[ChannelName]>),
}

impl Outage {
    /// Of all channels.
    #[must_use]
    pub fn of_all(since: u64) -> Self {
        Self { since, concerns: None }
    }

    /// Of those that it concerns.
    pub fn of_some(
        since: u64,
        concerns: impl Fn(&ChannelName) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { since, concerns: Some(Box::new(concerns)) }
    }

    fn silent_of(&self, channels: &[ChannelName]) -> Option<Silent> {
        let Some(concerns) = &self.concerns else { return Some(Silent::All) };
        let mut silent: Vec<_> = channels.iter().filter(|channel| concerns(channel)).collect();
        silent.sort_unstable();
        match silent.len() {
            0 => None,
            n if n > LISTED => Some(Silent::All),
            _ => Some(Silent::These(silent.into_iter().cloned().collect())),
        }
    }

    fn message(&self, silent: &Silent) -> Message {
        match silent {
            Silent::All => plain::interrupted(self.since, None),
            Silent::These(channels) => plain::interrupted(self.since, Some(channels)),
        }
    }
}

impl Table {
    /// Says `connected`, and behind it what is silent. From now on the connection is told of outages.
    pub(in crate::hub) fn greet(&mut self, connection: &Connection, connected: &Message) {
        let index = connection.slot();
        let Some(slot) = self.slots.get_mut(index as usize) else { return };
        slot.greeted = true;
        connection.enqueue(slot.wire.frame(connected));

        let Some(outage) = &self.outage else { return };
        if let Some(silent) = outage.silent_of(&slot.channels) {
            connection.enqueue(slot.wire.frame(&outage.message(&silent)));
            self.told.insert(index, silent);
        }
    }

    /// Tells everybody whom it concerns, in the place where this comes: encoded once per wire, but for
    /// lists of channels.
    pub(in crate::hub) fn tell(&mut self, outage: Option<&super::Arc<Outage>>, batch: &mut Batch) {
        let mut ranges = [[None; Wire::COUNT]; 2];
        for (index, slot) in self.slots.iter_mut().filter(|(_, slot)| slot.greeted) {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let silent = outage.and_then(|outage| outage.silent_of(&slot.channels));
            if silent.as_ref() == self.told.get(&index) {
                continue;
            }
            let wire = slot.wire;
            let mut encode = |message: &Message| {
                batch.encode(wire, |out: &mut BytesMut| out.extend_from_slice(&wire.frame(message)))
            };
            let range = match (outage, &silent) {
                (Some(outage), Some(silent @ Silent::These(_))) => encode(&outage.message(silent)),
                (Some(outage), Some(Silent::All)) => *ranges[0][wire as usize]
                    .get_or_insert_with(|| encode(&outage.message(&Silent::All))),
                _ => *ranges[1][wire as usize].get_or_insert_with(|| encode(&plain::live())),
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
