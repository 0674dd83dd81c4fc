//! A TCP proxy that misbehaves on demand: slow answers, a connection that is cut in the middle of a
//! frame, one that stays open and brings nothing, one that brings nonsense.
//!
//! Not here: what stands behind the proxy.
//!
//! Where the proxy leads, and what it does, may change while connections are open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What happens to what the server sends, or to all that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything passes.
    Pass,
    /// Every piece of an answer waits for this time.
    Delay(Duration),
    /// Connections open and stay open, and nothing passes. What was held back passes afterwards.
    Blackhole,
    /// As a blackhole, for what clients send alone.
    HoldRequests,
    /// As a blackhole, for what the server sends alone.
    HoldAnswers,
    /// As a blackhole, for what clients send on connections that are open now: later ones work, and what
    /// was held back arrives behind what they have said. The number tells one such time from the next.
    HoldOld(u32),
    /// Every connection that the server answers on is cut in the middle of that piece.
    Cut,
    /// Every connection that is open now is cut like that. The number tells one cut from the next.
    CutOnce(u32),
    /// The server's bytes are replaced by nonsense.
    Garbage,
    /// The server's bytes are replaced by the announcement of half a terabyte.
    Huge,
}

/// What becomes of bytes that were waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// They go on to the server, as far as the mode lets them.
    Pass,
    /// The server never sees them, and their connection ends.
    Lose,
}

/// What is done before bytes with these texts go on to the server.
type Before = Arc<Mutex<Option<(Vec<&'static str>, Box<dyn Fn() -> Then + Send>)>>>;

/// A running proxy; it takes no more connections when this is dropped.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    to: Arc<Mutex<String>>,
    mode: Arc<watch::Sender<Mode>>,
    before: Before,
    accepting: JoinHandle<()>,
}

/// Which way a pump's bytes go.
enum Way {
    ToServer(Before),
    ToClient,
}

impl Way {
    /// Whether a mode holds what goes this way, on a connection that began in that mode.
    fn is_held(&self, now: Mode, began_in: Mode) -> bool {
        match (now, self) {
            (Mode::Blackhole, _)
            | (Mode::HoldRequests, Self::ToServer(_))
            | (Mode::HoldAnswers, Self::ToClient) => true,
            (Mode::HoldOld(_), Self::ToServer(_)) => now != began_in,
            _ => false,
        }
    }
}

impl Proxy {
    /// Starts one that leads to an address and lets everything pass.
    pub async fn start(to: impl Into<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let (to, before) = (Arc::new(Mutex::new(to.into())), Before::default());

        let (modes, leads, works) = (Arc::clone(&mode), Arc::clone(&to), Arc::clone(&before));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let to = leads.lock().clone();
                tokio::spawn(carry(client, to, modes.subscribe(), Arc::clone(&works)));
            }
        });
        Self { address, to, mode, before, accepting }
    }

    /// Leads connections elsewhere from now on, as when a name is given another address.
    pub fn lead_to(&self, address: impl Into<String>) {
        *self.to.lock() = address.into();
    }

    /// Does something each time before bytes with all of these texts go on to the server.
    pub fn before(&self, texts: &[&'static str], work: impl Fn() + Send + 'static) {
        self.at(texts, move || {
            work();
            Then::Pass
        });
    }

    /// As [`Self::before`]; what is done decides what becomes of the bytes.
    pub fn at(&self, texts: &[&'static str], work: impl Fn() -> Then + Send + 'static) {
        *self.before.lock() = Some((texts.to_vec(), Box::new(work)));
    }

    /// Lets everything pass again, and does nothing before it.
    pub fn pass(&self) {
        *self.before.lock() = None;
        self.set(Mode::Pass);
    }

    /// Changes what the proxy does.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Changes what the proxy does, from within [`Self::before`].
    pub fn setter(&self) -> impl Fn(Mode) + Send + 'static {
        let modes = Arc::clone(&self.mode);
        move |mode| {
            modes.send_replace(mode);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection to its end, in both directions.
async fn carry(client: TcpStream, to: String, mode: watch::Receiver<Mode>, before: Before) {
    let mut born = mode.clone();
    until(&mut born, |now| now != Mode::Blackhole).await;
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));

    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let began_in = *mode.borrow();
    let up = pump(from_client, to_server, (mode.clone(), began_in), Way::ToServer(before));
    let down = pump(from_server, to_client, (mode, began_in), Way::ToClient);
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Waits until the mode is one of these.
async fn until(mode: &mut watch::Receiver<Mode>, may_pass: impl Fn(Mode) -> bool) {
    loop {
        let now = *mode.borrow_and_update();
        if may_pass(now) || mode.changed().await.is_err() {
            return;
        }
    }
}

/// Carries one direction of a connection, which began in a mode, to its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut mode, began_in): (watch::Receiver<Mode>, Mode),
    way: Way,
) {
    let may_pass = |now| !way.is_held(now, began_in);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        until(&mut mode, may_pass).await;
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        // The blackhole may have opened in the meantime.
        until(&mut mode, may_pass).await;

        let now = *mode.borrow();
        let bytes = &buffer[..read];
        let (bytes, ends): (&[u8], bool) = match &way {
            Way::ToServer(before) => {
                if work_before(before, bytes) == Then::Lose {
                    return;
                }
                // The work may have changed the mode.
                until(&mut mode, may_pass).await;
                (bytes, false)
            }
            Way::ToClient => answer(now, began_in, bytes).await,
        };
        if to.write_all(bytes).await.is_err() || ends {
            return;
        }
    }
}

fn work_before(before: &Before, bytes: &[u8]) -> Then {
    match &*before.lock() {
        Some((texts, work)) if texts.iter().all(|text| contains(bytes, text)) => work(),
        Some(_) | None => Then::Pass,
    }
}

/// What becomes of a piece that the server sent, and whether the connection ends with it.
async fn answer(now: Mode, began_in: Mode, bytes: &[u8]) -> (&[u8], bool) {
    match now {
        Mode::Pass
        | Mode::Blackhole
        | Mode::HoldRequests
        | Mode::HoldAnswers
        | Mode::HoldOld(_) => (bytes, false),
        Mode::Delay(time) => {
            sleep(time).await;
            (bytes, false)
        }
        Mode::Cut => (&bytes[..bytes.len() / 2], true),
        Mode::CutOnce(_) if now == began_in => (bytes, false),
        Mode::CutOnce(_) => (&bytes[..bytes.len() / 2], true),
        Mode::Garbage => (b"\x00\xff}nonsense\r\n$-7\r\n", false),
        Mode::Huge => (b"$549755813888\r\nx", false),
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
