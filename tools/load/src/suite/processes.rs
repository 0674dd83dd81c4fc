//! What the suite starts: Redis, a gateway, a floor, drivers; each on its core. All of it ends with
//! the suite, also when the suite panics or is interrupted.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{SECRET, Side};

/// The processes that an interrupt has to stop.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// One core for the server under test, another for the load and Redis.
pub struct Pins {
    cores: Option<(usize, usize)>,
}

impl Pins {
    pub fn find() -> Self {
        let mut taskset = Command::new("taskset");
        taskset.args(["-c", "0,1", "true"]).stderr(Stdio::null());
        let mut works = || taskset.status().is_ok_and(|status| status.success());
        let cores = Self::several() && works();
        Pins { cores: cores.then_some((0, 1)) }
    }

    /// Every process may use all cores.
    pub fn none() -> Self {
        Pins { cores: None }
    }

    fn several() -> bool {
        std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
    }

    pub fn describe(&self) -> String {
        match self.cores {
            Some((server, load)) => {
                format!("the server on core {server}, the driver and Redis on core {load}")
            }
            None => "nothing is bound to a core (one core only, or no taskset)".to_owned(),
        }
    }

    fn command(&self, program: &Path, server: bool) -> Command {
        let Some((for_server, for_load)) = self.cores else { return Command::new(program) };
        let mut command = Command::new("taskset");
        command.arg("-c").arg(if server { for_server } else { for_load }.to_string()).arg(program);
        command
    }
}

/// The settings of a gateway that a series varies.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub workers: usize,
    /// Channels of its own that each user is subscribed to.
    pub own: usize,
    /// Handshakes that may be under way at once.
    pub handshakes: usize,
    /// Whether the gateway is bound to the server's core.
    pub pinned: bool,
    /// Whether channels of posts have a history.
    pub history: bool,
}

impl Setting {
    pub const DEFAULT: Setting =
        Setting { workers: 1, own: 1, handshakes: 100_000, pinned: true, history: false };
}

/// A process that ends when this value is dropped.
pub struct Server {
    child: Child,
    pub port: u16,
}

impl Server {
    /// The program's own id: taskset becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it by a signal; what has not ended after 20 s is killed.
    pub fn end(mut self, signal: Signal) {
        self.signal(signal);
        let end = Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        forget(self.child.id());
    }
}

pub struct Processes {
    pub folder: PathBuf,
    pub pins: Pins,
    pub redis: Server,
}

impl Processes {
    pub fn new(folder: &Path, pins: Pins) -> Result<Self> {
        stop_on_signals(folder.to_owned())?;
        let port = free_port()?;
        let mut command = pins.command(Path::new("redis-server"), false);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no", "--dir"]).arg(folder);
        let redis = start(command, port, &folder.join("redis.log"))
            .context("redis-server: is it installed? (apt-get install redis-server)")?;
        Ok(Processes { folder: folder.to_owned(), pins, redis })
    }

    pub fn gateway(&self, program: &Path, setting: Setting) -> Result<Server> {
        let port = free_port()?;
        let config = self.folder.join(format!("tollgate-{port}.toml"));
        std::fs::write(&config, configuration(port, free_port()?, self.redis.port, setting))?;

        let mut command = match setting.pinned {
            true => self.pins.command(program, true),
            false => Command::new(program),
        };
        command.args(["serve", "--config"]).arg(&config);
        start(command, port, &self.folder.join(format!("tollgate-{port}.log")))
            .context("the gateway")
    }

    /// Starts a relay of this suite's Redis. Its port is that of its admin listener.
    pub fn relay(&self, program: &Path, settings: &str) -> Result<Server> {
        let port = free_port()?;
        let config = self.folder.join(format!("relay-{port}.toml"));
        let channels = "[[channels]]\npattern = \"post:{id}\"\nallow = \"authenticated\"\n";
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:{port}\"\n{}{settings}{channels}{HISTORY}",
            broker(self.redis.port)
        );
        std::fs::write(&config, text)?;

        let mut command = self.pins.command(program, true);
        command.args(["relay", "--config"]).arg(&config);
        start(command, port, &self.folder.join(format!("relay-{port}.log"))).context("the relay")
    }

    pub fn floor(&self) -> Result<Server> {
        let port = free_port()?;
        let mut command = self.pins.command(&std::env::current_exe()?, true);
        command.args(["floor", "--listen", &format!("0.0.0.0:{port}")]);
        command.args(["--redis", &format!("127.0.0.1:{}", self.redis.port)]);
        command.args(["--redis-prefix", Side::Floor.prefix()]);
        start(command, port, &self.folder.join("floor.log")).context("the floor")
    }

    /// Runs a scenario against servers of one side to its end. Answers its result, and what it said
    /// if something was wrong with it.
    pub fn drive(
        &self,
        work: &[String],
        side: Side,
        servers: &[&Server],
    ) -> Result<(Value, Option<String>)> {
        let json = tempfile::NamedTempFile::new_in(&self.folder)?;
        let mut arguments: Vec<String> = work.to_vec();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        let path = if side == Side::Floor { "/sub/{channel}" } else { "/ws" };

        // One address has 28,000 ports to another. Beyond half of them, finding a free one takes
        // the kernel longer than a handshake.
        let addresses = servers.iter().flat_map(|server| {
            [1, 2, 3].map(|host| format!("ws://127.0.0.{host}:{}{path}", server.port))
        });
        add("--url", addresses.collect::<Vec<_>>().join(","));
        let pids = servers.iter().map(|server| server.pid().to_string());
        add("--pid", pids.collect::<Vec<_>>().join(","));
        add("--json", json.path().display().to_string());

        if !matches!(work[0].as_str(), "connect" | "idle") {
            add("--redis", format!("redis://127.0.0.1:{}", self.redis.port));
            add("--redis-pid", self.redis.pid().to_string());
            add("--redis-prefix", side.prefix().to_owned());
        }

        if side == Side::Floor {
            arguments.push("--raw".to_owned());
        } else {
            arguments.extend(["--secret".to_owned(), SECRET.to_owned()]);
            if work[0] != "fanout" {
                arguments.push("--auto".to_owned());
            }
        }

        let said = self.driver(&arguments)?;
        let text = std::fs::read_to_string(json.path())?;
        if text.is_empty() {
            bail!("it could not be run: {said}");
        }

        let report: Value = serde_json::from_str(&text)?;
        let wrong = report["problems"].as_array().is_some_and(|problems| !problems.is_empty());
        Ok((report, wrong.then_some(said)))
    }

    fn driver(&self, arguments: &[String]) -> Result<String> {
        let mut command = self.pins.command(&std::env::current_exe()?, false);
        command.args(arguments).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;

        let pid = child.id();
        remember(pid);
        let output = child.wait_with_output();
        forget(pid);
        let output = output?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// Starts a program, and waits until it listens on the port.
pub fn start(mut command: Command, port: u16, log: &Path) -> Result<Server> {
    let file = File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);

    let child = command.spawn()?;
    remember(child.id());
    let mut server = Server { child, port };

    let end = Instant::now() + Duration::from_secs(20);
    // A gateway's port is the public listener's, which accepts when the rest is up.
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let ended = server.child.try_wait()?;
        if ended.is_some() || Instant::now() > end {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let how = ended.map_or("no answer for 20 s".to_owned(), |status| status.to_string());
            bail!("did not start ({how}): {}", said.trim());
        }
        std::thread::sleep(Duration::from_millis(20));
    }

    Ok(server)
}

const HISTORY: &str = "history = { size = 1000, ttl = \"10m\" }\n";

fn broker(redis: u16) -> String {
    let prefix = Side::Tollgate.prefix();
    format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://127.0.0.1:{redis}\"\nprefix = \"{prefix}\"\n"
    )
}

fn configuration(port: u16, admin: u16, redis: u16, setting: Setting) -> String {
    let further = (1..setting.own).map(|n| {
        format!("[[channels]]\npattern = \"own{n}:{{user}}\"\nallow = \"owner\"\nauto_subscribe = true\n")
    });
    let further: String = further.collect();

    format!(
        r#"[server]
listen = "0.0.0.0:{port}"
workers = {workers}
[admin]
listen = "127.0.0.1:{admin}"
{broker}[[auth.keys]]
secret = "{SECRET}"
[[channels]]
pattern = "user:{{user}}"
allow = "owner"
auto_subscribe = true
{further}[[channels]]
pattern = "post:{{id}}"
allow = "authenticated"
{history}[limits]
connections_per_user = 100000
connections_per_ip = 100000
http_connections = {handshakes}
http_connections_per_ip = {handshakes}
"#,
        broker = broker(redis),
        history = if setting.history { HISTORY } else { "" },
        workers = setting.workers,
        handshakes = setting.handshakes,
    )
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

fn remember(pid: u32) {
    if let Ok(mut running) = RUNNING.lock() {
        running.push(pid);
    }
}

fn forget(pid: u32) {
    if let Ok(mut running) = RUNNING.lock() {
        running.retain(|other| *other != pid);
    }
}

#[expect(clippy::exit, reason = "a signal ends the suite, wherever its threads are")]
fn stop_on_signals(folder: PathBuf) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|error| anyhow!("signals: {error}"))?;

    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // The list stays locked, so that nothing more is started.
            if let Ok(running) = RUNNING.lock() {
                for pid in running.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = std::fs::remove_dir_all(&folder);
                eprintln!("stopped");
                std::process::exit(128 + signal);
            }
        }
    });
    Ok(())
}
