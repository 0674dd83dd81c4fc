//! What the server under test uses, if it runs on this machine: CPU and memory from /proc.

use std::path::Path;

use anyhow::{Result, bail};

use crate::clock;

#[derive(Debug, Clone, Default)]
pub struct Processes {
    pids: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: u64,
    /// Seconds of user and system time, in the kernel's ticks.
    pub cpu: f64,
    pub driver_cpu: f64,
    pub rss_kib: f64,
}

impl Processes {
    pub fn new(pids: Vec<u32>) -> Result<Self> {
        for pid in &pids {
            if !Path::new(&format!("/proc/{pid}/stat")).exists() {
                bail!("--pid {pid}: no such process on this machine");
            }
        }
        Ok(Processes { pids })
    }

    pub fn known(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Seconds of CPU between two samples, if the processes are known and were there all the time.
    pub fn cpu(&self, before: &Sample, after: &Sample) -> Option<f64> {
        let used = after.cpu - before.cpu;
        (self.known() && used >= 0.0 && after.rss_kib > 0.0).then_some(used)
    }

    pub fn sample(&self) -> Sample {
        Sample {
            at: clock::now(),
            cpu: self.pids.iter().map(|pid| cpu(&pid.to_string())).sum(),
            driver_cpu: cpu("self"),
            rss_kib: self.pids.iter().map(|pid| rss(*pid)).sum(),
        }
    }
}

fn cpu(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The command's name is in brackets and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Resident memory in KiB. The roll-up counts exactly; `status` may lag by some pages a thread.
fn rss(pid: u32) -> f64 {
    ["smaps_rollup", "status"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok())
        .find_map(|text| {
            let line = text.lines().find_map(|line| {
                line.strip_prefix("Rss:").or_else(|| line.strip_prefix("VmRSS:"))
            })?;
            line.split_whitespace().next()?.parse().ok()
        })
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_and_time() {
        let this = Processes::new(vec![std::process::id()]).unwrap();
        let before = this.sample();
        let mut sum = 0u64;
        while clock::now() < before.at + 100_000_000 {
            sum = sum.wrapping_add(clock::now());
        }

        let after = this.sample();
        assert!(after.cpu > before.cpu, "{sum}");
        assert!(after.rss_kib > 500.0);
        assert!(Processes::new(vec![u32::MAX]).is_err());
    }
}
