//! The stream of a subscribing connection: it takes the messages out, and hands everything else on to
//! the library's parser, byte for byte.
//!
//! A replica reads many messages for each answer, and the library makes a tree of values of each: half of
//! what a unicast publication cost (ADR 3). Not here: what a message means. Invariant: pushes are told in
//! the order in which the server sent them, confirmations among messages; nothing but whole messages is
//! kept from the library.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a server says of itself, without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Push<'p> {
    Message {
        channel: &'p [u8],
        payload: &'p [u8],
    },
    Subscribed(&'p [u8]),
    Unsubscribed(&'p [u8]),
    /// Of sharded Pub/Sub.
    ShardUnsubscribed(&'p [u8]),
    /// The connection is at its end.
    Disconnected,
}

impl<'p> Push<'p> {
    /// By its kind, the channel and what follows; `None` for what nobody here listens to.
    pub(super) fn new(kind: &[u8], channel: &'p [u8], payload: &'p [u8]) -> Option<Self> {
        Some(match kind {
            b"message" | b"smessage" => Self::Message { channel, payload },
            b"subscribe" | b"ssubscribe" => Self::Subscribed(channel),
            b"unsubscribe" => Self::Unsubscribed(channel),
            b"sunsubscribe" => Self::ShardUnsubscribed(channel),
            _ => return None,
        })
    }
}

/// Called by the connection's reader for every push; it must not wait.
pub(super) type OnPush = Arc<dyn Fn(Push<'_>) + Send + Sync>;

/// Bytes asked of the socket at a time.
const READ: usize = 64 * 1024;
/// Room that is kept between messages.
const KEPT: usize = 4 * READ;

/// Most digits of a length or a count.
const MAX_DIGITS: usize = 15;

pub(super) struct Tap<S> {
    stream: S,
    on_push: OnPush,
    /// Read, and not looked at yet.
    unread: BytesMut,
    /// Bytes without which the push at the front of `unread` is not whole.
    wanted: usize,
    /// For the library.
    passed: BytesMut,
    passing: Passing,
}

/// Where in an answer, of which the front of `unread` is a part, we are.
#[derive(Debug, Default)]
struct Passing {
    /// Elements that have not begun.
    elements: u64,
    /// Bytes of the present one.
    bytes: usize,
}

/// A push, or why there is none.
enum Front<'u> {
    /// The kind, the next two elements if they are strings, and the length of all of it.
    Push(&'u [u8], &'u [u8], &'u [u8], usize),
    /// So many bytes are needed to say.
    Incomplete(usize),
    /// An answer, or something that is none of ours.
    Other,
}

impl<S> Tap<S> {
    pub(super) fn new(stream: S, on_push: OnPush) -> Self {
        let (unread, passed) = (BytesMut::new(), BytesMut::new());
        Self { stream, on_push, unread, wanted: 0, passed, passing: Passing::default() }
    }

    /// Looks through what was read.
    fn sort(&mut self) {
        while !self.unread.is_empty() {
            if !self.passing.is_over() {
                let n = self.passing.pass(&self.unread);
                if n == 0 {
                    return;
                }
                self.passed.extend_from_slice(&self.unread[..n]);
                self.unread.advance(n);
                continue;
            }
            if self.unread.len() < self.wanted {
                return;
            }
            match front(&self.unread) {
                Front::Push(kind, channel, payload, len) => {
                    let push = Push::new(kind, channel, payload);
                    if let Some(push) = push {
                        (self.on_push)(push);
                    }
                    // The library counts confirmations as answers.
                    if !matches!(push, Some(Push::Message { .. })) {
                        self.passed.extend_from_slice(&self.unread[..len]);
                    }
                    self.unread.advance(len);
                    self.wanted = 0;
                }
                Front::Incomplete(wanted) => {
                    self.wanted = wanted;
                    return;
                }
                Front::Other => {
                    self.passing.elements = 1;
                    self.wanted = 0;
                }
            }
        }
    }
}

/// The line at the front, without its end, and where the next one begins.
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|w| w == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

/// A length or a count, and where what follows it begins. Byte by byte: it is read three times for every
/// message, and has a few digits.
fn number(bytes: &[u8]) -> Result<Option<(usize, usize)>, ()> {
    let mut number = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            b'0'..=b'9' if at <= MAX_DIGITS => number = number * 10 + usize::from(byte - b'0'),
            b'\r' if at > 1 => {
                return match bytes.get(at + 1) {
                    Some(b'\n') => Ok(Some((number, at + 2))),
                    Some(_) => Err(()),
                    None => Ok(None),
                };
            }
            _ => return Err(()),
        }
    }
    Ok(None)
}

/// What stands at the front (RESP3, "Push event"): a push of three elements, of which the first two are
/// strings.
fn front(bytes: &[u8]) -> Front<'_> {
    if bytes[0] != b'>' {
        return Front::Other;
    }
    let count = match number(bytes) {
        Ok(Some((3, next))) => next,
        Ok(Some(_)) | Err(()) => return Front::Other,
        Ok(None) => return Front::Incomplete(bytes.len() + 1),
    };
    let mut at = count;
    let mut strings: [&[u8]; 3] = [b""; 3];
    for (n, string) in strings.iter_mut().enumerate() {
        let Some(first) = bytes.get(at) else { return Front::Incomplete(at + 1) };
        if *first == b'$' {
            match number(&bytes[at..]) {
                Ok(Some((len, next))) => {
                    let begin = at + next;
                    let Some(end) = begin.checked_add(len + 2) else { return Front::Other };
                    if bytes.len() < end {
                        return Front::Incomplete(end);
                    }
                    *string = &bytes[begin..end - 2];
                    at = end;
                }
                Ok(None) => return Front::Incomplete(bytes.len() + 1),
                Err(()) => return Front::Other,
            }
        } else if n == 2 && *first == b':' {
            // How many subscriptions there are.
            match line(&bytes[at..]) {
                Some((_, next)) => at += next,
                None => return Front::Incomplete(bytes.len() + 1),
            }
        } else {
            return Front::Other;
        }
    }
    let [kind, channel, payload] = strings;
    Front::Push(kind, channel, payload, at)
}

impl Passing {
    fn is_over(&self) -> bool {
        self.elements == 0 && self.bytes == 0
    }

    /// How many bytes at the front belong to the answer; none when there are too few to say.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        if self.bytes > 0 {
            let n = self.bytes.min(bytes.len());
            self.bytes -= n;
            return n;
        }
        let Some((head, next)) = line(bytes) else { return 0 };
        let kind = head.first().copied().unwrap_or_default();
        // A length of -1 is nothing; of "?" no server makes use.
        let number: Option<u64> =
            head.get(1..).and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse().ok());
        self.elements -= 1;
        match (kind, number) {
            (b'$' | b'!' | b'=', Some(len)) => self.bytes = len as usize + 2,
            (b'*' | b'~' | b'>', Some(len)) => self.elements = self.elements.saturating_add(len),
            (b'%', Some(len)) => {
                self.elements = self.elements.saturating_add(len.saturating_mul(2));
            }
            // Attributes stand before the element that they are of.
            (b'|', Some(len)) => {
                let more = len.saturating_mul(2).saturating_add(1);
                self.elements = self.elements.saturating_add(more);
            }
            _ => {}
        }
        next
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tap = self.get_mut();
        loop {
            if !tap.passed.is_empty() {
                let n = tap.passed.len().min(out.remaining());
                out.put_slice(&tap.passed[..n]);
                tap.passed.advance(n);
                return Poll::Ready(Ok(()));
            }
            // One large message is no reason to keep so much for good.
            if tap.unread.is_empty() && tap.unread.capacity() > KEPT {
                tap.unread = BytesMut::new();
            }
            // Also room for the rest of a large push at once.
            tap.unread.reserve(READ.max(tap.wanted.saturating_sub(tap.unread.len())));
            let read =
                tokio_util::io::poll_read_buf(Pin::new(&mut tap.stream), cx, &mut tap.unread);
            match std::task::ready!(read)? {
                0 => return Poll::Ready(Ok(())),
                _ => tap.sort(),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const ANSWERS: &[&[u8]] = &[
        b"+OK\r\n",
        b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n",
        b"$45\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nwrong\r\n>3\r\n$7\r\nme\r\n",
        b"*3\r\n$-1\r\n_\r\n*2\r\n#t\r\n,1.5\r\n",
        b"|1\r\n$3\r\nttl\r\n:1\r\n*0\r\n",
        b"-ERR >3\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
        b"$0\r\n\r\n",
    ];

    /// Whatever the reads are, messages are told and the rest is passed, each in its order.
    #[tokio::test]
    async fn messages_are_taken_out_of_answers() {
        let message = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$12\r\n>3\r\n$7\r\nme\r\n\r\n";
        let subscribed = b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n";
        let empty = b">3\r\n$8\r\nsmessage\r\n$1\r\nb\r\n$0\r\n\r\n";
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for answer in ANSWERS {
            wire.extend_from_slice(message);
            wire.extend_from_slice(answer);
            wire.extend_from_slice(subscribed);
            wire.extend_from_slice(empty);
            expected.extend_from_slice(answer);
            expected.extend_from_slice(subscribed);
        }
        for size in 1..wire.len() {
            let told = Arc::new(Mutex::new(Vec::new()));
            let teller = Arc::clone(&told);
            let on_push: OnPush = Arc::new(move |push| teller.lock().push(format!("{push:?}")));
            let (mut server, client) = tokio::io::duplex(size);
            let bytes = wire.clone();
            let writing = async move {
                for chunk in bytes.chunks(size) {
                    server.write_all(chunk).await.unwrap();
                }
            };
            let mut tap = Tap::new(client, on_push);
            let mut passed = Vec::new();
            let (read, ()) = tokio::join!(tap.read_to_end(&mut passed), writing);
            read.unwrap();
            assert_eq!(passed.escape_ascii().to_string(), expected.escape_ascii().to_string());
            let told = told.lock();
            assert_eq!(told.len(), 3 * ANSWERS.len(), "reads of {size}");
            let of = |n: usize| told.iter().skip(n).step_by(3).all(|t| *t == told[n]);
            assert!(of(0) && of(1) && of(2), "{told:?}");
            let (channel, payload) = (&b"a"[..], &b">3\r\n$7\r\nme\r\n"[..]);
            assert_eq!(told[0], format!("{:?}", Push::Message { channel, payload }));
            assert_eq!(told[1], format!("{:?}", Push::Subscribed(b"a")));
            assert_eq!(told[2], format!("{:?}", Push::Message { channel: b"b", payload: b"" }));
        }
    }

    /// Nonsense is the library's to refuse.
    #[tokio::test]
    async fn nonsense_is_passed_on() {
        for nonsense in [
            &b">99999999999999999999999999999999999999\r\nx"[..],
            b">3\r\n$99999999999999999999\r\nx\r\n",
            b">3\r\n+message\r\n$1\r\na\r\n$1\r\nb\r\n",
            b">-1\r\n",
            b"what\r\n",
        ] {
            let on_push: OnPush = Arc::new(|push| panic!("{push:?}"));
            let mut tap = Tap::new(nonsense, on_push);
            let mut passed = Vec::new();
            tap.read_to_end(&mut passed).await.unwrap();
            assert!(nonsense.starts_with(&passed) && !passed.is_empty());
        }
    }

    /// A push that turns out to be the library's leaves nothing behind for what follows it.
    #[tokio::test(start_paused = true)]
    async fn what_follows_a_push_of_another_kind_does_not_wait() {
        let on_push: OnPush = Arc::new(|_| {});
        let (mut server, client) = tokio::io::duplex(1024);
        let mut tap = Tap::new(client, on_push);
        let (first, rest) = (b">3\r\n$11\r\nunsubscribe\r\n", b"_\r\n:0\r\n+PONG\r\n");
        let mut passed = vec![0; first.len() + rest.len()];
        let reading =
            tokio::time::timeout(std::time::Duration::from_secs(1), tap.read_exact(&mut passed));
        let writing = async {
            server.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            server.write_all(rest).await.unwrap();
        };
        let (read, ()) = tokio::join!(reading, writing);
        read.expect("the answer behind it arrives").unwrap();
    }
}
