//! Messages between replicas: "disconnect this user everywhere", "this is revoked", and the
//! announcements that tell each replica which others exist.
//!
//! They travel on a channel of the gateway's own, so no publisher's ACL has to permit it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Gateway;
use crate::auth::Revocation;
use crate::hub::Counts;
use crate::logging;
use crate::protocol::codes::{Close, CloseCode};
use crate::strict;

/// Seconds between two announcements of a node.
pub(super) const ANNOUNCE_EVERY: u64 = 3;

/// A node that has been silent for this long counts as gone.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// Most nodes that are remembered at once.
const MAX_NODES: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Close all connections of a user, or only the one with this connection id.
    Disconnect {
        user: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client: Option<String>,
    },
    /// A token, or all of a user's tokens, are no longer accepted.
    Revoke {
        #[serde(deserialize_with = "strict::object")]
        revocation: Revocation,
    },
    /// A replica announces itself.
    Node {
        #[serde(deserialize_with = "strict::object")]
        info: NodeInfo,
    },
}

impl Control {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// One replica, as `/api/info` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub uid: String,
    pub name: String,
    pub version: String,
    pub num_clients: usize,
    pub num_users: usize,
    pub num_subs: usize,
    pub num_channels: usize,
    /// Seconds.
    pub uptime: u64,
}

/// The replicas that announced themselves recently.
pub struct Nodes {
    own: NodeInfo,
    started: Instant,
    seen: Mutex<HashMap<String, (NodeInfo, Instant)>>,
}

impl Nodes {
    pub(super) fn new(own: NodeInfo) -> Self {
        Self { own, started: Instant::now(), seen: Mutex::default() }
    }

    /// The id of this process, which is the first part of its connection ids.
    #[must_use]
    pub fn own_uid(&self) -> &str {
        &self.own.uid
    }

    fn own(&self, counts: Counts) -> NodeInfo {
        NodeInfo {
            num_clients: counts.connections,
            num_users: counts.users,
            num_subs: counts.subscriptions,
            num_channels: counts.channels,
            uptime: self.started.elapsed().as_secs(),
            ..self.own.clone()
        }
    }

    pub(super) fn announcement(&self, counts: Counts) -> Control {
        Control::Node { info: self.own(counts) }
    }

    fn saw(&self, info: NodeInfo) {
        let mut seen = self.seen.lock();
        seen.retain(|_, (_, at)| at.elapsed() < FORGET_AFTER);
        if seen.len() < MAX_NODES || seen.contains_key(&info.uid) {
            seen.insert(info.uid.clone(), (info, Instant::now()));
        }
    }

    /// This node as it is now, and the others as they last announced themselves, sorted by name.
    #[must_use]
    pub fn all(&self, counts: Counts) -> Vec<NodeInfo> {
        let fresh = |(_, at): &&(NodeInfo, Instant)| at.elapsed() < FORGET_AFTER;
        let seen = self.seen.lock();

        let others = seen.values().filter(fresh).map(|(info, _)| info);
        let mut all: Vec<_> = others.filter(|n| n.uid != self.own.uid).cloned().collect();

        all.push(self.own(counts));
        all.sort_by(|a, b| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)));
        all
    }
}

impl Gateway {
    /// Carries out a received control message. Applying a message twice has the same effect as
    /// applying it once.
    pub(super) fn apply(&self, message: &[u8]) {
        match strict::from_slice(message) {
            Ok(control) => self.carry_out(control),
            Err(error) => logging::repeated(("control", "unknown"), "", move |repeated| {
                let why = format!("{:?}, column {}", error.classify(), error.column());
                tracing::warn!(why, repeated, "a control message that this version does not know");
            }),
        }
    }

    pub(super) fn carry_out(&self, control: Control) {
        match control {
            Control::Disconnect { user, client } => {
                let ours = |c: &crate::hub::Connection| {
                    client.as_ref().is_none_or(|id| *id == self.connection_id(c))
                };

                for connection in self.hub.of_user(&user).iter().filter(|c| ours(c)) {
                    connection.close(Close::new(CloseCode::Disconnected, "disconnected"));
                }
            }
            Control::Revoke { revocation } => self.take_revocation(&revocation),
            Control::Node { info } => self.nodes.saw(info),
        }
    }

    /// A connection's public id, which is unique across replicas.
    #[must_use]
    pub fn connection_id(&self, connection: &crate::hub::Connection) -> String {
        format!("{}-{}", self.nodes.own_uid(), connection.id().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_f6_a_list_is_no_control_message() {
        let read = |text: &str| strict::from_slice::<Control>(text.as_bytes());
        let revocation = r#"{"kind":"token","jti":"a","until":9}"#;
        let good = format!(r#"{{"type":"revoke","revocation":{revocation}}}"#);
        assert!(matches!(read(&good), Ok(Control::Revoke { .. })));

        assert!(read(r#"{"type":"disconnect","user":"u"}"#).is_ok());
        let node = Control::Node { info: NodeInfo::default() };
        assert_eq!(strict::from_slice::<Control>(&node.encode()).ok(), Some(node));

        for bad in [
            r#"["disconnect","u",null]"#.to_owned(),
            r#"["disconnect","u"]"#.to_owned(),
            format!(r#"["revoke",{revocation}]"#),
            r#"{"type":"revoke","revocation":["token","a",9]}"#.to_owned(),
            r#"{"type":"node","info":["a","b","c",1,1,1,1,1]}"#.to_owned(),
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }
}
