//! A relay's process: the only place in the Rust tests that runs `tollgate relay`.
//!
//! Not here: the databases on its two sides. It is killed when it is dropped.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::time::timeout;

use crate::eventually;
use crate::http::{get_request, http, try_get, try_status};
use crate::metrics;
use crate::process::{Process, free_port};

/// A relay that hangs takes longer than this for an answer.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A running relay.
pub struct Relay {
    process: Process,
    /// Host and port of its admin listener.
    pub admin: String,
    config: NamedTempFile,
    program: String,
    environment: Vec<(String, String)>,
    /// Where its log goes, if not where the test's goes.
    log: Option<PathBuf>,
}

impl Relay {
    /// Starts a relay with that configuration, but for `[admin]`.
    pub fn start(program: &str, config: &str) -> Self {
        Self::with(program, config, &[])
    }

    /// Starts a relay with variables in its environment.
    pub fn with(program: &str, config: &str, environment: &[(&str, &str)]) -> Self {
        let environment: Vec<_> =
            environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self::launch(program, config, environment, None)
    }

    /// Starts a relay whose log goes to a file, behind what the file has.
    pub fn logging_to(
        log: PathBuf,
        program: &str,
        config: &str,
        environment: Vec<(String, String)>,
    ) -> Self {
        Self::launch(program, config, environment, Some(log))
    }

    fn launch(
        program: &str,
        config: &str,
        environment: Vec<(String, String)>,
        log: Option<PathBuf>,
    ) -> Self {
        let admin = format!("127.0.0.1:{}", free_port());
        let mut file = NamedTempFile::new().unwrap();
        write!(file, "[admin]\nlisten = \"{admin}\"\n{config}").unwrap();
        let process = spawn(program, &file, &environment, log.as_ref());
        Self { process, admin, config: file, program: program.to_owned(), environment, log }
    }

    /// Kills it and starts it again.
    pub fn restart(&mut self) {
        // The new one has the old one's address.
        self.process.kill();
        self.process = spawn(&self.program, &self.config, &self.environment, self.log.as_ref());
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal, named as for `kill`.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Waits until it has ended by itself; true if it succeeded.
    pub async fn exited(&mut self) -> bool {
        eventually("the relay ends", || std::future::ready(self.process.ended())).await.success()
    }

    /// What `/readyz` shows, once it answers.
    pub async fn readyz(&self) -> Value {
        let answer = eventually("the relay's admin listener", || async {
            try_status(&self.admin, "/readyz").await?;
            Some(http(&self.admin, &get_request(&self.admin, "/readyz")).await)
        })
        .await;
        serde_json::from_str(&answer.1).unwrap()
    }

    /// What `/readyz` shows, if it answers at once.
    pub async fn try_readyz(&self) -> Option<Value> {
        let answer = timeout(AT_ONCE, try_get(&self.admin, "/readyz")).await;
        serde_json::from_str(&answer.ok()??.1).ok()
    }

    /// Waits until it leads.
    pub async fn leads(&self) {
        eventually("the relay leads", || async {
            (self.readyz().await["leader"] == true).then_some(())
        })
        .await;
    }

    /// The sum of the series that begin like this.
    pub async fn metric(&self, prefix: &str) -> f64 {
        eventually("a metric", || metrics::read(&self.admin, prefix)).await
    }

    /// Waits until that sum is at least so much.
    pub async fn metric_reaches(&self, prefix: &str, at_least: f64) {
        eventually(&format!("{prefix} is {at_least}"), || async {
            metrics::read(&self.admin, prefix).await.filter(|sum| *sum >= at_least)
        })
        .await;
    }

    /// Runs a subcommand with the relay's configuration; the output, and whether it succeeded.
    pub fn run(&self, arguments: &[&str]) -> (String, bool) {
        let mut command = Command::new(&self.program);
        command.arg("relay").args(arguments).arg("--config").arg(self.config.path());
        let out = command.output().unwrap();
        let text = [&*out.stdout, &*out.stderr].concat();
        (String::from_utf8(text).unwrap(), out.status.success())
    }
}

fn spawn(
    program: &str,
    config: &NamedTempFile,
    environment: &[(String, String)],
    log: Option<&PathBuf>,
) -> Process {
    let mut command = Command::new(program);
    command.args(["relay", "--config"]).arg(config.path()).envs(environment.iter().cloned());
    // A log that is inherited is shown by a test that fails.
    if let Some(path) = log {
        command.stderr(File::options().create(true).append(true).open(path).unwrap());
    }
    Process::spawn(command.stdout(Stdio::null()))
}
