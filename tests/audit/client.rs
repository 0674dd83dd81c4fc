//! Clients: they connect, subscribe, note down everything that comes, wander between the replicas
//! and resume. The two transports are in `websocket` and `sse`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tollgate_support::tokens::long_token;

use super::record::{ClientLog, Clock, Line, Manner, Position, Shared, What, Wire};
use super::{sse, websocket};

/// A gateway that clients may connect to.
#[derive(Clone)]
pub struct Replica {
    pub address: String,
    /// False once the gateway was killed or told to drain.
    pub open: bool,
}

pub struct Client {
    pub clock: Clock,
    pub log: Shared<ClientLog>,
    pub wire: Wire,
    pub manner: Manner,
    /// The replica that the client tries first; a steady client tries it first every time.
    pub home: usize,
    /// The address that the client connects from.
    pub from: Ipv4Addr,
    pub replicas: Shared<Vec<Replica>>,
    pub user: String,
    pub bearer: String,
    pub channels: Vec<String>,
    /// The last position of each channel that has one.
    pub positions: BTreeMap<String, Position>,
    /// An SSE client's `Last-Event-ID`.
    pub last_id: Option<String>,
    /// The delay that `reconnect` asked for, until the client heeds it.
    pub hint: Option<Duration>,
    pub phase: watch::Receiver<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Load,
    /// Publishers are done: clients stay connected, and slow ones read fast.
    Settle,
    End,
}

/// How a socket ended.
pub enum Ended {
    Over,
    Left,
    Closed(u16, String),
    /// The socket ended before a first answer.
    Refused(String),
}

const AGAIN: Duration = Duration::from_millis(100);
/// A patient client's longest first pause; it doubles up to five times.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

impl Client {
    pub fn note(&self, what: What) {
        let at = self.clock.now();
        self.log.lock().lines.push(Line { at, what });
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Connects again and again until the round ends.
    pub async fn run(mut self) {
        self.bearer = long_token(&self.user);
        let (mut next, mut refusals) = (self.home, 0);
        while self.phase() < Phase::End {
            let Some((replica, address)) = self.choose(next) else {
                sleep(AGAIN).await;
                continue;
            };

            let ended = match self.wire {
                Wire::Sse => sse::session(&mut self, replica, &address).await,
                Wire::Envelope | Wire::Plain => {
                    websocket::session(&mut self, replica, &address).await
                }
            };

            match ended {
                Ended::Over => return,
                Ended::Left => self.note(What::Left),
                Ended::Closed(code, reason) => {
                    refusals = 0;
                    self.note(What::Closed { code, reason });
                }
                Ended::Refused(why) => {
                    let last = self.log.lock().lines.last().map(|l| l.what.clone());
                    let note = What::Note(format!("refused by replica {replica}: {why}"));
                    if last.as_ref() != Some(&note) {
                        self.note(note);
                    }
                    refusals += 1;
                    if self.manner != Manner::Patient {
                        sleep(AGAIN).await;
                    }
                }
            }

            if self.manner == Manner::Patient {
                sleep(self.pause(refusals)).await;
            }
            if self.manner == Manner::Wanders {
                next = fastrand::usize(..8);
                sleep(Duration::from_millis(fastrand::u64(0..400))).await;
            }
        }
    }

    /// How long to wait before the next connection: as long as the gateway asked for, else a random
    /// time that grows with each refusal.
    fn pause(&mut self, refusals: u32) -> Duration {
        let most = FIRST_PAUSE * 2u32.pow(refusals.min(5));
        self.hint.take().unwrap_or_else(|| most.mul_f64(fastrand::f64()))
    }

    fn choose(&self, from: usize) -> Option<(usize, String)> {
        let replicas = self.replicas.lock();
        let places = (0..replicas.len()).map(|n| (from + n) % replicas.len());
        let mut open = places.filter(|n| replicas[*n].open);
        open.next().map(|n| (n, replicas[n].address.clone()))
    }

    /// When a wandering client leaves this socket.
    pub fn leaves_at(&self) -> Option<Instant> {
        (self.manner == Manner::Wanders)
            .then(|| Instant::now() + Duration::from_millis(fastrand::u64(400..2500)))
    }

    /// Notes that a channel is live.
    pub fn live(&mut self, channel: &str, start: &Value, resumes: bool) {
        let recovered = start["recovered"].as_bool();
        let position = position_of(start);
        if let Some(position) = &position {
            self.positions.insert(channel.to_owned(), position.clone());
        }
        self.note(What::Live { channel: channel.to_owned(), resumes, recovered, position });
    }

    /// Notes a published event, with what the wire says of its channel and position.
    pub fn event(&mut self, event: &Value, channel: Option<&str>, position: Option<Position>) {
        let number = |name: &str| event[name].as_u64().and_then(|n| usize::try_from(n).ok());
        let (Some(stream), Some(number)) = (number("s"), number("n")) else {
            return self.note(What::Foreign(event.to_string()));
        };
        let written = event["c"].as_str().unwrap_or_default();
        if channel.is_some_and(|channel| channel != written) {
            self.note(What::Foreign(format!("written for {written}, came on {channel:?}")));
        }
        if let Some(position) = &position {
            self.positions.insert(written.to_owned(), position.clone());
        }
        self.note(What::Event { stream, number, position });
    }

    /// Notes `gap` or another message of the gateway itself.
    pub fn said(&mut self, kind: &str, data: &Value) {
        match kind {
            "gap" => self.note(What::Gap {
                channel: data["channel"].as_str().unwrap_or_default().to_owned(),
                reason: data["reason"].as_str().unwrap_or_default().to_owned(),
            }),
            "reconnect" => {
                let after = Duration::from_millis(data["afterMs"].as_u64().unwrap_or_default());
                self.hint = Some(after);
                self.note(What::Hint(after));
            }
            _ => self.note(What::Note(format!("{kind} {data}"))),
        }
    }

    /// What a slow reader does between two reads. Now and then it catches up: a client that is
    /// behind for longer than a ping may take is rightly taken for dead.
    pub async fn dawdle(&self) {
        let catches_up = self.clock.now().as_secs() % 10 >= 6;
        if self.manner != Manner::Slow || self.phase() > Phase::Load || catches_up {
            return;
        }
        sleep(Duration::from_millis(2)).await;
        if fastrand::u32(..400) == 0 {
            sleep(Duration::from_millis(fastrand::u64(500..2500))).await;
        }
    }
}

pub fn position_of(value: &Value) -> Option<Position> {
    Some((value["epoch"].as_str()?.to_owned(), value["offset"].as_u64()?))
}
