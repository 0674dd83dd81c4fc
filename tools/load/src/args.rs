//! The options, and what they are turned into. What each scenario does with them is in `scenario`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::publisher::{Pace, Until};
use crate::shared::MAX_WINDOW;
use crate::sink::SinkConfig;
use crate::token::Tokens;

/// Load for a Tollgate deployment: many clients, publications, and a check of every delivery.
///
/// Exit code 0: nothing was wrong. 1: something was missing, doubled, out of order or refused.
/// 2: it could not be tried.
#[derive(Parser)]
#[command(name = "tollgate-load", version)]
pub struct Cli {
    #[command(subcommand)]
    pub scenario: Scenario,
}

#[derive(Subcommand)]
pub enum Scenario {
    /// Connect many clients from nothing: how long, and what a handshake costs
    Connect(Connect),
    /// Keep many clients connected and quiet: memory and CPU of each
    Idle(Idle),
    /// One publication to many subscribers
    Fanout(Fanout),
    /// A publication to each user in turn
    Unicast(Unicast),
    /// Fan-out and unicast together, while some clients come and go
    Mixed(Mixed),
    /// Cut all clients off at once, and let them come back as clients do
    Storm(Storm),
    /// A server: the least that fan-out can cost on this kernel, to compare with
    Floor(Floor),
    /// Latency of a bare Redis subscriber: no gateway can be faster
    RedisFloor(RedisFloor),
    /// Draw the latencies of several results (--json) into one file
    Plot(Plot),
    /// Start PostgreSQL, Redis, a gateway and relays on this machine: from a commit to a socket
    Relay(crate::relay::options::Relay),
    /// Start Redis, the floor and a gateway on this machine, and compare them
    Suite(Suite),
    /// Whether costs stay as they are when connections, channels, threads and replicas grow
    Scale(Suite),
}

pub fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

#[derive(Args)]
pub struct Output {
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw the latency percentiles into this HTML file
    #[arg(long, value_name = "FILE.html")]
    pub plot: Option<PathBuf>,
    /// What to call this run
    #[arg(long)]
    pub label: Option<String>,
}

#[derive(Args)]
pub struct Clients {
    /// Where clients connect, several in turn; {user} and {channel} stand for the client's own
    #[arg(
        long,
        default_value = "ws://127.0.0.1:8000/ws",
        value_delimiter = ',',
        value_name = "URL,URL"
    )]
    pub url: Vec<String>,
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub connections: usize,
    /// How many may be under way at once while all connect
    #[arg(long, default_value_t = 256)]
    pub connect_concurrency: usize,
    /// Time for one attempt, until all its subscriptions are confirmed
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// Mint an HS256 token for each user (u0, u1, ...) with this secret
    #[arg(long, env = "TOLLGATE_LOAD_SECRET", hide_env_values = true)]
    pub secret: Option<String>,
    /// More claims for minted tokens, a JSON object
    #[arg(long, requires = "secret")]
    pub claims: Option<String>,
    /// Tokens to use in turn, one per line
    #[arg(long, value_name = "FILE", conflicts_with = "secret")]
    pub tokens: Option<PathBuf>,
    /// One token for all clients
    #[arg(long, conflicts_with_all = ["secret", "tokens"])]
    pub token: Option<String>,
    /// The gateway subscribes clients to their own channel (auto_subscribe): do not ask
    #[arg(long)]
    pub auto: bool,
    /// The server subscribes by the URL and confirms nothing: `tollgate-load floor`
    #[arg(long)]
    pub raw: bool,
    /// Trust the authorities in this PEM file instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Load threads; one takes over a million deliveries a second
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Local addresses to connect from in turn: each has some 28,000 ports
    #[arg(long, value_delimiter = ',', value_name = "IP,IP")]
    pub source_ips: Vec<IpAddr>,
    /// The server's processes, if it runs on this machine: measures their CPU and memory
    #[arg(long, value_delimiter = ',', value_name = "PID,PID")]
    pub pid: Vec<u32>,
    #[command(flatten)]
    pub output: Output,
}

impl Clients {
    pub fn tokens(&self) -> Result<Tokens> {
        match (&self.secret, &self.tokens, &self.token) {
            (Some(secret), ..) => Tokens::minted(secret, self.claims.as_deref()),
            (_, Some(file), _) => Tokens::file(file),
            (.., Some(token)) => Tokens::given(std::iter::once(token.clone())),
            _ => Ok(Tokens::None),
        }
    }
}

#[derive(Args)]
pub struct Publish {
    /// Publish into this Redis
    #[arg(long, value_name = "URL", conflicts_with = "api")]
    pub redis: Option<String>,
    #[arg(long, default_value = "tollgate:")]
    pub redis_prefix: String,
    /// Redis' process, if it runs on this machine: measures its CPU
    #[arg(long, value_name = "PID")]
    pub redis_pid: Option<u32>,
    /// With FCALL tollgate_publish instead of PUBLISH
    #[arg(long, requires = "redis")]
    pub durable: bool,
    /// Publish through the gateway's server API, for example http://127.0.0.1:8000
    #[arg(long, value_name = "URL", requires = "api_key")]
    pub api: Option<String>,
    #[arg(long, env = "TOLLGATE_LOAD_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Bytes of one event
    #[arg(long, default_value_t = 200)]
    pub payload: usize,
}

impl Publish {
    pub fn sink(&self) -> Result<SinkConfig> {
        match (&self.redis, &self.api, &self.api_key) {
            (Some(url), ..) => Ok(SinkConfig::Redis {
                url: url.clone(),
                prefix: self.redis_prefix.clone(),
                durable: self.durable,
            }),
            (_, Some(url), Some(key)) => Ok(SinkConfig::Api { url: url.clone(), key: key.clone() }),
            _ => bail!("say where to publish: --redis URL, or --api URL with --api-key"),
        }
    }
}

#[derive(Args)]
pub struct Run {
    /// Publications a second, on the clock whatever the server does (the default, with 10)
    #[arg(long, conflicts_with = "window")]
    pub rate: Option<f64>,
    /// Publish the next one when one of so many has reached all its subscribers
    #[arg(long)]
    pub window: Option<usize>,
    /// How long, after the warm-up
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// How many publications after the warm-up, instead of a duration
    #[arg(long)]
    pub messages: Option<u64>,
    /// Published first and not counted in the figures
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warmup: Duration,
}

impl Run {
    pub fn pace(&self) -> Result<Pace> {
        match (self.window, self.rate) {
            (Some(window), _) if window == 0 || window > MAX_WINDOW => {
                bail!("--window takes 1 to {MAX_WINDOW}")
            }
            (Some(window), _) => Ok(Pace::Window(window as u64)),
            (None, rate) => pace(rate.unwrap_or(10.0), "--rate"),
        }
    }

    pub fn until(&self) -> Until {
        match self.messages {
            Some(messages) => Until::Messages(messages),
            None => Until::Duration(crate::clock::nanos(self.duration)),
        }
    }
}

pub fn pace(rate: f64, option: &str) -> Result<Pace> {
    if !(rate > 0.0 && rate <= 1e7) {
        bail!("{option} takes a number above 0");
    }
    Ok(Pace::Rate(rate))
}

#[derive(Args)]
pub struct Connect {
    #[command(flatten)]
    pub clients: Clients,
    /// What each client subscribes to; {user} is its user, {n} its number
    #[arg(long, default_value = "user:{user}")]
    pub channel: String,
}

#[derive(Args)]
pub struct Idle {
    #[command(flatten)]
    pub connect: Connect,
    /// How long to look on
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub settle: Duration,
}

#[derive(Args)]
pub struct Fanout {
    #[command(flatten)]
    pub clients: Clients,
    #[command(flatten)]
    pub publish: Publish,
    #[command(flatten)]
    pub run: Run,
    /// What all subscribe to; {n} is the channel's number, with --channels
    #[arg(long, default_value = "post:42")]
    pub channel: String,
    /// Spread the clients over so many channels
    #[arg(long, default_value_t = 1)]
    pub channels: usize,
    /// Measure a bare Redis subscriber of the first channel beside it
    #[arg(long)]
    pub redis_subscriber: bool,
}

#[derive(Args)]
pub struct Unicast {
    #[command(flatten)]
    pub clients: Clients,
    #[command(flatten)]
    pub publish: Publish,
    #[command(flatten)]
    pub run: Run,
    /// Each user's own channel
    #[arg(long, default_value = "user:{user}")]
    pub channel: String,
}

#[derive(Args)]
pub struct Mixed {
    #[command(flatten)]
    pub clients: Clients,
    #[command(flatten)]
    pub publish: Publish,
    /// The shared channels; {n} is the number
    #[arg(long, default_value = "post:{n}")]
    pub channel: String,
    #[arg(long, default_value_t = 4)]
    pub channels: usize,
    /// Each user's own channel
    #[arg(long, default_value = "user:{user}")]
    pub user_channel: String,
    /// Publications a second to the shared channels
    #[arg(long, default_value_t = 20.0)]
    pub rate: f64,
    /// Publications a second to users
    #[arg(long, default_value_t = 200.0)]
    pub user_rate: f64,
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warmup: Duration,
    /// The share of clients that reconnect every so often
    #[arg(long, default_value_t = 0.05)]
    pub churn: f64,
    /// How often they do
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub churn_every: Duration,
}

#[derive(Args)]
pub struct Storm {
    #[command(flatten)]
    pub clients: Clients,
    #[command(flatten)]
    pub publish: Publish,
    /// What the clients that are cut off subscribe to
    #[arg(long, default_value = "user:{user}")]
    pub channel: String,
    /// So many of the connections stay, and are measured
    #[arg(long, default_value_t = 100)]
    pub bystanders: usize,
    #[arg(long, default_value = "post:bystanders")]
    pub bystander_channel: String,
    /// Publications a second to the bystanders
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// How long to measure them before the storm
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub before: Duration,
    /// Clients wait a random time up to this before the first attempt; it doubles with each
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub backoff: Duration,
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub backoff_max: Duration,
    /// When to give up
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub limit: Duration,
}

#[derive(Args)]
pub struct Floor {
    /// GET /sub/CHANNEL is a WebSocket that gets what is published on the channel
    #[arg(long, default_value = "127.0.0.1:17000")]
    pub listen: std::net::SocketAddr,
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6379")]
    pub redis: String,
    #[arg(long, default_value = "tollgate:")]
    pub redis_prefix: String,
}

#[derive(Args)]
pub struct RedisFloor {
    #[command(flatten)]
    pub publish: Publish,
    #[command(flatten)]
    pub run: Run,
    #[arg(long, default_value = "post:42")]
    pub channel: String,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct Plot {
    /// Results written with --json
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    #[arg(long, default_value = "latency.html")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct Suite {
    /// The gateway's binary
    #[arg(long, default_value = "target/release/tollgate")]
    pub gateway: PathBuf,
    /// A folder for the results
    #[arg(long, default_value = "benches/results")]
    pub out: PathBuf,
    /// Few connections and messages: whether it works, not how fast it is
    #[arg(long)]
    pub quick: bool,
    /// Only rows or series whose name contains this; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Rounds of each pair; the median counts
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
}
