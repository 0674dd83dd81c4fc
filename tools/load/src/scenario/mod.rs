//! The scenarios, and what they share: the clients' start, and figures that several report.

pub mod connect;
pub mod deliver;
pub mod mixed;
pub mod redis_floor;
pub mod storm;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Clients;
use crate::backoff::Backoff;
use crate::client::Plan;
use crate::clock;
use crate::event::Events;
use crate::fleet::Fleet;
use crate::number::number;
use crate::publisher::Published;
use crate::report::Report;
use crate::server::{Processes, Sample};
use crate::shared::{Shared, Window};
use crate::tally::Tally;
use crate::target::Target;
use crate::topology::Topology;

/// What a scenario adds to the clients' options.
pub struct Shape {
    pub topology: Topology,
    pub payload: usize,
    pub closed_loop: bool,
    pub retry: Option<Backoff>,
    pub churn: Option<(usize, u64)>,
}

impl Shape {
    /// All clients have the same channel, or each has its own, as the template says.
    pub fn of_channel(clients: &Clients, template: &str, channels: usize) -> Self {
        let each = template.contains("{user}") || (channels == 1 && template.contains("{n}"));
        let template = template.to_owned();
        let (shared, own) =
            if each { (None, Some(template)) } else { (Some((template, channels)), None) };

        let topology = Topology {
            shared,
            own,
            auto: clients.auto,
            bystanders: None,
            clients: clients.connections,
        };
        Shape { topology, payload: 0, closed_loop: false, retry: None, churn: None }
    }
}

/// The clients, not connected yet, and the server's processes.
pub struct Session {
    pub fleet: Fleet,
    pub processes: Processes,
    pub progress: ProgressBar,
}

/// What connecting took.
pub struct Connected {
    pub before: Sample,
    pub after: Sample,
    pub seconds: f64,
    pub all: bool,
}

impl Session {
    pub fn new(clients: &Clients, shape: Shape) -> Result<Self> {
        let apart = shape.topology.bystanders.is_some_and(|bystanders| bystanders > 0);
        let threads = clients.threads.clamp(if apart { 2 } else { 1 }, 256);

        if clients.connections == 0 {
            bail!("--connections takes 1 or more");
        }
        enough_files(clients.connections, threads)?;

        let window = Window::new(shape.closed_loop, &shape.topology, threads);
        let plan = Plan {
            target: Target::new(&clients.url, clients.source_ips.clone(), clients.ca.as_deref())?,
            tokens: clients.tokens()?,
            topology: shape.topology,
            events: Events::new(fastrand::u32(1..), shape.payload),
            raw: clients.raw,
            retry: shape.retry,
            timeout: clock::nanos(clients.connect_timeout),
            churn: shape.churn,
        };

        let processes = Processes::new(clients.pid.clone())?;
        let shared = Arc::new(Shared::new(window));
        let fleet = Fleet::start(Arc::new(plan), shared, threads)?;
        Ok(Session { fleet, processes, progress: progress() })
    }

    pub fn connect(&self, concurrency: usize) -> Result<Connected> {
        let before = self.processes.sample();
        let began = self.fleet.open(concurrency.max(1))?;
        let total = self.fleet.plan.topology.clients;
        let all = self.fleet.wait_ready(Duration::from_secs(600), |ready| {
            self.progress.set_message(format!("{ready} of {total} connected"));
        })?;

        let after = self.processes.sample();
        let end = self.fleet.shared.last_ready.load(std::sync::atomic::Ordering::Acquire);
        Ok(Connected { before, after, seconds: clock::seconds(end.saturating_sub(began)), all })
    }

    /// Connects, for scenarios that are nothing without all their clients. `None`: some could not
    /// connect, the report says so, and the run is over.
    pub fn connect_all(self, clients: &Clients, report: &mut Report) -> Result<Option<Self>> {
        if self.connect(clients.connect_concurrency)?.all {
            return Ok(Some(self));
        }

        self.progress.finish_and_clear();
        let tally = self.fleet.stop(Vec::new())?;
        report.kinds("not connected", &tally.failures);
        report.kinds("closed", &tally.closes);
        report.problem("not all clients could connect and subscribe, so nothing was measured");
        Ok(None)
    }
}

pub fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Raises the limit of open files to what is allowed: everything that a process opens counts.
pub fn enough_files(connections: usize, threads: usize) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);

    let needed = (connections + 4 * threads + 32) as u64;
    if needed > allowed {
        bail!(
            "{connections} connections need {needed} open files, and this process may have {allowed}: \
             raise the limit (ulimit -Hn), or run several drivers beside each other"
        );
    }
    Ok(())
}

/// Adds the figures of publications that several scenarios have.
pub fn delivery_figures(
    report: &mut Report,
    tally: &Tally,
    published: &[&Published],
    (seconds, cpu, driver): (f64, Option<f64>, f64),
) {
    let delivered = tally.measured as f64;
    let sent: u64 = published.iter().map(|p| p.measured).sum();
    let late = published.iter().map(|p| p.latest).max().unwrap_or(0);

    report.figure("published", "published", sent as f64, "");
    report.figure("delivered", "delivered", delivered, "");
    report.figure("seconds", "measured for", seconds, "s");
    report.figure("deliveries_per_s", "deliveries", delivered / seconds.max(1e-9), "/s");

    if let Some(cpu) = cpu {
        let each = cpu / delivered.max(1.0) * 1e6;
        report.figure("cpu_s", "server CPU", cpu, "s");
        report.figure("cpu_us_per_delivery", "server CPU per delivery", each, "us");
        report.figure("cpu_percent", "server CPU", cpu / seconds * 100.0, "% of a core");
    }

    let driver_each = driver / delivered.max(1.0) * 1e6;
    report.figure("driver_us_per_delivery", "driver CPU per delivery", driver_each, "us");
    report.figure("driver_percent", "driver CPU", driver / seconds * 100.0, "% of a core");
    report.figure("publisher_late_ms", "publisher late by at most", clock::millis(late), "ms");

    if published.iter().any(|p| p.stalled) {
        report.problem("nothing was delivered for 10 s while publications were under way");
    }
}

pub fn busy_note(report: &mut Report, driver: f64, seconds: f64, threads: usize) {
    let share = driver / seconds / threads as f64 * 100.0;

    // In a shorter run the kernel's ticks say nothing.
    if share > 90.0 && seconds > 0.5 {
        report.note(format!(
            "the driver used {} % of its {threads} thread(s): it may be what limits; --threads, or \
             more machines",
            number(share.round())
        ));
    }
}
