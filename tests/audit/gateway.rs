//! A gateway process under audit, its log with times, and the tokens that its clients bring.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::servers::free_port;

const SECRET: &str = "audit-secret-0123456789-abcdefghijkl";
const START: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(2);

/// The rules and limits of every round; the broker's URL comes on top.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[drain]
settle = "300ms"
window = "1s"
[[auth.keys]]
secret = "audit-secret-0123456789-abcdefghijkl"
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "durable:{id}"
allow = "authenticated"
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "mixed:{id}"
allow = "authenticated"
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "plain:{id}"
allow = "authenticated"
[limits]
queue_bytes = 33554432
[broker]
kind = "redis"
linger = "300ms"
[redis]
"#;

/// How a gateway is started.
#[derive(Default)]
pub struct Launch<'a> {
    /// The program of another version.
    pub program: Option<&'a Path>,
    /// For its process, besides ours.
    pub environment: Vec<(String, String)>,
    /// Its log goes to a disk that is full.
    pub full_log: bool,
    /// How many files it may have open.
    pub files: Option<usize>,
}

/// What the reader of a gateway's log does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    Reads,
    Hangs,
    /// From the next line on.
    Gone,
}

pub struct Gateway {
    child: Child,
    pub public: String,
    pub admin: String,
    log: Arc<Mutex<Log>>,
    _config: tempfile::NamedTempFile,
}

struct Log {
    reader: Reader,
    lines: Vec<(Instant, String)>,
}

impl Gateway {
    /// Starts one on a Redis URL and waits until it is ready.
    pub async fn start(url: &str, environment: &[(String, String)]) -> Self {
        let environment = environment.to_vec();
        Self::launch(url, Launch { environment, ..Launch::default() }).await
    }

    /// The same, started in another way.
    pub async fn launch(url: &str, how: Launch<'_>) -> Self {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        writeln!(config, "{CONFIG}url = \"{url}\"").unwrap();
        let program = how.program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_tollgate")));
        let mut command = match how.files {
            None => Command::new(program),
            Some(files) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files}")).arg(program);
                command
            }
        };
        command.args(["serve", "--config"]).arg(config.path()).stdout(Stdio::null());
        command.envs(how.environment).stderr(Stdio::piped());
        if how.program.is_none() {
            // Earlier versions do not know it.
            command.env("TOLLGATE_LIMITS__REFUSAL_WAIT", "0s");
        }
        let (mut public, mut admin) = (String::new(), String::new());
        if how.full_log {
            // Its log will not say where it listens.
            [public, admin] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
            command.env("TOLLGATE_SERVER__LISTEN", &public);
            command.env("TOLLGATE_ADMIN__LISTEN", &admin);
            command.stderr(std::fs::File::create("/dev/full").unwrap());
        }
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(Log { reader: Reader::Reads, lines: Vec::new() }));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || read(stderr, &log));
        }
        let mut gateway = Self { child, public, admin, log, _config: config };
        let began = Instant::now();
        while gateway.public.is_empty() || !gateway.is_ready().await {
            if let Some(line) = gateway.find("tollgate runs") {
                let field = |name: &str| {
                    let rest = line.split(name).nth(1).and_then(|r| r.split_whitespace().next());
                    rest.unwrap().to_owned()
                };
                (gateway.public, gateway.admin) = (field("public="), field("admin="));
            }
            let ended = gateway.child.try_wait().unwrap();
            let fine = ended.is_none() && began.elapsed() < START;
            assert!(fine, "the gateway does not start:\n{}", gateway.log_text());
            sleep(Duration::from_millis(20)).await;
        }
        gateway
    }

    async fn is_ready(&self) -> bool {
        !self.admin.is_empty() && status(&self.admin, "/readyz").await == Some(200)
    }

    /// Whether this version serves event streams.
    pub async fn has_sse(&self) -> bool {
        let path = format!("/sse?channels=plain:1&token={}", token("u1"));
        status(&self.public, &path).await == Some(200)
    }

    fn find(&self, text: &str) -> Option<String> {
        let log = self.log.lock();
        log.lines.iter().find(|(_, l)| l.contains(text)).map(|(_, l)| l.clone())
    }

    pub fn logged(&self, text: &str) -> bool {
        self.find(text).is_some()
    }

    /// From now on.
    pub fn log_reader(&self, does: Reader) {
        self.log.lock().reader = does;
    }

    pub async fn is_alive(&self) -> bool {
        status(&self.admin, "/livez").await == Some(200)
    }

    /// A metric of the gateway, its labels added up; 0 where it has none.
    pub async fn metric(&self, name: &str) -> f64 {
        metric(&self.admin, name).await
    }

    /// Files that are open.
    pub fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// How many files may be open from now on.
    pub fn allow_files(&self, files: usize) {
        let pid = self.child.id().to_string();
        let limit = format!("--nofile={files}");
        let set = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(set.unwrap().success());
    }

    pub fn log_text(&self) -> String {
        let log = self.log.lock();
        log.lines.iter().map(|(_, l)| l.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// When the log first spoke of trouble with Redis after a moment.
    pub fn noticed(&self, after: Instant) -> Option<Duration> {
        const SIGNS: [&str; 5] =
            [" WARN ", " ERROR ", "Redis masters", "connected to Redis", "master no more"];
        let log = self.log.lock();
        let mut later = log.lines.iter().filter(|(at, _)| *at >= after);
        let (at, _) = later.find(|(_, l)| SIGNS.iter().any(|sign| l.contains(sign)))?;
        Some(at.duration_since(after))
    }

    /// The process's end, if it has come.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stderr: ChildStderr, log: &Mutex<Log>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        loop {
            let mut log = log.lock();
            match log.reader {
                Reader::Gone => return,
                Reader::Hangs => {}
                Reader::Reads => {
                    log.lines.push((Instant::now(), line));
                    break;
                }
            }
            drop(log);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The answer to a GET, head and body.
pub async fn get(address: &str, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    timeout(ANSWER, ask).await.ok()?.ok()
}

/// The status of the answer to a GET, which need not end.
async fn status(address: &str, path: &str) -> Option<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.map(|_| head)
    };
    let head = timeout(ANSWER, ask).await.ok()?.ok()?;
    std::str::from_utf8(&head[9..]).ok()?.parse().ok()
}

/// A metric of the gateway with this admin listener, its labels added up; 0 where there is none.
async fn metric(admin: &str, name: &str) -> f64 {
    let text = get(admin, "/metrics").await.unwrap_or_default();
    let is = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let lines = text.lines().filter(is);
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |all, n| all + n)
}

/// How many sockets and streams the gateway with this admin listener has; 0 where there is none.
pub async fn connections(admin: &str) -> f64 {
    metric(admin, "tollgate_connections").await
}

/// A good token, for two days: a round may move the clock.
pub fn token(user: &str) -> String {
    sign(&json!({"sub": user, "exp": now() + 2 * 86_400}))
}

pub fn sign(claims: &Value) -> String {
    let key = rustcrypto_jwt::EncodingKey::from_secret(SECRET.as_bytes());
    rustcrypto_jwt::encode(&rustcrypto_jwt::Header::default(), claims, &key).unwrap()
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
