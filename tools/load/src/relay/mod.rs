//! `relay`: how long a committed row takes to its sockets, how many rows one relay publishes, and what
//! happens when it dies. It starts PostgreSQL, Redis, a gateway and relays on this machine.
//!
//! Not here: the other side of Redis, which the other scenarios measure.

mod admin;
mod committers;
mod histories;
pub mod options;
mod parts;
mod postgres;
mod rig;
mod rows;
mod takeover;

use anyhow::{Context as _, Result};

use crate::clock::millis;
use crate::report::Report;
use options::{Part, Relay};
use rig::Rig;

/// Commits that the floor is the median of.
const FLOOR_COMMITS: usize = 300;

/// A commit that takes less than this has met no disk.
const NO_DISK_MS: f64 = 0.05;

pub fn relay(args: &Relay) -> Result<bool> {
    let program = args.gateway.canonicalize().with_context(|| {
        format!("--gateway {}: not there; `make build` builds it", args.gateway.display())
    })?;
    let output = &args.output;
    let mut report = Report::new("relay", output.label.as_deref());
    let Some(mut rig) = Rig::prepare(args, &program, &mut report)? else {
        return report.finish(output.json.as_deref(), output.plot.as_deref());
    };

    report.figure("channels", "channels", args.channels as f64, "");
    report.figure("connections", "sockets", args.sockets() as f64, "");
    report.figure("bytes", "event", args.bytes as f64, "bytes");
    report.note(rig.postgres.settings()?);
    let floor = rig.postgres.floor(if args.quick { 20 } else { FLOOR_COMMITS })?;
    report.percentiles("commit_floor", "a commit that writes one number", &floor);
    if millis(floor.value_at_quantile(0.5)) < NO_DISK_MS {
        report.note("commits wait for no disk here: give --data a folder on one like production's");
    }

    for part in args.parts() {
        match part {
            Part::Steady => parts::steady(&mut rig, args, &program, &mut report)?,
            Part::Backlog => parts::backlog(&mut rig, args, &program, &mut report)?,
            Part::Sustained => parts::sustained(&mut rig, args, &program, &mut report)?,
            Part::Takeover => takeover::takeover(&mut rig, args, &program, &mut report)?,
        }
    }

    let mut last = vec![0; args.heard()];
    rig.lanes.iter().for_each(|lane| lane.last(&mut last));
    let Rig { session, .. } = rig;
    session.progress.finish_and_clear();
    let tally = session.fleet.stop(last)?;
    report.connections(&tally);
    report.finish(output.json.as_deref(), output.plot.as_deref())
}
