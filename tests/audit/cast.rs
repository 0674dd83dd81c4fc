//! The participants of a round, whatever it is about: clients and publishers, each with the log of
//! what it saw, on one clock.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tollgate_support::eventually_within;

use super::check::{Case, Verdict};
use super::client::{Client, Phase, Replica};
use super::publisher::{Dial, Place, Publisher};
use super::record::{ClientLog, Clock, Manner, Shared, Stream, StreamLog, What, Wire, shared};

const JUDGE: Duration = Duration::from_millis(400);

/// How one client behaves, and where it connects.
pub struct Part {
    pub wire: Wire,
    pub manner: Manner,
    pub user: String,
    pub channels: Vec<String>,
    /// The replica that the client tries first; a steady client tries it first every time.
    pub home: usize,
    /// The client's own address: gateways count connections by address.
    pub from: Ipv4Addr,
}

pub struct Cast {
    pub clock: Clock,
    pub replicas: Shared<Vec<Replica>>,
    pub clients: Vec<Shared<ClientLog>>,
    pub streams: Vec<Shared<StreamLog>>,
    tasks: JoinSet<()>,
    publishers: JoinSet<()>,
    phase: watch::Sender<Phase>,
    stop: watch::Sender<bool>,
}

impl Cast {
    /// An empty cast in front of gateways at these addresses.
    pub fn new(addresses: impl IntoIterator<Item = String>) -> Self {
        let open = |address| Replica { address, open: true };
        Self {
            clock: Clock::start(),
            replicas: shared(addresses.into_iter().map(open).collect()),
            clients: Vec::new(),
            streams: Vec::new(),
            tasks: JoinSet::new(),
            publishers: JoinSet::new(),
            phase: watch::Sender::new(Phase::Load),
            stop: watch::Sender::new(false),
        }
    }

    /// Adds a client. Its number is its index in `clients`.
    pub fn client(&mut self, part: Part) {
        let Part { wire, manner, user, channels, home, from } = part;
        let name = format!("{wire:?}-{manner:?}-{}", self.clients.len());
        let lines = Vec::new();
        let log = shared(ClientLog { name, wire, manner, channels: channels.clone(), lines });

        let client = Client {
            clock: self.clock,
            log: Arc::clone(&log),
            wire,
            manner,
            home,
            from,
            replicas: Arc::clone(&self.replicas),
            user,
            bearer: String::new(),
            channels,
            positions: BTreeMap::new(),
            last_id: None,
            hint: None,
            phase: self.phase.subscribe(),
        };

        self.tasks.spawn(client.run());
        self.clients.push(log);
    }

    /// Waits until all clients have had all their channels.
    pub async fn all_live(&self, patience: Duration) {
        eventually_within(patience, "the clients get their channels", || {
            let all = self.clients.iter().all(|log| all_live(&log.lock()));
            std::future::ready(all.then_some(()))
        })
        .await;
    }

    /// Adds a publisher. Its number, which its events carry, is its index in `streams`.
    pub fn publisher(&mut self, stream: Stream, place: Place, dial: &Arc<Dial>) {
        let log = shared(StreamLog { stream, published: Vec::new() });
        let (clock, index, dial) = (self.clock, self.streams.len(), Arc::clone(dial));
        self.streams.push(Arc::clone(&log));
        let publisher = Publisher { clock, index, log, place, dial };
        self.publishers.spawn(publisher.run(self.stop.subscribe()));
    }

    /// Ends the load: publishers publish a last event, and clients stop wandering.
    pub async fn rest(&mut self) {
        self.stop.send_replace(true);
        self.phase.send_replace(Phase::Settle);
        while self.publishers.join_next().await.is_some() {}
    }

    /// Waits until nothing is missing, but no longer than `patience`.
    pub async fn settle(&self, patience: Duration, judge: impl Fn() -> Verdict) -> Verdict {
        let began = Instant::now();
        loop {
            let verdict = judge();
            let waiting = verdict.cases.iter().any(Case::is_pending);
            if !waiting || began.elapsed() > patience {
                return verdict;
            }
            sleep(JUDGE).await;
        }
    }

    pub fn published(&self) -> Vec<StreamLog> {
        self.streams.iter().map(|log| log.lock().clone()).collect()
    }

    pub fn seen(&self) -> Vec<ClientLog> {
        self.clients.iter().map(|log| log.lock().clone()).collect()
    }

    /// Ends all clients.
    pub fn end(&self) {
        self.phase.send_replace(Phase::End);
    }
}

fn all_live(log: &ClientLog) -> bool {
    let live = |channel: &String| {
        let is = |w: &What| matches!(w, What::Live { channel: c, .. } if c == channel);
        log.lines.iter().any(|l| is(&l.what))
    };
    log.channels.iter().all(live)
}
