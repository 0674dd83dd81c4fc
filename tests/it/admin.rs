//! The admin listener.

use serde_json::{Value, json};
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::http::http;

use super::gateway;

#[tokio::test]
async fn health_and_connections() {
    let gateway = gateway::start().await;
    let client = Client::connect(&gateway, "u1").await;
    let (status, body) = gateway.get_admin("/livez").await;
    assert_eq!((status, body.contains("\"alive\":true")), (200, true));

    let (status, body) = gateway.get_admin("/readyz").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["ready"]), (200, &json!(true)));
    for check in ["broker_started", "broker_subscriber", "broker_publisher", "draining"] {
        assert_eq!(body["checks"][check]["ok"], true, "{check}");
    }

    let (_, body) = gateway.get_admin("/debug/connections?user=u1").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["total"], 1);
    let listed = &body["connections"][0];
    assert_eq!(listed["id"], client.id());
    assert_eq!(listed["channels"], json!(["user:u1"]));
    assert_eq!(gateway.get_admin("/nothing").await.0, 404);
}

/// A16: the paths of operators are not on the public listener.
#[tokio::test]
async fn a16_admin_paths_are_not_public() {
    let gateway = gateway::start().await;
    for path in ["/metrics", "/livez", "/readyz", "/debug/connections", "/", "/dev/token?user=x"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(http(&gateway.public, &request).await.0, 404, "{path}");
    }
    for path in ["/connection/websocket", "/emulation"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (status, body) = http(&gateway.public, &request).await;
        assert_eq!(status, 501);
        assert!(body.contains("a plain WebSocket at /ws"), "{body}");
    }
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    gateway.publish("user:u1", &json!(1)).await;
    client.next().await;
    gateway.metric_reaches("deliveries_total{wire=\"plain\"}", 1.0).await;
    gateway.metric_reaches("delivery_seconds_count", 1.0).await;

    for (series, value) in [
        ("connections{wire=\"plain\",transport=\"websocket\"}", 1.0),
        ("connections_opened_total", 1.0),
        ("subscriptions", 1.0),
        ("channels", 1.0),
        ("publications_received_total{broker=\"memory\",kind=\"plain\"}", 1.0),
        ("handshake_seconds_count", 1.0),
        ("outbound_queue_bytes", 0.0),
        ("delivery_seconds_count", 1.0),
        ("connections_limit", 100_000.0),
        ("build_info", 1.0),
        ("config_info", 1.0),
    ] {
        assert_eq!(gateway.metric(series).await, value, "{series}");
    }

    drop(client);
    eventually("everything is given back", || async {
        let mut left = 0.0;
        for series in ["connections{", "subscriptions", "channels"] {
            left += gateway.metric(series).await;
        }
        (left == 0.0).then_some(())
    })
    .await;

    let (_, text) = gateway.get_admin("/metrics").await;
    for series in ["process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"]
    {
        assert!(text.contains(&format!("# TYPE {series} ")), "{series}");
    }

    for line in text.lines().filter(|l| l.starts_with("tollgate_")) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base =
            ["_bucket", "_sum", "_count"].iter().fold(name, |n, s| n.strip_suffix(s).unwrap_or(n));
        assert!(text.contains(&format!("# HELP {base} ")), "no HELP for {base}");
    }
}
