//! The stream of a connection to Redis. The tap takes the messages out of it, and passes everything
//! else to the library's parser, byte for byte.
//!
//! A replica reads many messages for each answer, and the library makes a tree of values of each
//! message, which was half of the cost of a unicast publication (ADR 3). Not here: what a message
//! means. Invariants: pushes are reported in the order in which the server sent them, confirmations
//! among messages; nothing but whole messages is withheld from the library. Memory is bounded
//! whatever the server sends: a payload above the limit is skipped, a length that Redis never sends
//! ends the connection before anything is reserved for it, and no byte is searched twice for the
//! end of a line.

#[cfg(fuzzing)]
pub mod fuzzing;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A push: what a server sends without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PushMessage<'p> {
    Message {
        channel: &'p [u8],
        payload: &'p [u8],
    },
    /// A message whose payload is above the limit: the payload's beginning and its length.
    TooLarge {
        channel: &'p [u8],
        begin: &'p [u8],
        len: usize,
    },
    Subscribed(&'p [u8]),
    Unsubscribed(&'p [u8]),
    /// The end of a subscription in sharded Pub/Sub.
    ShardUnsubscribed(&'p [u8]),
    /// The connection has ended.
    Disconnected,
}

impl<'p> PushMessage<'p> {
    /// Makes a push of its kind, its channel and what follows. Returns `None` for a kind that is
    /// not handled here.
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
pub(super) type OnPush = Arc<dyn Fn(PushMessage<'_>) + Send + Sync>;

/// Makes all bounds small for the fuzz target, so that a few bytes reach them.
const SCALE: usize = if cfg!(fuzzing) { 1024 } else { 1 };

/// Bytes requested from the socket at a time.
const READ: usize = 64 * 1024 / SCALE;
/// The largest buffer that is kept between messages.
const KEPT: usize = 4 * READ;

/// Most digits of a length or a count.
const MAX_DIGITS: usize = 15;

/// The longest line in an answer, and the longest name of a channel or a kind.
const MAX_LINE: usize = 64 * 1024 / SCALE;

/// More than a string in Redis can have (`proto-max-bulk-len` is 512 MiB unless it was raised).
const MAX_STRING: usize = (1 << 30) / SCALE;

/// How much of a payload that is too large is reported: enough for its head.
const BEGIN: usize = 128;

/// The bounds on what passes.
#[derive(Clone)]
pub(super) struct TapLimits {
    /// Bytes of a message's payload; the limit may change.
    pub(super) payload: Arc<AtomicUsize>,
    /// Bytes of one answer, plus the number of its elements.
    pub(super) answer: usize,
}

/// A stream from which the messages are taken.
pub(super) struct Tap<S> {
    stream: S,
    limits: TapLimits,
    /// `None` if no messages are expected.
    on_push: Option<OnPush>,
    /// Bytes that were read and not examined yet.
    unread: BytesMut,
    /// The push at the front of `unread` is incomplete below this many bytes.
    wanted: usize,
    /// Bytes of a payload that is too large, which are still to be skipped.
    skipping: usize,
    /// Bytes for the library.
    passed: BytesMut,
    passing: Passing,
}

/// Where in an answer the front of `unread` is.
#[derive(Debug, Default)]
struct Passing {
    /// Elements that have not begun.
    elements: u64,
    /// Bytes that are left of the present element.
    bytes: usize,
    /// Bytes and elements of the whole answer so far, added up.
    passed: usize,
    /// Bytes at the front that were searched for the end of a line already.
    scanned: usize,
}

/// A push, or why there is none.
enum Front<'u> {
    /// The kind, the next two elements if they are strings, and the length of the whole push.
    PushMessage(&'u [u8], &'u [u8], &'u [u8], usize),
    /// A message with too large a payload: the channel, the beginning of the payload, the payload's
    /// length, and the length of the whole push.
    TooLarge(&'u [u8], &'u [u8], usize, usize),
    /// This many bytes are needed to decide.
    Incomplete(usize),
    /// An answer, or a push that is not handled here.
    Other,
    /// Something that Redis never sends.
    Bad,
}

impl<S> Tap<S> {
    pub(super) fn new(stream: S, limits: TapLimits, on_push: Option<OnPush>) -> Self {
        Self {
            stream,
            limits,
            on_push,
            unread: BytesMut::new(),
            wanted: 0,
            skipping: 0,
            passed: BytesMut::new(),
            passing: Passing::default(),
        }
    }

    /// Sorts the bytes that were read into pushes, which are reported, and answers, which
    /// are passed on.
    ///
    /// # Errors
    /// When Redis would never send this, or more arrives than may pass.
    fn sort(&mut self) -> io::Result<()> {
        while !self.unread.is_empty() {
            if self.skipping > 0 {
                let n = self.skipping.min(self.unread.len());
                self.skipping -= n;
                self.unread.advance(n);
                continue;
            }

            if !self.passing.is_over() {
                let n = self.passing.pass(&self.unread, self.limits.answer)?;
                if n == 0 {
                    return Ok(());
                }
                self.passed.extend_from_slice(&self.unread[..n]);
                self.unread.advance(n);
                continue;
            }

            if self.unread.len() < self.wanted {
                return Ok(());
            }

            match front(&self.unread, self.limits.payload.load(Ordering::Relaxed)) {
                Front::PushMessage(kind, channel, payload, len) => {
                    let push = PushMessage::new(kind, channel, payload);
                    if let Some((push, on_push)) = push.zip(self.on_push.as_ref()) {
                        on_push(push);
                    }

                    // The library counts confirmations as answers.
                    if !matches!(push, Some(PushMessage::Message { .. })) {
                        self.passed.extend_from_slice(&self.unread[..len]);
                    }
                    self.unread.advance(len);
                    self.wanted = 0;
                }
                Front::TooLarge(channel, begin, len, all) => {
                    if let Some(on_push) = &self.on_push {
                        on_push(PushMessage::TooLarge { channel, begin, len });
                    }
                    (self.skipping, self.wanted) = (all, 0);
                }
                Front::Incomplete(wanted) => {
                    self.wanted = wanted;
                    return Ok(());
                }
                Front::Other => {
                    self.passing = Passing { elements: 1, ..Passing::default() };
                    self.wanted = 0;
                }
                Front::Bad => return Err(bad("a length that Redis never sends")),
            }
        }
        Ok(())
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("this is not the Redis protocol: {what}"))
}

/// The line at the front without its end, and where the next one begins. The first `scanned` bytes
/// have been searched already.
///
/// # Errors
/// When a line has more than `most` bytes, whether or not its end was read with it.
fn line(bytes: &[u8], scanned: usize, most: usize) -> io::Result<Option<(&[u8], usize)>> {
    let from = scanned.saturating_sub(1).min(bytes.len());
    let found = bytes[from..].windows(2).position(|w| w == b"\r\n").map(|end| from + end);
    #[cfg(fuzzing)]
    fuzzing::looked_at(found.map_or(bytes.len(), |end| end + 2) - from);

    // The last byte may be the first one of the line's end.
    if found.unwrap_or(bytes.len().saturating_sub(1)) > most {
        return Err(bad("a line that is too long"));
    }
    Ok(found.map(|end| (&bytes[..end], end + 2)))
}

/// A length or a count, and where what follows it begins. It is read byte by byte, because this
/// happens three times for every message and there are only a few digits.
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

/// Examines the front for a push of three elements, of which the first two are strings (RESP3,
/// "Push event").
fn front(bytes: &[u8], limit: usize) -> Front<'_> {
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

    for n in 0..3 {
        let Some(first) = bytes.get(at) else { return Front::Incomplete(at + 1) };
        if *first == b'$' {
            match number(&bytes[at..]) {
                Ok(Some((len, next))) => {
                    let begin = at + next;
                    if len > MAX_STRING || n < 2 && len > MAX_LINE {
                        return Front::Bad;
                    }

                    let end = begin + len + 2;
                    if n == 2 && len > limit {
                        return too_large(bytes, strings, (begin, len));
                    }
                    if bytes.len() < end {
                        return Front::Incomplete(end);
                    }

                    strings[n] = &bytes[begin..end - 2];
                    at = end;
                }
                Ok(None) => return Front::Incomplete(bytes.len() + 1),
                Err(()) => return Front::Other,
            }
        } else if n == 2 && *first == b':' {
            // This is the number of subscriptions.
            match line(&bytes[at..], 0, MAX_DIGITS + 8) {
                Ok(Some((_, next))) => at += next,
                Ok(None) => return Front::Incomplete(bytes.len() + 1),
                Err(_) => return Front::Bad,
            }
        } else {
            return Front::Other;
        }
    }

    let [kind, channel, payload] = strings;
    Front::PushMessage(kind, channel, payload, at)
}

/// A push whose third element begins at `begin`, has `len` bytes, and is too large.
fn too_large<'u>(
    bytes: &'u [u8],
    [kind, channel, _]: [&'u [u8]; 3],
    (begin, len): (usize, usize),
) -> Front<'u> {
    if !matches!(kind, b"message" | b"smessage") {
        return Front::Bad;
    }

    // The limit may be smaller than the beginning that is reported.
    let told = begin + len.min(BEGIN);
    if bytes.len() < told {
        return Front::Incomplete(told);
    }
    Front::TooLarge(channel, &bytes[begin..told], len, begin + len + 2)
}

impl Passing {
    fn is_over(&self) -> bool {
        self.elements == 0 && self.bytes == 0
    }

    /// How many bytes at the front belong to the answer; 0 if there are too few to decide.
    ///
    /// # Errors
    /// When the answer's bytes and elements together exceed `most`.
    fn pass(&mut self, bytes: &[u8], most: usize) -> io::Result<usize> {
        if self.bytes > 0 {
            let n = self.bytes.min(bytes.len());
            self.bytes -= n;
            return Ok(n);
        }

        let Some((head, next)) = line(bytes, self.scanned, MAX_LINE)? else {
            self.scanned = bytes.len();
            return Ok(0);
        };

        self.scanned = 0;
        let kind = head.first().copied().unwrap_or_default();
        // A length of -1 means nothing; no server makes use of "?".
        let number: Option<u64> =
            head.get(1..).and_then(|n| std::str::from_utf8(n).ok()).and_then(|n| n.parse().ok());

        self.elements -= 1;
        let strings = matches!(kind, b'$' | b'!' | b'=');
        let size = number.filter(|_| strings || matches!(kind, b'*' | b'~' | b'>' | b'%' | b'|'));
        let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        self.passed = self.passed.saturating_add(next).saturating_add(size);
        if self.passed > most {
            return Err(bad("an answer that is too large"));
        }

        match (kind, number) {
            (b'$' | b'!' | b'=', Some(len)) => self.bytes = len as usize + 2,
            (b'*' | b'~' | b'>', Some(len)) => self.elements = self.elements.saturating_add(len),
            (b'%', Some(len)) => {
                self.elements = self.elements.saturating_add(len.saturating_mul(2));
            }
            // Attributes precede the element that they belong to.
            (b'|', Some(len)) => {
                let more = len.saturating_mul(2).saturating_add(1);
                self.elements = self.elements.saturating_add(more);
            }
            _ => {}
        }

        Ok(next)
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

            // One large message is no reason to keep a large buffer for good.
            if tap.unread.is_empty() && tap.unread.capacity() > KEPT {
                tap.unread = BytesMut::new();
            }

            // The reserved room also holds the rest of a large push at once.
            tap.unread.reserve(READ.max(tap.wanted.saturating_sub(tap.unread.len())));
            let read =
                tokio_util::io::poll_read_buf(Pin::new(&mut tap.stream), cx, &mut tap.unread);

            match std::task::ready!(read)? {
                0 => return Poll::Ready(Ok(())),
                _ => tap.sort()?,
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

    fn limits(payload: usize) -> TapLimits {
        TapLimits { payload: Arc::new(AtomicUsize::new(payload)), answer: 1 << 20 }
    }

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

    /// Whatever the sizes of the reads, messages are reported and the rest is passed on,
    /// each in order.
    #[tokio::test]
    async fn messages_are_taken_out_of_answers() {
        let message = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$12\r\n>3\r\n$7\r\nme\r\n\r\n";
        let subscribed = b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n";
        let empty = b">3\r\n$8\r\nsmessage\r\n$1\r\nb\r\n$0\r\n\r\n";
        let mut wire = Vec::new();
        let mut expected = Vec::new();
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

            let mut tap = Tap::new(client, limits(1 << 20), Some(on_push));
            let mut passed = Vec::new();
            let (read, ()) = tokio::join!(tap.read_to_end(&mut passed), writing);
            read.unwrap();
            assert_eq!(passed.escape_ascii().to_string(), expected.escape_ascii().to_string());

            let told = told.lock();
            assert_eq!(told.len(), 3 * ANSWERS.len(), "reads of {size}");
            let of = |n: usize| told.iter().skip(n).step_by(3).all(|t| *t == told[n]);
            assert!(of(0) && of(1) && of(2), "{told:?}");

            let channel = &b"a"[..];
            let payload = &b">3\r\n$7\r\nme\r\n"[..];
            assert_eq!(told[0], format!("{:?}", PushMessage::Message { channel, payload }));
            assert_eq!(told[1], format!("{:?}", PushMessage::Subscribed(b"a")));
            assert_eq!(
                told[2],
                format!("{:?}", PushMessage::Message { channel: b"b", payload: b"" })
            );
        }
    }

    /// Refusing nonsense is the library's task.
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
            let mut tap = Tap::new(nonsense, limits(1 << 20), Some(on_push));
            let mut passed = Vec::new();
            tap.read_to_end(&mut passed).await.unwrap();
            assert!(nonsense.starts_with(&passed) && !passed.is_empty());
        }
    }

    /// Sends bytes from a server in reads of that size. Returns what was reported, the most memory
    /// that was kept, and the outcome.
    async fn send(wire: &[u8], size: usize) -> (Vec<String>, usize, io::Result<usize>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = Arc::clone(&told);
        let on_push: OnPush = Arc::new(move |push| teller.lock().push(format!("{push:?}")));

        let (mut server, client) = tokio::io::duplex(size);
        let bytes = wire.to_vec();
        let writing = async move {
            for chunk in bytes.chunks(size) {
                if server.write_all(chunk).await.is_err() {
                    return;
                }
            }
        };

        let mut tap = Tap::new(client, limits(1000), Some(on_push));
        let reading = async move {
            let mut most = 0;
            let mut out = vec![0; 4096];
            loop {
                match tap.read(&mut out).await {
                    Ok(0) => return (most, Ok(0)),
                    Ok(_) => most = most.max(tap.unread.capacity() + tap.passed.capacity()),
                    Err(e) => return (most, Err(e)),
                }
            }
        };

        // When the reader ends, the writer ends too.
        let ((most, outcome), ()) = tokio::join!(reading, writing);
        let told = told.lock().clone();
        (told, most, outcome)
    }

    #[tokio::test]
    async fn field_a7_a_payload_above_the_limit_passes_by_and_is_told() {
        let mut wire = b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3000000\r\n".to_vec();
        wire.extend_from_slice(b"\x01e:5\n");
        wire.resize(wire.len() + 3_000_000 - 5, b'x');
        wire.extend_from_slice(b"\r\n+PONG\r\n");
        wire.extend_from_slice(b">3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$2\r\n{}\r\n");
        for size in [7, 1000, 65_536] {
            let (told, most, outcome) = send(&wire, size).await;
            assert!(outcome.is_ok() && most <= KEPT, "{most} bytes were kept");
            assert_eq!(told.len(), 2, "{told:?}");
            assert!(told[0].starts_with("TooLarge") && told[0].ends_with("len: 3000000 }"));
            assert!(told[1].starts_with("Message"));
        }
    }

    #[tokio::test]
    async fn field_a7_what_redis_never_sends_ends_the_connection_and_takes_no_memory() {
        let endless_line = [b"+".to_vec(), vec![b'x'; 10_000_000]].concat();
        let endless_push = [b">3\r\n$7\r\nmessage\r\n:".to_vec(), vec![b'1'; 10_000_000]].concat();
        let endless_count =
            [b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:".to_vec(), vec![b'1'; 10_000_000]].concat();
        let many = [b"*900000\r\n".to_vec(), b":1\r\n".repeat(900_000)].concat();

        for wire in [
            &b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$999999999999999\r\nx"[..],
            b">3\r\n$999999999999999\r\nx",
            b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n$5000\r\n",
            b"$999999999999999\r\nx",
            b"*999999999999999\r\n",
            &endless_line,
            &endless_push,
            &endless_count,
            &many,
        ] {
            for size in [4096, 65_536] {
                let (told, most, outcome) = send(wire, size).await;
                let begin = wire[..wire.len().min(60)].escape_ascii();
                let error = outcome.expect_err("it is refused").to_string();
                assert!(error.contains("not the Redis protocol"), "{begin}: {error}");
                assert!(told.is_empty() && most <= KEPT, "{begin}: {most} bytes");
            }
        }
    }

    /// A long line used to pass if it came with its end in one read, while it ended the connection
    /// if it came in two.
    #[tokio::test]
    async fn fuzz_a_line_is_too_long_however_it_is_read() {
        let long = "x".repeat(MAX_LINE + 1);
        let count =
            format!(">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:{}\r\n", "1".repeat(MAX_DIGITS + 9));

        for wire in [format!("+{long}\r\n"), format!("*1\r\n+{long}\r\n"), count] {
            for size in [1, 7, 1000, 200_000] {
                // A read of the second kind contains more than one line at once.
                let wire = ["+", &"y".repeat(MAX_LINE - 1), "\r\n", &wire].concat();
                let (told, _, outcome) = send(wire.as_bytes(), size).await;
                let error = outcome.expect_err("it is refused").to_string();
                assert!(
                    error.contains("a line that is too long") || error.contains("a length"),
                    "{error}"
                );
                assert!(told.is_empty());
            }
        }

        let longest = ["+", &"y".repeat(MAX_LINE - 1), "\r\n"].concat();
        for size in [1, 1000, 200_000] {
            assert!(send(longest.as_bytes(), size).await.2.is_ok());
        }
    }

    /// A push that turns out to belong to the library must not leave a wait behind for
    /// what follows it.
    #[tokio::test(start_paused = true)]
    async fn what_follows_a_push_of_another_kind_does_not_wait() {
        let on_push: OnPush = Arc::new(|_| {});
        let (mut server, client) = tokio::io::duplex(1024);
        let mut tap = Tap::new(client, limits(1 << 20), Some(on_push));
        let first = b">3\r\n$11\r\nunsubscribe\r\n";
        let rest = b"_\r\n:0\r\n+PONG\r\n";
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
