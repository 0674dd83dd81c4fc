//! The closing handshake as bytes: what a client sees behind a Close frame of the gateway's, and
//! when the gateway ends the connection.

use std::io::ErrorKind;
use std::time::Instant;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate_support::gateway::Gateway;
use tollgate_support::tokens::{SECRET, now, sign, token};
use tollgate_support::{DEADLINE, eventually};

use super::gateway;

/// Half of the time that the gateway waits for a client's Close (`http::socket::LINGER`). What a
/// test observes before that deadline counts only if it took no longer.
const IN_TIME: std::time::Duration = std::time::Duration::from_secs(1);

/// A client that does only what it is told to.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    async fn open(address: &str, query: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /ws{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut raw = Self { stream, read: Vec::new() };
        let end = loop {
            if let Some(at) = raw.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(raw.more().await, "an answer");
        };
        assert!(raw.read.starts_with(b"HTTP/1.1 101"));
        raw.read.drain(..end);
        raw
    }

    async fn user(gateway: &Gateway) -> Self {
        let mut raw = Self::open(&gateway.public, &format!("?token={}", token("u1"))).await;
        let (_, text) = raw.frame().await;
        assert!(text.starts_with(b"{\"type\":\"connected\""));
        raw
    }

    /// Reads more bytes. Returns false at the end of the connection.
    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.read);
        tokio::time::timeout(DEADLINE, read).await.expect("in time").unwrap() > 0
    }

    /// The next frame's opcode and payload.
    async fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let wide = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b));
            let (start, len) = match self.read[..] {
                [_, 126, a, b, ..] => (4, wide(&[a, b])),
                [_, 127, ..] if self.read.len() >= 10 => (10, wide(&self.read[2..10])),
                [_, len @ 0..=125, ..] => (2, usize::from(len)),
                _ => (0, usize::MAX - 1),
            };
            if self.read.len() >= start + len {
                let frame = self.read.drain(..start + len).collect::<Vec<_>>();
                return (frame[0] & 15, frame[start..].to_vec());
            }
            assert!(self.more().await, "a frame, and not the end of the connection");
        }
    }

    /// Reads to the Close frame, and returns its code and reason.
    async fn close(&mut self) -> (u16, String) {
        loop {
            if let (8, payload) = self.frame().await {
                assert!(self.read.is_empty(), "nothing follows a Close frame");
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return (code, String::from_utf8(payload[2..].to_vec()).unwrap());
            }
        }
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        // A mask of zeros leaves the payload as it is.
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(len @ 0..=125) => frame.push(0x80 | len as u8),
            Ok(len) => {
                frame.push(0x80 | 126);
                frame.extend(len.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// Whether nothing has come: no byte, and no end of the connection.
    fn is_quiet(&mut self) -> bool {
        match self.stream.try_read(&mut [0; 16]) {
            Err(e) => e.kind() == ErrorKind::WouldBlock,
            Ok(_) => false,
        }
    }

    /// Waits for the end of the connection; no byte may come before it.
    async fn ended(mut self) {
        assert!(!self.more().await, "nothing but the end: {:?}", self.read);
    }
}

/// A way to provoke a Close, on a gateway with a configuration for it.
#[derive(Debug, Clone, Copy)]
enum Way {
    Refused,
    NoToken,
    NoPong,
    Unfinished,
    Disconnected,
    Slow,
    TooMany,
    Flood,
    Unmasked,
    NotUtf8,
    TooBig,
    Expired,
    Drained,
}

impl Way {
    const ALL: [(Self, u16); 13] = [
        (Self::Refused, 4401),
        (Self::NoToken, 4408),
        (Self::NoPong, 4408),
        (Self::Unfinished, 4408),
        (Self::Disconnected, 4409),
        (Self::Slow, 4410),
        (Self::TooMany, 4429),
        (Self::Flood, 4429),
        (Self::Unmasked, 1002),
        (Self::NotUtf8, 1007),
        (Self::TooBig, 1009),
        (Self::Expired, 4401),
        (Self::Drained, 1012),
    ];

    fn config(self) -> &'static str {
        match self {
            Self::NoToken => "[auth]\ndeadline = \"1s\"\n",
            Self::NoPong => "[limits]\nping_interval = \"1s\"\npong_timeout = \"1s\"\n",
            Self::Unfinished => "[limits]\npong_timeout = \"1s\"\n",
            Self::Slow => "[limits]\nqueue_messages = 5\n",
            Self::TooMany => "[limits]\nconnections_per_user = 1\n",
            Self::Flood => "[limits]\ncommands_per_second = 1\ncommand_burst = 3\n",
            Self::TooBig => "[limits]\nmessage_bytes = 1000\n",
            Self::Refused | Self::Disconnected | Self::Unmasked => "",
            Self::NotUtf8 | Self::Expired | Self::Drained => "",
        }
    }

    /// A client that is about to be closed, and another one that must stay connected for that.
    async fn client(self, gateway: &Gateway) -> (Raw, Option<Raw>) {
        let address = &gateway.public;
        match self {
            Self::Refused => return (Raw::open(address, "?token=a.b.c").await, None),
            Self::NoToken => return (Raw::open(address, "").await, None),
            Self::Expired => {
                let token = sign(&json!({"sub": "u1", "exp": now() + 2}), SECRET);
                return (Raw::open(address, &format!("?token={token}")).await, None);
            }
            Self::TooMany => {
                let first = Raw::user(gateway).await;
                let query = format!("?token={}", token("u1"));
                return (Raw::open(address, &query).await, Some(first));
            }
            Self::NoPong | Self::Unfinished | Self::Disconnected | Self::Slow | Self::Flood => {}
            Self::Unmasked | Self::NotUtf8 | Self::TooBig | Self::Drained => {}
        }

        let mut raw = Raw::user(gateway).await;
        match self {
            Self::Unfinished => raw.stream.write_all(&[0x81, 0x8a, 0, 0, 0, 0, 1]).await.unwrap(),
            Self::Disconnected => {
                gateway.api("disconnect", &json!({"user": "u1"})).await;
            }
            Self::Slow => {
                let payload = "x".repeat(500_000);
                while gateway.metric("slow_consumers_total").await == 0.0 {
                    gateway.publish("user:u1", &json!(payload)).await;
                }
            }
            Self::Flood => {
                for _ in 0..10 {
                    raw.send(1, b"{\"type\":\"ping\"}").await;
                }
            }
            Self::Unmasked => raw.stream.write_all(&[0x81, 1, b'x', 0x81, 0]).await.unwrap(),
            Self::NotUtf8 => raw.send(1, &[0xff]).await,
            Self::TooBig => raw.send(1, &[b' '; 100_000]).await,
            Self::Drained => gateway.signal("-TERM"),
            Self::NoPong | Self::Refused | Self::NoToken | Self::Expired | Self::TooMany => {}
        }
        (raw, None)
    }
}

/// Whatever the reason, the connection stays until the client has answered the Close frame; then it
/// ends at once. Browsers over HTTP/2, and Firefox, did not see the code of a Close with the end
/// right behind it.
#[tokio::test]
async fn field_c1_the_clients_close_is_waited_for_on_every_way_out() {
    let ways = Way::ALL.map(|(way, code)| async move {
        // A machine that stands still for too long makes an attempt worthless: try again.
        for _ in 0..10 {
            let gateway = gateway::with(way.config()).await;
            let (mut raw, _others) = way.client(&gateway).await;
            assert_eq!(raw.close().await.0, code, "{way:?}");

            let began = Instant::now();
            // One round trip on another connection.
            gateway.get_admin("/livez").await;
            let quiet = raw.is_quiet();
            if began.elapsed() > IN_TIME {
                continue;
            }
            assert!(quiet, "{way:?}: the connection ended before the client's Close");

            raw.send(8, &code.to_be_bytes()).await;
            raw.ended().await;
            return;
        }
        panic!("{way:?}: never in time");
    });
    futures_util::future::join_all(ways).await;
}

/// A client that answers nothing, one that goes on talking, and one that floods are ended by the
/// deadline or before.
#[tokio::test]
async fn field_c1_a_client_that_does_not_answer_is_ended() {
    let gateway = gateway::start().await;
    let mut silent = Raw::open(&gateway.public, "?token=a.b.c").await;
    let mut talking = Raw::open(&gateway.public, "?token=a.b.c").await;
    let mut flooding = Raw::open(&gateway.public, "?token=a.b.c").await;
    for raw in [&mut silent, &mut talking, &mut flooding] {
        assert_eq!(raw.close().await.0, 4401);
    }

    silent.ended().await;
    for (mut raw, payload) in [(talking, vec![b' '; 10]), (flooding, vec![b' '; 1 << 20])] {
        let sending = async { while raw.stream.write_all(&payload).await.is_ok() {} };
        tokio::time::timeout(DEADLINE, sending).await.expect("the end");
    }
}

/// A connection that is being closed counts against the limits until it has ended.
#[tokio::test]
async fn field_c1_a_socket_that_says_goodbye_holds_its_place() {
    let gateway = gateway::with("[limits]\nconnections = 1\n").await;
    let mut first = Raw::open(&gateway.public, "?token=a.b.c").await;
    assert_eq!(first.close().await.0, 4401);
    let began = Instant::now();
    let mut second = Raw::open(&gateway.public, "?token=a.b.c").await;
    let code = second.close().await.0;
    assert!(code == 4429 || began.elapsed() > IN_TIME, "{code}");

    first.send(8, &[]).await;
    first.ended().await;
    eventually("the place is free", || async {
        let mut third = Raw::open(&gateway.public, "?token=a.b.c").await;
        (third.close().await.0 == 4401).then_some(())
    })
    .await;
}

/// The drain waits for closing handshakes, but no longer than they may take.
#[tokio::test]
async fn field_c1_a_drain_ends_in_time_though_a_client_does_not_answer() {
    let mut gateway = gateway::start().await;
    let mut silent = Raw::user(&gateway).await;
    let mut polite = Raw::user(&gateway).await;
    gateway.signal("-TERM");
    for raw in [&mut silent, &mut polite] {
        assert_eq!(raw.close().await.0, 1012);
    }
    polite.send(8, &1012u16.to_be_bytes()).await;
    polite.ended().await;
    assert!(gateway.exited().await.success());
    assert!(gateway.log().contains("drained"));
    assert!(!gateway.log().contains("did not close in time"), "{}", gateway.log());
    silent.ended().await;
}
