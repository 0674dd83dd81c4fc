//! Access rules on real sockets.

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::tokens::{SECRET, now, sign};

use super::gateway;

const RULES: &str = r#"
[auth]
anonymous = true
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "post:{id}"
allow = "granted"
auto_subscribe = true
[[channels]]
pattern = "studio:{id}"
allow = "claim"
claim = "isCreator"
[[channels]]
pattern = "plan:{id}"
allow = "claim"
claim = "plan"
value = "gold"
[[channels]]
pattern = "news"
allow = "public"
auto_subscribe = true
[[channels]]
pattern = "lobby"
allow = "authenticated"
"#;

#[tokio::test]
async fn rules_decide_and_nothing_else_is_allowed() {
    let gateway = gateway::with(RULES).await;
    let claims = json!({
        "sub": "u1", "exp": now() + 60, "channels": ["post:7"], "isCreator": true, "plan": "silver",
    });
    let mut client = Client::connect_with(&gateway, "/ws", &sign(&claims, SECRET)).await;
    assert_eq!(client.connected["data"]["channels"], json!(["user:u1", "post:7", "news"]));

    for (channel, allowed) in [
        ("user:u1", true),
        ("user:u12", false),
        ("user:U1", false),
        ("post:7", true),
        ("post:77", false),
        ("studio:1", true),
        ("plan:1", false),
        ("lobby", true),
        ("unknown", false),
    ] {
        let answer = client.subscribe(json!(channel)).await;
        let expected = if allowed { "subscribed" } else { "error" };
        assert_eq!(answer["type"], expected, "{channel}: {answer}");
        if !allowed {
            assert_eq!(answer["data"]["code"], "forbidden");
            assert_eq!(answer["data"]["channel"], channel);
        }
    }
}

#[tokio::test]
async fn anonymous_sockets_get_public_channels_only() {
    let gateway = gateway::with(RULES).await;
    let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    let connected = client.next().await;
    assert_eq!(connected["data"]["userId"], json!(null));
    assert_eq!(connected["data"]["channels"], json!(["news"]));
    assert_eq!(client.subscribe(json!("lobby")).await["data"]["code"], "forbidden");
    gateway.publish("news", &json!("hello")).await;
    assert_eq!(client.next().await, json!("hello"));
}
