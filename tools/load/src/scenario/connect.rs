//! `connect` and `idle`: what clients cost while they connect, and while they only stay.

use anyhow::Result;

use super::{Connected, Session, Shape, busy_note};
use crate::args::{Connect, Idle};
use crate::report::Report;
use crate::tally::Tally;

pub fn connect(args: &Connect) -> Result<bool> {
    let mut report = Report::new("connect", args.clients.output.label.as_deref());
    let session = Session::new(&args.clients, Shape::of_channel(&args.clients, &args.channel, 1))?;

    let connected = session.connect(args.clients.connect_concurrency)?;
    session.progress.finish_and_clear();
    let known = session.processes.known();
    let total = args.clients.connections;
    let tally = session.fleet.stop(Vec::new())?;

    figures(&mut report, &connected, &tally, (total, known));
    let driver = connected.after.driver_cpu - connected.before.driver_cpu;
    busy_note(&mut report, driver, connected.seconds, args.clients.threads);
    report.curve(" handshake", &tally.handshake);
    report.finish(args.clients.output.json.as_deref(), args.clients.output.plot.as_deref())
}

pub fn idle(args: &Idle) -> Result<bool> {
    let clients = &args.connect.clients;
    let mut report = Report::new("idle", clients.output.label.as_deref());
    let session = Session::new(clients, Shape::of_channel(clients, &args.connect.channel, 1))?;
    let connected = session.connect(clients.connect_concurrency)?;

    session.progress.set_message("looking on");
    // Work that connecting has left behind is not idling.
    std::thread::sleep(std::time::Duration::from_secs(1).min(args.settle));
    let begin = session.processes.sample();
    std::thread::sleep(args.settle);
    let end = session.processes.sample();

    session.progress.finish_and_clear();
    let known = session.processes.known();
    let tally = session.fleet.stop(Vec::new())?;
    let total = clients.connections;
    figures(&mut report, &connected, &tally, (total, known));

    if known {
        let each = (end.rss_kib - connected.before.rss_kib) / total as f64;
        let cpu = (end.cpu - begin.cpu) / crate::clock::seconds(end.at - begin.at) * 100.0;
        report.figure("rss_kib_per_connection", "server memory per connection", each, "KiB");
        report.figure("idle_cpu_percent", "server CPU while idle", cpu, "% of a core");
    } else {
        report.note("memory and CPU are the server's: give --pid where it runs on this machine");
    }

    report.finish(clients.output.json.as_deref(), clients.output.plot.as_deref())
}

fn figures(
    report: &mut Report,
    connected: &Connected,
    tally: &Tally,
    (total, known): (usize, bool),
) {
    let ready = tally.handshake.len() as f64;
    report.figure("connections", "connected and subscribed", ready, "");
    report.figure("connect_s", "from nothing until all were", connected.seconds, "s");
    report.figure("connects_per_s", "connections", ready / connected.seconds.max(1e-9), "/s");
    report.percentiles("handshake", "handshake", &tally.handshake);

    if known {
        let each = (connected.after.cpu - connected.before.cpu) / ready.max(1.0) * 1e6;
        report.figure("cpu_us_per_handshake", "server CPU per handshake", each, "us");
    }

    report.kinds("failed", &tally.failures);
    report.kinds("closed", &tally.closes);
    if !connected.all {
        report.problem(format!("{} connections were not made", total as f64 - ready));
    }
    if !tally.closes.is_empty() {
        report.problem("the server closed connections");
    }
}
