//! One command connection to each master, which publishes, reads histories and keeps revocations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use redis::{RedisError, RedisResult};
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep, timeout};

use super::connect::{self, Backoff, Link};
use super::fault::{self, Fault};
use super::library::{self, Calls};
use super::writes::{self, Writes};
use super::{Role, Shared, fence};
use crate::logging;
use crate::metrics;
use crate::redis_url::Server;

/// The interval at which the library is checked: publishers use it without asking the gateway.
const LOOK_AT_LIBRARY: Duration = Duration::from_secs(5);

pub(super) struct Node {
    pub(super) server: Server,
    link: watch::Sender<Option<Link>>,
    pub(super) writes: Writes,
    lost: Notify,
    stopped: AtomicBool,
}

impl Node {
    pub(super) fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            link: watch::Sender::new(None),
            writes: Writes::default(),
            lost: Notify::new(),
            stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.borrow().is_some()
    }

    /// The connection. If there is none, the next one, if it is made within that time.
    pub(super) async fn link(&self, within: Duration) -> Option<Link> {
        let mut link = self.link.subscribe();
        let found = timeout(within, link.wait_for(Option::is_some)).await;
        found.ok()?.ok()?.clone()
    }

    /// Handles a failed command: connects again if the current connection is the cause.
    pub(super) fn failed(&self, link: &Link, error: &RedisError) {
        let is_current = self.link.borrow().as_ref().is_some_and(|current| current.is(link));
        // A master that became a replica says so in an answer; then another server has to be found.
        if is_current && (Fault::of(error) == Fault::Gone || error.code() == Some("READONLY")) {
            self.lost.notify_one();
        }
    }

    /// Notes that a canary which was published here was missed: a new connection may find another
    /// server.
    pub(super) fn suspect(&self) {
        self.lost.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.lost.notify_one();
    }
}

/// Keeps up the connection until it is stopped.
pub(super) async fn run(shared: Arc<Shared>, node: Arc<Node>) {
    let mut backoff = Backoff::new(&shared.settings);

    while !node.stopped.load(Ordering::Acquire) {
        match open(&shared, &node.server).await {
            Ok(link) => {
                let began = Instant::now();
                let reigns = connect::watch_reign(link.clone());

                // A notification that is left over concerns the previous connection.
                let _ = node.lost.notified().now_or_never();
                if node.stopped.load(Ordering::Acquire) {
                    return;
                }

                let pinged = connect::ping_until_lost(link.connection.clone(), &shared.settings);
                let looked = look_at_library(&shared, &node.server, link.clone());
                let moved = connect::watch_address(&shared, &node.server, Arc::clone(&link.run));
                let written = writes::watch(&shared, &node, link.clone());

                node.link.send_replace(Some(link));
                shared.report();
                connect::log_connected(Role::Publisher, &node.server);

                let error = tokio::select! {
                    error = pinged => error,
                    error = looked => error,
                    error = reigns => error,
                    error = moved => error,
                    error = written => error,
                    () = node.lost.notified() => "a command failed".to_owned(),
                };

                node.link.send_replace(None);
                shared.report();
                if node.stopped.load(Ordering::Acquire) {
                    return;
                }

                shared.note(Role::Publisher, &node.server, "connection to Redis lost", &error);
                metrics::redis_reconnect();
                if began.elapsed() > shared.settings.reconnect_max {
                    backoff = Backoff::new(&shared.settings);
                }
            }
            Err(e) => {
                shared.failed(Role::Publisher, &node.server, "cannot connect to Redis", &e);
            }
        }

        shared.directory.doubt();
        backoff.wait().await;
    }
}

async fn open(shared: &Shared, server: &Server) -> RedisResult<Link> {
    let mut link = shared.master(server, None).await?;
    look(shared, server, &mut link).await?;
    Ok(link)
}

/// Checks the library. A server that refuses it (out of memory, too few replicas) still publishes
/// plainly.
async fn look(shared: &Shared, server: &Server, link: &mut Link) -> RedisResult<()> {
    let calls = match library::ensure(&mut link.connection, shared.max_bytes()).await {
        Ok(calls) => calls,
        Err(e) if Fault::of(&e).is_an_answer() => {
            let what = "Redis does not take the function library now";
            shared.failed(Role::Writer, server, what, &e);
            return Ok(());
        }
        Err(e) => return Err(e),
    };

    let scripts = calls == Calls::Scripts;
    if !shared.scripts.swap(scripts, Ordering::AcqRel) && scripts {
        let name = server.to_string();
        logging::repeated(("redis", "scripts"), server, move |repeated| {
            tracing::warn!(
                server = %name,
                repeated,
                "Redis has no functions, or does not let us load them (FUNCTION LOAD): scripts are \
                 used, and publishers cannot FCALL tollgate_publish"
            );
        });
    }

    Ok(())
}

/// Runs until the connection fails; returns the reason.
async fn look_at_library(shared: &Shared, server: &Server, mut link: Link) -> String {
    loop {
        sleep(LOOK_AT_LIBRARY).await;
        let looked = look(shared, server, &mut link).await;
        if let Err(e) = looked.and(fence::learn(shared, &mut link).await) {
            return fault::describe(&e);
        }
    }
}
