//! One command connection to a master, which publishes, reads histories and keeps revocations.
//!
//! Not here: which master a command belongs to (`commands`). Invariant: the connection that
//! commands get is one that has answered, from a server that is a master.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::sync::watch::Sender;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::connect::MasterConnection;
use super::core::{Core, Role};
use super::fault::{self, Fault};
use super::fencing;
use super::library::{self, Calls};
use super::watch::{self, Backoff};
use super::writes::{self, Writes};
use crate::logging;
use crate::metrics;
use crate::redis_url::Server;

/// The interval at which the function library is checked: publishers use it without asking
/// the gateway.
const CHECK_LIBRARY_EVERY: Duration = Duration::from_secs(5);

/// The command connection to one master.
pub(super) struct CommandConnection {
    pub(super) server: Server,
    master: Sender<Option<MasterConnection>>,
    pub(super) writes: Writes,
    lost: Notify,
    stopped: AtomicBool,
}

impl CommandConnection {
    pub(super) fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            master: Sender::new(None),
            writes: Writes::default(),
            lost: Notify::new(),
            stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.master.borrow().is_some()
    }

    /// Returns the connection. If there is none, waits for the next one, for at most `within`.
    pub(super) async fn master(&self, within: Duration) -> Option<MasterConnection> {
        let mut master = self.master.subscribe();
        let found = timeout(within, master.wait_for(Option::is_some)).await;
        found.ok()?.ok()?.clone()
    }

    /// Handles a failed command: connects again if the current connection is the cause.
    pub(super) fn failed(&self, master: &MasterConnection, error: &RedisError) {
        let is_current = self.master.borrow().as_ref().is_some_and(|current| current.is(master));
        // A master that became a replica says so in an answer; then another server has to be found.
        if is_current && (Fault::of(error) == Fault::Gone || error.code() == Some("READONLY")) {
            self.lost.notify_one();
        }
    }

    /// Notes that a canary which was published here was missed: a new connection may find
    /// another server.
    pub(super) fn suspect(&self) {
        self.lost.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.lost.notify_one();
    }
}

/// Keeps the connection up until it is stopped.
pub(super) async fn run(core: Arc<Core>, command: Arc<CommandConnection>) {
    let mut backoff = Backoff::new(&core.settings);

    while !command.stopped.load(Ordering::Acquire) {
        match open(&core, &command.server).await {
            Ok(master) => {
                let began = Instant::now();
                let replaced = watch::watch_replication_id(master.clone());

                // A notification that is left over concerns the previous connection.
                let _ = command.lost.notified().now_or_never();
                if command.stopped.load(Ordering::Acquire) {
                    return;
                }

                let pinged = watch::ping_until_lost(master.connection.clone(), &core.settings);
                let looked = watch_library(&core, &command.server, master.clone());
                let moved = watch::watch_address(
                    &core,
                    &command.server,
                    Arc::clone(&master.replication_id),
                );
                let written =
                    writes::watch(&core, &command.writes, &command.server, master.clone());

                command.master.send_replace(Some(master));
                core.state_changed();
                watch::log_connected(Role::Publisher, &command.server);

                let error = tokio::select! {
                    error = pinged => error,
                    error = looked => error,
                    error = replaced => error,
                    error = moved => error,
                    error = written => error,
                    () = command.lost.notified() => "a command failed".to_owned(),
                };

                command.master.send_replace(None);
                core.state_changed();
                if command.stopped.load(Ordering::Acquire) {
                    return;
                }

                core.note(Role::Publisher, &command.server, "connection to Redis lost", &error);
                metrics::redis_reconnect();
                if began.elapsed() > core.settings.reconnect_max {
                    backoff = Backoff::new(&core.settings);
                }
            }
            Err(e) => {
                core.failed(Role::Publisher, &command.server, "cannot connect to Redis", &e);
            }
        }

        core.directory.doubt();
        backoff.wait().await;
    }
}

async fn open(core: &Core, server: &Server) -> RedisResult<MasterConnection> {
    let mut master = fencing::open(core, server, None).await?;
    check_library(core, server, &mut master).await?;
    Ok(master)
}

/// Checks the function library. A server that refuses it (out of memory, too few replicas) still
/// accepts plain publications.
async fn check_library(
    core: &Core,
    server: &Server,
    master: &mut MasterConnection,
) -> RedisResult<()> {
    let calls = match library::ensure(&mut master.connection, &core.statement()).await {
        Ok(calls) => calls,
        Err(e) if Fault::of(&e).is_an_answer() => {
            let what = "Redis cannot load the function library at the moment";
            core.failed(Role::Writer, server, what, &e);
            return Ok(());
        }
        Err(e) => return Err(e),
    };

    let scripts = calls == Calls::Scripts;
    if !core.scripts.swap(scripts, Ordering::AcqRel) && scripts {
        let name = server.to_string();
        logging::repeated(("redis", "scripts"), server, move |repeated| {
            tracing::warn!(
                server = %name,
                repeated,
                "Redis has no functions, or denies FUNCTION LOAD: the gateway uses scripts, and \
                 publishers cannot FCALL tollgate_publish"
            );
        });
    }

    Ok(())
}

/// Checks the library and the fence until the connection fails. Returns the reason.
async fn watch_library(core: &Core, server: &Server, mut master: MasterConnection) -> String {
    loop {
        sleep(CHECK_LIBRARY_EVERY).await;
        let looked = check_library(core, server, &mut master).await;
        if let Err(e) = looked.and(fencing::learn(core, &mut master).await) {
            return fault::describe(&e);
        }
    }
}
