//! Watching a connection: whether it still answers, and whether it still leads to the same master.
//!
//! Not here: connecting again (`command`, `subscribing`).

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, Value};
use tokio::time::{sleep, timeout};

use super::connect::{MasterConnection, replication_id};
use super::core::{Core, Role};
use super::fault::{self, Fault};
use super::settings::Settings;
use crate::logging;
use crate::redis_url::Server;

const CHECK_REPLICATION_ID_EVERY: Duration = Duration::from_secs(2);

/// Checks at intervals whether the server still is the master that it was, and returns what
/// happened if not. A master that is made a replica keeps its clients, and a canary that is
/// published there still comes back.
pub(super) async fn watch_replication_id(master: MasterConnection) -> String {
    loop {
        sleep(CHECK_REPLICATION_ID_EVERY).await;
        match replication_id(&master.connection).await {
            Ok(Some(now)) if now != master.replication_id => {
                return "the server has a new replication identity".to_owned();
            }
            Ok(_) => {}
            // This is the only error of our own making: the server is a replica now.
            Err(e) if e.kind() == ErrorKind::Client => return fault::describe(&e),
            Err(e) if Fault::of(&e).is_an_answer() => {}
            Err(e) => return fault::describe(&e),
        }
    }
}

/// Checks at intervals whether the server's name still leads to the server that this
/// connection is open to, and returns what happened if not. The connection survives the move
/// of a service, a floating address or a DNS name, and so does its canary, while publishers
/// write to another server.
pub(super) async fn watch_address(
    core: &Core,
    server: &Server,
    replication_id: Arc<str>,
) -> String {
    loop {
        sleep(core.settings.address_interval).await;
        match core.connector.master(server, None).await {
            Ok(now) if now.replication_id != replication_id && !now.replication_id.is_empty() => {
                return "the address now leads to another server".to_owned();
            }
            Ok(_) => {}
            // A new connection would fail in the same way: the error is worth a log line, but not
            // the loss of this connection.
            Err(e) => {
                let what = "cannot open a fresh connection to Redis";
                core.failed(Role::Subscriber, server, what, &e);
            }
        }
    }
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
        let min = settings.reconnect_min;
        let max = settings.reconnect_max;
        Self { min, max, bound: min }
    }

    pub(super) async fn wait(&mut self) {
        let least = self.min.as_millis() as u64;
        let most = (self.bound.as_millis() as u64).max(least);
        self.bound = (self.bound * 2).min(self.max.max(self.min));
        sleep(Duration::from_millis(fastrand::u64(least..=most))).await;
    }
}

/// Sends PINGs until an answer is late or the connection fails. Returns what happened.
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

/// Logs a new connection. Repetitions are limited, because a server that accepts connections and
/// drops them causes many.
pub(super) fn log_connected(role: Role, server: &Server) {
    let name = server.to_string();
    let role = role.label();
    logging::repeated(("connected to Redis", role), server, move |repeated| {
        tracing::info!(server = %name, repeated, "{role} connected to Redis");
    });
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// Waits stay between the minimum and the maximum, and differ between replicas.
    #[tokio::test(start_paused = true)]
    async fn attempts_are_spread() {
        let min = Duration::from_millis(50);
        let max = Duration::from_secs(1);
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
