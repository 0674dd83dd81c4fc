//! The shop's API: processes that sell, each purchase and its announcement in one transaction, and that die;
//! and what it answers to a device that asks.
//!
//! Not here: the announcement's way to the devices. Nothing in this file speaks to Redis.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tollgate_support::postgres::{APPLICATION, DATABASE, connect};

use super::records::{Fate, Purchase};
use crate::record::{Clock, Shared, shared};

/// The table, which the application owns in the sense that matters: it writes and reads it.
pub const TABLE: &str = "CREATE TABLE purchases (post bigint PRIMARY KEY, user_id int NOT NULL); \
                         GRANT SELECT, INSERT ON purchases TO web";

const PROCESSES: usize = 4;
/// How long a database may take before an API gives up on it.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);
/// Of so many purchases one ends badly, while processes die.
const ONE_IN: usize = 3;

/// How a process goes about the end of its transaction.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Commits,
    RollsBack,
    /// Dies before COMMIT.
    DiesBefore,
    /// Sends COMMIT and dies.
    DiesIn,
    /// Has the answer to COMMIT, and dies before it does anything else.
    DiesAfter,
}

/// What all processes of the API share.
pub struct Api {
    clock: Clock,
    /// Where the primary listens now.
    pub primary: AtomicU64,
    purchases: Shared<Vec<Purchase>>,
    users: usize,
    /// How many are sold in any case.
    quota: usize,
    pause: Duration,
    /// Whether the faults are over: the rest of the quota is sold, and that is the end.
    pub closing: AtomicBool,
    /// Whether processes die.
    pub dies: AtomicBool,
    pub deaths: AtomicUsize,
}

/// A connection to the database, as a process has it.
struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Session {
    /// The process is gone: its connection ends without another word.
    fn dies(self) {
        self.driver.abort();
    }
}

impl Api {
    pub fn new(
        clock: Clock,
        primary: u16,
        users: usize,
        quota: usize,
        pause: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            primary: AtomicU64::new(primary.into()),
            purchases: shared(Vec::new()),
            users,
            quota,
            pause,
            closing: AtomicBool::new(false),
            dies: AtomicBool::new(false),
            deaths: AtomicUsize::new(0),
        })
    }

    pub fn purchases(&self) -> Vec<Purchase> {
        self.purchases.lock().clone()
    }

    /// How many are known to be committed.
    pub fn sold(&self) -> usize {
        self.purchases.lock().iter().filter(|purchase| is_sold(purchase)).count()
    }

    /// Starts to sell. The tasks end when the faults are over and the quota is sold.
    pub fn open(self: &Arc<Self>) -> JoinSet<()> {
        let mut processes = JoinSet::new();
        for _ in 0..PROCESSES {
            processes.spawn(Arc::clone(self).run());
        }
        processes
    }

    async fn run(self: Arc<Self>) {
        let mut session = None;
        loop {
            let closing = self.closing.load(Ordering::Relaxed);
            if closing && self.sold() >= self.quota {
                return;
            }
            session = match session {
                None => self.connect().await,
                Some(session) => self.sell(session, self.ending()).await,
            };
            if session.is_none() {
                sleep(AGAIN).await;
            } else {
                sleep(self.pause).await;
            }
        }
    }

    /// Sells one post to each user, in any case.
    pub async fn sell_to_all(&self) {
        let before = self.purchases.lock().len();
        let mut session = None;
        while self.purchases.lock()[before..].iter().filter(|p| is_sold(p)).count() < self.users {
            session = match session {
                None => self.connect().await,
                Some(session) => self.sell(session, Ending::Commits).await,
            };
        }
    }

    async fn connect(&self) -> Option<Session> {
        let port = u16::try_from(self.primary.load(Ordering::Relaxed)).unwrap();
        let connected = timeout(PATIENCE, connect(port, APPLICATION, DATABASE)).await;
        let (client, driver) = connected.ok()?.ok()?;
        Some(Session { client, driver })
    }

    fn ending(&self) -> Ending {
        if !self.dies.load(Ordering::Relaxed) || fastrand::usize(..ONE_IN) > 0 {
            return Ending::Commits;
        }
        self.deaths.fetch_add(1, Ordering::Relaxed);
        let all = [Ending::RollsBack, Ending::DiesBefore, Ending::DiesIn, Ending::DiesAfter];
        all[fastrand::usize(..all.len())]
    }

    /// Sells the next post. Returns the session, if it lives.
    async fn sell(&self, session: Session, ending: Ending) -> Option<Session> {
        let (number, user) = {
            let mut purchases = self.purchases.lock();
            let (number, began) = (purchases.len(), self.clock.now());
            let user = number % self.users;
            purchases.push(Purchase { user, began, fate: Fate::RolledBack });
            (number, user)
        };
        let channel = format!("user:{}", user_name(user));
        // As the auditor's clients expect it: channel, sender, number.
        let event = json!({"c": channel, "s": user, "n": number});
        let sql = format!(
            "BEGIN; INSERT INTO purchases VALUES ({number}, {user}); \
             SELECT tollgate_publish('{channel}', '{event}')"
        );
        if !does(session.client.batch_execute(&sql)).await {
            return None;
        }

        match ending {
            Ending::RollsBack => {
                return does(session.client.batch_execute("ROLLBACK")).await.then_some(session);
            }
            Ending::DiesBefore => {
                session.dies();
                return None;
            }
            Ending::DiesIn => {
                self.note(number, Fate::Unknown);
                let soon = Duration::from_micros(fastrand::u64(..2000));
                let _ = timeout(soon, session.client.batch_execute("COMMIT")).await;
                session.dies();
                return None;
            }
            Ending::Commits | Ending::DiesAfter => {}
        }

        self.note(number, Fate::Unknown);
        if !does(session.client.batch_execute("COMMIT")).await {
            return None;
        }
        self.note(number, Fate::Committed(self.clock.now()));
        match ending {
            Ending::DiesAfter => {
                session.dies();
                None
            }
            _ => Some(session),
        }
    }

    fn note(&self, number: usize, fate: Fate) {
        self.purchases.lock()[number].fate = fate;
    }

    /// What a user has bought, as the primary says now; nothing when it does not answer.
    pub async fn ask(&self, user: usize) -> Option<BTreeSet<usize>> {
        let session = self.connect().await?;
        let sql = "SELECT post FROM purchases WHERE user_id = $1";
        let user = i32::try_from(user).unwrap();
        let rows = timeout(PATIENCE, session.client.query(sql, &[&user])).await.ok()?.ok()?;
        let number = |row: &tokio_postgres::Row| usize::try_from(row.get::<_, i64>(0)).unwrap();
        Some(rows.iter().map(number).collect())
    }
}

fn is_sold(purchase: &Purchase) -> bool {
    matches!(purchase.fate, Fate::Committed(_))
}

async fn does(work: impl Future<Output = Result<(), tokio_postgres::Error>>) -> bool {
    timeout(PATIENCE, work).await.is_ok_and(|done| done.is_ok())
}

/// What a user is called.
pub fn user_name(user: usize) -> String {
    format!("u{}", user + 1)
}
