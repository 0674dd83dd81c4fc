//! Messages between replicas: "disconnect this user everywhere", "this is revoked", and the
//! announcements by which each replica knows the others.
//!
//! Not here: sending and obeying them (`carry_out`). The messages travel on a channel of the
//! gateway's own, so no publisher's ACL has to permit it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::nodes::NodeInfo;
use crate::auth::Revocation;
use crate::broker::BrokerError;
use crate::strict;

/// A message from one replica to all others.
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

/// Why a control message may not have reached all replicas.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("done on this replica, but only {reached} of {known} replicas were reached: try again")]
    Partly { reached: usize, known: usize },
    #[error("done on this replica, but {0}: try again to reach the other replicas")]
    Broker(#[from] BrokerError),
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
