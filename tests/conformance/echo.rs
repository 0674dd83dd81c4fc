//! An echo server on the gateway's own WebSocket stack, for the Autobahn cases: the same accept
//! loop, upgrade, decoder, connection and closing handshake; only the session is replaced by an
//! echo. Built with `--features conformance` alone.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use bytes::{Bytes, BytesMut};
use hyper::upgrade::OnUpgrade;
use tollgate::http::{Listener, serve, socket};
use tollgate::hub::{Connection, Hub, QueueBounds};
use tollgate::lifecycle::{self, Lifecycle, Phase};
use tollgate::protocol::Wire;
use tollgate::websocket::{Decoder, Message, Opcode, Tail, accept_key, close_frame, encode};

const MAX_MESSAGE: usize = 32 << 20;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let bounds = QueueBounds {
        queue_bytes_total: AtomicUsize::new(usize::MAX),
        queued: AtomicUsize::new(0),
        queue_messages: AtomicUsize::new(1 << 20),
        queue_bytes: AtomicUsize::new(1 << 30),
        channels_per_connection: AtomicUsize::new(1),
    };
    let hub = Hub::new(1, bounds);
    hub.start_fanout();
    hub.start_timers();
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), 1000, Duration::from_secs(5))?;
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{}", listener.address()?)?;
    let router =
        Router::new().fallback(any(move |request| std::future::ready(upgrade(&hub, request))));
    serve(listener, router, Lifecycle::default(), Phase::Draining).await;
    Ok(())
}

fn upgrade(hub: &Arc<Hub>, mut request: Request) -> Response {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|k| k.as_bytes().to_vec());
    let Some(key) = key.and_then(|k| accept_key(&k)) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return StatusCode::BAD_REQUEST.into_response();
    };

    let hub = Arc::clone(hub);
    lifecycle::spawn("echo", async move {
        if let Some(socket::HandedOver { stream, early, .. }) = socket::handed_over(upgrade).await {
            let connection = hub.register(Some(stream), Wire::Plain);
            let end = echo(&connection, early).await;
            hub.remove(&connection);
            if let Some((frame, tail)) = end {
                socket::goodbye(connection, frame, tail).await;
            }
        }
    });

    let headers = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_ACCEPT, &key),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Echoes until the end. Returns the Close frame to end with, and the decoder's tail unless that
/// frame answers the client's.
async fn echo(connection: &Connection, mut early: Vec<u8>) -> Option<(Bytes, Option<Tail>)> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 64 * 1024];

    match feed(connection, &mut decoder, &mut early) {
        Ok(None) => {}
        Ok(Some(answer)) => return Some((answer, None)),
        Err(close) => return Some((close, Some(decoder.into_tail()))),
    }

    loop {
        let wake = connection.wait(true).await;
        if wake.writable {
            connection.flush();
        }
        if !wake.readable {
            continue;
        }
        match connection.try_read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => match feed(connection, &mut decoder, &mut buffer[..n]) {
                Ok(None) => {}
                Ok(Some(answer)) => return Some((answer, None)),
                Err(close) => return Some((close, Some(decoder.into_tail()))),
            },
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// Echoes messages. Returns the answer to the client's Close, or fails with a Close of its own.
fn feed(
    connection: &Connection,
    decoder: &mut Decoder,
    bytes: &mut [u8],
) -> Result<Option<Bytes>, Bytes> {
    let mut close = None;
    let fed = decoder.feed(bytes, MAX_MESSAGE, |message| {
        let (opcode, payload) = match message {
            Message::Text(text) => (Opcode::Text, text.as_bytes()),
            Message::Binary(data) => (Opcode::Binary, data),
            Message::Ping(data) => (Opcode::Pong, data),
            Message::Pong => return true,
            Message::Close(code) => {
                close = Some(if code == 1005 {
                    let mut frame = BytesMut::new();
                    encode(&mut frame, Opcode::Close, b"");
                    frame.freeze()
                } else {
                    close_frame(code, "")
                });
                return false;
            }
        };

        let mut frame = BytesMut::new();
        encode(&mut frame, opcode, payload);
        connection.send(frame.freeze());
        true
    });

    match fed {
        Ok(()) => Ok(close),
        Err(e) => Err(close_frame(e.close_code(), &e.to_string())),
    }
}
