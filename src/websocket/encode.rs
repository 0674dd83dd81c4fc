//! Server frames. They are never masked (RFC 6455 section 5.1) and never fragmented, so one encoded
//! frame serves every subscriber.

use bytes::{BufMut, Bytes, BytesMut};

use super::Opcode;

/// The longest header of an unmasked frame.
pub const MAX_HEADER: usize = 10;

/// The header of a final, unmasked frame: its bytes, and how many of them count.
#[must_use]
pub fn header(opcode: Opcode, len: usize) -> ([u8; MAX_HEADER], usize) {
    let mut h = [0; MAX_HEADER];
    h[0] = 0x80 | opcode as u8;
    if len < 126 {
        h[1] = len as u8;
        (h, 2)
    } else if let Ok(short) = u16::try_from(len) {
        h[1] = 126;
        h[2..4].copy_from_slice(&short.to_be_bytes());
        (h, 4)
    } else {
        h[1] = 127;
        h[2..10].copy_from_slice(&(len as u64).to_be_bytes());
        (h, 10)
    }
}

/// Appends one frame to `out`.
pub fn encode(out: &mut BytesMut, opcode: Opcode, payload: &[u8]) {
    let (h, n) = header(opcode, payload.len());
    out.reserve(n + payload.len());
    out.put_slice(&h[..n]);
    out.put_slice(payload);
}

/// Makes a Close frame. The reason is cut at a character boundary so that it fits into the 125
/// bytes of a control frame (RFC 6455 section 5.5).
#[must_use]
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }

    let mut payload = Vec::with_capacity(2 + end);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..end]);

    let mut out = BytesMut::new();
    encode(&mut out, Opcode::Close, &payload);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_use_the_shortest_form() {
        for (len, header_len) in [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)] {
            let mut out = BytesMut::new();
            encode(&mut out, Opcode::Text, &vec![b'x'; len]);
            assert_eq!(out.len(), header_len + len);
        }
    }

    #[test]
    fn a_long_close_reason_is_cut_between_characters() {
        let frame = close_frame(4401, &"ü".repeat(100));
        assert!(frame.len() <= 127);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
