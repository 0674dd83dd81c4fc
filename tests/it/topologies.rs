//! Sentinel, Cluster, TLS, several connections, Valkey and newer Redis.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::process::free_port;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;
use tollgate_support::{eventually, eventually_within};

use super::gateway;
use super::groups::{cluster, sentinels};
use super::history::rules;

pub fn config(url: &str, extra: &str) -> String {
    rules(100, &format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n{extra}"))
}

/// Reads until a gap of that channel has come, and returns the events before it.
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

/// R4: a planned failover is followed at once, long before the old master cuts its subscribers, and
/// what the old master still takes is declared too.
#[tokio::test]
async fn r4_a_planned_sentinel_failover_is_noticed_and_declared() {
    let group = sentinels(1).await;
    let mut gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;
    group.master.publish("tollgate:plain:1", "1");
    assert_eq!(client.next().await, json!(1));

    group.fail_over().await;
    until_gap(&mut client, "plain:1").await;

    // Events come from the new master from now on, while the old one still calls itself a master.
    let new = &group.replicas[0];
    eventually("the new master has a subscriber", || {
        std::future::ready((new.publish("tollgate:plain:1", "2") > 0).then_some(()))
    })
    .await;
    loop {
        if client.next().await == json!(2) {
            break;
        }
    }
    gateway.logged(&format!("port: {} }}", group.replicas[0].port)).await;

    // A publisher that has not noticed the failover loses its events on the old master. The gateway
    // declares them when the old master becomes a replica.
    until_gap(&mut client, "plain:1").await;
    gateway.logged("no longer a master").await;
    let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 3})).await;
    assert!(answer["result"]["offset"].is_u64(), "{answer}");
}

/// R4: events that the old master still took are declared to connected clients when it ends. A
/// client that had left before, and came back to another replica of the gateway, used to resume as
/// if it had everything.
#[tokio::test]
async fn r4_who_was_away_when_the_old_master_ended_is_told() {
    let group = sentinels(1).await;
    let mut gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let publish = |n: u32| {
        let gateway = &gateway;
        async move {
            let answer = gateway.api("publish", &json!({"channel": "post:1", "data": n})).await;
            answer["result"].clone()
        }
    };
    let first = publish(1).await;
    group.fail_over().await;

    // A position in the epoch of the new master, while the old one still takes publications.
    let position = eventually("the new master has a history", || async {
        let position = publish(2).await;
        (position["epoch"].is_string() && position["epoch"] != first["epoch"]).then_some(position)
    })
    .await;
    assert!(!gateway.log().contains("no longer a master"), "too late for this test");
    gateway.logged("no longer a master").await;
    let late = gateway::with(&config(&group.url(), "")).await;
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

        // A position that is given out after the old master's end is good.
        let mut again = Client::connect_with(gateway, "/ws?format=envelope", &token("u2")).await;
        let answer = resume(&mut again, &answer["data"]).await;
        assert_eq!(answer["data"]["recovered"], true, "{answer}");
    }
}

/// R4: while a failover with several replicas is under way, the leading Sentinel names the old
/// master with the new epoch. Gateways used to believe that for good.
#[tokio::test]
async fn r4_the_leader_of_a_failover_alone_is_enough() {
    let group = sentinels(3).await;
    let gateway = gateway::with(&config(&group.url_of_the_leader(), "")).await;
    gateway.ready().await;
    for _ in 0..2 {
        let before = group.field(0, "port").await.unwrap();
        group.fail_over().await;
        let new = eventually_within(Duration::from_secs(90), "a new master", || async {
            group.field(0, "port").await.filter(|port| *port != before)
        })
        .await;

        eventually_within(Duration::from_secs(30), "the gateway is there", || async {
            let there = gateway.log().contains(&format!("port: {new} }}"));
            let up = gateway.metric("redis_connected{role=\"subscriber\"}").await == 1.0;
            (there && up).then_some(())
        })
        .await;

        // The Sentinel refuses the next failover as long as the old master is not a replica.
        eventually_within(Duration::from_secs(90), "the group has settled", || async {
            group.know_each_other().await.then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// R5: after an unplanned failover the gateway asks for the address again, and never takes a
/// replica for a master.
#[tokio::test]
async fn r5_an_unplanned_sentinel_failover_is_followed() {
    let mut group = sentinels(1).await;
    let gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    client.subscribe(json!("post:1")).await;
    group.master.fcall("post:1", "1").unwrap();
    assert_eq!(client.next().await["offset"], 1);

    group.master.kill();
    // The epoch ends with the process that wrote last: its last writes may be lost.
    until_gap(&mut client, "post:1").await;
    let (offset, _) = eventually("published on the new master", || {
        std::future::ready(group.replicas[0].fcall("post:1", "2").ok())
    })
    .await;
    assert_eq!(offset, 1, "a new epoch");
    assert_eq!(client.next_but_gaps().await["data"], 2);

    // The old master comes back as it was: it calls itself a master until the Sentinels see it.
    group.master.restart().await;
    group.replicas[0].fcall("post:1", "3").unwrap();
    assert_eq!(client.next_but_gaps().await["data"], 3);
}

/// A server that is a replica is refused with a reason: publications there reach no other server.
#[tokio::test]
async fn r5_a_replica_is_not_taken_for_a_master() {
    let master = Redis::start().await;
    let replica = Redis::with(&[&format!("replicaof 127.0.0.1 {}", master.port)]).await;
    let mut gateway = gateway::with(&config(&replica.url(), "")).await;
    gateway.logged("is a replica, not the master").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// Many channels over all slots, both kinds, on two replicas of the gateway.
#[tokio::test]
async fn r9_a_cluster_serves_all_slots() {
    let cluster = cluster().await;
    let extra = "subscriber_connections = 2\n";
    let gateways = [
        gateway::with(&config(&cluster.url(), extra)).await,
        gateway::with(&config(&cluster.url(), "")).await,
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
        assert!(cluster.publish(&format!("post:{n}"), &format!("\"d{n}\""), true).await);
        assert!(cluster.publish(&format!("plain:{n}"), &format!("\"p{n}\""), false).await);
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

    // A control message reaches both replicas of the gateway.
    gateways[0].api("disconnect", &json!({"user": "u1"})).await;
    for client in &mut clients {
        assert_eq!(client.closed().await.0, 4409);
    }
}

/// R9: a slot moves under load. Every durable event arrives; a plain one arrives or is declared.
#[tokio::test]
async fn r9_a_slot_migrates_under_load() {
    let cluster = cluster().await;
    let gateway = gateway::with(&config(&cluster.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    assert!(cluster.publish("post:1", "0", true).await);
    assert_eq!(client.next().await, json!(0));

    let from = cluster.owner("tollgate:post:1").await;
    let (mut to, mut other) = (from, 0);
    while to == from {
        other += 1;
        to = cluster.owner(&format!("tollgate:post:{other}")).await;
    }
    cluster.move_slot("tollgate:post:1", to).await;

    let began = Instant::now();
    let mut n = 1;
    while began.elapsed() < Duration::from_secs(3) || n < 5 {
        n += u32::from(cluster.publish("post:1", &n.to_string(), true).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // The new master is another process and begins an epoch of its own, which is declared. Then all
    // events arrive.
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

/// R9: a master dies and its replica takes over. The channels of its slots are declared; the other
/// channels go on.
#[tokio::test]
async fn r9_a_cluster_master_dies() {
    let mut cluster = cluster().await;
    let gateway = gateway::with(&config(&cluster.url(), "")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let names: Vec<_> = (0..20).map(|n| format!("plain:{n}")).collect();
    for name in &names {
        client.subscribe(json!(name)).await;
    }

    let dead = cluster.owner("tollgate:plain:0").await;
    let (mut gone, mut stay) = (Vec::new(), Vec::new());
    for name in &names {
        let is_gone = cluster.owner(&format!("tollgate:{name}")).await == dead;
        if is_gone { gone.push(name) } else { stay.push(name) }
    }
    cluster.nodes[dead].kill();

    // The other shards are not touched.
    assert!(cluster.publish(stay[0], "1", false).await);
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

    // Events that the dead master may have taken are declared again once it is known to be gone.
    for name in gone {
        // A new master may still say that the cluster is down.
        eventually("the new master takes it", || async {
            cluster.publish(name, "2", false).await.then_some(())
        })
        .await;
        assert_eq!(client.next_but_gaps().await, json!(2));
    }
}

/// TLS with a private authority and a client certificate. A server's certificate by another
/// authority is refused.
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
        &format!("tls-port {tls}"),
        &format!("tls-cert-file {cert}"),
        &format!("tls-key-file {key}"),
        &format!("tls-ca-cert-file {ca}"),
    ])
    .await;

    let url = format!("rediss://127.0.0.1:{tls}");
    let files = format!(
        "ca_file = \"{ca}\"\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
        path("client.pem"),
        path("client.key")
    );

    let gateway = gateway::with(&config(&url, &files)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));

    // Here only the trusted authority is another one.
    let wrong = files.replace(&ca, &path("other.pem"));
    let mut gateway = gateway::with(&config(&url, &wrong)).await;
    gateway.logged("cannot connect to Redis").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// A self-signed certificate that names nobody and calls itself an authority, as many set-ups make
/// it: it works where `redis-cli --cacert` accepts it, and so does its pinned fingerprint.
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
    let redis = Redis::with(&[
        &format!("tls-port {tls}"),
        &format!("tls-cert-file {cert}"),
        &format!("tls-key-file {key}"),
        "tls-auth-clients no",
    ])
    .await;

    let asked = ["--tls", "--cacert", &cert, "-p", &tls, "PING"];
    let asked = Command::new("redis-cli").args(asked).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), "PONG");

    let url = format!("rediss://127.0.0.1:{tls}");
    let print = ["x509", "-noout", "-fingerprint", "-sha256", "-in", &cert];
    let fingerprint = openssl(&print).trim().to_owned();
    for trusting in
        [format!("ca_file = \"{cert}\"\n"), format!("tls_fingerprints = [\"{fingerprint}\"]\n")]
    {
        let gateway = gateway::with(&config(&url, &trusting)).await;
        gateway.ready().await;
        let mut client = Client::connect(&gateway, "u1").await;
        redis.publish("tollgate:user:u1", "1");
        assert_eq!(client.next().await, json!(1));
    }

    // Another certificate is refused, and the log names the fingerprint that could be pinned.
    let other = format!("tls_fingerprints = [\"{}\"]\n", "0a".repeat(32));
    let mut gateway = gateway::with(&config(&url, &other)).await;
    let line = gateway.logged("its fingerprint is").await;
    assert!(line.contains(fingerprint.rsplit_once('=').unwrap().1), "{line}");
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
}

/// Several subscribing connections share the channels, and each is replaced by itself.
#[tokio::test]
async fn several_connections_share_the_channels() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&config(&redis.url(), "subscriber_connections = 4\n")).await;
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

    // One connection is lost. Only its plain channels are declared, each once: no client subscribes
    // to its canary or to the control channel, and the user's own channel has a history, which has
    // missed nothing.
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
