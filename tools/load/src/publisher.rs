//! The publishing thread: when each publication is due, by a clock (open loop) or by completed
//! deliveries (closed loop). A late publication carries the time at which it was due, so that a
//! publisher that is held up does not hide a server that is (coordinated omission). Where
//! publications go is `sink`'s business.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};

use crate::client::Plan;
use crate::clock;
use crate::event::Event;
use crate::shared::Shared;
use crate::sink::{Publication, Sink, SinkConfig};

/// The most publications in one round trip.
const BATCH: u64 = 256;
/// A closed loop in which nothing completes for so long has lost something.
const STALL: u64 = 10_000_000_000;

#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Publications a second.
    Rate(f64),
    /// Publications under way.
    Window(u64),
}

#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// Nanoseconds after the warm-up.
    Duration(u64),
    /// Publications after the warm-up.
    Messages(u64),
    /// Until `Publishing::finish` is called.
    Stopped,
}

pub struct Schedule {
    pub pace: Pace,
    pub until: Until,
    pub begin: u64,
    /// When the warm-up ends and phase 1 begins.
    pub measured_from: u64,
    /// The channels' numbers, taken in turn.
    pub channels: std::ops::Range<usize>,
}

/// What a publisher has done.
pub struct Published {
    /// The last sequence number on each channel of the run.
    pub last: Vec<u32>,
    pub measured: u64,
    pub measured_deliveries: u64,
    pub deliveries: u64,
    pub stalled: bool,
    /// How late the latest publication was sent, in nanoseconds.
    pub latest: u64,
}

pub struct Publisher {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    sink: Sink,
    schedule: Schedule,
    stop: Arc<AtomicBool>,
    published: Published,
}

/// A publisher at work.
pub struct Publishing {
    handle: JoinHandle<Result<Published>>,
    stop: Arc<AtomicBool>,
}

impl Publishing {
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the publisher's end, and ends it if it publishes until it is stopped.
    pub fn finish(self) -> Result<Published> {
        self.stop.store(true, Ordering::Release);
        self.join()
    }

    pub fn join(self) -> Result<Published> {
        self.handle.join().map_err(|_| anyhow!("the publisher panicked"))?
    }
}

impl Publisher {
    pub fn start(
        plan: &Arc<Plan>,
        shared: &Arc<Shared>,
        sink: &SinkConfig,
        schedule: Schedule,
    ) -> Result<Publishing> {
        let sink = Sink::open(sink)?;
        let stop = Arc::new(AtomicBool::new(false));

        let published = Published {
            last: vec![0; plan.topology.channels()],
            measured: 0,
            measured_deliveries: 0,
            deliveries: 0,
            stalled: false,
            latest: 0,
        };

        shared.publishing.store(true, Ordering::Release);
        let (plan, shared) = (Arc::clone(plan), Arc::clone(shared));
        let flag = Arc::clone(&stop);
        let publisher = Publisher { plan, shared, sink, schedule, stop, published };

        let handle = std::thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(move || publisher.run())?;
        Ok(Publishing { handle, stop: flag })
    }

    fn run(mut self) -> Result<Published> {
        clock::sharpen_sleeps();
        self.shared.window.publish_from_here();
        let Schedule { begin, measured_from, .. } = self.schedule;
        clock::park_until(begin);

        let mut sent = 0u64;
        let mut progress = (0, clock::now());
        let mut batch = Vec::new();
        loop {
            let now = clock::now();
            if self.ended(now, measured_from) {
                return Ok(self.published);
            }

            let due = match self.schedule.pace {
                Pace::Rate(rate) => (clock::seconds(now.saturating_sub(begin)) * rate) as u64 + 1,
                Pace::Window(window) => self.shared.window.completed() + window,
            };

            // Nothing is due yet.
            if due <= sent {
                match self.schedule.pace {
                    Pace::Rate(rate) => {
                        clock::park_until(begin + (sent as f64 / rate * 1e9) as u64)
                    }
                    Pace::Window(_) => {
                        let completed = self.shared.window.completed();
                        if completed != progress.0 {
                            progress = (completed, now);
                        } else if now > progress.1 + STALL {
                            self.published.stalled = true;
                            return Ok(self.published);
                        }
                        clock::park_until(now + 100_000_000);
                    }
                }
                continue;
            }

            batch.clear();
            let full = due.min(sent + BATCH);
            while sent < full {
                let intended = match self.schedule.pace {
                    Pace::Rate(rate) => begin + (sent as f64 / rate * 1e9) as u64,
                    Pace::Window(_) => clock::now(),
                };
                let measured = intended >= measured_from;
                if measured && self.enough() {
                    break;
                }
                batch.push(self.next(sent, intended, measured));
                self.published.latest = self.published.latest.max(now.saturating_sub(intended));
                sent += 1;
            }

            self.sink.publish(&batch)?;
        }
    }

    fn next(&mut self, number: u64, intended: u64, measured: bool) -> Publication {
        let channels = &self.schedule.channels;
        let channel = channels.start + (number % channels.len() as u64) as usize;
        let sequence = self.published.last[channel] + 1;
        self.published.last[channel] = sequence;

        let subscribers = self.plan.topology.subscribers(channel) as u64;
        self.published.deliveries += subscribers;
        if measured {
            self.published.measured += 1;
            self.published.measured_deliveries += subscribers;
        }

        let event = Event { channel: channel as u32, sequence, intended };
        let payload = self.plan.events.compose(event);
        Publication { channel: self.plan.topology.name(channel, &self.plan.tokens), payload }
    }

    fn enough(&self) -> bool {
        matches!(self.schedule.until, Until::Messages(n) if self.published.measured >= n)
    }

    fn ended(&self, now: u64, measured_from: u64) -> bool {
        match self.schedule.until {
            Until::Duration(nanos) => now >= measured_from + nanos,
            Until::Messages(_) => self.enough(),
            Until::Stopped => self.stop.load(Ordering::Acquire),
        }
    }
}
