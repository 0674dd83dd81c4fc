//! What a connection's own task does with it: waiting, reading, and ending it.
//!
//! Not here: what the task is for (`http::socket`, `http::sse`).

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::task::Poll;

use super::{BLOCKED, CLOSE, Connection, TIMER};

/// Why [`Connection::wait`] returned.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wake {
    pub close: bool,
    pub timer: bool,
    pub readable: bool,
    pub writable: bool,
}

impl Connection {
    /// Waits for something to do: a request to close, the timer, bytes to read (if `read`), or room
    /// to write (if something is queued).
    pub async fn wait(&self, read: bool) -> Wake {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let flags = self.flags.swap(0, Ordering::AcqRel);

            let mut wake =
                Wake { close: flags & CLOSE != 0, timer: flags & TIMER != 0, ..Wake::default() };

            if self.out.lock().has_work() {
                // The task of an HTTP response is told only if there is something to take.
                wake.writable = match &self.stream {
                    Some(stream) => stream.poll_write_ready(cx).is_ready(),
                    None => flags & BLOCKED != 0,
                };
            }

            if read {
                wake.timer |= self.missed.swap(false, Ordering::AcqRel);
                let stream = self.stream.as_ref();
                wake.readable = stream.is_some_and(|s| s.poll_read_ready(cx).is_ready());
            }

            if wake.close || wake.timer || wake.readable || wake.writable {
                Poll::Ready(wake)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Reads the bytes that have arrived.
    ///
    /// # Errors
    /// `WouldBlock` if there are none, or the socket's own error.
    pub fn try_read(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.as_ref().map_or(Ok(0), |stream| stream.try_read(buffer))
    }

    /// True while something is queued to be written.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.out.lock().queue.is_empty()
    }

    /// Ends the sending side of the socket; everything written before still arrives.
    pub fn shutdown(&self) {
        // A failure means that the peer is gone already.
        if let Some(stream) = &self.stream {
            let _ = socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write);
        }
    }
}
