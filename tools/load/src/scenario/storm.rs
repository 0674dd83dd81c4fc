//! `storm`: all clients lose their connection at once and come back as clients do, while bystanders
//! stay and are measured.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Session, Shape};
use crate::args::{Storm, pace};
use crate::backoff::Backoff;
use crate::clock;
use crate::publisher::{Published, Publisher, Schedule, Until};
use crate::report::Report;
use crate::tally::Tally;
use crate::topology::Topology;

pub fn storm(args: &Storm) -> Result<bool> {
    let clients = &args.clients;
    ensure!(
        args.bystanders < clients.connections,
        "--bystanders are part of --connections, and somebody has to be cut off"
    );

    let mut report = Report::new("storm", clients.output.label.as_deref());
    let output = (clients.output.json.as_deref(), clients.output.plot.as_deref());
    let Some(session) = Session::new(clients, shape(args))?.connect_all(clients, &mut report)?
    else {
        return report.finish(output.0, output.1);
    };

    let (plan, shared) = (Arc::clone(&session.fleet.plan), Arc::clone(&session.fleet.shared));
    let begin = clock::now() + 20_000_000;
    let measured_from = begin + 1_000_000_000;
    shared.begin_phase(1, measured_from);

    let publishing = if args.bystanders > 0 {
        let (pace, channels) = (pace(args.rate, "--rate")?, 0..1);
        let schedule = Schedule { pace, until: Until::Stopped, begin, measured_from, channels };
        Some(Publisher::start(&plan, &shared, &args.publish.sink()?, schedule)?)
    } else {
        None
    };

    session.progress.set_message("measuring the bystanders");
    clock::park_until(measured_from + clock::nanos(args.before));
    let before = session.processes.sample();
    let cut = session.fleet.cut()?;
    shared.begin_phase(2, cut);

    // The cut has to have begun before "all are ready" means anything.
    while shared.ready.load(Acquire) == clients.connections && clock::now() < cut + 1_000_000_000 {
        std::thread::sleep(Duration::from_micros(200));
    }

    let back = session.fleet.wait_ready(args.limit, |ready| {
        session.progress.set_message(format!("{ready} of {} are back", clients.connections));
    })?;

    let after = session.processes.sample();
    let end = shared.last_ready.load(Acquire).max(cut);
    shared.begin_phase(3, end);

    // Events that were published during the storm get time to arrive.
    std::thread::sleep(Duration::from_millis(200));
    let published = match publishing {
        Some(publishing) => {
            let published = publishing.finish()?;
            session.fleet.wait_delivered(published.deliveries, Duration::from_secs(5))?;
            Some(published)
        }
        None => None,
    };

    session.progress.finish_and_clear();
    let last = published.as_ref().map_or(Vec::new(), |p| p.last.clone());
    let returned = shared.ready.load(Acquire);
    let cpu = session.processes.cpu(&before, &after);
    let tally = session.fleet.stop(last)?;
    let cut_off = (clients.connections - args.bystanders) as f64;

    report.figure("cut", "cut off", cut_off, "");
    report.figure("recover_s", "until all were subscribed again", clock::seconds(end - cut), "s");
    if let Some(cpu) = cpu {
        let each = cpu / tally.handshake.len().max(1) as f64 * 1e6;
        report.figure("cpu_us_per_handshake", "server CPU per handshake", each, "us");
    }
    figures(&mut report, &tally, published.as_ref());

    if !back {
        let lacking = clients.connections - returned;
        report.problem(format!("{lacking} clients were not back in time"));
    }
    report.finish(output.0, output.1)
}

fn shape(args: &Storm) -> Shape {
    let clients = &args.clients;
    Shape {
        topology: Topology {
            shared: (args.bystanders > 0).then(|| (args.bystander_channel.clone(), 1)),
            own: Some(args.channel.clone()),
            auto: clients.auto,
            bystanders: Some(args.bystanders),
            clients: clients.connections,
        },
        payload: args.publish.payload,
        closed_loop: false,
        retry: Some(Backoff { first: args.backoff, max: args.backoff_max }),
        churn: None,
    }
}

fn figures(report: &mut Report, tally: &Tally, published: Option<&Published>) {
    report.figure("attempts", "attempts", tally.attempts as f64, "");
    report.figure("refusals", "put off by the server", tally.refusals as f64, "");
    report.percentiles("handshake", "handshake", &tally.handshake);

    let [before, during, _] = &tally.latency;
    report.percentiles("before", "bystanders' latency before", before);
    report.percentiles("during", "bystanders' latency during", during);
    report.curve(" bystanders before", before);
    report.curve(" bystanders during", during);
    report.curve(" handshake", &tally.handshake);

    if let Some(published) = published {
        report.figure("published", "published", published.measured as f64, "");
        let late = clock::millis(published.latest);
        report.figure("publisher_late_ms", "publisher late by at most", late, "ms");
    }

    report.checks(tally);
    report.kinds("gap", &tally.gaps);
    report.kinds("failed attempt", &tally.failures);
    report.kinds("closed", &tally.closes);
}
