//! One round: a Redis, two gateways, publishers and clients, one fault in the middle, the verdict.

use std::fs::File;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tollgate_support::gateway::Gateway;

use super::backend::Backend;
use super::cast::{Cast, Part};
use super::check::{Offence, Verdict, check};
use super::faults;
use super::gateway::{self, has_sse, noticed};
use super::health::{self, Answer, Detection};
use super::publisher::{Dial, Place};
use super::record::{ClientLog, Kind, Manner, Shared, Stream, What, Wire, shared};
use super::rows::{Fault, Row, Sign};
use super::shortage::FEW_FILES;

/// How long a round takes, and how much it does.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub before: Duration,
    pub after: Duration,
    pub pause: Duration,
    pub clients: usize,
    /// Faults may last as long as they need.
    pub full: bool,
    /// Hides declarations from the checker: a round with a loss must fail then.
    pub blind: bool,
}

pub struct Round {
    pub row: Row,
    pub pace: Pace,
    pub cast: Cast,
    pub backend: Backend,
    pub gateways: Vec<Gateway>,
    pub dial: Arc<Dial>,
    /// The shift of the gateways' clock, where libfaketime reads it.
    pub clock_file: NamedTempFile,
    /// When the fault was brought about, by the machine's clock and by the round's.
    pub injected: Option<(Instant, Duration)>,
    pub lifted: Option<Duration>,
    /// How long the fault took to show, in rounds that look for it themselves.
    pub shown: Option<Duration>,
    /// What the round itself found wrong, and what is worth telling.
    pub wrong: Vec<String>,
    pub notes: Vec<String>,
    health: Shared<Vec<Answer>>,
    asking: JoinSet<()>,
    sse: bool,
}

/// What a round showed.
pub struct Outcome {
    pub row: Row,
    pub verdict: Verdict,
    /// From the fault to the first log line about Redis, and to a client's first `gap` or close.
    pub logged: Option<Duration>,
    pub told: Option<Duration>,
    /// From the fault, or its end, until every gateway said so in `/readyz`, or the round saw it.
    pub detection: Detection,
    pub wrong: Vec<String>,
    pub notes: Vec<String>,
    /// The fault left no trace: the round proves nothing.
    pub without_effect: bool,
    pub gateway_logs: Vec<String>,
    pub clients: Vec<ClientLog>,
}

impl Outcome {
    /// Whether cases of this kind are wrong in this round. While there are two masters, what
    /// the old one accepts after the gateway has moved can be declared only once it is no
    /// longer a master.
    pub fn is_wrong(&self, offence: Offence) -> bool {
        offence != Offence::Late || !self.had_two_masters()
    }

    /// Whether there were two masters at a time. Two Sentinels that each led a failover have also
    /// left one new master for another.
    fn had_two_masters(&self) -> bool {
        let moves = |log: &String| log.matches("Redis masters masters").count() > 2;
        self.row.fault == Fault::SentinelPlanned
            || (self.row.fault == Fault::SentinelKill && self.gateway_logs.iter().any(moves))
    }

    pub fn failed(&self) -> bool {
        !self.wrong.is_empty() || self.verdict.cases.iter().any(|case| self.is_wrong(case.offence))
    }
}

const USERS: [&str; 3] = ["u1", "u2", "u12"];
const CHANNELS: [&str; 6] = ["durable:1", "durable:2", "plain:1", "plain:2", "mixed:1", "mixed:2"];
/// The beginning of channels that a single client has; its number follows.
const OWN: &str = "durable:own-";
/// The last byte of each address that clients connect from.
const HOMES: [u8; 4] = [2, 3, 4, 5];
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
    pub async fn new(row: Row, backend: Backend, pace: Pace) -> Self {
        let clock_file = NamedTempFile::new().unwrap();
        std::fs::write(clock_file.path(), "+0s").unwrap();
        let settings = row.fault.settings(pace).iter();
        let mut environment: Vec<(String, String)> = settings
            .map(|(name, value)| (format!("TOLLGATE_{name}"), (*value).to_owned()))
            .collect();

        if row.fault == Fault::Clock {
            let path = clock_file.path().display().to_string();
            environment.extend(faketime(&path).expect("looked for before"));
        }

        let mut gateways = Vec::new();
        for first in [true, false] {
            let few = first && row.fault == Fault::Descriptors;
            let mut launch = gateway::today(&backend.url()).environment(environment.clone());
            if row.fault == Fault::LogFull {
                launch = launch.log_to(Stdio::null(), File::create("/dev/full").unwrap().into());
            }
            if few {
                launch = launch.files(FEW_FILES + 12 * pace.clients);
            }
            gateways.push(gateway::start(launch).await);
        }

        let cast = Cast::new(gateways.iter().map(|g| g.public.clone()));
        let health = shared(Vec::new());
        let admins = gateways.iter().map(|g| g.admin.clone()).collect();
        let mut asking = JoinSet::new();
        asking.spawn(health::ask(cast.clock, admins, Arc::clone(&health)));

        Self {
            row,
            pace,
            cast,
            backend,
            sse: has_sse(&gateways[0]).await,
            gateways,
            dial: Arc::new(Dial::new(pace.pause)),
            clock_file,
            injected: None,
            lifted: None,
            shown: None,
            wrong: Vec::new(),
            notes: Vec::new(),
            health,
            asking,
        }
    }

    pub async fn run(mut self) -> Outcome {
        self.clients(self.pace.clients).await;
        self.publish(self.row.fault);
        sleep(self.pace.before).await;
        faults::inject(self.row.fault, &mut self).await;
        let went = *self.lifted.get_or_insert(self.cast.clock.now());
        sleep(self.pace.after).await;
        if self.row.sign == Sign::Shown {
            self.until_over(went).await;
        }
        self.cast.rest().await;
        sleep(Duration::from_millis(800)).await;
        let verdict = self.cast.settle(SETTLE, || self.verdict()).await;
        self.cast.end();
        self.asking.shutdown().await;
        self.outcome(verdict)
    }

    /// Notes that the fault begins now.
    pub fn begins(&mut self) {
        self.injected = Some((Instant::now(), self.cast.clock.now()));
    }

    fn came(&self) -> Duration {
        self.injected.expect("the fault took place").1
    }

    /// Waits until the gateways say that the fault is over, but no longer than `SETTLE`.
    async fn until_over(&self, went: Duration) {
        let began = Instant::now();
        let over = || health::detection(&self.health.lock(), self.came(), went).over;
        while over().is_none() && began.elapsed() < SETTLE {
            sleep(Duration::from_millis(100)).await;
        }
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
                    // No other client has this channel: a replica subscribes to it when this
                    // client comes.
                    channels.push(format!("{OWN}{number}"));
                }

                let from = Ipv4Addr::new(127, 0, 0, HOMES[number % HOMES.len()]);
                let (wire, manner, home) = (*wire, *manner, number % 2);
                self.cast.client(Part { wire, manner, user, channels, home, from });
                number += 1;
            }
        }

        self.cast.all_live(2 * SETTLE).await;
    }

    fn publish(&mut self, fault: Fault) {
        let user = USERS.map(|user| (format!("user:{user}"), Kind::Durable, 500));
        let mut streams: Vec<(String, Kind, u32)> = vec![
            ("durable:1".to_owned(), Kind::Durable, 500),
            ("durable:2".to_owned(), Kind::Durable, 30),
            ("plain:1".to_owned(), Kind::Plain, 0),
            ("plain:2".to_owned(), Kind::Plain, 0),
            ("mixed:1".to_owned(), Kind::Durable, 500),
            ("mixed:1".to_owned(), Kind::Plain, 0),
            // A history that no publisher writes to.
            ("mixed:2".to_owned(), Kind::Plain, 0),
        ];
        streams.extend(user);

        let channels = self.cast.seen().into_iter().flat_map(|log| log.channels);
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
                let place = Place::OldMaster(watched.master.address());
                let publisher = "who stays on the old master";
                let channel = channel.to_owned();
                streams.push((Stream { channel, kind, publisher, kept: 500 }, place));
            }
        }

        for (stream, place) in streams {
            self.cast.publisher(stream, place, &self.dial);
        }
    }

    /// Whether plain events of every channel that the row names were missing and declared.
    pub fn has_declared_all(&self) -> bool {
        let Sign::Declared(channels) = self.row.sign else { return false };
        let verdict = self.verdict();
        channels.iter().all(|channel| verdict.declared_plain.contains_key(*channel))
    }

    fn verdict(&self) -> Verdict {
        let fault = self.row.fault;
        let mut clients = self.cast.seen();
        if self.pace.blind {
            clients.iter_mut().for_each(ClientLog::forget_declarations);
        }
        let may_close = |client: &ClientLog, replica: usize, code: u16| match fault {
            Fault::GatewayKill => replica == 0,
            fault if fault.ends_the_first() => {
                let told = client.wire == Wire::Sse || matches!(code, 1001 | 1012);
                replica == 0 && told
            }
            _ => false,
        };
        check(&self.cast.published(), &clients, &may_close)
    }

    fn outcome(mut self, verdict: Verdict) -> Outcome {
        let row = self.row;
        let (at, since) = self.injected.expect("the fault took place");
        let logged = self.gateways.iter().filter_map(|g| noticed(g, at)).min();
        let clients = self.cast.seen();

        let first = |log: &ClientLog| {
            if log.manner != Manner::Steady {
                return None;
            }
            let mut lines = log.lines.iter().filter(|l| l.at >= since);
            let told = lines.find(|l| matches!(l.what, What::Gap { .. } | What::Closed { .. }));
            told.map(|l| l.at - since)
        };
        let told = clients.iter().filter_map(first).min();

        let without_effect = match row.sign {
            Sign::Noticed => logged.is_none() && told.is_none(),
            Sign::Closed | Sign::Told => told.is_none(),
            Sign::Declared(_) => !self.has_declared_all(),
            Sign::Shown | Sign::Nothing => false,
        };

        let went = self.lifted.unwrap_or(since);
        let answers = std::mem::take(&mut *self.health.lock());

        if row.sign == Sign::Shown {
            self.wrong.extend(health::problems(&answers, since, went));
        }
        let seen = health::detection(&answers, since, went);
        let detection = Detection { shown: self.shown.or(seen.shown), ..seen };

        let gateway_logs = self.gateways.iter().map(Gateway::log).collect();
        Outcome {
            row,
            verdict,
            logged,
            told,
            detection,
            wrong: self.wrong,
            notes: self.notes,
            without_effect,
            gateway_logs,
            clients,
        }
    }
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
