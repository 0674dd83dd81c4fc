//! Field B6: clients are told of a long interruption, of the channels that it concerns, and of its
//! end. Errors carry their time and disappear once they are over.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::redis::Redis;
use tollgate_support::sse::Stream;
use tollgate_support::tokens::{now, token};

use super::gateway;
use super::groups::cluster;

const RULES: &str = "[auth]\nanonymous = true\n[[channels]]\npattern = \"plain:{id}\"\nallow = \"public\"\n\
                     [[channels]]\npattern = \"post:{id}\"\nallow = \"public\"\n\
                     history = { size = 100, ttl = \"1m\", plain = false }\n";

fn config(url: &str, after: &str) -> String {
    let broker = format!("[broker]\nkind = \"redis\"\ninterrupted_after = \"{after}\"\n");
    format!("{broker}[redis]\nurl = \"{url}\"\n{RULES}")
}

/// Starts a gateway and waits until it hears Redis, so that no client is told of an interruption at
/// the start.
async fn start(config: &str) -> Gateway {
    let gateway = gateway::with(config).await;
    gateway.ready().await;
    gateway.metric_reaches("canary_seconds_count", 1.0).await;
    for _ in 0..3 {
        eventually("it hears", || async {
            (gateway.metric("delivery_interrupted").await < 1.0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gateway
}

async fn gateway(redis: &Redis, after: &str) -> Gateway {
    start(&config(&redis.url(), after)).await
}

/// Reads up to `live`. Only gaps may come before it; returns how many.
async fn gaps_until_live(client: &mut Client) -> usize {
    let kinds = until_live(client).await;
    let (_, gaps) = kinds.split_last().unwrap();
    assert!(gaps.iter().all(|kind| kind == "gap"), "{kinds:?}");
    gaps.len()
}

async fn client(gateway: &Gateway, path: &str) -> Client {
    Client::connect_with(gateway, path, &token("u1")).await.with_interruptions()
}

/// Reads up to `live`, and returns the types of all messages, with that of `live`.
async fn until_live(client: &mut Client) -> Vec<Value> {
    let mut kinds = Vec::new();
    while kinds.last() != Some(&json!("live")) {
        kinds.push(client.next().await["type"].clone());
    }
    kinds
}

/// Pages used to say "connected" through a whole outage.
#[tokio::test]
async fn field_b6_who_is_connected_is_told_of_an_interruption_and_of_its_end() {
    let mut redis = Redis::start().await;
    let gateway = gateway(&redis, "300ms").await;
    let mut plain = client(&gateway, "/ws").await;
    plain.subscribe(json!("plain:1")).await;
    let mut durable = client(&gateway, "/ws?format=envelope").await;
    durable.subscribe(json!("post:1")).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=plain:1", "").await;
    stream.begun(1).await;
    let mut without = client(&gateway, "/ws").await;

    let before = now();
    redis.kill();
    for client in [&mut plain, &mut durable, &mut without] {
        let told = client.next().await;
        assert_eq!(told["type"], "interrupted", "{told}");
        assert!(told["data"]["channels"].is_null(), "{told}");
        let since = told["data"]["since"].as_u64().unwrap();
        // `since` is when arrival was last proven, which happens every few seconds.
        assert!((before - 10..=now()).contains(&since), "{told}");
    }

    let told = stream.next().await;
    assert_eq!((&*told.kind, &told.id), ("interrupted", &None));
    assert!(told.data["data"]["since"].is_u64(), "{told:?}");
    assert!(gateway.metric("delivery_interrupted").await > 0.0);

    // A client that connects now is told right after `connected`.
    let late = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    let mut late = late.with_interruptions();
    assert_eq!(late.next().await["type"], "connected");
    assert_eq!(late.next().await["type"], "interrupted");

    redis.restart().await;
    // `live` comes behind the gaps: a client that reads it knows of all that is missing.
    assert_eq!(gaps_until_live(&mut plain).await, 1);
    assert_eq!(gaps_until_live(&mut durable).await, 1, "its history is gone");
    assert_eq!(gaps_until_live(&mut without).await, 0);
    assert_eq!(gaps_until_live(&mut late).await, 0);
    let kinds = [stream.next().await.kind, stream.next().await.kind];
    assert_eq!(kinds, ["gap", "live"]);
    assert!(gateway.metric("delivery_interrupted").await < 1.0);

    redis.publish("tollgate:plain:1", "1");
    assert_eq!(plain.next().await, json!(1));
    assert_eq!(stream.next().await.data, json!(1));
    let new = client(&gateway, "/ws").await;
    { new }.nothing_came().await;
}

/// A stopped server is as silent as one that is gone.
#[tokio::test]
async fn field_b6_a_hung_redis_is_an_interruption() {
    let redis = Redis::start().await;
    let fast = "ping_interval = \"200ms\"\nping_timeout = \"2s\"\n";
    let config = config(&redis.url(), "300ms").replace("[redis]\n", &format!("[redis]\n{fast}"));
    let gateway = start(&config).await;
    let mut client = client(&gateway, "/ws").await;
    client.subscribe(json!("plain:1")).await;
    redis.signal("-STOP");
    assert_eq!(client.next().await["type"], "interrupted");
    redis.signal("-CONT");
    assert!(gaps_until_live(&mut client).await >= 1);
}

/// Several connections come back one by one: `live` comes once all have, behind all gaps.
#[tokio::test]
async fn field_b6_the_end_is_told_behind_the_gaps_of_all_connections() {
    let mut redis = Redis::start().await;
    let several =
        config(&redis.url(), "300ms").replace("[redis]\n", "[redis]\nsubscriber_connections = 3\n");
    let gateway = start(&several).await;
    let mut client = client(&gateway, "/ws?format=envelope").await;
    for n in 0..20 {
        client.subscribe(json!(format!("post:{n}"))).await;
        client.subscribe(json!(format!("plain:{n}"))).await;
    }

    redis.kill();
    assert_eq!(client.next().await["type"], "interrupted");
    redis.restart().await;
    let kinds = until_live(&mut client).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "gap").count(), 40, "{kinds:?}");
    client.nothing_came().await;
}

#[tokio::test]
async fn field_b6_what_is_over_at_once_is_not_told() {
    let redis = Redis::start().await;
    for after in ["30s", "0s"] {
        let gateway = gateway(&redis, after).await;
        let mut client = client(&gateway, "/ws").await;
        client.subscribe(json!("plain:1")).await;
        for _ in 0..3 {
            redis.kill_clients("pubsub");
            assert_eq!(client.next().await["type"], "gap");
        }
        client.nothing_came().await;
    }
}

/// In a cluster a dead master takes its channels along; clients of other channels are not told.
#[tokio::test]
async fn field_b6_only_whose_channels_are_concerned_is_told() {
    let mut cluster = cluster().await;
    let gateway = start(&config(&cluster.url(), "300ms")).await;
    let dead = cluster.owner("tollgate:plain:0").await;
    let (mut gone, mut stay) = (Vec::new(), Vec::new());
    for name in (0..20).map(|n| format!("plain:{n}")) {
        let is_gone = cluster.owner(&format!("tollgate:{name}")).await == dead;
        if is_gone { gone.push(name) } else { stay.push(name) }
    }

    let mut both = client(&gateway, "/ws").await;
    for name in gone.iter().chain(&stay) {
        both.subscribe(json!(name)).await;
    }
    let mut bystander = client(&gateway, "/ws").await;
    bystander.subscribe(json!(stay[0])).await;

    cluster.nodes[dead].kill();
    let told = both.next().await;
    assert_eq!(told["type"], "interrupted", "{told}");
    let mut expected = gone.clone();
    expected.sort_unstable();
    assert_eq!(told["data"]["channels"], json!(expected));

    let kinds = until_live(&mut both).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "gap").count(), gone.len(), "{kinds:?}");
    assert_eq!(kinds.len(), gone.len() + 1, "{kinds:?}");
    bystander.nothing_came().await;
}

async fn last_error(gateway: &Gateway) -> Value {
    let body: Value = serde_json::from_str(&gateway.get_admin("/readyz").await.1).unwrap();
    body["lastError"].clone()
}

#[tokio::test]
async fn field_b6_an_error_has_its_time_and_goes_when_it_is_over() {
    let mut redis = Redis::start().await;
    let gateway = gateway(&redis, "1s").await;
    assert_eq!(last_error(&gateway).await, Value::Null);
    let before = SystemTime::now() - Duration::from_secs(1);
    redis.kill();
    let error = eventually("an error", || async {
        Some(last_error(&gateway).await).filter(|error| !error.is_null())
    })
    .await;
    let at = humantime::parse_rfc3339(error["at"].as_str().unwrap()).unwrap();
    assert!(at >= before && at <= SystemTime::now(), "{error}");
    assert!(error["what"].as_str().unwrap().contains("Redis"), "{error}");
    redis.restart().await;
    eventually("no error", || async { last_error(&gateway).await.is_null().then_some(()) }).await;
}
