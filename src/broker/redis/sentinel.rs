//! Sentinel: one connection to each, asked every second and at once when it announces a switch. The
//! answer with the highest configuration epoch counts, so one that is behind misleads nobody.
//!
//! A subscriber of the old master stays connected for about ten seconds after a planned failover
//! and hears nothing, so nobody waits for an end of that connection. And whoever still publishes to
//! the old master until it is demoted loses that: when it is, everything is declared once more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, RedisConnectionInfo, RedisResult};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::connect::{self, Backoff};
use super::masters::Map;
use super::{Role, Shared};
use crate::channel::GapReason;
use crate::lifecycle;
use crate::redis_url::Server;

const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long an old master is watched for its demotion.
const DEMOTED_WITHIN: Duration = Duration::from_secs(60);

/// The best answer so far.
#[derive(Default)]
struct Known {
    epoch: u64,
    master: Option<Server>,
}

/// Starts a watcher for each Sentinel.
pub(super) fn start(shared: &Arc<Shared>, sentinels: Vec<Server>, name: &str) {
    let known = Arc::new(Mutex::new(Known::default()));
    for sentinel in sentinels {
        let watcher = Watcher {
            shared: Arc::clone(shared),
            known: Arc::clone(&known),
            sentinel,
            name: name.to_owned(),
        };
        lifecycle::spawn("redis_sentinel", watcher.run());
    }
}

struct Watcher {
    shared: Arc<Shared>,
    known: Arc<Mutex<Known>>,
    sentinel: Server,
    name: String,
}

impl Watcher {
    async fn run(self) {
        let mut backoff = Backoff::new(&self.shared.settings);
        loop {
            let began = Instant::now();
            if let Err(e) = self.follow().await {
                let error = connect::describe(&e);
                tracing::warn!(sentinel = %self.sentinel, error, "Sentinel does not answer");
                if self.known.lock().master.is_none() {
                    self.shared.note(Role::Subscriber, "no master known from Sentinel", &error);
                }
            }
            if began.elapsed() > ASK_EVERY {
                backoff = Backoff::new(&self.shared.settings);
            }
            backoff.wait().await;
        }
    }

    /// Follows one connection to its end.
    async fn follow(&self) -> RedisResult<()> {
        let credentials = &self.shared.settings.sentinel;
        let mut redis = RedisConnectionInfo::default().set_protocol(redis::ProtocolVersion::RESP3);
        if let Some((user, password)) = credentials {
            redis = redis.set_password(password);
            if !user.is_empty() {
                redis = redis.set_username(user);
            }
        }
        let switched = Arc::new(Notify::new());
        let bell = Arc::clone(&switched);
        let on_push = move |info: PushInfo| {
            if matches!(info.kind, PushKind::Message | PushKind::Disconnection) {
                bell.notify_one();
            }
        };
        let connector = &self.shared.connector;
        let mut connection =
            connector.open(&self.sentinel, &redis, Some(Box::new(on_push))).await?;
        connection.subscribe("+switch-master").await?;
        loop {
            let mut ask = redis::cmd("SENTINEL");
            ask.arg("MASTER").arg(&self.name);
            let fields: HashMap<String, String> = ask.query_async(&mut connection).await?;
            self.take(&fields);
            // Time passing is as good a reason to ask as a switch.
            let _ = timeout(ASK_EVERY, switched.notified()).await;
        }
    }

    fn take(&self, fields: &HashMap<String, String>) {
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let (Ok(port), Ok(epoch)) = (field("port").parse(), field("config-epoch").parse::<u64>())
        else {
            return;
        };
        let master = Server { host: field("ip").to_owned(), port };
        let old = {
            let mut known = self.known.lock();
            if known.master.is_some() && epoch <= known.epoch {
                return;
            }
            known.epoch = epoch;
            known.master.replace(master.clone()).filter(|old| *old != master)
        };
        self.shared.directory.set(Map::one(master));
        if let Some(old) = old {
            let shared = Arc::clone(&self.shared);
            lifecycle::spawn("redis_old_master", declare_when_demoted(shared, old));
        }
    }
}

/// Waits until the old master takes no more publications, and declares those that it took since.
async fn declare_when_demoted(shared: Arc<Shared>, old: Server) {
    let began = Instant::now();
    while began.elapsed() < DEMOTED_WITHIN {
        // A replica is refused, and one that cannot be reached takes nothing either.
        if shared.connector.master(&old, None).await.is_err() {
            break;
        }
        sleep(ASK_EVERY / 4).await;
    }
    tracing::info!(server = %old, "the old master is a master no more");
    shared.interrupt_all(GapReason::HistoryLost);
}
