//! All load threads together, as the scenarios use them. What one thread does is
//! `worker`'s business.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use mio::{Poll, Waker};

use crate::client::Plan;
use crate::clock;
use crate::shared::Shared;
use crate::tally::Tally;
use crate::worker::{Command, WAKE, Worker};

struct Thread {
    handle: JoinHandle<std::io::Result<Tally>>,
    commands: Sender<Command>,
    waker: Waker,
}

pub struct Fleet {
    pub plan: Arc<Plan>,
    pub shared: Arc<Shared>,
    threads: Vec<Thread>,
}

impl Fleet {
    pub fn start(plan: Arc<Plan>, shared: Arc<Shared>, threads: usize) -> Result<Self> {
        let start = |thread| -> Result<Thread> {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKE)?;
            let (commands, receiver) = channel();
            let worker = Worker::new((&plan, &shared), (thread, threads), poll, receiver);
            let handle = std::thread::Builder::new()
                .name(format!("load-{thread}"))
                .spawn(move || worker.run())?;
            Ok(Thread { handle, commands, waker })
        };

        let threads = (0..threads).map(start).collect::<Result<_>>()?;
        Ok(Fleet { plan, shared, threads })
    }

    /// Connects all clients. Answers when that began.
    pub fn open(&self, concurrency: usize) -> Result<u64> {
        let each = concurrency.div_ceil(self.threads.len());
        let began = clock::now();
        self.tell(|| Command::Open(each))?;
        Ok(began)
    }

    pub fn cut(&self) -> Result<u64> {
        let began = clock::now();
        self.tell(|| Command::Cut)?;
        Ok(began)
    }

    /// Waits until each client is ready or will never be. Answers whether all of them are ready.
    pub fn wait_ready(&self, limit: Duration, mut tell: impl FnMut(usize)) -> Result<bool> {
        let end = clock::now() + clock::nanos(limit);
        loop {
            let ready = self.shared.ready.load(Acquire);
            tell(ready);
            if ready + self.shared.over.load(Acquire) >= self.plan.topology.clients {
                return Ok(ready == self.plan.topology.clients);
            }

            if clock::now() > end {
                return Ok(false);
            }

            self.alive()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until so many events are delivered. False: none came for so long.
    pub fn wait_delivered(&self, expected: u64, quiet: Duration) -> Result<bool> {
        let mut seen = (self.shared.delivered.load(Acquire), clock::now());
        while seen.0 < expected {
            if clock::now() > seen.1 + clock::nanos(quiet) {
                return Ok(false);
            }

            self.alive()?;
            std::thread::sleep(Duration::from_millis(2));
            let delivered = self.shared.delivered.load(Relaxed);
            if delivered != seen.0 {
                seen = (delivered, clock::now());
            }
        }
        Ok(true)
    }

    pub fn stop(self, last: Vec<u32>) -> Result<Tally> {
        let last = Arc::new(last);
        self.tell(|| Command::Stop(Arc::clone(&last)))?;
        let mut total = Tally::new();
        for thread in self.threads {
            let tally = thread.handle.join().map_err(|_| anyhow!("a load thread panicked"))?;
            total.add(&tally.context("a load thread failed")?);
        }
        Ok(total)
    }

    fn alive(&self) -> Result<()> {
        if self.threads.iter().any(|thread| thread.handle.is_finished()) {
            return Err(anyhow!("a load thread ended before its time"));
        }
        Ok(())
    }

    fn tell(&self, command: impl Fn() -> Command) -> Result<()> {
        for thread in &self.threads {
            thread.commands.send(command()).map_err(|_| anyhow!("a load thread has ended"))?;
            thread.waker.wake()?;
        }
        Ok(())
    }
}
