//! Sends control messages to the other replicas, and carries out those that they send.
//!
//! Not here: which messages there are (`control`), and the store of revocations (`revoke`).
//! Invariant: a message that arrives twice does no more than one that arrives once.

use super::Gateway;
use super::control::{Control, ControlError};
use crate::hub::Connection;
use crate::logging;
use crate::protocol::codes::{Close, CloseCode};
use crate::strict;

impl Gateway {
    /// Carries out a control message here, and sends it to every other replica.
    ///
    /// # Errors
    /// When the broker did not accept it, or when it reached fewer replicas than are known. Some
    /// replica has not received it then, so it has to be sent again.
    pub async fn control(&self, control: &Control) -> Result<(), ControlError> {
        self.carry_out(control.clone());
        let known = self.nodes.all(self.hub.counts()).len();
        let reached = self.broker.control(control.encode()).await?;
        if reached < known { Err(ControlError::Partly { reached, known }) } else { Ok(()) }
    }

    /// Carries out a received control message. Applying a message twice has the same effect as
    /// applying it once.
    pub(super) fn apply(&self, message: &[u8]) {
        match strict::from_slice(message) {
            Ok(control) => self.carry_out(control),
            Err(error) => logging::repeated(("control", "unknown"), "", move |repeated| {
                let why = format!("{:?}, column {}", error.classify(), error.column());
                tracing::warn!(
                    why,
                    repeated,
                    "received a control message that this version does not know"
                );
            }),
        }
    }

    fn carry_out(&self, control: Control) {
        match control {
            Control::Disconnect { user, client } => {
                let ours =
                    |c: &Connection| client.as_ref().is_none_or(|id| *id == self.connection_id(c));

                for connection in self.hub.of_user(&user).iter().filter(|c| ours(c)) {
                    connection.close(Close::new(CloseCode::Disconnected, "disconnected"));
                }
            }
            Control::Revoke { revocation } => self.apply_revocation(&revocation),
            Control::Node { info } => self.nodes.saw(info),
        }
    }

    /// A connection's public id, which is unique across replicas.
    #[must_use]
    pub fn connection_id(&self, connection: &Connection) -> String {
        format!("{}-{}", self.nodes.own_uid(), connection.id().0)
    }
}
