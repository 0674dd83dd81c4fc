//! Every limit, and that hitting one harms no other client.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tollgate_support::client::Client;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::API_KEY;
use tollgate_support::tokens::token;
use tollgate_support::{DEADLINE, eventually};

use super::gateway;

async fn refused(gateway: &Gateway, user: &str, forwarded: &str) -> (u16, String) {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("x-forwarded-for", forwarded)];
    let mut client = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
    let (code, reason, _) = client.closed().await;
    (code, reason)
}

#[tokio::test]
async fn connections_in_all_per_user_and_per_ip() {
    let config = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
                  [limits]\nconnections = 4\nconnections_per_user = 2\nconnections_per_ip = 3\n";
    let gateway = gateway::with(config).await;
    let bearer = |user: &str| format!("Bearer {}", token(user));

    let mut kept = Vec::new();
    for (user, ip) in [("u1", "1.1.1.1"), ("u1", "1.1.1.1"), ("u2", "1.1.1.1"), ("u3", "2.2.2.2")] {
        let bearer = bearer(user);
        let headers = [("authorization", bearer.as_str()), ("x-forwarded-for", ip)];
        let mut client = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
        assert_eq!(client.next().await["type"], "connected");
        kept.push(client);
    }
    assert_eq!(refused(&gateway, "u4", "3.3.3.3").await, (4429, "too many connections".into()));

    kept.pop();
    eventually("a free place", || async {
        (gateway.metric("connections{").await == 3.0).then_some(())
    })
    .await;

    assert_eq!(
        refused(&gateway, "u5", "6.6.6.6, 1.1.1.1").await,
        (4429, "too many connections of this address".into())
    );
    assert_eq!(
        refused(&gateway, "u1", "4.4.4.4").await,
        (4429, "too many connections of this user".into())
    );

    for limit in ["connections", "per_ip", "per_user"] {
        let series = format!("rejected_total{{reason=\"limit_{limit}\"}}");
        assert_eq!(gateway.metric(&series).await, 1.0, "{limit}");
    }

    for client in &mut kept {
        client.nothing_came().await;
    }
}

/// W11: a flood of messages closes its own socket only.
#[tokio::test]
async fn w11_a_flood_is_closed() {
    let gateway = gateway::with("[limits]\ncommands_per_second = 1\ncommand_burst = 10\n").await;
    let mut quiet = Client::connect(&gateway, "u2").await;
    for flood in [Message::text(r#"{"type":"ping"}"#), Message::Ping(vec![].into())] {
        let mut client = Client::connect(&gateway, "u1").await;
        for _ in 0..20 {
            let _ = client.send_raw(flood.clone()).await;
        }
        assert_eq!(client.closed().await.0, 4429);
    }
    gateway.metric_reaches("rejected_total{reason=\"rate\"}", 2.0).await;
    quiet.nothing_came().await;
}

#[tokio::test]
async fn channels_per_connection() {
    let gateway = gateway::with("[limits]\nchannels_per_connection = 3\n").await;
    let mut client = Client::connect(&gateway, "u1").await;
    for (channel, kind) in [("post:1", "subscribed"), ("post:2", "subscribed"), ("post:3", "error")]
    {
        assert_eq!(client.subscribe(json!(channel)).await["type"], kind);
    }
    client.send(json!({"type": "unsubscribe", "channel": "post:1"})).await;
    client.next().await;
    assert_eq!(client.subscribe(json!("post:3")).await["type"], "subscribed");
}

/// W4: a message above the limit, announced or gathered from fragments.
#[tokio::test]
async fn w4_big_messages_are_refused() {
    let gateway = gateway::with("[limits]\nmessage_bytes = 1000\n").await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.send_text(&" ".repeat(1000)).await;
    assert_eq!(client.next().await["data"]["code"], "bad_request");
    let _ = client.send_raw(Message::text(" ".repeat(1001))).await;
    assert_eq!(client.closed().await.0, 1009);
    gateway.metric_reaches("rejected_total{reason=\"message_size\"}", 1.0).await;
}

/// W12: a client that never reads is closed as slow, and the others get everything.
#[tokio::test]
async fn w12_a_client_that_does_not_read_is_closed_and_harms_nobody() {
    let config = "[limits]\nqueue_bytes = 300000\npublication_bytes = 200000\n";
    let gateway = gateway::with(config).await;
    let stuck = Client::connect(&gateway, "u1").await;
    let mut reader = Client::connect(&gateway, "u1").await;
    let payload = "x".repeat(100_000);
    for i in 0..200 {
        gateway.publish("user:u1", &json!([i, payload])).await;
        assert_eq!(reader.next().await[0], json!(i));
    }

    gateway.metric_reaches("slow_consumers_total", 1.0).await;
    gateway.metric_reaches("connections_closed_total{reason=\"slow_consumer\"}", 1.0).await;
    eventually("its memory is given back", || async {
        (gateway.metric("outbound_queue_bytes").await == 0.0).then_some(())
    })
    .await;
    reader.nothing_came().await;
    drop(stuck);
}

/// A slow client that reads again within its goodbye learns why it was closed.
#[tokio::test]
async fn a_slow_client_that_reads_again_is_told_4410() {
    let config = "[limits]\nqueue_messages = 5\n";
    let gateway = gateway::with(config).await;
    let mut client = Client::connect(&gateway, "u1").await;
    let payload = "x".repeat(500_000);
    let mut published = 0;
    while gateway.metric("slow_consumers_total").await == 0.0 {
        gateway.publish("user:u1", &json!([published, payload])).await;
        published += 1;
    }

    let (code, _, before) = client.closed().await;
    assert_eq!(code, 4410);
    assert!(before.len() < published);
    for (i, message) in before.iter().enumerate() {
        assert_eq!(message[0], json!(i), "what did come is whole and in order");
    }
}

/// W1: the gateway does not wait for a request that does not come, or comes one byte at a time.
#[tokio::test]
async fn w1_slow_requests_are_closed() {
    let limits = "[limits]\nhandshake_timeout = \"1s\"\nrequest_timeout = \"1s\"\n";
    let gateway = gateway::with(limits).await;
    let silent = TcpStream::connect(&gateway.public).await.unwrap();
    let mut dripping = TcpStream::connect(&gateway.public).await.unwrap();
    dripping.write_all(b"GET /ws HTTP/1.1\r\nHost: ").await.unwrap();
    let mut body = TcpStream::connect(&gateway.public).await.unwrap();
    let head = format!(
        "POST /api/info HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\nContent-Length: 9\r\n\r\n"
    );
    body.write_all(head.as_bytes()).await.unwrap();

    let drip = tokio::spawn(async move {
        // Writes until the server closes, which the read side notices.
        let (mut read, mut write) = dripping.into_split();
        let mut end = [0; 256];
        loop {
            tokio::select! {
                n = read.read(&mut end) => return n,
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    let _ = write.write_all(b"x").await;
                }
            }
        }
    });

    for mut stream in [silent, body] {
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        read.expect("closed in time").unwrap();
    }
    drip.await.unwrap().ok();
    gateway.metric_reaches("rejected_total{reason=\"timeout\"}", 3.0).await;
}

/// W5: a message that is begun and never finished ends its connection.
#[tokio::test]
async fn w5_an_unfinished_message_is_not_waited_for() {
    let gateway = gateway::with("[limits]\npong_timeout = \"1s\"\n").await;
    let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
    let request = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("u1")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // The first of ten bytes of a text frame.
    stream.write_all(&[0x81, 0x8a, 0, 0, 0, 0, b'x']).await.unwrap();

    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    read.expect("closed in time").unwrap();
    let close = [0x88, 36, (4408u16 >> 8) as u8, 4408u16 as u8];
    assert!(answer.windows(2).any(|w| w == [close[2], close[3]]), "{answer:?}");
}

/// A pong, or any frame that may stand between a message's parts, gives the message no more time.
#[tokio::test]
async fn field_c12_control_frames_do_not_renew_a_messages_deadline() {
    const BEGUN: &[u8] = &[0x01, 0x81, 0, 0, 0, 0, b'{'];

    // A pong, a ping, and a fragment more.
    const BETWEEN: [&[u8]; 3] =
        [&[0x8a, 0x80, 0, 0, 0, 0], &[0x89, 0x80, 0, 0, 0, 0], &[0x00, 0x81, 0, 0, 0, 0, b' ']];

    let gateway = gateway::with("[limits]\npong_timeout = \"2s\"\n").await;
    let path = format!("/ws?token={}", token("u1"));
    let stream = TcpStream::connect(&gateway.public).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    writer.write_all(request.as_bytes()).await.unwrap();
    writer.write_all(BEGUN).await.unwrap();
    let writing = tokio::spawn(async move {
        for bytes in BETWEEN.iter().cycle().take(200) {
            tokio::time::sleep(Duration::from_millis(150)).await;
            if writer.write_all(bytes).await.is_err() {
                break;
            }
        }
        writer
    });

    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, reader.read_to_end(&mut answer)).await;
    // A reset is an end too: the client goes on sending.
    let _ = read.expect("closed in time");
    let code = 4408u16.to_be_bytes();
    assert!(answer.windows(2).any(|w| w == code), "{answer:?}");
    writing.abort();
}

/// W13: a client that stopped answering is found by the ping deadline, one that answers is kept.
#[tokio::test]
async fn w13_dead_clients_are_found_by_pings() {
    let gateway = gateway::with("[limits]\nping_interval = \"1s\"\npong_timeout = \"5s\"\n").await;
    let _dead = Client::connect(&gateway, "u1").await;
    let mut alive = Client::connect(&gateway, "u2").await;
    let reader = tokio::spawn(async move {
        let text = alive.next_text().await;
        (alive, text)
    });
    gateway.metric_reaches("connections_closed_total{reason=\"deadline\"}", 1.0).await;
    gateway.publish("user:u2", &json!("alive")).await;
    let (mut alive, text) = reader.await.unwrap();
    assert_eq!(text, "\"alive\"");
    alive.nothing_came().await;
}

/// A burst of connects at once is served whole: the backlog is long enough.
#[tokio::test]
async fn a_burst_of_256_connects() {
    let gateway = gateway::start().await;
    let clients = (0..256).map(|i| {
        let gateway = &gateway;
        async move { Client::connect(gateway, &format!("u{i}")).await }
    });
    let clients = futures_util::future::join_all(clients).await;
    // A connection is counted after its client has heard of it.
    gateway.metric_reaches("connections_opened_total", 256.0).await;
    assert_eq!(gateway.metric("connections_opened_total").await, 256.0);
    drop(clients);
}

/// W12: all queues together are bounded by a configured figure, though no single queue exceeds its
/// own bound.
#[tokio::test]
async fn w12_all_queues_together_are_bounded() {
    let limits = "[limits]\nqueue_bytes = 4000000\nqueue_bytes_total = 5000000\nping_interval = \"1h\"\n\
                  request_body_bytes = 2000000\n";
    let gateway = gateway::with(limits).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(&gateway, "u1").await;
        client.subscribe(json!("post:1")).await;
        slow.push(client);
    }

    let large = "x".repeat(200_000);
    let mut most = 0.0_f64;
    while gateway.metric("slow_consumers_total").await == 0.0 {
        gateway.publish("post:1", &json!(large)).await;
        most = most.max(gateway.metric("outbound_queue_bytes").await);
    }
    assert!(most < 6_000_000.0, "{most} bytes waited");
}
