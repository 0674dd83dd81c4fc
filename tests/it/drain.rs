//! SIGTERM: a rollout that clients follow without an error.

use serde_json::json;
use tokio::net::TcpStream;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::redis::Redis;

use super::gateway;

#[tokio::test]
async fn w21_sigterm_tells_every_socket_and_exits_zero() {
    let redis = Redis::start().await;
    let config = redis.config() + "[drain]\nsettle = \"400ms\"\nwindow = \"1s\"\n";
    let mut leaving = gateway::with(&config).await;
    let staying = gateway::on_redis(&redis).await;
    leaving.ready().await;

    let mut clients = Vec::new();
    for i in 0..50 {
        clients.push(Client::connect(&leaving, &format!("u{i}")).await);
    }
    let mut other = Client::connect(&staying, "u0").await;

    leaving.signal("-TERM");
    eventually("not ready", || async {
        (leaving.get_admin("/readyz").await.0 == 503).then_some(())
    })
    .await;

    // A draining gateway still accepts while load balancers find out.
    clients.push(Client::connect(&leaving, "late").await);
    for client in &mut clients {
        let (code, _, before) = client.closed().await;
        assert_eq!(code, 1012);
        let last = before.last().expect("a hint");
        assert_eq!(last["type"], "reconnect");
        assert!((50..=1000).contains(&last["data"]["afterMs"].as_u64().unwrap()));
    }

    assert!(leaving.exited().await.success());
    assert!(TcpStream::connect(&leaving.public).await.is_err(), "nobody listens any more");
    redis.publish("tollgate:user:u0", "1");
    assert_eq!(other.next().await, json!(1), "the other replica's sockets are untouched");
}

#[tokio::test]
async fn w21_a_second_signal_exits_at_once() {
    let mut gateway = gateway::with("[drain]\nsettle = \"1h\"\nwindow = \"1h\"\n").await;
    let _client = Client::connect(&gateway, "u1").await;
    gateway.signal("-TERM");
    gateway.logged("draining").await;
    gateway.signal("-TERM");
    gateway.exited().await;
}

/// A signal that comes the moment the process says that it runs is a drain, not a kill.
#[tokio::test]
async fn a_signal_right_after_the_start_drains() {
    for _ in 0..10 {
        let mut gateway = gateway::with("[drain]\nsettle = \"0s\"\nwindow = \"0s\"\n").await;
        gateway.signal("-TERM");
        assert!(gateway.exited().await.success());
    }
}

/// W12 meets W21: a client that does not read does not hold up the end.
#[tokio::test]
async fn a_stuck_client_does_not_hold_up_the_drain() {
    let mut gateway = gateway::start().await;
    let stuck = Client::connect(&gateway, "u1").await;
    for _ in 0..40 {
        gateway.publish("user:u1", &json!("x".repeat(100_000))).await;
    }
    gateway.signal("-TERM");
    assert!(gateway.exited().await.success());
    drop(stuck);
}
