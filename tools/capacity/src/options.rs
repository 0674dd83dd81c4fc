//! The options, and the load that they describe.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, ValueEnum};

use crate::load::{Load, Shared};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Topology {
    Standalone,
    Cluster,
}

/// Where the load balancer puts a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Balancer {
    /// Any replica: random, round-robin, a hash of the address
    Random,
    /// The one with the fewest connections
    Least,
}

/// How many replicas and Redis servers a load needs, and what breaks first.
///
/// Exit code 0: the load can be served. 1: not as asked for, WRONG says why. 2: nothing
/// was computed.
#[derive(Parser)]
#[command(name = "tollgate-capacity", version)]
pub struct Options {
    /// Connected at the same time
    #[arg(long, default_value_t = 10_000)]
    pub sockets: u64,
    /// Channels that each socket has to itself
    #[arg(long, default_value_t = 1)]
    pub own_channels: u64,
    /// Shared channels that each socket has
    #[arg(long, default_value_t = 1)]
    pub channels_per_socket: u64,
    /// So many shared channels
    #[arg(long, conflicts_with = "fan_out")]
    pub channels: Option<u64>,
    /// So many sockets on each shared channel
    #[arg(long)]
    pub fan_out: Option<f64>,
    /// How unequally popular the shared channels are: Zipf's exponent, 0 for all alike
    #[arg(long, default_value_t = 0.0)]
    pub zipf: f64,
    /// Publications a second in all: on the shared channels, if there are any, by their popularity
    #[arg(long, default_value_t = 0.0)]
    pub events_per_second: f64,
    /// Publications a second to each socket's own channel
    #[arg(long, default_value_t = 0.0)]
    pub events_per_socket: f64,
    /// Publications a second on each shared channel, on average
    #[arg(long, default_value_t = 0.0, conflicts_with = "events_per_second")]
    pub events_per_channel: f64,
    /// Bytes of each event
    #[arg(long, default_value_t = 200.0)]
    pub payload: f64,
    /// New connections a second at ordinary times
    #[arg(long, default_value_t = 0.0)]
    pub connects_per_second: f64,
    #[command(flatten)]
    pub machine: Machine,
    /// Answer for so many replicas instead of looking for the number
    #[arg(long)]
    pub replicas: Option<u64>,
    /// Answer for so many Redis servers instead of looking for the number
    #[arg(long)]
    pub shards: Option<u64>,
    /// A JSON object with constants measured elsewhere
    #[arg(long, value_name = "FILE")]
    pub constants: Option<PathBuf>,
    /// Another value for one constant; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Show the constants and where they come from
    #[arg(long)]
    pub print_constants: bool,
    /// Play it: sockets, publications, a rollout, a loss; and compare with the formulas
    #[arg(long)]
    pub simulate: bool,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds of publications to play
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args, Clone)]
pub struct Machine {
    #[arg(long, default_value_t = 2.0)]
    pub cores_per_replica: f64,
    /// GiB, with the kernel's memory for sockets: a container's limit counts it
    #[arg(long, default_value_t = 2.0)]
    pub memory_per_replica: f64,
    /// limits.connections, or the open files that a process may have
    #[arg(long, default_value_t = 100_000.0)]
    pub sockets_per_replica: f64,
    #[arg(long, value_enum, default_value_t = Topology::Standalone)]
    pub redis: Topology,
    /// GiB of each Redis server
    #[arg(long, default_value_t = 4.0)]
    pub memory_per_shard: f64,
    /// redis.subscriber_connections
    #[arg(long, default_value_t = 1.0)]
    pub subscriber_connections: f64,
    /// Gbit/s of each replica and of each Redis server
    #[arg(long, default_value_t = 10.0)]
    pub network: f64,
    /// The share of CPU and network to keep free
    #[arg(long, default_value_t = 0.3)]
    pub headroom: f64,
    /// Replicas that may be lost at once without the others having too much
    #[arg(long, default_value_t = 1)]
    pub spare: u64,
    #[arg(long, value_enum, default_value_t = Balancer::Random)]
    pub balancer: Balancer,
    /// The share of replicas that a rollout replaces at once; new ones come before old ones go
    #[arg(long, default_value_t = 0.25)]
    pub rollout_at_once: f64,
    /// A month of one core
    #[arg(long, default_value_t = 0.0)]
    pub price_core: f64,
    /// A month of one GiB
    #[arg(long, default_value_t = 0.0)]
    pub price_gib: f64,
}

impl Options {
    pub fn load(&self) -> Result<Load> {
        let machine = &self.machine;
        for (name, share) in
            [("--headroom", machine.headroom), ("--rollout-at-once", machine.rollout_at_once)]
        {
            if !(0.0..1.0).contains(&share) && share != 1.0 {
                bail!("{name} takes a share from 0 to 1");
            }
        }

        if self.sockets == 0 || machine.headroom >= 1.0 || machine.rollout_at_once <= 0.0 {
            bail!("--sockets, the room for load and --rollout-at-once have to be above 0");
        }

        let sockets = self.sockets as f64;
        let memberships = sockets * self.channels_per_socket as f64;
        let channels = match (self.channels, self.fan_out) {
            (Some(channels), _) => channels as f64,
            (None, Some(fan_out)) if fan_out >= 1.0 => (memberships / fan_out).round().max(1.0),
            (None, Some(_)) => bail!("--fan-out takes 1 or more"),
            (None, None) => 0.0,
        };

        let mut load = Load {
            sockets,
            own_channels: self.own_channels as f64,
            own_events: self.events_per_socket * sockets,
            shared: None,
            payload: self.payload,
            connects: self.connects_per_second,
        };

        if channels > 0.0 {
            let events = self.events_per_second.max(self.events_per_channel * channels);
            load.shared = Some(Shared {
                channels,
                each: self.channels_per_socket as f64,
                zipf: self.zipf,
                events,
                grows: self.fan_out.is_some(),
            });
        } else {
            load.own_events += self.events_per_second;
        }

        if load.own_events > 0.0 && load.own_channels < 1.0 {
            bail!("events to sockets' own channels need --own-channels 1");
        }
        Ok(load)
    }
}
