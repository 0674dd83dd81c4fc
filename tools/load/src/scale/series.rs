//! What is made larger, by how much, and what is measured at each size. How it is run is
//! in `scale`.

use crate::suite::Side;
use crate::suite::processes::Setting;

pub struct Series {
    pub name: &'static str,
    /// What the first column counts.
    pub size: &'static str,
    pub about: &'static str,
    pub points: Vec<Point>,
}

pub struct Point {
    pub label: String,
    /// Its place on the x axis.
    pub x: f64,
    pub gateways: usize,
    pub setting: Setting,
    pub steps: Vec<Step>,
}

/// One scenario against fresh servers.
pub struct Step {
    pub side: Side,
    /// The driver's options, without what depends on the servers.
    pub work: String,
    /// A driver for each gateway, all at once, instead of one for all; {i} is its number.
    pub each: bool,
    pub columns: &'static [Column],
}

pub struct Column {
    pub key: &'static str,
    pub text: &'static str,
    pub unit: &'static str,
    /// What becomes of the figures of several drivers.
    pub together: Together,
}

#[derive(Clone, Copy)]
pub enum Together {
    Sum,
    Mean,
    Most,
}

const fn column(
    key: &'static str,
    text: &'static str,
    unit: &'static str,
    together: Together,
) -> Column {
    Column { key, text, unit, together }
}

const CPU: &str = "cpu_us_per_delivery";

const IDLE: &[Column] = &[
    column("rss_kib_per_connection", "memory of a connection", "KiB", Together::Mean),
    column("cpu_us_per_handshake", "handshake", "us", Together::Mean),
    column("connect_s", "all connected", "s", Together::Most),
    column("idle_cpu_percent", "idle CPU", "%", Together::Sum),
];
const FLOOR: &[Column] = &[column(CPU, "floor, lone event", "us", Together::Mean)];
const LONE: &[Column] = &[column(CPU, "lone event", "us", Together::Mean)];
const BUSY: &[Column] = &[
    column(CPU, "8 under way", "us", Together::Mean),
    column("deliveries_per_s", "8 under way", "/s", Together::Sum),
];
const UNICAST: &[Column] = &[
    column(CPU, "unicast", "us", Together::Mean),
    column("latency_p99_ms", "unicast p99", "ms", Together::Most),
];
const UNICAST_RATE: &[Column] = &[
    column(CPU, "unicast", "us", Together::Mean),
    column("deliveries_per_s", "unicast", "/s", Together::Sum),
];
const CONNECT: &[Column] = &[
    column("cpu_us_per_handshake", "handshake", "us", Together::Mean),
    column("connect_s", "all connected", "s", Together::Most),
];
const REDIS: &[Column] = &[
    column("redis_us_per_publication", "Redis for a publication", "us", Together::Mean),
    column(CPU, "gateways for a delivery", "us", Together::Mean),
    column("latency_p99_ms", "p99", "ms", Together::Most),
];
const FLEET: &[Column] = &[
    column(CPU, "event to all", "us", Together::Mean),
    column("deliveries_per_s", "deliveries", "/s", Together::Sum),
    column("latency_p99_ms", "p99", "ms", Together::Most),
    column("missing", "missing", "", Together::Sum),
];
const STORM: &[Column] = &[
    column("recover_s", "all are back", "s", Together::Most),
    column("handshake_p99_ms", "handshake p99", "ms", Together::Most),
    column("handshake_max_ms", "handshake max", "ms", Together::Most),
    column("before_p99_ms", "bystanders' p99 before", "ms", Together::Most),
    column("during_p99_ms", "bystanders' p99 during", "ms", Together::Most),
    column("refusals", "put off", "", Together::Sum),
    column("missing", "missing", "", Together::Sum),
];

fn step(work: String, columns: &'static [Column]) -> Step {
    Step { side: Side::Tollgate, work, each: false, columns }
}

fn point(x: usize, steps: Vec<Step>) -> Point {
    Point { label: x.to_string(), x: x as f64, gateways: 1, setting: Setting::DEFAULT, steps }
}

/// All series. A hundredth of the sizes tells whether everything works.
pub fn all(quick: bool) -> Vec<Series> {
    let small = |full: usize| if quick { (full / 100).max(10) } else { full };
    let time = if quick { "--duration 400ms --warmup 100ms" } else { "--duration 5s --warmup 1s" };

    vec![
        connections(&small, time),
        workers(&small, time),
        channels(&small, time),
        interested(time),
        replicas(&small, time),
        fleet(&small, time),
        storm(&small),
    ]
}

fn connections(small: &dyn Fn(usize) -> usize, time: &str) -> Series {
    let settle = if small(100) < 100 { "200ms" } else { "4s" };
    let points = [1000, 2000, 5000, 10_000, 15_000, 19_000].map(small).map(|n| {
        let lone = format!("fanout -n {n} --window 1 {time}");
        let floor = Step { side: Side::Floor, ..step(lone.clone(), FLOOR) };
        let busy = step(format!("fanout -n {n} --window 8 {time}"), BUSY);
        let idle = step(format!("idle -n {n} --settle {settle}"), IDLE);
        point(n, vec![idle, floor, step(lone, LONE), busy])
    });

    Series {
        name: "connections",
        size: "connections",
        about: "One process with one worker thread; all connections have one channel (idle: each its own).",
        points: points.into(),
    }
}

fn workers(small: &dyn Fn(usize) -> usize, time: &str) -> Series {
    let points = [1, 2, 4].map(|workers| {
        let steps = vec![
            step(format!("fanout -n {} --window 8 {time}", small(1000)), BUSY),
            step(format!("unicast -n {} --window 64 {time}", small(2000)), UNICAST_RATE),
            step(format!("connect -n {}", small(10_000)), CONNECT),
        ];
        let setting = Setting { workers, pinned: false, ..Setting::DEFAULT };
        Point { setting, ..point(workers, steps) }
    });

    Series {
        name: "workers",
        size: "worker threads",
        about: "One process that may use all cores, which driver and Redis use too.",
        points: points.into(),
    }
}

fn channels(small: &dyn Fn(usize) -> usize, time: &str) -> Series {
    let shapes = [(1, 1), (100, 1), (1000, 1), (10_000, 1), (10_000, 5)];
    let points = shapes.map(|(users, own)| {
        let users = if users == 1 { 1 } else { small(users) };
        let work = format!("unicast -n {users} --rate 8000 {time}");
        let setting = Setting { own, ..Setting::DEFAULT };
        Point { setting, ..point(users * own, vec![step(work, UNICAST)]) }
    });

    Series {
        name: "channels",
        size: "channels",
        about: "8,000 publications a second, each to one user; the last row has five channels for each \
                of 10,000 connections.",
        points: points.into(),
    }
}

fn spread(name: &'static str, about: &'static str, work: &str) -> Series {
    let points = [1, 2, 4, 8]
        .map(|gateways| Point { gateways, ..point(gateways, vec![step(work.to_owned(), REDIS)]) });
    Series { name, size: "replicas", about, points: points.into() }
}

fn interested(time: &str) -> Series {
    spread(
        "replicas-fanout",
        "16 connections with one channel, spread over the replicas, 1,000 publications a second: each \
         replica wants each.",
        &format!("fanout -n 16 --rate 1000 {time}"),
    )
}

fn replicas(small: &dyn Fn(usize) -> usize, time: &str) -> Series {
    spread(
        "replicas-unicast",
        "1,600 users spread over the replicas, 4,000 publications a second: one replica wants each.",
        &format!("unicast -n {} --rate 4000 {time}", small(1600)),
    )
}

fn fleet(small: &dyn Fn(usize) -> usize, time: &str) -> Series {
    let each = small(19_000);
    let settle = if small(100) < 100 { "200ms" } else { "10s" };
    let rate =
        if small(100) < 100 { time.to_owned() } else { "--duration 20s --warmup 2s".to_owned() };

    let idle = Step { each: true, ..step(format!("idle -n {each} --settle {settle}"), IDLE) };
    let all = format!("fanout -n {each} --channel post:{{i}} --rate 0.4 {rate}");
    let all = Step { each: true, ..step(all, FLEET) };

    Series {
        name: "fleet",
        size: "connections in 5 replicas",
        about: "Five processes with one worker thread on one core, five drivers on another; each \
                replica's connections have one channel, with 0.4 events a second.",
        points: vec![Point { gateways: 5, ..point(each * 5, vec![idle, all]) }],
    }
}

fn storm(small: &dyn Fn(usize) -> usize) -> Series {
    let n = small(19_000);
    let points = [100_000, 1024, 256].map(|handshakes| {
        let before = if n < 1000 { "300ms" } else { "5s" };
        let work = format!("storm -n {n} --bystanders {} --before {before}", n / 19);
        let setting = Setting { handshakes, ..Setting::DEFAULT };
        let label = if handshakes > n { "no limit".to_owned() } else { handshakes.to_string() };
        Point { label, setting, ..point(handshakes, vec![step(work, STORM)]) }
    });

    Series {
        name: "storm",
        size: "limits.http_connections",
        about: "All of 19,000 connections but 1,000 are cut off at once and come back with back-off, up \
                to 1 s at first; the others get 50 events a second.",
        points: points.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn every_step_is_a_command_that_the_driver_takes() {
        for series in all(false).into_iter().chain(all(true)) {
            for step in series.points.iter().flat_map(|point| &point.steps) {
                let line = step.work.replace("{i}", "1");
                let given = std::iter::once("tollgate-load").chain(line.split(' '));
                assert!(crate::args::Cli::try_parse_from(given).is_ok(), "{line}");
            }
        }
    }

    #[test]
    fn all_points_of_a_series_have_the_same_columns() {
        for series in all(false) {
            let texts = |point: &Point| -> Vec<&str> {
                point.steps.iter().flat_map(|step| step.columns).map(|column| column.text).collect()
            };
            let first = texts(&series.points[0]);
            assert!(series.points.iter().all(|point| texts(point) == first), "{}", series.name);
        }
    }
}
