//! Histories and resuming, over both brokers: a client receives all that it missed, once, or is
//! told that it cannot.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;

use super::gateway;

/// Rules with a history, for a broker of that kind.
pub fn rules(size: u32, broker: &str) -> String {
    format!(
        "{broker}\n[[channels]]\npattern = \"user:{{user}}\"\nallow = \"owner\"\n\
         auto_subscribe = true\nhistory = {{ size = {size}, ttl = \"1m\", plain = false }}\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"authenticated\"\n\
         history = {{ size = {size}, ttl = \"1m\", plain = false }}\n\
         [[channels]]\npattern = \"plain:{{id}}\"\nallow = \"authenticated\"\n"
    )
}

async fn envelope(gateway: &Gateway, user: &str) -> Client {
    Client::connect_with(gateway, "/ws?format=envelope", &token(user)).await
}

async fn publish(gateway: &Gateway, channel: &str, data: Value) -> Value {
    gateway.api("publish", &json!({"channel": channel, "data": data})).await["result"].clone()
}

async fn subscribe(client: &mut Client, channel: &str, since: &Value) -> Value {
    let ask = json!({"type": "subscribe", "channel": channel, "since": since});
    client.send(ask).await;
    let answer = client.next().await;
    assert_eq!(answer["type"], "subscribed", "{answer}");
    answer["data"].clone()
}

async fn resumes(gateway: &Gateway) {
    let mut client = envelope(gateway, "u1").await;
    let start = subscribe(&mut client, "post:1", &Value::Null).await;
    assert_eq!((&start["offset"], start.get("recovered")), (&json!(0), None));
    let epoch = start["epoch"].clone();
    let at = |offset: u64| json!({"epoch": epoch, "offset": offset});

    let published = publish(gateway, "post:1", json!("a")).await;
    assert_eq!(published, json!({"epoch": epoch, "offset": 1, "heard": 1}));
    let event = client.next().await;
    assert_eq!(
        event,
        json!({"type":"event","channel":"post:1","offset":1,"epoch":epoch,"data":"a"})
    );

    drop(client);
    for n in 2..=6 {
        publish(gateway, "post:1", json!(n)).await;
    }

    // A client receives all that it missed, in order, then what follows. Having missed nothing is
    // complete too.
    for (since, expected) in [(1, 2..7), (4, 5..7), (6, 7..7)] {
        let mut client = envelope(gateway, "u1").await;
        let start = subscribe(&mut client, "post:1", &at(since)).await;
        assert_eq!(start["recovered"], true, "{start}");
        assert_eq!(start["offset"], since);
        for n in expected {
            let event = client.next().await;
            assert_eq!((&event["offset"], &event["data"]), (&json!(n), &json!(n)));
        }
        client.nothing_came().await;
    }

    // A position that is trimmed, of another epoch or ahead of everything is not recovered, and
    // nothing is sent.
    let mut client = envelope(gateway, "u1").await;
    for since in [at(0), json!({"epoch": "1", "offset": 5}), at(1_000_000)] {
        let start = subscribe(&mut client, "post:1", &since).await;
        assert_eq!((&start["recovered"], &start["offset"]), (&json!(false), &json!(6)), "{since}");
        client.nothing_came().await;
        client.send(json!({"type": "unsubscribe", "channel": "post:1"})).await;
        assert_eq!(client.next().await["type"], "unsubscribed");
    }

    // A second subscriber of a followed channel needs no read from the broker, and misses nothing.
    subscribe(&mut client, "post:1", &at(5)).await;
    assert_eq!(client.next().await["offset"], 6);
    publish(gateway, "post:1", json!("live")).await;
    assert_eq!(client.next().await["offset"], 7);
}

#[tokio::test]
async fn a_client_resumes_with_the_memory_broker() {
    resumes(&gateway::with(&rules(5, "")).await).await;
}

#[tokio::test]
async fn a_client_resumes_with_redis() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(5, &redis.config())).await;
    gateway.ready().await;
    resumes(&gateway).await;
}

/// The automatic channels resume by the URL; a bad one is refused.
#[tokio::test]
async fn automatic_channels_resume_by_the_url() {
    let gateway = gateway::with(&rules(5, "")).await;
    let client = envelope(&gateway, "u1").await;
    let epoch = client.connected["data"]["positions"]["user:u1"]["epoch"].as_str().unwrap();
    for n in 1..=3 {
        publish(&gateway, "user:u1", json!(n)).await;
    }

    let path = format!("/ws?format=envelope&since=user%253Au1%3D{epoch}-1");
    let mut resumed = Client::connect_with(&gateway, &path, &token("u1")).await;
    let position = &resumed.connected["data"]["positions"]["user:u1"];
    assert_eq!(position, &json!({"offset": 1, "epoch": epoch, "recovered": true}));
    assert_eq!(resumed.next().await["data"], 2);
    assert_eq!(resumed.next().await["data"], 3);

    // The client is subscribed already: `since` comes too late.
    let ask =
        json!({"type": "subscribe", "channel": "user:u1", "since": {"epoch": epoch, "offset": 1}});
    resumed.send(ask).await;
    assert_eq!(resumed.next().await["data"]["code"], "bad_request");

    for path in ["/ws?format=envelope&since=x", "/ws?since=a%3D1-1"] {
        let headers = [("authorization", &*format!("Bearer {}", token("u1")))];
        let error = Client::open(&gateway.public, path, &headers).await.err().unwrap().to_string();
        assert!(error.contains("400"), "{path}: {error}");
    }

    // Without the envelope a client knows no position, and may not name one.
    let mut plain = Client::connect(&gateway, "u1").await;
    assert_eq!(plain.connected["data"].get("positions"), None);
    plain
        .send(json!({"type": "subscribe", "channel": "post:1", "since": {"epoch": epoch, "offset": 1}}))
        .await;
    assert_eq!(plain.next().await["data"]["code"], "bad_request");
}

/// A thousand sockets that resume one channel read its history once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_sockets_resume_with_one_reading() {
    let redis = Redis::start().await;
    let limits = "[limits]\nconnections_per_user = 2000\n";
    let gateway = gateway::with(&format!("{limits}{}", rules(100, &redis.config()))).await;
    gateway.ready().await;

    for n in 1..=20 {
        publish(&gateway, "post:1", json!(n)).await;
    }
    let mut first = envelope(&gateway, "u1").await;
    let epoch = subscribe(&mut first, "post:1", &Value::Null).await["epoch"].clone();

    let mut clients = Vec::new();
    for _ in 0..1000 {
        clients.push(envelope(&gateway, "u1").await);
    }
    let reads = || {
        let info: String =
            redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
        let line = info.lines().find(|l| l.starts_with("cmdstat_xrevrange:")).unwrap_or_default();
        let calls = line.split("calls=").nth(1).and_then(|l| l.split(',').next());
        calls.map_or(0, |n| n.parse::<u32>().unwrap())
    };
    let before = reads();

    for (n, client) in clients.iter_mut().enumerate() {
        let since = json!({"epoch": epoch, "offset": n % 19});
        client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
    }

    for (n, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.next().await["data"]["recovered"], true);
        for offset in n as u64 % 19 + 1..=20 {
            assert_eq!(client.next().await["offset"], offset);
        }
    }

    // One reading takes two ranges: the last publication alone says how large they are.
    assert_eq!(reads() - before, 2);
}

/// Plain and durable publications on one channel both come. After a loss the durable ones are
/// filled in, and a gap declares that plain ones may be missing.
#[tokio::test]
async fn a_lost_connection_is_filled_from_the_history() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(100, &redis.config())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;

    for channel in ["post:1", "post:2", "plain:3"] {
        client.subscribe(json!(channel)).await;
    }
    let mut connection = redis.connection();
    let mut durable = |channel: &str, data: &str| {
        let key = format!("tollgate:{channel}");
        let mut publish = redis::cmd("FCALL");
        publish.arg("tollgate_publish").arg(1).arg(key).arg(data).exec(&mut connection).unwrap();
    };

    durable("post:1", "1");
    durable("post:2", "2");
    redis.publish("tollgate:post:2", "\"plain\"");
    redis.publish("tollgate:plain:3", "3");
    for expected in [json!(1), json!(2), json!("plain"), json!(3)] {
        assert_eq!(client.next().await, expected);
    }

    // Durable publications carry their time, as do those by the server API.
    gateway.metric_reaches("delivery_seconds_count", 2.0).await;
    gateway.publish("plain:3", &json!(4)).await;
    assert_eq!(client.next().await, json!(4));
    gateway.metric_reaches("delivery_seconds_count", 3.0).await;

    for round in 0..3 {
        // These are published while no gateway listens.
        let mut kill = redis::pipe();
        kill.cmd("MULTI").ignore();
        kill.cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").ignore();
        let n = 10 * (round + 1);
        for offset in 0..3 {
            for channel in ["tollgate:post:1", "tollgate:post:2"] {
                kill.cmd("FCALL")
                    .arg("tollgate_publish")
                    .arg(1)
                    .arg(channel)
                    .arg(n + offset)
                    .ignore();
            }
        }
        kill.cmd("EXEC").ignore();
        kill.exec(&mut redis.connection()).unwrap();

        let mut came: Vec<String> = Vec::new();
        while came.len() < 8 {
            let message = client.next().await;
            came.push(match message["type"].as_str() {
                Some("gap") => format!("gap {}", message["data"]["channel"].as_str().unwrap()),
                _ => message.to_string(),
            });
        }

        client.nothing_came().await;
        came.sort();
        let mut expected: Vec<_> =
            (n..n + 3).flat_map(|n| [n.to_string(), n.to_string()]).collect();
        expected.extend(["gap plain:3".to_owned(), "gap post:2".to_owned()]);
        expected.sort();
        assert_eq!(came, expected);
    }
    assert!(gateway.metric("recoveries_total{result=\"filled\"}").await >= 6.0);
}

/// A Redis that lost its data, or is another process than the one that wrote last, begins a new
/// epoch, so that no earlier position is taken for a new one.
#[tokio::test]
async fn r1_a_restarted_redis_begins_a_new_epoch() {
    let mut redis = Redis::with(&["appendonly yes", "appendfsync always"]).await;
    let gateway = gateway::with(&rules(100, &redis.config())).await;
    gateway.ready().await;
    let mut client = envelope(&gateway, "u1").await;
    let before = subscribe(&mut client, "post:1", &Value::Null).await;
    publish(&gateway, "post:1", json!(1)).await;
    assert_eq!(client.next().await["data"], 1);

    redis.kill();
    redis.restart().await;
    let mut gaps = Vec::new();
    while gaps.len() < 2 {
        let gap = client.next().await;
        assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("history_lost")));
        gaps.push(gap["data"]["channel"].as_str().unwrap().to_owned());
    }
    gaps.sort();
    assert_eq!(gaps, ["post:1", "user:u1"]);

    let after = eventually("published", || async {
        let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 2})).await;
        (!answer["result"].is_null()).then(|| answer["result"].clone())
    })
    .await;
    assert_ne!(after["epoch"], before["epoch"]);
    assert_eq!(client.next().await["offset"], 1);

    let mut other = envelope(&gateway, "u1").await;
    let since = json!({"epoch": before["epoch"], "offset": 1});
    assert_eq!(subscribe(&mut other, "post:1", &since).await["recovered"], false);
}

/// FLUSHALL under live sockets: the next publication shows a new epoch, and that is declared.
#[tokio::test]
async fn a_flushed_redis_is_declared() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(100, &redis.config())).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    publish(&gateway, "user:u1", json!(1)).await;
    assert_eq!(client.next().await, 1);
    redis::cmd("FLUSHALL").exec(&mut redis.connection()).unwrap();
    publish(&gateway, "user:u1", json!(2)).await;
    assert_eq!(client.next().await["data"]["reason"], "history_lost");
    assert_eq!(client.next().await, 2);
}

/// A lost function library is loaded again, a newer one is left alone, and its errors say what
/// is wrong.
#[tokio::test]
async fn the_function_library_is_kept() {
    let redis = Redis::start().await;
    let gateway = gateway::with(&rules(100, &redis.config())).await;
    gateway.ready().await;
    let mut connection = redis.connection();
    redis::cmd("FUNCTION").arg("FLUSH").exec(&mut connection).unwrap();
    assert_eq!(publish(&gateway, "post:1", json!(1)).await["offset"], 1, "loaded when missed");
    redis::cmd("FUNCTION").arg("FLUSH").exec(&mut connection).unwrap();
    eventually("loaded again", || async {
        let mut call = redis::cmd("FCALL_RO");
        call.arg("tollgate_version").arg(0).query::<i64>(&mut redis.connection()).ok()
    })
    .await;

    for (arguments, why) in [
        (&["{}", "0"][..], "ttl_seconds"),
        (&["{}", "x"], "ttl_seconds"),
        (&["{}", "1.5"], "ttl_seconds"),
        (&["{}", "10", "0"], "maxlen"),
        (&[], "tollgate_publish 1"),
    ] {
        let mut call = redis::cmd("FCALL");
        call.arg("tollgate_publish").arg(1).arg("tollgate:post:1").arg(arguments);
        let error = call.exec(&mut connection).unwrap_err().to_string();
        assert!(error.contains(why), "{arguments:?}: {error}");
    }

    // A later version stays.
    let newer = "#!lua name=tollgate\n\
        redis.register_function{function_name='tollgate_version', callback=function() return 99 end, flags={'no-writes'}}\n\
        redis.register_function('tollgate_publish', function() return {7, '5'} end)\n\
        redis.register_function('tollgate_open', function() return {6, '5'} end)\n";
    redis::cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(newer).exec(&mut connection).unwrap();
    let other = gateway::with(&rules(100, &redis.config())).await;
    other.ready().await;
    assert_eq!(publish(&other, "post:1", json!(1)).await, json!({"offset": 7, "epoch": "5"}));
}

/// A client that leaves a channel and comes back to it at once gets each event once, and nothing of
/// the channel follows `unsubscribed`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsubscribe_and_resume_under_load_doubles_nothing() {
    let gateway = gateway::with(&rules(1000, "[limits]\ncommands_per_second = 10000\n")).await;
    let mut others = Vec::new();
    for n in 0..600 {
        let mut other = envelope(&gateway, &format!("o{}", n % 20)).await;
        other.send(json!({"type": "subscribe", "channel": "post:1"})).await;
        others.push(other);
    }
    let mut client = envelope(&gateway, "u1").await;
    let start = subscribe(&mut client, "post:1", &Value::Null).await;
    let epoch = start["epoch"].clone();

    let publisher = async {
        for n in 0..300 {
            publish(&gateway, "post:1", json!(n)).await;
        }
    };

    let mut last = start["offset"].as_u64().unwrap();
    let follower = async {
        let (mut left, mut leaving) = (false, false);
        while last < 300 {
            let message = client.next().await;
            match message["type"].as_str().unwrap() {
                "event" => {
                    assert!(!left, "an event after unsubscribed");
                    assert_eq!(message["offset"], last + 1);
                    last += 1;
                    if last % 7 == 0 && !leaving {
                        leaving = true;
                        client.send(json!({"type": "unsubscribe", "channel": "post:1"})).await;
                    }
                }
                "unsubscribed" => {
                    left = true;
                    let since = json!({"epoch": epoch, "offset": last});
                    client
                        .send(json!({"type": "subscribe", "channel": "post:1", "since": since}))
                        .await;
                }
                "subscribed" => {
                    (left, leaving) = (false, false);
                    assert_eq!(message["data"]["recovered"], true);
                }
                other => panic!("{other}: {message}"),
            }
        }
    };
    tokio::join!(publisher, follower);
}

/// Events that a subscription begins with, and those that came during its setup, were not counted.
#[tokio::test]
async fn what_a_subscription_begins_with_counts_as_delivered() {
    let gateway = gateway::with(&rules(100, "")).await;
    let first = publish(&gateway, "post:1", json!(1)).await;
    publish(&gateway, "post:1", json!(2)).await;
    publish(&gateway, "post:1", json!(3)).await;

    let mut client = envelope(&gateway, "u1").await;
    let since = json!({"epoch": first["epoch"], "offset": first["offset"]});
    client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
    assert_eq!(client.next().await["data"]["recovered"], true);
    assert_eq!(
        (&client.next().await["data"], &client.next().await["data"]),
        (&json!(2), &json!(3))
    );
    gateway.metric_reaches("deliveries_total{wire=\"envelope\"}", 2.0).await;
}
