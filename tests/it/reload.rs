//! A changed configuration while running.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::sse::Stream;
use tollgate_support::tokens::{SECRET, now, sign};

use super::gateway::{self, config};
use super::upstream::Upstream;

#[tokio::test]
async fn sighup_takes_over_rules_and_a_bad_file_changes_nothing() {
    let mut gateway = gateway::start().await;
    let path = gateway.config.path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    let mut before = Client::connect(&gateway, "u1").await;
    assert_eq!(before.subscribe(json!("news")).await["data"]["code"], "forbidden");

    gateway.reconfigure(&format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"owner\"\n"));
    gateway.signal("-HUP");
    gateway.logged("configuration not reloaded").await;
    gateway.metric_reaches("config_reloads_total{result=\"failed\"}", 1.0).await;
    assert_eq!(before.subscribe(json!("post:1")).await["type"], "subscribed");

    gateway.reconfigure(&format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"public\"\n"));
    gateway.signal("-HUP");
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(before.subscribe(json!("news")).await["type"], "subscribed");
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_a_signal() {
    let gateway = gateway::start().await;
    let path = gateway.config.path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    let mut client = Client::connect(&gateway, "u1").await;
    gateway.reconfigure(&format!("{text}\n[[channels]]\npattern = \"news\"\nallow = \"public\"\n"));
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    assert_eq!(client.subscribe(json!("news")).await["type"], "subscribed");
}

/// Every start put its configuration in force a second time, and every reload threw the callback's
/// answers away and fetched the key sets anew.
#[tokio::test]
async fn a_reload_keeps_what_its_changes_do_not_touch() {
    let (app, issuer) = (Upstream::start().await, Upstream::start().await);
    app.answers(200, &json!({"allow": true}));
    issuer.answers(200, &json!({"keys": []}));
    let config = format!(
        "[callback]\nurl = \"{}\"\nsecret = \"one\"\ncache_ttl = \"1h\"\n\
         [[auth.keys]]\njwks_url = \"{}\"\n[[auth.keys]]\nsecret = \"{SECRET}\"\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\n",
        app.url, issuer.url
    );
    let mut gateway = gateway::with(&config).await;
    gateway.ready().await;
    let text = fs::read_to_string(gateway.config.path()).unwrap();
    let subscribed = async |gateway: &Gateway, channel: &str| {
        let mut client = Client::connect(gateway, "u1").await;
        assert_eq!(client.subscribe(json!(channel)).await["type"], "subscribed");
    };
    subscribed(&gateway, "post:1").await;

    gateway.signal("-HUP");
    gateway.metric_reaches("config_reloads_total{result=\"unchanged\"}", 1.0).await;
    gateway.logged("configuration reread: nothing has changed").await;
    gateway.reconfigure(&format!("# Another comment.\n{text}"));
    gateway.metric_reaches("config_reloads_total{result=\"unchanged\"}", 2.0).await;
    assert_eq!(gateway.metric("config_reloads_total{result=\"ok\"}").await, 0.0);
    subscribed(&gateway, "post:1").await;
    assert_eq!((app.count(), issuer.count()), (1, 1), "asked and fetched once");

    let changed = format!("{text}\n[broker]\nlinger = \"7s\"\n")
        .replace("[limits]\n", "[limits]\nmessage_bytes = 1000\n")
        .replace("secret = \"one\"", "secret = \"two\"");
    gateway.reconfigure(&changed);
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 1.0).await;
    gateway
        .logged("configuration reloaded changed=\"callback.secret, limits.message_bytes\"")
        .await;
    gateway.logged("only after a restart changed=\"broker.linger\"").await;
    subscribed(&gateway, "post:1").await;
    assert_eq!((app.count(), issuer.count()), (1, 1), "the same application has answered");
    subscribed(&gateway, "post:2").await;
    assert_eq!(app.asked().last().unwrap().0, "Bearer two");

    let other = Upstream::start().await;
    other.answers(200, &json!({"allow": true}));
    gateway.reconfigure(&changed.replace(&app.url, &other.url));
    gateway.metric_reaches("config_reloads_total{result=\"ok\"}", 2.0).await;
    subscribed(&gateway, "post:1").await;
    assert_eq!((app.count(), other.count(), issuer.count()), (2, 1, 1), "another is asked itself");
}

/// Rules, each of which `AFTER` tightens in one way.
const BEFORE: &str = r#"
[auth]
anonymous = true
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "same:{id}"
allow = "authenticated"
[[channels]]
pattern = "gone:{id}"
allow = "authenticated"
[[channels]]
pattern = "claim:{id}"
allow = "authenticated"
[[channels]]
pattern = "granted:{id}"
allow = "authenticated"
[[channels]]
pattern = "token:{id}"
allow = "authenticated"
[[channels]]
pattern = "news:{id}"
allow = "public"
"#;

const AFTER: &str = r#"
[auth]
anonymous = false
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "same:{id}"
allow = "authenticated"
[[channels]]
pattern = "claim:{id}"
allow = "claim"
claim = "isCreator"
[[channels]]
pattern = "granted:{id}"
allow = "granted"
auto_subscribe = true
[[channels]]
pattern = "token:{id}"
allow = "token"
[[channels]]
pattern = "news:{id}"
allow = "authenticated"
"#;

/// Waits for a message that says that a subscription has ended. Returns its code and reason.
async fn ended(client: &mut Client, channel: &str) -> (String, String) {
    let message = client.next().await;
    assert_eq!(message["type"], "unsubscribed", "{message}");
    assert_eq!(message["data"]["channelKey"], channel, "{message}");
    assert!(message["id"].is_null(), "nobody asked for it");
    let text = |name: &str| message["data"][name].as_str().unwrap().to_owned();
    (text("code"), text("reason"))
}

/// Rules were tightened and one was removed, yet earlier subscriptions went on for ever.
#[tokio::test]
async fn field_b8_live_subscriptions_are_judged_again_after_a_reload() {
    let gateway = gateway::with(BEFORE).await;
    let claims = json!({"sub": "u1", "exp": now() + 600, "channels": ["granted:1", "granted:3"]});
    let mut client = Client::connect_with(&gateway, "/ws", &sign(&claims, SECRET)).await;
    let all = ["same:1", "gone:1", "claim:1", "granted:1", "granted:2", "token:1", "news:1"];
    for channel in all {
        assert_eq!(client.subscribe(json!(channel)).await["type"], "subscribed", "{channel}");
    }

    let mut nobody = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    assert_eq!(nobody.next().await["type"], "connected");
    assert_eq!(nobody.subscribe(json!("news:1")).await["type"], "subscribed");
    let mut stream = Stream::of(&gateway, "u2", "channels=same:1,gone:1", "").await;
    assert_eq!(stream.next().await.kind, "connected");
    for _ in 0..3 {
        assert_eq!(stream.next().await.kind, "subscribed");
    }

    gateway.reconfigure(&config(AFTER));
    let mut told = std::collections::BTreeMap::new();
    for _ in 0..4 {
        let message = client.next().await;
        assert_eq!(message["type"], "unsubscribed", "{message}");
        assert!(message["id"].is_null(), "nobody asked for it");
        let text = |name: &str| message["data"][name].as_str().unwrap().to_owned();
        told.insert(text("channelKey"), (text("code"), text("reason")));
    }

    let expected = [
        ("claim:1", "forbidden", "the token does not have the claim that this channel needs"),
        ("gone:1", "forbidden", "no rule allows this channel"),
        ("granted:2", "forbidden", "the token does not grant this channel"),
        ("token:1", "token_refused", "missing: this channel needs a subscription token now"),
    ];
    let expected = expected.map(|(c, code, why)| (c.to_owned(), (code.into(), why.into())));
    assert_eq!(told, std::collections::BTreeMap::from(expected));

    let (code, reason, _) = nobody.closed().await;
    assert_eq!((code, reason.as_str()), (4401, "missing"));
    let gone = stream.next().await;
    assert_eq!(
        (gone.kind.as_str(), &gone.data["data"]["channelKey"]),
        ("unsubscribed", &json!("gone:1"))
    );
    assert_eq!(gone.data["data"]["reason"], "no rule allows this channel");

    // Channels that were taken away bring nothing more, and the others go on. A channel that a rule
    // now subscribes automatically comes with the next connection.
    for (n, channel) in all.iter().chain(&["granted:3", "user:u1"]).enumerate() {
        // No rule allows one of these channels any more, so publishing may be refused.
        gateway.api("publish", &json!({"channel": channel, "data": n})).await;
    }
    for n in [0, 3, 6, 8] {
        assert_eq!(client.next().await, json!(n));
    }
    client.nothing_came().await;
    assert_eq!(stream.next().await.data, json!(0));

    let ended = gateway.metric("subscriptions_ended_total{reason=\"forbidden\"}").await;
    let without = gateway.metric("subscriptions_ended_total{reason=\"token_refused\"}").await;
    assert_eq!((ended, without), (4.0, 1.0));
}

/// A stream without a channel is over for good; one more rule changes nothing for the others.
#[tokio::test]
async fn field_b8_a_stream_of_which_nothing_is_left_ends() {
    let gateway = gateway::with(&BEFORE.replace("auto_subscribe = true\n", "")).await;
    let mut stream = Stream::of(&gateway, "u1", "channels=gone:1", "").await;
    let mut client = Client::connect(&gateway, "u1").await;
    assert_eq!(client.subscribe(json!("gone:1")).await["type"], "subscribed");
    for kind in ["connected", "subscribed"] {
        assert_eq!(stream.next().await.kind, kind);
    }

    gateway.reconfigure(&config(&AFTER.replace("auto_subscribe = true\n", "")));
    assert_eq!(stream.next().await.kind, "unsubscribed");
    let close = stream.next().await;
    assert_eq!((close.kind.as_str(), &close.data["data"]["code"]), ("close", &json!(4403)));
    assert_eq!(close.data["data"]["reconnect"], false);
    assert!(stream.try_next().await.is_none());
    assert_eq!(ended(&mut client, "gone:1").await.0, "forbidden");
    client.nothing_came().await;
}

/// Channels that a new rule leaves to the application: it is asked about each, a few at a time, and
/// only a clear answer counts. A subscription token that the session knows goes on.
#[tokio::test]
async fn field_b8_the_application_is_asked_about_channels_that_are_its_own_now() {
    let upstream = Upstream::start().await;
    let rules = |post: &str| {
        format!(
            "[callback]\nurl = \"{}\"\ntimeout = \"2s\"\nconcurrency = 2\ncache_ttl = \"0s\"\n\
             [[channels]]\npattern = \"post:{{id}}\"\nallow = \"{post}\"\n\
             [[channels]]\npattern = \"room:{{id}}\"\nallow = \"token\"\n",
            upstream.url
        )
    };
    let gateway = gateway::with(&rules("authenticated")).await;
    let mut clients = Vec::new();
    for user in 0..20 {
        let mut client = Client::connect(&gateway, &format!("u{user}")).await;
        assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");
        clients.push(client);
    }

    let claims = json!({"sub": "u0", "channel": "room:1", "exp": now() + 600});
    let token = sign(&claims, SECRET);
    clients[0].send(json!({"type": "subscribe", "channel": "room:1", "token": token})).await;
    assert_eq!(clients[0].next().await["type"], "subscribed");
    assert_eq!(upstream.count(), 0);

    upstream.answers(200, &json!({"allow": true}));
    upstream.delays(std::time::Duration::from_millis(10));
    gateway.reconfigure(&config(&rules("callback")));
    eventually("all are asked about", || {
        std::future::ready((upstream.count() == 20).then_some(()))
    })
    .await;
    gateway.metric_reaches("callbacks_total{result=\"allowed\"}", 20.0).await;

    gateway.publish("post:1", &json!("still")).await;
    for client in &mut clients {
        assert_eq!(client.next().await, json!("still"));
    }

    // Other claims are another question. A failed callback is no clear answer, so the question is
    // asked again.
    upstream.answers(500, &json!({}));
    let other =
        rules("callback").replace("\"callback\"\n", "\"callback\"\nsend_claims = [\"sub\"]\n");
    gateway.reconfigure(&config(&other));
    gateway.metric_reaches("callbacks_total{result=\"failed\"}", 20.0).await;
    clients[1].nothing_came().await;

    upstream.answers(200, &json!({"allow": false}));
    for client in &mut clients {
        assert_eq!(ended(client, "post:1").await.0, "forbidden");
    }
    gateway.publish("room:1", &json!("mine")).await;
    assert_eq!(clients[0].next().await, json!("mine"), "its token is known");
}

/// A channel that waited for the application's answer was forgotten when a later change of the rules
/// raised a question about another channel: nobody had allowed it under its new rule, and it stayed.
#[tokio::test]
async fn a_later_question_does_not_replace_one_that_is_not_answered() {
    let upstream = Upstream::start().await;
    let rules = |first: &str, second: &str| {
        format!(
            "[callback]\nurl = \"{}\"\ncache_ttl = \"0s\"\n\
             [[channels]]\npattern = \"first:{{id}}\"\nallow = \"{first}\"\n\
             [[channels]]\npattern = \"second:{{id}}\"\nallow = \"{second}\"\n",
            upstream.url
        )
    };
    let gateway = gateway::with(&rules("authenticated", "authenticated")).await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("first:1")).await;
    client.subscribe(json!("second:1")).await;

    // The application does not answer, so the first channel waits for another attempt.
    upstream.answers(500, &json!({}));
    gateway.reconfigure(&config(&rules("callback", "authenticated")));
    gateway.metric_reaches("callbacks_total{result=\"failed\"}", 1.0).await;

    upstream.answers(200, &json!({"allow": false}));
    gateway.reconfigure(&config(&rules("callback", "callback")));
    let mut over = BTreeSet::new();
    while over.len() < 2 {
        let message = client.next().await;
        assert_eq!(message["data"]["code"], "forbidden", "{message}");
        over.insert(message["data"]["channelKey"].as_str().unwrap().to_owned());
    }
    assert_eq!(over, BTreeSet::from(["first:1", "second:1"].map(str::to_owned)));
}
