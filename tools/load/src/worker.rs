//! A load thread: one readiness loop over its share of the clients. The thread opens them, brings
//! them back and cuts them off. One read buffer serves all: a client that waits owns no memory for
//! it. What a client makes of its bytes is `client`'s business.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::{Events, Poll, Token};

use crate::client::{Client, Context, End, Plan, State};
use crate::clock;
use crate::link::Link;
use crate::shared::{Shared, ThreadWindow};
use crate::tally::{Tally, count};

/// Holds the largest event that a gateway delivers, unless it is told otherwise.
const BUFFER: usize = 2 * 1024 * 1024;
const BATCH: usize = 1024;
/// The fleet's way to wake a thread for a command.
pub const WAKE: Token = Token(usize::MAX);

pub enum Command {
    /// Connects all clients, so many at once.
    Open(usize),
    /// Aborts the TCP connection of all but the bystanders.
    Cut,
    /// Ends the thread, and gives it the last sequence number of each channel.
    Stop(Arc<Vec<u32>>),
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Open,
    Churn,
}

pub struct Worker {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    poll: Poll,
    commands: Receiver<Command>,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    window: ThreadWindow,
    tally: Tally,
    /// How many may be between open and ready while all connect for the first time.
    concurrency: usize,
    unopened: usize,
    opening: usize,
    timers: BinaryHeap<Reverse<(u64, usize, Timer)>>,
    /// Attempts by their beginning, each with the client's slot. All have the same time, so the
    /// first one runs out first.
    attempts: VecDeque<(u64, usize)>,
}

impl Worker {
    pub fn new(
        (plan, shared): (&Arc<Plan>, &Arc<Shared>),
        (thread, threads): (usize, usize),
        poll: Poll,
        commands: Receiver<Command>,
    ) -> Self {
        let here = |client: &usize| plan.topology.thread_of(*client, threads) == thread;
        let indices = (0..plan.topology.clients).filter(here);

        Worker {
            plan: Arc::clone(plan),
            shared: Arc::clone(shared),
            poll,
            commands,
            clients: indices.map(Client::new).collect(),
            buffer: vec![0; BUFFER],
            window: shared.window.of_thread(thread),
            tally: Tally::new(),
            concurrency: 0,
            unopened: 0,
            opening: 0,
            timers: BinaryHeap::new(),
            attempts: VecDeque::new(),
        }
    }

    pub fn run(mut self) -> io::Result<Tally> {
        let mut events = Events::with_capacity(BATCH);
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Open(concurrency) => self.concurrency = concurrency,
                    Command::Cut => self.cut_all(),
                    Command::Stop(last) => return Ok(self.stop(&last)),
                }
            }

            self.open_more();
            self.fire_timers();

            match self.poll.poll(&mut events, Some(self.patience())) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }

            let phases = self.shared.phases();
            let before = (self.tally.counts.delivered, self.tally.measured);
            for event in &events {
                if event.token() != WAKE {
                    let slot = event.token().0;
                    self.serve(slot, event.is_readable(), event.is_writable(), phases);
                }
            }

            let delivered = self.tally.counts.delivered - before.0;
            if delivered > 0 {
                self.shared.last_delivery.fetch_max(clock::now(), Relaxed);
                self.shared.measured.fetch_add(self.tally.measured - before.1, Relaxed);
                self.shared.delivered.fetch_add(delivered, Release);
                self.window.publish(&self.shared.window);
            }
        }
    }

    fn stop(mut self, last: &[u32]) -> Tally {
        for client in &self.clients {
            if client.state == State::Ready {
                client.finish(&self.plan, last, &mut self.tally);
            }
        }
        self.tally
    }

    fn patience(&self) -> Duration {
        let now = clock::now();
        let timer = self.timers.peek().map_or(u64::MAX, |Reverse((due, ..))| *due);
        let attempt =
            self.attempts.front().map_or(u64::MAX, |(began, _)| began + self.plan.timeout);
        Duration::from_nanos(timer.min(attempt).saturating_sub(now).min(100_000_000))
    }

    fn open_more(&mut self) {
        while self.opening < self.concurrency && self.unopened < self.clients.len() {
            self.open(self.unopened);
            self.unopened += 1;
        }
    }

    fn open(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        self.tally.attempts += 1;
        self.opening += 1;
        let now = clock::now();
        client.began = now;
        client.state = State::Connecting;

        match Link::open(&self.plan.target, client.index, self.poll.registry(), Token(slot)) {
            Ok(link) => {
                client.opened(link, now, self.shared.publishing.load(Relaxed));
                self.attempts.push_back((now, slot));
            }
            Err(error) => self.ended(slot, &End::Io(error)),
        }
    }

    fn fire_timers(&mut self) {
        let now = clock::now();
        while let Some(Reverse((due, ..))) = self.timers.peek() {
            if *due > now {
                break;
            }
            if let Some(Reverse((_, slot, timer))) = self.timers.pop() {
                let state = self.clients[slot].state;
                match timer {
                    Timer::Open if state == State::Waiting => self.open(slot),
                    Timer::Churn if state == State::Ready => self.cut(slot),
                    Timer::Open | Timer::Churn => {}
                }
            }
        }

        while let Some(&(began, slot)) = self.attempts.front() {
            if began + self.plan.timeout > now {
                break;
            }
            self.attempts.pop_front();

            let client = &self.clients[slot];
            // The client may have begun another attempt since.
            if client.began == began && client.link.is_some() && client.state != State::Ready {
                self.ended(slot, &End::Timeout);
            }
        }
    }

    fn serve(&mut self, slot: usize, readable: bool, writable: bool, phases: [u64; 3]) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let before = client.state;
        let mut result = Ok(());
        if writable {
            result = client.writable(&self.plan);
        }

        if readable && result.is_ok() {
            let mut context = Context {
                plan: &self.plan,
                shared: &self.shared,
                phases,
                tally: &mut self.tally,
                window: &mut self.window,
                now: 0,
            };
            result = client.readable(&mut self.buffer, &mut context);
        }

        // One read can make a client ready and end it, too.
        if before != State::Ready && client.state == State::Ready {
            self.became_ready(slot);
        }
        if let Err(end) = result {
            self.ended(slot, &end);
        }
    }

    fn became_ready(&mut self, slot: usize) {
        self.opening -= 1;
        let now = clock::now();
        self.shared.last_ready.fetch_max(now, Relaxed);
        self.shared.ready.fetch_add(1, Release);

        if let Some((one_in, every)) = self.plan.churn
            && self.clients[slot].index.is_multiple_of(one_in)
        {
            let wait = fastrand::u64(every / 2..=every + every / 2);
            self.timers.push(Reverse((now + wait, slot, Timer::Churn)));
        }
    }

    fn ended(&mut self, slot: usize, end: &End) {
        let client = &mut self.clients[slot];
        if let Some(link) = client.link.take() {
            link.abort();
        }

        let was_ready = client.state == State::Ready;
        if was_ready {
            self.shared.ready.fetch_sub(1, Release);
            count(&mut self.tally.closes, end.kind());
        } else {
            self.opening -= 1;
        }

        match self.plan.retry.filter(|_| end.may_retry()) {
            Some(backoff) => {
                if !was_ready && !end.put_off() {
                    count(&mut self.tally.failures, end.kind());
                }
                self.tally.refusals += u64::from(end.put_off());
                let wait = backoff.wait(client.attempt, client.hint.take(), Some(end));
                client.attempt = client.attempt.saturating_add(1);
                client.state = State::Waiting;
                self.timers.push(Reverse((clock::now() + wait, slot, Timer::Open)));
            }
            None => {
                if !was_ready {
                    count(&mut self.tally.failures, end.kind());
                }
                client.state = State::Over;
                self.shared.over.fetch_add(1, Release);
            }
        }
    }

    /// Cuts off all clients but the bystanders. What connecting took before is forgotten: the
    /// figures are those of the return.
    fn cut_all(&mut self) {
        self.tally.handshake.reset();
        self.tally.attempts = 0;
        self.tally.refusals = 0;
        self.tally.failures.clear();

        for slot in 0..self.clients.len() {
            let client = &self.clients[slot];
            if client.state == State::Ready && !self.plan.topology.is_bystander(client.index) {
                self.cut(slot);
            }
        }
    }

    /// Ends a client's connection as a lost network does. The client comes back after a wait.
    fn cut(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        if let Some(link) = client.link.take() {
            link.abort();
        }
        client.state = State::Waiting;
        self.shared.ready.fetch_sub(1, Release);
        let wait = self.plan.retry.map_or(0, |backoff| backoff.wait(0, None, None));
        self.timers.push(Reverse((clock::now() + wait, slot, Timer::Open)));
    }
}
