//! What the readings for missing ranges tell the pump.

use tokio::sync::oneshot;

use crate::broker::{BrokerError, History};
use crate::channel::ChannelName;

/// A reading for `Step::Read` begins or has ended.
pub(super) enum Recovery {
    /// The reading begins once this is answered, so it misses nothing that the sequencer
    /// knows by then.
    Begins(ChannelName, u64, oneshot::Sender<()>),
    Ended(ChannelName, u64, Result<Option<History>, BrokerError>),
}
