//! The gateway and its Redis: two replicas, and what happens when Redis dies, hangs or misbehaves.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;

use super::gateway;

#[tokio::test]
async fn two_replicas_deliver_once_to_every_socket_of_exactly_that_user() {
    let redis = Redis::start().await;
    let replicas = [gateway::on_redis(&redis).await, gateway::on_redis(&redis).await];
    let (mut mine, mut others) = (Vec::new(), Vec::new());
    for gateway in &replicas {
        for _ in 0..3 {
            mine.push(Client::connect(gateway, "u1").await);
        }
        others.push(Client::connect(gateway, "u12").await);
    }
    let event = r#"{"type":"post_purchased","postId":"p1"}"#;
    assert_eq!(redis.publish("tollgate:user:u1", event), 2, "one subscription per replica");
    for client in &mut mine {
        assert_eq!(client.next_text().await, event);
    }
    for client in mine.iter_mut().chain(&mut others) {
        client.nothing_came().await;
    }
}

#[tokio::test]
async fn the_prefix_of_an_existing_backend_works() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&(redis.config() + "prefix = \"ws:\"\n")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!({"type": "post", "postId": "42"})).await;
    redis.publish("ws:post:42", r#"{"likes":1}"#);
    assert_eq!(client.next().await, json!({"likes": 1}));
    // The gateway's own publications go the same way.
    gateway.publish("post:42", &json!({"likes": 2})).await;
    assert_eq!(client.next().await, json!({"likes": 2}));
}

/// Reads until every one of `channels` was declared as a gap, and returns how often each was.
async fn gaps(client: &mut Client, channels: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    while channels.iter().any(|c| !seen.contains(c)) {
        let message = client.next().await;
        if message["type"] == "gap" {
            assert_eq!(message["data"]["reason"], "broker_reconnected");
            seen.push(message["data"]["channel"].as_str().unwrap().to_owned());
        }
    }
    seen
}

/// A second `subscribe` for the same channel in one read was answered before Redis had confirmed
/// the first.
#[tokio::test]
async fn subscribed_twice_in_one_read_is_not_confirmed_early() {
    let redis = Redis::start().await;
    let gateway = gateway::on_redis(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.signal("-STOP");
    let subscribe = |id: u32| json!({"type": "subscribe", "id": id, "channel": "post:1"});
    client.send_together(&[subscribe(1), subscribe(2)]).await;
    for id in [1, 2] {
        let answer = client.next().await;
        assert_eq!(answer["id"], id, "{answer}");
        assert_eq!(answer["data"]["code"], "unavailable", "{answer}");
    }
    redis.signal("-CONT");
}

/// R1: Redis is killed under load and comes back: no socket closes, a gap on every subscribed
/// channel, once, and events flow again.
#[tokio::test]
async fn r1_redis_killed_and_restarted() {
    let mut redis = Redis::start().await;
    let gateway = gateway::on_redis(&redis).await;
    let channels: Vec<String> = (0..5).map(|i| format!("post:{i}")).collect();

    let mut clients = Vec::new();
    for i in 0..20 {
        let mut client = Client::connect(&gateway, &format!("u{i}")).await;
        for channel in &channels {
            client.subscribe(json!(channel)).await;
        }
        clients.push((client, format!("user:u{i}")));
    }

    redis.publish("tollgate:post:0", "0");
    for (client, _) in &mut clients {
        assert_eq!(client.next().await, json!(0));
    }

    redis.kill();
    eventually("the loss is seen", || async {
        (gateway.metric("redis_connected{role=\"subscriber\"}").await == 0.0).then_some(())
    })
    .await;
    let (status, body) = gateway.get_admin("/readyz").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["degraded"]), (200, &json!(true)), "an outage keeps it ready");
    redis.restart().await;

    for (client, own) in &mut clients {
        let mut all = channels.clone();
        all.push(own.clone());
        let seen = gaps(client, &all).await;
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!(seen.len(), unique.len(), "once per channel");
    }

    redis.publish("tollgate:post:1", "1");
    for (client, _) in &mut clients {
        assert_eq!(client.next().await, json!(1));
    }
    assert_eq!(gateway.metric("connections{").await, 20.0, "no socket was closed");
    assert_eq!(gateway.metric("gaps_declared_total{reason=\"broker_reconnected\"}").await, 25.0);
}

/// R2: a gateway that starts without Redis is not ready, keeps trying, and tells clients to
/// come back.
#[tokio::test]
async fn r2_redis_absent_at_start() {
    let mut redis = Redis::start().await;
    redis.kill();
    let gateway = gateway::with(&(redis.config() + "command_timeout = \"300ms\"\n")).await;
    let (status, body) = gateway.get_admin("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("\"broker_started\":{\"ok\":false}"), "{body}");
    assert_eq!(gateway.get_admin("/livez").await.0, 200);

    let bearer = format!("Bearer {}", token("u1"));
    let headers = [("authorization", bearer.as_str())];
    let mut early = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
    assert_eq!(early.closed().await.0, 1013);
    let answer = gateway.api("publish", &json!({"channel": "user:u1", "data": 1})).await;
    assert_eq!(answer["error"]["code"], 100);

    redis.restart().await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));
}

/// R3: a Redis that hangs keeps its connections open; the ping deadline finds it.
#[tokio::test]
async fn r3_redis_stopped() {
    let redis = Redis::start().await;
    let timing = "ping_interval = \"100ms\"\nping_timeout = \"1s\"\nconnect_timeout = \"1s\"\n";
    let gateway = gateway::with(&(redis.config() + timing)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.signal("-STOP");
    eventually("the silence is noticed", || async {
        (gateway.metric("redis_connected").await == 0.0).then_some(())
    })
    .await;
    redis.signal("-CONT");
    assert_eq!(gaps(&mut client, &["user:u1".to_owned()]).await.len(), 1);
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1), "once, although the old connection also woke up");
    client.nothing_came().await;
}

/// A subscription that is asked for while Redis is away is refused after the deadline, and succeeds
/// once Redis is back.
#[tokio::test]
async fn a_subscription_during_an_outage_is_answered() {
    let mut redis = Redis::start().await;
    let gateway = gateway::with(&(redis.config() + "command_timeout = \"300ms\"\n")).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.kill();
    eventually("the loss is seen", || async {
        (gateway.metric("redis_connected").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(client.subscribe(json!("post:1")).await["data"]["code"], "unavailable");

    // A channel that another socket had before the outage is not live either.
    let bearer = format!("Bearer {}", token("u1"));
    let headers = [("authorization", bearer.as_str())];
    let mut second = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
    assert_eq!(second.closed().await.0, 1013);

    redis.restart().await;
    gaps(&mut client, &["user:u1".to_owned()]).await;
    assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");
    redis.publish("tollgate:post:1", "1");
    assert_eq!(client.next().await, json!(1));
}

/// R8: a Redis user that may not subscribe is reported, and the client told.
#[tokio::test]
async fn r8_redis_refuses_the_subscription() {
    let user =
        "user narrow on >pw +@all ~* resetchannels &gateway:* &tollgate:user:* &tollgate:post:1";
    let redis = Redis::with(&[user]).await;
    let url = format!("redis://narrow:pw@127.0.0.1:{}", redis.port);
    let config = format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n");
    let mut gateway = gateway::with(&config).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;

    // A refused channel does not take along the ones beside it.
    for channel in ["post:2", "post:1", "post:3"] {
        client.send(json!({"type": "subscribe", "channel": channel})).await;
    }
    for kind in ["error", "subscribed", "error"] {
        let answer = client.next().await;
        assert_eq!(answer["type"], kind, "{answer}");
    }

    redis.publish("tollgate:post:1", "1");
    assert_eq!(client.next().await, json!(1));
    gateway.logged("NOPERM").await;
    assert!(!gateway.log().contains("narrow:pw"), "no password in the log");
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));
}

/// R8: one channel that Redis refuses after it was live is declared, and the others go on. It used
/// to make the replica deaf, reconnecting in a hot loop.
#[tokio::test]
async fn r8_a_live_channel_that_is_refused_does_not_deafen_the_others() {
    let user = "user narrow on >pw +@all ~* resetchannels &gateway:* &tollgate:*";
    let redis = Redis::with(&[user]).await;
    let url = format!("redis://narrow:pw@127.0.0.1:{}", redis.port);
    let config = format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n");
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:9")).await;
    let acl = |rule: &str| {
        let rule: Vec<_> = rule.split(' ').collect();
        redis::cmd("ACL").arg("SETUSER").arg("narrow").arg(rule).exec(&mut redis.connection())
    };

    // Redis cuts off a subscriber that has lost a channel.
    acl("resetchannels &gateway:* &tollgate:user:*").unwrap();
    let mut reasons = BTreeSet::new();
    while reasons.len() < 2 {
        let gap = client.next().await;
        reasons.insert((gap["data"]["channel"].to_string(), gap["data"]["reason"].to_string()));
    }
    let expected =
        [("\"post:9\"", "\"broker_refused\""), ("\"user:u1\"", "\"broker_reconnected\"")];
    assert!(reasons.iter().map(|(c, r)| (c.as_str(), r.as_str())).eq(expected), "{reasons:?}");
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));
    assert!(gateway.metric("redis_reconnects_total").await < 5.0, "no hot loop");

    // A channel that is allowed again comes back by itself, and a gap declares what was missed.
    acl("&tollgate:*").unwrap();
    assert_eq!(gaps(&mut client, &["post:9".to_owned()]).await.len(), 1);
    redis.publish("tollgate:post:9", "2");
    assert_eq!(client.next().await, json!(2));
}

/// A channel is given up and wanted again at once: no event is missing after `subscribed`. Events
/// of the earlier subscription used to come in front of a missing range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_older_than_a_subscription_follows_its_confirmation() {
    let redis = Redis::start().await;
    let config = redis.config().replace("kind = \"redis\"", "kind = \"redis\"\nlinger = \"0s\"");
    let limits = "[limits]\ncommands_per_second = 100000\ncommand_burst = 100000\n";
    let gateway = gateway::with(&(config + limits)).await;
    gateway.ready().await;

    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let publisher = std::thread::spawn({
        let (stop, mut connection) = (std::sync::Arc::clone(&stop), redis.connection());
        move || {
            for n in 0i64.. {
                let reached: i64 = redis::cmd("PUBLISH")
                    .arg("tollgate:post:0")
                    .arg(n)
                    .query(&mut connection)
                    .unwrap();
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                if reached == 0 {
                    std::thread::yield_now();
                }
            }
        }
    });

    let mut client = Client::connect(&gateway, "u1").await;
    let command = |kind: &str| json!({"type": kind, "channel": "post:0"});
    client.send(command("subscribe")).await;

    for _ in 0..300 {
        while client.next().await["type"] != "subscribed" {}
        let first = client.next().await.as_i64().expect("an event");
        for n in 1..5 {
            assert_eq!(client.next().await, json!(first + n), "a hole after `subscribed`");
        }
        client.send_together(&[command("unsubscribe"), command("subscribe")]).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    publisher.join().unwrap();
}

/// R11: a publication that cannot be delivered is declared, and the pump goes on.
#[tokio::test]
async fn r11_publications_that_are_not_deliverable_are_declared() {
    let redis = Redis::start().await;
    let limits = "[limits]\npublication_bytes = 1000\n";
    let gateway = gateway::with(&(redis.config() + limits)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let mut connection = redis.connection();
    let big = format!("\"{}\"", "x".repeat(1000));
    for (payload, reason) in [
        (&b"{not json"[..], "invalid_payload"),
        (b"", "invalid_payload"),
        (b"\"\xff\"", "invalid_payload"),
        (b"1 2", "invalid_payload"),
        (big.as_bytes(), "payload_too_large"),
    ] {
        redis::cmd("PUBLISH").arg("tollgate:user:u1").arg(payload).exec(&mut connection).unwrap();
        let gap = client.next().await;
        assert_eq!(gap, json!({"type":"gap","data":{"channel":"user:u1","reason":reason}}));
    }
    redis.publish("tollgate:user:u1", "true");
    assert_eq!(client.next().await, json!(true));

    // Whatever is written to the control channel, the replica goes on.
    redis.publish("gateway:tollgate:control", "garbage");
    redis.publish("gateway:tollgate:control", r#"{"type":"from_the_future"}"#);
    client.nothing_came().await;
}

/// The last subscriber's channel lingers and is then given up in Redis.
#[tokio::test]
async fn interest_ends_after_the_linger() {
    let redis = Redis::start().await;
    let gateway = gateway::with(
        &redis.config().replace("kind = \"redis\"", "kind = \"redis\"\nlinger = \"100ms\""),
    )
    .await;
    gateway.ready().await;
    let subscribers = || -> i64 {
        let answer: (String, i64) = redis::cmd("PUBSUB")
            .arg("NUMSUB")
            .arg("tollgate:user:u1")
            .query(&mut redis.connection())
            .unwrap();
        answer.1
    };

    let first = Client::connect(&gateway, "u1").await;
    let second = Client::connect(&gateway, "u1").await;
    assert_eq!(subscribers(), 1);
    drop((first, second));
    eventually("the subscription ends", || std::future::ready((subscribers() == 0).then_some(())))
        .await;
}

/// Many channels are subscribed again in batches after a loss.
#[tokio::test]
async fn thousands_of_channels_come_back() {
    let mut redis = Redis::start().await;
    let limits = "[limits]\nchannels_per_connection = 3000\ncommand_burst = 10000\n";
    let gateway = gateway::with(&(redis.config() + limits)).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    for i in 0..2500 {
        client.send(json!({"type": "subscribe", "channel": format!("post:{i}")})).await;
    }
    for i in 0..2500 {
        assert_eq!(client.next().await["data"]["channelKey"], format!("post:{i}"), "in order");
    }

    redis.kill();
    redis.restart().await;
    let all: Vec<String> = (0..2500).map(|i| format!("post:{i}")).collect();
    gaps(&mut client, &all).await;

    redis.publish("tollgate:post:2499", "1");
    loop {
        let message = client.next().await;
        if message["type"] != "gap" {
            assert_eq!(message, json!(1));
            break;
        }
    }
}

/// Creates the Redis user of that name with the rules of docs/redis.md.
pub fn documented_user(redis: &Redis, name: &str) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/redis.md")).unwrap();
    let command = format!("`ACL SETUSER {name} ");
    let line = text.split(&command).nth(1).unwrap().split('`').next().unwrap();
    let mut setuser = redis::cmd("ACL");
    setuser.arg("SETUSER").arg(name);
    for rule in line.replace(">PASSWORD", ">pw").split_whitespace() {
        setuser.arg(rule);
    }
    setuser.exec(&mut redis.connection()).unwrap();
}

/// The minimal ACLs of docs/redis.md are enough, and Redis takes them.
#[tokio::test]
async fn the_documented_acl_is_enough() {
    let redis = Redis::start().await;
    documented_user(&redis, "gateway");
    documented_user(&redis, "publisher");
    let url = format!("redis://gateway:pw@127.0.0.1:{}", redis.port);
    let drift = "[drift]\nissuers = [\"web\"]\ninterval = \"100ms\"\n";
    let rule = "[[channels]]\npattern = \"user:{user}\"\nallow = \"owner\"\n\
                auto_subscribe = true\nhistory = { size = 10, ttl = \"1m\" }\n";
    let config = format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"{url}\"\n{drift}{rule}");
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    let client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    let start = client.connected["data"]["positions"]["user:u1"].clone();
    assert_eq!(start["offset"], 0);
    drop(client);

    let publisher = format!("redis://publisher:pw@127.0.0.1:{}", redis.port);
    let mut publisher = redis::Client::open(publisher).unwrap().get_connection().unwrap();
    let mut publish = redis::cmd("FCALL");
    publish.arg("tollgate_publish").arg(1).arg("tollgate:user:u1").arg("1");
    let (offset, epoch, heard): (u64, String, i64) = publish.query(&mut publisher).unwrap();
    assert_eq!((offset, start["epoch"].as_str()), (1, Some(epoch.as_str())));
    assert_eq!(heard, 1, "the gateway keeps the channel for a while");
    let answer = gateway.api("publish", &json!({"channel": "user:u1", "data": 2})).await;
    assert_eq!(answer["result"], json!({"offset": 2, "epoch": epoch, "heard": 1}));

    let path = format!("/ws?format=envelope&since=user%253Au1%3D{epoch}-0");
    let mut client = Client::connect_with(&gateway, &path, &token("u1")).await;
    let positions = &client.connected["data"]["positions"]["user:u1"];
    assert_eq!(positions["recovered"], true, "{positions}");
    for n in 1..=2 {
        assert_eq!(client.next().await["data"], json!(n));
    }

    redis::cmd("SET")
        .arg("gateway:tollgate:issuer:web")
        .arg("other")
        .exec(&mut redis.connection())
        .unwrap();
    eventually("the issuer is read", || async {
        gateway
            .get_admin("/metrics")
            .await
            .1
            .contains("issuer_key_match{issuer=\"web\"} 0")
            .then_some(())
    })
    .await;

    assert_eq!(gateway.api("revoke_token", &json!({"jti": "x"})).await, json!({"result": {}}));
    gateway.metric_reaches("revocations", 1.0).await;
    assert!(!gateway.log().contains("NOPERM"), "{}", gateway.log());
}
