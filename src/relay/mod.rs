//! `tollgate relay`: publishes what an application has written into the outbox in its own transaction.
//!
//! A purchase that is committed is announced, once, and one that is rolled back never is. From below:
//! `address` and `connection` reach PostgreSQL; `schema` is what it has to hold; `outbox` are its rows;
//! `batch` says what is to be done with them; `leadership` chooses one relay of many; `leader` works.
//! Not here: how Redis guards that a row is published once (`broker/redis/rows`).

mod address;
mod batch;
mod connection;
mod health;
mod leader;
mod leadership;
mod outbox;
mod parts;
pub(crate) mod schema;
mod set_aside;
mod status;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(crate) use address::Address;
pub(crate) use batch::DeadReason;
pub(crate) use connection::{Connection, Database, DatabaseError};
pub(crate) use health::Shown;
use leader::{Leader, Stopped};
use leadership::Leadership;
pub(crate) use outbox::Outbox;
use parts::Parts;
pub(crate) use parts::{RetainedOf, Settings};
pub(crate) use status::{Status, status};

use crate::broker::redis::RedisBroker;
use crate::lifecycle::{Lifecycle, Phase};
use crate::logging;
use crate::metrics;

/// Waits between two attempts to reach the database: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How often a schema that lacks something is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// One relay, which leads or stands by.
pub(crate) struct Relay {
    parts: Parts,
    /// For the lock and for LISTEN.
    session: Database,
}

impl Relay {
    pub(crate) fn new(
        settings: Settings,
        (work, session): (Database, Database),
        broker: Arc<RedisBroker>,
        retained: RetainedOf,
        lifecycle: Lifecycle,
    ) -> Self {
        let parts = Parts {
            outbox: Outbox::new(&settings.schema),
            leadership: Leadership::new(&settings.schema, &settings.name),
            health: Arc::default(),
            settings,
            work,
            broker,
            retained,
            lifecycle,
        };
        Self { parts, session }
    }

    /// What probes are shown.
    pub(crate) fn health(&self) -> Arc<Shown> {
        Arc::clone(&self.parts.health)
    }

    /// Leads or stands by until the process ends.
    pub(crate) async fn run(self) {
        let mut wait = FIRST_WAIT;
        while self.parts.lifecycle.phase() == Phase::Running {
            let began = Instant::now();
            let stopped = self.serve().await;
            if began.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            self.parts.health.ended();
            match stopped {
                Stopped::Asked => return,
                Stopped::Deposed => tracing::warn!("another relay leads: this one stands by"),
                Stopped::Database(error) => self.failed(&error),
            }

            tokio::select! {
                () = sleep(wait) => {}
                () = self.parts.lifecycle.wait_for(Phase::Settling) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn failed(&self, error: &DatabaseError) {
        metrics::relay::failed("postgres");
        self.parts.health.failed(error.to_string());
        let error = error.to_string();
        logging::repeated(("relay", "postgres"), &error.clone(), move |repeated| {
            tracing::warn!(error, repeated, "the relay has no database now; rows wait");
        });
    }

    /// One session: connect, look at the schema, stand by, lead.
    async fn serve(&self) -> Stopped {
        let session = match self.begin().await {
            Ok(session) => session,
            Err(error) => return Stopped::Database(error),
        };

        let acquired = tokio::select! {
            acquired = self.parts.leadership.acquire(&session) => acquired,
            () = self.parts.lifecycle.wait_for(Phase::Settling) => return Stopped::Asked,
        };
        let mandate = match acquired {
            Ok(mandate) => mandate,
            Err(error) => return Stopped::Database(error),
        };
        self.parts.health.leads(mandate.term);
        tracing::info!(mandate.term, mandate.outbox, "this relay leads");

        let leader = match Leader::begin(&self.parts, &session, mandate).await {
            Ok(leader) => leader,
            Err(error) => return Stopped::Database(error),
        };
        tokio::select! {
            stopped = leader.run() => stopped,
            error = self.parts.leadership.show_life(&session) => Stopped::Database(error),
        }
    }

    /// Opens a session on a database that has what is needed.
    async fn begin(&self) -> Result<Connection, DatabaseError> {
        loop {
            let session = self.session.connect().await?;
            let missing = schema::missing(&session, &self.parts.settings.schema).await?;
            let usable = missing.is_empty();
            for what in &missing {
                let what = what.clone();
                logging::repeated(("relay", "schema"), &what.clone(), move |repeated| {
                    tracing::error!(repeated, "the relay cannot work: {what}");
                });
            }
            self.parts.health.checked(missing);
            self.parts.health.connected();
            if usable {
                self.parts.leadership.prepare(&session).await?;
                tracing::info!(servers = self.session.servers(), "connected to PostgreSQL");
                return Ok(session);
            }

            // A standby is no place to stay: another host may take writes by now.
            drop(session);
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = self.parts.lifecycle.wait_for(Phase::Settling) => {
                    return Err(DatabaseError::Said("the process ends".to_owned()));
                }
            }
        }
    }
}
