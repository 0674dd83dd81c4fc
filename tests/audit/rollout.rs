//! Both replicas behind nginx are replaced, one after the other, as Kubernetes would, while clients
//! listen and publishers publish. Nothing is lost in silence, no client is away for long, and
//! clients come back spread over the time.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tollgate_support::eventually_within;
use tollgate_support::gateway::Gateway;
use tollgate_support::metrics;
use tollgate_support::nginx::Nginx;
use tollgate_support::process::free_port;
use tollgate_support::redis::Redis;

use super::absence::{Absence, Replacement, absences, problems};
use super::cast::{Cast, Part};
use super::check::{Verdict, check};
use super::drawing::{self, Sample};
use super::publisher::{Dial, Place};
use super::record::{ClientLog, Clock, Kind, Manner, Shared, Stream, What, Wire, shared};
use super::{gateway, nginx};

/// The gateway's default drain, and what it may need beyond it.
const SETTLE: Duration = Duration::from_secs(5);
const WINDOW: Duration = Duration::from_secs(20);
const LAST_WORDS: Duration = Duration::from_secs(5);
/// A proxy hears of a change this much later than the gateway.
const NEWS: Duration = Duration::from_secs(2);
/// Channels of each kind.
const CHANNELS: usize = 20;
/// Between two events on a channel.
const PAUSE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(15);
/// One of this many clients reads a stream.
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
    cast: Cast,
    redis: Redis,
    nginx: Nginx,
    /// The ports of the two old replicas, then of the two new ones.
    ports: [u16; 4],
    gateways: Vec<Gateway>,
    admins: Shared<Vec<String>>,
    samples: Shared<Vec<Sample>>,
    _sampling: JoinSet<()>,
}

/// What a rollout showed.
struct Seen {
    verdict: Verdict,
    replacements: [Replacement; 2],
    after: Vec<f64>,
    took: Duration,
}

/// Runs the rollout in both ways. Returns true if something was wrong.
pub async fn run(clients: usize, drawings: Option<&Path>) -> bool {
    let mut failed = false;
    for way in [Way::Named, Way::Reloaded] {
        let began = Instant::now();
        let mut rollout = Rollout::start(way).await;
        rollout.connect(clients).await;
        rollout.publish();
        sleep(PAUSE).await;

        let replacements = [rollout.replace(0).await, rollout.replace(1).await];
        sleep(PAUSE).await;

        rollout.cast.rest().await;
        let verdict = rollout.cast.settle(LAST_WORDS, || rollout.verdict()).await;
        let after = counts(&rollout.admins).await;
        rollout.cast.end();

        let seen = Seen { verdict, replacements, after, took: began.elapsed() };
        failed |= rollout.report(&seen, drawings);
    }
    failed
}

impl Rollout {
    async fn start(way: Way) -> Self {
        let redis = Redis::start().await;
        let ports = [(); 4].map(|()| free_port());
        let gateways = vec![launch(&redis, ports[0]).await, launch(&redis, ports[1]).await];
        let admins = shared(gateways.iter().map(|g| g.admin.clone()).collect());
        let nginx = nginx::start(&named(way, &ports, &[0, 1])).await;
        let cast = Cast::new([nginx.address.clone()]);
        let samples = shared(Vec::new());
        let mut sampling = JoinSet::new();
        sampling.spawn(sample(cast.clock, Arc::clone(&admins), Arc::clone(&samples)));
        Self { way, cast, redis, nginx, ports, gateways, admins, samples, _sampling: sampling }
    }

    async fn connect(&mut self, clients: usize) {
        for number in 0..clients {
            let wire = if number % STREAMS == 0 { Wire::Sse } else { Wire::Envelope };
            let user = format!("u{number}");
            // By the number alone, a channel would have streams only.
            let channel = number / STREAMS % CHANNELS;
            let names = [format!("durable:{channel}"), format!("plain:{channel}")];
            let channels = [names.to_vec(), vec![format!("user:{user}")]].concat();
            let (manner, home, from) = (Manner::Patient, 0, Ipv4Addr::LOCALHOST);
            self.cast.client(Part { wire, manner, user, channels, home, from });
            if number % 50 == 49 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        self.cast.all_live(PATIENCE).await;
    }

    fn publish(&mut self) {
        let dial = Arc::new(Dial::new(PAUSE));
        let kinds = [("durable", Kind::Durable), ("plain", Kind::Plain)];
        let all = kinds.into_iter().flat_map(|kind| (0..CHANNELS).map(move |n| (kind, n)));
        for ((name, kind), n) in all {
            let channel = format!("{name}:{n}");
            let stream = Stream { channel, kind, publisher: "main", kept: 500 };
            let place = Place::Fixed(self.redis.address());
            self.cast.publisher(stream, place, &dial);
        }
    }

    /// Starts one more replica, then ends an old one.
    async fn replace(&mut self, old: usize) -> Replacement {
        let gateway = launch(&self.redis, self.ports[self.gateways.len()]).await;
        self.admins.lock().push(gateway.admin.clone());
        self.gateways.push(gateway);
        let both = [old + 1, old + 2];
        self.tell(&[&[old][..], &both].concat());

        // Read before the signal is sent: the gateway may act on it well before `kill` has ended.
        let term = self.cast.clock.now();
        self.gateways[old].signal("-TERM");
        sleep(NEWS).await;
        self.tell(&both);

        // Kubernetes would kill a gateway that takes longer.
        let left = (SETTLE + WINDOW + LAST_WORDS).saturating_sub(self.cast.clock.now() - term);
        let gateway = &mut self.gateways[old];
        let status = eventually_within(left, "the gateway ends on SIGTERM", || {
            std::future::ready(gateway.ended())
        })
        .await;
        assert!(status.success(), "{}", self.gateways[old].log());
        let exited = self.cast.clock.now();

        while let Some(lost) = self.absences().into_iter().find(|absence| absence.back.is_none()) {
            let lines = self.lines_of(&lost.client) + &tail(&self.nginx.log());
            assert!(
                self.cast.clock.now() - exited < PATIENCE,
                "does not come back: {lost:?}\n{lines}"
            );
            sleep(Duration::from_millis(100)).await;
        }
        Replacement { term, settle: SETTLE, window: WINDOW, exited }
    }

    fn tell(&self, running: &[usize]) {
        if self.way == Way::Reloaded {
            nginx::reload(&self.nginx, &named(self.way, &self.ports, running));
        }
    }

    /// The end of a client's log.
    fn lines_of(&self, client: &str) -> String {
        let log = self.cast.clients.iter().find(|log| log.lock().name == client);
        let lines = log.map(|log| log.lock().lines.clone()).unwrap_or_default();
        let last = &lines[lines.len().saturating_sub(6)..];
        last.iter().map(|l| format!("{:8.3} {:?}\n", l.at.as_secs_f64(), l.what)).collect()
    }

    /// The clients' absences, from logs without the events, which are most of the lines.
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
        absences(&self.cast.clients.iter().map(short).collect::<Vec<_>>())
    }

    fn verdict(&self) -> Verdict {
        let told =
            |client: &ClientLog, _: usize, code: u16| client.wire == Wire::Sse || code == 1012;
        check(&self.cast.published(), &self.cast.seen(), &told)
    }

    /// Prints what happened. Returns true if something was wrong.
    fn report(&self, seen: &Seen, drawings: Option<&Path>) -> bool {
        let absences = self.absences();
        let way = if self.way == Way::Named { "named" } else { "reloaded" };
        println!("{way}: {} clients\n{}", self.cast.clients.len(), summary(seen, &absences));

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
                println!("end of a gateway's log:\n{}", tail(&gateway.log()));
            }
        }

        if let Some(folder) = drawings {
            let clients = self.cast.clients.len();
            let title =
                format!("{clients} clients, both replicas replaced, nginx with replicas {way}");
            let samples = self.samples.lock();
            let text = drawing::svg(&title, &absences, &seen.replacements, &samples);
            std::fs::write(folder.join(format!("rollout-{way}.svg")), text).unwrap();
        }

        !wrong.is_empty()
    }
}

/// The addresses in nginx' configuration while these replicas run.
fn named(way: Way, ports: &[u16; 4], running: &[usize]) -> Vec<String> {
    let all: &[usize] = &[0, 1, 2, 3];
    let named = if way == Way::Named { all } else { running };
    named.iter().map(|replica| address(ports[*replica])).collect()
}

/// Starts a gateway and waits until it is ready.
async fn launch(redis: &Redis, port: u16) -> Gateway {
    let set = |name: &str, value: String| (format!("TOLLGATE_{name}"), value);
    let environment = [
        set("SERVER__LISTEN", address(port)),
        set("DRAIN__SETTLE", format!("{}s", SETTLE.as_secs())),
        set("DRAIN__WINDOW", format!("{}s", WINDOW.as_secs())),
    ];
    gateway::start(gateway::today(&redis.url()).environment(environment)).await
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// What is wrong with how sockets are shared in the end. With all replicas named each has its
/// share: new replicas take over the sockets of old ones.
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
        counts.push(metrics::connections(address).await);
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
