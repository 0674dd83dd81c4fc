//! Which of several relays works: the one whose session holds an advisory lock of the database.
//!
//! A relay that hangs keeps its lock. The leader therefore shows by a heartbeat that it is alive, and
//! another relay that has watched the heartbeat stand still ends the leader's session, or leads without
//! the lock if it may not. No clock is compared with another. That two relays may both believe that they lead for a moment does no harm:
//! each has a *term*, a number that only grows, and Redis refuses calls of an earlier one.
//!
//! Not here: what the leader does (`leader`).

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;

use super::connection::{Connection, DURABLY, DatabaseError, Parameters, column};
use crate::broker::Mandate;

/// How often a relay that stands by tries to become the leader.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// How often the leader shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A leader that shows nothing for this long is taken to hang.
const HUNG: Duration = Duration::from_secs(6);

/// The lock's class: any number, which other users of advisory locks are unlikely to choose. Its object is
/// the table.
const LOCK: i32 = 0x7011_6a7e;

/// The tables of one schema, as far as they say who leads.
#[derive(Debug, Clone)]
pub(super) struct Leadership {
    schema: String,
    /// What this relay is called.
    name: String,
}

impl Leadership {
    pub(super) fn new(schema: &str, name: &str) -> Self {
        Self { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// Prepares a session that may hold the lock: a database server that cannot reach this machine any
    /// more ends it within seconds.
    pub(super) async fn prepare(&self, session: &Connection) -> Result<(), DatabaseError> {
        session
            .run(
                "LISTEN tollgate_outbox; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; \
                 SET tcp_keepalives_count = 3",
            )
            .await
    }

    /// Waits until this session holds the lock, or the one that does hangs; returns the mandate.
    pub(super) async fn acquire(&self, session: &Connection) -> Result<Mandate, DatabaseError> {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            let sql = format!(
                "SELECT pg_try_advisory_lock({LOCK}, '{}.tollgate_relay'::regclass::oid::int)",
                self.schema
            );
            if column(&session.one(&sql, &[]).await?, 0)? {
                return self.begin(session).await;
            }

            // The leader's own words are compared, whatever its clock says.
            let heartbeat = self.heartbeat(session).await?;
            match &seen {
                Some((last, since)) if *last == heartbeat => {
                    if since.elapsed() > HUNG {
                        if !self.depose(session).await? {
                            return self.begin(session).await;
                        }
                        seen = None;
                    }
                }
                Some(_) | None => seen = Some((heartbeat, Instant::now())),
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// What the leader has shown last.
    async fn heartbeat(&self, session: &Connection) -> Result<String, DatabaseError> {
        let sql =
            format!("SELECT format('%s %s', term, seen_at) FROM {}.tollgate_relay", self.schema);
        column(&session.one(&sql, &[]).await?, 0)
    }

    /// Ends the session of a leader that hangs. Returns false if that is not permitted, because the other
    /// relay has logged in as another user.
    async fn depose(&self, session: &Connection) -> Result<bool, DatabaseError> {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND classid = {LOCK} AND objid = '{}.tollgate_relay'::regclass::oid AND objsubid = 2 AND granted",
            self.schema
        );
        let ended = match session.one(&sql, &[]).await {
            Ok(row) => column::<i64>(&row, 0)?,
            Err(DatabaseError::Denied(_)) => {
                tracing::warn!(
                    "the leading relay has shown nothing for {HUNG:?}, and its session is another user's: \
                     this one leads in its place"
                );
                return Ok(false);
            }
            Err(error) => return Err(error),
        };

        if ended > 0 {
            tracing::warn!(
                "the leading relay has shown nothing for {HUNG:?}: its session was ended"
            );
        }
        Ok(true)
    }

    /// Takes a new term. It is above every earlier one, also after a failover that lost the last of
    /// them: each promotion begins a new timeline.
    async fn begin(&self, session: &Connection) -> Result<Mandate, DatabaseError> {
        let timeline = self.timeline(session).await;
        let sql = format!(
            "UPDATE {}.tollgate_relay SET term = greatest(term + 1, $1 << 32), leader = $2, \
             leader_since = clock_timestamp(), seen_at = clock_timestamp() \
             FROM (SELECT {DURABLY} OFFSET 0) AS set WHERE durably IS NOT NULL RETURNING outbox, term",
            self.schema
        );
        let parameters: Parameters<'_> = &[(&timeline, Type::INT8), (&self.name, Type::TEXT)];
        let row = session.one(&sql, parameters).await?;
        Ok(Mandate { outbox: column(&row, 0)?, term: as_term(column(&row, 1)?)? })
    }

    /// The database's timeline, or 0 where it does not tell.
    async fn timeline(&self, session: &Connection) -> i64 {
        let sql = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint";
        match session.one(sql, &[]).await {
            Ok(row) => column(&row, 0).unwrap_or_default(),
            Err(_) => 0,
        }
    }

    /// Takes a later term, if `term` is still this relay's. `None`: another relay leads. `above` is a term
    /// that was seen elsewhere.
    pub(super) async fn renew(
        &self,
        connection: &Connection,
        term: u64,
        above: u64,
    ) -> Result<Option<u64>, DatabaseError> {
        let sql = format!(
            "UPDATE {}.tollgate_relay SET term = greatest(term, $2) + 1 FROM (SELECT {DURABLY} OFFSET 0) AS set \
             WHERE term = $1 AND durably IS NOT NULL RETURNING term",
            self.schema
        );
        let (term, above) = (term.cast_signed(), above.cast_signed());
        let rows = connection.query(&sql, &[(&term, Type::INT8), (&above, Type::INT8)]).await?;
        rows.first().map(|row| as_term(column(row, 0)?)).transpose()
    }

    /// Shows that the leader is alive, until that fails.
    pub(super) async fn show_life(&self, session: &Connection) -> DatabaseError {
        let sql = format!(
            "UPDATE {}.tollgate_relay SET seen_at = clock_timestamp() WHERE leader = $1 RETURNING 1",
            self.schema
        );
        loop {
            sleep(HEARTBEAT).await;
            match session.query(&sql, &[(&self.name, Type::TEXT)]).await {
                Ok(rows) if rows.is_empty() => {
                    return DatabaseError::Said("another relay leads".to_owned());
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }
}

/// Redis compares terms as numbers of Lua, which are exact below this one.
fn as_term(term: i64) -> Result<u64, DatabaseError> {
    let exact = u64::try_from(term).ok().filter(|term| *term < 1 << 53);
    exact.ok_or_else(|| DatabaseError::Said(format!("the term {term} cannot be used")))
}
