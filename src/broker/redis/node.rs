//! One command connection to each master: what publishes, reads histories and keeps revocations.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redis::{RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::{Duration, sleep};

use super::connect::{self, Backoff, Link};
use super::durable::{self, Calls};
use super::{Role, Shared};
use crate::metrics;
use crate::redis_url::Server;

/// The library is looked at this often: publishers use it without asking us.
const LOOK_AT_LIBRARY: Duration = Duration::from_secs(5);

pub(super) struct Node {
    pub(super) server: Server,
    link: Mutex<Option<Link>>,
    lost: Notify,
    stopped: AtomicBool,
}

impl Node {
    pub(super) fn new(server: Server) -> Arc<Self> {
        Arc::new(Self {
            server,
            link: Mutex::new(None),
            lost: Notify::new(),
            stopped: AtomicBool::new(false),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        self.link.lock().is_some()
    }

    pub(super) fn link(&self) -> Option<Link> {
        self.link.lock().clone()
    }

    /// A command failed: is that the connection's fault?
    pub(super) fn failed(&self, error: &RedisError) {
        if error.is_timeout() || error.is_io_error() || error.is_unrecoverable_error() {
            self.lost.notify_one();
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.lost.notify_one();
    }
}

/// Keeps the connection until it is stopped.
pub(super) async fn run(shared: Arc<Shared>, node: Arc<Node>) {
    let mut backoff = Backoff::new(&shared.settings);
    while !node.stopped.load(Ordering::Acquire) {
        match open(&shared, &node.server).await {
            Ok(link) => {
                backoff = Backoff::new(&shared.settings);
                let pinged = connect::ping_until_lost(link.connection.clone(), &shared.settings);
                let looked = look_at_library(&shared, link.clone());
                *node.link.lock() = Some(link);
                shared.report();
                tracing::info!(server = %node.server, "publisher connected to Redis");
                let error = tokio::select! {
                    error = pinged => error,
                    error = looked => error,
                    () = node.lost.notified() => "a command failed".to_owned(),
                };
                *node.link.lock() = None;
                shared.report();
                if node.stopped.load(Ordering::Acquire) {
                    return;
                }
                shared.note(Role::Publisher, "connection to Redis lost", &error);
                metrics::redis_reconnect();
            }
            Err(e) => {
                shared.note(Role::Publisher, "cannot connect to Redis", &connect::describe(&e));
            }
        }
        shared.directory.doubt();
        backoff.wait().await;
    }
}

async fn open(shared: &Shared, server: &Server) -> RedisResult<Link> {
    let mut link = shared.connector.master(server, None).await?;
    look(shared, &mut link).await?;
    Ok(link)
}

async fn look(shared: &Shared, link: &mut Link) -> RedisResult<()> {
    let calls = durable::ensure(&mut link.connection).await?;
    shared.scripts.store(calls == Calls::Scripts, Ordering::Release);
    Ok(())
}

/// Returns only what ended it.
async fn look_at_library(shared: &Shared, mut link: Link) -> String {
    loop {
        sleep(LOOK_AT_LIBRARY).await;
        if let Err(e) = look(shared, &mut link).await {
            return connect::describe(&e);
        }
    }
}
