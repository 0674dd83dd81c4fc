//! HTTP requests as they stand on the wire, and the gateway's server API.
//!
//! Not here: WebSocket (`client`) and event streams (`sse`).
//!
//! Functions that panic are for a gateway that has to be there; those that return an `Option` or a
//! `Result` are for gateways that may be gone.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::DEADLINE;

/// The key of the server API that every test gateway knows.
pub const API_KEY: &str = "integration-api-key";

/// How long a gateway that may be gone has to answer.
const ANSWER: Duration = Duration::from_secs(2);
const API_ANSWER: Duration = Duration::from_secs(10);

/// Sends one request as it stands. Returns the status and the body.
pub async fn http(address: &str, request: &str) -> (u16, String) {
    let (head, body) = http_raw(address, request.as_bytes()).await;
    (status_of(&head), body)
}

/// Sends bytes. Returns head and body of whatever comes until the server closes.
pub async fn http_raw(address: &str, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes");
    split(&answer)
}

/// Sends one request. Returns the head of the answer, or nothing if the connection is turned away.
pub async fn try_http(address: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = vec![0; 1024];
    let read = timeout(DEADLINE, stream.read(&mut answer)).await.ok()?;
    let n = read.ok().filter(|n| *n > 0)?;
    Some(String::from_utf8_lossy(&answer[..n]).into_owned())
}

/// The answer to a GET, head and body, of a gateway that may be gone.
pub async fn try_get(address: &str, path: &str) -> Option<(String, String)> {
    let answer = exchange(address, &get_request(address, path), ANSWER).await.ok()?;
    Some(split(&answer))
}

/// The status of the answer to a GET, which need not end, of a gateway that may be gone.
pub async fn try_status(address: &str, path: &str) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(get_request(address, path).as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.map(|_| head)
    };
    let head = timeout(ANSWER, ask).await.ok()?.ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

/// Calls the server API with the test key. Returns its answer, or why there is none.
pub async fn try_api(address: &str, method: &str, body: &Value) -> Result<Value, String> {
    let request = api_request(method, Some(API_KEY), &body.to_string());
    let answer = exchange(address, &request, API_ANSWER).await?;
    let (head, body) = split(&answer);
    serde_json::from_str(&body).map_err(|e| format!("{e}: {head}\n{body}"))
}

/// A GET that asks for the connection's end after the answer.
pub fn get_request(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// A call of the server API that asks for the connection's end after the answer.
pub fn api_request(method: &str, key: Option<&str>, body: &str) -> String {
    let key = key.map_or_else(String::new, |k| format!("X-API-Key: {k}\r\n"));
    let length = body.len();
    format!(
        "POST /api/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The status in a response's head, or 0 if there is none.
fn status_of(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0)
}

async fn exchange(address: &str, request: &str, within: Duration) -> Result<Vec<u8>, String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map(|_| answer)
    };
    let answer = timeout(within, ask).await.map_err(|_| "no answer".to_owned())?;
    answer.map_err(|e: std::io::Error| e.to_string())
}

fn split(answer: &[u8]) -> (String, String) {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}
