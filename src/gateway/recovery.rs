//! What the readings of histories tell the pump.

use tokio::sync::oneshot;

use crate::broker::{BrokerError, History};
use crate::channel::ChannelName;

/// What a reading for `Step::Read` tells the pump.
pub(super) enum Recovery {
    /// The reading begins once this is answered, so it cannot miss anything that is known by then.
    Begins(ChannelName, u64, oneshot::Sender<()>),
    Ended(ChannelName, u64, Result<Option<History>, BrokerError>),
}
