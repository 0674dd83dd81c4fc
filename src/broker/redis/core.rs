//! What all of this module stands on: the settings, where the masters are, where events go, the
//! names of keys and channels, and the state that is shown.
//!
//! Not here: any connection. The core knows none of its users: a change of state and a moved fence
//! are announced, and `upkeep` acts on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use redis::RedisError;
use tokio::sync::{Notify, watch};

use super::connect::{Connector, MAX_STRING};
use super::fault::{self, Fault};
use super::library::{Calling, Calls};
use super::masters::Directory;
use super::settings::Settings;
use super::stated::Statement;
use crate::broker::{Events, Failure, Said};
use crate::channel::ChannelName;
use crate::logging;
use crate::metrics;
use crate::redis_url::{Server, Target, Topology};

/// The names of the gateway's own keys and channels begin with this, before the prefix.
pub const OWN: &str = "gateway:";

/// What a connection, or a server, is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Subscriber,
    Publisher,
    /// The part that keeps durable publications.
    Writer,
}

impl Role {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Subscriber => "subscriber",
            Self::Publisher => "publisher",
            Self::Writer => "writer",
        }
    }
}

/// The fence of the replication identity that was seen last; epochs of any other are not
/// trusted anyway.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) replication_id: Arc<str>,
    pub(super) at: u64,
}

impl Fence {
    /// The earliest trusted epoch of a replication identity.
    fn of(&self, replication_id: &str) -> u64 {
        if *self.replication_id == *replication_id { self.at } else { 0 }
    }
}

/// What all of this module stands on.
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) connector: Connector,
    pub(super) directory: Directory,
    pub(super) events: Arc<Events>,
    /// Identifies this process among the replicas, for its canaries.
    pub(super) uid: String,
    /// True if the server runs scripts because it has no functions.
    pub(super) scripts: AtomicBool,
    pub(super) fence: watch::Sender<Fence>,
    pub(super) last_error: Mutex<Option<Failure>>,
    /// Notified after every change of a connection's state.
    pub(super) changed: Notify,
}

impl Core {
    pub(super) fn new(
        settings: Settings,
        target: Target,
        directory: Directory,
        events: Arc<Events>,
    ) -> Self {
        Self {
            connector: Connector::new(settings.clone(), target),
            directory,
            settings,
            events,
            uid: format!("{:016x}", fastrand::u64(..)),
            scripts: AtomicBool::new(false),
            fence: watch::Sender::default(),
            last_error: Mutex::new(None),
            changed: Notify::new(),
        }
    }

    /// Announces that the state of a connection has changed.
    pub(super) fn state_changed(&self) {
        self.changed.notify_one();
    }

    /// The earliest trusted epoch of a server with that replication identity.
    pub(super) fn fence_of(&self, replication_id: &str) -> u64 {
        self.fence.borrow().of(replication_id)
    }

    /// Notes and logs what went wrong with a server. The text may name hosts, but never
    /// holds credentials.
    pub(super) fn note(&self, role: Role, server: &Server, what: &'static str, error: &str) {
        let role = role.label();
        let name = server.to_string();
        let said = error.to_owned();
        logging::repeated((role, what), &(server, error), move |repeated| {
            tracing::warn!(role, server = %name, error = said, repeated, "{what}");
        });
        let what = format!("{role}: {server}: {what}: {error}");
        *self.last_error.lock() = Some(Failure { at: SystemTime::now(), what });
    }

    /// Like [`Self::note`], for an error that came from the server.
    pub(super) fn failed(
        &self,
        role: Role,
        server: &Server,
        what: &'static str,
        error: &RedisError,
    ) {
        metrics::redis_error(Fault::of(error).label());
        self.note(role, server, what, &fault::describe(error));
    }

    /// Notes that a key which only the function library writes holds something else. This harms
    /// only the key's own channel, which has no history then.
    pub(super) fn bad_key(&self, key: &str, error: &str) {
        metrics::redis_error(Fault::BadKey.label());
        let name = Said::new(key);
        let said = error.to_owned();
        logging::repeated(("redis", "bad_key"), key, move |repeated| {
            let what = "a key of the gateway in Redis holds foreign data: its channel has no \
                        history";
            tracing::warn!(key = %name, error = said, repeated, "{what}");
        });
    }

    /// How the library is called. The server that was examined last decides for all servers.
    pub(super) fn calling(&self) -> Calling {
        let scripts = self.scripts.load(Ordering::Acquire);
        let calls = if scripts { Calls::Scripts } else { Calls::Functions };
        Calling { calls, statement: self.statement() }
    }

    /// What this gateway states in the function library.
    pub(super) fn statement(&self) -> Statement {
        Statement {
            prefix: self.settings.prefix.clone(),
            max_bytes: self.max_bytes(),
            refuses: self.settings.refuse_wrong,
            beside_0_1: self.settings.beside_0_1,
        }
    }

    pub(super) fn max_bytes(&self) -> usize {
        self.connector.max_publication.load(Ordering::Relaxed).min(MAX_STRING)
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.connector.target.topology, Topology::Cluster(_))
    }

    /// The name in Redis of a channel, and of its history.
    pub(super) fn key(&self, channel: &ChannelName) -> String {
        if channel.is_control_0_1() {
            return self.key_0_1("control");
        }
        if channel.is_control() {
            return self.own_key(channel.as_str());
        }
        format!("{}{channel}", self.settings.prefix)
    }

    /// A key or channel of the gateway's own, which no pattern granted to publishers reaches.
    pub(super) fn own_key(&self, name: &str) -> String {
        format!("{OWN}{}{name}", self.settings.prefix)
    }

    /// A name of the gateway's own that begins with `stem`, and its key, which belongs to that
    /// server. In a cluster, names are tried until one does; `None` if the server has hardly any
    /// slots.
    pub(super) fn own_name_on(&self, server: &Server, stem: &str) -> Option<(String, String)> {
        let map = self.directory.current();
        let at = map.masters.iter().position(|master| master == server)?;
        let names = (0..100_000).map(|n| format!("{stem}:{n}"));
        let mut named = names.map(|name| {
            let key = self.own_key(&name);
            (name, key)
        });
        named.find(|(_, key)| map.master_of(key.as_bytes()) == Some(at))
    }

    /// The name under which version 0.1 has it. Publishers' patterns reach that name.
    pub(super) fn key_0_1(&self, name: &str) -> String {
        format!("{}{name}", self.settings.prefix)
    }

    /// Removes the prefix that `key` or `own_key` adds to a channel's name. Returns `None` for any
    /// foreign name.
    pub(super) fn strip<'n>(&self, name: &'n [u8]) -> Option<&'n str> {
        let prefix = self.settings.prefix.as_bytes();
        let own = name.strip_prefix(OWN.as_bytes()).and_then(|name| name.strip_prefix(prefix));
        if let Some(own) = own {
            return std::str::from_utf8(own).ok();
        }
        match std::str::from_utf8(name.strip_prefix(prefix)?).ok()? {
            // This channel is subscribed only if replicas of version 0.1 are expected.
            "control" => Some("control:0.1"),
            name => Some(name),
        }
    }
}
