//! Which pages may open sockets and streams, and which names the gateway's own pages answer to.

use serde_json::Value;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::{http, http_raw, try_http};
use tollgate_support::tokens::token;

use super::gateway;

/// The status of an upgrade that a page of this origin asks for.
async fn upgrade(gateway: &Gateway, host: &str, headers: &str) -> u16 {
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    );
    let head = try_http(&gateway.public, &request).await.unwrap();
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn field_d2_apps_extensions_and_previews_may_connect() {
    let gateway = gateway::with(
        "[server]\nallowed_origins = [\"capacitor://localhost\", \"null\", \
         \"chrome-extension://abcdefghijklmnop\", \"https://*.preview.example.com\"]\n",
    )
    .await;
    for (origin, status) in [
        ("capacitor://localhost", 101),
        ("chrome-extension://abcdefghijklmnop", 101),
        ("null", 101),
        ("https://pr-7.preview.example.com", 101),
        ("wss://pr-7.preview.example.com", 101),
        ("ws://gw.example.com", 101),
        ("ionic://localhost", 403),
        ("file://", 403),
        ("https://a.b.preview.example.com", 403),
        ("https://preview.example.com", 403),
    ] {
        let headers = format!("Origin: {origin}\r\n");
        assert_eq!(upgrade(&gateway, "gw.example.com", &headers).await, status, "{origin}");
    }

    let bearer = token("u1");
    let request = format!(
        "GET /sse?token={bearer} HTTP/1.1\r\nHost: gw.example.com\r\n\
         Origin: https://other.example.com\r\n\r\n"
    );
    assert_eq!(http(&gateway.public, &request).await.0, 403);
}

#[tokio::test]
async fn field_d3_a_refused_origin_is_told_with_the_line_to_write() {
    let mut gateway = gateway::with("[server]\nallowed_origins = [\"https://a.example\"]\n").await;
    let headers = "Origin: https://Shop.example:443\r\n";
    assert_eq!(upgrade(&gateway, "gw.example.com", headers).await, 403);
    let line = r#"allowed_origins = ["https://a.example", "https://shop.example"]"#;
    let logged = gateway.logged(line).await;
    assert!(logged.contains("[server]"), "{logged}");

    // The line that the log proposes works.
    let text = std::fs::read_to_string(gateway.config.path()).unwrap();
    gateway.reconfigure(&text.replace(r#"allowed_origins = ["https://a.example"]"#, line));
    eventually("the new origin", || async {
        (upgrade(&gateway, "gw.example.com", headers).await == 101).then_some(())
    })
    .await;
    assert_eq!(upgrade(&gateway, "gw.example.com", "Origin: x y\"z\r\n").await, 403);
}

#[tokio::test]
async fn field_d3_development_lets_pages_of_this_machine_in() {
    let (dev, usual) = (gateway::dev("").await, gateway::start().await);
    for (origin, status) in [
        ("http://localhost:5173", 101),
        ("http://127.0.0.1:3000", 101),
        ("http://[::1]:3000", 101),
        ("http://localhost.example:5173", 403),
    ] {
        let headers = format!("Origin: {origin}\r\n");
        assert_eq!(upgrade(&dev, &dev.public, &headers).await, status, "{origin}");
        assert_eq!(upgrade(&usual, &usual.public, &headers).await, 403, "{origin}");
    }
}

#[tokio::test]
async fn field_f9_a_page_without_tls_is_not_of_the_host_that_was_asked_over_tls() {
    let trusting = gateway::with("[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n").await;
    let alone = gateway::start().await;
    for (origin, proto, trusted, not) in [
        ("https://gw.example.com", "https", 101, 101),
        ("http://gw.example.com", "https", 403, 101),
        ("http://gw.example.com", "http", 101, 101),
        ("https://gw.example.com", "http", 101, 101),
        ("https://gw.example.com:444", "https", 403, 403),
    ] {
        let headers = format!("Origin: {origin}\r\nX-Forwarded-Proto: {proto}\r\n");
        let found = upgrade(&trusting, "gw.example.com", &headers).await;
        assert_eq!(found, trusted, "{origin} by {proto}");
        assert_eq!(upgrade(&alone, "gw.example.com", &headers).await, not, "{origin} by {proto}");
    }
}

#[tokio::test]
async fn field_e5_development_signs_with_a_secret_of_its_own() {
    let (dev, usual) = (gateway::dev("").await, gateway::start().await);
    let get = async |host: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http(&dev.public, &request).await
    };
    let (status, body) = get(&dev.public, "/dev/token?user=admin").await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let signed = body["token"].as_str().unwrap();
    let client = Client::connect_with(&dev, "/ws", signed).await;
    assert_eq!(client.connected["data"]["userId"], "admin");

    // Another gateway with the same configuration does not accept it; both accept tokens of the
    // configured key.
    assert_eq!(Client::refused(&usual, signed).await, (4401, "bad_signature".to_owned()));
    Client::connect(&dev, "u1").await;

    for path in ["/", "/dev/token?user=admin"] {
        for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1"] {
            assert_eq!(get(host, path).await.0, 421, "{host} {path}");
        }
        assert_eq!(get("localhost:8000", path).await.0, 200, "{path}");
    }

    for request in [
        "GET http://evil.example/dev/token?user=a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "POST /dev/purchase HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    ] {
        assert_eq!(http(&dev.public, request).await.0, 421, "{request}");
    }
}

#[tokio::test]
async fn field_e5_debugging_is_shown_under_names_of_this_machine_only() {
    let gateway = gateway::start().await;
    let ask = async |line: &str, host: &str| {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        );
        let (head, _) = http_raw(&gateway.admin, request.as_bytes()).await;
        head.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };

    for host in ["evil.example", "evil.example:9000", "10.1.2.3:9000", "tollgate.svc"] {
        assert_eq!(ask("GET /debug/connections", host).await, 421, "{host}");
        assert_eq!(ask("POST /debug/token/check", host).await, 421, "{host}");
        // Probes and scrapers come by the pod's address or the Service's name.
        for path in ["/metrics", "/livez", "/readyz"] {
            assert_eq!(ask(&format!("GET {path}"), host).await, 200, "{host} {path}");
        }
    }

    for host in ["localhost", "127.0.0.1:9000", "[::1]:9000", &gateway.admin] {
        assert_eq!(ask("GET /debug/connections", host).await, 200, "{host}");
        assert_eq!(ask("POST /debug/token/check", host).await, 200, "{host}");
    }
}
