//! The life of one socket: reading, handing requests to the session, closing properly.
//!
//! Not here: what a request does (`session::socket`). Invariants: a read goes into the worker
//! thread's one buffer, so an idle socket owns none; while the session waits for the broker, closes
//! and writes still go on; however a socket ends, its session is removed from all tables before the
//! last bytes are awaited.
//!
//! An idle socket's task is small. Whatever only the beginning, a command or the end needs is in
//! a box of its own, made at the call, because a future keeps room for everything that it is
//! given by value.

use std::cell::RefCell;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::corked_stream::CorkedStream;
use super::limits::Permit;
use crate::hub::{Connection, Wake};
use crate::metrics::{self, Rejected};
use crate::protocol::Request;
use crate::protocol::codes::{Close, CloseCode};
use crate::session::socket::SocketSession;
use crate::session::{AuthOutcome, Context, Heard, Positions};
use crate::websocket::{Decoder, Message, Opcode, ProtocolError, Tail, close_frame, encode};

/// The size of the worker thread's read buffer.
const READ_BYTES: usize = 64 * 1024;

/// How long a client may take to answer our Close frame and to end. A drain waits for that.
pub const LINGER: Duration = Duration::from_secs(2);

/// How much a client may send meanwhile, such as the rest of a message that was too large.
const LAST_BYTES: usize = 8 << 20;

/// How long the handshake's answer waits for the session's first messages: a round trip
/// to the broker.
const HELD_BACK: Duration = Duration::from_millis(20);

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// How a socket or stream ended.
pub(super) enum End {
    /// We close it, for this reason.
    Ours(Close),
    /// The client closed it with this code.
    Theirs(u16),
    /// The connection is gone.
    Gone,
}

impl End {
    pub(super) fn count(&self) {
        let label = match self {
            Self::Ours(close) => close.code.label(),
            Self::Theirs(_) => CloseCode::Normal.label(),
            Self::Gone => "client_gone",
        };
        metrics::closed(label, 1);
        if let Self::Ours(close) = self {
            tracing::debug!(code = close.code.code(), reason = %close.reason, "socket closed");
        }
    }
}

/// A TCP stream that hyper has let go of.
pub struct HandedOver {
    pub stream: TcpStream,
    /// Bytes that were read beyond the request.
    pub early: Vec<u8>,
    /// Bytes of the answer that were held back.
    pub held: Vec<u8>,
}

/// Waits for hyper to let the TCP stream go.
pub async fn handed_over(upgrade: OnUpgrade) -> Option<HandedOver> {
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<CorkedStream>>().ok()?;
    let (stream, held) = parts.io.into_inner().into_parts();
    Some(HandedOver { stream, early: parts.read_buf.to_vec(), held })
}

/// What a socket begins with.
pub(super) struct Beginning {
    pub(super) outcome: AuthOutcome,
    /// When the request came.
    pub(super) began: Instant,
    /// Bytes that were read behind the request.
    pub(super) early: Vec<u8>,
    /// The answer to the request, as far as it was held back.
    pub(super) held: Vec<u8>,
    pub(super) since: Positions,
    pub(super) permit: Permit,
}

/// A socket whose session has begun.
pub(super) struct Socket {
    session: SocketSession,
    connection: Arc<Connection>,
    decoder: Decoder,
    /// Counts this socket.
    permit: Permit,
}

/// Begins a socket's session. Returns `None` if the session has ended already, and the
/// socket with it.
pub(super) async fn begin(
    context: Arc<Context>,
    connection: Arc<Connection>,
    beginning: Beginning,
) -> Option<Box<Socket>> {
    metrics::connections(connection.wire()).increment(1.0);
    let Beginning { outcome, began, mut early, held, since, permit } = beginning;
    connection.cork(held.into());

    let session = SocketSession::new(context, Arc::clone(&connection), began, since);
    let decoder = Decoder::default();
    let mut socket = Box::new(Socket { session, connection, decoder, permit });
    let Socket { session, connection, .. } = &mut *socket;

    let mut begun = {
        let mut beginning = pin!(drive(connection, Box::pin(session.begin(outcome))));
        tokio::select! {
            biased;
            begun = &mut beginning => begun,
            () = tokio::time::sleep(HELD_BACK) => {
                connection.flush();
                beginning.await
            }
        }
    };

    // A session that waits for its token sends no first message.
    connection.flush();
    if begun.is_err() {
        socket.decoder.hold(&early);
    } else if !early.is_empty() {
        let input = decode_input(&mut socket, &mut early);
        begun = apply(&mut socket, input).await;
    }

    match begun {
        Ok(()) => Some(socket),
        Err(end) => {
            socket.end(end).await;
            None
        }
    }
}

/// Runs a socket to its end.
pub(super) async fn run(mut socket: Box<Socket>) {
    let end = live(&mut socket).await;
    Box::pin(socket.end(end)).await;
}

/// Serves a socket until it has to end.
async fn live(socket: &mut Socket) -> End {
    loop {
        let wake = socket.connection.wait(true).await;
        if wake.close
            && let Some(close) = socket.connection.take_close()
        {
            return End::Ours(close);
        }

        if wake.timer
            && let Err(close) = socket.session.core.on_timer()
        {
            return End::Ours(close);
        }

        if socket.session.core.has_questions()
            && let Err(end) = Box::pin(ask(socket)).await
        {
            return end;
        }

        if wake.writable {
            socket.connection.flush();
        }
        if !wake.readable {
            continue;
        }

        match read_input(socket) {
            Ok(None) => {}
            Ok(Some(input)) => {
                if let Err(end) = Box::pin(apply(socket, input)).await {
                    return end;
                }
            }
            Err(end) => return end,
        }
    }
}

/// Reads what has arrived, if anything has.
fn read_input(socket: &mut Socket) -> Result<Option<Input>, End> {
    READ.with_borrow_mut(|buffer| match socket.connection.try_read(buffer) {
        Ok(0) => Err(End::Gone),
        Ok(n) => Ok(Some(decode_input(socket, &mut buffer[..n]))),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(_) => Err(End::Gone),
    })
}

impl Socket {
    /// Removes the session from all tables and closes the socket. The permit is kept until
    /// that is over.
    async fn end(self: Box<Self>, end: End) {
        let Self { session, connection, decoder, mut permit } = *self;
        session.core.end();
        let opened = session.core.was_opened();
        let longest = session.core.refusal_wait();
        drop(session);

        metrics::connections(connection.wire()).decrement(1.0);
        if opened {
            end.count();
        } else if let End::Ours(close) = &end
            && close.code == CloseCode::TokenRefused
        {
            tokio::time::sleep(permit.refuse(longest)).await;
        }

        let (frame, tail) = match end {
            End::Ours(close) => (connection.wire().close(&close), Some(decoder.into_tail())),
            // An empty Close frame answers one without a code (RFC 6455 section 5.5.1).
            End::Theirs(1005) => {
                let mut out = BytesMut::new();
                encode(&mut out, Opcode::Close, b"");
                (out.freeze(), None)
            }
            End::Theirs(code) => (close_frame(code, ""), None),
            End::Gone => return,
        };

        goodbye(connection, frame, tail).await;
    }
}

/// What one read held: requests, and perhaps an end behind them.
#[derive(Default)]
struct Input {
    requests: Vec<Request>,
    end: Option<End>,
}

/// Decodes bytes. Pings are answered here, at once.
fn decode_input(socket: &mut Socket, bytes: &mut [u8]) -> Input {
    let Socket { session, connection, decoder, .. } = socket;
    let mut input = Input::default();
    let max = session.core.max_message();
    let wire = connection.wire();

    let fed = decoder.feed(bytes, max, |message| {
        if !matches!(message, Message::Pong | Message::Close(_)) && !session.allow_message() {
            input.end = Some(End::Ours(Close::new(CloseCode::TooMany, "too many messages")));
            return false;
        }

        match message {
            Message::Text(text) => input.requests.push(wire.decode(text)),
            Message::Binary(_) => input.requests.push(wire.decode_binary()),
            Message::Ping(data) => {
                let mut pong = BytesMut::new();
                encode(&mut pong, Opcode::Pong, data);
                connection.send(pong.freeze());
            }
            Message::Pong => {}
            Message::Close(code) => {
                input.end = Some(End::Theirs(code));
                return false;
            }
        }
        true
    });

    if let Err(error) = fed {
        if error == ProtocolError::TooBig {
            metrics::rejected(Rejected::MessageSize);
        }
        let code = CloseCode::from_protocol_error(error);
        input.end = Some(End::Ours(Close::new(code, error.to_string())));
    }

    session
        .core
        .on_bytes(Heard { completed: decoder.has_completed(), partial: decoder.is_partial() });
    input
}

/// Asks the application about channels whose rule has changed.
async fn ask(socket: &mut Socket) -> Result<(), End> {
    let Socket { session, connection, .. } = socket;
    let asking = async {
        session.core.ask_questions().await;
        Ok(())
    };
    drive(connection, Box::pin(asking)).await
}

/// Hands the requests of one read to the session.
async fn apply(socket: &mut Socket, input: Input) -> Result<(), End> {
    if !input.requests.is_empty() {
        let Socket { session, connection, .. } = socket;
        drive(connection, Box::pin(session.handle(input.requests))).await?;
    }
    input.end.map_or(Ok(()), Err)
}

/// Runs the session's work. Meanwhile closes are noticed and the queue drains.
async fn drive(
    connection: &Connection,
    mut work: Pin<Box<impl Future<Output = Result<(), Close>>>>,
) -> Result<(), End> {
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done.map_err(End::Ours),
            wake = connection.wait(false) => {
                attend(connection, wake)?;
                if wake.writable {
                    connection.flush();
                }
            }
        }
    }
}

/// Does what cannot wait for the session's work: a close ends it, and a timer is kept for later.
pub(super) fn attend(connection: &Connection, wake: Wake) -> Result<(), End> {
    if wake.timer {
        connection.missed_timer();
    }
    match wake.close.then(|| connection.take_close()).flatten() {
        Some(close) => Err(End::Ours(close)),
        None => Ok(()),
    }
}

/// The closing handshake (RFC 6455 section 7.1): our frame, the client's Close, the end of our
/// side, and the client's end. `tail` reads what the client sends until then; it is `None` if our
/// frame answers the client's own.
///
/// Some clients take the connection for a broken one and never learn the code if it ends directly
/// behind our frame: browsers over HTTP/2, and Firefox. A client that answers nothing is ended by
/// the deadline.
pub async fn goodbye(connection: Arc<Connection>, frame: Bytes, mut tail: Option<Tail>) {
    connection.finish(frame);
    let exchange = async {
        let mut left = LAST_BYTES;
        let mut ended = false;
        while left > 0 {
            let answered = tail.as_ref().is_none_or(Tail::is_over);
            if answered && !ended && !connection.has_queued() {
                connection.shutdown();
                ended = true;
            }

            let wake = connection.wait(true).await;
            if wake.writable {
                connection.flush();
            }
            if !wake.readable {
                continue;
            }

            match pass(&connection, tail.as_mut()) {
                Ok(0) => return,
                Ok(n) => left = left.saturating_sub(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };

    // The deadline is an end like any other.
    let _ = tokio::time::timeout(LINGER, exchange).await;
    connection.shutdown();
}

/// Reads what has arrived and discards it.
fn pass(connection: &Connection, tail: Option<&mut Tail>) -> std::io::Result<usize> {
    READ.with_borrow_mut(|buffer| {
        let n = connection.try_read(buffer)?;
        if let Some(tail) = tail {
            tail.pass(&buffer[..n]);
        }
        Ok(n)
    })
}
