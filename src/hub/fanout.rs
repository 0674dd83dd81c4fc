//! The fan-out: all pending pushes of a shard become one batch, and every connection that the batch
//! concerns gets one write.
//!
//! A batch is encoded into one buffer per wire, in order. A connection's share is a list of byte
//! ranges; neighbouring ranges are joined, so that a connection with one busy channel is sent one
//! slice. Invariants: the shard's table is not locked while sockets are written, no client is
//! waited for, and the runtime gets a turn every few hundred writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::batch::{Batch, KEPT};
use super::connection::Connection;
use super::inbox::Item;
use super::shard::Shard;
use crate::clock::unix_micros;
use crate::metrics::Fanout;
use crate::protocol::Wire;

/// Sockets that are written to between two turns of the runtime.
const WRITES_PER_TURN: usize = 256;

/// A batch that took longer than this is followed by a rest, the shortest that the timer can do.
const BUSY: Duration = Duration::from_millis(8);
const REST: Duration = Duration::from_millis(1);

/// Runs a shard's fan-out, for ever.
pub(super) async fn run(shard: Arc<Shard>) {
    let metrics = Fanout::default();
    let mut batch = Batch::default();
    let mut items = Vec::new();
    let mut lists: Vec<(Arc<Connection>, u32)> = Vec::new();
    let mut passed: Vec<oneshot::Sender<()>> = Vec::new();
    let mut next = 0;
    let mut took = Duration::ZERO;

    loop {
        if next == items.len() {
            items.shrink_to(KEPT);
            gather(items.len(), took).await;
            items = shard.inbox.drain(items).await;
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
                    Item::Barrier(channel, barrier) => {
                        table.pass_barrier(channel);
                        barrier.pass();
                    }
                    Item::Outage(outage) => table.tell(outage.as_ref(), &mut batch),
                    Item::Flush(done) => passed.extend(done.take()),
                }
                next += 1;
            }

            let buffers: [Bytes; Wire::COUNT] =
                std::array::from_fn(|w| std::mem::take(&mut batch.buffers[w]).freeze());

            for slot in &batch.dirty {
                let Some((connection, head)) = table.take_list(*slot) else { continue };
                if connection.wire().is_stream() {
                    // A stream's ids tell the positions of all of its channels, so its events must
                    // not be overtaken by what another channel sends first. The delivery to a
                    // stream only queues, so the lock can be kept.
                    connection.deliver(&buffers[connection.wire() as usize], &batch.ranges, head);
                } else {
                    lists.push((connection, head));
                }
            }
            buffers
        };

        for (i, (connection, head)) in lists.drain(..).enumerate() {
            connection.deliver(&buffers[connection.wire() as usize], &batch.ranges, head);
            if i % WRITES_PER_TURN == WRITES_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
        }

        for done in passed.drain(..) {
            // The connection that waits for this may be gone.
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
