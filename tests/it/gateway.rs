//! A gateway process for one test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::eventually;

/// The secret that test gateways and test tokens share.
pub const SECRET: &str = "integration-tests-secret-0123456789-abcdef";
pub const API_KEY: &str = "integration-api-key";
pub const BIN: &str = env!("CARGO_BIN_EXE_tollgate");

pub struct Gateway {
    child: Child,
    pub public: String,
    pub admin: String,
    log: Arc<Mutex<String>>,
    /// The test reads the log.
    reads: Arc<AtomicBool>,
    pub config: tempfile::NamedTempFile,
}

/// The configuration of a test gateway: free ports and a debug log, then what the test wants.
pub fn config(extra: &str) -> String {
    let base = [
        ("[server]", "listen = \"127.0.0.1:0\""),
        ("[admin]", "listen = \"127.0.0.1:0\""),
        ("[log]", "level = \"debug\""),
        ("[api]", "keys = [\"integration-api-key\"]"),
        // Many clients here answer pings only when they read, which on a busy machine is late.
        ("[limits]", "ping_interval = \"10m\""),
        // Many tests have many tokens refused.
        ("[limits]", "refusal_wait = \"0s\""),
        ("[drain]", "settle = \"50ms\"\nwindow = \"200ms\""),
    ];
    let mut text = extra.to_owned();
    for (section, line) in base {
        // A section of the test's own takes the base's lines in, unless it sets them itself.
        let name = line.split(" =").next().unwrap_or_default();
        if !text.contains(section) {
            text.push_str(&format!("\n{section}\n{line}\n"));
        } else if section != "[drain]" && !text.contains(&format!("\n{name} =")) {
            text = text.replace(section, &format!("{section}\n{line}"));
        }
    }
    if !text.contains("[[auth.keys]]") {
        text.push_str(&format!("\n[[auth.keys]]\nsecret = \"{SECRET}\"\n"));
    }
    if !text.contains("[[channels]]") {
        text.push_str(
            r#"
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "post:{id}"
allow = "authenticated"
"#,
        );
    }
    text
}

impl Gateway {
    /// Starts a gateway with a memory broker.
    pub async fn start() -> Self {
        Self::with("").await
    }

    /// Starts a gateway on a Redis.
    pub async fn on_redis(redis: &super::redis::Redis) -> Self {
        let gateway = Self::with(&redis.config()).await;
        gateway.ready().await;
        gateway
    }

    pub async fn with(extra: &str) -> Self {
        Self::with_env(extra, &[]).await
    }

    /// The same with the demo page.
    pub async fn dev(extra: &str) -> Self {
        Self::started(extra, &[], &["--dev"]).await
    }

    /// The same with further environment variables.
    pub async fn with_env(extra: &str, env: &[(&str, &str)]) -> Self {
        Self::started(extra, env, &[]).await
    }

    async fn started(extra: &str, env: &[(&str, &str)], args: &[&str]) -> Self {
        let mut config_file = tempfile::NamedTempFile::new().unwrap();
        config_file.write_all(config(extra).as_bytes()).unwrap();
        // Measurements are made of another build.
        let binary = std::env::var("TOLLGATE_BIN").unwrap_or_else(|_| BIN.to_owned());
        let mut child = Command::new(binary)
            .args(["serve", "--config"])
            .arg(config_file.path())
            .args(args)
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let reads = Arc::new(AtomicBool::new(true));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sink, reading) = (Arc::clone(&log), Arc::clone(&reads));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                while !reading.load(Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let (public, admin) = (String::new(), String::new());
        let mut gateway = Self { child, public, admin, log, reads, config: config_file };
        let line = gateway.logged("tollgate runs").await;
        let field = |name: &str| {
            line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        (gateway.public, gateway.admin) = (field("public="), field("admin="));
        gateway
    }

    /// One whose log goes elsewhere, or nowhere: a pipe loses its reader before it begins.
    pub async fn without_log(extra: &str, stdout: Stdio, stderr: Stdio) -> Self {
        let mut config_file = tempfile::NamedTempFile::new().unwrap();
        let [public, admin] = [(); 2].map(|()| format!("127.0.0.1:{}", super::redis::free_port()));
        config_file.write_all(config(extra).as_bytes()).unwrap();
        let mut command = Command::new(BIN);
        command.args(["serve", "--listen", &public, "--admin-listen", &admin, "--config"]);
        let mut child =
            command.arg(config_file.path()).stdout(stdout).stderr(stderr).spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let (log, reads) = (Arc::default(), Arc::default());
        let mut gateway = Self { child, public, admin, log, reads, config: config_file };
        eventually("the gateway lives", || {
            let exited = gateway.child.try_wait().unwrap();
            assert!(exited.is_none(), "{exited:?}");
            let admin = gateway.admin.clone();
            async move { TcpStream::connect(admin).await.ok() }
        })
        .await;
        gateway
    }

    /// Reads the log, or does not any more.
    pub fn read_log(&self, reads: bool) {
        self.reads.store(reads, Ordering::Relaxed);
    }

    /// Puts another configuration in the file's place, whole, as editors and mounts do.
    pub fn reconfigure(&self, text: &str) {
        let beside = self.config.path().with_extension("next");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, self.config.path()).unwrap();
    }

    /// Waits for a line of the log that holds `text`.
    pub async fn logged(&mut self, text: &str) -> String {
        let log = Arc::clone(&self.log);
        let child = &mut self.child;
        let mut exited = false;
        eventually(&format!("log line {text:?}"), || {
            let found = log.lock().unwrap().lines().find(|l| l.contains(text)).map(str::to_owned);
            if found.is_none() && exited {
                panic!("the gateway exited:\n{}", log.lock().unwrap());
            }
            exited = child.try_wait().unwrap().is_some();
            std::future::ready(found)
        })
        .await
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn ready(&self) {
        eventually("readiness", || async {
            (self.get_admin("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }

    pub async fn get_admin(&self, path: &str) -> (u16, String) {
        let host = &self.admin;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http(host, &request).await
    }

    /// The sum of a metric's series whose line begins with `prefix`.
    pub async fn metric(&self, prefix: &str) -> f64 {
        let (_, text) = self.get_admin("/metrics").await;
        let lines = text.lines().filter(|l| l.starts_with(&format!("tollgate_{prefix}")));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub async fn metric_reaches(&self, prefix: &str, at_least: f64) {
        eventually(&format!("{prefix} >= {at_least}"), || async {
            (self.metric(prefix).await >= at_least).then_some(())
        })
        .await;
    }

    /// Calls the server API with the test key.
    pub async fn api(&self, method: &str, body: &Value) -> Value {
        let (status, answer) = self.api_raw(method, Some(API_KEY), &body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }

    pub async fn api_raw(&self, method: &str, key: Option<&str>, body: &str) -> (u16, String) {
        let key = key.map_or_else(String::new, |k| format!("X-API-Key: {k}\r\n"));
        let length = body.len();
        let request = format!(
            "POST /api/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\
             Content-Length: {length}\r\n\r\n{body}"
        );
        http(&self.public, &request).await
    }

    pub async fn publish(&self, channel: &str, data: &Value) {
        let answer = self.api("publish", &json!({"channel": channel, "data": data})).await;
        assert_eq!(answer, json!({"result": {}}));
    }

    /// The same on a channel that may have a history.
    pub async fn publish_any(&self, channel: &str, data: &Value) {
        let answer = self.api("publish", &json!({"channel": channel, "data": data})).await;
        assert!(answer["error"].is_null(), "{answer}");
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits for the process's end.
    pub async fn exited(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("exit", || std::future::ready(child.try_wait().unwrap())).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the gateway at {}\n{}", self.public, self.log());
        }
    }
}

/// One request as it stands; the status and the body.
pub async fn http(address: &str, request: &str) -> (u16, String) {
    let (head, body) = http_raw(address, request.as_bytes()).await;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, body)
}

/// Head and body of whatever comes until the server closes.
pub async fn http_raw(address: &str, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(super::DEADLINE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

/// The head of the answer, or nothing when the connection is turned away.
pub async fn try_http(address: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = vec![0; 1024];
    let read = tokio::time::timeout(super::DEADLINE, stream.read(&mut answer)).await.ok()?;
    let n = read.ok().filter(|n| *n > 0)?;
    Some(String::from_utf8_lossy(&answer[..n]).into_owned())
}
