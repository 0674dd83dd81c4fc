//! Sentinel: one connection to each Sentinel, asked every second and at once when it announces a
//! switch. The answer with the highest configuration epoch counts, so a Sentinel that is behind
//! misleads nobody.
//!
//! A subscriber of the old master stays connected for about ten seconds after a planned failover
//! and hears nothing, so a switch does not wait for that connection to end. Not here: what a
//! changed map causes (`upkeep`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::core::{Core, Role};
use super::demotion::{OldMasters, Why};
use super::fault::{self, Fault};
use super::masters::Map;
use super::tap::PushMessage;
use super::watch::Backoff;
use crate::lifecycle;
use crate::logging;
use crate::metrics;
use crate::redis_url::Server;

const ASK_EVERY: Duration = Duration::from_secs(1);

/// What one Sentinel said, and when.
struct MasterReport {
    epoch: u64,
    master: Server,
    at: Instant,
}

/// An answer older than this does not count.
const FRESH: Duration = Duration::from_secs(5);

/// How long most Sentinels have to agree on an older configuration before it is believed: they were
/// set up anew then. A configuration that is merely new has reached all of them by that time.
const AGREED_FOR: Duration = Duration::from_secs(15);

/// What all Sentinels said.
#[derive(Default)]
struct SentinelView {
    /// The epoch of the configuration that counts.
    epoch: u64,
    master: Option<Server>,
    /// The Sentinel that named this master.
    by: Option<Server>,
    answers: HashMap<Server, MasterReport>,
    /// Since when most Sentinels have agreed on an older configuration.
    older_since: Option<Instant>,
}

impl SentinelView {
    /// Adds one answer. Returns the master that counts from now on, if it has changed.
    fn take(&mut self, from: &Server, answer: MasterReport, sentinels: usize) -> Option<Server> {
        let epoch = answer.epoch;
        let master = answer.master.clone();
        let now = answer.at;
        self.answers.insert(from.clone(), answer);

        let newer = match &self.master {
            None => true,
            // At an equal epoch another master is believed from the Sentinel that named the known
            // one, or if most of the Sentinels name it.
            Some(known) if epoch == self.epoch && *known != master => {
                self.by.as_ref() == Some(from) || self.agree(&master, now) * 2 > sentinels
            }
            Some(_) => epoch > self.epoch,
        };

        if newer {
            self.older_since = None;
            self.epoch = epoch;
        } else if epoch < self.epoch && self.agree(&master, now) * 2 > sentinels {
            let since = *self.older_since.get_or_insert(now);
            if now.duration_since(since) < AGREED_FOR {
                return None;
            }
            self.older_since = None;
            self.epoch = epoch;
        } else {
            if epoch == self.epoch {
                self.older_since = None;
            }
            return None;
        }

        self.by = Some(from.clone());
        self.master = Some(master.clone());
        Some(master)
    }

    /// How many Sentinels named that master recently.
    fn agree(&self, master: &Server, now: Instant) -> usize {
        let fresh = |a: &&MasterReport| now.duration_since(a.at) < FRESH && a.master == *master;
        self.answers.values().filter(fresh).count()
    }

    /// How many Sentinels answered recently.
    fn reached(&self) -> usize {
        self.answers.values().filter(|a| a.at.elapsed() < FRESH).count()
    }
}

/// Starts a watcher for each Sentinel.
pub(super) fn start(
    core: &Arc<Core>,
    old_masters: &Arc<OldMasters>,
    sentinels: Vec<Server>,
    name: &str,
) {
    let known = Arc::new(Mutex::new(SentinelView::default()));
    let count = sentinels.len();

    for sentinel in sentinels {
        let watcher = Watcher {
            count,
            core: Arc::clone(core),
            old_masters: Arc::clone(old_masters),
            known: Arc::clone(&known),
            sentinel,
            name: name.to_owned(),
        };
        lifecycle::spawn("redis_sentinel", watcher.run());
    }
}

/// The replicas that a Sentinel lists and can reach.
#[derive(Default)]
struct Listed {
    servers: HashSet<Server>,
    /// True if the Sentinel refuses to list them.
    refused: bool,
}

impl Listed {
    /// The servers to examine: those that are newly listed or could not be reached before, and
    /// those that call themselves a master.
    fn suspects(&mut self, replicas: &[HashMap<String, String>]) -> Vec<(Server, Why)> {
        let mut suspects = Vec::new();
        let mut servers = HashSet::new();

        for replica in replicas {
            let field = |name: &str| replica.get(name).map_or("", String::as_str);
            let Ok(port) = field("port").parse() else { continue };
            let flags = field("flags");
            if ["s_down", "o_down", "disconnected"].iter().any(|flag| flags.contains(flag)) {
                continue;
            }

            let server = Server { host: field("ip").to_owned(), port };
            if field("role-reported") == "master" {
                suspects.push((server.clone(), Why::Told));
            } else if !self.servers.contains(&server) {
                suspects.push((server.clone(), Why::Listed));
            }
            servers.insert(server);
        }

        self.servers = servers;
        suspects
    }
}

/// Follows one Sentinel.
struct Watcher {
    /// The number of all Sentinels.
    count: usize,
    core: Arc<Core>,
    old_masters: Arc<OldMasters>,
    known: Arc<Mutex<SentinelView>>,
    sentinel: Server,
    name: String,
}

impl Watcher {
    async fn run(self) {
        let mut backoff = Backoff::new(&self.core.settings);

        loop {
            let began = Instant::now();
            if let Err(e) = self.follow().await {
                let error = fault::describe(&e);
                let sentinel = self.sentinel.to_string();
                let said = error.clone();
                logging::repeated(("sentinel", "away"), &self.sentinel, move |repeated| {
                    tracing::warn!(%sentinel, error = said, repeated, "Sentinel does not answer");
                });

                let known = self.known.lock();
                let reached = known.reached();
                let none = known.master.is_none();
                drop(known);
                metrics::sentinels_reached(reached);

                if reached * 2 <= self.count {
                    let error = format!("{reached} of {} answer", self.count);
                    let what = "most Sentinels are unreachable: a failover would go unnoticed";
                    self.core.note(Role::Subscriber, &self.sentinel, what, &error);
                }

                if none {
                    let what = "no Sentinel has named the master yet";
                    self.core.note(Role::Subscriber, &self.sentinel, what, &error);
                }
            }

            if began.elapsed() > ASK_EVERY {
                backoff = Backoff::new(&self.core.settings);
            }
            backoff.wait().await;
        }
    }

    /// Follows one connection to its end.
    async fn follow(&self) -> RedisResult<()> {
        let switched = Arc::new(Notify::new());
        let bell = Arc::clone(&switched);
        let on_push = move |push: PushMessage<'_>| {
            if matches!(push, PushMessage::Message { .. } | PushMessage::Disconnected) {
                bell.notify_one();
            }
        };

        let connector = &self.core.connector;
        let mut connection = connector
            .open(&self.sentinel, &self.core.settings.sentinel, Some(Arc::new(on_push)))
            .await?;

        connection.subscribe("+switch-master").await?;
        let mut listed = Listed::default();
        loop {
            // The address comes first: while a failover is under way, its leader names the old
            // address with the new epoch. An address is adopted at an equal epoch, but never at
            // an older one.
            let mut ask = redis::cmd("SENTINEL");
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
            let address: Option<(String, u16)> = fault::ask(&mut connection, &ask).await?;

            let mut ask = redis::cmd("SENTINEL");
            ask.arg("MASTER").arg(&self.name);
            let fields: HashMap<String, String> = fault::ask(&mut connection, &ask).await?;
            let epoch = fields.get("config-epoch").and_then(|epoch| epoch.parse().ok());

            if let Some(((host, port), epoch)) = address.zip(epoch) {
                self.take(MasterReport {
                    epoch,
                    master: Server { host, port },
                    at: Instant::now(),
                });
            }
            self.examine_replicas(&mut connection, &mut listed).await?;

            // The next question follows after the interval, or at once after a switch.
            let _ = timeout(ASK_EVERY, switched.notified()).await;
        }
    }

    /// Examines the listed replicas, each of which may be an old master that publishers
    /// still reach.
    async fn examine_replicas(
        &self,
        connection: &mut MultiplexedConnection,
        listed: &mut Listed,
    ) -> RedisResult<()> {
        if listed.refused {
            return Ok(());
        }

        let mut ask = redis::cmd("SENTINEL");
        ask.arg("REPLICAS").arg(&self.name);
        let replicas: Vec<HashMap<String, String>> = match fault::ask(connection, &ask).await {
            Ok(replicas) => replicas,
            Err(e) if Fault::of(&e).is_an_answer() => {
                listed.refused = true;
                let error = fault::describe(&e);
                let sentinel = &self.sentinel;
                let name = sentinel.to_string();
                logging::repeated(("sentinel", "replicas"), sentinel, move |repeated| {
                    let what = "Sentinel denies SENTINEL REPLICAS: allow it, or an old master may \
                                go unnoticed";
                    tracing::warn!(sentinel = %name, error, repeated, "{what}");
                });
                return Ok(());
            }
            Err(e) => return Err(e),
        };

        for (server, why) in listed.suspects(&replicas) {
            self.old_masters.suspect(server, why);
        }

        Ok(())
    }

    fn take(&self, answer: MasterReport) {
        let mut known = self.known.lock();
        let change = known.take(&self.sentinel, answer, self.count);
        metrics::sentinels_reached(known.reached());
        drop(known);
        if let Some(master) = change {
            self.core.directory.set(Map::one(master));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(port: u16) -> Server {
        Server { host: "h".to_owned(), port }
    }

    #[test]
    fn who_may_be_an_old_master_is_looked_at() {
        let replica = |port: u16, flags: &str, role: &str| {
            let fields = [
                ("ip", "h".to_owned()),
                ("port", port.to_string()),
                ("flags", flags.to_owned()),
                ("role-reported", role.to_owned()),
            ];
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
        };

        let mut listed = Listed::default();
        let mut suspects = |replicas: &[HashMap<String, String>]| -> Vec<(u16, Why)> {
            listed.suspects(replicas).into_iter().map(|(s, why)| (s.port, why)).collect()
        };

        let up = "slave";
        let down = "s_down,slave,disconnected";
        assert_eq!(suspects(&[replica(1, up, "slave")]), [(1, Why::Listed)]);
        assert_eq!(suspects(&[replica(1, up, "slave")]), [], "seen");
        assert_eq!(suspects(&[replica(1, up, "slave"), replica(2, down, "master")]), []);
        assert_eq!(suspects(&[replica(1, up, "master")]), [(1, Why::Told)]);
        assert_eq!(suspects(&[replica(1, down, "slave")]), []);
        assert_eq!(suspects(&[replica(1, up, "slave")]), [(1, Why::Listed)], "it was down");
    }

    /// The test covers what the leader of a failover says, what a Sentinel that is behind says, and
    /// a new set-up.
    #[tokio::test(start_paused = true)]
    async fn r6_the_newest_configuration_counts() {
        let mut known = SentinelView::default();
        let mut said = |from: u16, epoch: u64, master: u16| {
            let answer = MasterReport { epoch, master: server(master), at: Instant::now() };
            known.take(&server(from), answer, 3).map(|master| master.port)
        };

        assert_eq!(said(1, 0, 10), Some(10));
        assert_eq!(said(2, 0, 10), None);
        assert_eq!(said(1, 1, 10), Some(10), "the old address with the new epoch");
        assert_eq!(said(2, 0, 10), None, "behind");
        assert_eq!(said(2, 1, 11), None, "one of three, at an equal epoch");
        assert_eq!(said(1, 1, 11), Some(11), "who named the old one names the new one");
        assert_eq!(said(3, 0, 10), None, "behind");
        assert_eq!(said(1, 1, 11), None);

        // All Sentinels are set up anew: their epochs begin at 0 again.
        assert_eq!(said(1, 0, 12), None);
        assert_eq!(said(2, 0, 12), None);
        for _ in 0..4 {
            tokio::time::advance(Duration::from_secs(4)).await;
            if let Some(change) = said(1, 0, 12).or_else(|| said(2, 0, 12)) {
                assert_eq!(change, 12);
                return;
            }
        }
        panic!("most of them agree for long enough");
    }
}
