//! Processes that end with the test that started them, commands that run to their end, free ports.
//!
//! Not here: what is started. A process is killed and waited for when it is dropped, so that none
//! is left behind.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

/// A process that is killed when it is dropped.
pub struct Process(Child);

impl Process {
    /// Starts a command. Panics with a hint at how to install the program if there is none.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn().unwrap_or_else(|error| {
            let program = Path::new(command.get_program()).display();
            panic!("{program} does not start: {error} (`make deps` installs what tests need)")
        });
        Self(child)
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The reading end of its standard error, once.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.0.stderr.take()
    }

    /// Closes the reading ends of its output, so that nothing reads it from now on.
    pub fn close_output(&mut self) {
        drop((self.0.stdout.take(), self.0.stderr.take()));
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Sends a signal, named as for `kill`: `-TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Kills it, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) {
        let _ = self.0.wait();
    }

    /// Sets how many files the process may have open from now on.
    pub fn allow_files(&self, files: usize) {
        let (id, limit) = (self.id().to_string(), format!("--nofile={files}"));
        let set = Command::new("prlimit").args(["--pid", &id, &limit]).status();
        assert!(set.unwrap().success());
    }

    /// How many files the process has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a command to its end, with this on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// A port that was free a moment ago.
///
/// The port 10,000 above it, where a cluster's bus listens, was free too. Both are below those that
/// the system gives to outgoing connections, so that a server that is started again finds its own
/// still free.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(11_000..22_000);
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}
