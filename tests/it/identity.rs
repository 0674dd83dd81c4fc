//! Users whose ids hold what channel names do not, and ids that are numbers.

use serde_json::{Value, json};

use super::client::{Client, now, sign};
use super::gateway::{Gateway, SECRET};

/// A user's id, and the channel that `user:{user}` names.
const USERS: [(&str, &str); 8] = [
    ("did:privy:cm1", "user:did%3Aprivy%3Acm1"),
    ("eu-west-1:6a0b4f0e", "user:eu-west-1%3A6a0b4f0e"),
    ("system:serviceaccount:ns:name", "user:system%3Aserviceaccount%3Ans%3Aname"),
    ("Seán O'Brien", "user:Seán%20O%27Brien"),
    ("50%", "user:50%25"),
    ("did%3Aprivy%3Acm1", "user:did%253Aprivy%253Acm1"),
    ("a@b.example", "user:a@b.example"),
    ("*", "user:%2A"),
];

#[tokio::test]
async fn field_c10_any_id_is_a_user_with_a_channel_of_its_own() {
    let gateway = Gateway::start().await;
    let mut clients = Vec::new();
    for (user, channel) in USERS {
        let client = Client::connect(&gateway, user).await;
        assert_eq!(client.connected["data"]["userId"], user);
        assert_eq!(client.connected["data"]["channels"], json!([channel]));
        clients.push(client);
    }
    for (user, channel) in USERS {
        gateway.publish(channel, &json!({"for": user})).await;
    }
    for (client, (user, _)) in clients.iter_mut().zip(USERS) {
        assert_eq!(client.next().await, json!({"for": user}));
        client.nothing_came().await;
    }
    // By name, and as an object with the id as it is.
    let mut by_name = Client::connect(&gateway, USERS[0].0).await;
    for (channel, code) in [
        (json!(USERS[0].1), Value::Null),
        (json!({"type": "user", "userId": USERS[0].0}), Value::Null),
        (json!("user:did:privy:cm1"), json!("forbidden")),
        (json!({"type": "user", "userId": USERS[5].0}), json!("forbidden")),
        (json!({"type": "user", "userId": "did"}), json!("forbidden")),
    ] {
        let answer = by_name.subscribe(channel.clone()).await;
        assert_eq!(answer["data"]["code"], code, "{channel}: {answer}");
        if code.is_null() {
            assert_eq!(answer["data"]["channelKey"], USERS[0].1);
            assert_eq!(answer["data"]["channel"], channel);
        }
    }
    // The server API takes the id as the token has it.
    let (_, listed) = gateway.get_admin("/debug/connections?user=did:privy:cm1").await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["connections"].as_array().unwrap().len(), 2, "{listed}");
    gateway.api("disconnect", &json!({"user": "did:privy:cm1"})).await;
    assert_eq!(clients[0].closed().await.0, 4409);
    clients[5].nothing_came().await;
    for bad in [json!("a\nb"), json!("x".repeat(513)), json!(1.5), json!(null)] {
        let answer = gateway.api("disconnect", &json!({"user": bad})).await;
        assert_eq!(answer["error"]["code"], 107, "{answer}");
    }
}

#[tokio::test]
async fn field_c10_an_id_that_no_channel_has_room_for_is_a_user_all_the_same() {
    let mut gateway = Gateway::start().await;
    let long = ":".repeat(200);
    let mut client = Client::connect(&gateway, &long).await;
    assert_eq!(client.connected["data"]["channels"], json!([]));
    gateway.logged("a user has no automatic channel: the id does not fit").await;
    let answer = client.subscribe(json!({"type": "user", "userId": long})).await;
    assert_eq!(answer["data"]["code"], "bad_request", "{answer}");
    assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");
}

#[tokio::test]
async fn field_c9_ids_may_be_numbers_and_null_is_absent() {
    let gateway = Gateway::start().await;
    let connect =
        async |claims: Value| Client::connect_with(&gateway, "/ws", &sign(&claims, SECRET)).await;
    let large = 9_007_199_254_740_993_u64;
    let mut number = connect(json!({"sub": large, "exp": now() + 60})).await;
    assert_eq!(number.connected["data"]["userId"], "9007199254740993");
    assert_eq!(number.connected["data"]["channels"], json!(["user:9007199254740993"]));
    let other = connect(json!({"userId": large - 1, "exp": now() + 60})).await;
    assert_eq!(other.connected["data"]["userId"], "9007199254740992");
    let absent =
        connect(json!({"userId": null, "sub": "s1", "nbf": null, "exp": now() + 60})).await;
    assert_eq!(absent.connected["data"]["userId"], "s1");
    number.send_text(r#"{"type":"subscribe","channel":{"type":"post","postId":42}}"#).await;
    let answer = number.next().await;
    assert_eq!(answer["data"]["channelKey"], "post:42");
    assert_eq!(answer["data"]["channel"], json!({"type": "post", "postId": 42}));
    let answer = number.subscribe(json!({"type": "post", "postId": 4.2})).await;
    let text = "postId of a channel is neither a text nor a whole number";
    assert_eq!(answer["data"]["message"], text);
    // The server API too.
    gateway.api("disconnect", &json!({"user": large})).await;
    assert_eq!(number.closed().await.0, 4409);
    let answer = gateway.api("revoke_token", &json!({"jti": 7})).await;
    assert_eq!(answer, json!({"result": {}}));
    let revoked = sign(&json!({"sub": "u", "jti": 7, "exp": now() + 60}), SECRET);
    assert_eq!(Client::refused(&gateway, &revoked).await, (4401, "revoked".to_owned()));
}
