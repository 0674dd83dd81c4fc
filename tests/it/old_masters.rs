//! Old masters of a Sentinel group that publishers still reach: no replica of the gateway saw the
//! failover, or the old master came back after its end.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually_within;
use tollgate_support::gateway::Gateway;
use tollgate_support::redis::{Redis, Sentinels};
use tollgate_support::tokens::token;

use super::gateway;
use super::groups::sentinels;
use super::topologies::config;

/// Long enough for an election, and for the ten seconds until Sentinel demotes an old master.
const A_WHILE: Duration = Duration::from_secs(60);

fn role(redis: &Redis) -> Option<String> {
    let mut connection = redis.try_connection()?;
    let role: Vec<redis::Value> = redis::cmd("ROLE").query(&mut connection).ok()?;
    redis::from_redis_value(role.into_iter().next()?).ok()
}

async fn master_is(group: &Sentinels, redis: &Redis) {
    let port = redis.port.to_string();
    eventually_within(A_WHILE, "all Sentinels name the new master", || async {
        for n in 0..3 {
            if group.field(n, "port").await.as_deref() != Some(&port) {
                return None;
            }
        }
        (role(redis).as_deref() == Some("master")).then_some(())
    })
    .await;
}

/// Publishes to a server that calls itself a master. Returns false if it no longer does.
fn publish_to_old(old: &Redis) -> bool {
    if role(old).as_deref() != Some("master") {
        return false;
    }
    old.publish("tollgate:plain:1", "\"lost\"");
    let _ = old.fcall("post:1", "\"lost\"");
    true
}

/// Reads until both channels were declared.
async fn both_declared(client: &mut Client) {
    let mut missing = vec!["plain:1", "post:1"];
    while !missing.is_empty() {
        let message = client.next().await;
        assert_ne!(message["data"], "lost");
        if message["type"] == "gap" {
            missing.retain(|channel| message["data"]["channel"] != *channel);
        }
    }
}

async fn envelopes(gateway: &Gateway) -> Client {
    let mut client = Client::connect_with(gateway, "/ws?format=envelope", &token("u1")).await;
    for channel in ["plain:1", "post:1"] {
        client.subscribe(json!(channel)).await;
    }
    client
}

/// A gateway that starts after the failover, while the old master still takes publications, has not
/// seen the failover. It used to declare nothing of what the old master took.
#[tokio::test]
async fn r4_who_starts_after_the_switch_declares_too() {
    let group = sentinels(1).await;
    let first = gateway::with(&config(&group.url(), "")).await;
    first.ready().await;
    group.fail_over().await;
    master_is(&group, &group.replicas[0]).await;
    let late = gateway::with(&config(&group.url(), "")).await;
    late.ready().await;
    let mut client = envelopes(&late).await;
    assert!(publish_to_old(&group.master), "too late for this test");
    both_declared(&mut client).await;
}

/// An old master that was down comes back as a master for some ten seconds. The gateway used to
/// take its first end for the last one.
#[tokio::test]
async fn r4_an_old_master_that_comes_back_as_one_is_declared_again() {
    let mut group = sentinels(1).await;
    let mut gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    let mut client = envelopes(&gateway).await;

    group.master.kill();
    master_is(&group, &group.replicas[0]).await;
    gateway.logged("no longer a master").await;
    both_declared(&mut client).await;

    group.master.restart().await;
    assert!(publish_to_old(&group.master), "it is a master again");
    both_declared(&mut client).await;

    eventually_within(A_WHILE, "it ends a second time", || {
        let end = format!("no longer a master server=127.0.0.1:{}\n", group.master.port);
        let ends = gateway.log().matches(&end).count();
        std::future::ready((ends == 2).then_some(()))
    })
    .await;
    assert_eq!(role(&group.master).as_deref(), Some("slave"));
}

/// No gateway saw both the failover and the old master's end. The fence was never written, and a
/// client with a position of the new master resumed as if it had everything.
#[tokio::test]
async fn r4_a_gateway_that_starts_again_puts_down_the_old_masters_end() {
    let group = sentinels(1).await;
    let gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;

    group.fail_over().await;
    master_is(&group, &group.replicas[0]).await;
    let position = eventually_within(A_WHILE, "the new master has a history", || async {
        let answer = gateway.api("publish", &json!({"channel": "post:1", "data": 1})).await;
        let epoch = answer["result"]["epoch"].as_str()?.to_owned();
        let kept = group.replicas[0].fcall("post:1", "2").ok()?;
        (kept.1 == epoch).then_some(kept)
    })
    .await;

    drop(gateway);
    assert!(publish_to_old(&group.master), "too late for this test");
    let mut gateway = gateway::with(&config(&group.url(), "")).await;
    gateway.ready().await;
    gateway.logged("no longer a master").await;

    let since = json!({"offset": position.0, "epoch": position.1});
    let answer: Value = eventually_within(A_WHILE, "it is told", || async {
        let mut client = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
        client.send(json!({"type": "subscribe", "channel": "post:1", "since": since})).await;
        let answer = client.next().await;
        (answer["data"]["recovered"] == false).then_some(answer)
    })
    .await;
    assert_ne!(answer["data"]["epoch"], json!(position.1));
}
