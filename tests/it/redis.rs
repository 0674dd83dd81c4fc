//! A real Redis on a free port, and the fault tests' ways to hurt it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::DEADLINE;

pub struct Redis {
    child: Child,
    pub port: u16,
    folder: tempfile::TempDir,
    extra: Vec<String>,
    binary: String,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts with further lines of configuration, as arguments.
    pub fn with(extra: &[&str]) -> Self {
        Self::of("redis-server", extra)
    }

    /// Another server that speaks the protocol: `make servers` has made it.
    pub fn other(name: &str) -> Self {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let binary = root.join("target/servers").join(name);
        assert!(binary.exists(), "{name} is needed: `make servers` installs it");
        Self::of(binary.to_str().unwrap(), &[])
    }

    fn of(binary: &str, extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(|s| (*s).to_owned()).collect();
        // The port is free when it is asked for; should another take it first, the next one is.
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let child = spawn(binary, port, folder.path(), &extra);
            let (binary, extra) = (binary.to_owned(), extra.clone());
            let mut redis = Self { child, port, folder, extra, binary };
            if redis.answers() {
                return redis;
            }
        }
        panic!("no Redis would start");
    }

    /// A server for a cluster: its bus has a port of its own, which has to be free too.
    pub fn cluster_node(extra: &[&str]) -> Self {
        loop {
            let bus = free_port();
            let bus_text = bus.to_string();
            let node = Self::with(&[extra, &["--cluster-port", &bus_text]].concat());
            if node.try_connection().is_some() {
                return node;
            }
        }
    }

    /// A connection, if the server answers.
    pub fn try_connection(&self) -> Option<redis::Connection> {
        let client = redis::Client::open(self.url()).ok()?;
        client.get_connection_with_timeout(std::time::Duration::from_secs(1)).ok()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn config(&self) -> String {
        format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{}\"\n", self.url())
    }

    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Publishes as a backend would; the number of subscribers that Redis says it reached.
    pub fn publish(&self, channel: &str, payload: &str) -> i64 {
        redis::cmd("PUBLISH").arg(channel).arg(payload).query(&mut self.connection()).unwrap()
    }

    /// Kills the clients of a type: `pubsub` or `normal`.
    pub fn kill_clients(&self, kind: &str) {
        let mut kill = redis::cmd("CLIENT");
        kill.arg(&["KILL", "TYPE", kind]).exec(&mut self.connection()).unwrap();
    }

    /// Publishes durably as a backend would; offset and epoch.
    pub fn fcall(&self, channel: &str, data: &str) -> redis::RedisResult<(u64, String)> {
        let key = format!("tollgate:{channel}");
        let mut call = redis::cmd("FCALL");
        call.arg("tollgate_publish").arg(1).arg(key).arg(data).arg(600).arg(1000);
        call.query(&mut self.connection())
    }

    fn answers(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            let pong = redis::Client::open(self.url())
                .and_then(|c| c.get_connection())
                .and_then(|mut c| redis::cmd("PING").query::<String>(&mut c));
            // Answering is not enough: with a taken port another server would.
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            match pong {
                Ok(_) => return true,
                Err(e) if e.code().is_some() => return true,
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
        panic!("Redis does not answer");
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same server anew, without its data, whether it was killed before or not.
    pub fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = spawn(&self.binary, self.port, self.folder.path(), &self.extra);
        assert!(self.answers(), "Redis comes back on its port");
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(binary: &str, port: u16, folder: &std::path::Path, extra: &[String]) -> Child {
    Command::new(binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .arg("--dir")
        .arg(folder)
        .args(extra)
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is needed: `make deps` installs it")
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
