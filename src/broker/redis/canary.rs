//! The canary: each subscribing connection expects a message that this replica publishes, by the
//! path that publishers use. If it does not come the connection is deaf, however healthy it looks.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::link::Subscriber;
use crate::metrics;
use crate::redis_url::Server;

pub(super) struct Canary {
    /// Below the prefix.
    name: String,
    channel: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last one sent, and when; `None` once it came back.
    waiting: Option<(u64, Instant)>,
    sent: u64,
}

impl Canary {
    /// In a cluster a name is tried until it falls to that server.
    pub(super) fn new(shared: &Shared, server: &Server, index: usize) -> Self {
        let map = shared.directory.current();
        let at = map.masters.iter().position(|m| m == server);
        let names = (0..100_000).map(|n| format!("canary:{}:{index}:{n}", shared.uid));
        let mut named = names.map(|name| {
            let channel = format!("{}{name}", shared.settings.prefix);
            (name, channel)
        });
        let fits = |(_, channel): &(String, String)| map.master_of(channel.as_bytes()) == at;
        let (name, channel) = named.find(fits).unwrap_or_default();
        Self { name, channel, state: Mutex::default() }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        name == self.name
    }

    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    pub(super) fn arrived(&self, payload: &Bytes) {
        let mut state = self.state.lock();
        if let Some((number, at)) = state.waiting
            && **payload == *number.to_string().as_bytes()
        {
            metrics::canary(at.elapsed());
            state.waiting = None;
        }
    }
}

/// Sends canaries until one is missed; returns what happened.
pub(super) async fn watch(subscriber: &Subscriber) -> String {
    let (canary, shared) = (&subscriber.canary, &subscriber.shared);
    canary.state.lock().waiting = None;
    loop {
        let number = {
            let mut state = canary.state.lock();
            state.sent += 1;
            state.waiting = Some((state.sent, Instant::now()));
            state.sent
        };
        let payload = Bytes::from(number.to_string());
        let sent = shared.publish_plain(canary.channel(), payload).await;
        match sent {
            // The server that publishers write to has no such subscriber.
            Ok(0) => return missed("the canary found no subscriber on the master"),
            Ok(_) => {
                if !came_back(subscriber).await {
                    return missed("the canary did not come back in time");
                }
            }
            // Publishing is what fails: that shows in the publisher's state, and the connection
            // here may well be alive.
            Err(e) => {
                tracing::debug!(error = %e, "the canary could not be sent");
                canary.state.lock().waiting = None;
            }
        }
        sleep(shared.settings.canary_interval).await;
    }
}

fn missed(how: &str) -> String {
    metrics::canary_missed();
    how.to_owned()
}

async fn came_back(subscriber: &Subscriber) -> bool {
    let state = &subscriber.canary.state;
    let deadline =
        state.lock().waiting.map(|(_, at)| at + subscriber.shared.settings.canary_deadline);
    let Some(deadline) = deadline else { return true };
    loop {
        if state.lock().waiting.is_none() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(10)).await;
    }
}
