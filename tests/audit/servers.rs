//! Redis servers on free ports: alone, under Sentinels, as a cluster. Each is killed when dropped.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::sleep;

use super::proxy::Proxy;
use super::record::{Shared, shared};

const START: Duration = Duration::from_secs(20);
pub const MASTER: &str = "mymaster";

pub struct Server {
    child: Option<Child>,
    pub port: u16,
    folder: TempDir,
    args: Vec<String>,
}

/// A port below those that the system gives to outgoing connections, so that a restarted server finds
/// its own free; the one for a cluster's bus, 10000 above, too.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(11_000..22_000);
        let free = |p: u16| TcpListener::bind(("127.0.0.1", p)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

fn spawn(port: u16, folder: &Path, args: &[String]) -> Child {
    let file = folder.join("redis.conf");
    if !file.exists() {
        let text = format!("port {port}\nbind 127.0.0.1\nsave \"\"\ndir {}\n", folder.display());
        std::fs::write(&file, text + &args.join("\n") + "\n").unwrap();
    }
    let mut command = Command::new("redis-server");
    command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    if args.iter().any(|a| a.starts_with("sentinel ")) {
        command.arg("--sentinel");
    }
    command.spawn().expect("redis-server is needed: `make deps` installs it")
}

impl Server {
    pub async fn start(lines: &[&str]) -> Self {
        let args: Vec<String> = lines.iter().map(|s| (*s).to_owned()).collect();
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let port = free_port();
            let child = Some(spawn(port, folder.path(), &args));
            let mut server = Self { child, port, folder, args: args.clone() };
            if server.answers().await {
                return server;
            }
        }
        panic!("no Redis would start");
    }

    async fn answers(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < START {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if let Ok(mut connection) = connect(&self.address()).await
                && redis::cmd("PING").query_async::<()>(&mut connection).await.is_ok()
            {
                return true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("Redis does not answer on port {}", self.port);
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub async fn restart(&mut self) {
        self.child = Some(spawn(self.port, self.folder.path(), &self.args));
        assert!(self.answers().await, "Redis comes back on its port");
    }

    /// One command; panics when it fails.
    pub async fn command(&self, words: &[&str]) -> redis::Value {
        let mut connection = connect(&self.address()).await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(&mut connection).await.unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    pub async fn text(&self, words: &[&str]) -> String {
        redis::from_redis_value(self.command(words).await).unwrap()
    }
}

/// The user of the gateways, and what it may do.
const DOCUMENTED: &str = include_str!("../../docs/redis.md");
pub const USER: &str = "gateway:secret";

impl Server {
    /// Makes the user as `docs/redis.md` has it.
    pub async fn limit(&self) {
        let (name, password) = USER.split_once(':').unwrap();
        let line = DOCUMENTED.split(&format!("`ACL SETUSER {name} ")).nth(1).unwrap();
        let rules = line.split('`').next().unwrap().replace("PASSWORD", password);
        let words = ["ACL", "SETUSER", name].into_iter().chain(rules.split_whitespace());
        self.command(&words.collect::<Vec<_>>()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub async fn connect(address: &str) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(Duration::from_secs(2)));
    let client = redis::Client::open(format!("redis://{address}"))?;
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// A master that takes no writes without its replica.
pub struct Followed {
    pub master: Server,
    pub replica: Server,
}

impl Followed {
    pub async fn start() -> Self {
        let lines = ["repl-diskless-sync-delay 0", "min-replicas-to-write 1"];
        let master = Server::start(&lines).await;
        let replica = Server::start(&[&format!("replicaof 127.0.0.1 {}", master.port)]).await;
        let followed = Self { master, replica };
        followed.follows().await;
        followed
    }

    /// Waits until the master takes writes.
    pub async fn follows(&self) {
        let began = Instant::now();
        while !self.master.text(&["INFO", "replication"]).await.contains("good_slaves:1") {
            assert!(began.elapsed() < START, "the replica does not follow");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A server, another one that is to take its place, and the address by which both are known.
pub struct Moving {
    pub servers: [Server; 2],
    /// What the gateways connect to.
    pub proxy: Proxy,
    /// What publishers are told.
    pub leads_to: Shared<String>,
}

impl Moving {
    pub async fn start() -> Self {
        let servers = [Server::start(&[]).await, Server::start(&[]).await];
        let proxy = Proxy::start(servers[0].address()).await;
        let leads_to = shared(servers[0].address());
        Self { servers, proxy, leads_to }
    }

    /// The address leads to the other server from now on. It has the functions of the first.
    pub async fn goes(&self) {
        let [old, new] = &self.servers;
        let library = old.command(&["FUNCTION", "DUMP"]).await;
        let library: Vec<u8> = redis::from_redis_value(library).unwrap();
        let mut connection = connect(&new.address()).await.unwrap();
        let mut restore = redis::cmd("FUNCTION");
        restore.arg("RESTORE").arg(library).exec_async(&mut connection).await.unwrap();
        self.proxy.lead_to(new.address());
        *self.leads_to.lock() = new.address();
    }
}

/// A master, two replicas, three Sentinels that know each other.
pub struct Watched {
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Watched {
    pub async fn start() -> Self {
        let mut servers = vec![Server::start(&[]).await];
        let master = servers[0].port;
        for _ in 0..2 {
            servers.push(Server::start(&[&format!("replicaof 127.0.0.1 {master}")]).await);
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let lines = [
                format!("sentinel monitor {MASTER} 127.0.0.1 {master} 2"),
                format!("sentinel down-after-milliseconds {MASTER} 1000"),
                format!("sentinel failover-timeout {MASTER} 6000"),
            ];
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            sentinels.push(Server::start(&lines).await);
        }
        let watched = Self { servers, sentinels };
        let began = Instant::now();
        while !watched.settled().await {
            assert!(began.elapsed() < 3 * START, "the Sentinels do not find each other");
            sleep(Duration::from_millis(300)).await;
        }
        // They have just met; a failover right now would still find no majority.
        sleep(Duration::from_secs(10)).await;
        watched
    }

    async fn settled(&self) -> bool {
        for sentinel in &self.sentinels {
            let value = sentinel.command(&["SENTINEL", "MASTER", MASTER]).await;
            let fields: std::collections::HashMap<String, String> =
                redis::from_redis_value(value).unwrap();
            if fields["num-other-sentinels"] != "2" || fields["num-slaves"] != "2" {
                return false;
            }
        }
        true
    }

    pub fn addresses(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::address).collect()
    }

    pub fn url(&self) -> String {
        format!("redis+sentinel://{}/{MASTER}", self.addresses().join(","))
    }
}

/// Three masters, three replicas.
pub struct Cluster {
    pub servers: Vec<Server>,
}

impl Cluster {
    pub async fn start() -> Self {
        let mut servers = Vec::new();
        for _ in 0..6 {
            let lines = ["cluster-enabled yes", "cluster-node-timeout 2000"];
            servers.push(Server::start(&lines).await);
        }
        let cluster = Self { servers };
        let mut words = vec!["--cluster".to_owned(), "create".to_owned()];
        words.extend(cluster.addresses());
        words.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
        let done = tokio::task::spawn_blocking(move || {
            Command::new("redis-cli").args(words).output().expect("redis-cli is needed")
        });
        let output = done.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let began = Instant::now();
        while !cluster.settled().await {
            assert!(began.elapsed() < 3 * START, "the cluster does not come up");
            sleep(Duration::from_millis(200)).await;
        }
        cluster
    }

    async fn settled(&self) -> bool {
        let mut replicas = 0;
        for server in &self.servers {
            let info = server.text(&["CLUSTER", "INFO"]).await;
            if !info.contains("cluster_state:ok") {
                return false;
            }
            let replication = server.text(&["INFO", "replication"]).await;
            replicas += usize::from(replication.contains("master_link_status:up"));
        }
        replicas == 3
    }

    pub fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(Server::address).collect()
    }

    pub fn url(&self) -> String {
        format!("redis+cluster://{}", self.addresses()[..3].join(","))
    }

    /// The master of a key's slot, by place.
    pub async fn owner(&self, key: &str) -> usize {
        let slot = slot_of(key);
        for server in self.servers.iter().filter(|s| s.child.is_some()) {
            let Ok(mut connection) = connect(&server.address()).await else { continue };
            let mut ask = redis::cmd("CLUSTER");
            let answer = ask.arg("SLOTS").query_async(&mut connection).await;
            let ranges: Vec<(u16, u16, (String, u16))> = match answer {
                Ok(value) => masters(value),
                Err(_) => continue,
            };
            let found = ranges.iter().find(|(a, b, _)| (*a..=*b).contains(&slot));
            if let Some((_, _, (_, port))) = found {
                return self.servers.iter().position(|s| s.port == *port).unwrap();
            }
        }
        panic!("nobody has the slot of {key}");
    }
}

/// First and last slot, host and port of the master, of an answer to CLUSTER SLOTS.
fn masters(value: redis::Value) -> Vec<(u16, u16, (String, u16))> {
    let ranges: Vec<Vec<redis::Value>> = redis::from_redis_value(value).unwrap();
    let read = |range: Vec<redis::Value>| {
        let mut range = range.into_iter();
        let mut number = || redis::from_redis_value(range.next().unwrap()).unwrap();
        let (first, last): (u16, u16) = (number(), number());
        let node: Vec<redis::Value> = redis::from_redis_value(range.next().unwrap()).unwrap();
        let mut node = node.into_iter();
        let host = redis::from_redis_value(node.next().unwrap()).unwrap();
        let port = redis::from_redis_value(node.next().unwrap()).unwrap();
        (first, last, (host, port))
    };
    ranges.into_iter().map(read).collect()
}

pub fn slot_of(key: &str) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(key.as_bytes()) % 16384
}
