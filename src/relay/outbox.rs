//! The outbox in PostgreSQL: reading rows that wait, marking what was published, burying what never can
//! be, deleting what is old.
//!
//! Not here: publishing, and who may do all this (`leadership`). Invariant: rows are found by their state,
//! never behind a cursor, because a transaction that commits late brings lower ids than have been seen.
//!
//! How many rows wait changes faster than the planner's statistics, which mostly say none. What depends on
//! them reads a whole backlog for each batch: hence `query_by_index`, and `WAITS`, where rows are looked up
//! by their ids, which does not tell the planner about the index of those that wait.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::connection::{Connection, DURABLY, DatabaseError, Parameters, column};
use crate::broker::Said;

/// How many old rows are deleted at once.
const PURGED_AT_ONCE: i64 = 5000;

/// `published_at IS NULL`, in words that match no partial index.
const WAITS: &str = "num_nulls(o.published_at) = 1";

/// Rows are counted up to here.
pub(super) const COUNTED: i64 = 1_000_000;

/// A value below so many bytes is not stored apart from its row, and never long.
const INLINE: i64 = 2000;

/// How many times its size on disk such a value counts. It may be a hundred times as large, but seldom is.
const PACKED_AT_MOST: i64 = 8;

/// A row that waits.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) id: i64,
    pub(super) uuid: String,
    pub(super) channel: String,
    /// The event; `None` if it is larger than the limit.
    pub(super) payload: Option<String>,
    pub(super) bytes: i64,
    pub(super) key: Option<String>,
    pub(super) ttl: Option<i32>,
    pub(super) maxlen: Option<i32>,
}

impl Pending {
    /// What tells the row from all others, for the guard in Redis.
    pub(super) fn identity(&self, outbox: &str) -> String {
        format!("{outbox}:{}:{}", self.id, self.uuid)
    }
}

/// What is read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) rows: usize,
    /// Bytes of all events; at least one row is read.
    pub(super) bytes: usize,
    /// Larger events are not read.
    pub(super) event_bytes: usize,
}

/// A row that was published, and where.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) id: i64,
    pub(super) offset: i64,
    pub(super) epoch: String,
}

/// A row that can never be published, and why.
#[derive(Debug, Clone)]
pub(super) struct Dead {
    pub(super) id: i64,
    pub(super) reason: &'static str,
    pub(super) explanation: Said,
}

/// How the outbox stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Counts {
    /// Rows that wait, up to a million, as the dead ones.
    pub(crate) pending: i64,
    /// The age of the oldest of them, in seconds.
    pub(crate) oldest: f64,
    pub(crate) dead: i64,
}

/// What became of dead rows that were to be put back.
#[derive(Debug)]
pub(crate) struct Retried {
    pub(crate) back: i64,
    /// Their key is used already.
    pub(crate) stay: i64,
    /// No dead row has these ids.
    pub(crate) unknown: Vec<i64>,
}

/// The tables of one schema.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    schema: String,
}

impl Outbox {
    /// `schema` is a plain identifier.
    pub(crate) fn new(schema: &str) -> Self {
        Self { schema: schema.to_owned() }
    }

    /// Reads rows that wait, in the order of their ids, but none of these channels.
    pub(super) async fn read(
        &self,
        connection: &Connection,
        bounds: Bounds,
        without: &[String],
    ) -> Result<Vec<Pending>, DatabaseError> {
        // How large an event is, is known only when it is unpacked, which takes as long as the event is large: so
        // rows are first taken by what they have on disk. What is packed may be much larger. OFFSET has the
        // planner unpack it once.
        let sql = format!(
            "SELECT id, uuid::text, left(channel, 256), CASE WHEN bytes <= $3 THEN payload::text END, bytes, \
               left(key, 257), ttl, maxlen \
             FROM (SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS before \
               FROM (SELECT *, CASE WHEN packed > $3 THEN packed ELSE octet_length(payload::text) END::bigint AS bytes \
                 FROM (SELECT *, sum(weight) OVER (ORDER BY id) - weight AS before_it \
                   FROM (SELECT *, more + CASE WHEN packed < {INLINE} THEN packed ELSE packed * {PACKED_AT_MOST} END \
                       AS weight \
                     FROM (SELECT *, pg_column_size(payload)::bigint AS packed, \
                         octet_length(channel) + coalesce(octet_length(key), 0) AS more \
                       FROM {}.tollgate_outbox \
                       WHERE published_at IS NULL AND channel NOT IN (SELECT unnest($4::text[])) \
                       ORDER BY id LIMIT $1) AS waiting) AS weighed) AS summed \
                 WHERE before_it < $2 OFFSET 0) AS unpacked) AS taken \
             WHERE before < $2 ORDER BY id",
            self.schema
        );
        let (rows, bytes, event) =
            (bounds.rows as i64, bounds.bytes as i64, bounds.event_bytes as i64);
        let parameters: Parameters<'_> = &[
            (&rows, Type::INT8),
            (&bytes, Type::INT8),
            (&event, Type::INT8),
            (&without, Type::TEXT_ARRAY),
        ];
        let rows = connection.query_by_index(&sql, parameters).await?;

        rows.iter()
            .map(|row| {
                Ok(Pending {
                    id: column(row, 0)?,
                    uuid: column(row, 1)?,
                    channel: column(row, 2)?,
                    payload: column(row, 3)?,
                    bytes: column(row, 4)?,
                    key: column(row, 5)?,
                    ttl: column(row, 6)?,
                    maxlen: column(row, 7)?,
                })
            })
            .collect()
    }

    /// Marks rows as published. Returns for each how long it waited, in seconds; `None` if another relay
    /// leads. Then nothing is marked, and their guard must not end: the other one may be about to publish them.
    pub(super) async fn mark(
        &self,
        connection: &Connection,
        term: u64,
        marks: &[Mark],
    ) -> Result<Option<Vec<f64>>, DatabaseError> {
        let sql = format!(
            "WITH {mine}, \
               given AS (SELECT * FROM unnest($2::bigint[], $3::bigint[], $4::text[]) AS g(id, at, epoch)), \
               marked AS (UPDATE {0}.tollgate_outbox AS o \
                 SET published_at = clock_timestamp(), \"offset\" = given.at, epoch = given.epoch \
                 FROM given CROSS JOIN mine WHERE o.id = given.id AND {WAITS} \
                 RETURNING extract(epoch FROM o.published_at - o.created_at)::float8 AS waited) \
             SELECT EXISTS (SELECT FROM mine), ARRAY(SELECT waited FROM marked)",
            self.schema,
            mine = self.mine()
        );
        let term = term.cast_signed();
        let ids: Vec<_> = marks.iter().map(|mark| mark.id).collect();
        let offsets: Vec<_> = marks.iter().map(|mark| mark.offset).collect();
        let epochs: Vec<_> = marks.iter().map(|mark| &*mark.epoch).collect();
        let parameters: Parameters<'_> = &[
            (&term, Type::INT8),
            (&ids, Type::INT8_ARRAY),
            (&offsets, Type::INT8_ARRAY),
            (&epochs, Type::TEXT_ARRAY),
        ];
        let row = connection.one_by_index(&sql, parameters).await?;
        Ok(if column(&row, 0)? { Some(column(&row, 1)?) } else { None })
    }

    /// Moves rows to the dead ones. Returns false if another relay leads; then nothing is moved.
    pub(super) async fn bury(
        &self,
        connection: &Connection,
        term: u64,
        dead: &[Dead],
    ) -> Result<bool, DatabaseError> {
        let columns = "id, uuid, channel, payload, key, ttl, maxlen, traceparent, created_at";
        let sql = format!(
            "WITH {mine}, \
               given AS (SELECT * FROM unnest($2::bigint[], $3::text[], $4::text[]) \
                 AS g(given_id, reason, explanation)), \
               gone AS (DELETE FROM {0}.tollgate_outbox AS o USING given CROSS JOIN mine \
                 WHERE o.id = given_id AND {WAITS} RETURNING o.*), \
               put AS (INSERT INTO {0}.tollgate_outbox_dead ({columns}, reason, explanation) \
                 SELECT {columns}, reason, explanation FROM gone JOIN given ON given_id = id) \
             SELECT EXISTS (SELECT FROM mine)",
            self.schema,
            mine = self.mine()
        );
        let term = term.cast_signed();
        let ids: Vec<_> = dead.iter().map(|dead| dead.id).collect();
        let reasons: Vec<_> = dead.iter().map(|dead| dead.reason).collect();
        let explanations: Vec<_> = dead.iter().map(|dead| dead.explanation.to_string()).collect();
        let parameters: Parameters<'_> = &[
            (&term, Type::INT8),
            (&ids, Type::INT8_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&explanations, Type::TEXT_ARRAY),
        ];
        column(&connection.one_by_index(&sql, parameters).await?, 0)
    }

    /// A part of a statement: a row, if the term `$1` is the latest and stays so until the statement ends.
    fn mine(&self) -> String {
        format!(
            "mine AS MATERIALIZED (SELECT {DURABLY} FROM {}.tollgate_relay WHERE term = $1 FOR SHARE)",
            self.schema
        )
    }

    /// Of these ids, those of rows that still wait, with their identities.
    pub(super) async fn still_pending(
        &self,
        connection: &Connection,
        ids: &[i64],
        outbox: &str,
    ) -> Result<Vec<String>, DatabaseError> {
        let sql = format!(
            "SELECT $2 || ':' || id || ':' || uuid FROM {}.tollgate_outbox AS o \
             WHERE id = ANY ($1) AND {WAITS}",
            self.schema
        );
        let parameters: Parameters<'_> = &[(&ids, Type::INT8_ARRAY), (&outbox, Type::TEXT)];
        let rows = connection.query(&sql, parameters).await?;
        rows.iter().map(|row| column(row, 0)).collect()
    }

    /// The channels and identities of the rows that were published last. A relay that died may have
    /// marked them without settling.
    pub(super) async fn published_last(
        &self,
        connection: &Connection,
        count: usize,
        outbox: &str,
    ) -> Result<Vec<(String, String)>, DatabaseError> {
        let sql = format!(
            "SELECT channel, $2 || ':' || id || ':' || uuid FROM {}.tollgate_outbox \
             WHERE published_at IS NOT NULL ORDER BY published_at DESC LIMIT $1",
            self.schema
        );
        let rows =
            connection.query(&sql, &[(&(count as i64), Type::INT8), (&outbox, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?))).collect()
    }

    /// Deletes published rows of these ids.
    pub(super) async fn delete(
        &self,
        connection: &Connection,
        ids: &[i64],
    ) -> Result<(), DatabaseError> {
        let sql = format!(
            "DELETE FROM {}.tollgate_outbox WHERE id = ANY ($1) AND published_at IS NOT NULL",
            self.schema
        );
        connection.query(&sql, &[(&ids, Type::INT8_ARRAY)]).await.map(drop)
    }

    /// Deletes some rows that were published longer ago than this. Returns true if there may be more.
    pub(super) async fn purge(
        &self,
        connection: &Connection,
        retention: Duration,
    ) -> Result<bool, DatabaseError> {
        let sql = format!(
            "WITH gone AS (DELETE FROM {0}.tollgate_outbox WHERE id IN (SELECT id FROM {0}.tollgate_outbox \
               WHERE published_at < now() - $1 * interval '1 second' \
               ORDER BY published_at LIMIT $2) AND published_at IS NOT NULL RETURNING 1) \
             SELECT count(*) FROM gone",
            self.schema
        );
        let seconds = retention.as_secs_f64();
        let row = connection
            .one(&sql, &[(&seconds, Type::FLOAT8), (&PURGED_AT_ONCE, Type::INT8)])
            .await?;
        Ok(column::<i64>(&row, 0)? == PURGED_AT_ONCE)
    }

    /// Counts what waits and what is dead.
    pub(crate) async fn count(&self, connection: &Connection) -> Result<Counts, DatabaseError> {
        let sql = format!(
            "SELECT (SELECT count(*) FROM (SELECT FROM {0}.tollgate_outbox WHERE published_at IS NULL \
                 LIMIT {COUNTED}) AS waiting), \
               coalesce((SELECT extract(epoch FROM clock_timestamp() - created_at)::float8 \
                 FROM {0}.tollgate_outbox WHERE published_at IS NULL ORDER BY id LIMIT 1), 0), \
               (SELECT count(*) FROM (SELECT FROM {0}.tollgate_outbox_dead LIMIT {COUNTED}) AS dead)",
            self.schema
        );
        let row = connection.one(&sql, &[]).await?;
        Ok(Counts {
            pending: column(&row, 0)?,
            oldest: column::<f64>(&row, 1)?.max(0.0),
            dead: column(&row, 2)?,
        })
    }

    /// Puts dead rows back, as new rows at the end: all of them, or those of these ids. Of rows that have a
    /// key in common, and where the channel has the key again by now, one is enough: the others stay dead.
    ///
    /// # Errors
    /// The database's own.
    pub(crate) async fn retry(
        &self,
        connection: &Connection,
        ids: Option<&[i64]>,
    ) -> Result<Retried, DatabaseError> {
        let columns = "uuid, channel, payload, key, ttl, maxlen, traceparent";
        let sql = format!(
            "WITH asked AS (SELECT number, id, key IS NOT NULL AND (EXISTS (SELECT FROM {0}.tollgate_outbox AS o \
                   WHERE o.key IS NOT NULL AND o.channel = d.channel AND o.key = d.key) \
                 OR row_number() OVER (PARTITION BY channel, key ORDER BY id DESC) > 1) AS stays \
               FROM {0}.tollgate_outbox_dead AS d WHERE $1 OR id = ANY ($2)), \
               back AS (DELETE FROM {0}.tollgate_outbox_dead AS d USING asked \
                 WHERE d.number = asked.number AND NOT stays RETURNING d.*), \
               put AS (INSERT INTO {0}.tollgate_outbox ({columns}) SELECT {columns} FROM back ORDER BY id \
                 RETURNING 1) \
             SELECT (SELECT count(*) FROM put), (SELECT count(*) FROM asked WHERE stays), \
               ARRAY(SELECT unnest($2) EXCEPT SELECT id FROM asked ORDER BY 1)",
            self.schema
        );
        let (all, ids) = (ids.is_none(), ids.unwrap_or_default());
        let row = connection.one(&sql, &[(&all, Type::BOOL), (&ids, Type::INT8_ARRAY)]).await?;
        Ok(Retried { back: column(&row, 0)?, stay: column(&row, 1)?, unknown: column(&row, 2)? })
    }
}
