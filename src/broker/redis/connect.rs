//! Making a connection, identifying the server at its other end, and noticing when it is lost.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, RedisConnectionInfo, RedisError,
    RedisResult, Value,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::fault::{self, Fault};
use super::login::Login;
use super::tap::{Limits, OnPush, Push, Tap};
use super::{Role, Settings, Shared, tls};
use crate::lifecycle;
use crate::logging;
use crate::redis_url::{Server, Target};

/// How long sent bytes may stay unacknowledged before the kernel ends a connection (tcp(7),
/// TCP_USER_TIMEOUT), and how often the kernel probes a silent one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The largest string that Redis can hold ("Strings"), in bytes.
pub(super) const MAX_STRING: usize = 512 << 20;

/// Most bytes of one answer: on connections that read histories and revocations, and on those that
/// receive messages.
const MAX_ANSWER: usize = 256 << 20;
const MAX_ANSWER_BESIDE: usize = 1 << 20;

const LOOK_AT_REIGN: Duration = Duration::from_secs(2);

/// A connection to a master that has answered.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) connection: MultiplexedConnection,
    /// The server's process and replication identity. If another identity wrote last, the data may
    /// be older than what that one had. Empty if the server does not tell it.
    pub(super) run: Arc<str>,
}

impl Link {
    /// True if this is the same connection, not merely one to the same server.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }
}

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
                    on_push(Push::Disconnected);
                }
                Ok::<(), std::convert::Infallible>(())
            });
        }

        let answer = if messages.is_some() { MAX_ANSWER_BESIDE } else { MAX_ANSWER };
        let limits = Limits { payload: Arc::clone(&self.max_publication), answer };
        let connecting = async {
            if self.target.tls {
                let stream = tls::handshake(&self.settings, server).await?;
                begin(redis, Tap::new(stream, limits, messages), config).await
            } else {
                let stream = dial(server).await?;
                begin(redis, Tap::new(stream, limits, messages), config).await
            }
        };
        let mut connection =
            timeout(self.settings.connect_timeout, connecting).await.map_err(late)??;

        // A server that answers with an error is alive, but one that is not in charge (yet) is of
        // no use.
        match fault::ask::<Value>(&mut connection, &redis::cmd("PING")).await {
            Err(e) if !Fault::of(&e).is_an_answer() || fault::is_moved(&e) => Err(e),
            _ => Ok(connection),
        }
    }

    /// Opens a connection to a master. A replica is refused: publications on the master reach it,
    /// but its own do not reach the master.
    pub(super) async fn master(
        &self,
        server: &Server,
        on_push: Option<OnPush>,
    ) -> RedisResult<Link> {
        let connection = self.open(server, &self.login, on_push).await?;
        let run = reign(&connection).await?.unwrap_or_else(|| {
            let name = server.to_string();
            logging::repeated(("redis", "info"), server, move |repeated| {
                let what = "Redis does not answer INFO: no history can be read; allow it (+info)";
                tracing::error!(server = %name, repeated, "{what}");
            });
            Arc::from("")
        });
        Ok(Link { connection, run })
    }
}

/// Logs a new connection. Repetitions are limited, because a server that accepts connections and
/// drops them causes many.
pub(super) fn log_connected(role: Role, server: &Server) {
    let (name, role) = (server.to_string(), role.label());
    logging::repeated(("connected to Redis", role), server, move |repeated| {
        tracing::info!(server = %name, repeated, "{role} connected to Redis");
    });
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

pub(super) async fn dial(server: &Server) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((server.host.as_str(), server.port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream)
}

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

/// The server's process and replication identity, as the function library spells it; `None` if INFO
/// is refused.
///
/// # Errors
/// When the server is a replica, or does not answer.
async fn reign(connection: &MultiplexedConnection) -> RedisResult<Option<Arc<str>>> {
    let info = |section: &'static str| {
        let mut connection = connection.clone();
        async move { fault::ask::<String>(&mut connection, redis::cmd("INFO").arg(section)).await }
    };
    let (process, replication) = match tokio::join!(info("server"), info("replication")) {
        (Ok(process), Ok(replication)) => (process, replication),
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
    let (process, reign): (String, String) =
        (short(field(&process, "run_id")), short(field(&replication, "master_replid")));
    Ok(Some(Arc::from(format!("{process}:{reign}"))))
}

/// Checks at intervals whether the server still is the master that it was; returns what happened. A
/// master that is made a replica keeps its clients, and a canary that is published there still
/// comes back.
pub(super) async fn watch_reign(link: Link) -> String {
    loop {
        sleep(LOOK_AT_REIGN).await;
        match reign(&link.connection).await {
            Ok(Some(run)) if run != link.run => {
                return "the server begins another reign".to_owned();
            }
            Ok(_) => {}
            // This is the only error of our own making: the server is a replica now.
            Err(e) if e.kind() == ErrorKind::Client => return fault::describe(&e),
            Err(e) if Fault::of(&e).is_an_answer() => {}
            Err(e) => return fault::describe(&e),
        }
    }
}

/// Checks at intervals whether the server's name still leads to the server that this connection is
/// open to; returns what happened. The connection survives the move of a service, a floating
/// address or a DNS name, and so does its canary, while publishers write to another server.
pub(super) async fn watch_address(shared: &Shared, server: &Server, run: Arc<str>) -> String {
    loop {
        sleep(shared.settings.address_interval).await;
        match shared.connector.master(server, None).await {
            Ok(link) if link.run != run && !link.run.is_empty() => {
                return "the address leads to another server now".to_owned();
            }
            Ok(_) => {}
            // A new connection would fail in the same way: the error is worth a log line, but not
            // the loss of this connection.
            Err(e) => {
                let what = "a fresh connection to Redis is not possible";
                shared.failed(Role::Subscriber, server, what, &e);
            }
        }
    }
}

/// The value of a field in an INFO answer.
fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The waits between attempts: each is random between the minimum and a bound that doubles, so that
/// replicas that lost Redis together do not return all at once.
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    pub(super) fn new(settings: &Settings) -> Self {
        let (min, max) = (settings.reconnect_min, settings.reconnect_max);
        Self { min, max, bound: min }
    }

    pub(super) async fn wait(&mut self) {
        let least = self.min.as_millis() as u64;
        let most = (self.bound.as_millis() as u64).max(least);
        self.bound = (self.bound * 2).min(self.max.max(self.min));
        sleep(Duration::from_millis(fastrand::u64(least..=most))).await;
    }
}

/// Sends PINGs until an answer is late or the connection fails; returns what happened.
pub(super) async fn ping_until_lost(
    mut connection: MultiplexedConnection,
    settings: &Settings,
) -> String {
    loop {
        sleep(settings.ping_interval).await;
        let command = redis::cmd("PING");
        let ping = fault::ask::<Value>(&mut connection, &command);
        match timeout(settings.ping_timeout, ping).await {
            Ok(Err(e)) if !Fault::of(&e).is_an_answer() => return fault::describe(&e),
            // An error such as MISCONF is an answer too: the server cannot save its snapshot, but
            // publishes as before.
            Ok(_) => {}
            Err(_) => return "no answer to PING in time".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn fields_of_info() {
        let info = "# Server\r\nrun_id:abc\r\nrole:slave\r\nrun_id_x:1\r\n";
        assert_eq!(field(info, "run_id"), Some("abc"));
        assert_eq!(field(info, "role"), Some("slave"));
        assert_eq!(field(info, "nothing"), None);
    }

    /// Waits stay between the minimum and the maximum, and differ between replicas.
    #[tokio::test(start_paused = true)]
    async fn attempts_are_spread() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut firsts = std::collections::BTreeSet::new();

        for _ in 0..20 {
            let mut backoff = Backoff { min, max, bound: min };
            let mut waits = Vec::new();
            for _ in 0..12 {
                let began = Instant::now();
                backoff.wait().await;
                waits.push(began.elapsed());
            }

            let slack = Duration::from_millis(2);
            assert!(waits.iter().all(|w| *w >= min && *w <= max + slack), "{waits:?}");
            assert!(
                waits[0] <= min + slack && waits[6..].iter().any(|w| *w > 4 * min),
                "{waits:?}"
            );
            firsts.insert(waits[8]);
        }

        assert!(firsts.len() > 10, "they do not come back together: {firsts:?}");
    }
}
