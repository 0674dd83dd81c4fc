//! One connection as the hub sees it. Writes go straight to its socket, and only bytes on which the
//! socket would block wait in a bounded queue for the connection's task.
//!
//! Not here: reading, frames, commands (`http::socket`, `session`). Invariants: bytes leave in the
//! order in which they were given; once a close is carried out, nothing follows the close frame;
//! an idle connection owns no buffer.

mod deliver;
mod task;

use std::io::{ErrorKind, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::net::TcpStream;

pub use task::Wake;

use super::queue::Queue;
use super::queue_bounds::{ConnId, QueueBounds};
use crate::access::TokenId;
use crate::metrics;
use crate::protocol::codes::{Close, CloseCode};
use crate::protocol::{Reply, Wire};

/// Most slices in one vectored write.
const MAX_SLICES: usize = 32;

/// Queued chunks of an HTTP response are joined until they have this many bytes.
const TOGETHER: usize = 16 * 1024;

/// How long a client may take to be caught up on all of its channels, and how often its queue is
/// checked meanwhile.
const CATCH_UP: Duration = Duration::from_secs(30);
const ROOM_LOOK: Duration = Duration::from_millis(20);

/// The tick that says that no wheel entry counts.
const NO_TIMER: u32 = u32::MAX;

// Flags that say why the task was woken.
const TIMER: u8 = 1;
const CLOSE: u8 = 2;
const BLOCKED: u8 = 4;

/// The outbound side of a connection, under one lock.
#[derive(Default)]
struct Outbound {
    queue: Queue,
    /// The requested close, until the connection's task takes it.
    close: Option<Close>,
    /// True once a close was requested, whether or not the task has taken it.
    closing: bool,
    /// True once nothing is accepted any more.
    closed: bool,
    /// True while the queued bytes wait for more.
    corked: bool,
    user: Option<Arc<str>>,
    /// Identifies the connection's token for a revocation.
    token: TokenId,
}

impl Outbound {
    fn has_work(&self) -> bool {
        !self.queue.is_empty() && !self.corked
    }
}

/// A registered connection.
pub struct Connection {
    id: ConnId,
    shard: u32,
    slot: AtomicU32,
    wire: Wire,
    flags: AtomicU8,
    missed: AtomicBool,
    /// The tick of the wheel entry that counts; earlier entries are stale.
    timer: AtomicU32,
    waker: AtomicWaker,
    out: Mutex<Outbound>,
    /// `None` for an HTTP response, whose task takes the queued bytes.
    stream: Option<TcpStream>,
    bounds: Arc<QueueBounds>,
    opened: Instant,
}

impl Connection {
    pub(super) fn new(
        id: ConnId,
        shard: u32,
        wire: Wire,
        stream: Option<TcpStream>,
        bounds: Arc<QueueBounds>,
    ) -> Self {
        Self {
            id,
            shard,
            slot: AtomicU32::new(u32::MAX),
            wire,
            flags: AtomicU8::new(0),
            missed: AtomicBool::new(false),
            timer: AtomicU32::new(NO_TIMER),
            waker: AtomicWaker::new(),
            out: Mutex::default(),
            stream,
            bounds,
            opened: Instant::now(),
        }
    }

    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    #[must_use]
    pub fn wire(&self) -> Wire {
        self.wire
    }

    #[must_use]
    pub fn opened(&self) -> Instant {
        self.opened
    }

    #[must_use]
    pub fn user(&self) -> Option<Arc<str>> {
        self.out.lock().user.clone()
    }

    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.out.lock().queue.bytes()
    }

    /// Sets the token that counts from now on.
    pub fn set_token(&self, token: TokenId) {
        self.out.lock().token = token;
    }

    /// Identifies the connection's token for a revocation.
    #[must_use]
    pub fn token(&self) -> TokenId {
        self.out.lock().token.clone()
    }

    pub(super) fn set_user(&self, user: Arc<str>) {
        self.out.lock().user = Some(user);
    }

    pub(super) fn shard(&self) -> u32 {
        self.shard
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Acquire)
    }

    pub(super) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Release);
    }

    pub(super) fn set_timer(&self, tick: u32) {
        self.timer.store(tick, Ordering::Release);
    }

    pub(super) fn timer(&self) -> u32 {
        self.timer.load(Ordering::Acquire)
    }

    /// Wakes the connection, if its entry for this tick still counts.
    pub(super) fn fire_timer(&self, tick: u32) {
        // The entry is cleared, because the same tick may be requested again.
        let taken =
            self.timer.compare_exchange(tick, NO_TIMER, Ordering::AcqRel, Ordering::Acquire);
        if taken.is_ok() {
            self.wake(TIMER);
        }
    }

    /// Has the session check what may have ended, as if its timer had fired.
    pub fn recheck(&self) {
        self.wake(TIMER);
    }

    /// Notes that the timer fired while nobody could act on it. The [`Connection::wait`] that
    /// follows the current work reports it again.
    pub fn missed_timer(&self) {
        self.missed.store(true, Ordering::Release);
    }

    fn wake(&self, flag: u8) {
        self.flags.fetch_or(flag, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Requests that the connection's task closes it. Only the first request counts.
    pub fn close(&self, close: Close) {
        let mut out = self.out.lock();
        self.ask(&mut out, close);
    }

    fn ask(&self, out: &mut Outbound, close: Close) {
        if out.closing {
            return;
        }

        out.closing = true;
        out.close = Some(close);
        self.wake(CLOSE);
    }

    /// Queues the first bytes. They wait for the next ones to be sent, or
    /// for [`Connection::flush`].
    pub fn cork(&self, bytes: Bytes) {
        let mut out = self.out.lock();
        out.corked = true;
        // The chunk counts as begun, so that a cut does not remove the answer that the
        // following bytes need.
        self.changed(&mut out, |queue| queue.push(bytes, 0, true));
    }

    /// Waits until a client that has been catching up since `began` has taken most of its queue,
    /// but no longer than it may take to catch up completely.
    pub async fn has_room(&self, began: Instant) {
        let bytes = self.bounds.queue_bytes.load(Ordering::Relaxed) / 4;
        let messages = self.bounds.queue_messages.load(Ordering::Relaxed) / 4;

        while began.elapsed() < CATCH_UP {
            let has_room = {
                let out = self.out.lock();
                let room = out.queue.bytes() <= bytes && out.queue.messages() <= messages;
                room || out.closing
            };

            if has_room {
                return;
            }

            tokio::time::sleep(ROOM_LOOK).await;
        }
    }

    /// True once a close was requested.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.out.lock().closing
    }

    /// Takes the request to close, after which the connection accepts nothing more.
    pub fn take_close(&self) -> Option<Close> {
        self.out.lock().close.take()
    }

    /// Accepts nothing more, and ends the queue with `frame`.
    pub fn finish(&self, frame: Bytes) {
        let mut out = self.out.lock();
        (out.closing, out.closed) = (true, true);
        self.changed(&mut out, |queue| queue.push(frame, 0, false));
        drop(out);
        self.flush();
    }

    /// Queues one frame behind everything else, without writing yet.
    pub(super) fn enqueue(&self, frame: Bytes) {
        let mut out = self.out.lock();
        if out.closed {
            return;
        }
        self.changed(&mut out, |queue| queue.push(frame, 1, false));
        self.check(&mut out);
    }

    /// Sends one message of the gateway's own.
    pub fn say(&self, reply: &Reply<'_>) {
        self.send(self.wire.frame(reply));
    }

    /// Takes the next queued bytes, for the task of an HTTP response. Small chunks are joined.
    pub fn take_queued(&self) -> Option<Bytes> {
        let mut out = self.out.lock();
        self.changed(&mut out, |queue| {
            let (mut taken, mut messages) = queue.pop()?;
            // An id never leaves without its event.
            while (taken.len() < TOGETHER || messages == 0)
                && let Some((chunk, more)) = queue.pop()
            {
                messages = more;
                let mut all = BytesMut::from(taken);
                all.extend_from_slice(&chunk);
                taken = all.freeze();
            }
            Some(taken)
        })
    }

    /// Sends one frame, at once if the socket accepts it.
    pub fn send(&self, frame: Bytes) {
        self.enqueue(frame);
        self.flush();
    }

    /// Writes as much of the queue as the socket accepts.
    pub fn flush(&self) {
        let mut out = self.out.lock();
        out.corked = false;
        while !out.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let n = out.queue.slices(&mut slices);
            match self.try_write(&slices[..n]) {
                Ok(sent) => self.changed(&mut out, |queue| queue.advance(sent)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.wake(BLOCKED);
                    return;
                }
                Err(_) => return self.broken(&mut out),
            }
        }
    }

    /// Changes the queue, and accounts for the change in the total of all queues.
    fn changed<T>(&self, out: &mut Outbound, change: impl FnOnce(&mut Queue) -> T) -> T {
        let before = out.queue.held();
        let done = change(&mut out.queue);
        let after = out.queue.held();

        if after > before {
            self.bounds.queued(after - before);
        } else {
            self.bounds.unqueued(before - after);
        }

        done
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
        match &self.stream {
            Some(stream) => stream.try_write_vectored(slices),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    /// Notes that the socket is dead. Reading will report that too; until then nothing is
    /// kept for it.
    fn broken(&self, out: &mut Outbound) {
        (out.closing, out.closed) = (true, true);
        self.changed(out, |queue| *queue = Queue::default());
    }

    /// Closes the connection if its queue exceeds a bound.
    fn check(&self, out: &mut Outbound) {
        if out.queue.messages() > self.bounds.queue_messages.load(Ordering::Relaxed)
            // A single message always fits: whatever may be published can be delivered.
            || (out.queue.bytes() > self.bounds.queue_bytes.load(Ordering::Relaxed)
                && out.queue.messages() > 1)
            || self.bounds.is_full()
        {
            if !out.closed {
                metrics::slow_consumer();
            }
            self.ask(out, Close::new(CloseCode::SlowConsumer, "slow consumer"));
            out.closed = true;
            self.changed(out, Queue::cut);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.bounds.unqueued(self.out.get_mut().queue.held());
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn connection(queue_bytes_total: usize, stream: Option<TcpStream>) -> Connection {
        let bounds = QueueBounds {
            queue_messages: 10.into(),
            queue_bytes: 1000.into(),
            queue_bytes_total: queue_bytes_total.into(),
            channels_per_connection: 10.into(),
            queued: 0.into(),
        };
        Connection::new(ConnId(1), 0, Wire::Plain, stream, Arc::new(bounds))
    }

    /// The drain visits each connection twice, and does not ask again those that it asked to leave.
    #[test]
    fn a_connection_whose_close_is_taken_is_closing() {
        let connection = connection(1000, None);
        assert!(!connection.is_closing());
        connection.close(Close::new(CloseCode::Restart, "draining"));
        assert!(connection.is_closing());
        assert_eq!(connection.take_close().unwrap().code, CloseCode::Restart);
        assert!(connection.is_closing());

        connection.close(Close::new(CloseCode::SlowConsumer, "slow consumer"));
        assert!(connection.take_close().is_none(), "the first request counts");
    }

    /// Small messages take much more memory than their bytes.
    #[test]
    fn field_f2_the_bound_on_all_queues_counts_what_they_hold() {
        let bounds = QueueBounds {
            queue_messages: 100_000.into(),
            queue_bytes: 1_000_000.into(),
            queue_bytes_total: 100_000.into(),
            channels_per_connection: 10.into(),
            queued: 0.into(),
        };
        let bounds = Arc::new(bounds);
        let connection = Connection::new(ConnId(1), 0, Wire::Sse, None, Arc::clone(&bounds));

        let mut sent = 0;
        while connection.take_close().is_none() {
            connection.send(Bytes::copy_from_slice(b"1234567"));
            sent += 1;
        }

        assert!((100..1000).contains(&sent), "{sent} messages of 7 bytes in 100,000");
        assert_eq!(bounds.queued.load(Ordering::Relaxed), 0, "what was cut is given back");

        let other = Connection::new(ConnId(2), 0, Wire::Sse, None, Arc::clone(&bounds));
        for _ in 0..100 {
            other.send(Bytes::copy_from_slice(b"1234567"));
        }
        assert!(bounds.queued.load(Ordering::Relaxed) >= 100 * (7 + 80));
        assert_eq!(other.queued_bytes(), 700);
        assert_eq!(other.take_queued().unwrap().len(), 700);
        assert_eq!(bounds.queued.load(Ordering::Relaxed), 0);

        other.send(Bytes::from_static(b"1"));
        drop(other);
        assert_eq!(bounds.queued.load(Ordering::Relaxed), 0);
    }

    /// A client that is closed at once still has to receive the answer that makes it a WebSocket.
    #[tokio::test]
    async fn a_cut_spares_the_answer_that_is_held_back() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        // The bound on all queues together is exceeded.
        let connection = connection(0, Some(server));

        connection.cork(Bytes::from_static(b"101;"));
        connection.send(Bytes::from_static(b"connected;"));
        assert_eq!(connection.take_close().unwrap().code, CloseCode::SlowConsumer);
        connection.finish(Bytes::from_static(b"close;"));
        connection.shutdown();

        let mut read = String::new();
        client.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "101;close;");
    }
}
