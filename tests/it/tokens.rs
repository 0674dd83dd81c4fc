//! Tokens on real sockets: refusals, expiry, refresh.

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway;

#[tokio::test]
async fn a_refused_token_says_why_and_is_counted() {
    let gateway = gateway::with("[auth]\nissuer = [\"app\"]\naudience = [\"rt\"]\n").await;
    let good = json!({"sub": "u", "exp": now() + 60, "iss": "app", "aud": "rt"});
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[name] = value;
        sign(&claims, SECRET)
    };
    for (token, reason) in [
        (sign(&good, "another secret of sufficient length"), "bad_signature"),
        (with("exp", json!(now() - 1)), "expired"),
        (with("nbf", json!(now() + 60)), "not_yet_valid"),
        (with("iss", json!("other")), "issuer_mismatch"),
        (with("aud", json!(["other"])), "audience_mismatch"),
        (with("exp", json!("soon")), "claim_invalid"),
        ("a.b.c.d.e".to_owned(), "encrypted"),
        ("nonsense".to_owned(), "malformed"),
        ("x".repeat(17_000), "oversize"),
        ("eyJhbGciOiJub25lIn0.e30.".to_owned(), "alg_none"),
    ] {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let mut client = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
        let (code, said, _) = client.closed().await;

        assert_eq!((code, said.as_str()), (4401, reason));
        let series = format!("auth_failures_total{{reason=\"{reason}\"}}");
        assert_eq!(gateway.metric(&series).await, 1.0, "{reason}");
    }
    Client::connect_with(&gateway, "/ws", &sign(&good, SECRET)).await;
}

#[tokio::test]
async fn five_wrong_secrets_are_five_bad_signatures() {
    let gateway = gateway::start().await;
    for i in 0..5 {
        let token = sign(&json!({"sub": format!("u{i}"), "exp": now() + 60}), "your-secret-key");
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        Client::open(&gateway.public, "/ws", &headers).await.unwrap().closed().await;
    }
    let (_, metrics) = gateway.get_admin("/metrics").await;
    assert!(metrics.contains("tollgate_auth_failures_total{reason=\"bad_signature\"} 5\n"));
}

#[tokio::test]
async fn reject_http_answers_401_without_an_upgrade() {
    let gateway = gateway::with("[auth]\nreject = \"http\"\n").await;
    let headers = [("authorization", "Bearer a.b.c")];
    match Client::open(&gateway.public, "/ws", &headers).await {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            assert_eq!(response.status(), 401);
            assert_eq!(response.headers()["connection"], "close");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test]
async fn a_token_that_ends_is_announced_and_then_closes_the_socket() {
    let gateway = gateway::with("[auth]\nexpiring_notice = \"5s\"\n").await;
    let exp = now() + 10;
    let token = sign(&json!({"sub": "u1", "exp": exp}), SECRET);
    let mut client = Client::connect_with(&gateway, "/ws", &token).await;
    assert_eq!(client.next().await, json!({"type": "token_expiring", "data": {"expiresAt": exp}}));
    let (code, reason, _) = client.closed().await;
    assert_eq!((code, reason.as_str()), (4401, "expired"));
    assert!(now() >= exp, "not before its time");
}

#[tokio::test]
async fn refresh_keeps_the_socket_and_takes_away_what_the_new_token_lacks() {
    let rules = r#"
[[channels]]
pattern = "post:{id}"
allow = "granted"
"#;
    let gateway = gateway::with(rules).await;
    let exp = now() + 8;
    let claims = json!({"sub": "u1", "exp": exp, "channels": ["post:1", "post:2"]});
    let mut client = Client::connect_with(&gateway, "/ws", &sign(&claims, SECRET)).await;
    for channel in ["post:1", "post:2"] {
        assert_eq!(client.subscribe(json!(channel)).await["type"], "subscribed");
    }

    client.send(json!({"type": "refresh", "token": token("u2")})).await;
    assert_eq!(client.next().await["data"]["code"], "token_refused", "another user");

    let later = json!({"sub": "u1", "exp": now() + 60, "channels": ["post:1"]});
    client.send(json!({"type": "refresh", "id": 5, "token": sign(&later, SECRET)})).await;
    assert_eq!(client.next().await["data"]["channelKey"], "post:2", "unsubscribed");
    let refreshed = client.next().await;
    assert_eq!((&refreshed["type"], &refreshed["id"]), (&json!("refreshed"), &json!(5)));

    eventually("the old token's end", || async { (now() > exp + 1).then_some(()) }).await;
    gateway.publish("post:2", &json!(2)).await;
    gateway.publish("post:1", &json!(1)).await;
    assert_eq!(client.next().await, json!(1));
}

/// A7: a refresh that is refused changes nothing; the old token still ends the socket.
#[tokio::test]
async fn a7_a_refused_refresh_leaves_the_old_end() {
    let gateway = gateway::start().await;
    let claims = json!({"sub": "u1", "exp": now() + 8});
    let mut client = Client::connect_with(&gateway, "/ws", &sign(&claims, SECRET)).await;
    client.send(json!({"type": "refresh", "token": "a.b.c"})).await;
    assert_eq!(client.next().await["data"]["message"], "malformed");
    assert_eq!(client.closed().await.1, "expired");
}

/// A token that lives no longer than `auth.expiring_notice` was never announced; one that lives a
/// second longer was announced at once, and so was its successor.
#[tokio::test]
async fn field_c7_the_notice_is_a_share_of_the_tokens_life() {
    let gateway = gateway::start().await;
    let short = || {
        let exp = now() + 8;
        (sign(&json!({"sub": "u1", "exp": exp}), SECRET), exp)
    };
    let (token, exp) = short();
    let mut client = Client::connect_with(&gateway, "/ws", &token).await;
    for end in [Some(exp), None] {
        let notice = client.next().await;
        assert_eq!(notice["type"], "token_expiring");
        let end = end.unwrap_or_else(|| notice["data"]["expiresAt"].as_u64().unwrap());
        assert_eq!(notice["data"]["expiresAt"], end);
        assert!(now() + 8 / 4 >= end, "only when most of its life is over");

        // The next token counts from its own life.
        client.send(json!({"type": "refresh", "token": short().0})).await;
        assert_eq!(client.next().await["type"], "refreshed");
        client.nothing_came().await;
    }
}
