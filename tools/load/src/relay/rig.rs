//! Everything between a commit and a socket: PostgreSQL, Redis, a gateway with its clients, relays, and
//! what each of them costs. What is measured with it is the business of `parts`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use super::admin;
use super::options::Relay;
use super::postgres::Postgres;
use super::rows::{Lane, Spread};
use crate::args::{Clients, Output};
use crate::arrivals::Arrivals;
use crate::report::Report;
use crate::scenario::{Session, Shape, enough_files};
use crate::server::{Processes as Usage, Sample};
use crate::suite::SECRET;
use crate::suite::processes::{Pins, Processes, Server, Setting};

/// The relay's connections, among what costs.
const RELAYS: &str = "relay_postgres";

pub struct Rig {
    pub postgres: Postgres,
    pub session: Session,
    pub gateway: Server,
    pub processes: Processes,
    pub lanes: Vec<Lane>,
    /// Deliveries that were due in the parts so far.
    pub deliveries: u64,
    _folder: TempDir,
}

impl Rig {
    /// `None`: not all clients could connect, and the report says why.
    pub fn prepare(args: &Relay, program: &Path, report: &mut Report) -> Result<Option<Self>> {
        enough_files(args.sockets(), 1)?;
        let folder = tempfile::tempdir()?;
        // Nothing is bound to a core: more programs than cores are at work.
        let processes = Processes::new(folder.path(), Pins::none())?;
        eprintln!("relay: PostgreSQL and a gateway are started");
        let postgres = Postgres::prepare(args, program, folder.path())?;
        let setting = Setting { history: true, ..Setting::DEFAULT };
        let gateway = processes.gateway(program, setting)?;

        let heard = args.heard();
        let clients = clients(args, gateway.port);
        let mut shape = Shape::of_channel(&clients, "post:{n}", heard);
        shape.topology.own = None;
        shape.topology.shared = Some(("post:{n}".to_owned(), heard));
        shape.payload = args.bytes;
        let session = Session::new(&clients, shape)?;
        let _ = session.fleet.shared.arrivals.set(Arrivals::new(heard));
        let Some(session) = session.connect_all(&clients, report)? else { return Ok(None) };

        let spread = Spread { channels: args.channels.max(1), heard };
        let lanes = Lane::all(spread, args.committers);
        Ok(Some(Rig {
            postgres,
            session,
            gateway,
            processes,
            lanes,
            deliveries: 0,
            _folder: folder,
        }))
    }

    pub fn relay(&self, args: &Relay, program: &Path) -> Result<RelayProcess> {
        let settings = format!(
            "[relay]\nurl = \"{}\"\nbatch_rows = {}\nbatch_bytes = {}\n",
            self.postgres.relay_url, args.batch_rows, args.batch_bytes
        );
        let server = self.processes.relay(program, &settings)?;
        Ok(RelayProcess { server })
    }

    /// What was used until now by each program that a row passes, in seconds of CPU.
    pub fn costs(&self, relay: &RelayProcess) -> Result<Costs> {
        let relays = self.postgres.backends("tollgate relay")?;
        let committers = self.postgres.backends("tollgate-load")?;
        let programs = [
            ("relay", vec![relay.pid()]),
            (RELAYS, relays),
            ("redis", vec![self.processes.redis.pid()]),
            ("gateway", vec![self.gateway.pid()]),
            ("commit_postgres", committers),
        ];
        let sampled = programs.map(|(name, pids)| {
            let usage = Usage::new(pids).unwrap_or_default();
            let sample = usage.sample();
            (name, usage, sample)
        });
        Ok(Costs(sampled))
    }

    pub fn tell(&self, text: impl Into<String>) {
        self.session.progress.set_message(text.into());
    }

    /// Waits until all rows are at their sockets.
    pub fn wait_delivered(&self) -> Result<bool> {
        self.session.fleet.wait_delivered(self.deliveries, Duration::from_secs(10))
    }
}

/// What programs had used at a moment.
pub struct Costs([(&'static str, Usage, Sample); 5]);

impl Costs {
    /// Reports what each has used since then, for each of so many rows.
    pub fn report(&self, rig: &Rig, report: &mut Report, part: &str, rows: u64) -> Result<()> {
        // A relay that has just started had no connection at the first look.
        let relays = Usage::new(rig.postgres.backends("tollgate relay")?).unwrap_or_default();
        for (name, usage, before) in &self.0 {
            let usage = if *name == RELAYS { &relays } else { usage };
            let Some(used) = usage.cpu(before, &usage.sample()) else { continue };
            let text = format!("{part}: CPU of {} for a row", name.replace('_', "'s "));
            let each = used / rows.max(1) as f64 * 1e6;
            report.figure(&format!("{part}_{name}_us_per_row"), &text, each, "us");
        }
        Ok(())
    }
}

/// A running relay.
pub struct RelayProcess {
    server: Server,
}

impl RelayProcess {
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Rows that are marked. 0 while it does not answer.
    pub fn marked(&self) -> u64 {
        admin::metric(self.server.port, "tollgate_relay_published_total").unwrap_or(0.0) as u64
    }

    pub fn leads(&self) -> bool {
        admin::metric(self.server.port, "tollgate_relay_leader") == Some(1.0)
    }

    /// Whether it has a usable database: it leads or stands by.
    pub fn stands(&self) -> bool {
        admin::get(self.server.port, "/readyz").is_some_and(|(status, _)| status == 200)
    }

    pub fn wait(&self, what: &str, is: impl Fn(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        while !is(self) {
            if Instant::now() > end {
                bail!("the relay does not {what}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) {
        self.server.signal(signal);
    }

    pub fn end(self) {
        self.server.end(Signal::TERM);
    }

    /// The most memory that it has had, in MiB.
    pub fn peak(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.context("VmHWM")? / 1024.0)
    }
}

fn clients(args: &Relay, port: u16) -> Clients {
    Clients {
        url: vec![format!("ws://127.0.0.1:{port}/ws")],
        connections: args.sockets(),
        connect_concurrency: 256,
        connect_timeout: Duration::from_secs(30),
        secret: Some(SECRET.to_owned()),
        claims: None,
        tokens: None,
        token: None,
        auto: false,
        raw: false,
        ca: None,
        threads: 1,
        source_ips: Vec::new(),
        pid: Vec::new(),
        output: Output { json: None, plot: None, label: None },
    }
}

/// The plan that all committers compose their events by.
pub fn plan(rig: &Rig) -> Arc<crate::client::Plan> {
    Arc::clone(&rig.session.fleet.plan)
}
