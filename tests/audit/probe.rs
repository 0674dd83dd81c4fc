//! Asking a gateway by its server API, and one socket that shows what came of it.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;

pub const API_KEY: &str = "audit-api-key-0123456789";
const PATIENCE: Duration = Duration::from_secs(10);

/// What the API answers.
pub async fn call(address: &str, method: &str, body: &Value) -> Result<Value, String> {
    let body = body.to_string();
    let request = format!(
        "POST /api/{method} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         X-API-Key: {API_KEY}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = timeout(PATIENCE, ask).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|e| e.to_string())?;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    serde_json::from_str(body).map_err(|e| format!("{e}: {answer}"))
}

/// A socket of its own, outside the load.
pub struct Probe(WebSocketStream<TcpStream>);

impl Probe {
    /// Connects with a token; how it was refused otherwise.
    pub async fn open(address: &str, token: &str) -> Result<Self, (u16, String)> {
        let failed = |e: String| (0, e);
        let request = format!("ws://{address}/ws").into_client_request();
        let mut request = request.map_err(|e| failed(e.to_string()))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
        request.headers_mut().append("authorization", bearer.map_err(|e| failed(e.to_string()))?);
        let stream = TcpStream::connect(address).await.map_err(|e| failed(e.to_string()))?;
        let upgraded = tokio_tungstenite::client_async(request, stream).await;
        let mut probe = Self(upgraded.map_err(|e| failed(e.to_string()))?.0);
        let hello = probe.next().await?;
        if hello["type"] == "connected" { Ok(probe) } else { Err(failed(hello.to_string())) }
    }

    pub async fn subscribe(&mut self, channel: &str) -> Result<(), (u16, String)> {
        let ask = json!({"type": "subscribe", "channel": channel}).to_string();
        self.0.send(Message::text(ask)).await.map_err(|e| (1006, e.to_string()))?;
        let answer = self.next().await?;
        if answer["type"] == "subscribed" { Ok(()) } else { Err((0, answer.to_string())) }
    }

    /// Asks so many times to go on with a token that is none; how often that was refused.
    pub async fn refused_refreshes(&mut self, many: usize) -> Result<usize, (u16, String)> {
        let ask = json!({"type": "refresh", "token": "nonsense"}).to_string();
        for _ in 0..many {
            let fed = self.0.feed(Message::text(ask.clone())).await;
            fed.map_err(|e| (1006, e.to_string()))?;
        }
        self.0.flush().await.map_err(|e| (1006, e.to_string()))?;
        for _ in 0..many {
            let answer = self.next().await?;
            if answer["data"]["code"] != "token_refused" {
                return Err((0, answer.to_string()));
            }
        }
        Ok(many)
    }

    /// The next message, or how the socket ended.
    pub async fn next(&mut self) -> Result<Value, (u16, String)> {
        loop {
            let message = timeout(PATIENCE, self.0.next()).await;
            match message.map_err(|_| (0, "nothing came".to_owned()))? {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text).map_err(|e| (0, e.to_string()));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Err((frame.code.into(), frame.reason.to_string()));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => return Err((1006, format!("{other:?}"))),
            }
        }
    }
}
