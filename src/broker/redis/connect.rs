//! Making a connection and knowing when it is lost.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo as _, ProtocolVersion, PushInfo, RedisError,
    RedisResult,
};
use tokio::time::{sleep, timeout};

use super::super::BrokerError;
use super::{Role, Settings, Shared};

/// Called by the connection's reader for every push message; it must not wait.
pub(super) type OnPush = Box<dyn Fn(PushInfo) + Send + Sync>;

#[derive(Clone)]
pub(super) struct Connector {
    client: Client,
    settings: Settings,
    delay: Duration,
}

impl Connector {
    pub(super) fn new(settings: &Settings) -> RedisResult<Self> {
        let info = settings.url.as_str().into_connection_info()?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(redis))?;
        Ok(Self { client, settings: settings.clone(), delay: settings.reconnect_min })
    }

    /// Tries until there is a connection that has answered HELLO and PING.
    pub(super) async fn connect(
        &mut self,
        shared: &Shared,
        role: Role,
        mut on_push: Option<&mut (dyn FnMut() -> OnPush + Send)>,
    ) -> MultiplexedConnection {
        loop {
            let push = on_push.as_mut().map(|make| make());
            match self.attempt(push).await {
                Ok(connection) => {
                    self.delay = self.settings.reconnect_min;
                    tracing::info!(role = role.label(), "connected to Redis");
                    return connection;
                }
                Err(e) => shared.note(role, "cannot connect to Redis", &describe(&e)),
            }
            // Full jitter between the least and the current delay: replicas that lost Redis
            // together do not come back together.
            let least = self.settings.reconnect_min.as_millis() as u64;
            let most = (self.delay.as_millis() as u64).max(least);
            sleep(Duration::from_millis(fastrand::u64(least..=most))).await;
            self.delay = (self.delay * 2).min(self.settings.reconnect_max);
        }
    }

    async fn attempt(&self, on_push: Option<OnPush>) -> RedisResult<MultiplexedConnection> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.settings.connect_timeout))
            .set_response_timeout(Some(self.settings.command_timeout));
        if let Some(on_push) = on_push {
            config = config.set_push_sender(move |info| {
                on_push(info);
                Ok::<(), std::convert::Infallible>(())
            });
        }
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        Ok(connection)
    }
}

/// Pings until an answer is late or an error; returns what happened.
pub(super) async fn ping_until_lost(
    mut connection: MultiplexedConnection,
    settings: &Settings,
) -> String {
    loop {
        sleep(settings.ping_interval).await;
        let command = redis::cmd("PING");
        let ping = command.query_async::<()>(&mut connection);
        match timeout(settings.ping_timeout, ping).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return describe(&e),
            Err(_) => return "no answer to PING in time".to_owned(),
        }
    }
}

/// The error without anything that could hold a credential.
pub(super) fn describe(error: &RedisError) -> String {
    match (error.code(), error.is_io_error()) {
        (Some(code), _) => format!("{code} ({})", error.category()),
        (None, true) => error.to_string(),
        (None, false) => error.category().to_owned(),
    }
}

pub(super) fn classify(error: &RedisError) -> BrokerError {
    if error.is_timeout() {
        BrokerError::TimedOut
    } else if error.is_io_error() || error.is_unrecoverable_error() {
        BrokerError::Unavailable
    } else {
        BrokerError::Refused
    }
}
