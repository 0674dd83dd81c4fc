//! The fan-out's way into a connection: bytes go straight to the socket, and those on which it
//! would block go to the queue.
//!
//! Invariant: nothing is written past bytes that wait in the queue.

use std::io::{ErrorKind, IoSlice};

use bytes::Bytes;

use super::{BLOCKED, Connection, MAX_SLICES};
use crate::hub::queue::keep;
use crate::hub::ranges::{FrameRange, NONE};

impl Connection {
    /// Sends the ranges of `batch` in the list that begins at `head`, in one call if the socket
    /// accepts them.
    pub(in crate::hub) fn deliver(&self, batch: &Bytes, ranges: &[FrameRange], head: u32) {
        let mut out = self.out.lock();
        if out.closed {
            return;
        }

        let mut at = head;
        let mut sent = 0;
        while out.queue.is_empty() && at != NONE {
            let node = &ranges[at as usize];
            let written = if node.next == NONE
                && let Some(stream) = &self.stream
            {
                stream.try_write(&batch[node.start as usize + sent..node.end as usize])
            } else {
                self.write_list(batch, ranges, at, sent)
            };

            match written {
                Ok(mut n) => {
                    while at != NONE {
                        let node = &ranges[at as usize];
                        let left = (node.end - node.start) as usize - sent;
                        if n < left {
                            sent += n;
                            break;
                        }
                        n -= left;
                        sent = 0;
                        at = node.next;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.broken(&mut out),
            }
        }

        if at == NONE {
            return;
        }

        // The socket would block: the rest waits in the queue for the connection's task.
        self.changed(&mut out, |queue| {
            while at != NONE {
                let node = &ranges[at as usize];
                let data = keep(batch, node.start as usize + sent, node.end as usize);
                queue.push(data, node.messages, sent > 0);
                sent = 0;
                at = node.next;
            }
        });

        self.check(&mut out);
        drop(out);
        self.wake(BLOCKED);
    }

    /// Writes as many ranges of the list as one vectored write takes, without the first
    /// `skip` bytes.
    fn write_list(
        &self,
        batch: &Bytes,
        ranges: &[FrameRange],
        mut at: u32,
        mut skip: usize,
    ) -> std::io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut n = 0;

        while at != NONE && n < MAX_SLICES {
            let node = &ranges[at as usize];
            slices[n] = IoSlice::new(&batch[node.start as usize + skip..node.end as usize]);
            skip = 0;
            n += 1;
            at = node.next;
        }

        self.try_write(&slices[..n])
    }
}
