//! The server API.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::http::{API_KEY, http};
use tollgate_support::redis::Redis;

use super::gateway;

#[tokio::test]
async fn keys_are_asked_for() {
    let gateway = gateway::start().await;
    for key in [None, Some(""), Some("integration-api-ke"), Some("integration-api-key2")] {
        let (status, body) = gateway.api_raw("info", key, "{}").await;
        assert_eq!(status, 401, "{key:?}");
        assert!(!body.contains("integration"));
    }
    assert_eq!(gateway.api_raw("info", Some(API_KEY), "{}").await.0, 200);

    let request = format!(
        "POST /api/info HTTP/1.1\r\nHost: x\r\nAuthorization: apikey {API_KEY}\r\n\
         Connection: close\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    assert_eq!(http(&gateway.public, &request).await.0, 200);
    assert_eq!(gateway.metric("rejected_total{reason=\"api_key\"}").await, 4.0);
}

#[tokio::test]
async fn errors_are_numbered_as_centrifugos() {
    let gateway = gateway::start().await;
    for (method, body, code) in [
        ("publish", "", 107),
        ("publish", "{}", 107),
        ("publish", r#"{"channel":"a"}"#, 107),
        ("publish", r#"{"channel":"a:*","data":1}"#, 107),
        ("publish", r#"{"channel":"control","data":1}"#, 107),
        ("publish", r#"{"channel":"post:1","data":1,"idempotency_key":"k"}"#, 108),
        ("broadcast", r#"{"channels":[],"data":1}"#, 107),
        ("disconnect", r#"{"user":""}"#, 107),
        ("presence", "{}", 108),
        ("nonsense", "{}", 104),
    ] {
        let (status, answer) = gateway.api_raw(method, Some(API_KEY), body).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["error"]["code"]), (200, &json!(code)), "{method} {body}");
        assert!(answer["error"]["message"].is_string());
    }

    // Client libraries send empty fields; those ask for nothing.
    let body =
        json!({"channel": "post:1", "data": 1, "skip_history": false, "idempotency_key": ""});
    let nobody = json!({"result": {"heard": 0}});
    assert_eq!(gateway.api("publish", &body).await, nobody);
}

#[tokio::test]
async fn broadcast_answers_for_each_channel() {
    let gateway = gateway::start().await;
    let mut one = Client::connect(&gateway, "u1").await;
    let mut two = Client::connect(&gateway, "u2").await;
    let body = json!({"channels": ["user:u1", "bad channel", "user:u2"], "data": {"n": 1}});
    let answer = gateway.api("broadcast", &body).await;
    let responses = answer["result"]["responses"].as_array().unwrap();
    assert_eq!(responses.len(), 3);
    let heard = json!({"result": {"heard": 1}});
    assert_eq!((&responses[0], &responses[2]), (&heard, &heard));
    assert_eq!(responses[1]["error"]["code"], 107);

    assert_eq!(one.next().await, json!({"n": 1}));
    assert_eq!(two.next().await, json!({"n": 1}));
}

/// A15: a user is disconnected on every replica, and no other user is.
#[tokio::test]
async fn a15_disconnect_reaches_all_replicas() {
    let redis = Redis::start().await;
    let replicas = [gateway::on_redis(&redis).await, gateway::on_redis(&redis).await];
    let mut mine =
        [Client::connect(&replicas[0], "u1").await, Client::connect(&replicas[1], "u1").await];
    let mut other = Client::connect(&replicas[1], "u12").await;
    assert_eq!(replicas[0].api("disconnect", &json!({"user": "u1"})).await, json!({"result": {}}));
    for client in &mut mine {
        assert_eq!(client.closed().await.0, 4409);
    }
    other.nothing_came().await;

    // With a client id, only that connection is closed.
    let mut a = Client::connect(&replicas[0], "u1").await;
    let mut b = Client::connect(&replicas[1], "u1").await;
    replicas[0].api("disconnect", &json!({"user": "u1", "client": b.id()})).await;
    assert_eq!(b.closed().await.0, 4409);
    a.nothing_came().await;
}

#[tokio::test]
async fn info_lists_all_replicas() {
    let redis = Redis::start().await;
    let replicas = [gateway::on_redis(&redis).await, gateway::on_redis(&redis).await];
    let _client = Client::connect(&replicas[0], "u1").await;
    let nodes = eventually("both nodes with the socket", || async {
        let answer = replicas[1].api("info", &json!({})).await;
        let nodes = answer["result"]["nodes"].as_array().unwrap().clone();
        let clients: u64 = nodes.iter().filter_map(|n| n["num_clients"].as_u64()).sum();
        (nodes.len() == 2 && clients == 1).then_some(nodes)
    })
    .await;
    for field in ["uid", "name", "version"] {
        assert!(nodes[0][field].is_string(), "{field}: {nodes:?}");
    }
}

/// No client can be subscribed to such a channel, yet the answer was that of a channel that works.
#[tokio::test]
async fn field_f14_publishing_where_no_rule_gives_a_channel_is_an_error() {
    let gateway = gateway::start().await;
    let publish = json!({"channel": "psot:1", "data": 1});
    let error = gateway.api("publish", &publish).await["error"].clone();
    assert_eq!(error["code"], 102);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no rule in [[channels]] matches this channel"), "{message}");

    let broadcast = json!({"channels": ["psot:1", "post:1"], "data": 1});
    let answer = gateway.api("broadcast", &broadcast).await["result"]["responses"].clone();
    assert_eq!(
        (&answer[0]["error"]["code"], &answer[1]["result"]),
        (&json!(102), &json!({"heard": 0}))
    );
}
