//! One round: a Redis, two gateways, publishers and clients, one fault in the middle, the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::check::{Case, Offence, Verdict, check};
use super::client::{Client, Phase, Replica};
use super::faults::{self, Fault, Row, Setup, Sign};
use super::gateway::Gateway;
use super::proxy::Proxy;
use super::publisher::{Dial, Place, Publisher};
use super::record::{
    ClientLog, Clock, Kind, Manner, Shared, Stream, StreamLog, What, Wire, shared,
};
use super::servers::{Cluster, Server, Watched};

pub enum Backend {
    Alone(Server),
    Proxied(Server, Proxy),
    Watched(Watched),
    Cluster(Cluster),
}

impl Backend {
    pub async fn start(setup: Setup) -> Self {
        match setup {
            Setup::Alone(lines) => Self::Alone(Server::start(lines).await),
            Setup::Proxied => {
                let server = Server::start(&[]).await;
                let proxy = Proxy::start(server.address()).await;
                Self::Proxied(server, proxy)
            }
            Setup::Sentinel => Self::Watched(Watched::start().await),
            Setup::Cluster => Self::Cluster(Cluster::start().await),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Alone(server) => format!("redis://{}", server.address()),
            Self::Proxied(_, proxy) => format!("redis://{}", proxy.address),
            Self::Watched(watched) => watched.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Alone(server) | Self::Proxied(server, _) => Place::Fixed(server.address()),
            Self::Watched(watched) => Place::Sentinel(watched.addresses()),
            Self::Cluster(cluster) => Place::Cluster(cluster.addresses()),
        }
    }
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub before: Duration,
    pub after: Duration,
    pub pause: Duration,
    pub clients: usize,
    pub blind: bool,
}

pub struct Round {
    pub clock: Clock,
    pub backend: Backend,
    pub gateways: Vec<Gateway>,
    pub replicas: Shared<Vec<Replica>>,
    pub dial: Arc<Dial>,
    /// The shift of the gateways' clock, where libfaketime reads it.
    pub clock_file: NamedTempFile,
    pub injected: Option<(Instant, Duration)>,
    streams: Vec<Shared<StreamLog>>,
    clients: Vec<Shared<ClientLog>>,
    tasks: JoinSet<()>,
    publishers: JoinSet<()>,
    phase: watch::Sender<Phase>,
    sse: bool,
    /// The checker is to see no declaration: a round with a loss has to fail.
    blind: bool,
}

/// What a round showed.
pub struct Outcome {
    pub row: Row,
    pub verdict: Verdict,
    /// From the fault to the first log line about Redis, and to the first `gap` or close at a client.
    pub logged: Option<Duration>,
    pub told: Option<Duration>,
    /// The fault left no trace: the round proves nothing.
    pub without_effect: bool,
    pub gateway_logs: Vec<String>,
    pub clients: Vec<ClientLog>,
}

impl Outcome {
    /// While there are two masters, what the old one takes after the gateway has moved can be declared
    /// only when it is a master no more.
    pub fn is_wrong(&self, offence: Offence) -> bool {
        offence != Offence::Late || !self.had_two_masters()
    }

    /// Also when two Sentinels led a failover each, and so left a new master for another.
    fn had_two_masters(&self) -> bool {
        let moves = |log: &String| log.matches("Redis masters masters").count() > 2;
        self.row.fault == Fault::SentinelPlanned
            || (self.row.fault == Fault::SentinelKill && self.gateway_logs.iter().any(moves))
    }

    pub fn failed(&self) -> bool {
        self.verdict.cases.iter().any(|case| self.is_wrong(case.offence))
    }
}

const USERS: [&str; 3] = ["u1", "u2", "u12"];
const CHANNELS: [&str; 5] = ["durable:1", "durable:2", "plain:1", "plain:2", "mixed:1"];
/// Channels of one client, by its number.
const OWN: &str = "durable:own-";
const SETTLE: Duration = Duration::from_secs(15);

/// Wire, manner, how many of 22.
const MIX: [(Wire, Manner, usize); 9] = [
    (Wire::Envelope, Manner::Steady, 4),
    (Wire::Envelope, Manner::Wanders, 4),
    (Wire::Envelope, Manner::Slow, 2),
    (Wire::Plain, Manner::Steady, 3),
    (Wire::Plain, Manner::Wanders, 2),
    (Wire::Plain, Manner::Slow, 1),
    (Wire::Sse, Manner::Steady, 2),
    (Wire::Sse, Manner::Wanders, 3),
    (Wire::Sse, Manner::Slow, 1),
];

impl Round {
    pub async fn new(row: &Row, backend: Backend) -> Self {
        let clock_file = NamedTempFile::new().unwrap();
        std::fs::write(clock_file.path(), "+0s").unwrap();
        let mut environment = Vec::new();
        if row.fault == Fault::Clock {
            let path = clock_file.path().display().to_string();
            environment = faketime(&path).expect("looked for before");
        }
        let mut gateways = Vec::new();
        for _ in 0..2 {
            gateways.push(Gateway::start(&backend.url(), &environment).await);
        }
        let open = |g: &Gateway| Replica { address: g.public.clone(), open: true };
        let replicas = shared(gateways.iter().map(open).collect());
        let sse = gateways[0].has_sse().await;
        Self {
            clock: Clock::start(),
            backend,
            gateways,
            replicas,
            dial: Arc::new(Dial::new(Duration::ZERO)),
            clock_file,
            injected: None,
            streams: Vec::new(),
            clients: Vec::new(),
            tasks: JoinSet::new(),
            publishers: JoinSet::new(),
            phase: watch::Sender::new(Phase::Load),
            sse,
            blind: false,
        }
    }

    pub async fn run(mut self, row: Row, pace: Pace) -> Outcome {
        self.blind = pace.blind;
        self.dial = Arc::new(Dial::new(pace.pause));
        self.clients(pace.clients).await;
        let (stop, stopped) = watch::channel(false);
        self.publish(row.fault, &stopped);
        sleep(pace.before).await;
        faults::inject(row.fault, &mut self).await;
        sleep(pace.after).await;
        stop.send_replace(true);
        self.phase.send_replace(Phase::Settle);
        while self.publishers.join_next().await.is_some() {}
        let verdict = self.settle(row.fault).await;
        self.phase.send_replace(Phase::End);
        self.outcome(row, verdict)
    }

    /// Starts the clients and waits until all have all their channels.
    async fn clients(&mut self, of_each: usize) {
        let mix = MIX.iter().filter(|(wire, ..)| self.sse || *wire != Wire::Sse);
        let mut number = 0;
        for (wire, manner, count) in mix {
            for _ in 0..count * of_each {
                let user = USERS[number % USERS.len()].to_owned();
                let mut channels: Vec<String> = CHANNELS.map(str::to_owned).to_vec();
                channels.push(format!("user:{user}"));
                if *manner == Manner::Wanders && *wire != Wire::Plain {
                    // Nobody else has it: a replica begins with it when the client comes.
                    channels.push(format!("{OWN}{number}"));
                }
                let log = shared(ClientLog {
                    name: Client::name(*wire, *manner, number),
                    wire: *wire,
                    manner: *manner,
                    channels: channels.clone(),
                    lines: Vec::new(),
                });
                let client = Client {
                    clock: self.clock,
                    log: Arc::clone(&log),
                    wire: *wire,
                    manner: *manner,
                    home: number % 2,
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
                number += 1;
            }
        }
        let began = Instant::now();
        while !self.clients.iter().all(|log| all_live(&log.lock())) {
            assert!(began.elapsed() < 2 * SETTLE, "the clients do not get their channels");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn publish(&mut self, fault: Fault, stopped: &watch::Receiver<bool>) {
        let user = USERS.map(|user| (format!("user:{user}"), Kind::Durable, 500));
        let mut streams: Vec<(String, Kind, u32)> = vec![
            ("durable:1".to_owned(), Kind::Durable, 500),
            ("durable:2".to_owned(), Kind::Durable, 30),
            ("plain:1".to_owned(), Kind::Plain, 0),
            ("plain:2".to_owned(), Kind::Plain, 0),
            ("mixed:1".to_owned(), Kind::Durable, 500),
            ("mixed:1".to_owned(), Kind::Plain, 0),
        ];
        streams.extend(user);
        let channels = self.clients.iter().flat_map(|log| log.lock().channels.clone());
        let own = channels.filter(|channel| channel.starts_with(OWN));
        streams.extend(own.map(|channel| (channel, Kind::Durable, 500)));
        let mut streams: Vec<(Stream, Place)> = streams
            .into_iter()
            .map(|(channel, kind, kept)| {
                (Stream { channel, kind, publisher: "main", kept }, self.backend.place())
            })
            .collect();
        if let (Fault::SentinelPlanned, Backend::Watched(watched)) = (fault, &self.backend) {
            for (channel, kind) in [("durable:1", Kind::Durable), ("plain:1", Kind::Plain)] {
                let place = Place::OldMaster(watched.servers[0].address());
                let publisher = "who stays on the old master";
                let channel = channel.to_owned();
                streams.push((Stream { channel, kind, publisher, kept: 500 }, place));
            }
        }
        for (index, (stream, place)) in streams.into_iter().enumerate() {
            let log = shared(StreamLog { stream, published: Vec::new() });
            self.streams.push(Arc::clone(&log));
            let dial = Arc::clone(&self.dial);
            let publisher = Publisher { clock: self.clock, index, log, place, dial };
            self.publishers.spawn(publisher.run(stopped.clone()));
        }
    }

    /// Waits until nothing is missing, or no longer.
    async fn settle(&self, fault: Fault) -> Verdict {
        let began = Instant::now();
        sleep(Duration::from_millis(800)).await;
        loop {
            let verdict = self.verdict(fault);
            let waiting = verdict.cases.iter().any(Case::is_pending);
            if !waiting || began.elapsed() > SETTLE {
                return verdict;
            }
            sleep(Duration::from_millis(400)).await;
        }
    }

    fn verdict(&self, fault: Fault) -> Verdict {
        let streams: Vec<StreamLog> = self.streams.iter().map(|s| s.lock().clone()).collect();
        let mut clients: Vec<ClientLog> = self.clients.iter().map(|c| c.lock().clone()).collect();
        if self.blind {
            clients.iter_mut().for_each(ClientLog::forget_declarations);
        }
        let may_close = |client: &ClientLog, replica: usize, code: u16| match fault {
            Fault::GatewayKill => replica == 0,
            Fault::GatewayTerm => {
                let told = client.wire == Wire::Sse || matches!(code, 1001 | 1012);
                replica == 0 && told
            }
            _ => false,
        };
        check(&streams, &clients, &may_close)
    }

    fn outcome(self, row: Row, verdict: Verdict) -> Outcome {
        let (at, since) = self.injected.expect("the fault took place");
        let logged = self.gateways.iter().filter_map(|g| g.noticed(at)).min();
        let first = |log: &Shared<ClientLog>| {
            let log = log.lock();
            if log.manner != Manner::Steady {
                return None;
            }
            let mut lines = log.lines.iter().filter(|l| l.at >= since);
            let told = lines.find(|l| matches!(l.what, What::Gap { .. } | What::Closed { .. }));
            told.map(|l| l.at - since)
        };
        let told = self.clients.iter().filter_map(first).min();
        let without_effect = match row.sign {
            Sign::Noticed => logged.is_none() && told.is_none(),
            Sign::Closed => told.is_none(),
            Sign::Nothing => false,
        };
        let gateway_logs = self.gateways.iter().map(Gateway::log_text).collect();
        let clients = self.clients.iter().map(|c| c.lock().clone()).collect();
        Outcome { row, verdict, logged, told, without_effect, gateway_logs, clients }
    }
}

pub fn all_live(log: &ClientLog) -> bool {
    let live = |channel: &String| {
        let is = |w: &What| matches!(w, What::Live { channel: c, .. } if c == channel);
        log.lines.iter().any(|l| is(&l.what))
    };
    log.channels.iter().all(live)
}

/// The environment that puts a process under the clock of a file; `None` without libfaketime.
pub fn faketime(file: &str) -> Option<Vec<(String, String)>> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    let library = |folder: std::fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    let library = folders.flatten().map(library).find(|path| path.exists())?;
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Some(vec![
        set("LD_PRELOAD", &library.display().to_string()),
        set("FAKETIME_TIMESTAMP_FILE", file),
        set("FAKETIME_NO_CACHE", "1"),
        set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        set("DONT_FAKE_MONOTONIC", "1"),
    ])
}
