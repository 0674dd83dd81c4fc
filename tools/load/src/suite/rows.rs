//! What the suite measures, in which size, and with which target.

pub struct Row {
    pub name: &'static str,
    pub work: Work,
    pub cells: &'static [Cell],
}

/// One figure of a row: a line of the table.
pub struct Cell {
    pub text: &'static str,
    pub key: &'static str,
    pub unit: &'static str,
    pub target: Target,
}

#[derive(Debug, Clone, Copy)]
pub enum Target {
    None,
    /// At most so many times the floor's figure.
    Ratio(f64),
    AtMost(f64),
    MoreThan(f64),
}

#[derive(Debug, Clone, Copy)]
pub enum Work {
    Fanout {
        window: u32,
    },
    Unicast {
        window: u32,
    },
    Idle,
    Connect,
    /// An open loop at so many percent of what the same server did in `CAPACITY`.
    Latency {
        percent: u32,
    },
    Storm,
}

impl Work {
    pub fn has_floor(self) -> bool {
        !matches!(self, Work::Storm)
    }
}

/// The row whose deliveries a second are what a server can do.
pub const CAPACITY: &str = "fanout-w32";

const fn cell(text: &'static str, key: &'static str, unit: &'static str, target: Target) -> Cell {
    Cell { text, key, unit, target }
}

const CPU: &str = "cpu_us_per_delivery";
const RATE: &str = "deliveries_per_s";
const P50: &str = "latency_p50_ms";
const P99: &str = "latency_p99_ms";
const P99_9: &str = "latency_p99_9_ms";
const REDIS_P50: &str = "redis_latency_p50_ms";
const REDIS_P99: &str = "redis_latency_p99_ms";
const REDIS_P99_9: &str = "redis_latency_p99_9_ms";

/// The row of an open loop at that percentage of what the same server did in `CAPACITY`.
macro_rules! latency {
    ($percent:literal) => {
        Row {
            name: concat!("latency-", $percent),
            work: Work::Latency { percent: $percent },
            cells: &[
                cell(latency!($percent, "deliveries"), RATE, "/s", Target::None),
                cell(latency!($percent, "p50"), P50, "ms", Target::None),
                cell(latency!($percent, "p99"), P99, "ms", Target::None),
                cell(latency!($percent, "p99.9"), P99_9, "ms", Target::None),
                cell(latency!($percent, "bare Redis p50"), REDIS_P50, "ms", Target::None),
                cell(latency!($percent, "bare Redis p99"), REDIS_P99, "ms", Target::None),
                cell(latency!($percent, "bare Redis p99.9"), REDIS_P99_9, "ms", Target::None),
            ],
        }
    };
    ($percent:literal, $what:literal) => {
        concat!("fan-out at ", $percent, " % of its capacity: ", $what)
    };
}

pub const ROWS: &[Row] = &[
    Row {
        name: "fanout-w1",
        work: Work::Fanout { window: 1 },
        cells: &[
            cell("fan-out, 1 under way: CPU per delivery", CPU, "us", Target::Ratio(1.10)),
            cell("fan-out, 1 under way: deliveries", RATE, "/s", Target::None),
        ],
    },
    Row {
        name: "fanout-w8",
        work: Work::Fanout { window: 8 },
        cells: &[
            cell("fan-out, 8 under way: CPU per delivery", CPU, "us", Target::Ratio(0.20)),
            cell("fan-out, 8 under way: deliveries", RATE, "/s", Target::MoreThan(650_000.0)),
        ],
    },
    Row {
        name: CAPACITY,
        work: Work::Fanout { window: 32 },
        cells: &[
            cell("fan-out, 32 under way: CPU per delivery", CPU, "us", Target::Ratio(0.08)),
            cell("fan-out, 32 under way: deliveries", RATE, "/s", Target::MoreThan(1_500_000.0)),
            cell("fan-out, 32 under way: latency p99", P99, "ms", Target::Ratio(0.12)),
        ],
    },
    Row {
        name: "unicast",
        work: Work::Unicast { window: 64 },
        cells: &[
            cell("unicast, 64 under way: CPU per delivery", CPU, "us", Target::Ratio(1.15)),
            cell("unicast, 64 under way: deliveries", RATE, "/s", Target::None),
        ],
    },
    Row {
        name: "idle",
        work: Work::Idle,
        cells: &[
            cell(
                "idle: memory per connection",
                "rss_kib_per_connection",
                "KiB",
                Target::AtMost(3.0),
            ),
            cell("idle: CPU", "idle_cpu_percent", "%", Target::None),
        ],
    },
    Row {
        name: "connect",
        work: Work::Connect,
        cells: &[
            cell("connect, 256 at once: all are there", "connect_s", "s", Target::AtMost(1.5)),
            cell("connect: CPU per handshake", "cpu_us_per_handshake", "us", Target::AtMost(75.0)),
            cell("connect: handshake p99", "handshake_p99_ms", "ms", Target::None),
        ],
    },
    latency!(10),
    latency!(50),
    latency!(80),
    Row {
        name: "storm",
        work: Work::Storm,
        cells: &[
            cell("storm: all are back", "recover_s", "s", Target::None),
            cell("storm: handshake p99", "handshake_p99_ms", "ms", Target::None),
            cell("storm: bystanders' p99 before", "before_p99_ms", "ms", Target::None),
            cell("storm: bystanders' p99 during", "during_p99_ms", "ms", Target::None),
            cell("storm: put off", "refusals", "", Target::None),
        ],
    },
];

/// The size of everything.
pub struct Scale {
    pub subscribers: usize,
    pub users: usize,
    /// The connections of idle, connect and storm.
    pub many: usize,
    duration: &'static str,
    warmup: &'static str,
    settle: &'static str,
}

impl Scale {
    /// /proc counts CPU in ticks of 10 ms: a run has to take hundreds of them.
    pub fn full() -> Self {
        Scale {
            subscribers: 1000,
            users: 2000,
            many: 10_000,
            duration: "6s",
            warmup: "1s",
            settle: "10s",
        }
    }

    pub fn quick() -> Self {
        Scale {
            subscribers: 100,
            users: 200,
            many: 300,
            duration: "500ms",
            warmup: "100ms",
            settle: "500ms",
        }
    }
}

/// The driver's command line, without what depends on the server.
pub fn arguments(work: &Work, scale: &Scale, capacity: Option<f64>) -> Vec<String> {
    let Scale { subscribers, users, many, duration, warmup, settle } = scale;
    let line = match work {
        Work::Fanout { window } => format!(
            "fanout -n {subscribers} --window {window} --duration {duration} --warmup {warmup}"
        ),
        Work::Unicast { window } => {
            format!("unicast -n {users} --window {window} --duration {duration} --warmup {warmup}")
        }
        Work::Idle => format!("idle -n {many} --settle {settle}"),
        Work::Connect => format!("connect -n {many} --connect-concurrency 256"),
        Work::Latency { percent } => {
            let most = capacity.unwrap_or(100_000.0) / *subscribers as f64;
            let rate = (most * f64::from(*percent) / 100.0).max(1.0);
            format!(
                "fanout -n {subscribers} --rate {rate:.1} --duration {duration} --warmup {warmup} \
                 --redis-subscriber"
            )
        }
        Work::Storm => {
            let bystanders = many / 10;
            format!("storm -n {many} --bystanders {bystanders} --before {settle}")
        }
    };

    line.split(' ').map(str::to_owned).collect()
}

impl Target {
    pub fn text(self) -> String {
        let number = crate::number::number;
        match self {
            Target::None => String::new(),
            Target::Ratio(most) => format!("<= {most:.2}x"),
            Target::AtMost(most) => format!("<= {}", number(most)),
            Target::MoreThan(least) => format!("> {}", number(least)),
        }
    }

    /// Whether a figure meets the target. `None`: there is no target, or nothing to compare.
    pub fn met(self, value: Option<f64>, ratio: Option<f64>) -> Option<bool> {
        match self {
            Target::None => None,
            Target::Ratio(most) => ratio.map(|ratio| ratio <= most),
            Target::AtMost(most) => value.map(|value| value <= most),
            Target::MoreThan(least) => value.map(|value| value > least),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn every_row_is_a_command_that_the_driver_takes() {
        for row in ROWS {
            for scale in [Scale::full(), Scale::quick()] {
                let line = arguments(&row.work, &scale, Some(1e6));
                let given = std::iter::once("tollgate-load".to_owned()).chain(line);
                assert!(crate::args::Cli::try_parse_from(given).is_ok(), "{}", row.name);
            }
        }
    }

    #[test]
    fn a_target_is_met_or_missed() {
        assert_eq!(Target::Ratio(1.1).met(Some(9.0), Some(1.0)), Some(true));
        assert_eq!(Target::AtMost(3.0).met(Some(3.1), None), Some(false));
        assert_eq!(Target::MoreThan(3.0).met(None, Some(1.0)), None);
    }
}
