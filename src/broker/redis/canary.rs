//! The canary: each subscribing connection expects a message that this replica publishes by the
//! same path that publishers use. If the message does not come back, the connection is deaf,
//! however healthy it looks.
//!
//! Not here: what follows from a missed canary (`subscribing`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::commands::Commands;
use super::core::{Core, Role};
use super::hearing::Hearing;
use crate::metrics;
use crate::redis_url::Server;

/// The canary of one subscribing connection.
pub(super) struct Canary {
    /// The name below the prefix; empty if no name belongs to that server.
    name: String,
    channel: String,
    state: Mutex<State>,
    /// True while the canary cannot be published or heard, so that it is unknown whether anything
    /// would arrive.
    mute: AtomicBool,
}

/// The canary counts as mute after this many failures to publish it.
const MUTE_AFTER: u32 = 3;

#[derive(Default)]
struct State {
    /// The number of the last canary and when it was sent; `None` once it came back.
    waiting: Option<(u64, Instant)>,
    sent: u64,
}

impl Canary {
    /// Creates the canary. In a cluster, names are tried until one belongs to that server.
    pub(super) fn new(core: &Core, server: &Server, index: usize) -> Self {
        let stem = format!("canary:{}:{index}", core.uid);
        let (name, channel) = core.own_name_on(server, &stem).unwrap_or_default();
        Self { name, channel, state: Mutex::default(), mute: AtomicBool::new(false) }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        name == self.name
    }

    /// Notes that the server does not let this connection hear the canary.
    pub(super) fn is_refused(&self) {
        self.mute.store(true, Ordering::Release);
    }

    pub(super) fn is_mute(&self) -> bool {
        self.mute.load(Ordering::Acquire)
    }

    /// True if no name belongs to the server because it has hardly any slots.
    pub(super) fn is_none(&self) -> bool {
        self.channel.is_empty()
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// Notes that a message came on the canary's channel.
    pub(super) fn arrived(&self, payload: &[u8]) {
        let mut state = self.state.lock();
        if let Some((number, at)) = state.waiting
            && *payload == *number.to_string().as_bytes()
        {
            metrics::canary(at.elapsed());
            state.waiting = None;
        }
    }
}

/// Sends canaries to a server until one is missed. Returns what happened.
pub(super) async fn watch(
    canary: &Canary,
    hearing: &Hearing,
    commands: &Commands,
    server: &Server,
) -> String {
    canary.state.lock().waiting = None;
    if canary.is_none() {
        return std::future::pending().await;
    }

    let core = &commands.core;
    let mut failures = 0;
    loop {
        let (number, began) = {
            let mut state = canary.state.lock();
            state.sent += 1;
            let began = Instant::now();
            state.waiting = Some((state.sent, began));
            (state.sent, began)
        };

        let payload = number.to_string();
        let sent = commands.publish_plain(canary.channel(), payload.as_bytes()).await;

        match sent {
            // The server that publishers write to has no such subscriber.
            Ok(0) => {
                return missed(canary, commands, "the canary found no subscriber on the master");
            }
            Ok(_) => {
                failures = 0;
                if canary.mute.swap(false, Ordering::AcqRel) {
                    core.state_changed();
                }

                if !came_back(canary, core.settings.canary_deadline).await {
                    return missed(canary, commands, "the canary did not come back in time");
                }

                hearing.proven(began.into_std());
            }
            // Publishing is what fails here. That shows in the publisher's state, while this
            // connection may well be alive.
            Err(e) => {
                canary.state.lock().waiting = None;
                failures += 1;
                if failures >= MUTE_AFTER {
                    hearing.trusted();
                }

                if failures == MUTE_AFTER && !canary.mute.swap(true, Ordering::AcqRel) {
                    let what = "cannot send the canary";
                    core.note(Role::Publisher, server, what, &e.to_string());
                    core.state_changed();
                }
            }
        }

        sleep(core.settings.canary_interval).await;
    }
}

/// Counts a missed canary, and has the connection that published it replaced.
fn missed(canary: &Canary, commands: &Commands, how: &str) -> String {
    metrics::canary_missed();
    if let Ok(connection) = commands.connection(canary.channel.as_bytes()) {
        connection.suspect();
    }
    how.to_owned()
}

async fn came_back(canary: &Canary, within: Duration) -> bool {
    // The deadline counts from the end of the publishing, however long that took.
    let deadline = Instant::now() + within;
    loop {
        if canary.state.lock().waiting.is_none() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(10)).await;
    }
}
