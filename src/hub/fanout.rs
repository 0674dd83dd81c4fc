//! The fan-out: all pending pushes of a shard become one batch, and every connection that the batch
//! concerns gets one write.
//!
//! A batch is encoded into one buffer per wire, in order. A connection's share is a list of byte
//! ranges; neighbouring ranges are joined, so that a connection with one busy channel is sent one
//! slice. Invariants: the shard's table is not locked while sockets are written, no client is
//! waited for, and the runtime gets a turn every few hundred writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::inbox::Item;
use super::table::Slot;
use super::{Connection, Shard};
use crate::lifecycle::unix_micros;
use crate::metrics::Fanout;
use crate::protocol::Wire;

/// Marks the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// Sockets that are written between two turns for the runtime.
const WRITES_PER_TURN: usize = 256;

/// A batch with this many ranges accepts no further push. A range takes 16 bytes, and a push adds
/// at most one per subscriber.
const MAX_NODES: usize = 262_144;

/// A batch with this many bytes accepts no further push. Its offsets reach 4 GiB, and one push adds
/// at most its own size and an id for each stream.
const MAX_BYTES: usize = 64 << 20;

/// A batch that took longer than this is followed by a rest, the shortest that the timer can do.
const BUSY: Duration = Duration::from_millis(8);
const REST: Duration = Duration::from_millis(1);

/// The capacity, in elements, that the scratch lists keep between batches.
const KEPT: usize = 65_536;

/// A range of a batch's buffer, which consists of whole frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) messages: u32,
    pub(super) next: u32,
}

/// The batch that is being composed, and its scratch memory.
#[derive(Default)]
pub(super) struct Batch {
    buffers: [BytesMut; Wire::COUNT],
    nodes: Vec<Node>,
    dirty: Vec<u32>,
    deliveries: [u64; Wire::COUNT],
    /// When its publications were published, for those that tell it.
    published: Vec<u64>,
}

impl Batch {
    /// Encodes a message into the wire's buffer; returns its range there.
    pub(super) fn encode(&mut self, wire: Wire, write: impl FnOnce(&mut BytesMut)) -> (u32, u32) {
        let buffer = &mut self.buffers[wire as usize];
        let start = buffer.len() as u32;
        write(buffer);
        (start, buffer.len() as u32)
    }

    /// Adds a range to a connection's list. `messages`: how many end in the range; 0 if the range
    /// belongs to the message that follows it.
    pub(super) fn append(
        &mut self,
        index: u32,
        slot: &mut Slot,
        (start, end): (u32, u32),
        messages: u32,
    ) {
        self.deliveries[slot.wire as usize] += u64::from(messages);

        let node = self.nodes.len() as u32;
        if slot.head == NONE {
            slot.head = node;
            self.dirty.push(index);
        } else {
            let tail = &mut self.nodes[slot.tail as usize];
            if tail.end == start {
                tail.end = end;
                tail.messages += messages;
                return;
            }
            tail.next = node;
        }

        slot.tail = node;
        self.nodes.push(Node { start, end, messages, next: NONE });
    }

    fn is_full(&self) -> bool {
        let bytes: usize = self.buffers.iter().map(BytesMut::len).sum();
        self.nodes.len() >= MAX_NODES || bytes >= MAX_BYTES
    }

    fn reset(&mut self) {
        self.nodes.clear();
        self.dirty.clear();
        self.published.clear();
        self.nodes.shrink_to(KEPT);
        self.dirty.shrink_to(KEPT);
        self.published.shrink_to(KEPT);
    }
}

pub(super) async fn run(shard: Arc<Shard>) {
    let metrics = Fanout::default();
    let mut batch = Batch::default();
    let mut items = Vec::new();
    let mut lists: Vec<(Arc<Connection>, u32)> = Vec::new();
    let mut passed: Vec<oneshot::Sender<()>> = Vec::new();
    let (mut next, mut took) = (0, Duration::ZERO);

    loop {
        if next == items.len() {
            items.shrink_to(KEPT);
            gather(items.len(), took).await;
            items = shard.inbox.take(items).await;
            next = 0;
        }

        let began = Instant::now();
        let buffers = {
            let mut table = shard.table.lock();
            // Items beyond the batch's bounds go into the next batch.
            while next < items.len() && !batch.is_full() {
                match &mut items[next] {
                    Item::Push(push) => {
                        table.append(push, &mut batch);
                        batch.published.extend(push.published());
                    }
                    Item::Mark(channel, mark) => {
                        table.mark(channel);
                        mark.passed();
                    }
                    Item::Outage(outage) => table.tell(outage.as_ref(), &mut batch),
                    Item::Pass(done) => passed.extend(done.take()),
                }
                next += 1;
            }

            let buffers: [Bytes; Wire::COUNT] =
                std::array::from_fn(|w| std::mem::take(&mut batch.buffers[w]).freeze());

            for slot in &batch.dirty {
                let Some((connection, head)) = table.take_list(*slot) else { continue };
                if connection.wire().is_stream() {
                    // A stream's ids tell the positions of all of its channels, so its events must
                    // not be overtaken by what another channel sends first. Its delivery only
                    // queues.
                    connection.deliver(&buffers[connection.wire() as usize], &batch.nodes, head);
                } else {
                    lists.push((connection, head));
                }
            }
            buffers
        };

        for (i, (connection, head)) in lists.drain(..).enumerate() {
            connection.deliver(&buffers[connection.wire() as usize], &batch.nodes, head);
            if i % WRITES_PER_TURN == WRITES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
        }

        for done in passed.drain(..) {
            // The one who asked may be gone.
            let _ = done.send(());
        }

        for (counter, n) in metrics.deliveries.iter().zip(&mut batch.deliveries) {
            if *n > 0 {
                counter.increment(std::mem::take(n));
            }
        }

        if !batch.published.is_empty() {
            let now = unix_micros();
            for at in &batch.published {
                // The clock of another machine may be ahead of this one.
                metrics.delivery.record(Duration::from_micros(now.saturating_sub(*at)));
            }
        }

        took = began.elapsed();
        metrics.seconds.record(took);
        batch.reset();
    }
}

/// Lets the next batch grow. The reader of the broker had no turn during the last writes. If the
/// last batch took long and had more than one event, publishers that wait for their events to
/// arrive are about to send the next ones: a short rest makes one batch of what would be two. With
/// eight events outstanding to 1,000 subscribers an event costs a third less, and arrives sooner. A
/// lone event never waits.
async fn gather(items: usize, took: Duration) {
    if items > 1 && took > BUSY {
        tokio::time::sleep(REST).await;
    } else {
        tokio::task::yield_now().await;
    }
}
