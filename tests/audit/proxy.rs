//! A TCP proxy between the gateway and Redis, for what no signal can do: slow answers, a connection
//! cut in the middle of a frame, one that stays open and brings nothing.

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Every piece of an answer waits so long.
    Delay(Duration),
    /// Connections open and stay open, and nothing passes. What was held back passes afterwards.
    Blackhole,
    /// The next piece that Redis sends on each open connection is cut in half, and the connection
    /// ends. The number tells one cut from the next.
    Cut(u32),
}

pub struct Proxy {
    pub address: SocketAddr,
    to: Arc<Mutex<String>>,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let to = Arc::new(Mutex::new(to));
        let (modes, leads) = (Arc::clone(&mode), Arc::clone(&to));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let to = leads.lock().clone();
                tokio::spawn(carry(client, to, modes.subscribe()));
            }
        });
        Self { address, to, mode, accepting }
    }

    /// Where connections go from now on, as when a name is given another address.
    pub fn lead_to(&self, address: String) {
        *self.to.lock() = address;
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Carries one connection to its end, in both directions.
async fn carry(client: TcpStream, to: String, mode: watch::Receiver<Mode>) {
    let mut born = mode.clone();
    passing(&mut born).await;
    let Ok(server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // A cut that was before this connection is none of its.
    let before = *mode.borrow();
    let up = pump(from_client, to_server, mode.clone(), None);
    let down = pump(from_server, to_client, mode, Some(before));
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Waits until anything may pass.
async fn passing(mode: &mut watch::Receiver<Mode>) {
    while *mode.borrow_and_update() == Mode::Blackhole {
        if mode.changed().await.is_err() {
            return;
        }
    }
}

/// `answers`: this is the direction from Redis, in a connection that began in that mode.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    answers: Option<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        passing(&mut mode).await;
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        // It may have come in the meantime.
        passing(&mut mode).await;
        let now = *mode.borrow();
        match (now, answers) {
            (Mode::Delay(time), Some(_)) => sleep(time).await,
            (Mode::Cut(_), Some(before)) if now != before => {
                let _ = to.write_all(&buffer[..read / 2]).await;
                return;
            }
            _ => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
