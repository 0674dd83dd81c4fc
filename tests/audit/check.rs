//! The verdict: accepted events against received ones. Pure, so that `self_test` can try it on
//! made-up logs.
//!
//! A client claims a channel from `subscribed` on. Of each stream on that channel, every accepted
//! event arrives once and in order, or a declaration (`gap`, or `recovered` false) arrives after
//! the place where the event is missing, before the stream's next event, and no earlier than the
//! event was published.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::record::{ClientLog, Kind, Line, Manner, StreamLog, What};

/// How many cases are described in full.
const DESCRIBED: usize = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offence {
    Lost,
    /// Declared, but only after the stream's next event.
    Late,
    Doubled,
    Disorder,
    Closed,
    Foreign,
}

pub const OFFENCES: [Offence; 6] = [
    Offence::Lost,
    Offence::Late,
    Offence::Doubled,
    Offence::Disorder,
    Offence::Closed,
    Offence::Foreign,
];

/// One offence with what a reader needs to look into it.
#[derive(Debug)]
pub struct Case {
    pub offence: Offence,
    pub text: String,
}

impl Case {
    /// Whether the case may resolve itself: the client may only not have read so far.
    pub fn is_pending(&self) -> bool {
        matches!(self.offence, Offence::Lost | Offence::Closed)
    }
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub accepted: usize,
    pub refused: usize,
    pub deliveries: usize,
    /// Gap messages and answers with `recovered` false.
    pub gaps: usize,
    /// Events that were missing and declared.
    pub declared: usize,
    /// Of these the plain ones, by channel.
    pub declared_plain: BTreeMap<String, usize>,
    pub slow_closed: usize,
    pub resumed: usize,
    pub not_resumed: usize,
    pub cases: Vec<Case>,
}

impl Verdict {
    pub fn count(&self, offence: Offence) -> usize {
        self.cases.iter().filter(|c| c.offence == offence).count()
    }
}

/// Whether the gateway may close a socket, given the client, its replica and the close code.
pub type MayClose<'a> = &'a dyn Fn(&ClientLog, usize, u16) -> bool;

pub fn check(streams: &[StreamLog], clients: &[ClientLog], may_close: MayClose<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for log in streams {
        let accepted = log.published.iter().filter(|p| p.accepted).count();
        verdict.accepted += accepted;
        verdict.refused += log.published.len() - accepted;
    }

    for client in clients {
        sockets(client, may_close, &mut verdict);
        for (index, log) in streams.iter().enumerate() {
            if client.channels.contains(&log.stream.channel) {
                Follower::new(client, index, log).run(&mut verdict);
            }
        }
        foreign(client, streams, &mut verdict);
    }
    verdict
}

fn sockets(client: &ClientLog, may_close: MayClose<'_>, verdict: &mut Verdict) {
    let (mut replica, mut open) = (0, false);
    for (at, line) in client.lines.iter().enumerate() {
        match &line.what {
            What::Opened(at) => (replica, open) = (*at, true),
            What::Left => open = false,
            What::Live { recovered: Some(true), .. } => verdict.resumed += 1,
            What::Live { recovered: Some(false), .. } => {
                verdict.not_resumed += 1;
                verdict.gaps += 1;
            }
            What::Gap { .. } => verdict.gaps += 1,
            What::Closed { code, reason } => {
                open = false;
                let slow = client.manner == Manner::Slow && *code == 4410;
                verdict.slow_closed += usize::from(slow);
                if !slow && !may_close(client, replica, *code) {
                    let text = format!(
                        "{}: replica {replica} closed with {code} {reason:?} at {:.2}s\n{}",
                        client.name,
                        line.at.as_secs_f64(),
                        context(&client.lines, at, at, None)
                    );
                    verdict.cases.push(Case { offence: Offence::Closed, text });
                }
            }
            What::Event { .. } | What::Foreign(_) | What::Live { .. } => {}
            What::Hint(_) | What::Note(_) => {}
        }
    }

    if !open {
        let last = client.lines.len().saturating_sub(1);
        let lines = context(&client.lines, last, last, None);
        let text = format!("{}: never came back\n{lines}", client.name);
        verdict.cases.push(Case { offence: Offence::Closed, text });
    }
}

fn foreign(client: &ClientLog, streams: &[StreamLog], verdict: &mut Verdict) {
    for (at, line) in client.lines.iter().enumerate() {
        let wrong = match &line.what {
            What::Foreign(what) => what.clone(),
            What::Event { stream, number, position } => {
                let Some(log) = streams.get(*stream) else { continue };
                if !client.channels.contains(&log.stream.channel) {
                    format!("an event of {}", log.stream.name())
                } else if let Some(p) = log.published.get(*number)
                    && let (Some(answered), Some(came)) = (&p.position, position)
                    && answered != came
                {
                    format!("number {number} came as {came:?}, the publisher was told {answered:?}")
                } else {
                    continue;
                }
            }
            _ => continue,
        };

        let lines = context(&client.lines, at, at, None);
        let text = format!("{}: {wrong}\n{lines}", client.name);
        verdict.cases.push(Case { offence: Offence::Foreign, text });
    }
}

/// One client's reading of one stream.
struct Follower<'a> {
    client: &'a ClientLog,
    index: usize,
    log: &'a StreamLog,
    /// The next number that is claimed; `None` before the first `subscribed`.
    claim: Option<usize>,
    /// Whether this socket is subscribed to the channel.
    live: bool,
    open: bool,
    seen: HashSet<usize>,
    last: Option<usize>,
    /// The last declaration since the last event, and the line of that event.
    told: Option<Duration>,
    line: usize,
    lost: BTreeMap<usize, String>,
    late: BTreeMap<usize, String>,
}

impl<'a> Follower<'a> {
    fn new(client: &'a ClientLog, index: usize, log: &'a StreamLog) -> Self {
        let (lost, late) = (BTreeMap::new(), BTreeMap::new());
        let (claim, last, told) = (None, None, None);
        let (live, open, seen, line) = (false, false, HashSet::new(), 0);
        Self { client, index, log, claim, live, open, seen, last, told, line, lost, late }
    }

    fn run(mut self, verdict: &mut Verdict) {
        let channel = &self.log.stream.channel;
        for (at, Line { at: time, what }) in self.client.lines.iter().enumerate() {
            match what {
                What::Opened(_) => (self.open, self.live) = (true, false),
                What::Left | What::Closed { .. } => (self.open, self.live) = (false, false),
                What::Live { channel: c, resumes, recovered, position } if c == channel => {
                    if *recovered == Some(false) {
                        self.declared(*time);
                    }
                    self.begin(*time, *resumes, position.as_ref());
                }
                What::Gap { channel: c, .. } if c == channel => self.declared(*time),
                What::Event { stream, number, .. } if *stream == self.index => {
                    verdict.deliveries += 1;
                    self.event(*number, at, verdict);
                    self.line = at;
                }
                _ => {}
            }
        }

        if self.open && self.live {
            let end = self.client.lines.len();
            self.missing(self.log.published.len(), end, verdict);
        }

        for (offence, cases) in [(Offence::Lost, self.lost), (Offence::Late, self.late)] {
            verdict.cases.extend(cases.into_values().map(|text| Case { offence, text }));
        }
    }

    /// Notes a declaration. Losses that it covers were declared late, but not silent.
    fn declared(&mut self, now: Duration) {
        self.told = Some(now);
        for (number, text) in std::mem::take(&mut self.lost) {
            let before = self.log.published[number].started <= now;
            if before { &mut self.late } else { &mut self.lost }.insert(number, text);
        }
    }

    fn durable(&self) -> bool {
        self.log.stream.kind == Kind::Durable
    }

    fn begin(&mut self, time: Duration, resumes: bool, position: Option<&super::record::Position>) {
        self.live = true;
        if !self.durable() || !resumes {
            // Without a position, another replica that is a little behind may send events again.
            self.seen.clear();
            self.last = None;
        }

        if resumes && self.claim.is_some() {
            return;
        }

        let follows = |p: &super::record::Published| match (position, &p.position) {
            (Some((epoch, offset)), Some((e, o))) if epoch == e => o > offset,
            _ => p.started >= time,
        };

        // A client that subscribes anew loads its state anew, and so learns of its earlier losses:
        // late, but not in silence.
        self.declared(time);
        let published = &self.log.published;
        self.claim = Some(published.iter().position(follows).unwrap_or(published.len()));
        self.told = None;
        self.last = None;
    }

    fn event(&mut self, number: usize, at: usize, verdict: &mut Verdict) {
        let Some(published) = self.log.published.get(number) else {
            return self.say(Offence::Foreign, number, at, verdict);
        };

        if !self.live {
            self.say(Offence::Disorder, number, at, verdict);
        }
        if !self.seen.insert(number) {
            return self.say(Offence::Doubled, number, at, verdict);
        }

        if !published.accepted {
            return;
        }
        if self.last.is_some_and(|last| number < last) {
            self.lost.remove(&number);
            self.late.remove(&number);
            return self.say(Offence::Disorder, number, at, verdict);
        }

        self.last = Some(number);
        self.missing(number, at, verdict);
        self.claim = self.claim.max(Some(number + 1));
        self.told = None;
    }

    /// Accounts for the claimed events before `until` that did not arrive before line `at`.
    fn missing(&mut self, until: usize, at: usize, verdict: &mut Verdict) {
        for number in self.claim.unwrap_or(until)..until {
            let published = &self.log.published[number];
            if !published.accepted || self.seen.contains(&number) {
                continue;
            }

            if self.told.is_some_and(|told| published.started <= told) {
                verdict.declared += 1;
                if !self.durable() {
                    let channel = self.log.stream.channel.clone();
                    *verdict.declared_plain.entry(channel).or_default() += 1;
                }
            } else {
                let told = verdict.cases.len() + self.lost.len() < DESCRIBED;
                let text = told.then(|| self.describe(Offence::Lost, number, at));
                self.lost.insert(number, text.unwrap_or_default());
            }
        }
    }

    fn say(&self, offence: Offence, number: usize, at: usize, verdict: &mut Verdict) {
        verdict.cases.push(Case { offence, text: self.describe(offence, number, at) });
    }

    fn describe(&self, offence: Offence, number: usize, at: usize) -> String {
        let published = self.log.published.get(number);
        let when = published.map_or_else(String::new, |p| {
            format!(", published at {:.3}s as {:?}", p.started.as_secs_f64(), p.position)
        });
        let lines = context(&self.client.lines, self.line, at, Some(self.log));
        format!(
            "{}: {offence:?} {} number {number}{when}; the client's log around it:\n{lines}",
            self.client.name,
            self.log.stream.name()
        )
    }
}

/// The log lines around and between two lines; only those of one stream's channel, if it is given.
fn context(lines: &[Line], from: usize, to: usize, of: Option<&StreamLog>) -> String {
    let keep = |line: &&Line| match (&line.what, of) {
        (What::Live { channel, .. } | What::Gap { channel, .. }, Some(log)) => {
            *channel == log.stream.channel
        }
        _ => true,
    };

    let (from, to) = (from.saturating_sub(3), (to + 4).min(lines.len()));
    let mut shown: Vec<String> = lines[from.min(to)..to]
        .iter()
        .filter(keep)
        .map(|l| format!("      {:8.3}s {:?}", l.at.as_secs_f64(), l.what))
        .collect();

    if shown.len() > 24 {
        let left = shown.len() - 24;
        shown.splice(12..12 + left, [format!("      ... {left} lines ...")]);
    }
    shown.join("\n")
}
