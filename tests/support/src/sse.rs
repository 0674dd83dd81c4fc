//! A client of event streams (HTML Standard, section 9.2), and the reading of one event.
//!
//! Not here: streams over connections of one's own, such as those of the auditor's slow readers.

use serde_json::Value;

use crate::DEADLINE;
use crate::gateway::Gateway;
use crate::tokens::token;

/// One event of a stream, whose data is JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its type, `message` where the stream names none.
    pub kind: String,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its data.
    pub data: Value,
}

/// The fields of one block of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The type of the event.
    pub event: Option<String>,
    /// The lines of its data.
    pub data: Vec<String>,
    /// Its id.
    pub id: Option<String>,
    /// Milliseconds before the client comes back.
    pub retry: Option<u64>,
    /// Lines that are neither a field nor a comment.
    pub unknown: Vec<String>,
}

/// One open stream.
pub struct Stream {
    /// What the gateway answered; its body is the stream.
    pub response: reqwest::Response,
    buffer: String,
    /// Milliseconds before the client comes back, as the stream said last.
    pub retry: Option<u64>,
    /// The last id that was read.
    pub last: String,
}

impl Block {
    /// Reads the lines of a block.
    pub fn of(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => block.event = Some(value.to_owned()),
                "data" => block.data.push(value.to_owned()),
                "id" => block.id = Some(value.to_owned()),
                "retry" => block.retry = value.parse().ok(),
                "" => {}
                _ => block.unknown.push(line.to_owned()),
            }
        }
        block
    }

    /// What kind of event it is.
    pub fn kind(&self) -> &str {
        self.event.as_deref().unwrap_or("message")
    }
}

impl Stream {
    /// Opens a stream, or returns the status and the body of the refusal.
    pub async fn open(
        gateway: &Gateway,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, (u16, String)> {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.get(format!("http://{}/sse?{query}", gateway.public));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }

        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        if status != 200 {
            return Err((status, response.text().await.unwrap()));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        Ok(Self { response, buffer: String::new(), retry: None, last: String::new() })
    }

    /// Opens a user's stream, behind the event with the id `last` unless that is empty.
    pub async fn of(gateway: &Gateway, user: &str, query: &str, last: &str) -> Self {
        let bearer = format!("Bearer {}", token(user));
        let mut headers = vec![("authorization", &*bearer), ("accept", "text/event-stream")];
        if !last.is_empty() {
            headers.push(("last-event-id", last));
        }
        Self::open(gateway, query, &headers).await.unwrap()
    }

    /// The next event; `None` at the end of the stream.
    pub async fn try_next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (Block::of(block), rest.to_owned());
                self.buffer = rest;
                if let Some(event) = self.take(block) {
                    return Some(event);
                }
            }
            let chunk =
                tokio::time::timeout(DEADLINE, self.response.chunk()).await.expect("in time");
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// Heeds a block. Returns nothing if the block has no data and so is no event.
    fn take(&mut self, block: Block) -> Option<Event> {
        assert!(block.unknown.is_empty(), "{block:?}");
        self.retry = block.retry.or(self.retry);
        if block.data.is_empty() {
            return None;
        }
        if let Some(id) = &block.id {
            self.last.clone_from(id);
        }
        let data = serde_json::from_str(&block.data.join("\n")).unwrap();
        Some(Event { kind: block.kind().to_owned(), id: block.id, data })
    }

    /// The next event; panics at the end of the stream.
    pub async fn next(&mut self) -> Event {
        self.try_next().await.expect("an event")
    }

    /// Reads `connected` and the `subscribed` of this many channels, and any gap among them.
    pub async fn begun(&mut self, channels: usize) -> Vec<Event> {
        assert_eq!(self.next().await.kind, "connected");
        let mut events = Vec::new();
        while events.iter().filter(|e: &&Event| e.kind == "subscribed").count() < channels {
            events.push(self.next().await);
        }
        events
    }
}
