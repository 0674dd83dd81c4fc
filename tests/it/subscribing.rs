//! A publication at the very moment at which a replica subscribes: it arrives, or it is older than
//! the position that the subscriber is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;
use tollgate_support::proxy::Proxy;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;

use super::gateway;

const RULE: &str = "[[channels]]\npattern = \"post:{id}\"\nallow = \"authenticated\"\n\
                    history = { size = 100, ttl = \"1m\", plain = false }\n";

/// A gateway whose every subscription to that channel reaches Redis right after a durable
/// publication on it, and the number of these publications.
async fn gateway(redis: &Redis, channel: &'static str) -> (Gateway, Proxy, Arc<AtomicU64>) {
    let proxy = Proxy::start(redis.address()).await;
    let (url, published) = (redis.url(), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&published);
    proxy.before(&["SUBSCRIBE\r\n", ":1\r\n"], move || {
        let mut redis = redis::Client::open(&*url).unwrap().get_connection().unwrap();
        let number = counted.fetch_add(1, Ordering::AcqRel) + 1;
        let mut call = redis::cmd("FCALL");
        call.arg("tollgate_publish").arg(1).arg(format!("tollgate:{channel}"));
        // The call fails until the library is loaded; the gateway subscribes to the channel later.
        let _ = call.arg(number).arg(600).arg(1000).exec(&mut redis);
    });

    let config =
        format!("[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://{}\"\n{RULE}", proxy.address);
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    (gateway, proxy, published)
}

/// The gateway used to read the position before it subscribed, and lost an event between the two.
#[tokio::test]
async fn a_first_subscriber_is_told_a_position_that_nothing_is_missing_behind() {
    let redis = Redis::start().await;
    let (gateway, _proxy, published) = gateway(&redis, "post:1").await;
    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    let before = published.load(Ordering::Acquire);
    let told = client.subscribe(json!("post:1")).await;
    assert!(published.load(Ordering::Acquire) > before, "nothing was published between");

    let (offset, _) = redis.fcall("post:1", "\"next\"").unwrap();
    let event = client.next().await;
    assert_eq!((&event["data"], &event["offset"]), (&json!("next"), &json!(offset)));
    assert_eq!(told["data"]["offset"], json!(offset - 1), "{told}");
}

#[tokio::test]
async fn who_is_subscribed_again_gets_what_came_while_that_was_done() {
    let redis = Redis::start().await;
    let (gateway, _proxy, _) = gateway(&redis, "post:1").await;
    let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    let told = client.subscribe(json!("post:1")).await;
    let first = told["data"]["offset"].as_u64().unwrap();
    for offset in first + 1..first + 4 {
        redis.kill_clients("pubsub");
        let event: Value = client.next().await;
        assert_eq!(event["offset"], json!(offset), "{event}");
    }
}
