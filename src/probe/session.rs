//! A WebSocket to the gateway, and a client's actions on it: greeting, subscription, event, idling.
//!
//! Not here: the handshake (`wire`, `upgrade`).

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::causes::Cause;
use super::report::{Checked, Trouble};
use super::target::{Line, Stream, millis};
use super::upgrade::verdict;
use super::wire::{Answer, Asked, ask, tell_progress};
use crate::auth::Reason;
use crate::protocol::codes::CloseCode;

/// The close code with which the gateway refuses a token.
pub(super) const TOKEN_REFUSED: u16 = 4401;

/// What a socket received.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Value),
    Closed(u16, String),
    /// The socket ended without a close frame.
    Cut(String),
    Nothing,
}

/// A WebSocket to the gateway.
pub(super) struct Socket {
    ws: WebSocketStream<Stream>,
    opened: Instant,
    pings: u32,
    first_ping: Option<Instant>,
    /// The automatic subscriptions, behind those that were asked for.
    pub(super) channels: Vec<String>,
}

impl Socket {
    /// Makes the handshake. If it is refused, the answer is returned too.
    pub(super) async fn open(line: &Line, asked: &Asked<'_>) -> Result<(Self, Answer), Refused> {
        let asking = ask(line, asked, true).await;
        let (stream, mut answer) = asking.map_err(|t| Refused(t, Answer::default()))?;
        if let Err(trouble) = verdict(&answer) {
            return Err(Refused(trouble, answer));
        }

        let early = std::mem::take(&mut answer.rest);
        let ws = WebSocketStream::from_partially_read(stream, early, Role::Client, None).await;
        Ok((
            Self { ws, opened: Instant::now(), pings: 0, first_ping: None, channels: Vec::new() },
            answer,
        ))
    }

    /// Returns the next message until that moment. Pings are answered on the way.
    pub(super) async fn hear(&mut self, until: Instant) -> Heard {
        loop {
            let Ok(next) = timeout_at(until, self.ws.next()).await else {
                return Heard::Nothing;
            };

            match next {
                Some(Ok(Message::Text(text))) => {
                    let value = serde_json::from_str::<Value>(&text).unwrap_or(Value::Null);
                    return Heard::Message(value);
                }
                Some(Ok(Message::Ping(_))) => {
                    self.pings += 1;
                    self.first_ping.get_or_insert_with(Instant::now);
                }
                Some(Ok(Message::Close(frame))) => {
                    let frame = frame.map(|f| (u16::from(f.code), f.reason.to_string()));
                    let (code, reason) = frame.unwrap_or((1005, String::new()));
                    return Heard::Closed(code, reason);
                }
                Some(Ok(Message::Binary(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(e)) => return Heard::Cut(e.to_string()),
                None => return Heard::Cut("the connection was closed".to_owned()),
            }
        }
    }

    /// Waits for a message that `wanted` accepts; others are passed over.
    async fn await_message<T>(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, Heard> {
        let until = Instant::now() + patience;
        loop {
            match self.hear(until).await {
                Heard::Message(message) => {
                    if let Some(found) = wanted(&message) {
                        return Ok(found);
                    }
                }
                end @ (Heard::Closed(..) | Heard::Cut(_) | Heard::Nothing) => return Err(end),
            }
        }
    }

    async fn send(&mut self, message: &Value) {
        // A message that cannot be sent is not answered either, and the missing answer is reported.
        let _ = self.ws.send(Message::text(message.to_string())).await;
    }

    pub(super) async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.ws.close(None)).await;
    }

    /// Waits for `connected`.
    pub(super) async fn greeted(&mut self, patience: Duration) -> Checked<Value> {
        let greeting =
            |message: &Value| (message["type"] == "connected").then(|| message["data"].clone());

        match self.await_message(patience, greeting).await {
            Ok(data) => {
                let channels = data["channels"].as_array().into_iter().flatten();
                self.channels = channels.filter_map(|c| c.as_str().map(str::to_owned)).collect();
                let user = data["userId"].as_str().unwrap_or("nobody");

                let said = match self.channels.as_slice() {
                    [] => format!("accepted as user {user}, no automatic subscriptions"),
                    list => format!("accepted as user {user}, subscribed to {}", list.join(", ")),
                };

                Ok((data, said))
            }
            Err(Heard::Closed(code, reason)) => Err(closed(code, &reason)),
            Err(Heard::Cut(why)) => Err(Trouble::new(Cause::NoGreeting, why)),
            Err(Heard::Nothing | Heard::Message(_)) => {
                let said = format!("no message within {}", millis(patience));
                Err(Trouble::new(Cause::NoGreeting, said))
            }
        }
    }

    pub(super) async fn subscribe(&mut self, channel: &str, patience: Duration) -> Checked<()> {
        let began = Instant::now();
        self.send(&json!({"type": "subscribe", "channel": channel, "id": "doctor"})).await;

        let answer = self.await_message(patience, |message| {
            (message["id"] == "doctor").then(|| message.clone())
        });

        match answer.await {
            Ok(message) if message["type"] == "subscribed" => {
                let name = message["data"]["channelKey"].as_str().unwrap_or(channel).to_owned();
                let said = format!("{name} after {}", millis(began.elapsed()));
                self.channels.insert(0, name);
                Ok(((), said))
            }
            Ok(message) => {
                let text = |field: &str| message["data"][field].as_str().unwrap_or("").to_owned();
                let said = format!("{channel}: {} {}", text("code"), text("message"));
                Err(Trouble::new(Cause::SubscribeRefused, said))
            }
            Err(Heard::Closed(code, reason)) => Err(closed(code, &reason)),
            Err(Heard::Cut(_) | Heard::Nothing | Heard::Message(_)) => {
                let said = format!("{channel}: no answer within {}", millis(patience));
                Err(Trouble::new(Cause::SubscribeSilent, said))
            }
        }
    }

    /// Waits for the event that has this mark.
    pub(super) async fn receives(&mut self, mark: &str, patience: Duration) -> bool {
        self.await_message(patience, |m| (m["mark"] == mark).then_some(())).await.is_ok()
    }

    /// Stays silent for a while, then checks that the gateway still answers. Returns the time of
    /// the first ping.
    pub(super) async fn idles(
        &mut self,
        idle: Duration,
        patience: Duration,
    ) -> Checked<Option<Duration>> {
        let began = Instant::now();

        let listening = async {
            loop {
                match self.hear(began + idle).await {
                    Heard::Message(_) => {}
                    end @ (Heard::Closed(..) | Heard::Cut(_) | Heard::Nothing) => return end,
                }
            }
        };

        let end = tokio::select! {
            end = listening => end,
            never = tell_progress(idle) => match never {},
        };

        let after = format!("after {:.1} s", began.elapsed().as_secs_f32());

        match end {
            Heard::Closed(code, reason) => {
                let said = format!("{after}: {}", closed(code, &reason).found);
                return Err(Trouble::new(Cause::IdleClosed, said));
            }
            Heard::Cut(why) => {
                return Err(Trouble::new(Cause::IdleCut, format!("{after}: {why}")));
            }
            Heard::Nothing | Heard::Message(_) => {}
        }

        self.send(&json!({"type": "ping", "id": "still there"})).await;
        let pong = self.await_message(patience, |m| (m["type"] == "pong").then_some(()));
        match pong.await {
            Ok(()) => {
                let pings = match self.pings {
                    0 => "no ping from the gateway yet: try a longer --idle".to_owned(),
                    n => format!("pings from the gateway, answered: {n}"),
                };
                let first = self.first_ping.map(|at| at.saturating_duration_since(self.opened));
                Ok((first, format!("open {after}; {pings}")))
            }
            Err(_) => Err(Trouble::new(Cause::IdleDeaf, format!("no pong {after}"))),
        }
    }
}

/// A handshake that failed, and the answer to it, which is empty if none came.
pub(super) struct Refused(pub(super) Trouble, pub(super) Answer);

/// The trouble behind a close.
pub(super) fn closed(code: u16, reason: &str) -> Trouble {
    let row = CloseCode::ALL.iter().map(|c| c.row()).find(|row| row.code == code);
    let meaning = row.map_or("not one of the gateway's codes", |row| row.meaning);

    if code != TOKEN_REFUSED {
        let found = format!("closed with {code} {reason}: {meaning}");
        return Trouble::new(Cause::ClosedAtOnce, found);
    }

    let why = Reason::ALL.iter().find(|r| r.slug() == reason).map_or("", |r| r.meaning());
    Trouble::new(Cause::TokenRefused, format!("closed with 4401 {reason}: {why}"))
}
