//! Rows of the fault catalogue that have no other home: see `docs/faults.md`.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;
use tollgate_support::proxy::{Mode, Proxy};
use tollgate_support::redis::Redis;
use tollgate_support::tokens::{SECRET, now, sign, token};
use tollgate_support::{eventually, eventually_within};

use super::gateway;
use super::groups::sentinels;
use super::history::rules;

fn on(url: &str) -> String {
    rules(1000, &format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n"))
}

/// Resident memory in MiB.
fn memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Reads until `last` has come. Returns the numbers seen, and the channels with a gap.
async fn numbers_until(client: &mut Client, last: u64) -> (Vec<u64>, BTreeSet<String>) {
    let (mut seen, mut gaps) = (Vec::new(), BTreeSet::new());
    while seen.last() != Some(&last) {
        let message = client.next().await;
        match message.as_u64() {
            Some(n) => seen.push(n),
            None => {
                assert_eq!(message["type"], "gap", "{message}");
                gaps.insert(message["data"]["channel"].as_str().unwrap().to_owned());
            }
        }
    }
    (seen, gaps)
}

/// R3 and R10: a path to Redis that swallows everything, cuts in the middle of a frame, or answers
/// nonsense. It is noticed, memory stays bounded, sockets stay open, and what could be missing
/// comes from the history or is declared.
#[tokio::test]
async fn r3_r10_a_path_that_swallows_cuts_or_lies() {
    let redis = Redis::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let gateway = gateway::with(&on(&format!("redis://{}", proxy.address))).await;
    gateway.ready().await;
    let mut durable = Client::connect(&gateway, "u1").await;
    durable.subscribe(json!("post:1")).await;
    let mut plain = Client::connect(&gateway, "u2").await;
    plain.subscribe(json!("plain:1")).await;

    let mut n = 0;
    for mode in [Mode::Blackhole, Mode::Cut, Mode::Garbage, Mode::Huge] {
        let before = gateway.metric("redis_reconnects_total").await;
        proxy.set(mode);
        n += 1;
        redis.fcall("post:1", &n.to_string()).unwrap();
        redis.publish("tollgate:plain:1", &n.to_string());
        gateway.metric_reaches("redis_reconnects_total", before + 1.0).await;
        assert!(memory(&gateway) < 200, "{mode:?}");

        proxy.set(Mode::Pass);
        n += 1;
        eventually("events come again", || async {
            (gateway.metric("redis_connected{role=\"subscriber\"}").await == 1.0).then_some(())
        })
        .await;
        redis.fcall("post:1", &n.to_string()).unwrap();
        let (seen, gaps) = numbers_until(&mut durable, n).await;
        assert_eq!(seen, [n - 1, n], "{mode:?}");
        assert!(!gaps.contains("post:1"), "{mode:?}: {gaps:?}");

        eventually("the plain channel too", || {
            std::future::ready(
                (redis.publish("tollgate:plain:1", &n.to_string()) > 0).then_some(()),
            )
        })
        .await;
        let (_, gaps) = numbers_until(&mut plain, n).await;
        assert!(gaps.contains("plain:1"), "{mode:?}");
    }
}

/// R6: a Sentinel that was cut off and still names the old master misleads no gateway.
#[tokio::test]
async fn r6_a_sentinel_that_is_behind_is_not_believed() {
    let group = sentinels(1).await;
    let gateway = gateway::with(&on(&group.url())).await;
    gateway.ready().await;

    group.sentinels[2].signal("-STOP");
    group.fail_over().await;
    let new = format!("port: {} }}", group.replicas[0].port);
    eventually_within(Duration::from_secs(90), "the new master", || {
        let log = gateway.log();
        let seen = log.contains(&new) && log.contains("no longer a master");
        std::future::ready(seen.then_some(()))
    })
    .await;

    group.sentinels[2].signal("-CONT");
    // The Sentinel answers again: at first with what it knew before, then with what the others
    // tell it.
    eventually_within(Duration::from_secs(60), "it has caught up", || async {
        let port = group.field(2, "port").await;
        (port == Some(group.replicas[0].port.to_string())).then_some(())
    })
    .await;

    let switches = gateway.log().matches("Redis masters").count();
    assert_eq!(switches, 2, "the first and the new one\n{}", gateway.log());
}

/// R7: a gateway that cannot keep up is cut off by Redis; that is a loss like any other.
#[tokio::test]
async fn r7_redis_cuts_a_subscriber_that_does_not_read() {
    let redis = Redis::start().await;
    let mut gateway = gateway::with(&on(&redis.url())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    client.subscribe(json!("plain:1")).await;

    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("client-output-buffer-limit").arg("pubsub 1mb 512kb 1");
    set.exec(&mut redis.connection()).unwrap();

    gateway.signal("-STOP");
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    for n in 1..=20 {
        redis.fcall("post:1", &n.to_string()).unwrap();
        redis.publish("tollgate:plain:1", &large);
    }
    gateway.signal("-CONT");
    gateway.logged("connection to Redis lost").await;

    let (mut seen, mut declared) = (Vec::new(), false);
    while seen.last() != Some(&20) || !declared {
        let message = client.next().await;
        if let Some(n) = message.as_u64() {
            seen.push(n);
        } else if !message.is_string() {
            assert_eq!(message["type"], "gap", "{message}");
            assert_ne!(message["data"]["channel"], "post:1", "{message}");
            declared |= message["data"]["channel"] == "plain:1";
        }
    }
    assert!(seen.iter().copied().eq(1..=20), "{seen:?}");
}

/// R8: with a wrong password, or without room for another client, the gateway says so and tries
/// again. No secret is in the log.
#[tokio::test]
async fn r8_wrong_password_and_no_room() {
    let redis = Redis::with(&["requirepass right-horse"]).await;
    let url = format!("redis://:wrong-horse@127.0.0.1:{}", redis.port);
    let mut gateway = gateway::with(&on(&url)).await;
    gateway.logged("cannot connect to Redis").await;
    assert_eq!(gateway.get_admin("/readyz").await.0, 503);
    let (_, body) = gateway.get_admin("/readyz").await;
    assert!(!gateway.log().contains("horse") && !body.contains("horse"), "{body}");

    let redis = Redis::start().await;
    let mut gateway = gateway::with(&on(&redis.url())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;

    let mut admin = redis.connection();
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(1).exec(&mut admin).unwrap();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut admin).unwrap();
    gateway.logged("cannot connect to Redis").await;
    redis::cmd("CONFIG").arg("SET").arg("maxclients").arg(1000).exec(&mut admin).unwrap();
    loop {
        if client.next().await["data"]["channel"] == "plain:1" {
            break;
        }
    }
}

/// R3: Redis hangs for six seconds under load and goes on. No socket is closed; the history fills
/// in the durable events, and the rest is declared.
#[tokio::test]
async fn r3_redis_hangs_under_load() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&on(&redis.url())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    redis.fcall("post:1", "1").unwrap();

    redis.signal("-STOP");
    gateway.metric_reaches("redis_reconnects_total", 1.0).await;
    redis.signal("-CONT");
    for n in 2..=50 {
        redis.fcall("post:1", &n.to_string()).unwrap();
    }

    let (seen, gaps) = numbers_until(&mut client, 50).await;
    assert!(seen.iter().copied().eq(1..=50), "{seen:?}");
    assert!(!gaps.contains("post:1"));
}

/// W19: a gateway whose descriptors are used up refuses newcomers, serves connected clients, keeps
/// some descriptors for itself, and recovers.
#[tokio::test]
async fn w19_out_of_file_descriptors() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    super::places::room_for(&gateway, 8);

    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(TcpStream::connect(&gateway.public).await.unwrap());
    }
    eventually("it says so", || {
        std::future::ready(gateway.log().contains("limit_open_files").then_some(()))
    })
    .await;

    client.nothing_came().await;
    assert_eq!(gateway.get_admin("/livez").await.0, 200);
    assert!(gateway.metric("rejected_total{reason=\"limit_open_files\"}").await >= 20.0);
    let said = gateway.log().matches("limit_open_files").count();
    assert!(said < 10, "{said} lines");

    drop(held);
    // The gateway sees the closing a moment later.
    let mut next = eventually("room", || async {
        let bearer = format!("Bearer {}", token("u2"));
        Client::open(&gateway.public, "/ws", &[("authorization", &bearer)]).await.ok()
    })
    .await;
    assert_eq!(next.next().await["type"], "connected");
    gateway.publish("user:u2", &json!(1)).await;
    assert_eq!(next.next().await, json!(1));
}

/// W20 and W23: a replica is killed, and its thousand clients come to the other one together: all
/// of them resume, and the sockets that were there go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w20_w23_the_clients_of_a_killed_replica_resume_elsewhere() {
    let redis = Redis::start().await;
    let limits = "[limits]\nconnections_per_user = 2000\n";
    let config = format!("{limits}{}", on(&redis.url()));
    let (one, two) = (gateway::with(&config).await, gateway::with(&config).await);
    one.ready().await;
    two.ready().await;
    let mut there = Client::connect(&two, "u2").await;
    there.subscribe(json!("post:1")).await;

    let mut clients = Vec::new();
    let mut start = Value::Null;
    for _ in 0..1000 {
        let mut client = Client::connect_with(&one, "/ws?format=envelope", &token("u1")).await;
        start = client.subscribe(json!("post:1")).await["data"].clone();
        clients.push(client);
    }
    one.signal("-KILL");

    for n in 1..=10 {
        redis.fcall("post:1", &n.to_string()).unwrap();
    }
    drop(clients);
    let since = json!({"epoch": start["epoch"], "offset": start["offset"]});
    let back = (0..1000).map(|_| async {
        let mut client = Client::connect_with(&two, "/ws?format=envelope", &token("u1")).await;
        client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
        assert_eq!(client.next().await["data"]["recovered"], true);
        for n in 1..=10 {
            assert_eq!(client.next().await["data"], n);
        }
    });
    futures_util::future::join_all(back).await;

    for n in 1..=10 {
        assert_eq!(there.next().await, json!(n));
    }
    there.nothing_came().await;
}

/// W22: the clock jumps by an hour, forwards and back. Timers go on; only tokens depend on
/// the clock.
#[tokio::test]
async fn w22_the_clock_jumps() {
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let found = ["x86_64", "aarch64"]
        .map(|arch| format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketime.so.1"));
    let library = found.iter().find(|path| std::path::Path::new(path).exists());
    let library = library.expect("faketime is needed: `make deps` installs it");
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];

    let limits = "[limits]\nping_interval = \"1s\"\n";
    let gateway = gateway::with_env(&rules(10, limits), &env).await;
    let mut long = Client::connect_with(
        &gateway,
        "/ws?format=envelope",
        &sign(&json!({"sub": "u1", "exp": now() + 86_400}), SECRET),
    )
    .await;
    let mut short = Client::connect(&gateway, "u2").await;

    for jump in ["-1h", "+0", "+2h"] {
        std::fs::write(&clock, jump).unwrap();
        // Both timers and events go on.
        for n in 0..3 {
            gateway.publish_any("user:u1", &json!(n)).await;
            assert_eq!(long.next().await["data"], n, "{jump}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    // By the new clock the token of an hour has ended; the gateway looks at the clock now and then.
    let ended = std::sync::atomic::AtomicBool::new(false);
    let ((code, reason, _), ()) = tokio::join!(
        async {
            let closed = short.closed_within(Duration::from_secs(60)).await;
            ended.store(true, std::sync::atomic::Ordering::Release);
            closed
        },
        async {
            while !ended.load(std::sync::atomic::Ordering::Acquire) {
                long.nothing_came().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    );
    assert_eq!((code, &*reason), (4401, "expired"));
}

/// R5: a master that is made a replica keeps its clients, but publications to it reach no other
/// server. The gateway notices, health says so, and a gap follows.
#[tokio::test]
async fn r5_a_master_that_is_made_a_replica_is_noticed() {
    let (redis, other) = (Redis::start().await, Redis::start().await);
    let gateway = gateway::with(&on(&redis.url())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;

    let follow = |host: &str, port: &str| {
        redis::cmd("REPLICAOF").arg(host).arg(port).exec(&mut redis.connection()).unwrap();
    };
    follow("127.0.0.1", &other.port.to_string());
    eventually("health says so", || async {
        let (status, body) = gateway.get_admin("/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        (status == 200
            && body["degraded"] == true
            && !body["checks"]["broker_publisher"]["ok"].as_bool().unwrap())
        .then_some(())
    })
    .await;

    follow("NO", "ONE");
    loop {
        if client.next().await["data"]["channel"] == "plain:1" {
            break;
        }
    }

    redis.publish("tollgate:plain:1", "1");
    while client.next().await != json!(1) {}
}

/// R3: publishers reach another server than the one that the gateway hears, as when a name is given
/// another address. No connection is broken, and only the canary shows it.
#[tokio::test]
async fn r3_a_deaf_connection_is_found_by_its_canary() {
    let (old, new) = (Redis::start().await, Redis::start().await);
    let proxy = Proxy::start(old.address()).await;
    let gateway = gateway::with(&on(&format!("redis://{}", proxy.address))).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("plain:1")).await;
    assert_eq!(gateway.metric("canary_missed_total").await, 0.0);

    proxy.lead_to(new.address());
    old.kill_clients("normal");
    gateway.metric_reaches("canary_missed_total", 1.0).await;
    loop {
        if client.next().await["data"]["channel"] == "plain:1" {
            break;
        }
    }

    assert_eq!(new.publish("tollgate:plain:1", "1"), 1);
    while client.next().await != json!(1) {}
    assert!(gateway.metric("canary_seconds_count").await >= 1.0);
}

/// R12: a master becomes a replica and a master again. It may have lost positions that it gave out
/// before, so it begins a new epoch.
#[tokio::test]
async fn r12_no_offset_is_given_out_twice_after_a_fail_back() {
    let (a, b) = (Redis::start().await, Redis::start().await);
    let gateway = gateway::with(&on(&a.url())).await;
    gateway.ready().await;
    let follow = |of: &Redis, server: &Redis| {
        let port = of.port.to_string();
        let mut replicaof = redis::cmd("REPLICAOF");
        replicaof.arg("127.0.0.1").arg(port).exec(&mut server.connection()).unwrap();
    };
    let alone = |server: &Redis| {
        redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec(&mut server.connection()).unwrap();
    };
    let publish = |data: &str| a.fcall("post:1", data).unwrap();

    // The replica takes over a replication identity of its own first.
    follow(&a, &b);
    eventually("the replica is there", || {
        let info: String =
            redis::cmd("INFO").arg("replication").query(&mut b.connection()).unwrap();
        std::future::ready(info.contains("master_link_status:up").then_some(()))
    })
    .await;

    let first = publish("1");
    let has = |server: &Redis, offset: u64| {
        let key = "tollgate:post:1:{tollgate:post:1}";
        let known: Option<u64> =
            redis::cmd("HGET").arg(key).arg("o").query(&mut server.connection()).unwrap();
        std::future::ready((known == Some(offset)).then_some(()))
    };
    eventually("the replica has it", || has(&b, 1)).await;

    alone(&b);
    let lost = publish("2");
    assert_eq!(lost, (2, first.1.clone()));
    follow(&b, &a);
    eventually("it has forgotten", || has(&a, 1)).await;
    alone(&a);

    let next = publish("3");
    assert_eq!(next.0, 1);
    assert_ne!(next.1, first.1, "a new epoch");
}
