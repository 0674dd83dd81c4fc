//! What all of a relay works with.

use std::sync::Arc;
use std::time::Duration;

use super::connection::Database;
use super::health::Shown;
use super::leadership::Leadership;
use super::outbox::Outbox;
use crate::broker::redis::RedisBroker;
use crate::channel::ChannelName;
use crate::lifecycle::Lifecycle;

/// How a relay works.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) schema: String,
    /// What this relay is called among others.
    pub(crate) name: String,
    pub(crate) poll_interval: Duration,
    pub(crate) retention: Duration,
    pub(crate) batch_rows: usize,
    pub(crate) batch_bytes: usize,
    /// The largest event that gateways deliver.
    pub(crate) event_bytes: usize,
}

/// How long a channel's history is and lasts: seconds and events.
pub(crate) type RetainedOf = Box<dyn Fn(&ChannelName) -> Option<(u32, u32)> + Send + Sync>;

/// What all of a relay works with.
pub(super) struct Parts {
    pub(super) settings: Settings,
    /// For rows; a pooler may stand before it.
    pub(super) work: Database,
    pub(super) outbox: Outbox,
    pub(super) leadership: Leadership,
    pub(super) broker: Arc<RedisBroker>,
    pub(super) retained: RetainedOf,
    pub(super) lifecycle: Lifecycle,
    pub(super) health: Arc<Shown>,
}
