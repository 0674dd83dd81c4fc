//! What was observed from outside: every publication with Redis' answer, and everything that each
//! client received, with times on one clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Epoch and offset.
pub type Position = (String, u64);

/// The time since the round began.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Durable,
    Plain,
}

/// Numbered events of one kind on one channel, by one publisher that awaits each answer.
#[derive(Debug, Clone)]
pub struct Stream {
    pub channel: String,
    pub kind: Kind,
    /// `main`, or another that does not follow a failover.
    pub publisher: &'static str,
    /// How many the history keeps.
    pub kept: u32,
}

impl Stream {
    pub fn name(&self) -> String {
        format!("{} {:?} by {}", self.channel, self.kind, self.publisher)
    }
}

/// One publication; its number is its place in the list.
#[derive(Debug, Clone)]
pub struct Published {
    pub started: Duration,
    /// Redis answered. Without an answer nobody knows whether the event exists.
    pub accepted: bool,
    pub position: Option<Position>,
    pub error: Option<String>,
}

#[derive(Debug, Clone)]
pub struct StreamLog {
    pub stream: Stream,
    pub published: Vec<Published>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A socket was opened, at this replica.
    Opened(usize),
    /// A channel is live. `resumes`: the client said what it has.
    Live {
        channel: String,
        resumes: bool,
        recovered: Option<bool>,
        position: Option<Position>,
    },
    Event {
        stream: usize,
        number: usize,
        position: Option<Position>,
    },
    Gap {
        channel: String,
        reason: String,
    },
    /// Something that no publisher wrote, or another channel's.
    Foreign(String),
    /// The client went away.
    Left,
    /// The gateway ended the socket; 1006 is an end without a close frame.
    Closed {
        code: u16,
        reason: String,
    },
    /// The gateway is about to end the socket: the client is to come back after this time.
    Hint(Duration),
    Note(String),
}

#[derive(Debug, Clone)]
pub struct Line {
    pub at: Duration,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Envelope,
    Plain,
    Sse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Stays as long as it may.
    Steady,
    /// Stays too, and waits before it comes back: as long as it was told, or longer each time.
    Patient,
    /// Goes away and comes back with what it has.
    Wanders,
    /// Reads slowly and stalls.
    Slow,
}

#[derive(Debug, Clone)]
pub struct ClientLog {
    pub name: String,
    pub wire: Wire,
    pub manner: Manner,
    pub channels: Vec<String>,
    pub lines: Vec<Line>,
}

impl ClientLog {
    /// Removes every declaration, as if the gateway had kept quiet.
    pub fn forget_declarations(&mut self) {
        self.lines.retain(|line| !matches!(line.what, What::Gap { .. }));
        for line in &mut self.lines {
            if let What::Live { recovered: Some(recovered), .. } = &mut line.what {
                *recovered = true;
            }
        }
    }
}

pub type Shared<T> = Arc<Mutex<T>>;

pub fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}
