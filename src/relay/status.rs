//! What `tollgate relay status` tells, out of the database alone.

use tokio_postgres::types::Type;

use super::connection::{Connection, DatabaseError, column};
use super::outbox::{COUNTED, Counts, Outbox};

/// How the outbox and its relay stand.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    pub(crate) counts: Counts,
    /// The leader's name, when it began, and how old its last heartbeat is in seconds.
    pub(crate) leader: Option<(String, String, f64)>,
    pub(crate) term: i64,
    /// How many rows were published within the last minute, and how long they took in the median, in
    /// seconds.
    pub(crate) last_minute: i64,
    pub(crate) median: Option<f64>,
    /// How many rows are dead for each reason, and an example's id and explanation.
    pub(crate) dead: Vec<(String, i64, i64, String)>,
}

/// Reads the status.
///
/// # Errors
/// The database's own.
pub(crate) async fn status(connection: &Connection, schema: &str) -> Result<Status, DatabaseError> {
    let counts = Outbox::new(schema).count(connection).await?;

    let sql = format!(
        "SELECT term, leader, to_char(leader_since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
         extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM {schema}.tollgate_relay"
    );
    let row = connection.one(&sql, &[]).await?;
    let leader: Option<String> = column(&row, 1)?;
    let leader = match leader {
        Some(leader) => Some((leader, column(&row, 2)?, column(&row, 3)?)),
        None => None,
    };
    let term = column(&row, 0)?;

    let sql = format!(
        "SELECT count(*), percentile_cont(0.5) WITHIN GROUP \
           (ORDER BY extract(epoch FROM published_at - created_at)::float8) \
         FROM {schema}.tollgate_outbox WHERE published_at > now() - $1 * interval '1 second'"
    );
    let row = connection.one(&sql, &[(&60.0_f64, Type::FLOAT8)]).await?;
    let (last_minute, median) = (column(&row, 0)?, column(&row, 1)?);

    let sql = format!(
        "SELECT reason, count(*), max(id), (array_agg(explanation ORDER BY id DESC))[1] \
         FROM (SELECT * FROM {schema}.tollgate_outbox_dead ORDER BY number DESC LIMIT {COUNTED}) AS dead \
         GROUP BY reason ORDER BY count(*) DESC"
    );
    let dead = connection.query(&sql, &[]).await?;
    let dead = dead
        .iter()
        .map(|row| Ok((column(row, 0)?, column(row, 1)?, column(row, 2)?, column(row, 3)?)))
        .collect::<Result<_, DatabaseError>>()?;
    Ok(Status { counts, leader, term, last_minute, median, dead })
}
