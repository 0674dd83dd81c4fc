//! The bounded outbound queue of one connection, for the bytes that its socket would
//! not accept yet.
//!
//! Pure: no socket. Invariants: chunks are whole frames, except that the first may be partly sent;
//! an empty queue owns no memory.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

struct Chunk {
    data: Bytes,
    messages: u32,
}

/// The memory that a chunk takes besides its bytes: its place in the list, which grows by doubling,
/// and the overhead of the allocation of its bytes.
const CHUNK: usize = 2 * size_of::<Chunk>() + 80;

#[derive(Default)]
pub(super) struct Queue {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    messages: usize,
    /// True if some bytes of the first chunk have been sent.
    begun: bool,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory that the queue takes, which for small messages is several times their bytes.
    pub(super) fn held(&self) -> usize {
        self.bytes + self.chunks.len() * CHUNK
    }

    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// Adds bytes. `begun`: the bytes before them in their frame have been sent already.
    pub(super) fn push(&mut self, data: Bytes, messages: u32, begun: bool) {
        self.bytes += data.len();
        self.messages += messages as usize;
        self.begun |= begun;
        self.chunks.push_back(Chunk { data, messages });
    }

    /// Fills `out` with the next bytes to send, and returns how many slices it filled.
    pub(super) fn slices<'q>(&'q self, out: &mut [IoSlice<'q>]) -> usize {
        let mut n = 0;
        for (slot, chunk) in out.iter_mut().zip(&self.chunks) {
            *slot = IoSlice::new(&chunk.data);
            n += 1;
        }
        n
    }

    /// Removes the first chunk as a whole. Returns it, and how many messages end in it.
    pub(super) fn pop(&mut self) -> Option<(Bytes, u32)> {
        let first = self.chunks.pop_front()?;
        self.bytes -= first.data.len();
        self.messages -= first.messages as usize;
        self.begun = false;

        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
        Some((first.data, first.messages))
    }

    /// Removes the bytes that were sent.
    pub(super) fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent;
        while let Some(first) = self.chunks.front_mut() {
            if sent < first.data.len() {
                self.begun |= sent > 0;
                first.data.advance(sent);
                return;
            }

            sent -= first.data.len();
            self.messages -= first.messages as usize;
            self.begun = false;
            self.chunks.pop_front();
        }
        self.chunks = VecDeque::new();
    }

    /// Drops everything but the rest of a chunk that was begun, so that a close frame
    /// can follow it.
    pub(super) fn cut(&mut self) {
        self.chunks.truncate(usize::from(self.begun));
        self.bytes = self.chunks.iter().map(|c| c.data.len()).sum();
        self.messages = self.chunks.iter().map(|c| c.messages as usize).sum();
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
    }
}

/// The bytes that have to wait. They are kept by reference or, if they are less than a quarter of
/// the batch, as a copy: a slow client must not keep a large batch alive for a few frames. So a
/// client holds at most four times what its queue counts.
pub(super) fn keep(batch: &Bytes, start: usize, end: usize) -> Bytes {
    let len = end - start;
    if len * 4 < batch.len() {
        Bytes::copy_from_slice(&batch[start..end])
    } else {
        batch.slice(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(queue: &Queue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 8];
        let n = queue.slices(&mut slices);
        slices[..n].iter().flat_map(|s| s.to_vec()).collect()
    }

    #[test]
    fn bytes_leave_in_order_and_the_empty_queue_owns_nothing() {
        let mut q = Queue::default();
        q.push(Bytes::from_static(b"abc"), 1, false);
        q.push(Bytes::from_static(b"defg"), 2, false);
        assert_eq!((q.bytes(), q.messages()), (7, 3));

        q.advance(2);
        assert_eq!(sent(&q), b"cdefg");
        q.advance(1);
        assert_eq!((sent(&q), q.messages()), (b"defg".to_vec(), 2));
        q.advance(4);
        assert!(q.is_empty() && q.chunks.capacity() == 0);
    }

    #[test]
    fn a_cut_keeps_only_the_frame_that_was_begun() {
        let mut q = Queue::default();
        q.push(Bytes::from_static(b"abc"), 1, false);
        q.push(Bytes::from_static(b"def"), 1, false);
        q.advance(1);
        q.cut();
        assert_eq!((sent(&q), q.bytes(), q.messages()), (b"bc".to_vec(), 2, 1));

        let mut q = Queue::default();
        q.push(Bytes::from_static(b"abc"), 1, false);
        q.cut();
        assert!(q.is_empty() && q.held() == 0);

        let mut q = Queue::default();
        q.push(Bytes::from_static(b"c"), 1, true);
        q.cut();
        assert_eq!(sent(&q), b"c");
    }
}
