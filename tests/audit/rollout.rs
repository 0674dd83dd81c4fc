//! Both replicas behind nginx are replaced, one after the other, as Kubernetes would, while clients
//! listen and publishers publish. Nothing is lost in silence, nobody is away for long, everybody comes
//! back spread out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::absence::{Absence, Replacement, absences, problems};
use super::check::{Case, Verdict, check};
use super::client::{Client, Phase, Replica};
use super::drawing::{self, Sample};
use super::gateway::{self, Gateway};
use super::nginx::Nginx;
use super::publisher::{Dial, Place, Publisher};
use super::record::{
    ClientLog, Clock, Kind, Manner, Shared, Stream, StreamLog, What, Wire, shared,
};
use super::round::all_live;
use super::servers::{Server, free_port};

/// The defaults of the gateway, and what it has beyond them.
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(20);
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A proxy hears of a change that much later than the gateway.
const NEWS: Duration = Duration::from_secs(2);
/// Channels of each kind.
const CHANNELS: usize = 20;
/// Between two events on a channel.
const PAUSE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(15);
/// One client of so many reads a stream.
const STREAMS: usize = 10;
const SHOWN: usize = 8;

/// How nginx learns of new replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Their addresses are in its configuration from the beginning.
    Named,
    /// By a new configuration for each change.
    Reloaded,
}

struct Rollout {
    way: Way,
    clock: Clock,
    redis: Server,
    nginx: Nginx,
    /// Two that go, then two that come.
    ports: [u16; 4],
    gateways: Vec<Gateway>,
    admins: Shared<Vec<String>>,
    samples: Shared<Vec<Sample>>,
    clients: Vec<Shared<ClientLog>>,
    streams: Vec<Shared<StreamLog>>,
    tasks: JoinSet<()>,
    publishers: JoinSet<()>,
    phase: watch::Sender<Phase>,
}

/// What is left of one in the end.
struct Seen {
    verdict: Verdict,
    replacements: [Replacement; 2],
    after: Vec<f64>,
    took: Duration,
}

/// Runs it in both ways; true when something was wrong.
pub async fn run(clients: usize, drawings: Option<&Path>) -> bool {
    let mut failed = false;
    for way in [Way::Named, Way::Reloaded] {
        let began = Instant::now();
        let mut rollout = Rollout::start(way).await;
        rollout.connect(clients).await;
        let (stop, stopped) = watch::channel(false);
        rollout.publish(&stopped);
        sleep(PAUSE).await;
        let replacements = [rollout.replace(0).await, rollout.replace(1).await];
        sleep(PAUSE).await;
        stop.send_replace(true);
        rollout.phase.send_replace(Phase::Settle);
        while rollout.publishers.join_next().await.is_some() {}
        let verdict = rollout.settle().await;
        let after = counts(&rollout.admins).await;
        rollout.phase.send_replace(Phase::End);
        let seen = Seen { verdict, replacements, after, took: began.elapsed() };
        failed |= rollout.report(&seen, drawings);
    }
    failed
}

impl Rollout {
    async fn start(way: Way) -> Self {
        let redis = Server::start(&[]).await;
        let ports = [(); 4].map(|()| free_port());
        let gateways = vec![launch(&redis, ports[0]).await, launch(&redis, ports[1]).await];
        let admins = shared(gateways.iter().map(|g| g.admin.clone()).collect());
        let (clock, samples) = (Clock::start(), shared(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(sample(clock, Arc::clone(&admins), Arc::clone(&samples)));
        Self {
            way,
            clock,
            redis,
            nginx: Nginx::start(&named(way, &ports, &[0, 1])).await,
            ports,
            gateways,
            admins,
            samples,
            clients: Vec::new(),
            streams: Vec::new(),
            tasks,
            publishers: JoinSet::new(),
            phase: watch::Sender::new(Phase::Load),
        }
    }

    async fn connect(&mut self, clients: usize) {
        let address = self.nginx.address.clone();
        let replicas = shared(vec![Replica { address, open: true }]);
        for number in 0..clients {
            let wire = if number % STREAMS == 0 { Wire::Sse } else { Wire::Envelope };
            let user = format!("u{number}");
            // Not by the number alone: a channel would have streams only.
            let channel = number / STREAMS % CHANNELS;
            let names = [format!("durable:{channel}"), format!("plain:{channel}")];
            let channels = [names.to_vec(), vec![format!("user:{user}")]].concat();
            let log = shared(ClientLog {
                name: Client::name(wire, Manner::Patient, number),
                wire,
                manner: Manner::Patient,
                channels: channels.clone(),
                lines: Vec::new(),
            });
            let client = Client {
                clock: self.clock,
                log: Arc::clone(&log),
                wire,
                manner: Manner::Patient,
                home: 0,
                replicas: Arc::clone(&replicas),
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
            if number % 50 == 49 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        let began = Instant::now();
        while !self.clients.iter().all(|log| all_live(&log.lock())) {
            assert!(began.elapsed() < PATIENCE, "the clients do not get their channels");
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn publish(&mut self, stopped: &watch::Receiver<bool>) {
        let dial = Arc::new(Dial::new(PAUSE));
        let kinds = [("durable", Kind::Durable), ("plain", Kind::Plain)];
        let all = kinds.into_iter().flat_map(|kind| (0..CHANNELS).map(move |n| (kind, n)));
        for (index, ((name, kind), n)) in all.enumerate() {
            let channel = format!("{name}:{n}");
            let stream = Stream { channel, kind, publisher: "main", kept: 500 };
            let log = shared(StreamLog { stream, published: Vec::new() });
            self.streams.push(Arc::clone(&log));
            let (clock, dial) = (self.clock, Arc::clone(&dial));
            let place = Place::Fixed(self.redis.address());
            let publisher = Publisher { clock, index, log, place, dial };
            self.publishers.spawn(publisher.run(stopped.clone()));
        }
    }

    /// One more is started, then an old one ends.
    async fn replace(&mut self, old: usize) -> Replacement {
        let gateway = launch(&self.redis, self.ports[self.gateways.len()]).await;
        self.admins.lock().push(gateway.admin.clone());
        self.gateways.push(gateway);
        let both = [old + 1, old + 2];
        self.tell(&[&[old][..], &both].concat());
        // Before the signal: the gateway may have it well before the program that sends it has ended.
        let term = self.clock.now();
        self.gateways[old].signal("-TERM");
        sleep(NEWS).await;
        self.tell(&both);
        let status = loop {
            if let Some(status) = self.gateways[old].ended() {
                break status;
            }
            let within = SETTLE + WINDOW + LAST_WORDS;
            assert!(self.clock.now() - term < within, "it would be killed by now");
            sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{}", self.gateways[old].log_text());
        let exited = self.clock.now();
        while let Some(lost) = self.absences().into_iter().find(|absence| absence.back.is_none()) {
            let lines = self.lines_of(&lost.client) + &tail(&self.nginx.log());
            assert!(self.clock.now() - exited < PATIENCE, "does not come back: {lost:?}\n{lines}");
            sleep(Duration::from_millis(100)).await;
        }
        Replacement { term, settle: SETTLE, window: WINDOW, exited }
    }

    fn tell(&self, running: &[usize]) {
        if self.way == Way::Reloaded {
            self.nginx.reload(&named(self.way, &self.ports, running));
        }
    }

    fn logs(&self) -> Vec<ClientLog> {
        self.clients.iter().map(|log| log.lock().clone()).collect()
    }

    /// The end of a client's log.
    fn lines_of(&self, client: &str) -> String {
        let log = self.clients.iter().find(|log| log.lock().name == client);
        let lines = log.map(|log| log.lock().lines.clone()).unwrap_or_default();
        let last = &lines[lines.len().saturating_sub(6)..];
        last.iter().map(|l| format!("{:8.3} {:?}\n", l.at.as_secs_f64(), l.what)).collect()
    }

    /// Without the events, which are most of the lines.
    fn absences(&self) -> Vec<Absence> {
        let short = |log: &Shared<ClientLog>| {
            let log = log.lock();
            let of_interest = |what: &What| {
                matches!(what, What::Hint(_) | What::Live { .. } | What::Closed { .. })
            };
            let lines = log.lines.iter().filter(|l| of_interest(&l.what)).cloned().collect();
            let (name, channels) = (log.name.clone(), log.channels.clone());
            ClientLog { name, wire: log.wire, manner: log.manner, channels, lines }
        };
        absences(&self.clients.iter().map(short).collect::<Vec<_>>())
    }

    /// Waits until nothing is missing, or no longer.
    async fn settle(&self) -> Verdict {
        let began = Instant::now();
        loop {
            let streams: Vec<StreamLog> = self.streams.iter().map(|s| s.lock().clone()).collect();
            let clients = self.logs();
            let told =
                |client: &ClientLog, _: usize, code: u16| client.wire == Wire::Sse || code == 1012;
            let verdict = check(&streams, &clients, &told);
            let waiting = verdict.cases.iter().any(Case::is_pending);
            if !waiting || began.elapsed() > LAST_WORDS {
                return verdict;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Prints what happened; true when something was wrong.
    fn report(&self, seen: &Seen, drawings: Option<&Path>) -> bool {
        let absences = self.absences();
        let way = if self.way == Way::Named { "named" } else { "reloaded" };
        println!("{way}: {} clients\n{}", self.clients.len(), summary(seen, &absences));
        let mut wrong = problems(&absences, &seen.replacements);
        wrong.extend(seen.verdict.cases.iter().map(|c| format!("{:?}: {}", c.offence, c.text)));
        wrong.extend(uneven(self.way, &seen.after));
        for line in wrong.iter().take(SHOWN) {
            println!("  WRONG {line}");
        }
        println!("  {} wrong; took {:.0} s", wrong.len(), seen.took.as_secs_f64());
        if !wrong.is_empty() {
            println!("end of nginx' log:\n{}", tail(&self.nginx.log()));
            for gateway in &self.gateways {
                println!("end of a gateway's log:\n{}", tail(&gateway.log_text()));
            }
        }
        if let Some(folder) = drawings {
            let clients = self.clients.len();
            let title =
                format!("{clients} clients, both replicas replaced, nginx with replicas {way}");
            let samples = self.samples.lock();
            let text = drawing::svg(&title, &absences, &seen.replacements, &samples);
            std::fs::write(folder.join(format!("rollout-{way}.svg")), text).unwrap();
        }
        !wrong.is_empty()
    }
}

/// What nginx is told when these run.
fn named(way: Way, ports: &[u16; 4], running: &[usize]) -> Vec<String> {
    let all: &[usize] = &[0, 1, 2, 3];
    let named = if way == Way::Named { all } else { running };
    named.iter().map(|replica| address(ports[*replica])).collect()
}

/// A gateway that is ready.
async fn launch(redis: &Server, port: u16) -> Gateway {
    let set = |name: &str, value: String| (format!("TOLLGATE_{name}"), value);
    let environment = [
        set("SERVER__LISTEN", address(port)),
        set("DRAIN__SETTLE", format!("{}s", SETTLE.as_secs())),
        set("DRAIN__WINDOW", format!("{}s", WINDOW.as_secs())),
    ];
    Gateway::start(&format!("redis://{}", redis.address()), &environment).await
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// With all replicas named, each has its share in the end: the ones that come take what one that goes had.
fn uneven(way: Way, after: &[f64]) -> Option<String> {
    let (gone, new) = after.split_at(after.len().min(2));
    let all: f64 = new.iter().sum();
    let most = if way == Way::Named { 0.6 } else { 0.8 };
    let fine =
        new.len() == 2 && gone.iter().all(|n| *n == 0.0) && new.iter().all(|n| *n <= most * all);
    (!fine).then(|| format!("sockets of the replicas in the end: {after:?}"))
}

fn summary(seen: &Seen, absences: &[Absence]) -> String {
    let mut away: Vec<u128> =
        absences.iter().filter_map(|a| Some((a.back? - a.closed).as_millis())).collect();
    away.sort_unstable();
    let at = |part: usize| away.get(away.len() * part / 100).or(away.last()).copied();
    let [median, most, longest] = [50, 99, 100].map(|part| at(part).unwrap_or(0));
    let (v, times) = (&seen.verdict, absences.len());
    let mut text = format!(
        "  sent away {times} times, for {median} ms (median), {most} ms (99 %), {longest} ms (longest)\n  \
         {} events accepted, {} deliveries; resumed whole {}, not {}; gaps told {}, missing and told {}\n",
        v.accepted, v.deliveries, v.resumed, v.not_resumed, v.gaps, v.declared
    );
    for (number, r) in seen.replacements.iter().enumerate() {
        let own = absences.iter().filter(|a| (r.term..=r.exited).contains(&a.closed));
        let back = r.each_second(own.filter_map(|a| a.back));
        let end = (r.exited - r.term).as_secs_f64();
        text.push_str(&format!(
            "  replica {number}: exit 0 after {end:.1} s; back, by second: {back:?}\n"
        ));
    }
    text + &format!("  sockets of each replica in the end: {:?}", seen.after)
}

async fn counts(admins: &Shared<Vec<String>>) -> Vec<f64> {
    let addresses = admins.lock().clone();
    let mut counts = Vec::new();
    for address in &addresses {
        counts.push(gateway::connections(address).await);
    }
    counts
}

async fn sample(clock: Clock, admins: Shared<Vec<String>>, samples: Shared<Vec<Sample>>) {
    loop {
        let counts = counts(&admins).await;
        samples.lock().push((clock.now(), counts));
        sleep(Duration::from_millis(500)).await;
    }
}
