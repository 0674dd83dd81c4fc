//! One event stream of a client (HTML Standard, section 9.2), over plain TCP.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tollgate_support::sse::Block;

use super::client::{Client, Ended, Phase};
use super::record::{Position, What};
use super::websocket::dial;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// A connection with the bytes that were read: raw, and without the framing of chunks.
struct Stream {
    tcp: TcpStream,
    raw: Vec<u8>,
    text: Vec<u8>,
    chunked: bool,
}

pub async fn session(client: &mut Client, replica: usize, address: &str) -> Ended {
    let mut stream = match timeout(HANDSHAKE, open(client, address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Ended::Refused(why),
        Err(_) => return Ended::Refused("no answer".to_owned()),
    };
    let since = client.last_id.clone();
    let leave = client.leaves_at();
    let far = Instant::now() + Duration::from_secs(3600);
    let mut phase = client.phase.clone();

    let mut greeted = false;
    loop {
        let wander = leave.filter(|_| client.phase() == Phase::Load).unwrap_or(far);
        let event = tokio::select! {
            event = stream.event() => event,
            () = sleep_until(wander) => {
                return if greeted { Ended::Left } else { Ended::Refused("silence".to_owned()) };
            }
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow() == Phase::End {
                    return Ended::Over;
                }
                continue;
            }
        };

        match event {
            Ok(event) => {
                if event.kind() == "connected" {
                    client.note(What::Opened(replica));
                    greeted = true;
                } else if !greeted {
                    return Ended::Refused(format!("{} {:?}", event.kind(), event.data));
                }
                if take(client, &event, since.as_deref()).is_err() {
                    // A channel was refused: as a page would, the client starts anew.
                    return Ended::Left;
                }
            }
            Err(why) if greeted => return Ended::Closed(1006, why),
            Err(why) => return Ended::Refused(why),
        }
        client.dawdle().await;
    }
}

async fn open(client: &Client, address: &str) -> Result<Stream, String> {
    let own = format!("user:{}", client.user);
    let channels: Vec<&str> =
        client.channels.iter().filter(|c| **c != own).map(String::as_str).collect();

    let mut request = format!(
        "GET /sse?channels={} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
         Authorization: Bearer {}\r\n",
        channels.join(","),
        client.bearer
    );
    if let Some(id) = &client.last_id {
        request.push_str(&format!("Last-Event-ID: {id}\r\n"));
    }
    request.push_str("\r\n");

    let text = |e: std::io::Error| e.to_string();
    let mut tcp = dial(client, address).await.map_err(text)?;
    tcp.write_all(request.as_bytes()).await.map_err(text)?;
    let mut stream = Stream { tcp, raw: Vec::new(), text: Vec::new(), chunked: false };

    let end = loop {
        if let Some(end) = stream.raw.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        stream.fill().await?;
    };

    let head = String::from_utf8_lossy(&stream.raw[..end]).to_ascii_lowercase();
    stream.raw.drain(..end + 4);
    stream.chunked = head.contains("transfer-encoding: chunked");
    if !head.starts_with("http/1.1 200") {
        return Err(head.lines().next().unwrap_or_default().to_owned());
    }
    Ok(stream)
}

impl Stream {
    async fn fill(&mut self) -> Result<(), String> {
        let read = self.tcp.read_buf(&mut self.raw).await.map_err(|e| e.to_string())?;
        if read == 0 { Err("the stream ended".to_owned()) } else { Ok(()) }
    }

    /// Moves what is complete from the raw bytes to the text. Returns true if another chunk
    /// may follow.
    fn unwrap(&mut self) -> Result<bool, String> {
        if !self.chunked {
            self.text.append(&mut self.raw);
            return Ok(false);
        }
        let Some(end) = self.raw.windows(2).position(|w| w == b"\r\n") else { return Ok(false) };
        let size = String::from_utf8_lossy(&self.raw[..end]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).map_err(|e| format!("{size}: {e}"))?;
        if self.raw.len() < end + 2 + size + 2 {
            return Ok(false);
        }
        if size == 0 {
            return Err("the stream ended".to_owned());
        }
        self.text.extend_from_slice(&self.raw[end + 2..end + 2 + size]);
        self.raw.drain(..end + 2 + size + 2);
        Ok(true)
    }

    async fn event(&mut self) -> Result<Block, String> {
        loop {
            let ended = loop {
                match self.unwrap() {
                    Ok(true) => {}
                    Ok(false) => break None,
                    Err(why) => break Some(why),
                }
            };

            while let Some(end) = self.text.windows(2).position(|w| w == b"\n\n") {
                let text: Vec<u8> = self.text.drain(..end + 2).collect();
                let event = Block::of(&String::from_utf8_lossy(&text));
                if !event.data.is_empty() {
                    return Ok(event);
                }
            }

            // Events from before the end are read first.
            if let Some(why) = ended {
                return Err(why);
            }
            self.fill().await?;
        }
    }
}

/// Notes an event. Fails if the gateway refused a channel.
fn take(client: &mut Client, event: &Block, since: Option<&str>) -> Result<(), ()> {
    let Ok(json) = serde_json::from_str::<Value>(&event.data.join("\n")) else {
        client.note(What::Foreign(event.data.join("\n")));
        return Ok(());
    };
    let data = &json["data"];
    let asked = |channel: &str| since.is_some_and(|id| place(id, channel).is_some());

    match event.kind() {
        "message" => {
            let channel = json["c"].as_str().unwrap_or_default();
            let position = event.id.as_deref().and_then(|id| place(id, channel));
            client.event(&json, None, position);
        }
        "connected" => {
            for channel in data["channels"].as_array().into_iter().flatten() {
                let channel = channel.as_str().unwrap_or_default();
                client.live(channel, &data["positions"][channel], asked(channel));
            }
        }
        "subscribed" => {
            let channel = data["channelKey"].as_str().unwrap_or_default();
            client.live(channel, data, asked(channel));
        }
        kind => {
            client.said(kind, data);
            if kind == "error" {
                return Err(());
            }
        }
    }

    if let Some(id) = &event.id {
        client.last_id = Some(id.clone());
    }
    Ok(())
}

/// A channel's position in an id.
fn place(id: &str, channel: &str) -> Option<Position> {
    let (_, position) = form_urlencoded::parse(id.as_bytes()).find(|(c, _)| c == channel)?;
    let (epoch, offset) = position.rsplit_once('-')?;
    Some((epoch.to_owned(), offset.parse().ok()?))
}
