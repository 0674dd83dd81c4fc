//! Subscription tokens and the callback rule.

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::http::API_KEY;
use tollgate_support::tokens::{SECRET, now, sign};

use super::doctor_url::{Certificates, nginx};
use super::gateway;
use super::upstream::Upstream;

fn subscription(user: &str, channel: &str, exp: u64) -> String {
    sign(&json!({"sub": user, "channel": channel, "exp": exp}), SECRET)
}

#[tokio::test]
async fn a_subscription_token_opens_exactly_its_channel_for_its_user() {
    let rules = "[[channels]]\npattern = \"room:{id}\"\nallow = \"token\"\n";
    let gateway = gateway::with(rules).await;
    let mut client = Client::connect(&gateway, "u1").await;
    let later = now() + 600;

    for (channel, token, code, message) in [
        ("room:1", None, "token_refused", "missing"),
        ("room:1", Some(subscription("u2", "room:1", later)), "token_refused", "claim_invalid"),
        ("room:1", Some(subscription("u1", "room:12", later)), "token_refused", "claim_invalid"),
        ("room:1", Some(subscription("u1", "room:1", now() - 1)), "token_refused", "expired"),
        (
            "room:1",
            Some(sign(&json!({"sub": "u1", "exp": later}), SECRET)),
            "token_refused",
            "claim_invalid",
        ),
        ("room:1", Some("a.b.c".to_owned()), "token_refused", "malformed"),
    ] {
        client
            .send(json!({"type": "subscribe", "id": 1, "channel": channel, "token": token}))
            .await;
        let answer = client.next().await;
        assert_eq!(answer["data"]["code"], code, "{answer}");
        assert!(answer["data"]["message"].as_str().unwrap().starts_with(message), "{answer}");
    }

    let token = subscription("u1", "room:1", later);
    client.send(json!({"type": "subscribe", "id": 2, "channel": "room:1", "token": token})).await;
    assert_eq!(client.next().await["type"], "subscribed");
    gateway.publish("room:1", &json!(1)).await;
    assert_eq!(client.next().await, json!(1));

    // A subscription token opens no connection (RFC 8725 section 3.12).
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let mut confused = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
    assert_eq!(confused.closed().await.1, "claim_invalid");
    gateway.metric_reaches("auth_diagnoses_total{cause=\"wrong_token_kind\"}", 0.0).await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_token() {
    let rules = "[[channels]]\npattern = \"room:{id}\"\nallow = \"token\"\n";
    let gateway = gateway::with(rules).await;
    let mut client = Client::connect_with(
        &gateway,
        "/ws",
        &sign(&json!({"sub": "u1", "exp": now() + 600}), SECRET),
    )
    .await;

    let exp = now() + 9;
    for (channel, exp) in [("room:1", exp), ("room:2", now() + 600)] {
        let token = subscription("u1", channel, exp);
        client.send(json!({"type": "subscribe", "channel": channel, "token": token})).await;
        assert_eq!(client.next().await["type"], "subscribed");
    }

    let ended = client.next().await;
    assert_eq!(
        (&ended["type"], &ended["data"]["channelKey"]),
        (&json!("unsubscribed"), &json!("room:1"))
    );
    assert!(now() >= exp, "not before its time");
    gateway.publish("room:1", &json!(1)).await;
    gateway.publish("room:2", &json!(2)).await;
    assert_eq!(client.next().await, json!(2));
}

/// An application inside a cluster often has a certificate of its own authority, or a
/// self-signed one.
#[tokio::test]
async fn field_d4_a_callback_may_have_a_certificate_that_is_given() {
    let upstream = Upstream::start().await;
    upstream.answers(200, &json!({"allow": true}));
    let certificates = Certificates::new();
    let server = certificates.self_signed();
    let pass = format!("location / {{ proxy_pass {}; }}", upstream.url);
    let nginx = nginx(&pass, Some(&server)).await;

    for (ca, expected) in [(format!("{server}.pem"), "subscribed"), (String::new(), "error")] {
        let config = format!(
            "[callback]\nurl = \"https://{}/may\"\nca_file = \"{ca}\"\n\
             [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\n",
            nginx.address
        );
        let gateway = gateway::with(&config).await;
        let mut client = Client::connect(&gateway, "u1").await;
        let answer = client.subscribe(json!("post:1")).await;
        assert_eq!(answer["type"], expected, "{answer}");
    }
    assert_eq!(upstream.asked().len(), 1);
}

#[tokio::test]
async fn the_callback_decides_and_fails_closed() {
    let upstream = Upstream::start().await;
    let config = format!(
        "[callback]\nurl = \"{}/may\"\nsecret = \"between-us\"\ntimeout = \"4s\"\ncache_ttl = \"1h\"\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\nsend_claims = [\"plan\"]\n",
        upstream.url
    );
    let gateway = gateway::with(&config).await;
    let token =
        sign(&json!({"sub": "u1", "exp": now() + 600, "plan": "gold", "email": "x"}), SECRET);
    let mut client = Client::connect_with(&gateway, "/ws", &token).await;

    upstream.answers(200, &json!({"allow": true, "data": {"unread": 3}}));
    let answer = client.subscribe(json!("post:1")).await;
    assert_eq!(
        (&answer["type"], &answer["data"]["data"]),
        (&json!("subscribed"), &json!({"unread": 3}))
    );
    let asked = &upstream.asked()[0];
    assert_eq!(asked.0, "Bearer between-us");
    assert_eq!(asked.1, json!({"user": "u1", "channel": "post:1", "claims": {"plan": "gold"}}));

    // The application is not asked again about another socket with the same claims.
    let mut second = Client::connect_with(&gateway, "/ws", &token).await;
    assert_eq!(second.subscribe(json!("post:1")).await["type"], "subscribed");
    assert_eq!(upstream.count(), 1);
    upstream.answers(200, &json!({"allow": false}));
    assert_eq!(client.subscribe(json!("post:2")).await["data"]["code"], "forbidden");

    // An unclear answer counts as a no, and the question is asked again.
    for (status, body) in
        [(500, "{\"allow\":true}"), (302, ""), (200, "yes"), (200, "{}"), (200, "{\"allow\":1}")]
    {
        upstream.answers_text(status, body);
        let answer = client.subscribe(json!("post:3")).await;
        assert_eq!(answer["data"]["code"], "callback_failed", "{status} {body}: {answer}");
    }

    upstream.stalls(true);
    assert_eq!(client.subscribe(json!("post:3")).await["data"]["code"], "callback_failed");
    upstream.stalls(false);
    upstream.answers(200, &json!({"allow": true}));
    assert_eq!(client.subscribe(json!("post:3")).await["type"], "subscribed");
    assert_eq!(gateway.metric("callbacks_total{result=\"failed\"}").await, 6.0);
    assert!(!gateway.log().contains("between-us"), "no secret in the log");
}

/// Serde also reads a struct from a list of its fields: `[true]` allowed, and lists were commands.
#[tokio::test]
async fn field_f6_a_list_in_the_place_of_an_object_is_refused_from_everybody() {
    let upstream = Upstream::start().await;
    let config = format!(
        "[callback]\nurl = \"{}/may\"\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\n\
         [[channels]]\npattern = \"room:{{id}}\"\nallow = \"authenticated\"\n",
        upstream.url
    );
    let gateway = gateway::with(&config).await;
    let mut client = Client::connect(&gateway, "u1").await;

    for text in [
        r#"["subscribe",7,"room:1",null,null]"#,
        r#"["ping"]"#,
        r#"{"type":"subscribe","channel":["room","1"]}"#,
        r#"{"type":"subscribe","channel":"room:1","since":["1a",7]}"#,
    ] {
        client.send_text(text).await;
        assert_eq!(client.next().await["data"]["code"], "bad_request", "{text}");
    }

    for body in ["[true]", "[true,null]", "[{\"allow\":true}]"] {
        upstream.answers_text(200, body);
        let answer = client.subscribe(json!("post:1")).await;
        assert_eq!(answer["data"]["code"], "callback_failed", "{body}: {answer}");
    }

    for (method, body) in [
        ("publish", r#"["room:1",{"a":1},false,null]"#),
        ("broadcast", r#"[["room:1"],{"a":1}]"#),
        ("disconnect", r#"["u1",null]"#),
        ("revoke_token", r#"["t1",null]"#),
        ("invalidate_user_tokens", r#"["u1",null,null]"#),
    ] {
        let (_, answer) = gateway.api_raw(method, Some(API_KEY), body).await;
        assert!(answer.contains("expected an object"), "{method}: {answer}");
    }
    client.nothing_came().await;
}

/// A renewal was answered with `subscribed`, yet the first token's end still counted; a
/// subscription that was given up left its end behind for the next one.
#[tokio::test]
async fn a_subscription_is_renewed_by_a_later_token() {
    let rules = "[[channels]]\npattern = \"room:{id}\"\nallow = \"token\"\n";
    let gateway = gateway::with(rules).await;
    let mut client = Client::connect(&gateway, "u1").await;
    let exp = now() + 8;
    let subscribe = |channel: &str, exp: u64| json!({"type": "subscribe", "channel": channel, "token": subscription("u1", channel, exp)});

    for (channel, exp) in [("room:1", exp), ("room:2", exp), ("room:1", now() + 600)] {
        client.send(subscribe(channel, exp)).await;
        assert_eq!(client.next().await["type"], "subscribed");
    }

    client.send(json!({"type": "unsubscribe", "channel": "room:2"})).await;
    client.send(subscribe("room:2", now() + 600)).await;
    for kind in ["unsubscribed", "subscribed"] {
        assert_eq!(client.next().await["type"], kind);
    }

    eventually("the first tokens' end", || async { (now() > exp + 1).then_some(()) }).await;
    for (channel, n) in [("room:1", 1), ("room:2", 2)] {
        gateway.publish(channel, &json!(n)).await;
        assert_eq!(client.next().await, json!(n), "{channel} is still subscribed");
    }
}

#[tokio::test]
async fn a_revoked_subscription_token_ends_its_subscription_only() {
    let rules = "[[channels]]\npattern = \"room:{id}\"\nallow = \"token\"\n";
    let gateway = gateway::with(rules).await;
    let mut client = Client::connect(&gateway, "u1").await;
    for (channel, jti) in [("room:1", "s1"), ("room:2", "s2")] {
        let claims = json!({"sub": "u1", "channel": channel, "jti": jti, "exp": now() + 600});
        client
            .send(json!({"type": "subscribe", "channel": channel, "token": sign(&claims, SECRET)}))
            .await;
        assert_eq!(client.next().await["type"], "subscribed");
    }

    assert_eq!(gateway.api("revoke_token", &json!({"jti": "s1"})).await, json!({"result": {}}));
    assert_eq!(client.next().await["data"]["channelKey"], "room:1");
    gateway.publish("room:2", &json!(2)).await;
    assert_eq!(client.next().await, json!(2));
}

/// A refresh asks the application again: a permission does not outlive what it was given for.
#[tokio::test]
async fn a_refresh_asks_the_callback_again() {
    let upstream = Upstream::start().await;
    let config = format!(
        "[callback]\nurl = \"{}\"\ntimeout = \"4s\"\ncache_ttl = \"0s\"\n\
         [[channels]]\npattern = \"post:{{id}}\"\nallow = \"callback\"\nsend_claims = [\"plan\"]\n",
        upstream.url
    );
    let gateway = gateway::with(&config).await;
    let token = |plan: &str| sign(&json!({"sub": "u1", "exp": now() + 600, "plan": plan}), SECRET);
    let mut client = Client::connect_with(&gateway, "/ws", &token("gold")).await;

    upstream.answers(200, &json!({"allow": true}));
    assert_eq!(client.subscribe(json!("post:1")).await["type"], "subscribed");

    // A callback that fails is no clear no.
    upstream.answers(500, &json!({}));
    client.send(json!({"type": "refresh", "token": token("gold")})).await;
    assert_eq!(client.next().await["type"], "refreshed");

    upstream.answers(200, &json!({"allow": false}));
    client.send(json!({"type": "refresh", "token": token("free")})).await;
    assert_eq!(client.next().await["data"]["channelKey"], "post:1");
    assert_eq!(client.next().await["type"], "refreshed");
    assert_eq!(upstream.asked().last().unwrap().1["claims"], json!({"plan": "free"}));
}

/// Questions about one user, however slow, leave places for those about others.
#[tokio::test]
async fn field_f7_one_user_does_not_take_all_places_of_the_callback() {
    let upstream = Upstream::start().await;
    upstream.answers(200, &json!({"allow": true}));
    upstream.stalls_for("u1");
    let config = format!(
        "[callback]\nurl = \"{}\"\ntimeout = \"10s\"\nconcurrency = 4\ncache_ttl = \"0s\"\n\
         [[channels]]\npattern = \"room:{{id}}\"\nallow = \"callback\"\n",
        upstream.url
    );
    let gateway = gateway::with(&config).await;

    let mut greedy = Vec::new();
    for n in 0..12 {
        let mut client = Client::connect(&gateway, "u1").await;
        client.send(json!({"type": "subscribe", "channel": format!("room:{n}")})).await;
        greedy.push(client);
    }

    eventually("a question", || std::future::ready((upstream.count() > 0).then_some(()))).await;
    let mut other = Client::connect(&gateway, "u2").await;
    for n in 0..5 {
        assert_eq!(other.subscribe(json!(format!("room:{n}"))).await["type"], "subscribed");
    }
    assert_eq!(upstream.count(), 6, "one of the greedy user's at a time");
}
