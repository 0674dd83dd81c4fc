//! A TCP proxy that misbehaves on demand.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// What happens to what the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing goes through, and nothing is closed.
    Blackhole,
    /// The next bytes are half of themselves and then the end.
    Cut,
    /// The next bytes are something else.
    Garbage,
    /// The next bytes announce half a terabyte.
    Huge,
}

const MODES: [Mode; 5] = [Mode::Pass, Mode::Blackhole, Mode::Cut, Mode::Garbage, Mode::Huge];

/// What is done before bytes with these texts go on to the server.
type Before = Arc<Mutex<Option<(Vec<&'static str>, Box<dyn Fn() + Send>)>>>;

pub struct Proxy {
    pub port: u16,
    mode: Arc<AtomicU8>,
    before: Before,
    to: Arc<AtomicU16>,
    task: AbortHandle,
}

impl Proxy {
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(0));
        let to = Arc::new(AtomicU16::new(to));
        let before = Before::default();
        let (shared, target) = ((Arc::clone(&mode), Arc::clone(&before)), Arc::clone(&to));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let to = target.load(Ordering::Acquire);
                let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mode, before) = shared.clone();
                tokio::spawn(carry(client, server, mode, before));
            }
        });
        Self { port, mode, before, to, task: task.abort_handle() }
    }

    /// Where connections go from now on, as when a name is given another address.
    pub fn lead_to(&self, port: u16) {
        self.to.store(port, Ordering::Release);
    }

    /// Does something each time before bytes with all of these texts go on to the server.
    pub fn before(&self, texts: &[&'static str], work: impl Fn() + Send + 'static) {
        *self.before.lock().unwrap() = Some((texts.to_vec(), Box::new(work)));
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Release);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn carry(client: TcpStream, server: TcpStream, mode: Arc<AtomicU8>, before: Before) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            if let Some((texts, work)) = &*before.lock().unwrap()
                && texts.iter().all(|text| contains(&buffer[..n], text))
            {
                work();
            }
            let hole = mode.load(Ordering::Acquire) == Mode::Blackhole as u8;
            if !hole && to_server.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 65_536];
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            let now = MODES[usize::from(mode.load(Ordering::Acquire))];
            let (bytes, end): (&[u8], bool) = match now {
                Mode::Pass => (&buffer[..n], false),
                Mode::Blackhole => (&[], false),
                Mode::Cut => (&buffer[..n / 2], true),
                Mode::Garbage => (b"\x00\xff}nonsense\r\n$-7\r\n", false),
                Mode::Huge => (b"$549755813888\r\nx", false),
            };
            if to_client.write_all(bytes).await.is_err() || end {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
