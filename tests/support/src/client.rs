//! A WebSocket client of the gateway's protocols.
//!
//! Not here: the tokens that a client brings (`tokens`), and the auditor's clients, which wander
//! and resume.
//!
//! A client reads only when it is asked to, so it answers pings only then.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::DEADLINE;
use crate::gateway::Gateway;
use crate::tokens::token;

/// How a socket ended: the close code and the reason.
///
/// The code is 1006 without a close frame, and 0 where there was no socket or no JSON.
pub type Ended = (u16, String);

/// One socket.
pub struct Client {
    ws: Socket,
    /// The greeting, if the client has waited for it.
    pub connected: Value,
    /// A close that has been read already.
    ended: Option<Ended>,
    /// Whether the client hands out `interrupted` and `live`.
    interruptions: bool,
}

fn is_of_interruption(text: &str) -> bool {
    ["{\"type\":\"interrupted\"", "{\"type\":\"live\""].iter().any(|kind| text.starts_with(kind))
}

impl Client {
    /// Connects as a user and waits for `connected`.
    pub async fn connect(gateway: &Gateway, user: &str) -> Self {
        Self::connect_with(gateway, "/ws", &token(user)).await
    }

    /// Connects with a token and waits for `connected`.
    pub async fn connect_with(gateway: &Gateway, path: &str, token: &str) -> Self {
        let bearer = format!("Bearer {token}");
        let mut client =
            Self::open(&gateway.public, path, &[("authorization", &bearer)]).await.unwrap();
        client.connected = client.next().await;
        assert_eq!(client.connected["type"], "connected", "{}", client.connected);
        client
    }

    /// Connects with a token that is refused. Returns the close code and the reason.
    pub async fn refused(gateway: &Gateway, token: &str) -> (u16, String) {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let mut client = Self::open(&gateway.public, "/ws", &headers).await.unwrap();
        let (code, reason, _) = client.closed().await;
        (code, reason)
    }

    /// Upgrades and reads nothing.
    pub async fn open(
        address: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).await?;
        let ws = upgrade(stream, address, path, headers).await?;
        Ok(Self { ws, connected: Value::Null, ended: None, interruptions: false })
    }

    /// The same client, which is handed `interrupted` and `live` too.
    #[must_use]
    pub fn with_interruptions(mut self) -> Self {
        self.interruptions = true;
        self
    }

    /// Sends a message.
    pub async fn send(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text message as it stands.
    pub async fn send_text(&mut self, text: &str) {
        self.ws.send(Message::text(text)).await.unwrap();
    }

    /// Sends several messages in one write, so that the gateway reads them together.
    pub async fn send_together(&mut self, messages: &[Value]) {
        self.try_send_together(messages).await.unwrap();
    }

    /// Sends several messages in one write, or returns how the socket ended.
    pub async fn try_send_together(&mut self, messages: &[Value]) -> Result<(), Ended> {
        let ended = |error: Error| (1006, error.to_string());
        for message in messages {
            self.ws.feed(Message::text(message.to_string())).await.map_err(ended)?;
        }
        self.ws.flush().await.map_err(ended)
    }

    /// Sends any message. Fails if the socket has ended.
    pub async fn send_raw(&mut self, message: Message) -> Result<(), Error> {
        self.ws.send(message).await
    }

    /// The next text message as it came.
    pub async fn next_text(&mut self) -> String {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.ws.next()).await;
            match message.expect("a message in time").expect("an open socket").unwrap() {
                Message::Text(text) if !self.interruptions && is_of_interruption(&text) => {}
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other @ (Message::Binary(_) | Message::Close(_) | Message::Frame(_)) => {
                    panic!("not text: {other:?}")
                }
            }
        }
    }

    /// The next message, or nothing when a close comes in its place (and is kept for `closed`).
    pub async fn try_next(&mut self) -> Option<Value> {
        loop {
            let message = tokio::time::timeout(DEADLINE, self.ws.next()).await.expect("in time");
            match message {
                Some(Ok(Message::Text(text)))
                    if !self.interruptions && is_of_interruption(&text) => {}
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).ok(),
                Some(Ok(Message::Close(frame))) => {
                    self.ended =
                        Some(frame.map_or((1005, String::new()), |f| {
                            (f.code.into(), f.reason.to_string())
                        }));
                    return None;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        serde_json::from_str(&self.next_text().await).unwrap()
    }

    /// The next message that is no gap. A loss may be declared more than once.
    pub async fn next_but_gaps(&mut self) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] != "gap" {
                return message;
            }
        }
    }

    /// The next message, or how the socket ended instead; nothing is passed over.
    pub async fn hear(&mut self, within: Duration) -> Result<Value, Ended> {
        let message = tokio::time::timeout(within, hear(&mut self.ws)).await;
        message.unwrap_or_else(|_| Err((0, "nothing came".to_owned())))
    }

    /// Subscribes and waits for the answer.
    pub async fn subscribe(&mut self, channel: Value) -> Value {
        self.send(json!({"type": "subscribe", "channel": channel, "id": 1})).await;
        self.next().await
    }

    /// Shows that nothing came before the answer to a ping sent now.
    pub async fn nothing_came(&mut self) {
        self.send(json!({"type": "ping", "id": "fence"})).await;
        assert_eq!(self.next().await, json!({"type": "pong", "id": "fence"}));
    }

    /// Reads to the close and returns its code, its reason and the messages before it.
    pub async fn closed(&mut self) -> (u16, String, Vec<Value>) {
        self.closed_within(DEADLINE).await
    }

    /// Reads to the close, with a deadline of its own.
    pub async fn closed_within(&mut self, deadline: Duration) -> (u16, String, Vec<Value>) {
        let mut before = Vec::new();
        if let Some((code, reason)) = self.ended.take() {
            return (code, reason, before);
        }

        loop {
            let message = tokio::time::timeout(deadline, self.ws.next()).await.expect("a close");
            match message {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), frame.reason.to_string(), before);
                }
                Some(Ok(Message::Close(None))) => return (1005, String::new(), before),
                Some(Ok(Message::Text(text))) => {
                    before.push(serde_json::from_str(&text).unwrap_or(Value::Null));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (1006, String::new(), before),
            }
        }
    }

    /// The connection's id, out of the greeting.
    pub fn id(&self) -> String {
        self.connected["data"]["connectionId"].as_str().unwrap().to_owned()
    }
}

/// A socket on a connection that is there already.
pub type Socket = WebSocketStream<TcpStream>;

/// Upgrades a connection to a WebSocket.
pub async fn upgrade(
    stream: TcpStream,
    address: &str,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Socket, Error> {
    let mut request = format!("ws://{address}{path}").into_client_request()?;
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    let (ws, _) = tokio_tungstenite::client_async(request, stream).await?;
    Ok(ws)
}

/// The next text message, or how the socket ended.
pub async fn hear(ws: &mut Socket) -> Result<Value, Ended> {
    loop {
        match ws.next().await {
            Some(Ok(Message::Text(text))) => {
                let not_json = |e: serde_json::Error| (0, format!("not JSON: {e}"));
                return serde_json::from_str(&text).map_err(not_json);
            }
            Some(Ok(Message::Close(Some(frame)))) => {
                return Err((frame.code.into(), frame.reason.to_string()));
            }
            Some(Ok(Message::Close(None))) => return Err((1005, String::new())),
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err((1006, e.to_string())),
            None => return Err((1006, String::new())),
        }
    }
}
