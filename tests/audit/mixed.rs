//! Replicas of an earlier version and of today side by side on one Redis, rolled forward and back
//! under load. Nothing is lost in silence, and what one replica is told holds on the other:
//! disconnecting, revoking, durable publishing.
//!
//! Not here: a channel with plain and durable events. A client that resumes there at a replica that
//! has just started is not told of plain events that were published before, whatever the version:
//! docs/publishing.md says so.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;
use tollgate_support::eventually_within;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::{API_KEY, try_api};
use tollgate_support::tokens::{SECRET, now, sign};

use super::backend::Backend;
use super::cast::{Cast, Part};
use super::check::{Verdict, check};
use super::client::Replica;
use super::gateway::{self, PROGRAM};
use super::probe::Probe;
use super::publisher::Dial;
use super::record::{ClientLog, Kind, Manner, Stream, What, Wire};
use super::rows::Setup;

/// The program of the earlier version.
const OLD_BIN: &str = "TOLLGATE_OLD_BIN";

const CLIENTS: usize = 36;
const USERS: usize = 3;
const PAUSE: Duration = Duration::from_millis(30);
/// How long two replicas run beside each other before and after they are asked things.
const BESIDE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(15);
const EVENTS: u64 = 20;
const SHOWN: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Old,
    Today,
}

/// Which of the two replicas is replaced, and by which version: forward, then back.
const STEPS: [(&str, usize, Version); 4] = [
    ("forward, one of two", 0, Version::Today),
    ("forward, both", 1, Version::Today),
    ("back, one of two", 0, Version::Old),
    ("back, both", 1, Version::Old),
];

struct Mixed {
    old: PathBuf,
    cast: Cast,
    backend: Backend,
    /// The two running gateways, each with its index among the cast's replicas.
    running: [(usize, Version, Gateway); 2],
    /// Tokens that were revoked.
    revoked: Vec<String>,
    asked: usize,
    wrong: Vec<String>,
}

/// Runs old and new side by side. Returns true if something was wrong.
pub async fn run() -> bool {
    let Some(old) = std::env::var_os(OLD_BIN).map(PathBuf::from) else {
        eprintln!("{OLD_BIN} names no program: `make mixed` builds it");
        return true;
    };
    let mut failed = false;
    for (name, setup) in [("one Redis", Setup::Alone(&[])), ("a cluster", Setup::Cluster)] {
        eprintln!("{name}:");
        failed |= one(old.clone(), Backend::start(setup).await).await;
    }
    failed
}

async fn one(old: PathBuf, backend: Backend) -> bool {
    let mut mixed = Mixed::start(old, backend).await;
    mixed.connect().await;
    mixed.publish();
    sleep(BESIDE).await;

    for (name, place, version) in STEPS {
        let began = Instant::now();
        let before = mixed.wrong.len();
        mixed.replace(name, place, version).await;
        mixed.still_revoked(name, place).await;
        sleep(BESIDE).await;
        mixed.ask_each_other(name).await;
        sleep(BESIDE).await;
        let found = mixed.wrong.len() - before;
        eprintln!("{name}: {found} wrong, in {:.1} s", began.elapsed().as_secs_f64());
    }

    mixed.cast.rest().await;
    let verdict = mixed.cast.settle(PATIENCE, || mixed.verdict()).await;
    mixed.cast.end();
    mixed.report(&verdict)
}

async fn launch(program: &Path, backend: &Backend) -> Gateway {
    let mut environment = vec![("TOLLGATE_API__KEYS".to_owned(), json!([API_KEY]).to_string())];
    let manual = Command::new(program).args(["config", "print", "--defaults"]).output().unwrap();
    let manual = String::from_utf8_lossy(&manual.stdout).into_owned();
    for (setting, name, value) in [
        // Version 0.1 has its keys elsewhere: beside it, a version with this setting needs it.
        ("beside_0_1 =", "REDIS__BESIDE_0_1", "true"),
        // The test tries revoked tokens again and again.
        ("refusal_wait =", "LIMITS__REFUSAL_WAIT", "0s"),
    ] {
        if manual.contains(setting) {
            environment.push((format!("TOLLGATE_{name}"), value.to_owned()));
        }
    }
    gateway::start(gateway::of(program, &backend.url()).environment(environment)).await
}

impl Mixed {
    async fn start(old: PathBuf, backend: Backend) -> Self {
        let (a, b) = (launch(&old, &backend).await, launch(&old, &backend).await);
        Self {
            old,
            cast: Cast::new([a.public.clone(), b.public.clone()]),
            backend,
            running: [(0, Version::Old, a), (1, Version::Old, b)],
            revoked: Vec::new(),
            asked: 0,
            wrong: Vec::new(),
        }
    }

    async fn connect(&mut self) {
        for number in 0..CLIENTS {
            let wire = [Wire::Envelope, Wire::Sse, Wire::Plain][number % 3];
            let manner = [Manner::Steady, Manner::Patient, Manner::Wanders][number / 3 % 3];
            let user = format!("u{}", number % USERS);
            let names = ["durable:1", "durable:2", "plain:1", "plain:2"];
            let mut channels = names.map(str::to_owned).to_vec();
            channels.push(format!("user:{user}"));
            let (home, from) = (number % 2, Ipv4Addr::LOCALHOST);
            self.cast.client(Part { wire, manner, user, channels, home, from });
        }
        self.cast.all_live(PATIENCE).await;
    }

    fn publish(&mut self) {
        let mut all = vec![
            ("durable:1".to_owned(), Kind::Durable),
            ("durable:2".to_owned(), Kind::Durable),
            ("plain:1".to_owned(), Kind::Plain),
            ("plain:2".to_owned(), Kind::Plain),
        ];
        all.extend((0..USERS).map(|n| (format!("user:u{n}"), Kind::Durable)));
        let dial = Arc::new(Dial::new(PAUSE));
        for (channel, kind) in all {
            let stream = Stream { channel, kind, publisher: "main", kept: 500 };
            self.cast.publisher(stream, self.backend.place(), &dial);
        }
    }

    /// Starts a new replica, then ends the one that it replaces.
    async fn replace(&mut self, step: &str, place: usize, version: Version) {
        let program = match version {
            Version::Old => self.old.clone(),
            Version::Today => PROGRAM.into(),
        };
        let gateway = launch(&program, &self.backend).await;
        let address = gateway.public.clone();

        let index = {
            let mut replicas = self.cast.replicas.lock();
            replicas.push(Replica { address, open: true });
            replicas.len() - 1
        };

        let slot = &mut self.running[place];
        let (before, _, mut leaving) = std::mem::replace(slot, (index, version, gateway));
        self.cast.replicas.lock()[before].open = false;
        leaving.signal("-TERM");
        let began = Instant::now();

        let what = format!("{step}: it ends on SIGTERM");
        let status =
            eventually_within(PATIENCE, &what, || std::future::ready(leaving.ended())).await;
        if !status.success() {
            self.wrong.push(format!("{step}: ended with {status}\n{}", leaving.log()));
        }

        while !self.cast.clients.iter().all(|log| is_connected(&log.lock())) {
            if began.elapsed() > PATIENCE {
                self.wrong.push(format!("{step}: clients do not come back"));
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// A replica that has just started refuses every token that either version revoked before.
    async fn still_revoked(&mut self, step: &str, place: usize) {
        let (_, version, gateway) = &self.running[place];
        let (version, address) = (*version, gateway.public.clone());

        for token in self.revoked.clone() {
            let began = Instant::now();
            // The earlier version accepts a revoked token until it has read the store.
            let refused = loop {
                let refused = Probe::open(&address, &token).await.err();
                let late = version == Version::Today || began.elapsed() > PATIENCE;
                if refused.is_some() || late {
                    break refused;
                }
                sleep(Duration::from_millis(100)).await;
            };

            let expected = Some((4401, "revoked".to_owned()));
            if refused != expected {
                let line = format!("{step}: {version:?} and a revoked token: {refused:?}");
                self.wrong.push(line);
                return;
            }
        }
    }

    /// What one replica is told holds on the other.
    async fn ask_each_other(&mut self, step: &str) {
        let all = [0, 1].map(|n| (self.running[n].1, self.running[n].2.public.clone()));
        self.both_are_known(step, &all).await;

        for (by, from) in &all {
            for (at, to) in &all {
                self.asked += 1;
                let user = format!("asked-{}", self.asked);
                let found = [
                    ("disconnect", disconnect(from, to, &user).await),
                    ("revoke", self.revoke(from, to, &user).await),
                    ("publish", publish(from, to, &user, self.asked).await),
                ];
                for (what, found) in found {
                    if let Err(why) = found {
                        let line = format!("{step}: {what}, asked of {by:?}, at {at:?}: {why}");
                        self.wrong.push(line);
                    }
                }
            }
        }
    }

    /// Waits until both replicas know each other, so that an answer can say which one did not hear.
    async fn both_are_known(&mut self, step: &str, all: &[(Version, String)]) {
        for (version, address) in all {
            let began = Instant::now();
            let known = loop {
                let info = try_api(address, "info", &json!({})).await.unwrap_or_default();
                let known = info["result"]["nodes"].as_array().map_or(0, Vec::len);
                if known == 2 || began.elapsed() > PATIENCE {
                    break known;
                }
                sleep(Duration::from_millis(200)).await;
            };
            if known != 2 {
                let line = format!("{step}: {version:?} knows of {known} replicas, not of two");
                self.wrong.push(line);
            }
        }
    }

    async fn revoke(&mut self, from: &str, to: &str, user: &str) -> Result<(), String> {
        let until = now() + 3600;
        let token = sign(&json!({"sub": user, "jti": user, "iat": now(), "exp": until}), SECRET);
        let mut probe = Probe::open(to, &token).await.map_err(|e| format!("{e:?}"))?;

        let body = json!({"jti": user, "expire_at": until});
        let answer = try_api(from, "revoke_token", &body).await?;
        if answer != json!({"result": {}}) {
            return Err(answer.to_string());
        }

        let ended = probe.next().await.err().map_or(0, |(code, _)| code);
        if ended != 4409 {
            return Err(format!("the socket ended with {ended}"));
        }

        for address in [from, to] {
            let refused = Probe::open(address, &token).await.err();
            if refused != Some((4401, "revoked".to_owned())) {
                return Err(format!("the token again: {refused:?}"));
            }
        }

        self.revoked.push(token);
        Ok(())
    }

    fn verdict(&self) -> Verdict {
        let stays = self.running.each_ref().map(|(index, ..)| *index);
        let told = |client: &ClientLog, replica: usize, code: u16| {
            let told = client.wire == Wire::Sse || matches!(code, 1001 | 1012);
            told && !stays.contains(&replica)
        };
        check(&self.cast.published(), &self.cast.seen(), &told)
    }

    /// Prints what happened. Returns true if something was wrong.
    fn report(&self, verdict: &Verdict) -> bool {
        let v = verdict;
        println!(
            "{} clients, {} events accepted, {} refused, {} deliveries; resumed whole {}, not {}; \
             gaps told {}, missing and told {}; asked {} times; {} revocations",
            self.cast.clients.len(),
            v.accepted,
            v.refused,
            v.deliveries,
            v.resumed,
            v.not_resumed,
            v.gaps,
            v.declared,
            self.asked,
            self.revoked.len()
        );

        let cases = v.cases.iter().map(|c| format!("{:?}: {}", c.offence, c.text));
        let wrong: Vec<String> = self.wrong.iter().cloned().chain(cases).collect();
        for line in wrong.iter().take(SHOWN) {
            println!("  WRONG {line}");
        }
        println!("  {} wrong", wrong.len());

        if !wrong.is_empty() {
            for (_, version, gateway) in &self.running {
                println!("log of a replica, {version:?}:\n{}", gateway.log());
            }
        }

        !wrong.is_empty()
    }
}

fn is_connected(log: &ClientLog) -> bool {
    let mut ends = log.lines.iter().rev();
    let last =
        ends.find(|line| matches!(line.what, What::Opened(_) | What::Closed { .. } | What::Left));
    // A wandering client is away now and then.
    log.manner == Manner::Wanders || last.is_some_and(|line| matches!(line.what, What::Opened(_)))
}

async fn disconnect(from: &str, to: &str, user: &str) -> Result<(), String> {
    let token = sign(&json!({"sub": user, "exp": now() + 3600}), SECRET);
    let mut probe = Probe::open(to, &token).await.map_err(|e| format!("{e:?}"))?;
    let answer = try_api(from, "disconnect", &json!({"user": user})).await?;
    if answer != json!({"result": {}}) {
        return Err(answer.to_string());
    }
    match probe.next().await {
        Err((4409, _)) => Ok(()),
        other => Err(format!("the socket: {other:?}")),
    }
}

/// Durable events that one replica's API publishes arrive at a socket of the other, each once and
/// in order.
async fn publish(from: &str, to: &str, user: &str, number: usize) -> Result<(), String> {
    let channel = format!("durable:asked-{number}");
    let token = sign(&json!({"sub": user, "exp": now() + 3600}), SECRET);
    let mut probe = Probe::open(to, &token).await.map_err(|e| format!("{e:?}"))?;
    probe.subscribe(&channel).await.map_err(|e| format!("{e:?}"))?;

    for n in 1..=EVENTS {
        let answer = try_api(from, "publish", &json!({"channel": channel, "data": n})).await?;
        if answer["result"]["offset"] != n {
            return Err(format!("event {n}: {answer}"));
        }
    }

    for n in 1..=EVENTS {
        let message = probe.next().await;
        if message != Ok(json!(n)) {
            return Err(format!("event {n}: {message:?}"));
        }
    }
    Ok(())
}
