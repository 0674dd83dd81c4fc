//! A batch: what a shard's fan-out is about to write, as ranges of encoded frames.
//!
//! Not here: which connection is sent what (`table`), and the writing (`fanout`). Invariant: a
//! batch is bounded in ranges and in bytes.

use bytes::BytesMut;

use super::ranges::{FrameRange, NONE};
use super::slot::Slot;
use crate::protocol::Wire;

/// A batch with this many ranges accepts no further push. A range takes 16 bytes, and a push adds
/// at most one per subscriber.
const MAX_RANGES: usize = 262_144;

/// A batch with this many bytes accepts no further push. Its offsets reach 4 GiB, and one push adds
/// at most its own size and an id for each stream.
const MAX_BYTES: usize = 64 << 20;

/// The capacity, in elements, that the scratch lists keep between batches.
pub(super) const KEPT: usize = 65_536;

/// The batch that is being composed, and its scratch memory.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) buffers: [BytesMut; Wire::COUNT],
    pub(super) ranges: Vec<FrameRange>,
    pub(super) dirty: Vec<u32>,
    pub(super) deliveries: [u64; Wire::COUNT],
    /// When its publications were published, as far as that is known.
    pub(super) published: Vec<u64>,
}

impl Batch {
    /// Encodes a message into the wire's buffer, and returns its range there.
    #[inline]
    pub(super) fn encode(&mut self, wire: Wire, write: impl FnOnce(&mut BytesMut)) -> (u32, u32) {
        let buffer = &mut self.buffers[wire as usize];
        let start = buffer.len() as u32;
        write(buffer);
        (start, buffer.len() as u32)
    }

    /// Adds a range to a connection's list. `messages`: how many messages end in the range; 0 if
    /// the range is a part of the message that follows it.
    #[inline]
    pub(super) fn append(
        &mut self,
        index: u32,
        slot: &mut Slot,
        (start, end): (u32, u32),
        messages: u32,
    ) {
        self.deliveries[slot.wire as usize] += u64::from(messages);

        let node = self.ranges.len() as u32;
        if slot.head == NONE {
            slot.head = node;
            self.dirty.push(index);
        } else {
            let tail = &mut self.ranges[slot.tail as usize];

            // Neighbouring ranges become one.
            if tail.end == start {
                tail.end = end;
                tail.messages += messages;
                return;
            }
            tail.next = node;
        }

        slot.tail = node;
        self.ranges.push(FrameRange { start, end, messages, next: NONE });
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        let bytes: usize = self.buffers.iter().map(BytesMut::len).sum();
        self.ranges.len() >= MAX_RANGES || bytes >= MAX_BYTES
    }

    pub(super) fn reset(&mut self) {
        self.ranges.clear();
        self.dirty.clear();
        self.published.clear();
        self.ranges.shrink_to(KEPT);
        self.dirty.shrink_to(KEPT);
        self.published.shrink_to(KEPT);
    }
}
