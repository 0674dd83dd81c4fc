//! What all handlers share.

use std::net::SocketAddr;
use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;

use super::limits::ConnectionLimits;
use crate::lifecycle::Lifecycle;
use crate::session::Context;

/// The longest request head, of which a token may be 16 KiB.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The client's TCP address.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    pub context: Arc<Context>,
    pub lifecycle: Lifecycle,
    pub metrics: PrometheusHandle,
    pub(super) limits: Arc<ConnectionLimits>,
}

impl App {
    #[must_use]
    pub fn new(context: Arc<Context>, lifecycle: Lifecycle, metrics: PrometheusHandle) -> Self {
        Self { context, lifecycle, metrics, limits: Arc::default() }
    }
}
