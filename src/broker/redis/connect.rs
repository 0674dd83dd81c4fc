//! Making a connection, identifying the server at its other end, and noticing when it is lost.
//!
//! Not here: the stream below it (`stream`, `tap`), and for how long it is kept
//! (`command`, `subscribing`).

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, RedisConnectionInfo, RedisError,
    RedisResult, Value,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::fault::{self, Fault};
use super::login::Login;
use super::settings::Settings;
use super::stream;
use super::tap::{OnPush, PushMessage, Tap, TapLimits};
use crate::lifecycle;
use crate::logging;
use crate::redis_url::{Server, Target};

/// The largest string that Redis can hold ("Strings"), in bytes.
pub(super) const MAX_STRING: usize = 512 << 20;

/// Most bytes of one answer: on connections that read histories and revocations, and on those that
/// receive messages.
const MAX_ANSWER: usize = 256 << 20;
const MAX_ANSWER_BESIDE: usize = 1 << 20;

/// A connection to a master that has answered.
#[derive(Clone)]
pub(super) struct MasterConnection {
    pub(super) connection: MultiplexedConnection,
    /// The server's process and replication identity. If another identity wrote last, the data may
    /// lack some of what that one had. Empty if the server does not tell it.
    pub(super) replication_id: Arc<str>,
}

impl MasterConnection {
    /// True if this is the same connection, not merely one to the same server.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.replication_id, &other.replication_id)
    }
}

/// Makes connections to any server.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) settings: Settings,
    pub(super) target: Target,
    /// The login at the masters.
    pub(super) login: Login,
    /// The largest publication that is delivered whole, in bytes.
    pub(super) max_publication: Arc<AtomicUsize>,
}

impl Connector {
    pub(super) fn new(settings: Settings, target: Target) -> Self {
        let login = Login::of_url(target.redis.clone(), settings.password_file.clone());
        let max_publication = Arc::new(AtomicUsize::new(settings.max_publication));
        Self { settings, target, login, max_publication }
    }

    /// Opens a connection that has answered HELLO and PING.
    pub(super) async fn open(
        &self,
        server: &Server,
        login: &Login,
        on_push: Option<OnPush>,
    ) -> RedisResult<MultiplexedConnection> {
        let redis = &login.read().await?;
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            .set_response_timeout(Some(self.settings.command_timeout));

        let messages = on_push.clone();
        if let Some(on_push) = on_push {
            // The tap reports everything else.
            config = config.set_push_sender(move |info: PushInfo| {
                if info.kind == PushKind::Disconnection {
                    on_push(PushMessage::Disconnected);
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }

        let answer = if messages.is_some() { MAX_ANSWER_BESIDE } else { MAX_ANSWER };
        let limits = TapLimits { payload: Arc::clone(&self.max_publication), answer };
        let connecting = async {
            if self.target.tls {
                let stream = stream::handshake(&self.settings, server).await?;
                begin(redis, Tap::new(stream, limits, messages), config).await
            } else {
                let stream = stream::dial(server).await?;
                begin(redis, Tap::new(stream, limits, messages), config).await
            }
        };
        let mut connection =
            timeout(self.settings.connect_timeout, connecting).await.map_err(late)??;

        // A server that answers with an error is alive, but one that is not in charge, or not yet,
        // is of no use.
        match fault::ask::<Value>(&mut connection, &redis::cmd("PING")).await {
            Err(e) if !Fault::of(&e).is_an_answer() || fault::is_moved(&e) => Err(e),
            _ => Ok(connection),
        }
    }

    /// Opens a connection to a master. A replica is refused: it receives the publications of its
    /// master, but its own do not reach the master.
    pub(super) async fn master(
        &self,
        server: &Server,
        on_push: Option<OnPush>,
    ) -> RedisResult<MasterConnection> {
        let connection = self.open(server, &self.login, on_push).await?;
        let replication_id = replication_id(&connection).await?.unwrap_or_else(|| {
            let name = server.to_string();
            logging::repeated(("redis", "info"), server, move |repeated| {
                let what = "Redis denies INFO, without which no history can be read: allow it \
                            (+info)";
                tracing::error!(server = %name, repeated, "{what}");
            });
            Arc::from("")
        });
        Ok(MasterConnection { connection, replication_id })
    }
}

/// The error of a connection that was not made in time.
pub(super) fn late(_: tokio::time::error::Elapsed) -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// Sends HELLO over a stream, and spawns the connection's driver.
async fn begin<S>(
    redis: &RedisConnectionInfo,
    stream: S,
    config: AsyncConnectionConfig,
) -> RedisResult<MultiplexedConnection>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (connection, driver) =
        MultiplexedConnection::new_with_config(redis, stream, config).await?;
    lifecycle::spawn("redis_connection", driver);
    Ok(connection)
}

/// Returns the server's process and replication identity, as the function library spells it, or
/// `None` if INFO is refused.
///
/// # Errors
/// When the server is a replica, or does not answer.
pub(super) async fn replication_id(
    connection: &MultiplexedConnection,
) -> RedisResult<Option<Arc<str>>> {
    let info = |section: &'static str| {
        let mut connection = connection.clone();
        async move { fault::ask::<String>(&mut connection, redis::cmd("INFO").arg(section)).await }
    };

    let (server, replication) = match tokio::join!(info("server"), info("replication")) {
        (Ok(server), Ok(replication)) => (server, replication),
        (Err(e), _) | (_, Err(e)) if matches!(Fault::of(&e), Fault::Refused | Fault::BadKey) => {
            return Ok(None);
        }
        (Err(e), _) | (_, Err(e)) => return Err(e),
    };

    if field(&replication, "role") == Some("slave") {
        return Err((ErrorKind::Client, "this server is a replica, not the master").into());
    }

    let short = |field: Option<&str>| {
        let letters = field.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric);
        letters.take(12).collect()
    };
    let (process, replication): (String, String) =
        (short(field(&server, "run_id")), short(field(&replication, "master_replid")));
    Ok(Some(Arc::from(format!("{process}:{replication}"))))
}

/// The value of a field in an INFO answer.
fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_info() {
        let info = "# Server\r\nrun_id:abc\r\nrole:slave\r\nrun_id_x:1\r\n";
        assert_eq!(field(info, "run_id"), Some("abc"));
        assert_eq!(field(info, "role"), Some("slave"));
        assert_eq!(field(info, "nothing"), None);
    }
}
