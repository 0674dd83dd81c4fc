//! The receiving half: frames to messages.
//!
//! Invariants: the bytes of an incomplete message are bounded; an announced length
//! allocates nothing.

use std::mem;

use super::{Opcode, Tail, is_valid_close_code};

/// Most fragments of one message. Endless tiny fragments are an attack, not a use.
const MAX_FRAGMENTS: u32 = 4096;

/// A received message, borrowed from the buffer it arrived in.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The peer's code; 1005 if it sent none.
    Close(u16),
}

/// A violation of the protocol, which has a close code (RFC 6455 section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("reserved bit or opcode")]
    Reserved,
    #[error("client frames must be masked")]
    Unmasked,
    #[error("bad control frame")]
    Control,
    #[error("fragments out of order")]
    Fragments,
    #[error("bad close frame")]
    Close,
    #[error("text is not UTF-8")]
    NotUtf8,
    #[error("message too big")]
    TooBig,
}

impl ProtocolError {
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
            Self::Reserved | Self::Unmasked | Self::Control | Self::Fragments | Self::Close => 1002,
        }
    }
}

/// The fragments of a message so far.
#[derive(Debug, Default)]
struct Fragments {
    text: bool,
    count: u32,
    data: Vec<u8>,
}

/// The state of one connection: three words while nothing is incomplete.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a frame whose rest has not arrived.
    #[expect(clippy::box_collection, reason = "one word, not three, in every idle connection")]
    carry: Option<Box<Vec<u8>>>,
    /// The fragments of a message whose last one has not arrived.
    fragments: Option<Box<Fragments>>,
    /// True if what was incomplete before the last bytes is complete now.
    completed: bool,
}

/// A frame in the buffer.
struct Frame {
    fin: bool,
    opcode: Opcode,
    /// Where the payload begins and ends in the buffer.
    start: usize,
    end: usize,
    mask: [u8; 4],
}

impl Decoder {
    /// True while a frame or a message is incomplete.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.carry.is_some() || self.fragments.is_some()
    }

    /// True if what was incomplete before the last bytes is complete now: what is incomplete since
    /// then began with those bytes. Control frames within a message do not complete it.
    #[must_use]
    pub fn has_completed(&self) -> bool {
        self.completed
    }

    /// Decodes bytes as they came from the socket and hands every complete message to `on_message`,
    /// which answers whether to go on. `data` is unmasked in place.
    ///
    /// # Errors
    /// The first violation of the protocol. The connection has to be closed with its code.
    pub fn feed(
        &mut self,
        data: &mut [u8],
        max_message: usize,
        mut on_message: impl FnMut(Message<'_>) -> bool,
    ) -> Result<(), ProtocolError> {
        self.completed = !self.is_partial();

        let Some(mut carry) = self.carry.take() else {
            let (used, parsed) = self.parse(data, max_message, &mut on_message);
            self.hold(&data[used..]);
            return parsed;
        };

        carry.extend_from_slice(data);
        let (used, parsed) = self.parse(&mut carry, max_message, &mut on_message);
        if used < carry.len() {
            carry.drain(..used);
            self.carry = Some(carry);
        }

        parsed
    }

    /// Keeps bytes for later without decoding them, behind those that are kept already.
    pub fn hold(&mut self, data: &[u8]) {
        if !data.is_empty() {
            self.carry.get_or_insert_default().extend_from_slice(data);
        }
    }

    /// Turns the decoder into one that looks only for the client's Close.
    #[must_use]
    pub fn into_tail(self) -> Tail {
        let mut tail = Tail::default();
        tail.pass(&self.carry.unwrap_or_default());
        tail
    }

    /// Parses whole frames. Returns how many bytes they took, and the violation if there was one; a
    /// frame whose header is refused is not among those bytes.
    fn parse(
        &mut self,
        data: &mut [u8],
        max_message: usize,
        on_message: &mut impl FnMut(Message<'_>) -> bool,
    ) -> (usize, Result<(), ProtocolError>) {
        let mut at = 0;
        loop {
            let frame = match frame_at(data, at, max_message) {
                Ok(Some(frame)) => frame,
                Ok(None) => return (at, Ok(())),
                Err(error) => return (at, Err(error)),
            };

            let payload = &mut data[frame.start..frame.end];
            unmask(payload, frame.mask);
            at = frame.end;
            let accepted = self.accept(&frame, payload, max_message, on_message);
            self.completed |= self.fragments.is_none();

            match accepted {
                Ok(true) => {}
                Ok(false) => return (at, Ok(())),
                Err(error) => return (at, Err(error)),
            }
        }
    }

    /// Acts on a whole frame.
    fn accept(
        &mut self,
        frame: &Frame,
        payload: &[u8],
        max_message: usize,
        on_message: &mut impl FnMut(Message<'_>) -> bool,
    ) -> Result<bool, ProtocolError> {
        match frame.opcode {
            Opcode::Ping => Ok(on_message(Message::Ping(payload))),
            Opcode::Pong => Ok(on_message(Message::Pong)),
            Opcode::Close => Ok(on_message(Message::Close(close_code(payload)?))),
            Opcode::Text | Opcode::Binary => {
                if self.fragments.is_some() {
                    return Err(ProtocolError::Fragments);
                }

                let text = frame.opcode == Opcode::Text;
                if frame.fin {
                    return deliver(text, payload, on_message);
                }

                let data = payload.to_vec();
                self.fragments = Some(Box::new(Fragments { text, count: 1, data }));
                Ok(true)
            }
            Opcode::Continuation => {
                let fragments = self.fragments.as_mut().ok_or(ProtocolError::Fragments)?;

                fragments.count += 1;
                if fragments.data.len() + payload.len() > max_message
                    || fragments.count > MAX_FRAGMENTS
                {
                    return Err(ProtocolError::TooBig);
                }

                fragments.data.extend_from_slice(payload);
                if !frame.fin {
                    return Ok(true);
                }

                let whole = mem::take(&mut self.fragments).unwrap_or_default();
                deliver(whole.text, &whole.data, on_message)
            }
        }
    }
}

fn deliver(
    text: bool,
    payload: &[u8],
    on_message: &mut impl FnMut(Message<'_>) -> bool,
) -> Result<bool, ProtocolError> {
    if !text {
        return Ok(on_message(Message::Binary(payload)));
    }
    let text = std::str::from_utf8(payload).map_err(|_| ProtocolError::NotUtf8)?;
    Ok(on_message(Message::Text(text)))
}

/// Reads the frame that begins at `at`, or returns `None` if its rest has not arrived. A wrong
/// header is refused before its payload is waited for.
fn frame_at(data: &[u8], at: usize, max_message: usize) -> Result<Option<Frame>, ProtocolError> {
    let rest = &data[at..];
    let [b0, b1, ..] = *rest else {
        return Ok(None);
    };

    if b0 & 0x70 != 0 {
        return Err(ProtocolError::Reserved);
    }
    let opcode = match b0 & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return Err(ProtocolError::Reserved),
    };
    if b1 & 0x80 == 0 {
        return Err(ProtocolError::Unmasked);
    }

    let fin = b0 & 0x80 != 0;
    let (len, header) = match b1 & 0x7f {
        126 => match rest.get(2..4) {
            Some(b) => (u64::from(u16::from_be_bytes([b[0], b[1]])), 4),
            None => return Ok(None),
        },
        127 => match rest.get(2..10).and_then(|b| <[u8; 8]>::try_from(b).ok()) {
            Some(b) => (u64::from_be_bytes(b), 10),
            None => return Ok(None),
        },
        n => (u64::from(n), 2),
    };

    if opcode as u8 >= 8 && (!fin || len > 125) {
        return Err(ProtocolError::Control);
    }

    let len = usize::try_from(len).map_err(|_| ProtocolError::TooBig)?;
    if len > max_message.max(125) {
        return Err(ProtocolError::TooBig);
    }

    let start = at + header + 4;
    let end = at + header + 4 + len;
    if data.len() < end {
        return Ok(None);
    }

    let mask = [rest[header], rest[header + 1], rest[header + 2], rest[header + 3]];
    Ok(Some(Frame { fin, opcode, start, end, mask }))
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }

    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);

    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }

    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

fn close_code(payload: &[u8]) -> Result<u16, ProtocolError> {
    match payload {
        [] => Ok(1005),
        [_] => Err(ProtocolError::Close),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            if !is_valid_close_code(code) {
                return Err(ProtocolError::Close);
            }
            std::str::from_utf8(reason).map_err(|_| ProtocolError::NotUtf8)?;
            Ok(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut f = vec![u8::from(fin) << 7 | opcode];
        match payload.len() {
            n @ 0..126 => f.push(0x80 | n as u8),
            n @ 126..65536 => {
                f.push(0x80 | 126);
                f.extend((n as u16).to_be_bytes());
            }
            n => {
                f.push(0x80 | 127);
                f.extend((n as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        f.extend(mask);
        f.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i & 3]));
        f
    }

    fn texts(d: &mut Decoder, data: &mut [u8]) -> Result<Vec<String>, ProtocolError> {
        let mut out = Vec::new();
        d.feed(data, 1000, |m| {
            out.push(format!("{m:?}"));
            true
        })?;
        Ok(out)
    }

    proptest! {
        /// The messages are the same however the bytes are cut, and nothing is kept afterwards.
        #[test]
        fn cuts_do_not_matter(
            payloads in prop::collection::vec("[a-zü]{0,200}", 1..8),
            cut in 1usize..40,
        ) {
            let mut bytes: Vec<u8> = Vec::new();
            for p in &payloads {
                let (a, b) = p.as_bytes().split_at(p.len() / 2);
                bytes.extend(client_frame(false, 1, a));
                bytes.extend(client_frame(true, 9, b"hi"));
                bytes.extend(client_frame(true, 0, b));
            }

            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in bytes.chunks_mut(cut) {
                decoder.feed(part, 1000, |m| {
                    if let Message::Text(t) = m { got.push(t.to_owned()); }
                    true
                }).unwrap();
            }

            prop_assert_eq!(got, payloads);
            prop_assert!(!decoder.is_partial());
        }

        /// No input makes the decoder panic or keep more than it was given.
        #[test]
        fn garbage_is_survived(mut data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut d = Decoder::default();
            let _ = d.feed(&mut data, 1000, |_| true);
        }
    }

    #[test]
    fn violations_have_their_codes() {
        let big = client_frame(true, 2, &[0; 1001]);
        let unmasked = vec![0x81, 1, b'x'];

        for (bytes, code) in [
            (unmasked, 1002),
            (client_frame(true, 3, b""), 1002),
            (client_frame(false, 9, b""), 1002),
            (client_frame(true, 9, &[0; 126]), 1002),
            (client_frame(true, 0, b"x"), 1002),
            ([client_frame(false, 1, b"x"), client_frame(true, 1, b"x")].concat(), 1002),
            (vec![0xc1, 0x80, 0, 0, 0, 0], 1002),
            (client_frame(true, 8, &[3]), 1002),
            (client_frame(true, 8, &1005u16.to_be_bytes()), 1002),
            (client_frame(true, 8, &[3, 232, 0xff]), 1007),
            (client_frame(true, 1, &[0xff]), 1007),
            (big, 1009),
            (vec![0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0], 1009),
        ] {
            let mut data = bytes.clone();
            let err = texts(&mut Decoder::default(), &mut data).expect_err("refused");
            assert_eq!(err.close_code(), code, "{bytes:?}");
        }
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut d = Decoder::default();
        let mut head = vec![0x82, 0xfe, 3, 200, 1, 2, 3, 4, 9];
        texts(&mut d, &mut head).unwrap();
        assert!(d.carry.as_ref().is_some_and(|c| c.capacity() < 64));
    }

    #[test]
    fn endless_fragments_are_refused() {
        let mut d = Decoder::default();
        texts(&mut d, &mut client_frame(false, 1, b"")).unwrap();
        let err =
            (0..MAX_FRAGMENTS).find_map(|_| texts(&mut d, &mut client_frame(false, 0, b"")).err());
        assert_eq!(err, Some(ProtocolError::TooBig));
    }
}
