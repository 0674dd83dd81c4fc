//! The part with two relays: the leader is killed, a new one is started to stand by, and then the
//! leader is stopped without an end, as a machine that hangs.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use super::committers::{Committing, Pace};
use super::histories;
use super::options::Relay;
use super::parts::{arrived, expect, wait_all};
use super::rig::{RelayProcess, Rig, plan};
use crate::clock;
use crate::report::Report;

/// How long all goes well before and after a fault.
const CALM: Duration = Duration::from_secs(3);

/// A row that was committed so long before a fault may be held up by it.
const BEFORE: u64 = 200_000_000;

/// The longest that a takeover may take.
const LIMIT: u64 = 60_000_000_000;

pub fn takeover(rig: &mut Rig, args: &Relay, program: &Path, report: &mut Report) -> Result<()> {
    eprintln!("takeover: two relays, {} rows a second", args.takeover_rate);
    let first_id = histories::last_id(&rig.postgres)?;
    let leader = rig.relay(args, program)?;
    leader.wait("lead", |relay| relay.leads())?;
    let standby = rig.relay(args, program)?;
    standby.wait("stand by", |relay| relay.stands())?;
    let lanes = std::mem::take(&mut rig.lanes);
    let pace = Pace::Rate { rate: args.takeover_rate, begin: clock::now() };
    let committing = Committing::start(&rig.postgres, &plan(rig), lanes, pace)?;
    let calm = if args.quick { CALM / 10 } else { CALM };
    std::thread::sleep(calm);

    eprintln!("takeover: the leader is killed");
    let killed = clock::now();
    leader.signal(Signal::KILL);
    let after_kill = published_by(rig, &standby, killed, report);
    drop(leader);
    std::thread::sleep(calm);

    let leader = standby;
    let standby = rig.relay(args, program)?;
    standby.wait("stand by", |relay| relay.stands())?;
    std::thread::sleep(calm);
    eprintln!("takeover: the leader is stopped");
    let stopped = clock::now();
    leader.signal(Signal::STOP);
    let after_stop = published_by(rig, &standby, stopped, report);
    std::thread::sleep(calm);
    // It goes on where it was stopped, and must not publish what the other one has.
    leader.signal(Signal::CONT);
    std::thread::sleep(calm);

    let (lanes, rows) = committing.finish()?;
    rig.lanes = lanes;
    expect(rig, &rows);
    wait_all(rig, "takeover", report)?;
    standby.wait("mark all rows", |_| matches!(rig.postgres.pending(), Ok(false)))?;
    leader.end();
    standby.end();

    report.figure(
        "takeover_killed_s",
        "takeover: killed, until the other publishes",
        after_kill,
        "s",
    );
    let text = "takeover: stopped, until the other publishes";
    report.figure("takeover_stopped_s", text, after_stop, "s");
    // Rows of the moment before wait as well.
    let (killed, stopped) = (killed - BEFORE, stopped - BEFORE);
    let over = killed + BEFORE + (after_kill * 1e9) as u64;
    for (key, text, (from, to)) in [
        ("calm", "takeover: longest wait of a row before", (0, killed)),
        ("killed", "takeover: longest wait, the leader killed", (killed, over)),
        ("stopped", "takeover: longest wait, the leader stopped", (stopped, u64::MAX)),
    ] {
        let of = rows.iter().filter(|row| row.began >= from && row.began < to).copied();
        let wait = arrived(rig, &of.collect::<Vec<_>>(), 0).after_commit.max();
        report.figure(&format!("takeover_{key}_wait_s"), text, clock::seconds(wait), "s");
    }
    histories::check(rig, first_id, report)
}

/// Seconds until a relay has published its first rows.
fn published_by(rig: &Rig, relay: &RelayProcess, since: u64, report: &mut Report) -> f64 {
    loop {
        let seconds = clock::seconds(clock::now() - since);
        rig.tell(format!("takeover: nobody publishes for {seconds:.1} s"));
        if relay.marked() > 0 {
            return seconds;
        }
        if clock::now() > since + LIMIT {
            report.problem("takeover: the other relay publishes nothing");
            return seconds;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
