//! Old masters: publications to an old master are lost until it has become a replica. Its channels
//! are declared lost for as long as that may go on, and once more when it ends.
//!
//! A gateway replica that starts later has seen no switch, and an old master that was down may
//! return as a master. So servers that Sentinel lists as replicas are examined too. Not here: what
//! the fence means (`fencing`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{RedisResult, Value};
use tokio::time::{Instant, sleep};

use super::commands::Commands;
use super::connect::MasterConnection;
use super::core::Core;
use super::masters::Map;
use super::routes::Routes;
use super::watch::Backoff;
use super::{fault, fencing};
use crate::broker::BrokerError;
use crate::channel::ChannelName;
use crate::lifecycle;
use crate::redis_url::Server;

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long an old master is watched for its demotion, and how often the possible losses
/// are declared.
const DEMOTED_WITHIN: Duration = Duration::from_secs(300);
const DECLARE_EVERY: Duration = Duration::from_secs(15);

/// For how long the fence is tried to be set while the new master refuses it.
const FENCED_WITHIN: Duration = Duration::from_secs(300);

/// How many seconds a fence is kept: no history is older.
const KEPT: u64 = 31_536_000;

/// The watch on old masters.
pub(super) struct OldMasters {
    core: Arc<Core>,
    commands: Arc<Commands>,
    routes: Arc<Routes>,
    /// The servers that are watched now, and whether each is watched because it was the master.
    watched: Mutex<HashSet<(Server, bool)>>,
}

/// Why a server is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It was the master until now.
    Switched,
    /// Sentinel says that it calls itself a master.
    Told,
    /// Sentinel lists it as a replica, and it is new there or was down.
    Listed,
}

/// A server that is not the master and may believe that it is.
struct Old {
    all: Arc<OldMasters>,
    server: Server,
    /// The map of the time in which it was the master, and its index there; `None` if this replica
    /// saw no switch.
    map: Option<(Arc<Map>, usize)>,
    /// When it last was a master, as far as is known.
    seen: Option<Instant>,
}

impl OldMasters {
    pub(super) fn new(commands: Arc<Commands>, routes: Arc<Routes>) -> Arc<Self> {
        let core = Arc::clone(&commands.core);
        Arc::new(Self { core, commands, routes, watched: Mutex::default() })
    }

    /// Watches the server that was the master at that index of a map.
    pub(super) fn switched(self: &Arc<Self>, map: &Arc<Map>, index: usize) {
        self.start(map.masters[index].clone(), Some((Arc::clone(map), index)), Why::Switched);
    }

    /// Watches, or only examines, a server that Sentinel lists as a replica.
    pub(super) fn suspect(self: &Arc<Self>, server: Server, why: Why) {
        self.start(server, None, why);
    }

    /// Starts the watch, unless the server is watched already.
    fn start(self: &Arc<Self>, server: Server, map: Option<(Arc<Map>, usize)>, why: Why) {
        let switched = why == Why::Switched;
        let entry = (server, switched);

        let mut watched = self.watched.lock();
        let known = !switched && watched.contains(&(entry.0.clone(), true));
        if known || !watched.insert(entry.clone()) {
            return;
        }

        let seen = switched.then(Instant::now);
        let mut old = Old { all: Arc::clone(self), server: entry.0.clone(), map, seen };

        lifecycle::spawn("redis_old_master", async move {
            old.watch(why).await;
            old.all.watched.lock().remove(&entry);
        });
    }
}

impl Old {
    /// Waits until the server accepts no more publications, and declares those lost that it
    /// accepted meanwhile: at intervals while it goes on, once if the server cannot be reached from
    /// here and may go on, and at the end.
    async fn watch(&mut self, why: Why) {
        // True if there is more evidence than Sentinel's word that the server is a master.
        let mut sure = why == Why::Switched;
        let began = Instant::now();
        let mut declared = Instant::now();
        let mut unreached = false;

        while began.elapsed() < DEMOTED_WITHIN {
            if self.seen.is_some() {
                sleep(LOOK_EVERY).await;
            }

            let master = || self.all.core.directory.current().masters.contains(&self.server);
            if !self.all.core.is_cluster() && master() {
                // It is the master again, or still. Losses on another server are for that server's
                // watch to declare.
                return;
            }

            match self.all.core.connector.master(&self.server, None).await {
                // The server is part of the cluster, and redirects clients that ask for slots
                // that it gave up.
                Ok(there) if self.all.core.is_cluster() && is_in_touch(&there).await => {
                    return self.over().await;
                }
                Ok(_) => {
                    (sure, self.seen) = (true, Some(Instant::now()));
                    if declared.elapsed() > DECLARE_EVERY {
                        declared = Instant::now();
                        self.declare();
                    }
                }
                // The server is a replica, or nothing listens there.
                Err(e) if e.kind() == redis::ErrorKind::Client => return self.over().await,
                Err(e) if sure && e.is_connection_refusal() => return self.over().await,
                // Sentinel will report it again if it is a master.
                Err(_) if self.seen.is_none() && why == Why::Listed => return,
                Err(_) if !unreached => {
                    unreached = true;
                    self.seen.get_or_insert_with(Instant::now);
                    self.declare();
                }
                Err(_) => {}
            }
        }

        tracing::warn!(server = %self.server, "the old master has not become a replica: \
                                               publications that it still accepts are lost");
        self.over().await;
    }

    /// True if the channel was, or may have been, on this server.
    fn has(&self, channel: &ChannelName) -> bool {
        self.map.as_ref().is_none_or(|(map, index)| {
            map.master_of(self.all.core.key(channel).as_bytes()) == Some(*index)
        })
    }

    fn declare(&self) {
        self.all.routes.declare_lost(&|channel, _| self.has(channel));
    }

    /// Ends the watch: the server is no longer a master, so the fence is raised.
    async fn over(&self) {
        let Some(seen) = self.seen else { return };
        tracing::info!(server = %self.server, "the old master is no longer a master");

        let began = Instant::now();
        let mut backoff = Backoff::new(&self.all.core.settings);
        let mut told = false;

        loop {
            match raise(&self.all.commands, seen).await {
                Ok(true) => return,
                Ok(false) => return self.declare(),
                Err(error) => {
                    if !told {
                        told = true;
                        tracing::warn!(%error, "cannot write the failover fence: trying again");
                        self.declare();
                    }
                    if began.elapsed() > FENCED_WITHIN {
                        tracing::warn!(%error, "failover fence not written: clients that resume \
                                                may miss events the old master accepted");
                        return;
                    }
                }
            }

            backoff.wait().await;
        }
    }
}

/// True if the server is in touch with its cluster.
async fn is_in_touch(master: &MasterConnection) -> bool {
    let mut ask = redis::cmd("CLUSTER");
    let info: RedisResult<String> =
        fault::ask(&mut master.connection.clone(), ask.arg("INFO")).await;
    info.is_ok_and(|info| info.contains("cluster_state:ok"))
}

/// Sets the fence to the current time, unless it is later than the moment at which the old master
/// was last seen as one: another replica has set it for the same end then. Returns false if no
/// fence is used.
async fn raise(commands: &Commands, seen: Instant) -> Result<bool, BrokerError> {
    let core = &*commands.core;
    let set = |mut master: MasterConnection| async move {
        if !fencing::is_used(core, &master) {
            return Ok(false);
        }
        let key = fencing::key(core, &master.replication_id);
        let connection = &mut master.connection;

        let (seconds, micros): (u64, u64) = fault::ask(connection, &redis::cmd("TIME")).await?;
        let now = seconds * 1_000_000 + micros;
        let then = now.saturating_sub(u64::try_from(seen.elapsed().as_micros()).unwrap_or(now));
        let at: Option<u64> = fault::ask(connection, redis::cmd("GET").arg(&key)).await?;

        if at.is_none_or(|at| at < then) {
            let mut set = redis::cmd("SET");
            set.arg(&key).arg(now).arg("EX").arg(KEPT);
            // Several replicas that see the same end set it to about the same moment.
            set.arg(if at.is_none() { "NX" } else { "XX" });
            fault::ask::<Value>(connection, &set).await?;
        }

        fencing::learn(core, &mut master).await.map(|()| true)
    };
    commands.on_master(&core.settings.prefix, |master| Box::pin(set(master))).await
}
