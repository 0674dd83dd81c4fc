//! Requests and answers as they are on the wire. They are made and read by hand up to the end of
//! the head, because the doctor looks for what proxies do to it; a client library would say only
//! that it failed.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{interval, timeout, timeout_at};

use super::causes::Cause;
use super::report::Trouble;
use super::target::{Line, Stream, millis};
use crate::terminal::complain;

/// Most bytes of a head, and most bytes of a body, that are read.
const MAX_READ: usize = 32 * 1024;

/// How often progress is reported while nothing else happens.
const PROGRESS: Duration = Duration::from_secs(5);

/// The parts of a request beside those that every request has.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) query: &'a [(&'a str, &'a str)],
    pub(super) headers: &'a [(&'a str, &'a str)],
}

/// The head of an answer, and the bytes that were read behind it.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The minor version: 0 is HTTP/1.0.
    pub(super) minor: u8,
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) rest: Vec<u8>,
    /// The key that was sent with the request.
    pub(super) key: String,
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// True if a list in a header has this word.
    pub(super) fn has(&self, name: &str, word: &str) -> bool {
        let values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut words = values.flat_map(|(_, value)| value.split(','));
        words.any(|w| w.trim().eq_ignore_ascii_case(word))
    }

    pub(super) fn body(&self) -> String {
        String::from_utf8_lossy(&self.rest).into_owned()
    }

    /// The server that answered, as far as the headers name it. The gateway itself sends
    /// none of them.
    pub(super) fn by(&self) -> String {
        let said = ["server", "via", "x-powered-by", "x-cache", "cf-ray"].map(|name| {
            self.header(name).map(|value| format!("{name}: {value}")).unwrap_or_default()
        });
        let said: Vec<_> = said.into_iter().filter(|text| !text.is_empty()).collect();
        if said.is_empty() { "no Server or Via header".to_owned() } else { said.join(", ") }
    }

    /// Status, sender and the beginning of the body.
    pub(super) fn told(&self) -> String {
        let version = if self.minor == 0 { " in HTTP/1.0" } else { "" };
        let body = match self.header("content-encoding") {
            Some(coding) => format!("in {coding}"),
            None => self.body(),
        };
        let body = body.trim();
        let what = if body.is_empty() { String::new() } else { format!(": {body}") };
        format!("{}{version} ({}){what}", self.status, self.by())
    }
}

/// Sends a request and reads the head of the answer. `upgrade` adds the headers of a WebSocket.
pub(super) async fn ask(
    line: &Line,
    asked: &Asked<'_>,
    upgrade: bool,
) -> Result<(Stream, Answer), Trouble> {
    let mut stream = line.dial().await?;

    let mut key = [0; 16];
    fastrand::fill(&mut key);
    let key = STANDARD.encode(key);

    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: tollgate-doctor/{}\r\n",
        line.target.path(asked.query),
        line.target.authority(),
        env!("CARGO_PKG_VERSION"),
    );

    if upgrade {
        request.push_str(&format!(
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {key}\r\n"
        ));
    }

    for (name, value) in asked.headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");

    let began = Instant::now();
    let answer = timeout(line.patience, async {
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.flush().await;
        head(&mut stream).await
    });

    let answer = answer.await.unwrap_or_else(|_| {
        let said = format!("no answer within {}", millis(line.patience));
        Err(Trouble::new(Cause::NoAnswer, said))
    });

    let mut answer = Answer { key, took: began.elapsed(), ..answer? };

    if answer.status >= 300 {
        read_body(&mut stream, &mut answer).await;
    }

    Ok((stream, answer))
}

/// Reads up to the end of the head.
async fn head(stream: &mut Stream) -> Result<Answer, Trouble> {
    let mut read = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&read) {
            Ok(httparse::Status::Complete(end)) => {
                let text = |h: &httparse::Header<'_>| {
                    (h.name.to_owned(), String::from_utf8_lossy(h.value).into_owned())
                };

                return Ok(Answer {
                    minor: response.version.unwrap_or(1),
                    status: response.code.unwrap_or(0),
                    headers: response.headers.iter().map(text).collect(),
                    rest: read[end..].to_vec(),
                    ..Answer::default()
                });
            }
            Ok(httparse::Status::Partial) if read.len() < MAX_READ => {}
            Ok(httparse::Status::Partial) | Err(_) => {
                let began = String::from_utf8_lossy(&read[..read.len().min(80)]).into_owned();
                return Err(Trouble::new(Cause::NotHttp, format!("it begins with {began:?}")));
            }
        }

        match stream.read_buf(&mut read).await {
            Ok(n) if n > 0 => {}
            Ok(_) if read.is_empty() => {
                return Err(Trouble::new(Cause::Closed, "closed without an answer"));
            }
            Ok(_) => return Err(Trouble::new(Cause::NotHttp, "closed within the head")),
            Err(e) => return Err(Trouble::new(Cause::Closed, e.to_string())),
        }
    }
}

/// Reads a body: all of it if its length is stated, otherwise what comes within a second.
async fn read_body(stream: &mut Stream, answer: &mut Answer) {
    let length = answer.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(MAX_READ);
    let until = tokio::time::Instant::now() + Duration::from_secs(1);
    while answer.rest.len() < length.min(MAX_READ) {
        match timeout_at(until, stream.read_buf(&mut answer.rest)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
    }
}

/// Reports every few seconds, on standard error, how far the idling is.
pub(super) async fn tell_progress(idle: Duration) -> Infallible {
    let mut every = interval(PROGRESS);
    let mut so_far = Duration::ZERO;
    loop {
        every.tick().await;
        complain(&format!("idle: {} of {} s\n", so_far.as_secs(), idle.as_secs()));
        so_far += PROGRESS;
    }
}
