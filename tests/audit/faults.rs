//! How each fault of the catalogue is brought about.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tollgate_support::eventually_within;
use tollgate_support::gateway::Gateway;
use tollgate_support::process::free_port;
use tollgate_support::proxy::Mode;
use tollgate_support::redis::{Cluster, MASTER, Redis, Sentinels};
use tollgate_support::tokens::{SECRET, now, sign};

use super::backend::Backend;
use super::gateway;
use super::log_faults;
use super::probe::Probe;
use super::publisher::PREFIX;
use super::round::Round;
use super::rows::Fault;
use super::shortage;

const PATIENCE: Duration = Duration::from_secs(15);

/// Brings the fault about, and ends it if it is one that ends.
pub async fn inject(fault: Fault, round: &mut Round) {
    round.begins();

    match fault {
        Fault::None => {}
        Fault::GatewayKill | Fault::GatewayTerm => {
            round.cast.replicas.lock()[0].open = false;
            let signal = if fault == Fault::GatewayKill { "-KILL" } else { "-TERM" };
            round.gateways[0].signal(signal);
        }
        Fault::Clock => {
            for shift in ["+3600s", "-3600s", "+0s"] {
                std::fs::write(round.clock_file.path(), shift).unwrap();
                sleep(Duration::from_secs(1)).await;
            }
        }
        Fault::Overflow => overflow(round).await,
        Fault::Revocations => revocations(round).await,
        Fault::BothKinds => both_kinds(round).await,
        Fault::LogGone | Fault::LogHung | Fault::LogFull => log_faults::inject(fault, round).await,
        Fault::Descriptors => shortage::descriptors(round).await,
        Fault::OneAddress => shortage::one_address(round).await,
        _ => match &mut round.backend {
            Backend::Alone(server) => alone(fault, server).await,
            Backend::Proxied(_, proxy) => match fault {
                Fault::Delay => {
                    proxy.set(Mode::Delay(Duration::from_millis(150)));
                    sleep(Duration::from_secs(3)).await;
                    proxy.set(Mode::Pass);
                }
                Fault::Cut => {
                    for cut in 0..4 {
                        proxy.set(Mode::CutOnce(cut));
                        sleep(Duration::from_millis(700)).await;
                    }
                }
                _ => {
                    proxy.set(Mode::Blackhole);
                    sleep(Duration::from_secs(6)).await;
                    proxy.set(Mode::Pass);
                }
            },
            Backend::Followed(followed) => {
                followed.replica.kill();
                refuses(&followed.master).await;
                followed.replica.restart().await;
                followed.follows().await;
            }
            Backend::Limited(server) => {
                let Fault::Forbidden(take, give) = fault else { return };
                for rules in [take, give] {
                    let words = [&["ACL", "SETUSER", "gateway"], rules].concat();
                    server.command(&words).await;
                    if rules == take {
                        refuses(server).await;
                    }
                }
            }
            Backend::Moving(moving) => {
                moving.goes().await;
                until_all_say(&round.gateways, "the address now leads to another server").await;
            }
            Backend::Watched(watched) => sentinel(fault, watched).await,
            Backend::Cluster(cluster) => in_cluster(fault, cluster).await,
        },
    }
}

async fn alone(fault: Fault, server: &mut Redis) {
    match fault {
        Fault::KillPubsub => drop(server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await),
        Fault::KillNormal => drop(server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await),
        Fault::Flush => drop(server.command(&["FLUSHALL"]).await),
        Fault::OutOfMemory => {
            server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
            refuses(server).await;
            server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        }
        Fault::Poison => poison(server).await,
        Fault::Forge => forge(server).await,
        Fault::Stop => {
            server.signal("-STOP");
            sleep(Duration::from_secs(6)).await;
            server.signal("-CONT");
        }
        _ => {
            server.kill();
            sleep(Duration::from_millis(400)).await;
            server.restart().await;
        }
    }
}

/// Waits 5 seconds in which Redis takes no writes. In the middle all connections are lost: the new
/// ones meet a server that lets no client begin a history or load the functions.
async fn refuses(server: &Redis) {
    sleep(Duration::from_millis(2500)).await;
    for kind in ["pubsub", "normal"] {
        server.command(&["CLIENT", "KILL", "TYPE", kind]).await;
    }
    sleep(Duration::from_millis(2500)).await;
}

/// Writes garbage to the keys of histories, as every publisher may.
async fn poison(server: &Redis) {
    for channel in ["durable:1", "mixed:1"] {
        let meta = meta_key(channel);
        for (field, value) in [("o", "abc"), ("e", "9007199254740990"), ("o", "1"), ("r", "x")] {
            server.command(&["HSET", &meta, field, value]).await;
            sleep(Duration::from_millis(400)).await;
        }
        server.command(&["SET", &meta, "of another type"]).await;
        sleep(Duration::from_millis(400)).await;
    }
}

/// Publishes messages with forged positions: the next one, one ahead, one behind, one of no epoch.
/// Their payloads are not JSON, so that none is taken for an event.
async fn forge(server: &Redis) {
    for n in 0..60_u64 {
        for channel in ["durable:1", "mixed:1"] {
            let meta = meta_key(channel);
            let epoch = server.text(&["HGET", &meta, "e"]).await;
            let top: u64 = server.text(&["HGET", &meta, "o"]).await.trim().parse().unwrap_or(0);
            let offset = [top + 1, top + 1000, top.saturating_sub(2), 999_999_999_999_000 + n]
                [n as usize % 4];
            let epoch = if n % 10 == 9 { "17" } else { epoch.trim() };
            let message = format!("\u{1}{epoch}:{offset}\nforged {n}");
            server.command(&["PUBLISH", &format!("{PREFIX}{channel}"), &message]).await;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn meta_key(channel: &str) -> String {
    format!("{PREFIX}{channel}:{{{PREFIX}{channel}}}")
}

/// Starts one more replica, which has many revocations to read first. No revoked token gets in, not
/// even at the first moment, and the clients of the other replicas notice nothing.
async fn revocations(round: &mut Round) {
    const MANY: usize = 20_000;
    let Backend::Alone(server) = &round.backend else { return };
    let until = now() + 3600;
    for chunk in (0..MANY).collect::<Vec<_>>().chunks(1000) {
        let score = until.to_string();
        let entry = |n| json!({"kind": "token", "jti": format!("t{n}"), "until": until});
        let entries: Vec<String> = chunk.iter().map(|n| entry(*n).to_string()).collect();
        let pairs = entries.iter().flat_map(|entry| [score.as_str(), entry]);
        let words: Vec<&str> =
            ["ZADD", "gateway:tollgate:revoked"].into_iter().chain(pairs).collect();
        server.command(&words).await;
    }

    let address = format!("127.0.0.1:{}", free_port());
    let listen = [("TOLLGATE_SERVER__LISTEN".to_owned(), address.clone())];
    let start = gateway::start(gateway::today(&round.backend.url()).environment(listen));

    let knock = async {
        let mut refused = 0;
        for n in (0..MANY).cycle().step_by(997) {
            let token = sign(&json!({"sub": "u1", "jti": format!("t{n}"), "exp": until}), SECRET);
            match Probe::open(&address, &token).await {
                Ok(_) => panic!("a revoked token was let in"),
                Err((4401, _)) => refused += 1,
                // The gateway does not listen yet, or does not accept any token yet.
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
            if refused == 40 {
                return;
            }
        }
    };

    let (gateway, ()) = tokio::join!(start, knock);
    round.gateways.push(gateway);
}

/// Kills connections until plain events of every channel that the row names were missed.
async fn both_kinds(round: &mut Round) {
    let least = if round.pace.full { 15 } else { 5 };
    for times in 1..=5 * least {
        let Backend::Alone(server) = &round.backend else { return };
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        sleep(Duration::from_millis(fastrand::u64(200..400))).await;
        if times >= least && round.has_declared_all() {
            round.notes.push(format!("killed {times} times"));
            return;
        }
    }
}

async fn until_all_say(gateways: &[Gateway], text: &str) {
    eventually_within(2 * PATIENCE, &format!("every gateway says that {text}"), || {
        let all = gateways.iter().all(|gateway| gateway.has_logged(text));
        std::future::ready(all.then_some(()))
    })
    .await;
}

async fn overflow(round: &Round) {
    let Backend::Alone(server) = &round.backend else { return };
    let limit = ["CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 32kb 1"];
    server.command(&limit).await;
    for _ in 0..2 {
        round.dial.pad.store(16_000, Ordering::Relaxed);
        round.dial.batch.store(12, Ordering::Relaxed);
        sleep(Duration::from_millis(120)).await;
        round.dial.pad.store(120, Ordering::Relaxed);
        round.dial.batch.store(1, Ordering::Relaxed);
        sleep(Duration::from_millis(800)).await;
    }
}

async fn sentinel(fault: Fault, watched: &mut Sentinels) {
    if fault == Fault::SentinelKill {
        watched.master.kill();
        sleep(Duration::from_secs(6)).await;
        // The old master comes back as a master, until a Sentinel sees it.
        watched.master.restart().await;
        sleep(Duration::from_secs(2)).await;
        return;
    }
    watched.sentinels[0].command(&["SENTINEL", "FAILOVER", MASTER]).await;
    // The old master remains a master for about 11 seconds.
    sleep(Duration::from_secs(13)).await;
}

async fn in_cluster(fault: Fault, cluster: &mut Cluster) {
    let owner = cluster.owner(&format!("{PREFIX}durable:1")).await;

    match fault {
        Fault::ClusterKill => {
            cluster.nodes[owner].kill();
            sleep(Duration::from_secs(7)).await;
        }
        Fault::ClusterFailover => {
            let port = format!("master_port:{}\r", cluster.nodes[owner].port);
            for server in &cluster.nodes {
                if server.text(&["INFO", "replication"]).await.contains(&port) {
                    server.command(&["CLUSTER", "FAILOVER"]).await;
                    sleep(Duration::from_secs(3)).await;
                    return;
                }
            }
            panic!("the master has no replica");
        }
        _ => {
            for channel in ["durable:1", "plain:1", "mixed:1"] {
                migrate(cluster, &format!("{PREFIX}{channel}")).await;
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// Moves a key's slot to another master while it is published to.
async fn migrate(cluster: &Cluster, key: &str) {
    let from = cluster.owner(key).await;
    let mut to = from;
    while to == from {
        to = cluster.owner(&fastrand::u32(..).to_string()).await;
    }
    cluster.move_slot(key, to).await;
}
