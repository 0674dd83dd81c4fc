//! RFC 6455 frames as a client needs them: finds the server's frames in a buffer, and writes its
//! own. What is in a text frame is the business of `event` and `client`.

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub opcode: u8,
    pub payload: &'a [u8],
    /// Where the next frame begins.
    pub len: usize,
}

/// The frame at the beginning of `buffer`; `None` while it is not complete.
pub fn first(buffer: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let [head, second, rest @ ..] = buffer else { return Ok(None) };

    if head & 0xf0 != 0x80 {
        return Err("the server sent a fragment or a reserved bit");
    }
    if second & 0x80 != 0 {
        return Err("the server sent a masked frame");
    }

    let (start, length) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (4, usize::from(u16::from_be_bytes(*bytes))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (10, usize::try_from(u64::from_be_bytes(*bytes)).unwrap_or(usize::MAX)),
            None => return Ok(None),
        },
        short => (2, usize::from(*short)),
    };

    if length > 1 << 30 {
        return Err("the server sent a frame of more than 1 GiB");
    }

    let end = start + length;
    match buffer.get(start..end) {
        Some(payload) => Ok(Some(Frame { opcode: head & 15, payload, len: end })),
        None => Ok(None),
    }
}

/// Writes a client's frame. A mask of zeroes is legal, and the payload can be copied. Masks protect
/// proxies from what a page's script sends, and this is no browser.
pub fn write(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        n @ 0..126 => out.push(0x80 | n as u8),
        n @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }

    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload);
}

/// Writes a frame as a server does, for the floor and the tests.
pub fn write_unmasked(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        n @ 0..126 => out.push(n as u8),
        n @ 126..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }

    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_cut_at_every_byte_yields_the_same_frames() {
        let payloads =
            [vec![], vec![b'a'; 5], vec![b'b'; 125], vec![b'c'; 126], vec![b'd'; 70_000]];
        let mut stream = Vec::new();
        for payload in &payloads {
            write_unmasked(&mut stream, TEXT, payload);
        }

        for cut in (0..600).chain(stream.len() - 70_020..stream.len() - 69_980) {
            let mut found = Vec::new();
            let mut held = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                held.extend_from_slice(part);
                let mut at = 0;
                while let Some(frame) = first(&held[at..]).unwrap() {
                    found.push(frame.payload.to_vec());
                    at += frame.len;
                }
                held.drain(..at);
            }

            assert_eq!(found, payloads, "cut at {cut}");
            assert!(held.is_empty());
        }
    }

    #[test]
    fn what_a_server_may_not_send_is_an_error() {
        assert!(first(&[0x01, 0]).is_err());
        assert!(first(&[0xc1, 0]).is_err());
        assert!(first(&[0x81, 0x80, 0, 0, 0, 0]).is_err());
        assert!(first(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_clients_frame_is_masked() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let mut out = Vec::new();
            write(&mut out, TEXT, &vec![b'x'; length]);
            assert_eq!(out[1] & 0x80, 0x80);
            out[1] &= 0x7f;
            let header = out.len() - length;
            out.drain(header - 4..header);
            assert_eq!(first(&out).unwrap().unwrap().payload.len(), length);
        }
    }
}
