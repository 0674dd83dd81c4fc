//! `mixed`: shared channels and each user's own at the same time, while some clients come and go.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Session, Shape, busy_note, delivery_figures};
use crate::args::{Mixed, pace};
use crate::backoff::Backoff;
use crate::clock;
use crate::publisher::{Publisher, Schedule, Until};
use crate::report::Report;
use crate::topology::Topology;

pub fn mixed(args: &Mixed) -> Result<bool> {
    let clients = &args.clients;
    ensure!((0.0..=1.0).contains(&args.churn), "--churn takes a share from 0 to 1");
    ensure!(!clients.raw, "the floor gives each connection one channel: no mixed load for it");

    let mut report = Report::new("mixed", clients.output.label.as_deref());
    let sink = args.publish.sink()?;
    let Some(session) = Session::new(clients, shape(args))?.connect_all(clients, &mut report)?
    else {
        return report.finish(clients.output.json.as_deref(), clients.output.plot.as_deref());
    };

    let (plan, shared) = (Arc::clone(&session.fleet.plan), Arc::clone(&session.fleet.shared));
    let begin = clock::now() + 20_000_000;
    let measured_from = begin + clock::nanos(args.warmup);
    shared.begin_phase(1, measured_from);

    let (channels, all) = (plan.topology.shared_channels(), plan.topology.channels());
    let start = |rate, option, channels| -> Result<_> {
        let until = Until::Duration(clock::nanos(args.duration));
        let pace = pace(rate, option)?;
        let schedule = Schedule { pace, until, begin, measured_from, channels };
        Publisher::start(&plan, &shared, &sink, schedule)
    };
    let fan = start(args.rate, "--rate", 0..channels)?;
    let users = start(args.user_rate, "--user-rate", channels..all)?;

    clock::park_until(measured_from);
    let before = session.processes.sample();
    while !(fan.is_finished() && users.is_finished()) {
        std::thread::sleep(Duration::from_millis(50));
        session.progress.set_message(format!(
            "{} delivered, {} of {} connected",
            shared.measured.load(Acquire),
            shared.ready.load(Acquire),
            clients.connections
        ));
    }

    let (fan, users) = (fan.join()?, users.join()?);
    // While clients come and go, nobody knows how many deliveries are due: the end is a second
    // of quiet.
    session.fleet.wait_delivered(fan.deliveries + users.deliveries, Duration::from_secs(1))?;
    let after = session.processes.sample();

    session.progress.finish_and_clear();
    let end = shared.last_delivery.load(Acquire);
    let last = fan.last.iter().zip(&users.last).map(|(a, b)| *a.max(b)).collect();
    let tally = session.fleet.stop(last)?;
    let seconds = clock::seconds(end.saturating_sub(before.at));
    let cpu = session.processes.cpu(&before, &after);
    let driver = after.driver_cpu - before.driver_cpu;

    report.figure("connections", "connections", clients.connections as f64, "");
    let reconnects = tally.attempts.saturating_sub(clients.connections as u64);
    report.figure("reconnects", "attempts to reconnect", reconnects as f64, "");
    delivery_figures(&mut report, &tally, &[&fan, &users], (seconds, cpu, driver));
    report.percentiles("latency", "latency", &tally.latency[0]);
    report.percentiles("handshake", "handshake", &tally.handshake);
    report.curve("", &tally.latency[0]);

    busy_note(&mut report, driver, seconds, clients.threads);
    report.checks(&tally);
    report.kinds("gap", &tally.gaps);
    report.kinds("failed", &tally.failures);
    report.kinds("closed", &tally.closes);

    if !tally.failures.is_empty() || !tally.closes.is_empty() {
        report
            .note("the server ended or refused connections; their clients came back, or tried to");
    }

    report.finish(clients.output.json.as_deref(), clients.output.plot.as_deref())
}

fn shape(args: &Mixed) -> Shape {
    let churn = (args.churn > 0.0)
        .then(|| ((1.0 / args.churn).round() as usize, clock::nanos(args.churn_every)));

    Shape {
        topology: Topology {
            shared: Some((args.channel.clone(), args.channels.max(1))),
            own: Some(args.user_channel.clone()),
            auto: args.clients.auto,
            bystanders: None,
            clients: args.clients.connections,
        },
        payload: args.publish.payload,
        closed_loop: false,
        // A client that comes and goes has no reason to wait long.
        retry: Some(Backoff { first: Duration::from_millis(500), max: Duration::from_secs(5) }),
        churn,
    }
}
