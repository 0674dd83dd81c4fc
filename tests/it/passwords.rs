//! Secrets of Redis, of Sentinels and of the callback in files that change while the gateway runs.

use std::fs;

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::token;

use super::gateway;
use super::upstream::Upstream;

fn set_user(redis: &Redis, rules: &[&str]) {
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("gateway").arg(rules);
    command.exec(&mut redis.connection()).unwrap();
}

fn cut_off(redis: &Redis) {
    let mut command = redis::cmd("CLIENT");
    command.arg("KILL").arg("USER").arg("gateway").exec(&mut redis.connection()).unwrap();
}

#[tokio::test]
async fn a_rotated_redis_password_needs_no_restart() {
    let redis = Redis::start().await;
    set_user(&redis, &["on", ">first-horse", "allkeys", "allchannels", "+@all"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "first-horse\n").unwrap();
    let config = format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://gateway@127.0.0.1:{}\"\npassword_file = {:?}\n",
        redis.port,
        file.path()
    );
    let mut gateway = gateway::with(&config).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;

    // An operator who changed the password and forgot the file is told which file it is, and what
    // Redis says.
    set_user(&redis, &[">second-horse", "<first-horse"]);
    cut_off(&redis);
    gateway.logged("WRONGPASS").await;
    fs::remove_file(file.path()).unwrap();
    gateway.logged(&format!("password file {}", file.path().display())).await;
    fs::write(file.path(), "second-horse\n").unwrap();
    assert_eq!(client.next().await["data"]["reason"], "broker_reconnected");
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));

    // While both passwords are valid, no client notices the change.
    set_user(&redis, &[">third-horse"]);
    fs::write(file.path(), "third-horse\n").unwrap();
    set_user(&redis, &["<second-horse"]);
    redis.publish("tollgate:user:u1", "2");
    assert_eq!(client.next().await, json!(2));
    assert!(!gateway.log().contains("-horse"), "no password in the log");
}

#[tokio::test]
async fn the_sentinels_password_is_read_from_its_file() {
    let redis = Redis::start().await;

    // This Sentinel asks for a password, and is the only one of its master.
    let monitor = format!("sentinel monitor mymaster 127.0.0.1 {} 1", redis.port);
    let sentinel = Redis::with(&["requirepass of-sentinel", &monitor]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "wrong").unwrap();
    let config = format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis+sentinel://127.0.0.1:{}/mymaster\"\n\
         sentinel_password_file = {file:?}\n",
        sentinel.port
    );

    let mut gateway = gateway::with(&config).await;
    gateway.logged("WRONGPASS").await;
    fs::write(&file, "of-sentinel").unwrap();
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;
    redis.publish("tollgate:user:u1", "1");
    assert_eq!(client.next().await, json!(1));
}

#[tokio::test]
async fn a_rotated_callback_secret_needs_no_restart() {
    let upstream = Upstream::start().await;
    upstream.answers(200, &json!({"allow": true}));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "first\n").unwrap();
    let config = format!(
        "[callback]\nurl = \"{}\"\nsecret_file = {:?}\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\n",
        upstream.url,
        file.path()
    );

    let gateway = gateway::with(&config).await;
    let mut client = Client::connect_with(&gateway, "/ws", &token("u1")).await;
    assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");

    fs::write(file.path(), "second\n").unwrap();
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(client.subscribe(json!("post:2")).await["type"], "subscribed");
    let bearers: Vec<_> = upstream.asked().into_iter().map(|asked| asked.0).collect();
    assert_eq!(bearers, ["Bearer first", "Bearer second"]);
}
