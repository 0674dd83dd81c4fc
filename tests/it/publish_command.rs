//! `tollgate publish`: an event from a terminal, and an answer that a person understands.

use std::io::Write as _;
use std::process::Command;

use serde_json::json;
use tempfile::NamedTempFile;
use tollgate_support::client::Client;
use tollgate_support::process::run_with_input;
use tollgate_support::redis::Redis;

use crate::gateway;

const RULES: &str = "[[channels]]\npattern = \"user:{user}\"\nallow = \"owner\"\nauto_subscribe = true\n\
                     history = { size = 100, ttl = \"10m\" }\n\
                     [[channels]]\npattern = \"typing:{id}\"\nallow = \"authenticated\"\n";

/// Runs the command. Returns what it said, and its exit status.
fn publish(config: &str, arguments: &[&str], input: &str) -> (String, Option<i32>) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(config.as_bytes()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("publish").arg("--config").arg(file.path()).args(arguments);
    let out = run_with_input(&mut command, input.as_bytes());
    (String::from_utf8([out.stdout, out.stderr].concat()).unwrap(), out.status.code())
}

#[tokio::test]
async fn a_person_learns_who_heard_it() {
    let redis = Redis::start().await;
    let config = format!("{}{RULES}", redis.config());
    let gateway = gateway::with(&config).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "u1").await;

    let (said, status) = publish(&config, &["user:u1", r#"{"a":1}"#], "");
    assert!(
        said.starts_with(
            "published on user:u1: heard by 1 subscribing connection; it is kept as offset 1 "
        ),
        "{said}"
    );
    assert_eq!((client.next().await, status), (json!({"a": 1}), Some(0)));

    let (said, _) = publish(&config, &["user:u1", "--key", "k"], "{\"a\":2}\n");
    assert!(said.contains("heard by 1") && said.contains("offset 2"), "{said}");
    let (said, status) = publish(&config, &["user:u1", "-", "--key", "k"], "{\"a\":2}\n");
    assert!(said.contains("nothing was published now") && said.contains("offset 2"), "{said}");
    assert_eq!((client.next_text().await, status), ("{\"a\":2}".to_owned(), Some(0)));
    client.nothing_came().await;

    let (said, _) = publish(&config, &["user:u2", "{}"], "");
    assert!(said.contains("no replica is subscribed to it now; it is kept as offset 1"), "{said}");
    let (said, _) = publish(&config, &["typing:1", "{}"], "");
    assert!(said.contains("no replica is subscribed to it now; it is not kept"), "{said}");
    let (said, _) = publish(&config, &["typing:1", "{}", "--durable"], "");
    assert!(said.contains("it is kept as offset 1"), "{said}");
    let (said, _) = publish(&config, &["elsewhere:1", "{}"], "");
    assert!(said.contains("no rule in [[channels]] gives elsewhere:1"), "{said}");
}

#[tokio::test]
async fn what_is_wrong_is_said_before_anything_is_sent() {
    let mut redis = Redis::start().await;
    let config = format!("{}{RULES}", redis.config());
    for (arguments, why) in [
        (&["tollgate:user:u1", "{}"][..], "named without the prefix"),
        (&["user:undefined", "{}"], "the id \"undefined\""),
        (&["user:a b", "{}"], "whitespace"),
        (&["user:u1", "hello"], "not JSON"),
        (&["user:u1", r#"{"type":"gap"}"#], "reserved"),
    ] {
        let (said, status) = publish(&config, arguments, "");
        assert!(said.contains("not published: ") && said.contains(why), "{arguments:?}: {said}");
        assert_eq!(status, Some(1));
    }

    let (said, status) = publish(RULES, &["user:u1", "{}"], "");
    assert!(said.contains("broker.kind is \"memory\"") && status == Some(1), "{said}");
    redis.kill();
    let (said, status) = publish(&config, &["user:u1", "{}"], "");
    assert!(said.contains("Redis cannot be reached: ") && status == Some(1), "{said}");
}
