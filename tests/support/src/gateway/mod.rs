//! A gateway's process, from the first line of its log to its end.
//!
//! Not here: how a gateway is started (`launch`), how its log is kept (`log`), and what it is
//! configured to do.
//!
//! A gateway ends when its value is dropped, and shows its log if a test has failed.

mod launch;
mod log;

use std::process::ExitStatus;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;

pub use self::launch::Launch;
use self::log::Log;
pub use self::log::Reader;
use crate::http::{API_KEY, api_request, get_request, http, try_status};
use crate::process::Process;
use crate::{eventually, metrics};

/// A running gateway.
pub struct Gateway {
    process: Process,
    /// Host and port of the public listener.
    pub public: String,
    /// Host and port of the admin listener.
    pub admin: String,
    log: Log,
    /// The file that holds its configuration.
    pub config: NamedTempFile,
}

impl Gateway {
    /// A gateway whose log the test reads; the log says where it listens.
    async fn with_log(mut process: Process, config: NamedTempFile) -> Self {
        let log = Log::of(process.take_stderr().unwrap());
        let (public, admin) = (String::new(), String::new());
        let mut gateway = Self { process, public, admin, log, config };
        let line = gateway.logged("tollgate runs").await;
        let field = |name: &str| {
            line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
        };
        (gateway.public, gateway.admin) = (field("public="), field("admin="));
        gateway
    }

    /// A gateway whose log the test does not get, and that was told where to listen.
    async fn without_log(
        process: Process,
        config: NamedTempFile,
        [public, admin]: [String; 2],
    ) -> Self {
        let mut gateway = Self { process, public, admin, log: Log::default(), config };
        eventually("the gateway lives", || {
            let ended = gateway.process.ended();
            assert!(ended.is_none(), "the gateway does not start: {ended:?}");
            let admin = gateway.admin.clone();
            async move { TcpStream::connect(admin).await.ok() }
        })
        .await;
        gateway
    }

    /// Changes what the reader of the log does.
    pub fn log_reader(&self, does: Reader) {
        self.log.reader(does);
    }

    /// Puts another configuration in the file's place, whole, as editors and mounts do.
    pub fn reconfigure(&self, text: &str) {
        let beside = self.config.path().with_extension("next");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, self.config.path()).unwrap();
    }

    /// Waits for a line of the log that holds `text`.
    pub async fn logged(&mut self, text: &str) -> String {
        let (log, process) = (&self.log, &mut self.process);
        let mut ended = false;
        eventually(&format!("log line {text:?}"), || {
            let found = log.find(text);
            // The gateway's last lines may be read a moment after its end.
            assert!(found.is_some() || !ended, "the gateway exited:\n{}", log.text());
            ended = process.ended().is_some();
            std::future::ready(found)
        })
        .await
    }

    /// Whether the log holds `text` by now.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.find(text).is_some()
    }

    /// When the log first held one of these texts after a moment.
    pub fn first_logged(&self, after: Instant, texts: &[&str]) -> Option<Instant> {
        self.log.first(after, texts)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits until `/readyz` says that it is ready.
    pub async fn ready(&self) {
        eventually("readiness", || async {
            (try_status(&self.admin, "/readyz").await == Some(200)).then_some(())
        })
        .await;
    }

    /// Whether `/livez` says that it lives.
    pub async fn is_alive(&self) -> bool {
        try_status(&self.admin, "/livez").await == Some(200)
    }

    /// A GET of the admin listener: the status and the body.
    pub async fn get_admin(&self, path: &str) -> (u16, String) {
        http(&self.admin, &get_request(&self.admin, path)).await
    }

    /// The sum of the series that begin with `prefix` ([`metrics::read`]). Panics without
    /// an answer.
    pub async fn metric(&self, prefix: &str) -> f64 {
        let (_, text) = self.get_admin("/metrics").await;
        metrics::sum(&text, prefix)
    }

    /// The sum of the series that begin with `prefix`, or 0 without an answer.
    pub async fn metric_or_zero(&self, prefix: &str) -> f64 {
        metrics::read(&self.admin, prefix).await.unwrap_or(0.0)
    }

    /// Waits until a metric is at least `at_least`.
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

    /// Calls the server API with any key and body. Returns the status and the body of the answer.
    pub async fn api_raw(&self, method: &str, key: Option<&str>, body: &str) -> (u16, String) {
        http(&self.public, &api_request(method, key, body)).await
    }

    /// Publishes on a channel without a history. Returns how many subscribing connections heard it.
    pub async fn publish(&self, channel: &str, data: &Value) -> u64 {
        let answer = self.api("publish", &json!({"channel": channel, "data": data})).await;
        let heard = answer["result"]["heard"].as_u64();
        assert_eq!(answer, json!({"result": {"heard": heard}}), "and no position");
        heard.expect("a number")
    }

    /// Publishes on a channel that may have a history.
    pub async fn publish_any(&self, channel: &str, data: &Value) {
        let answer = self.api("publish", &json!({"channel": channel, "data": data})).await;
        assert!(answer["error"].is_null(), "{answer}");
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends a signal, named as for `kill`: `-TERM`.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        self.process.open_files()
    }

    /// Sets how many files it may have open from now on.
    pub fn allow_files(&self, files: usize) {
        self.process.allow_files(files);
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits for the process's end.
    pub async fn exited(&mut self) -> ExitStatus {
        let (log, process) = (&self.log, &mut self.process);
        // The gateway's last lines are read a moment after its end.
        eventually("exit", || std::future::ready(process.ended().filter(|_| log.is_over()))).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the gateway at {}\n{}", self.public, self.log());
        }
    }
}
