//! How a gateway is started: the only place in the Rust tests that runs `tollgate serve`.
//!
//! Not here: the running gateway.
//!
//! A started gateway listens on addresses that no other process has.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

use super::Gateway;
use crate::process::{Process, free_port};

/// What a gateway is started with.
///
/// Only the tests know where Cargo has put the program, so they name it.
pub struct Launch {
    program: PathBuf,
    config: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Standard output and standard error, if the log is not kept for the test.
    log: Option<(Stdio, Stdio)>,
    files: Option<usize>,
}

impl Launch {
    /// That program with that configuration, its log kept for the test.
    pub fn new(program: impl Into<PathBuf>, config: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            config: config.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: None,
            files: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Adds environment variables.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Sends the output elsewhere. A pipe loses its reader before anything is written.
    #[must_use]
    pub fn log_to(mut self, stdout: Stdio, stderr: Stdio) -> Self {
        self.log = Some((stdout, stderr));
        self
    }

    /// Sets how many files the gateway may have open.
    #[must_use]
    pub fn files(mut self, files: usize) -> Self {
        self.files = Some(files);
        self
    }

    /// Starts the gateway and waits until it listens, which is before it is ready.
    pub async fn start(self) -> Gateway {
        let mut config = NamedTempFile::new().unwrap();
        config.write_all(self.config.as_bytes()).unwrap();

        let mut command = match self.files {
            None => Command::new(&self.program),
            Some(files) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files}")).arg(&self.program);
                command
            }
        };
        command.args(["serve", "--config"]).arg(config.path()).args(&self.arguments);
        command.envs(self.environment);

        let Some((stdout, stderr)) = self.log else {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            return Gateway::with_log(Process::spawn(&mut command), config).await;
        };
        // Without a log nothing says where the gateway listens, so the addresses are chosen here.
        let addresses = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        command.args(["--listen", &addresses[0], "--admin-listen", &addresses[1]]);
        let mut process = Process::spawn(command.stdout(stdout).stderr(stderr));
        process.close_output();
        Gateway::without_log(process, config, addresses).await
    }
}
