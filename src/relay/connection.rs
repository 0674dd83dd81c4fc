//! Connections to PostgreSQL: TLS, deadlines, notifications, and errors fit for a log.
//!
//! Not here: what is asked (`schema`, `leadership`, `outbox`). Invariant: nothing waits for the database
//! without an end; a connection that was late once is not used again. Statements are never prepared, so
//! that a pooler may stand between.

use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, Tls};
use crate::lifecycle;
use crate::tls::Trust;

/// What went wrong, without anything that could hold a credential or an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DatabaseError {
    #[error("cannot connect to PostgreSQL at {servers}: {why}")]
    Connect { servers: String, why: String },
    #[error("PostgreSQL did not answer within {0:?}")]
    Late(Duration),
    #[error("PostgreSQL: {0}")]
    Said(String),
    /// The user lacks a right.
    #[error("PostgreSQL: {0}")]
    Denied(String),
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        let why = describe(&error);
        if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            return Self::Denied(why);
        }
        Self::Said(why)
    }
}

/// An error's text. The detail is left out: it may quote rows.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A column for statements whose commit must outlive a crash, whatever `synchronous_commit` is: the mark of a
/// row that Redis guards no more, and a term. The setting holds for the transaction alone.
pub(super) const DURABLY: &str = "set_config('synchronous_commit', CASE current_setting('synchronous_commit') \
     WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true) AS durably";

/// The parameters of a statement, each with its type.
pub(crate) type Parameters<'p> = &'p [(&'p (dyn ToSql + Sync), Type)];

/// How to reach a database.
#[derive(Clone)]
pub(crate) struct Database {
    address: Address,
    tls: Option<MakeRustlsConnect>,
    connect_timeout: Duration,
    statement_timeout: Duration,
}

impl Database {
    /// # Errors
    /// The file of authorities cannot be used.
    pub(crate) fn new(
        mut address: Address,
        connect_timeout: Duration,
        statement_timeout: Duration,
    ) -> Result<Self, String> {
        let tls = match address.tls {
            Tls::Off => None,
            Tls::Offered | Tls::Required | Tls::Verified => Some(connector(&address)?),
        };
        // A server that vanishes is noticed.
        let config = &mut address.config;
        config.connect_timeout(connect_timeout);
        config.keepalives_idle(Duration::from_secs(5));
        config.keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
        config.tcp_user_timeout(statement_timeout);
        Ok(Self { address, tls, connect_timeout, statement_timeout })
    }

    pub(crate) fn servers(&self) -> String {
        self.address.servers()
    }

    /// True if events and password may travel in the clear between machines.
    pub(crate) fn may_be_overheard(&self) -> bool {
        matches!(self.address.tls, Tls::Off | Tls::Offered) && !self.address.is_local()
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn connect(&self) -> Result<Connection, DatabaseError> {
        let failed = |why: String| DatabaseError::Connect { servers: self.servers(), why };
        let config = self.address.with_password().await.map_err(|e| failed(e.to_string()))?;
        let woken = Arc::new(Notify::new());
        let opened = async {
            match &self.tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    Ok((client, drive(connection, Arc::clone(&woken))))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Ok((client, drive(connection, Arc::clone(&woken))))
                }
            }
        };

        // The library's time-out counts for each host.
        let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(1).max(1);
        let opened = timeout(self.connect_timeout * (hosts + 1), opened).await;
        let opened = opened.map_err(|_| failed("it did not answer in time".to_owned()))?;
        let (client, driver) = opened.map_err(|e: tokio_postgres::Error| failed(describe(&e)))?;
        let (tls, within) = (self.tls.clone(), self.statement_timeout);
        Ok(Connection { client, driver, woken, tls, within })
    }
}

fn connector(address: &Address) -> Result<MakeRustlsConnect, String> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let given = address.ca_file.as_ref().map(read).transpose()?;
    let unchecked = match address.tls {
        Tls::Verified => false,
        Tls::Required => given.is_none(),
        Tls::Off | Tls::Offered => true,
    };
    let trust =
        Trust { given: given.as_deref(), by_name: true, any: unchecked, ..Trust::default() };
    Ok(MakeRustlsConnect::new(trust.client(None)?))
}

/// Runs a connection's protocol, and wakes whoever waits for a notification. At the end of the
/// connection it wakes too, so that nobody waits for one that never comes.
fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    woken: Arc<Notify>,
) -> JoinHandle<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    lifecycle::spawn("postgres", async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(_))) => woken.notify_one(),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return woken.notify_one(),
            }
        }
    })
}

/// An open connection. It is closed when it is dropped.
pub(crate) struct Connection {
    client: Client,
    driver: JoinHandle<()>,
    /// Notified by NOTIFY, and when the connection ends.
    pub(crate) woken: Arc<Notify>,
    tls: Option<MakeRustlsConnect>,
    within: Duration,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Runs a statement, and returns its rows.
    ///
    /// # Errors
    /// The database's own, or that it was late. The connection may not be used again then.
    pub(crate) async fn query(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        self.in_time(self.client.query_typed(sql, parameters)).await
    }

    /// Runs a statement in a transaction of its own, by indexes, in their order, and returns its rows. The
    /// planner must not read all of a table, which it takes for cheap while it believes that few rows are there.
    ///
    /// # Errors
    /// As [`Self::query`]; whether it has committed is not known then.
    pub(crate) async fn query_by_index(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, DatabaseError> {
        let steered = "BEGIN; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; \
                       SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                       SET LOCAL enable_mergejoin = off; SET LOCAL jit = off";
        // All three leave in this order, at once.
        let (begun, rows, ended) = self
            .in_time(async {
                Ok(tokio::join!(
                    self.client.batch_execute(steered),
                    self.client.query_typed(sql, parameters),
                    self.client.batch_execute("COMMIT"),
                ))
            })
            .await?;
        begun?;
        let rows = rows?;
        ended?;
        Ok(rows)
    }

    /// Runs a statement that answers one row.
    ///
    /// # Errors
    /// As [`Self::query`], or there is no row.
    pub(crate) async fn one(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, DatabaseError> {
        only(self.query(sql, parameters).await?)
    }

    /// Runs a statement that answers one row, as [`Self::query_by_index`] does.
    ///
    /// # Errors
    /// As there, or there is no row.
    pub(crate) async fn one_by_index(
        &self,
        sql: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, DatabaseError> {
        only(self.query_by_index(sql, parameters).await?)
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub(crate) async fn run(&self, sql: &str) -> Result<(), DatabaseError> {
        self.in_time(self.client.batch_execute(sql)).await
    }

    /// Waits for an answer. The server would go on with a statement whose answer nobody wants any more.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        if let Ok(answer) = timeout(self.within, answer).await {
            return Ok(answer?);
        }

        let (token, tls, within) = (self.client.cancel_token(), self.tls.clone(), self.within);
        lifecycle::spawn("postgres", async move {
            let cancelled = async {
                match tls {
                    Some(tls) => token.cancel_query(tls).await,
                    None => token.cancel_query(NoTls).await,
                }
            };
            if !matches!(timeout(within, cancelled).await, Ok(Ok(()))) {
                tracing::debug!("a late statement could not be cancelled");
            }
        });
        Err(DatabaseError::Late(self.within))
    }
}

/// The row of an answer that has one.
fn only(mut rows: Vec<Row>) -> Result<Row, DatabaseError> {
    rows.pop().ok_or_else(|| DatabaseError::Said("no row where one was expected".to_owned()))
}

/// The value of a column.
///
/// # Errors
/// The column has another type, or none.
pub(crate) fn column<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r Row,
    at: usize,
) -> Result<T, DatabaseError> {
    Ok(row.try_get(at)?)
}
