//! A changed configuration while running.

use std::fs;

use serde_json::json;

use super::client::Client;
use super::gateway::Gateway;

#[tokio::test]
async fn sighup_takes_over_rules_and_a_bad_file_changes_nothing() {
    let mut gateway = Gateway::start().await;
    let path = gateway.config.path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    let mut before = Client::connect(&gateway, "u1").await;
    assert_eq!(before.subscribe(json!("news")).await["data"]["code"], "forbidden");

    fs::write(&path, format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"owner\"\n"))
        .unwrap();
    gateway.signal("-HUP");
    gateway.logged("configuration not reloaded").await;
    gateway.metric_reaches("config_reloads_total{result=\"failed\"}", 1.0).await;
    assert_eq!(before.subscribe(json!("post:1")).await["type"], "subscribed");

    fs::write(&path, format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"public\"\n"))
        .unwrap();
    gateway.signal("-HUP");
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(before.subscribe(json!("news")).await["type"], "subscribed");
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_a_signal() {
    let gateway = Gateway::start().await;
    let path = gateway.config.path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    let mut client = Client::connect(&gateway, "u1").await;
    fs::write(&path, format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"public\"\n"))
        .unwrap();
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(client.subscribe(json!("news")).await["type"], "subscribed");
}
