//! What is to be done with rows that were read: which are published together, and which never can be.
//!
//! Pure. Not here: doing it (`leader`).

use std::collections::HashMap;

use bytes::Bytes;

use super::outbox::{Dead, Mark, Pending};
use crate::broker::{Relayed, Row, RowOutcome, Said};
use crate::channel::ChannelName;
use crate::protocol::payload::{self, PayloadFault};

/// Most rows of one channel in a batch: their identities are kept beside the channel's position until
/// they are marked.
const ROWS_OF_A_CHANNEL: usize = 256;

/// The longest idempotency key in bytes.
const MAX_KEY: usize = 256;

/// Why a row can never be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadReason {
    ChannelName,
    SuspiciousId,
    TooLarge,
    InvalidPayload,
    ReservedType,
    /// The function in Redis refuses it, or an argument makes no sense.
    Refused,
}

impl DeadReason {
    pub(crate) const ALL: [Self; 6] = [
        Self::ChannelName,
        Self::SuspiciousId,
        Self::TooLarge,
        Self::InvalidPayload,
        Self::ReservedType,
        Self::Refused,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::ChannelName => "channel_name",
            Self::SuspiciousId => "suspicious_id",
            Self::TooLarge => "too_large",
            Self::InvalidPayload => "invalid_payload",
            Self::ReservedType => "reserved_type",
            Self::Refused => "refused",
        }
    }
}

/// Rows of one channel, in the order of their ids.
#[derive(Debug)]
pub(super) struct ChannelRows {
    pub(super) channel: ChannelName,
    pub(super) ids: Vec<i64>,
    pub(super) rows: Vec<Row>,
}

/// What is done in one go.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) channels: Vec<ChannelRows>,
    pub(super) dead: Vec<Dead>,
}

/// How long a channel's history is and lasts, where the row does not say: seconds and events.
pub(super) type Retained<'r> = &'r (dyn Fn(&ChannelName) -> Option<(u32, u32)> + Send + Sync);

impl Batch {
    /// Sorts rows by channel, and takes out those that can never be published. Rows of a channel that
    /// has too many are left for the next batch.
    pub(super) fn of(
        pending: Vec<Pending>,
        outbox: &str,
        event_bytes: usize,
        retained: Retained<'_>,
    ) -> Self {
        let mut batch = Self::default();
        let mut places: HashMap<String, usize> = HashMap::new();
        for row in pending {
            let id = row.id;
            let (channel, row) = match judge(row, outbox, event_bytes, retained) {
                Ok(judged) => judged,
                Err((reason, explanation)) => {
                    let explanation = Said::new(&explanation);
                    batch.dead.push(Dead { id, reason: reason.label(), explanation });
                    continue;
                }
            };

            let at = *places.entry(channel.as_str().to_owned()).or_insert_with(|| {
                let channel = channel.clone();
                batch.channels.push(ChannelRows { channel, ids: vec![], rows: vec![] });
                batch.channels.len() - 1
            });
            let of_channel = &mut batch.channels[at];
            if of_channel.rows.len() < ROWS_OF_A_CHANNEL {
                of_channel.ids.push(id);
                of_channel.rows.push(row);
            }
        }
        batch
    }
}

/// Judges a row as a gateway judges a publication.
fn judge(
    row: Pending,
    outbox: &str,
    event_bytes: usize,
    retained: Retained<'_>,
) -> Result<(ChannelName, Row), (DeadReason, String)> {
    let channel: ChannelName =
        row.channel.parse().map_err(|e| (DeadReason::ChannelName, format!("{e}")))?;
    if let Some(id) = channel.missing_id() {
        let why = format!("the channel has the id \"{id}\": the publisher had none");
        return Err((DeadReason::SuspiciousId, why));
    }
    let identity = row.identity(outbox);
    let Some(payload) = row.payload else {
        let why = format!(
            "the event has {} bytes, the gateway takes {event_bytes} (limits.publication_bytes)",
            row.bytes
        );
        return Err((DeadReason::TooLarge, why));
    };
    payload::check(payload.as_bytes()).map_err(|fault| {
        let reason = match fault {
            PayloadFault::Reserved(_) => DeadReason::ReservedType,
            PayloadFault::NotUtf8 { .. } | PayloadFault::NotJson(_) => DeadReason::InvalidPayload,
        };
        (reason, fault.to_string())
    })?;

    let refused = |why: &str| (DeadReason::Refused, why.to_owned());
    if row.key.as_ref().is_some_and(|key| key.len() > MAX_KEY) {
        return Err(refused("the idempotency key is longer than 256 bytes"));
    }
    let by_rule = retained(&channel).unzip();
    let number = |given: Option<i32>, by_rule: Option<u32>, most: u32| match given {
        Some(n) => u32::try_from(n).ok().filter(|n| (1..=most).contains(n)).map(Some),
        None => Some(by_rule),
    };
    let ttl = number(row.ttl, by_rule.0, 31_536_000)
        .ok_or_else(|| refused("ttl is from 1 to 31536000 seconds"))?;
    let maxlen = number(row.maxlen, by_rule.1, 100_000)
        .ok_or_else(|| refused("maxlen is from 1 to 100000"))?;
    Ok((channel, Row { identity, payload: Bytes::from(payload), ttl, maxlen, key: row.key }))
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) marks: Vec<Mark>,
    pub(super) dead: Vec<Dead>,
    /// Rows that Redis had already, from a call whose answer was lost.
    pub(super) repeated: u64,
    /// Rows that no replica was subscribed to.
    pub(super) unheard: u64,
}

impl Outcome {
    /// Adds what became of one channel's rows.
    pub(super) fn add(&mut self, ids: &[i64], relayed: Relayed) {
        for (id, outcome) in ids.iter().copied().zip(relayed.outcomes) {
            match outcome {
                RowOutcome::Published(published) => {
                    match published.heard {
                        Some(-1) => self.repeated += 1,
                        Some(0) => self.unheard += 1,
                        Some(_) | None => {}
                    }
                    let Some(position) = published.position else { continue };
                    let offset = i64::try_from(position.offset).unwrap_or(i64::MAX);
                    self.marks.push(Mark { id, offset, epoch: (*position.epoch).to_owned() });
                }
                RowOutcome::Refused(explanation) => {
                    self.dead.push(Dead { id, reason: DeadReason::Refused.label(), explanation });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, channel: &str, payload: &str) -> Pending {
        Pending {
            id,
            uuid: "u".to_owned(),
            channel: channel.to_owned(),
            payload: Some(payload.to_owned()),
            bytes: payload.len() as i64,
            key: None,
            ttl: None,
            maxlen: None,
        }
    }

    #[test]
    fn rows_keep_their_order_and_the_dead_hold_up_nobody() {
        let rows = vec![
            row(1, "user:a", "1"),
            row(2, "user:undefined", "1"),
            row(3, "user:b", "1"),
            row(4, "user:a b", "1"),
            row(5, "user:a", "2"),
            row(6, "user:a", r#"{"type":"gap"}"#),
            Pending { payload: None, bytes: 5_000_000, ..row(7, "user:b", "") },
            Pending { ttl: Some(0), ..row(8, "user:b", "1") },
            Pending { maxlen: Some(7), ..row(9, "user:b", "1") },
        ];
        let batch = Batch::of(rows, "ab", 1 << 20, &|_| Some((60, 5)));

        let by_channel: Vec<_> =
            batch.channels.iter().map(|c| (c.channel.as_str(), &*c.ids)).collect();
        assert_eq!(by_channel, [("user:a", &[1, 5][..]), ("user:b", &[3, 9])]);
        let kept: Vec<_> = batch.channels[1].rows.iter().map(|row| (row.ttl, row.maxlen)).collect();
        assert_eq!(
            kept,
            [(Some(60), Some(5)), (Some(60), Some(7))],
            "the row counts, then the rule"
        );

        let dead: Vec<_> = batch.dead.iter().map(|dead| (dead.id, dead.reason)).collect();
        let expected = [
            (2, "suspicious_id"),
            (4, "channel_name"),
            (6, "reserved_type"),
            (7, "too_large"),
            (8, "refused"),
        ];
        assert_eq!(dead, expected);
        assert!(batch.dead[3].explanation.to_string().contains("5000000 bytes"));
    }

    #[test]
    fn a_busy_channel_takes_a_part_of_a_batch() {
        let rows = (0..1000).map(|id| row(id, "user:a", "1")).chain([row(1000, "user:b", "1")]);
        let batch = Batch::of(rows.collect(), "ab", 1 << 20, &|_| None);
        assert_eq!(batch.channels[0].ids.len(), ROWS_OF_A_CHANNEL);
        assert_eq!(batch.channels[1].ids, [1000]);
    }
}
