//! The application: connections that commit rows, each in a thread. When a row reaches its sockets is
//! found out elsewhere (`arrivals`).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use postgres::Client;

use super::postgres::Postgres;
use super::rows::Lane;
use crate::client::Plan;
use crate::clock;

/// Rows of a transaction where many are committed.
const TOGETHER: usize = 50;

/// How a committer decides when the next row is due.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Rows a second of all committers, each in its own transaction, from then on until
    /// they are stopped.
    Rate { rate: f64, begin: u64 },
    /// So many rows in all.
    Rows(usize),
    /// As long as no more than so many rows are committed and not marked.
    Ahead(u64),
}

/// A row that was committed.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    /// The heard channel's number, and the event's on it.
    pub heard: Option<(u32, u32)>,
    /// When COMMIT was sent, and when it had returned.
    pub began: u64,
    pub returned: u64,
}

/// What committers and the one who watches the relay tell each other.
#[derive(Default)]
pub struct Meter {
    pub committed: AtomicU64,
    pub marked: AtomicU64,
    stop: AtomicBool,
}

/// What a committer leaves behind.
type Done = (Lane, Vec<Committed>);

/// Committers at work.
pub struct Committing {
    threads: Vec<JoinHandle<Result<Done>>>,
    pub meter: Arc<Meter>,
}

struct Committer {
    client: Client,
    lane: Lane,
    plan: Arc<Plan>,
    meter: Arc<Meter>,
    rows: Vec<Committed>,
}

impl Committing {
    pub fn start(
        postgres: &Postgres,
        plan: &Arc<Plan>,
        lanes: Vec<Lane>,
        pace: Pace,
    ) -> Result<Self> {
        let meter = Arc::new(Meter::default());
        let count = lanes.len();
        let mut threads = Vec::new();
        for (number, lane) in lanes.into_iter().enumerate() {
            let client = postgres.connect()?;
            let (plan, meter) = (Arc::clone(plan), Arc::clone(&meter));
            let mut committer = Committer { client, lane, plan, meter, rows: Vec::new() };
            let run = move || {
                match pace {
                    Pace::Rate { rate, begin } => {
                        committer.on_time((number, count), rate, begin)?
                    }
                    Pace::Rows(rows) => {
                        let mine = rows / count + usize::from(number < rows % count);
                        committer.all(mine)?;
                    }
                    Pace::Ahead(most) => committer.ahead(most)?,
                }
                Ok((committer.lane, committer.rows))
            };
            threads.push(std::thread::Builder::new().name("committer".to_owned()).spawn(run)?);
        }
        Ok(Committing { threads, meter })
    }

    /// Ends those that have no end of their own, and waits for all.
    pub fn finish(self) -> Result<(Vec<Lane>, Vec<Committed>)> {
        self.meter.stop.store(true, std::sync::atomic::Ordering::Release);
        self.join()
    }

    pub fn join(self) -> Result<(Vec<Lane>, Vec<Committed>)> {
        let (mut lanes, mut rows) = (Vec::new(), Vec::new());
        for thread in self.threads {
            let (lane, committed) =
                thread.join().map_err(|_| anyhow!("a committer panicked"))??;
            lanes.push(lane);
            rows.extend(committed);
        }
        Ok((lanes, rows))
    }
}

impl Committer {
    fn on_time(&mut self, (number, count): (usize, usize), rate: f64, begin: u64) -> Result<()> {
        clock::sharpen_sleeps();
        let publish = self.client.prepare("SELECT tollgate_publish($1, $2::text::json)")?;
        let mut sent = 0;
        while !self.meter.stop.load(Acquire) {
            let due = begin + ((sent * count + number) as f64 / rate * 1e9) as u64;
            if due > clock::now() {
                clock::park_until(due.min(clock::now() + 100_000_000));
                continue;
            }

            let row = self.lane.row(&self.plan.events, due);
            let mut transaction = self.client.transaction()?;
            transaction.execute(&publish, &[&row.channel, &row.event])?;
            let began = clock::now();
            transaction.commit()?;
            self.rows.push(Committed { heard: row.heard, began, returned: clock::now() });
            self.meter.committed.fetch_add(1, AcqRel);
            sent += 1;
        }
        Ok(())
    }

    fn all(&mut self, rows: usize) -> Result<()> {
        let mut left = rows;
        while left > 0 {
            let now = left.min(TOGETHER);
            self.together(now)?;
            left -= now;
        }
        Ok(())
    }

    fn ahead(&mut self, most: u64) -> Result<()> {
        while !self.meter.stop.load(Acquire) {
            let waiting =
                self.meter.committed.load(Acquire).saturating_sub(self.meter.marked.load(Acquire));
            if waiting >= most {
                std::thread::sleep(Duration::from_millis(1));
            } else {
                self.together(TOGETHER)?;
            }
        }
        Ok(())
    }

    /// Commits several rows in one transaction.
    fn together(&mut self, count: usize) -> Result<()> {
        let now = clock::now();
        let rows: Vec<_> = (0..count).map(|_| self.lane.row(&self.plan.events, now)).collect();
        let channels: Vec<_> = rows.iter().map(|row| &*row.channel).collect();
        let events: Vec<_> = rows.iter().map(|row| &*row.event).collect();
        let sql = "SELECT tollgate_publish(channel, event::json) FROM unnest($1::text[], $2::text[]) AS r(channel, event)";

        let began = clock::now();
        self.client.execute(sql, &[&channels, &events])?;
        let returned = clock::now();
        self.rows.extend(rows.iter().map(|row| Committed { heard: row.heard, began, returned }));
        self.meter.committed.fetch_add(count as u64, AcqRel);
        Ok(())
    }
}
