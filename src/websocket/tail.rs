//! What a client still sends behind our Close frame. It is skipped and not kept, up to the
//! client's own Close.

use super::Opcode;

/// The longest header, without its mask.
const MAX_HEAD: usize = 10;

/// Skips frames, whole and broken ones, by their lengths alone.
#[derive(Debug, Default)]
pub struct Tail {
    head: [u8; MAX_HEAD],
    filled: usize,
    /// Bytes of the mask and the payload that are still to come.
    skip: u64,
    closes: bool,
    over: bool,
}

impl Tail {
    /// True once the client's whole Close frame has arrived.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Skips bytes, as far as the end of the client's Close.
    pub fn pass(&mut self, mut data: &[u8]) {
        while !self.over {
            if self.skip > 0 {
                let n = data.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= n as u64;
                data = &data[n..];
            } else if let Some((byte, rest)) = data.split_first() {
                self.head[self.filled] = *byte;
                self.filled += 1;
                data = rest;
                self.begin();
            }
            self.over = self.closes && self.skip == 0;
            if data.is_empty() {
                return;
            }
        }
    }

    /// Begins a frame's payload if its header is complete.
    fn begin(&mut self) {
        let length = self.head[1] & 0x7f;
        let whole = match (self.filled, length) {
            (0 | 1, _) => false,
            (filled, 126) => filled == 4,
            (filled, 127) => filled == MAX_HEAD,
            _ => true,
        };
        if !whole {
            return;
        }

        let wide = self.head[2..self.filled].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let payload = if length < 126 { u64::from(length) } else { wide };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        self.skip = payload.saturating_add(mask);
        self.closes = self.head[0] & 0x0f == Opcode::Close as u8;
        self.filled = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A masked Close with a code.
    const CLOSE: [u8; 8] = [0x88, 0x82, 1, 2, 3, 4, 5, 6];

    fn frames() -> Vec<Vec<u8>> {
        vec![
            vec![0x81, 0x80, 1, 2, 3, 4],
            [vec![0x82, 0xfe, 0, 200, 1, 2, 3, 4], vec![0x88; 200]].concat(),
            [vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], vec![0x88; 65_536]].concat(),
            // These frames are wrong: without a mask, with a reserved bit, a control frame that
            // is too long.
            vec![0x81, 2, 0x88, 0x80],
            vec![0xf3, 0x81, 1, 2, 3, 4, 0x88],
            [vec![0x89, 0xfe, 0, 126, 1, 2, 3, 4], vec![0x88; 126]].concat(),
        ]
    }

    proptest! {
        /// However the bytes are cut, the Close is found where it is and nowhere before.
        #[test]
        fn the_close_is_found_behind_anything(
            order in prop::collection::vec(0usize..6, 0..6),
            cut in 1usize..5000,
        ) {
            let before: Vec<u8> = order.into_iter().flat_map(|i| frames()[i].clone()).collect();
            let mut tail = Tail::default();
            for part in before.chunks(cut) {
                tail.pass(part);
            }
            prop_assert!(!tail.is_over());
            tail.pass(&CLOSE[..7]);
            prop_assert!(!tail.is_over());
            tail.pass(&CLOSE[7..]);
            prop_assert!(tail.is_over());
            tail.pass(&before);
            prop_assert!(tail.is_over());
        }

        #[test]
        fn garbage_is_survived(data in prop::collection::vec(any::<u8>(), 0..300)) {
            Tail::default().pass(&data);
        }
    }

    #[test]
    fn a_close_without_mask_and_code_counts() {
        let mut tail = Tail::default();
        tail.pass(&[0x88, 0]);
        assert!(tail.is_over());
    }
}
