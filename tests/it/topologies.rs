//! Sentinel, Cluster, TLS, several connections, Valkey and newer Redis.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Client, token};
use super::gateway::Gateway;
use super::history::rules;
use super::redis::{Redis, free_port};
use super::{eventually, eventually_within};

/// Groups of servers that elect each other want the machine for themselves: Sentinels that are starved
/// stop acting for half a minute.
static ONE_GROUP: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

type Turn = tokio::sync::MutexGuard<'static, ()>;

/// A Sentinel group: a master, a replica, three Sentinels that know each other.
pub struct Sentinels {
    pub master: Redis,
    pub replica: Redis,
    others: Vec<Redis>,
    sentinels: Vec<(Child, u16)>,
    _folder: tempfile::TempDir,
    _turn: Turn,
}

impl Sentinels {
    pub async fn start() -> Self {
        Self::with_replicas(1).await
    }

    pub async fn with_replicas(replicas: usize) -> Self {
        let turn = ONE_GROUP.lock().await;
        let master = Redis::start();
        let of = master.port.to_string();
        let follow = ["--replicaof", "127.0.0.1", &of, "--repl-diskless-sync-delay", "0"];
        let replica = Redis::with(&follow);
        let others: Vec<_> = (1..replicas).map(|_| Redis::with(&follow)).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut sentinels = Vec::new();
        for n in 0..3 {
            let port = free_port();
            let file = folder.path().join(format!("{n}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {of} 2\n\
                 sentinel down-after-milliseconds mymaster 3000\n\
                 sentinel failover-timeout mymaster 10000\n"
            );
            std::fs::write(&file, text).unwrap();
            let child = Command::new("redis-server")
                .arg(&file)
                .arg("--sentinel")
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            sentinels.push((child, port));
        }
        let group = Self { master, replica, others, sentinels, _folder: folder, _turn: turn };
        eventually_within(Duration::from_secs(60), "the Sentinels know each other", || {
            std::future::ready(group.know_each_other().then_some(()))
        })
        .await;
        group
    }

    fn ask(&self, n: usize, what: &[&str]) -> Option<redis::Value> {
        let url = format!("redis://127.0.0.1:{}", self.sentinels[n].1);
        let mut connection = redis::Client::open(url).ok()?.get_connection().ok()?;
        redis::cmd("SENTINEL").arg(what).query(&mut connection).ok()
    }

    pub fn field(&self, n: usize, name: &str) -> Option<String> {
        let fields: std::collections::HashMap<String, String> =
            redis::from_redis_value(self.ask(n, &["MASTER", "mymaster"])?).ok()?;
        fields.get(name).cloned()
    }

    fn know_each_other(&self) -> bool {
        (0..3).all(|n| {
            self.field(n, "num-other-sentinels").as_deref() == Some("2")
                && self.field(n, "num-slaves") == Some((1 + self.others.len()).to_string())
        })
    }

    /// The URL of only the first Sentinel, which leads every planned failover here.
    pub fn url_of_the_leader(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/mymaster", self.sentinels[0].1)
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|(_, p)| format!("127.0.0.1:{p}")).collect();
        format!("redis+sentinel://{}/mymaster", hosts.join(","))
    }

    pub fn signal(&self, n: usize, signal: &str) {
        let pid = self.sentinels[n].0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Asked again where the Sentinel finds no good replica at the moment.
    pub fn fail_over(&self) {
        let began = Instant::now();
        while self.ask(0, &["FAILOVER", "mymaster"]).is_none() {
            assert!(began.elapsed() < Duration::from_secs(60), "the Sentinel does not agree");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Sentinels {
    fn drop(&mut self) {
        for (child, _) in &mut self.sentinels {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn config(url: &str, extra: &str) -> String {
    rules(100, &format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n{extra}"))
}

/// Reads until a gap of that channel has come; the events before it.
async fn until_gap(client: &mut Client, channel: &str) -> Vec<Value> {
    let mut before = Vec::new();
    loop {
        let message = client.next().await;
        if message["type"] == "gap" && message["data"]["channel"] == channel {
            return before;
        }
        before.push(message);
    }
}

/// The next message that is not a gap.
async fn next_event(client: &mut Client) -> Value {
    loop {
        let message = client.next().await;
        if message["type"] != "gap" {
            return message;
        }
    }
}

/// R4: a planned failover is followed at once, long before the old master cuts its subscribers, and
/// what the old master still takes is declared too.
#[tokio::test]
async fn r4_a_planned_sentinel_failover_is_noticed_and_declared() {
    let group = Sentinels::start().await;
    let mut gateway = Gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;
    group.master.publish("tollgate:plain:1", "1");
    assert_eq!(client.next().await, json!(1));
    group.fail_over();
    until_gap(&mut client, "plain:1").await;
    // The new master is where events come from now, while the old one is still a master.
    let new = &group.replica;
    eventually("the new master has a subscriber", || {
        std::future::ready((new.publish("tollgate:plain:1", "2") > 0).then_some(()))
    })
    .await;
    loop {
        if client.next().await == json!(2) {
            break;
        }
    }
    gateway.logged(&format!("port: {} }}", group.replica.port)).await;
    // A publisher that has not noticed loses its events on the old master: declared when that ends.
    until_gap(&mut client, "plain:1").await;
    gateway.logged("a master no more").await;
    let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 3})).await;
    assert!(answer["result"]["offset"].is_u64(), "{answer}");
}

/// R4: what an old master still took is declared when it ends, to who is connected. Who was there, left
/// before, and comes back to another replica resumed as if it had everything.
#[tokio::test]
async fn r4_who_was_away_when_the_old_master_ended_is_told() {
    let group = Sentinels::start().await;
    let mut gateway = Gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let publish = |n: u32| {
        let gateway = &gateway;
        async move {
            let answer = gateway.api("publish", &json!({"channel": "post:1", "data": n})).await;
            answer["result"].clone()
        }
    };
    let first = publish(1).await;
    group.fail_over();
    // In the epoch of the new master, while the old one takes publications.
    let position = eventually("the new master has a history", || async {
        let position = publish(2).await;
        (position["epoch"].is_string() && position["epoch"] != first["epoch"]).then_some(position)
    })
    .await;
    assert!(!gateway.log().contains("a master no more"), "too late for this test");
    gateway.logged("a master no more").await;
    let late = Gateway::with(&config(&group.url(), "")).await;
    late.ready().await;
    for gateway in [&late, &gateway] {
        let mut client = Client::connect_with(gateway, "/ws?format=envelope", &token("u1")).await;
        let resume = async |client: &mut Client, since: &Value| {
            let since = json!({"epoch": since["epoch"], "offset": since["offset"]});
            client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
            client.next().await
        };
        let answer = resume(&mut client, &position).await;
        assert_eq!(answer["data"]["recovered"], false, "{answer}");
        assert_ne!(answer["data"]["epoch"], position["epoch"], "{answer}");
        // Positions from now on are good.
        let mut again = Client::connect_with(gateway, "/ws?format=envelope", &token("u2")).await;
        let answer = resume(&mut again, &answer["data"]).await;
        assert_eq!(answer["data"]["recovered"], true, "{answer}");
    }
}

/// R4: while a failover with several replicas is under way, its leader names the old master with the new
/// epoch: that used to pin gateways to the old one for good.
#[tokio::test]
async fn r4_the_leader_of_a_failover_alone_is_enough() {
    let group = Sentinels::with_replicas(3).await;
    let gateway = Gateway::with(&config(&group.url_of_the_leader(), "")).await;
    gateway.ready().await;
    for _ in 0..2 {
        let before = group.field(0, "port").unwrap();
        group.fail_over();
        let new = eventually_within(Duration::from_secs(90), "a new master", || {
            let port = group.field(0, "port").filter(|port| *port != before);
            std::future::ready(port)
        })
        .await;
        eventually_within(Duration::from_secs(30), "the gateway is there", || async {
            let there = gateway.log().contains(&format!("port: {new} }}"));
            let up = gateway.metric("redis_connected{role=\"subscriber\"}").await == 1.0;
            (there && up).then_some(())
        })
        .await;
        // The next one is refused while the old master is not a replica yet.
        eventually_within(Duration::from_secs(90), "the group has settled", || {
            std::future::ready(group.know_each_other().then_some(()))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// R5: an unplanned failover: the address is asked for again, and a replica is never taken for a master.
#[tokio::test]
async fn r5_an_unplanned_sentinel_failover_is_followed() {
    let mut group = Sentinels::start().await;
    let gateway = Gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    client.subscribe(json!("post:1")).await;
    group.master.fcall("post:1", "1").unwrap();
    assert_eq!(client.next().await["offset"], 1);
    group.master.kill();
    // The epoch ends with the process that wrote last: its last writes may be lost.
    until_gap(&mut client, "post:1").await;
    let (offset, _) = eventually("published on the new master", || {
        std::future::ready(group.replica.fcall("post:1", "2").ok())
    })
    .await;
    assert_eq!(offset, 1, "a new epoch");
    assert_eq!(next_event(&mut client).await["data"], 2);
    // The old one comes back as it was, a master by its own account, until the Sentinels see it.
    group.master.restart();
    group.replica.fcall("post:1", "3").unwrap();
    assert_eq!(next_event(&mut client).await["data"], 3);
}

/// A server that is a replica is refused with a reason: what is published there reaches nobody else.
#[tokio::test]
async fn r5_a_replica_is_not_taken_for_a_master() {
    let master = Redis::start();
    let replica = Redis::with(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let mut gateway = Gateway::with(&config(&replica.url(), "")).await;
    gateway.logged("is a replica, not the master").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// Six servers, three of them masters.
pub struct Cluster {
    pub nodes: Vec<Redis>,
    _turn: Turn,
}

impl Cluster {
    pub async fn start() -> Self {
        let turn = ONE_GROUP.lock().await;
        let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500"];
        let nodes: Vec<_> = (0..6).map(|_| Redis::cluster_node(&cluster)).collect();
        let hosts = nodes.iter().map(|n| format!("127.0.0.1:{}", n.port));
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(hosts)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Self { nodes, _turn: turn };
        eventually_within(Duration::from_secs(60), "the cluster is whole", || {
            std::future::ready(cluster.nodes.iter().all(Self::is_ok).then_some(()))
        })
        .await;
        cluster
    }

    fn is_ok(node: &Redis) -> bool {
        let info: redis::RedisResult<String> =
            redis::cmd("CLUSTER").arg("INFO").query(&mut node.connection());
        let linked: redis::RedisResult<String> =
            redis::cmd("INFO").arg("replication").query(&mut node.connection());
        info.is_ok_and(|i| i.contains("cluster_state:ok") && i.contains("cluster_known_nodes:6"))
            && linked
                .is_ok_and(|l| l.contains("role:master") || l.contains("master_link_status:up"))
    }

    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{},127.0.0.1:{}", self.nodes[0].port, self.nodes[5].port)
    }

    /// The index of the master that has a key, as the first server that answers knows it.
    pub fn master_of(&self, key: &str) -> usize {
        let ask = |node: &Redis| -> Option<u16> {
            let mut connection = node.try_connection()?;
            let slot: i64 =
                redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut connection).ok()?;
            let slots: Vec<(i64, i64, (String, u16))> = {
                let raw: Vec<Vec<redis::Value>> =
                    redis::cmd("CLUSTER").arg("SLOTS").query(&mut connection).ok()?;
                raw.into_iter()
                    .filter_map(|range| {
                        let mut range = range.into_iter();
                        let (a, b, master) = (range.next()?, range.next()?, range.next()?);
                        let master: Vec<redis::Value> = redis::from_redis_value(master).ok()?;
                        let mut master = master.into_iter();
                        Some((
                            redis::from_redis_value(a).ok()?,
                            redis::from_redis_value(b).ok()?,
                            (
                                redis::from_redis_value(master.next()?).ok()?,
                                redis::from_redis_value(master.next()?).ok()?,
                            ),
                        ))
                    })
                    .collect()
            };
            slots.iter().find(|(a, b, _)| (*a..=*b).contains(&slot)).map(|(_, _, (_, port))| *port)
        };
        let port = self.nodes.iter().find_map(ask).expect("a master");
        self.nodes.iter().position(|n| n.port == port).unwrap()
    }

    /// Publishes where the slot is, as a cluster client would: durably, or plainly.
    pub fn publish(&self, channel: &str, data: &str, durable: bool) -> bool {
        let key = format!("tollgate:{channel}");
        let Some(mut connection) = self.nodes[self.master_of(&key)].try_connection() else {
            return false;
        };
        if durable {
            let mut call = redis::cmd("FCALL");
            call.arg("tollgate_publish").arg(1).arg(key).arg(data).exec(&mut connection).is_ok()
        } else {
            redis::cmd("SPUBLISH").arg(key).arg(data).exec(&mut connection).is_ok()
        }
    }
}

/// Many channels over all slots, both kinds, on two replicas of the gateway.
#[tokio::test]
async fn r9_a_cluster_serves_all_slots() {
    let cluster = Cluster::start().await;
    let extra = "subscriber_connections = 2\n";
    let gateways = [
        Gateway::with(&config(&cluster.url(), extra)).await,
        Gateway::with(&config(&cluster.url(), "")).await,
    ];
    let mut clients = Vec::new();
    for gateway in &gateways {
        gateway.ready().await;
        let mut client = Client::connect(gateway, "u1").await;
        for n in 0..40 {
            client.subscribe(json!(format!("post:{n}"))).await;
            client.subscribe(json!(format!("plain:{n}"))).await;
        }
        clients.push(client);
    }
    for n in 0..40 {
        assert!(cluster.publish(&format!("post:{n}"), &format!("\"d{n}\""), true));
        assert!(cluster.publish(&format!("plain:{n}"), &format!("\"p{n}\""), false));
        let via = &gateways[n % 2];
        via.api("publish", &json!({"channel": format!("post:{n}"), "data": "api"})).await;
    }
    for client in &mut clients {
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..120 {
            *seen.entry(client.next().await.to_string()).or_default() += 1;
        }
        assert_eq!(seen.remove("\"api\""), Some(40));
        assert!(seen.len() == 80 && seen.values().all(|n| *n == 1), "{seen:?}");
        client.nothing_came().await;
    }
    // Control reaches both.
    gateways[0].api("disconnect", &json!({"user": "u1"})).await;
    for client in &mut clients {
        assert_eq!(client.closed().await.0, 4409);
    }
}

/// R9: a slot that moves under load: plain events are delivered or declared, durable ones come all.
#[tokio::test]
async fn r9_a_slot_migrates_under_load() {
    let cluster = Cluster::start().await;
    let gateway = Gateway::with(&config(&cluster.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    assert!(cluster.publish("post:1", "0", true));
    assert_eq!(client.next().await, json!(0));
    let from = cluster.master_of("tollgate:post:1");
    let mut masters: Vec<usize> = (0..40)
        .map(|n| cluster.master_of(&format!("tollgate:post:{n}")))
        .filter(|n| *n != from)
        .collect();
    masters.dedup();
    migrate(&cluster, "tollgate:post:1", from, masters[0]);
    let began = Instant::now();
    let mut n = 1;
    while began.elapsed() < Duration::from_secs(3) || n < 5 {
        n += u32::from(cluster.publish("post:1", &n.to_string(), true));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The new master is another process: its epoch is its own, and that is said; then all come.
    let mut last = 0;
    let mut declared = false;
    while last < n - 1 {
        let message = client.next().await;
        if message["type"] == "gap" {
            declared |= message["data"]["channel"] == "post:1";
            continue;
        }
        let next = u32::try_from(message.as_u64().unwrap()).unwrap();
        assert!(next == last + 1 || (next > last && declared), "{next} after {last}");
        last = next;
    }
    client.nothing_came().await;
}

/// Moves the slot of a key, with its keys.
fn migrate(cluster: &Cluster, key: &str, from: usize, to: usize) {
    let (from, to) = (&cluster.nodes[from], &cluster.nodes[to]);
    let id = |node: &Redis| -> String {
        redis::cmd("CLUSTER").arg("MYID").query(&mut node.connection()).unwrap()
    };
    let slot: i64 =
        redis::cmd("CLUSTER").arg("KEYSLOT").arg(key).query(&mut from.connection()).unwrap();
    let set = |node: &Redis, state: &str, id: &str| {
        let mut set = redis::cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg(state).arg(id).exec(&mut node.connection()).unwrap();
    };
    set(to, "IMPORTING", &id(from));
    set(from, "MIGRATING", &id(to));
    let keys: Vec<String> = redis::cmd("CLUSTER")
        .arg("GETKEYSINSLOT")
        .arg(slot)
        .arg(100)
        .query(&mut from.connection())
        .unwrap();
    for key in keys {
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(to.port).arg(key).arg(0).arg(5000);
        migrate.exec(&mut from.connection()).unwrap();
    }
    for node in [to, from] {
        set(node, "NODE", &id(to));
    }
}

/// A master that dies: its replica takes over, what was on its slots is declared, the others go on.
#[tokio::test]
async fn r9_a_cluster_master_dies() {
    let mut cluster = Cluster::start().await;
    let gateway = Gateway::with(&config(&cluster.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let names: Vec<_> = (0..20).map(|n| format!("plain:{n}")).collect();
    for name in &names {
        client.subscribe(json!(name)).await;
    }
    let dead = cluster.master_of("tollgate:plain:0");
    let (gone, stay): (Vec<_>, Vec<_>) =
        names.iter().partition(|name| cluster.master_of(&format!("tollgate:{name}")) == dead);
    cluster.nodes[dead].kill();
    // The other shards are not touched.
    assert!(cluster.publish(stay[0], "1", false));
    assert_eq!(client.next().await, json!(1));
    let mut declared = std::collections::BTreeSet::new();
    while declared.len() < gone.len() {
        let gap = client.next().await;
        assert_eq!(gap["type"], "gap", "{gap}");
        let name = gap["data"]["channel"].as_str().unwrap().to_owned();
        if name != "user:u1" {
            assert!(gone.contains(&&name), "{name} was on another server");
            declared.insert(name);
        }
    }
    // What the dead one may have taken is declared once more when it is known to be gone.
    for name in gone {
        assert!(cluster.publish(name, "2", false));
        assert_eq!(next_event(&mut client).await, json!(2));
    }
}

/// TLS with an authority of one's own and a client certificate; a server that another signed is refused.
#[tokio::test]
async fn tls_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &str| {
        let arguments = arguments.replace("DIR", folder.path().to_str().unwrap());
        let made = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    for name in ["ca", "other"] {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
             -keyout DIR/{name}.key -out DIR/{name}.pem -subj /CN={name}"
        ));
    }
    for name in ["server", "client"] {
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout DIR/{name}.key \
             -out DIR/{name}.csr -subj /CN={name} -addext subjectAltName=IP:127.0.0.1,DNS:localhost"
        ));
        openssl(&format!(
            "x509 -req -in DIR/{name}.csr -CA DIR/ca.pem -CAkey DIR/ca.key -CAcreateserial -days 2 \
             -out DIR/{name}.pem -copy_extensions copy"
        ));
    }
    let tls = free_port().to_string();
    let (cert, key, ca) = (path("server.pem"), path("server.key"), path("ca.pem"));
    let redis = Redis::with(&[
        "--tls-port",
        &tls,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
    ]);
    let url = format!("rediss://127.0.0.1:{tls}");
    let files = format!(
        "ca_file = \"{ca}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        path("client.pem"),
        path("client.key")
    );
    let gateway = Gateway::with(&config(&url, &files)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));
    // All is as it was but for whom we trust.
    let wrong = files.replace(&ca, &path("other.pem"));
    let mut gateway = Gateway::with(&config(&url, &wrong)).await;
    gateway.logged("cannot connect to Redis").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// A certificate that signed itself, names nobody and calls itself an authority, as many set-ups make it: what
/// `redis-cli --cacert` accepts works, and so does the fingerprint of exactly that certificate.
#[tokio::test]
async fn field_d4_a_self_signed_certificate_and_a_pinned_one_are_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("redis.pem"), path("redis.key"));
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap()
    };
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let of = ["-keyout", &key, "-out", &cert, "-subj", "/CN=redis"];
    openssl(&[&["req", "-x509"], &ec[..], &of].concat());
    let tls = free_port().to_string();
    let files = ["--tls-port", &tls, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let redis = Redis::with(&[&files[..], &["--tls-auth-clients", "no"]].concat());
    let asked = ["--tls", "--cacert", &cert, "-p", &tls, "PING"];
    let asked = Command::new("redis-cli").args(asked).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "PONG");

    let url = format!("rediss://127.0.0.1:{tls}");
    let print = ["x509", "-noout", "-fingerprint", "-sha256", "-in", &cert];
    let fingerprint = openssl(&print).trim().to_owned();
    for trusting in
        [format!("ca_file = \"{cert}\"\n"), format!("tls_fingerprints = [\"{fingerprint}\"]\n")]
    {
        let gateway = Gateway::with(&config(&url, &trusting)).await;
        gateway.ready().await;
        let mut client = Client::connect(&gateway, "u1").await;
        redis.publish("tollgate:user:u1", "1");
        assert_eq!(client.next().await, json!(1));
    }

    // Another certificate is another one, and the log has what to pin.
    let other = format!("tls_fingerprints = [\"{}\"]\n", "0a".repeat(32));
    let mut gateway = Gateway::with(&config(&url, &other)).await;
    let line = gateway.logged("its fingerprint is").await;
    assert!(line.contains(fingerprint.rsplit_once('=').unwrap().1), "{line}");
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// Several subscribing connections share the channels, and each is mended by itself.
#[tokio::test]
async fn several_connections_share_the_channels() {
    let redis = Redis::start();
    let gateway = Gateway::with(&config(&redis.url(), "subscriber_connections = 4\n")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    for n in 0..100 {
        client.subscribe(json!(format!("plain:{n}"))).await;
    }
    let list: String = redis::cmd("CLIENT")
        .arg("LIST")
        .arg("TYPE")
        .arg("pubsub")
        .query(&mut redis.connection())
        .unwrap();
    let shares: Vec<u32> = list
        .lines()
        .map(|l| l.split(" sub=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(shares.len(), 4, "{list}");
    assert!(shares.iter().all(|n| (10..60).contains(n)), "{shares:?}");
    for n in 0..100 {
        redis.publish(&format!("tollgate:plain:{n}"), &n.to_string());
    }
    let mut seen = Vec::new();
    for _ in 0..100 {
        seen.push(client.next().await.as_u64().unwrap());
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..100));
    // One of them is lost: its plain channels alone are declared, each once. Its canary and the control
    // channel are nobody's, and the user's own has a history, which has missed nothing.
    let id = list.lines().nth(2).unwrap().split("id=").nth(1).unwrap().split(' ').next().unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec(&mut redis.connection()).unwrap();
    gateway.metric_reaches("gaps_declared_total", f64::from(shares[2] - 3)).await;
    let plain = (0..100).map(|n| format!("tollgate:plain:{n}"));
    eventually("all of them are subscribed again", || {
        let mut ask = redis::cmd("PUBSUB");
        let ask = plain.clone().fold(ask.arg("NUMSUB"), |ask, name| ask.arg(name));
        let counts: Vec<(String, u32)> = ask.query(&mut redis.connection()).unwrap();
        std::future::ready(counts.iter().all(|(_, n)| *n == 1).then_some(()))
    })
    .await;
    // A channel's gap comes before what is published on it from now on.
    for n in 0..100 {
        redis.publish(&format!("tollgate:plain:{n}"), &n.to_string());
    }
    let (mut events, mut declared) = (0, std::collections::HashSet::new());
    while events < 100 {
        let message = client.next().await;
        if message.is_number() {
            events += 1;
            continue;
        }
        assert_eq!(message["type"], "gap", "{message}");
        assert!(declared.insert(message["data"]["channel"].to_string()), "twice: {message}");
    }
    assert!(declared.iter().all(|channel| channel.starts_with("\"plain:")), "{declared:?}");
    let theirs = u32::try_from(declared.len()).unwrap();
    assert!((shares[2] - 3..shares[2]).contains(&theirs), "{theirs} of {}", shares[2]);
}
