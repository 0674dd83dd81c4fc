//! One simulated client: its handshake, its subscriptions, and what it makes of each frame. When it
//! connects, and what follows when it ends, is the worker's business.

use std::io;

use anyhow::Result;
use serde_json::Value;

use crate::backoff::Backoff;
use crate::check::Sequence;
use crate::clock;
use crate::event::{Event, Events};
use crate::frame::{self, Frame};
use crate::link::Link;
use crate::shared::{Shared, ThreadWindow};
use crate::tally::{PHASES, Tally, count, record};
use crate::target::{ACCEPT, Target};
use crate::token::Tokens;
use crate::topology::Topology;

/// What is the same for all clients of a run.
pub struct Plan {
    pub target: Target,
    pub tokens: Tokens,
    pub topology: Topology,
    pub events: Events,
    /// The server is the floor, which subscribes by the URL and confirms nothing.
    pub raw: bool,
    pub retry: Option<Backoff>,
    /// Nanoseconds for one attempt.
    pub timeout: u64,
    /// One client in so many reconnects about every so many nanoseconds.
    pub churn: Option<(usize, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Unopened,
    Connecting,
    Upgrading,
    Subscribing,
    Ready,
    /// A timer starts the next attempt.
    Waiting,
    Over,
}

/// Why a connection ended.
#[derive(Debug)]
pub enum End {
    Io(io::Error),
    Eof,
    Timeout,
    Status(u16, Option<u64>),
    Close(u16, String),
    Refused(String),
    Protocol(&'static str),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Io(error)
    }
}

impl End {
    pub fn kind(&self) -> String {
        match self {
            End::Io(error) => match error.raw_os_error() {
                // The error's text has a number that differs between systems; its kind does not.
                Some(_) => error.kind().to_string(),
                None => error.to_string(),
            },
            End::Eof => "ended without a close".to_owned(),
            End::Timeout => "timed out".to_owned(),
            End::Status(status, _) => format!("http {status}"),
            End::Close(code, reason) => format!("{code} {reason}").trim_end().to_owned(),
            End::Refused(why) => why.clone(),
            End::Protocol(what) => (*what).to_owned(),
        }
    }

    /// Whether the server is there and asks the client to come back later.
    pub fn put_off(&self) -> bool {
        matches!(self, End::Status(429 | 503, _) | End::Close(1012 | 1013 | 4429, _))
    }

    /// Whether docs/protocol.md lets the client come back.
    pub fn may_retry(&self) -> bool {
        match self {
            End::Io(_) | End::Eof | End::Timeout => true,
            End::Status(status, _) => matches!(status, 429 | 502..=504),
            End::Close(code, _) => matches!(code, 1001 | 1012 | 1013 | 4408 | 4410 | 4429),
            End::Refused(why) => why.starts_with("unavailable"),
            End::Protocol(_) => false,
        }
    }
}

/// What a thread's clients need while they read.
pub struct Context<'a> {
    pub plan: &'a Plan,
    pub shared: &'a Shared,
    pub phases: [u64; PHASES],
    pub tally: &'a mut Tally,
    pub window: &'a mut ThreadWindow,
    pub now: u64,
}

pub struct Client {
    pub index: usize,
    pub state: State,
    pub link: Option<Link>,
    /// When this attempt began.
    pub began: u64,
    pub attempt: u8,
    /// Milliseconds after which the server asked it to come back.
    pub hint: Option<u32>,
    connected: bool,
    unconfirmed: u8,
    shared: Sequence,
    own: Sequence,
    /// The beginning of a frame whose end has not come.
    #[expect(clippy::box_collection, reason = "one word in each of many thousand connections")]
    rest: Option<Box<Vec<u8>>>,
}

impl Client {
    pub fn new(index: usize) -> Self {
        Client {
            index,
            state: State::Unopened,
            link: None,
            began: 0,
            attempt: 0,
            hint: None,
            connected: false,
            unconfirmed: 0,
            shared: Sequence::default(),
            own: Sequence::default(),
            rest: None,
        }
    }

    pub fn opened(&mut self, link: Link, now: u64, late: bool) {
        let sequence = || if late { Sequence::joining_late() } else { Sequence::from_the_start() };
        (self.shared, self.own) = (sequence(), sequence());
        (self.link, self.began, self.state) = (Some(link), now, State::Connecting);
        (self.rest, self.connected, self.hint) = (None, false, None);
    }

    pub fn writable(&mut self, plan: &Plan) -> Result<(), End> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if self.state != State::Connecting {
            return Ok(link.flush()?);
        }
        if !link.established()? {
            return Ok(());
        }

        let topology = &plan.topology;
        let channel = topology.shared_of(self.index).or(topology.own_of(self.index));
        let channel = channel.map(|c| topology.name(c, &plan.tokens)).unwrap_or_default();
        let token = plan.tokens.token(self.index);
        let user = plan.tokens.user(self.index);
        let peer = plan.target.peer(self.index);
        link.send(peer.handshake(&user, &channel, token.as_deref()).as_bytes())?;
        self.state = State::Upgrading;
        Ok(())
    }

    pub fn readable(&mut self, buffer: &mut [u8], context: &mut Context<'_>) -> Result<(), End> {
        loop {
            let Some(link) = &mut self.link else { return Ok(()) };

            // The beginning of a frame that came before goes in front of what comes now.
            let held = self.rest.take().map_or(0, |rest| {
                buffer[..rest.len()].copy_from_slice(&rest);
                rest.len()
            });

            let read = link.read(&mut buffer[held..])?;
            context.now = clock::now();
            let end = held + read.unwrap_or(0);
            if read == Some(0) {
                return Err(End::Eof);
            }

            let last = read.is_none() || (link.short_read_is_last() && end < buffer.len());
            let used = self.take(&buffer[..end], context)?;
            if used < end {
                if end - used == buffer.len() {
                    return Err(End::Protocol("a frame larger than the read buffer"));
                }
                self.rest = Some(Box::new(buffer[used..end].to_vec()));
            }

            if last {
                return Ok(());
            }
        }
    }

    /// Handles the complete frames in `bytes`. Answers how many bytes they have.
    fn take(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<usize, End> {
        let mut at = 0;
        if self.state == State::Upgrading && !bytes.is_empty() {
            let Some(head) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
            at = head + 4;
            self.upgraded(&bytes[..at], context)?;
        }

        while let Some(frame) = frame::first(&bytes[at..]).map_err(End::Protocol)? {
            at += frame.len;
            self.frame(&frame, context)?;
        }
        Ok(at)
    }

    fn upgraded(&mut self, head: &[u8], context: &mut Context<'_>) -> Result<(), End> {
        let status = head.get(9..12).and_then(|s| std::str::from_utf8(s).ok()?.parse().ok());
        if status != Some(101) {
            return Err(End::Status(status.unwrap_or(0), retry_after(head)));
        }
        if memchr::memmem::find(head, ACCEPT).is_none() {
            return Err(End::Protocol("the answer's Sec-WebSocket-Accept is wrong"));
        }

        self.state = State::Subscribing;
        if context.plan.raw {
            self.ready(context);
            return Ok(());
        }

        let mut frames = Vec::new();
        self.unconfirmed = 0;
        for channel in context.plan.topology.to_subscribe(self.index, &context.plan.tokens) {
            let text = serde_json::json!({"type": "subscribe", "channel": channel}).to_string();
            frame::write(&mut frames, frame::TEXT, text.as_bytes());
            self.unconfirmed += 1;
        }

        match &mut self.link {
            Some(link) if !frames.is_empty() => Ok(link.send(&frames)?),
            _ => Ok(()),
        }
    }

    fn frame(&mut self, frame: &Frame<'_>, context: &mut Context<'_>) -> Result<(), End> {
        match frame.opcode {
            frame::TEXT => match context.plan.events.find(frame.payload) {
                Some(event) => {
                    self.event(event, context);
                    Ok(())
                }
                None => self.message(frame.payload, context),
            },
            frame::PING => {
                let mut pong = Vec::with_capacity(frame.payload.len() + 6);
                frame::write(&mut pong, frame::PONG, frame.payload);
                self.link.as_mut().map_or(Ok(()), |link| Ok(link.send(&pong)?))
            }
            frame::CLOSE => Err(match frame.payload.split_first_chunk::<2>() {
                Some((code, reason)) => {
                    let reason = String::from_utf8_lossy(reason).into_owned();
                    End::Close(u16::from_be_bytes(*code), reason)
                }
                None => End::Close(1005, String::new()),
            }),
            _ => Ok(()),
        }
    }

    fn event(&mut self, event: Event, context: &mut Context<'_>) {
        let Context { plan, tally, .. } = context;
        let channel = Some(event.channel as usize);
        let sequence = if channel == plan.topology.shared_of(self.index) {
            &mut self.shared
        } else if channel == plan.topology.own_of(self.index) {
            &mut self.own
        } else {
            tally.counts.stray += 1;
            return;
        };

        if !sequence.see(event.sequence, &mut tally.counts) {
            return;
        }
        context.window.delivered(&context.shared.window, event.channel, event.sequence);

        if let Some(arrivals) = context.shared.arrivals.get() {
            arrivals.note(event.channel, event.sequence, context.now);
        }

        let phase = context.phases.iter().filter(|begin| **begin <= event.intended).count();
        if phase > 0 {
            tally.measured += 1;
            // The latency in a storm is that of the bystanders.
            if plan.topology.bystanders.is_none() || plan.topology.is_bystander(self.index) {
                let latency = context.now.saturating_sub(event.intended);
                record(&mut tally.latency[phase - 1], latency);
            }
        }
    }

    /// The server's own messages are few, so they are parsed.
    fn message(&mut self, payload: &[u8], context: &mut Context<'_>) -> Result<(), End> {
        let Ok(message) = serde_json::from_slice::<Value>(payload) else {
            return Err(End::Protocol("the server sent what is not JSON"));
        };

        let text = |name: &str| message["data"][name].as_str().unwrap_or_default().to_owned();
        match message["type"].as_str().unwrap_or_default() {
            "connected" => self.connected = true,
            "subscribed" => self.unconfirmed = self.unconfirmed.saturating_sub(1),
            "error" => {
                return Err(End::Refused(format!("{}: {}", text("code"), text("message"))));
            }
            "reconnect" => self.hint = message["data"]["afterMs"].as_u64().map(|ms| ms as u32),
            "gap" => {
                count(&mut context.tally.gaps, text("reason"));
                let plan = context.plan;
                let named = |channel: Option<usize>| {
                    channel.is_some_and(|c| plan.topology.name(c, &plan.tokens) == text("channel"))
                };
                if named(plan.topology.shared_of(self.index)) {
                    self.shared.gap();
                }
                if named(plan.topology.own_of(self.index)) {
                    self.own.gap();
                }
            }
            _ => {}
        }

        if self.state == State::Subscribing && self.connected && self.unconfirmed == 0 {
            self.ready(context);
        }
        Ok(())
    }

    fn ready(&mut self, context: &mut Context<'_>) {
        self.state = State::Ready;
        self.attempt = 0;
        record(&mut context.tally.handshake, context.now.saturating_sub(self.began));
    }

    /// Counts, at the end of a run, what is missing behind the last event that came.
    pub fn finish(&self, plan: &Plan, last: &[u32], tally: &mut Tally) {
        let topology = &plan.topology;
        for (channel, sequence) in [
            (topology.shared_of(self.index), &self.shared),
            (topology.own_of(self.index), &self.own),
        ] {
            if let Some(last) = channel.and_then(|channel| last.get(channel)) {
                sequence.finish(*last, &mut tally.counts);
            }
        }
    }
}

/// The Retry-After header, in nanoseconds.
fn retry_after(head: &[u8]) -> Option<u64> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let seconds: u64 = value.trim().parse().ok()?;
        name.eq_ignore_ascii_case("retry-after").then_some(seconds * 1_000_000_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Window;

    fn plan() -> Plan {
        let (shared, own) = (Some(("post:{n}".to_owned(), 1)), Some("user:{user}".to_owned()));
        Plan {
            target: Target::new(&["ws://127.0.0.1/ws".to_owned()], vec![], None).unwrap(),
            tokens: Tokens::None,
            topology: Topology { shared, own, auto: true, bystanders: None, clients: 1 },
            events: Events::new(7, 150),
            raw: false,
            retry: None,
            timeout: 0,
            churn: None,
        }
    }

    /// What a server sends: the handshake, both confirmations, three events, a gap, another event.
    fn stream(plan: &Plan) -> Vec<u8> {
        let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: ".to_vec();
        bytes.extend_from_slice(ACCEPT);
        bytes.extend_from_slice(b"\r\n\r\n");

        let event =
            |channel, sequence| plan.events.compose(Event { channel, sequence, intended: 5 });
        for text in [
            br#"{"type":"connected","data":{}}"#.to_vec(),
            br#"{"type":"subscribed","data":{"channel":"post:0"}}"#.to_vec(),
            event(0, 1),
            event(1, 1),
            event(0, 2),
            br#"{"type":"gap","data":{"channel":"post:0","reason":"overflow"}}"#.to_vec(),
            event(0, 5),
        ] {
            frame::write_unmasked(&mut bytes, frame::TEXT, &text);
        }

        bytes
    }

    #[test]
    fn a_conversation_cut_at_every_byte_is_the_same() {
        let plan = plan();
        let bytes = stream(&plan);
        for cut in 0..=bytes.len() {
            let shared = Shared::new(Window::new(true, &plan.topology, 1));
            let (mut tally, mut window) = (Tally::new(), shared.window.of_thread(0));
            let phases = [1, u64::MAX, u64::MAX];
            let (tally_ref, window) = (&mut tally, &mut window);
            let mut context =
                Context { plan: &plan, shared: &shared, phases, tally: tally_ref, window, now: 9 };

            let mut client = Client::new(0);
            client.state = State::Upgrading;
            (client.shared, client.own) = (Sequence::from_the_start(), Sequence::from_the_start());

            let used = client.take(&bytes[..cut], &mut context).unwrap();
            client.take(&bytes[used..], &mut context).unwrap();
            assert_eq!(client.state, State::Ready, "cut at {cut}");

            client.finish(&plan, &[6, 1], &mut tally);
            let counts = &tally.counts;
            assert_eq!((counts.delivered, counts.declared, counts.missing), (4, 2, 1), "{cut}");
            assert_eq!((tally.latency[0].len(), tally.gaps["overflow"]), (4, 1));
        }
    }

    #[test]
    fn another_users_event_is_stray() {
        let plan = plan();
        let shared = Shared::new(Window::new(false, &plan.topology, 1));
        let (mut tally, mut window) = (Tally::new(), shared.window.of_thread(0));
        let (phases, tally_ref, window) = ([u64::MAX; 3], &mut tally, &mut window);
        let mut context =
            Context { plan: &plan, shared: &shared, phases, tally: tally_ref, window, now: 9 };

        let event = Event { channel: 2, sequence: 1, intended: 5 };
        Client::new(0).event(event, &mut context);
        assert_eq!((tally.counts.stray, tally.counts.delivered), (1, 0));
    }

    #[test]
    fn what_may_be_tried_again_is_what_the_protocol_says() {
        let head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n\r\n";
        assert_eq!(retry_after(head), Some(2_000_000_000));
        for (end, retry) in [
            (End::Status(503, None), true),
            (End::Status(401, None), false),
            (End::Close(1012, String::new()), true),
            (End::Close(4401, "expired".to_owned()), false),
            (End::Close(4409, String::new()), false),
            (End::Eof, true),
        ] {
            assert_eq!(end.may_retry(), retry, "{end:?}");
        }
    }
}
