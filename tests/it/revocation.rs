//! Revoked tokens: on every replica, at once, and after a restart.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::redis::Redis;
use tollgate_support::sse::Stream;
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway;

fn with_jti(user: &str, jti: &str, issued_at: u64) -> String {
    sign(&json!({"sub": user, "jti": jti, "iat": issued_at, "exp": now() + 600}), SECRET)
}

#[tokio::test]
async fn a_revoked_token_ends_on_every_replica_and_after_a_restart() {
    let redis = Redis::start().await;
    let (here, there) = (gateway::on_redis(&redis).await, gateway::on_redis(&redis).await);
    eventually("both replicas", || async {
        let nodes = here.api("info", &json!({})).await;
        (nodes["result"]["nodes"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    let (bad, good) = (with_jti("u1", "t1", now()), with_jti("u1", "t2", now()));
    let mut closed = [
        Client::connect_with(&here, "/ws", &bad).await,
        Client::connect_with(&there, "/ws", &bad).await,
    ];
    let mut kept = Client::connect_with(&there, "/ws", &good).await;

    let answer = here.api("revoke_token", &json!({"jti": "t1", "expire_at": now() + 600})).await;
    assert_eq!(answer, json!({"result": {}}));
    for client in &mut closed {
        let (code, reason, _) = client.closed().await;
        assert_eq!((code, reason.as_str()), (4409, "revoked"));
    }
    kept.nothing_came().await;
    for gateway in [&here, &there] {
        assert_eq!(Client::refused(gateway, &bad).await, (4401, "revoked".to_owned()));
    }

    drop(there);
    let again = gateway::on_redis(&redis).await;
    again.metric_reaches("revocations", 1.0).await;
    assert_eq!(Client::refused(&again, &bad).await, (4401, "revoked".to_owned()));
    drop(Client::connect_with(&again, "/ws", &good).await);
    assert_eq!(again.metric("auth_failures_total{reason=\"revoked\"}").await, 1.0);
}

#[tokio::test]
async fn a_users_tokens_are_invalidated_by_their_time() {
    let gateway = gateway::start().await;
    let old = with_jti("u1", "a", now() - 60);
    let mut closed = Client::connect_with(&gateway, "/ws", &old).await;
    let mut without = Client::connect(&gateway, "u1").await;
    let mut other = Client::connect_with(&gateway, "/ws", &with_jti("u12", "a", now() - 60)).await;

    let body = json!({"user": "u1", "issued_before": now() - 1});
    assert_eq!(gateway.api("invalidate_user_tokens", &body).await, json!({"result": {}}));
    assert_eq!(closed.closed().await.0, 4409);
    assert_eq!(without.closed().await.0, 4409, "without an iat nothing shows that it is newer");
    other.nothing_came().await;
    assert_eq!(Client::refused(&gateway, &old).await.1, "revoked");
    let mut fresh = Client::connect_with(&gateway, "/ws", &with_jti("u1", "b", now())).await;

    // A refresh with a revoked token is refused, and the socket keeps the token it has.
    fresh.send(json!({"type": "refresh", "token": old})).await;
    assert_eq!(fresh.next().await["data"]["message"], "revoked");
    fresh.nothing_came().await;

    for (method, body) in [
        ("revoke_token", json!({"jti": ""})),
        ("revoke_token", json!({})),
        ("revoke_token", json!({"jti": "x", "expire_at": 5})),
        ("revoke_token", json!({"jti": "x", "expire_at": now() * 1000})),
        ("invalidate_user_tokens", json!({"user": ""})),
    ] {
        let answer: Value = gateway.api(method, &body).await;
        assert_eq!(answer["error"]["code"], 107, "{method} {body}: {answer}");
    }
    drop(token("u1"));
}

/// `iat` has whole seconds: a token of the second in which the user was locked out stayed good.
#[tokio::test]
async fn field_f8_tokens_of_the_second_of_the_invalidation_are_out() {
    let gateway = gateway::start().await;
    let with_iat = |iat: Value| sign(&json!({"sub": "u1", "iat": iat, "exp": now() + 600}), SECRET);
    let before = now();
    let mut open = Client::connect_with(&gateway, "/ws", &with_iat(json!(before))).await;
    let answer = gateway.api("invalidate_user_tokens", &json!({"user": "u1"})).await;
    assert_eq!(answer, json!({"result": {}}));
    let after = now();

    assert_eq!(open.closed().await.1, "revoked");
    for iat in [json!(before), json!(before as f64 + 0.9)] {
        assert_eq!(Client::refused(&gateway, &with_iat(iat)).await.1, "revoked");
    }
    // A token of the next second is a new one.
    drop(Client::connect_with(&gateway, "/ws", &with_iat(json!(after + 1))).await);

    // A caller that names the moment gets exactly that one.
    let body = json!({"user": "u2", "issued_before": before});
    assert_eq!(gateway.api("invalidate_user_tokens", &body).await, json!({"result": {}}));
    let of_u2 = |iat: u64| sign(&json!({"sub": "u2", "iat": iat, "exp": now() + 600}), SECRET);
    assert_eq!(Client::refused(&gateway, &of_u2(before - 1)).await.1, "revoked");
    drop(Client::connect_with(&gateway, "/ws", &of_u2(before)).await);

    // Milliseconds would lock the user out for ever.
    let body = json!({"user": "u2", "issued_before": now() * 1000});
    assert_eq!(gateway.api("invalidate_user_tokens", &body).await["error"]["code"], 107);
}

/// A Redis that lost its data gets the revocations back from the replicas: they outlive both.
#[tokio::test]
async fn redis_gets_revocations_back_that_it_lost() {
    let mut redis = Redis::start().await;
    let gateway = gateway::on_redis(&redis).await;
    let token = with_jti("u1", "t1", now());
    for (method, body) in [
        ("revoke_token", json!({"jti": "t1", "expire_at": now() + 600})),
        ("invalidate_user_tokens", json!({"user": "u2"})),
    ] {
        assert_eq!(gateway.api(method, &body).await, json!({"result": {}}));
    }

    redis.restart().await;
    let kept = || async {
        let mut connection = redis.try_connection()?;
        let kept: u64 =
            redis::cmd("ZCARD").arg("gateway:tollgate:revoked").query(&mut connection).ok()?;
        (kept == 2).then_some(())
    };
    eventually("they are back", kept).await;

    drop(gateway);
    let again = gateway::on_redis(&redis).await;
    again.metric_reaches("revocations", 2.0).await;
    assert!(!again.log().contains("written back"), "there is nothing to put back");
    assert_eq!(Client::refused(&again, &token).await, (4401, "revoked".to_owned()));
}

/// A replica finds in the store what it missed while it could not hear.
#[tokio::test]
async fn a_revocation_during_an_outage_is_found_afterwards() {
    let redis = Redis::start().await;
    let gateway = gateway::on_redis(&redis).await;
    let token = with_jti("u1", "t1", now());
    let mut client = Client::connect_with(&gateway, "/ws", &token).await;
    // Another replica stored the revocation; its control message never came here.
    let entry = json!({"kind": "token", "jti": "t1", "until": now() + 600}).to_string();
    redis::cmd("ZADD")
        .arg("gateway:tollgate:revoked")
        .arg(now() + 600)
        .arg(entry)
        .exec(&mut redis.connection())
        .unwrap();
    redis.kill_clients("pubsub");
    assert_eq!(client.closed().await.0, 4409);
}

/// A replica that had just started was ready, and let revoked tokens in, before it had read what
/// was revoked; if it could not read that, it did so for ever.
#[tokio::test]
async fn field_b3_no_token_is_accepted_before_what_was_revoked_is_known() {
    let redis = Redis::start().await;
    let spoil = || {
        redis::cmd("SET")
            .arg("gateway:tollgate:revoked")
            .arg("x")
            .exec(&mut redis.connection())
            .unwrap();
    };
    let mend =
        || redis::cmd("DEL").arg("gateway:tollgate:revoked").exec(&mut redis.connection()).unwrap();

    spoil();
    let config = format!("{}[auth]\ndeadline = \"1s\"\n", redis.config());
    let mut gateway = gateway::with(&config).await;
    gateway.logged("revocations cannot be read from the store: this replica is not ready").await;
    let health = async |gateway: &Gateway| {
        let (status, body) = gateway.get_admin("/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let check = &body["checks"]["revocations"];
        (status, body["degraded"] == true, check["ok"] == true, check["error"].is_string())
    };

    assert_eq!(health(&gateway).await, (503, false, false, true));
    let (first, second) = (with_jti("u1", "t1", now()), with_jti("u1", "t2", now()));
    let ours = (1013, "revocations_unavailable".to_owned());
    assert_eq!(Client::refused(&gateway, &first).await, ours);
    assert_eq!(gateway.metric("revocations_readable").await, 0.0);
    let stream = format!("channels=user:u1&token={first}");
    assert_eq!(Stream::open(&gateway, &stream, &[]).await.err().map(|e| e.0), Some(503));

    mend();
    gateway.ready().await;
    let mut revoked = Client::connect_with(&gateway, "/ws", &first).await;
    gateway.metric_reaches("revocations_readable", 1.0).await;
    assert_eq!(health(&gateway).await, (200, false, true, false));
    let answer = gateway.api("revoke_token", &json!({"jti": "t1"})).await;
    assert_eq!(answer, json!({"result": {}}));
    assert_eq!(revoked.closed().await.0, 4409);

    // A replica that cannot read the store later is degraded, and goes on with what it knows.
    spoil();
    redis.kill_clients("pubsub");
    gateway.logged("known ones still apply").await;
    assert_eq!(gateway.metric("revocations_readable").await, 0.0);
    eventually("degraded for that alone", || async {
        (health(&gateway).await == (200, true, false, true)).then_some(())
    })
    .await;
    assert_eq!(Client::refused(&gateway, &first).await, (4401, "revoked".to_owned()));
    drop(Client::connect_with(&gateway, "/ws", &second).await);

    mend();
    eventually("it is over", || async {
        (health(&gateway).await == (200, false, true, false)).then_some(())
    })
    .await;
    gateway.logged("revocations read from the store").await;
}

/// A start reads all revocations, however many there are and whatever else stands among them.
#[tokio::test]
async fn field_b3_a_start_with_twenty_thousand_revocations_lets_none_in() {
    const MANY: usize = 20_000;
    let redis = Redis::start().await;
    let mut connection = redis.connection();

    for chunk in (0..MANY).collect::<Vec<_>>().chunks(1000) {
        let mut add = redis::cmd("ZADD");
        add.arg("gateway:tollgate:revoked");
        for n in chunk {
            // Many end in the same second: more than one answer holds.
            let until = now() + 600 + (*n as u64) / 7000;
            let entry = json!({"kind": "token", "jti": format!("t{n}"), "until": until});
            add.arg(until).arg(entry.to_string());
        }
        add.exec(&mut connection).unwrap();
    }

    let bad = [
        "",
        "garbage",
        "{}",
        "[]",
        r#"{"kind":"other","until":9}"#,
        "\u{1}\u{0}",
        &"x".repeat(9000),
    ];
    for entry in bad {
        let score = format!("{}.5", now() + 700);
        redis::cmd("ZADD")
            .arg("gateway:tollgate:revoked")
            .arg(score)
            .arg(entry)
            .exec(&mut connection)
            .unwrap();
    }

    // Early clients wait for the revocations, on a busy machine longer than usual.
    let config = format!("{}[auth]\ndeadline = \"30s\"\n", redis.config());
    for _ in 0..3 {
        // The clients come at once, before the gateway is ready.
        let gateway = gateway::with(&config).await;
        let tokens = (0..MANY).step_by(MANY / 16).map(|n| with_jti("u1", &format!("t{n}"), now()));
        let tokens: Vec<_> = tokens.collect();
        let refused = tokens.iter().map(|token| Client::refused(&gateway, token));
        for refused in futures_util::future::join_all(refused).await {
            assert_eq!(refused, (4401, "revoked".to_owned()));
        }

        gateway.ready().await;
        assert_eq!(gateway.metric("revocations ").await, MANY as f64);
        assert_eq!(gateway.metric("revocations_unusable").await, bad.len() as f64);
        let said = "this version cannot use some stored revocations";
        eventually("the log says it", || async { gateway.log().contains(said).then_some(()) })
            .await;
        assert_eq!(gateway.log().matches(said).count(), 1, "once");
        drop(Client::connect_with(&gateway, "/ws", &with_jti("u1", "other", now())).await);
    }
}
