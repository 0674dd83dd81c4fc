//! Faults under load: what a client sees is whole, in order, or declared.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::redis::Redis;

use super::gateway;
use super::history::rules;

/// What one client saw of a channel that carries 1, 2, 3 ...
struct Ledger {
    last: i64,
    /// Whether a gap was declared since `last`.
    declared: bool,
    gaps: usize,
}

impl Ledger {
    /// Reads until a number above `goal`.
    async fn follow(mut self, client: &mut Client, goal: impl Fn() -> i64) -> Self {
        loop {
            let message = client.next().await;
            if message["type"] == "gap" {
                if message["data"]["channel"] == "post:0" {
                    self.declared = true;
                    self.gaps += 1;
                }
                continue;
            }

            let n = message.as_i64().expect("a number");
            assert!(n > self.last, "{n} after {}: doubled or out of order", self.last);
            assert!(
                n == self.last + 1 || self.declared,
                "{n} after {}: lost in silence",
                self.last
            );

            (self.last, self.declared) = (n, false);
            if n > goal() {
                return self;
            }
        }
    }
}

/// R1 under load: Redis is killed and comes back while a publisher goes on. Every missing range
/// that a client sees was declared before it, nothing comes twice, and no socket closes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_under_load_every_hole_is_declared() {
    let mut redis = Redis::start().await;
    let gateway = gateway::on_redis(&redis).await;

    let mut clients = Vec::new();
    for i in 0..50 {
        let mut client = Client::connect(&gateway, &format!("u{i}")).await;
        client.subscribe(json!("post:0")).await;
        clients.push(client);
    }

    let stop = Arc::new(AtomicBool::new(false));
    let publisher = std::thread::spawn({
        let (stop, url) = (Arc::clone(&stop), redis.url());
        move || {
            let mut n = 0i64;
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut connection) = redis::Client::open(url.as_str())
                    .and_then(|c| c.get_connection_with_timeout(Duration::from_secs(1)))
                else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                loop {
                    n += 1;
                    let published: redis::RedisResult<i64> =
                        redis::cmd("PUBLISH").arg("tollgate:post:0").arg(n).query(&mut connection);
                    if published.is_err() || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    });

    let recovered_from = Arc::new(std::sync::atomic::AtomicI64::new(i64::MAX));
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let goal = Arc::clone(&recovered_from);
            tokio::spawn(async move {
                let ledger = Ledger { last: 0, declared: true, gaps: 0 };
                let ledger = ledger.follow(&mut client, || goal.load(Ordering::Relaxed)).await;
                (client, ledger)
            })
        })
        .collect();

    for round in 0..3 {
        gateway.metric_reaches("deliveries_total", 50.0 * 100.0 * f64::from(round + 1)).await;
        redis.kill();
        eventually("the loss is seen", || async {
            (gateway.metric("redis_connected").await == 0.0).then_some(())
        })
        .await;

        let before = gateway.metric("deliveries_total").await;
        let began = Instant::now();
        redis.restart().await;
        gateway.metric_reaches("deliveries_total", before + 500.0).await;
        eprintln!("round {round}: events flow {:?} after Redis came back", began.elapsed());
    }
    recovered_from.store(0, Ordering::Relaxed);

    let mut kept = Vec::new();
    for reader in readers {
        let (client, ledger) = reader.await.unwrap();
        assert_eq!(ledger.gaps, 3, "one gap per loss");
        kept.push(client);
    }
    stop.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    assert_eq!(gateway.metric("connections{").await, 50.0, "no socket was closed");
}

/// W21: a thousand sockets follow the hint to another replica without an error, spread over
/// the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w21_a_thousand_sockets_move_without_an_error() {
    let redis = Redis::start().await;
    let drain = "[drain]\nsettle = \"500ms\"\nwindow = \"4s\"\n";
    let mut leaving = gateway::with(&(redis.config() + drain)).await;
    let staying = Arc::new(gateway::on_redis(&redis).await);
    leaving.ready().await;

    let mut clients = Vec::new();
    for i in 0..1000 {
        clients.push(Client::connect(&leaving, &format!("u{i}")).await);
    }

    let mut movers = Vec::new();
    for (i, mut client) in clients.into_iter().enumerate() {
        let staying = Arc::clone(&staying);
        movers.push(tokio::spawn(async move {
            let hint = client.next().await;
            assert_eq!(hint["type"], "reconnect", "{hint}");
            let (code, _, _) = client.closed().await;
            assert_eq!(code, 1012);
            let at = Instant::now();
            tokio::time::sleep(Duration::from_millis(hint["data"]["afterMs"].as_u64().unwrap()))
                .await;
            (Client::connect(&staying, &format!("u{i}")).await, at)
        }));
    }
    let began = Instant::now();
    leaving.signal("-TERM");

    let mut moved = Vec::new();
    for mover in movers {
        moved.push(mover.await.unwrap());
    }
    assert!(leaving.exited().await.success());
    eprintln!("1,000 sockets moved and the process exited in {:?}", began.elapsed());

    let (first, last) = (moved.iter().map(|m| m.1).min(), moved.iter().map(|m| m.1).max());
    let spread = last.unwrap() - first.unwrap();
    assert!(spread > Duration::from_secs(2), "closes come spread, not as a cliff: {spread:?}");
    assert_eq!(staying.metric("connections{").await, 1000.0);
    redis.publish("tollgate:user:u999", "1");
    assert_eq!(moved[999].0.next().await, json!(1));
}

/// Measures how long 100,000 channels take to be live again after a restart of Redis:
/// `TOLLGATE_BIN=target/release/tollgate cargo test --test it measured -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of a release build"]
async fn a_hundred_thousand_channels_come_back_measured() {
    for pattern in ["plain", "post"] {
        let mut redis = Redis::start().await;
        let limits = "[limits]\nconnections_per_user = 2000\ncommand_burst = 1000\n\
                      ping_interval = \"1h\"\n[log]\nlevel = \"warn,tollgate::cli=info\"\n";
        let config = format!("{limits}{}", rules(100, &redis.config()));
        let gateway = gateway::with(&config).await;
        gateway.ready().await;

        let mut clients = Vec::new();
        for n in 0..800 {
            let mut client = Client::connect(&gateway, "u1").await;
            let subscribe: Vec<_> = (0..125)
                .map(|m| json!({"type": "subscribe", "channel": format!("{pattern}:{n}-{m}")}))
                .collect();
            client.send_together(&subscribe).await;
            for _ in 0..125 {
                assert_eq!(client.next().await["type"], "subscribed");
            }
            clients.push(client);
        }

        let channels = gateway.metric("channels").await;
        let before = gateway.metric("gaps_declared_total").await;
        redis.kill();
        redis.restart().await;
        let began = Instant::now();
        gateway.metric_reaches("redis_connected{role=\"subscriber\"}", 1.0).await;
        let connected = began.elapsed();
        gateway.metric_reaches("gaps_declared_total", before + channels).await;
        let all = began.elapsed();
        println!(
            "{pattern}: {channels} channels; connected {connected:.2?}, all live and declared {all:.2?}"
        );
    }
}
