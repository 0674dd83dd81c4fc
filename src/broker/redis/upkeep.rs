//! Acts on what the core announces: a new map, a moved fence, a changed state.
//!
//! Not here: finding that out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::core::{Core, Role};
use super::demotion::OldMasters;
use super::masters::Map;
use super::routes::{Roles, Routes};
use crate::metrics;

/// Whether the broker has ever worked, and what is called when it first does.
pub(super) struct Readiness {
    pub(super) ready: AtomicBool,
    pub(super) on_ready: Box<dyn Fn() + Send + Sync>,
}

/// Acts on every announcement, for ever.
pub(super) async fn run(
    core: Arc<Core>,
    routes: Arc<Routes>,
    old_masters: Arc<OldMasters>,
    readiness: Arc<Readiness>,
) {
    let mut maps = core.directory.changes();
    let mut fences = core.fence.subscribe();
    let mut before = Arc::new(Map::default());
    maps.mark_changed();

    loop {
        tokio::select! {
            biased;
            Ok(()) = maps.changed() => {
                let map = Arc::clone(&maps.borrow_and_update());
                for (index, server) in before.masters.iter().enumerate() {
                    if !map.masters.contains(server) {
                        old_masters.switched(&before, index);
                    }
                }
                routes.adopt(&map);
                before = map;
                report(&core, routes.roles(), &readiness);
            }
            Ok(()) = fences.changed() => routes.fence_moved(),
            () = core.changed.notified() => report(&core, routes.roles(), &readiness),
        }
    }
}

/// Publishes the current state of the connections.
pub(super) fn report(core: &Core, roles: Roles, readiness: &Readiness) {
    if roles.is_well() {
        *core.last_error.lock() = None;
    }

    metrics::redis_connected(Role::Subscriber.label(), roles.subscriber);
    metrics::redis_connected(Role::Publisher.label(), roles.publisher);
    metrics::redis_connected(Role::Writer.label(), roles.writer);

    let works = roles.subscriber && roles.publisher;
    if works && !readiness.ready.swap(true, Ordering::AcqRel) {
        (readiness.on_ready)();
    }
}
