//! Ids that do not fit into channel names, ids that are numbers, and tokens by several carriers.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::http::http;
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway;

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
    let gateway = gateway::start().await;
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

    // Subscribing by name, and by an object with the id as it is.
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
    let mut gateway = gateway::start().await;
    let long = ":".repeat(200);
    let mut client = Client::connect(&gateway, &long).await;
    assert_eq!(client.connected["data"]["channels"], json!([]));
    gateway
        .logged("a user is not subscribed automatically: the id does not fit into a channel name")
        .await;
    let answer = client.subscribe(json!({"type": "user", "userId": long})).await;
    assert_eq!(answer["data"]["code"], "bad_request", "{answer}");
    assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");
}

#[tokio::test]
async fn field_c9_ids_may_be_numbers_and_null_is_absent() {
    let gateway = gateway::start().await;
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
    let text = "postId of a channel is neither a string nor a whole number";
    assert_eq!(answer["data"]["message"], text);

    // The server API takes numbers too.
    gateway.api("disconnect", &json!({"user": large})).await;
    assert_eq!(number.closed().await.0, 4409);

    let answer = gateway.api("revoke_token", &json!({"jti": 7})).await;
    assert_eq!(answer, json!({"result": {}}));
    let revoked = sign(&json!({"sub": "u", "jti": 7, "exp": now() + 60}), SECRET);
    assert_eq!(Client::refused(&gateway, &revoked).await, (4401, "revoked".to_owned()));
}

/// With this deadline a test ends in time only if the gateway answers at once.
const COOKIE: &str = "[auth]\ncookie = \"jwt\"\ndeadline = \"1h\"\n";
const SESSION: &str = "[auth]\ndeadline = \"1h\"\n[auth.session_cookie]\nenabled = true\n\
                       secrets = [\"integration-session-secret-0123456789\"]\n";

#[tokio::test]
async fn field_c8_who_is_signed_out_is_told_at_once() {
    for config in [COOKIE, SESSION] {
        let gateway = gateway::with(config).await;
        for cookie in ["other=1", "jwt=; next-auth.session-token="] {
            let open = Client::open(&gateway.public, "/ws", &[("cookie", cookie)]).await;
            let (code, reason, _) = open.unwrap().closed().await;
            assert_eq!((code, reason.as_str()), (4401, "missing"), "{cookie}");
        }
        assert_eq!(gateway.metric("auth_failures_total{reason=\"missing\"}").await, 2.0);
        // A client that is going to send a message says so.
        let mut client = Client::open(&gateway.public, "/ws?auth=message", &[]).await.unwrap();
        client.send(json!({"type": "auth", "token": token("u1")})).await;
        assert_eq!(client.next().await["data"]["userId"], "u1");
    }

    // Without cookies a message may come from any client.
    let gateway = gateway::start().await;
    let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    client.send(json!({"type": "auth", "token": token("u1")})).await;
    assert_eq!(client.next().await["data"]["userId"], "u1");

    // Where no token is needed, the gateway waits for a client that announces one.
    let anonymous = format!("{COOKIE}anonymous = true\n");
    let gateway = gateway::with(&anonymous).await;
    let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    assert_eq!(client.next().await["data"]["userId"], Value::Null);
    let mut client = Client::open(&gateway.public, "/ws?auth=message", &[]).await.unwrap();
    client.send(json!({"type": "auth", "token": token("u1")})).await;
    assert_eq!(client.next().await["data"]["userId"], "u1");
}

#[tokio::test]
async fn field_c8_of_several_tokens_the_first_that_verifies_counts() {
    let mut gateway = gateway::with(COOKIE).await;
    let good = token("u1");
    let foreign =
        sign(&json!({"sub": "evil", "exp": now() + 60}), "another-secret-0123456789-abcdefgh");
    let ended = sign(&json!({"sub": "u1", "exp": now() - 60}), SECRET);
    let (stale, fresh) = (format!("jwt={foreign}"), format!("jwt={good}"));
    let both = format!("jwt={ended}; jwt={good}");
    let (bearer, query) = (format!("Bearer {foreign}"), format!("/ws?token={good}"));

    for (path, headers) in [
        (&*query, vec![("cookie", &*stale)]),
        ("/ws", vec![("authorization", &*bearer), ("cookie", &*fresh)]),
        ("/ws", vec![("cookie", &*both)]),
        (&*query, vec![("authorization", &*bearer), ("cookie", &*stale)]),
    ] {
        let mut client = Client::open(&gateway.public, path, &headers).await.unwrap();
        assert_eq!(client.next().await["data"]["userId"], "u1", "{path} {headers:?}");
    }

    let line = gateway.logged("token ignored").await;
    for part in ["carrier=\"cookie\"", "accepted=\"query\"", "reason=bad_signature"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    // No client was refused, so nothing is counted.
    assert_eq!(gateway.metric("auth_failures_total").await, 0.0);
    assert!(!gateway.log().contains(&foreign[..40]));

    let stream = format!(
        "GET /sse?token={ended} HTTP/1.1\r\nHost: x\r\nCookie: {stale}\r\nConnection: close\r\n\r\n"
    );
    assert_eq!(http(&gateway.public, &stream).await, (401, "expired".to_owned()));
    let path = format!("/ws?token={ended}");
    let mut client = Client::open(&gateway.public, &path, &[("cookie", &stale)]).await.unwrap();
    assert_eq!(client.closed().await.1, "expired", "what the page gave itself");
}
