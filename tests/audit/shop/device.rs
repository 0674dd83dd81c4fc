//! Devices: the auditor's clients, each with what an application does beside: it asks the shop's API when it
//! is told that something may be missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::api::Api;
use super::records::Device;
use super::verdict::declares;
use crate::record::{ClientLog, Manner, Shared, Wire, shared};

const LOOK: Duration = Duration::from_millis(20);

/// The two devices of each user, by the user's number: how they are connected and behave. Those without
/// positions ask whenever they come back.
pub const KINDS: [[(Wire, Manner); 2]; 3] = [
    [(Wire::Envelope, Manner::Steady), (Wire::Envelope, Manner::Wanders)],
    [(Wire::Envelope, Manner::Wanders), (Wire::Plain, Manner::Wanders)],
    [(Wire::Envelope, Manner::Steady), (Wire::Sse, Manner::Wanders)],
];

/// What a device has asked, and what it has read so far.
#[derive(Default)]
struct Asked {
    read: usize,
    asked: usize,
    owes: bool,
    answered: BTreeSet<usize>,
}

/// A device while the round lasts.
pub struct Watched {
    user: usize,
    log: Shared<ClientLog>,
    asked: Shared<Asked>,
}

impl Watched {
    /// Adds to a client what asks for it; the future has to be run.
    pub fn new(
        user: usize,
        log: Shared<ClientLog>,
        api: Arc<Api>,
    ) -> (Self, impl Future<Output = ()>) {
        let asked = shared(Asked::default());
        let asking = ask(user, Arc::clone(&log), Arc::clone(&asked), api);
        (Self { user, log, asked }, asking)
    }

    /// What it has seen by now.
    pub fn now(&self) -> Device {
        let log = self.log.lock().clone();
        let asked = self.asked.lock();
        Device {
            user: self.user,
            answered: asked.answered.clone(),
            asked: asked.asked,
            owes: asked.owes || asked.read < log.lines.len(),
            log,
        }
    }
}

/// Asks behind every declaration, until there is an answer. The subscription came first, so nothing falls
/// between the two.
async fn ask(user: usize, log: Shared<ClientLog>, asked: Shared<Asked>, api: Arc<Api>) {
    loop {
        let owes = {
            let (log, mut asked) = (log.lock(), asked.lock());
            asked.owes |= log.lines[asked.read..].iter().any(|line| declares(&line.what));
            asked.read = log.lines.len();
            asked.owes
        };

        if owes && let Some(answer) = api.ask(user).await {
            let mut asked = asked.lock();
            asked.answered.extend(answer);
            asked.asked += 1;
            asked.owes = false;
        }
        sleep(LOOK).await;
    }
}
