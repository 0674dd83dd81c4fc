//! The options of `relay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::args::{Output, duration};

/// What is measured. The relay is a fresh process in each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Rows at --rate, each in its own transaction: from the commit to the socket
    Steady,
    /// --backlog rows are there when the relay starts
    Backlog,
    /// Rows as fast as the relay takes them
    Sustained,
    /// Two relays: the leader is killed, and later stopped without an end
    Takeover,
}

#[derive(Args)]
pub struct Relay {
    /// The gateway's binary, which is the relay's too
    #[arg(long, default_value = "target/release/tollgate")]
    pub gateway: PathBuf,
    /// The owner of a database to use, on this machine or another, instead of a server of our own: the
    /// outbox is installed there, and rows stay behind
    #[arg(long, value_name = "URL")]
    pub postgres: Option<String>,
    /// The disk on which our own server has its data [default: the folder for temporary files]
    #[arg(long, value_name = "FOLDER", conflicts_with = "postgres")]
    pub data: Option<PathBuf>,
    /// Only these parts, in this order
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,PART")]
    pub only: Vec<Part>,
    /// Channels that rows are for, in turn
    #[arg(long, default_value_t = 1000)]
    pub channels: usize,
    /// Sockets, each on one of the channels [default: one for each channel, at most 1000]
    #[arg(long, short = 'n')]
    pub connections: Option<usize>,
    /// Bytes of one event
    #[arg(long, default_value_t = 200)]
    pub bytes: usize,
    /// The relay's batch_rows
    #[arg(long, default_value_t = 1000)]
    pub batch_rows: usize,
    /// The relay's batch_bytes
    #[arg(long, default_value_t = 4_194_304)]
    pub batch_bytes: usize,
    /// Connections that commit. A channel belongs to one of them, so that its order is known
    #[arg(long, default_value_t = 4)]
    pub committers: usize,
    /// Rows a second in the part steady
    #[arg(long, default_value_t = 200.0)]
    pub rate: f64,
    /// How long the parts steady and sustained take
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub duration: Duration,
    /// Rows of the part backlog
    #[arg(long, default_value_t = 100_000)]
    pub backlog: usize,
    /// Rows a second in the part takeover
    #[arg(long, default_value_t = 500.0)]
    pub takeover_rate: f64,
    /// Rows that were published before anything is measured
    #[arg(long, default_value_t = 0)]
    pub published: usize,
    /// A transaction that began before anything is measured stays open: vacuum removes nothing
    #[arg(long)]
    pub old_transaction: bool,
    /// Few rows: whether it works, not how fast it is
    #[arg(long)]
    pub quick: bool,
    #[command(flatten)]
    pub output: Output,
}

impl Relay {
    pub fn parts(&self) -> Vec<Part> {
        if self.only.is_empty() { Part::value_variants().to_vec() } else { self.only.clone() }
    }

    /// The channels that a socket is on.
    pub fn heard(&self) -> usize {
        self.channels.min(self.sockets()).max(1)
    }

    pub fn sockets(&self) -> usize {
        self.connections.unwrap_or(self.channels.min(1000)).max(1)
    }

    /// Seconds of a run and of what comes before it, and the rows of a backlog.
    pub fn size(&self) -> (f64, f64, usize) {
        match self.quick {
            true => (1.0, 0.2, 2000.min(self.backlog)),
            false => (self.duration.as_secs_f64(), 2.0, self.backlog),
        }
    }
}
