//! Redis, and servers that speak its protocol, on free ports: one server here, groups in the
//! modules below.
//!
//! Not here: what a test does with its keys.
//!
//! A server is killed when it is dropped, and its data goes with it. A restarted one has the port,
//! the configuration and the files of the one before.

mod cluster;
mod replicated;
mod sentinels;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::sleep;

pub use self::cluster::Cluster;
pub use self::replicated::Replicated;
pub use self::sentinels::{MASTER, Sentinels, Timing};
use crate::DEADLINE;
use crate::process::{Process, free_port};

const REDIS: &str = "redis-server";

/// One server.
pub struct Redis {
    /// None while it is killed.
    process: Option<Process>,
    /// Where it listens.
    pub port: u16,
    folder: TempDir,
    program: String,
    /// Further lines of its configuration.
    lines: Vec<String>,
    /// Variables of its environment, for `faketime`.
    environment: Vec<(String, String)>,
}

impl Redis {
    /// Starts a Redis that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a Redis with further lines of configuration.
    pub async fn with(lines: &[&str]) -> Self {
        Self::of(REDIS, lines, &[]).await
    }

    /// Starts a Redis with variables in its environment.
    pub async fn within(environment: &[(String, String)], lines: &[&str]) -> Self {
        Self::of(REDIS, lines, environment).await
    }

    /// Starts another server that speaks the protocol, which `make servers` has installed.
    pub async fn other(name: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let program = root.join("target/servers").join(name);
        assert!(program.exists(), "{name} is needed: `make servers` installs it");
        Self::of(program.to_str().unwrap(), &[], &[]).await
    }

    async fn of(program: &str, lines: &[&str], environment: &[(String, String)]) -> Self {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        // The port was free when it was chosen; if another process takes it first, the next try
        // has another.
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let (program, lines) = (program.to_owned(), lines.clone());
            let environment = environment.to_vec();
            let mut server = Self { process: None, port, folder, program, lines, environment };
            server.spawn();
            if server.answers().await {
                return server;
            }
        }
        panic!("no Redis would start");
    }

    /// Waits for an answer. Returns false if the process ends instead, as it does if its port
    /// is taken.
    async fn answers(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            let pong = match connect(&self.address()).await {
                Ok(mut connection) => {
                    redis::cmd("PING").query_async::<redis::Value>(&mut connection).await
                }
                Err(error) => Err(error),
            };

            // An answer is not enough: if the port is taken, it comes from another server.
            if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                return false;
            }
            // A server that asks for a password answers too.
            if pong.is_ok() || pong.is_err_and(|error| error.code().is_some()) {
                return true;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("Redis does not answer on port {}", self.port);
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL, without a user.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// The lines of a gateway's configuration that lead here.
    pub fn config(&self) -> String {
        format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{}\"\n", self.url())
    }

    /// Whether the process runs.
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// A blocking connection.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// A blocking connection, if the server answers.
    pub fn try_connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(self.url()).ok()?;
        client.get_connection_with_timeout(Duration::from_secs(1)).ok()
    }

    /// One command, or nothing when it fails.
    pub async fn try_command(&self, words: &[&str]) -> Option<redis::Value> {
        let mut connection = connect(&self.address()).await.ok()?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.ok()
    }

    /// One command; panics when it fails.
    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let mut connection = connect(&self.address()).await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// One command whose answer is a text; panics when it fails.
    pub async fn text(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.command(words).await).unwrap()
    }

    /// Publishes as a backend would. Returns how many subscribers Redis says it reached.
    pub fn publish(&self, channel: &str, payload: &str) -> i64 {
        redis::cmd("PUBLISH").arg(channel).arg(payload).query(&mut self.connection()).unwrap()
    }

    /// Publishes durably as a backend would. Returns offset and epoch.
    pub fn fcall(&self, channel: &str, data: &str) -> redis::RedisResult<(u64, String)> {
        let (offset, epoch, _) = self.publish_durable(channel, data)?;
        Ok((offset, epoch))
    }

    /// Publishes durably as a backend would. Returns offset, epoch, and how many heard it.
    pub fn publish_durable(
        &self,
        channel: &str,
        data: &str,
    ) -> redis::RedisResult<(u64, String, i64)> {
        let key = format!("tollgate:{channel}");
        let mut call = redis::cmd("FCALL");
        call.arg("tollgate_publish").arg(1).arg(key).arg(data).arg(600).arg(1000);
        call.query(&mut self.connection())
    }

    /// Kills the clients of a type: `pubsub` or `normal`.
    pub fn kill_clients(&self, kind: &str) {
        let mut kill = redis::cmd("CLIENT");
        kill.arg(&["KILL", "TYPE", kind]).exec(&mut self.connection()).unwrap();
    }

    /// Sends a signal to the process, if it runs.
    pub fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the same server anew, killed before or not: without its data, unless it keeps a log.
    pub async fn restart(&mut self) {
        self.kill();
        self.spawn();
        assert!(self.answers().await, "Redis comes back on its port");
    }

    /// Starts the process. Members of groups write to their configuration, so it is written only once.
    fn spawn(&mut self) {
        let (port, folder) = (self.port, self.folder.path());
        let file = folder.join("redis.conf");
        if !file.exists() {
            let text =
                format!("port {port}\nbind 127.0.0.1\nsave \"\"\ndir {}\n", folder.display());
            std::fs::write(&file, text + &self.lines.join("\n") + "\n").unwrap();
        }

        let mut command = Command::new(&self.program);
        command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        command.envs(self.environment.iter().cloned());
        if self.lines.iter().any(|line| line.starts_with("sentinel ")) {
            command.arg("--sentinel");
        }
        self.process = Some(Process::spawn(&mut command));
    }
}

/// A connection with time-outs to a server that may not answer.
pub async fn connect(address: &str) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(Duration::from_secs(2)));
    let client = redis::Client::open(format!("redis://{address}"))?;
    client.get_multiplexed_async_connection_with_config(&config).await
}
