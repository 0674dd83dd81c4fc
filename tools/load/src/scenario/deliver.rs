//! `fanout` and `unicast`: the same publications to many, or each to one.

use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use anyhow::Result;

use super::redis_floor::BareSubscriber;
use super::{Session, Shape, busy_note, delivery_figures};
use crate::args::{Clients, Fanout, Publish, Run, Unicast};
use crate::clock;
use crate::publisher::{Pace, Published, Publisher, Publishing, Schedule};
use crate::report::Report;
use crate::server::Processes;

/// After so long without a delivery the rest is missing.
const QUIET: Duration = Duration::from_secs(5);

pub fn fanout(args: &Fanout) -> Result<bool> {
    let mut shape = Shape::of_channel(&args.clients, &args.channel, args.channels.max(1));
    if let Some(template) = shape.topology.own.take() {
        anyhow::ensure!(
            !template.contains("{user}"),
            "--channel {template}: each client has its own; that is the scenario unicast"
        );
        shape.topology.shared = Some((template, args.channels.max(1)));
    }

    run("fanout", shape, (&args.clients, &args.publish, &args.run), args.redis_subscriber)
}

pub fn unicast(args: &Unicast) -> Result<bool> {
    let shape = Shape::of_channel(&args.clients, &args.channel, 1);
    anyhow::ensure!(
        shape.topology.own.is_some(),
        "--channel {}: name the user's own channel with {{user}}",
        args.channel
    );

    run("unicast", shape, (&args.clients, &args.publish, &args.run), false)
}

fn run(
    scenario: &'static str,
    mut shape: Shape,
    (clients, publish, run): (&Clients, &Publish, &Run),
    bare: bool,
) -> Result<bool> {
    let output = &clients.output;
    let mut report = Report::new(scenario, output.label.as_deref());
    let (sink, pace) = (publish.sink()?, run.pace()?);
    (shape.payload, shape.closed_loop) = (publish.payload, matches!(pace, Pace::Window(_)));

    let Some(session) = Session::new(clients, shape)?.connect_all(clients, &mut report)? else {
        return report.finish(output.json.as_deref(), output.plot.as_deref());
    };

    let (plan, shared) = (Arc::clone(&session.fleet.plan), Arc::clone(&session.fleet.shared));
    let begin = clock::now() + 20_000_000;
    let measured_from = begin + clock::nanos(run.warmup);
    shared.begin_phase(1, measured_from);

    let channels = 0..plan.topology.channels();
    let bare = match bare {
        true => Some(BareSubscriber::start(&sink, &plan, measured_from)?),
        false => None,
    };
    let schedule = Schedule { pace, until: run.until(), begin, measured_from, channels };
    let publishing = Publisher::start(&plan, &shared, &sink, schedule)?;

    // The samples begin where the warm-up ends.
    while clock::now() < measured_from && !publishing.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }

    let redis = Processes::new(publish.redis_pid.into_iter().collect())?;
    let before = (session.processes.sample(), redis.sample());
    let published = watch(&session, publishing, before.0.at)?;
    session.fleet.wait_delivered(published.deliveries, QUIET)?;
    let after = (session.processes.sample(), redis.sample());

    session.progress.finish_and_clear();
    let end = shared.last_delivery.load(Acquire);
    let tally = session.fleet.stop(published.last.clone())?;
    let seconds = clock::seconds(end.saturating_sub(before.0.at));
    let cpu = session.processes.cpu(&before.0, &after.0);
    let driver = after.0.driver_cpu - before.0.driver_cpu;

    report.figure("connections", "connections", clients.connections as f64, "");
    delivery_figures(&mut report, &tally, &[&published], (seconds, cpu, driver));
    if let Some(cpu) = redis.cpu(&before.1, &after.1) {
        let each = cpu / published.measured.max(1) as f64 * 1e6;
        report.figure("redis_us_per_publication", "Redis CPU per publication", each, "us");
    }

    report.percentiles("latency", "latency", &tally.latency[0]);
    report.curve("", &tally.latency[0]);
    if let Some(bare) = bare {
        let latency = bare.stop()?;
        report.percentiles("redis_latency", "bare Redis latency", &latency);
        report.curve(", bare Redis subscriber", &latency);
    }

    busy_note(&mut report, driver, seconds, clients.threads);
    report.connections(&tally);

    report.finish(output.json.as_deref(), output.plot.as_deref())
}

/// Waits until all is published, and shows how far it is.
fn watch(session: &Session, publishing: Publishing, from: u64) -> Result<Published> {
    while !publishing.is_finished() {
        std::thread::sleep(Duration::from_millis(10));
        let delivered = session.fleet.shared.measured.load(Acquire);
        let seconds = clock::seconds(clock::now().saturating_sub(from)).max(0.1);
        let rate = delivered as f64 / seconds;
        session.progress.set_message(format!("{delivered} delivered, {rate:.0}/s"));
    }
    publishing.join()
}
