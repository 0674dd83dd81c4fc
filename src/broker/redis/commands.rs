//! The command connections to all masters, and the commands that are run on them.
//!
//! Not here: one connection (`command`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use redis::{Cmd, FromRedisValue, RedisResult};

use super::command::{self, CommandConnection};
use super::connect::MasterConnection;
use super::core::Core;
use super::fault::{self, Fault};
use super::masters::Map;
use crate::broker::BrokerError;
use crate::lifecycle;
use crate::metrics;

/// Commands that are run on a master's connection.
pub(super) type Work<'w, T> = Pin<Box<dyn Future<Output = RedisResult<T>> + Send + 'w>>;

/// Most times that a command is sent again because its slot has moved, and the first wait
/// before that.
const MOVED_TRIES: u32 = 5;
const MOVED_PAUSE: Duration = Duration::from_millis(60);

/// The command connections to all masters.
pub(super) struct Commands {
    pub(super) core: Arc<Core>,
    masters: RwLock<Masters>,
}

/// A map, and the connection to each of its masters, in the map's order.
#[derive(Default)]
struct Masters {
    map: Arc<Map>,
    connections: Vec<Arc<CommandConnection>>,
}

impl Commands {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, masters: RwLock::default() }
    }

    /// Adopts a new map: makes connections to new masters, and ends those to old ones.
    pub(super) fn adopt(&self, map: &Arc<Map>) {
        let mut masters = self.masters.write();
        let mut old = std::mem::take(&mut masters.connections);
        masters.map = Arc::clone(map);

        for server in &map.masters {
            let connection = match old.iter().position(|c| c.server == *server) {
                Some(at) => old.swap_remove(at),
                None => {
                    let connection = CommandConnection::new(server.clone());
                    let run = command::run(Arc::clone(&self.core), Arc::clone(&connection));
                    lifecycle::spawn("redis_publisher", run);
                    connection
                }
            };
            masters.connections.push(connection);
        }

        old.iter().for_each(|connection| connection.stop());
    }

    /// The connection to the master that has a key.
    pub(super) fn connection(&self, key: &[u8]) -> Result<Arc<CommandConnection>, BrokerError> {
        let masters = self.masters.read();
        let at = masters.map.master_of(key);
        let found = at.and_then(|at| masters.connections.get(at)).cloned();
        found.ok_or(BrokerError::Unavailable)
    }

    /// True if there is a connection to every master.
    pub(super) fn are_up(&self) -> bool {
        let connections = &self.masters.read().connections;
        !connections.is_empty() && connections.iter().all(|connection| connection.is_up())
    }

    /// True if every master keeps durable publications, as far as is known.
    pub(super) fn are_kept(&self) -> bool {
        self.masters.read().connections.iter().all(|connection| connection.writes.are_accepted())
    }

    /// Runs commands on the master that has a key. If the key's slot has moved, they are run again
    /// on another one.
    pub(super) async fn on_master<'w, T>(
        &self,
        key: &str,
        work: impl Fn(MasterConnection) -> Work<'w, T> + Send,
    ) -> Result<T, BrokerError> {
        let mut tries = 0;
        loop {
            let connection = self.connection(key.as_bytes())?;
            let within = self.core.settings.command_timeout;
            let master = connection.master(within).await.ok_or(BrokerError::Unavailable)?;

            let error = match work(master.clone()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };

            connection.failed(&master, &error);
            if !fault::is_moved(&error) {
                let text = fault::describe(&error);
                tracing::debug!(server = %connection.server, error = text, "a Redis command failed");
                metrics::redis_error(Fault::of(&error).label());
                return Err(fault::classify(&error));
            }

            self.core.directory.doubt();
            tries += 1;
            if tries > MOVED_TRIES || !self.core.is_cluster() {
                return Err(BrokerError::Unavailable);
            }
            tokio::time::sleep(MOVED_PAUSE * tries).await;
        }
    }

    /// Publishes without keeping. The answer is how many subscribers the server delivered
    /// the message to.
    pub(super) async fn publish_plain(
        &self,
        key: &str,
        message: &[u8],
    ) -> Result<usize, BrokerError> {
        let mut command = redis::cmd(if self.core.is_cluster() { "SPUBLISH" } else { "PUBLISH" });
        command.arg(key).arg(message);
        self.query(key, &command).await
    }

    /// Runs one command on the master that has a key.
    pub(super) async fn query<T: FromRedisValue>(
        &self,
        key: &str,
        command: &Cmd,
    ) -> Result<T, BrokerError> {
        let ask = |mut master: MasterConnection| async move {
            fault::ask(&mut master.connection, command).await
        };
        self.on_master(key, |master| Box::pin(ask(master))).await
    }
}
