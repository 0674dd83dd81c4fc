//! The parts with one relay: rows at a rate, a backlog, and as many as it takes.

use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use super::committers::{Committed, Committing, Pace};
use super::options::Relay;
use super::rig::{Rig, plan};
use crate::clock;
use crate::report::Report;
use crate::tally::{histogram, record};

/// How often the relay is asked how far it is.
const LOOK: Duration = Duration::from_millis(25);

/// Rows that arrived, by their commits.
pub struct Arrived {
    pub from_commit: Histogram<u64>,
    pub after_commit: Histogram<u64>,
    pub commit: Histogram<u64>,
    pub first: u64,
    pub last: u64,
}

/// Finds out when rows arrived that were committed after `from`.
pub fn arrived(rig: &Rig, rows: &[Committed], from: u64) -> Arrived {
    let mut all = Arrived {
        from_commit: histogram(),
        after_commit: histogram(),
        commit: histogram(),
        first: u64::MAX,
        last: 0,
    };
    let Some(arrivals) = rig.session.fleet.shared.arrivals.get() else { return all };
    for row in rows.iter().filter(|row| row.began >= from) {
        record(&mut all.commit, row.returned - row.began);
        let Some((channel, sequence)) = row.heard else { continue };
        let Some(at) = arrivals.of(channel, sequence) else { continue };
        record(&mut all.from_commit, at.saturating_sub(row.began));
        // It may be there before the committer hears that it has committed.
        record(&mut all.after_commit, at.saturating_sub(row.returned));
        (all.first, all.last) = (all.first.min(at), all.last.max(at));
    }
    all
}

/// Adds the deliveries that rows make to those that are waited for.
pub fn expect(rig: &mut Rig, rows: &[Committed]) {
    let topology = &rig.session.fleet.plan.topology;
    let of = |row: &Committed| row.heard.map_or(0, |(n, _)| topology.subscribers(n as usize));
    rig.deliveries += rows.iter().map(|row| of(row) as u64).sum::<u64>();
}

/// Waits for all rows, and reports it if some do not come.
pub fn wait_all(rig: &Rig, part: &str, report: &mut Report) -> Result<()> {
    if !rig.wait_delivered()? {
        report.problem(format!("{part}: not all rows reached their sockets"));
    }
    Ok(())
}

pub fn steady(rig: &mut Rig, args: &Relay, program: &Path, report: &mut Report) -> Result<()> {
    let (seconds, warmup, _) = args.size();
    eprintln!("steady: {} rows a second for {seconds} s", args.rate);
    let relay = rig.relay(args, program)?;
    relay.wait("lead", |relay| relay.leads())?;

    let begin = clock::now() + 20_000_000;
    let from = begin + (warmup * 1e9) as u64;
    let lanes = std::mem::take(&mut rig.lanes);
    let pace = Pace::Rate { rate: args.rate, begin };
    let committing = Committing::start(&rig.postgres, &plan(rig), lanes, pace)?;
    clock_until(rig, from, "steady: warming up");
    let (before, costs) = (committing.meter.committed.load(Acquire), rig.costs(&relay)?);
    clock_until(rig, from + (seconds * 1e9) as u64, "steady: rows are committed");
    let committed = committing.meter.committed.load(Acquire) - before;
    costs.report(rig, report, "steady", committed)?;

    let (lanes, rows) = committing.finish()?;
    rig.lanes = lanes;
    expect(rig, &rows);
    wait_all(rig, "steady", report)?;
    relay.end();

    let arrived = arrived(rig, &rows, from);
    report.figure("steady_rows_per_s", "steady: rows", committed as f64 / seconds, "/s");
    report.percentiles("steady_commit", "steady: COMMIT itself", &arrived.commit);
    report.percentiles(
        "steady_from_commit",
        "steady: COMMIT sent, to socket",
        &arrived.from_commit,
    );
    report.percentiles(
        "steady_after_commit",
        "steady: COMMIT returned, to socket",
        &arrived.after_commit,
    );
    report.curve(", from COMMIT", &arrived.from_commit);
    Ok(())
}

fn clock_until(rig: &Rig, end: u64, text: &str) {
    while clock::now() < end {
        rig.tell(format!("{text}, {:.0} s", clock::seconds(end.saturating_sub(clock::now()))));
        std::thread::sleep(
            Duration::from_millis(20).min(Duration::from_nanos(end.saturating_sub(clock::now()))),
        );
    }
}

pub fn backlog(rig: &mut Rig, args: &Relay, program: &Path, report: &mut Report) -> Result<()> {
    let (_, _, count) = args.size();
    eprintln!("backlog: {count} rows are committed");
    rig.tell("backlog: rows are committed");
    let lanes = std::mem::take(&mut rig.lanes);
    let committing = Committing::start(&rig.postgres, &plan(rig), lanes, Pace::Rows(count))?;
    let (lanes, rows) = committing.join()?;
    rig.lanes = lanes;
    expect(rig, &rows);

    eprintln!("backlog: the relay is started");
    let began = clock::now();
    let relay = rig.relay(args, program)?;
    let costs = rig.costs(&relay)?;
    let (mut marked, mut moved) = (0, began);
    while marked < count as u64 && clock::now() < moved + 60_000_000_000 {
        std::thread::sleep(LOOK);
        let now = relay.marked();
        if now > marked {
            (marked, moved) = (now, clock::now());
        }
        rig.tell(format!("backlog: {marked} of {count} rows are marked"));
    }
    let marked_after = clock::seconds(moved - began);
    costs.report(rig, report, "backlog", count as u64)?;
    report.figure("backlog_peak_mib", "backlog: the relay's memory", relay.peak()?, "MiB");
    if marked < count as u64 {
        report.problem(format!("backlog: only {marked} of {count} rows were marked"));
    }
    wait_all(rig, "backlog", report)?;
    relay.end();

    let arrived = arrived(rig, &rows, 0);
    let until = clock::seconds(arrived.last.saturating_sub(began));
    let rate = |seconds: f64| count as f64 / seconds.max(1e-9);
    report.figure("backlog_rows", "backlog: rows", count as f64, "");
    let first = clock::seconds(arrived.first.saturating_sub(began));
    report.figure("backlog_first_s", "backlog: from the start to the first row", first, "s");
    report.figure("backlog_delivered_s", "backlog: the last is at its socket", until, "s");
    report.figure("backlog_marked_s", "backlog: the last is marked", marked_after, "s");
    report.figure("backlog_delivered_per_s", "backlog: rows to their sockets", rate(until), "/s");
    report.figure("backlog_marked_per_s", "backlog: rows marked", rate(marked_after), "/s");
    Ok(())
}

pub fn sustained(rig: &mut Rig, args: &Relay, program: &Path, report: &mut Report) -> Result<()> {
    let (seconds, warmup, _) = args.size();
    // One batch is under way, and the next one waits.
    let most = 2 * args.batch_rows as u64;
    eprintln!("sustained: up to {most} rows wait, for {seconds} s");
    let relay = rig.relay(args, program)?;
    relay.wait("lead", |relay| relay.leads())?;
    let lanes = std::mem::take(&mut rig.lanes);
    let committing = Committing::start(&rig.postgres, &plan(rig), lanes, Pace::Ahead(most))?;

    let from = clock::now() + (warmup * 1e9) as u64;
    let end = from + (seconds * 1e9) as u64;
    let mut at_start = None;
    let (mut marked, mut lowest) = (0, u64::MAX);
    while clock::now() < end {
        std::thread::sleep(LOOK);
        marked = relay.marked();
        committing.meter.marked.store(marked, Release);
        let waiting = committing.meter.committed.load(Acquire).saturating_sub(marked);
        if at_start.is_none() && clock::now() >= from {
            at_start = Some((marked, clock::now(), rig.costs(&relay)?));
        }
        if at_start.is_some() {
            lowest = lowest.min(waiting);
        }
        rig.tell(format!("sustained: {marked} rows are marked, {waiting} wait"));
    }

    if let Some((before, since, costs)) = at_start {
        let (rows, seconds) = (marked - before, clock::seconds(clock::now() - since));
        report.figure("sustained_rows_per_s", "sustained: rows", rows as f64 / seconds, "/s");
        report.figure(
            "sustained_least_waiting",
            "sustained: least that waited",
            lowest as f64,
            "rows",
        );
        costs.report(rig, report, "sustained", rows)?;
    }
    let (lanes, rows) = committing.finish()?;
    rig.lanes = lanes;
    expect(rig, &rows);
    wait_all(rig, "sustained", report)?;
    report.figure("sustained_peak_mib", "sustained: the relay's memory", relay.peak()?, "MiB");
    relay.end();

    let arrived = arrived(rig, &rows, from);
    let text = "sustained: COMMIT returned, to socket";
    report.percentiles("sustained_after_commit", text, &arrived.after_commit);
    Ok(())
}
