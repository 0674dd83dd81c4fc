//! Requests and frames that no honest client sends.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate_support::client::Client;
use tollgate_support::http::{http_raw, try_http};
use tollgate_support::tokens::token;
use tollgate_support::{DEADLINE, eventually, eventually_within};

use super::gateway;

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const UPGRADE: &str = "Host: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

/// W3: bad upgrades are answered with the right status, and the connection ends.
#[tokio::test]
async fn w3_bad_upgrades() {
    let gateway = gateway::start().await;
    for (what, request, status) in [
        ("plain GET", "GET /ws HTTP/1.1\r\nHost: gw\r\n\r\n".to_owned(), "426"),
        ("no key", format!("GET /ws HTTP/1.1\r\n{UPGRADE}{VERSION}\r\n"), "400"),
        ("short key", format!("GET /ws HTTP/1.1\r\n{UPGRADE}{VERSION}Sec-WebSocket-Key: c2hvcnQ=\r\n\r\n"), "400"),
        ("version 8", format!("GET /ws HTTP/1.1\r\n{UPGRADE}{KEY}Sec-WebSocket-Version: 8\r\n\r\n"), "426"),
        ("no version", format!("GET /ws HTTP/1.1\r\n{UPGRADE}{KEY}\r\n"), "426"),
        ("POST", format!("POST /ws HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}\r\n"), "405"),
        ("HTTP/1.0", format!("GET /ws HTTP/1.0\r\n{UPGRADE}{KEY}{VERSION}\r\n"), "400"),
        ("h2c", "GET /ws HTTP/1.1\r\nHost: gw\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n".to_owned(), "426"),
        ("body", format!("GET /ws HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}Content-Length: 5\r\n\r\nhello"), "400"),
        ("bad format", format!("GET /ws?format=xml HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}\r\n"), "400"),
    ] {
        // A request that is smuggled behind it gets no answer.
        let pipelined = format!("{request}GET /ws HTTP/1.1\r\nHost: second\r\n\r\n");
        let (head, body) = http_raw(&gateway.public, pipelined.as_bytes()).await;
        assert_eq!(head.split(' ').nth(1), Some(status), "{what}: {head}");
        assert!(head.to_lowercase().contains("connection: close"), "{what}: {head}");
        assert!(!body.contains("HTTP/1.1 "), "{what}: a second answer");
        if what.contains("version") {
            assert!(head.to_lowercase().contains("sec-websocket-version: 13"), "{head}");
        }
    }

    gateway.metric_reaches("rejected_total{reason=\"bad_request\"}", 9.0).await;
}

/// W2 and A12: oversized and ambiguous requests.
#[tokio::test]
async fn w2_a12_requests_that_parsers_choke_on() {
    let gateway = gateway::start().await;
    let mut alive = Client::connect(&gateway, "u1").await;
    for request in [
        format!("GET /ws HTTP/1.1\r\nHost: gw\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)),
        format!("GET /ws HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(2000)),
        format!("GET /{} HTTP/1.1\r\nHost: gw\r\n\r\n", "x".repeat(100_000)),
        "GET /ws HTTP/1.1\r\nHost: gw\r\nContent-Length: nonsense\r\n\r\n".to_owned(),
        "POST /api/info HTTP/1.1\r\nHost: gw\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde".to_owned(),
        "GET /ws HTTP/1.1\r\nHost: gw\r\nX: a\r\n b\r\n\r\n".to_owned(),
        "\u{0}\u{1}\u{2}\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let (head, _) = http_raw(&gateway.public, request.as_bytes()).await;
        let status = head.split(' ').nth(1).unwrap_or("closed");
        assert!(
            ["400", "414", "431", "closed", "505"].contains(&status),
            "{:.60}: {head}",
            request
        );
    }

    alive.nothing_came().await;
}

/// A10: foreign origins are refused before the upgrade.
#[tokio::test]
async fn a10_foreign_origins() {
    let config = "[server]\nallowed_origins = [\"https://app.example.com\"]\n";
    let gateway = gateway::with(config).await;
    let own = format!("http://{}", gateway.public);
    for (origin, status) in [
        ("https://app.example.com", "101"),
        (own.as_str(), "101"),
        ("https://app.example.com.evil.com", "403"),
        ("null", "403"),
        ("https://evil.com", "403"),
    ] {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             {KEY}{VERSION}Origin: {origin}\r\n\r\n",
            gateway.public
        );

        let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head[9..], status.as_bytes(), "{origin}");
    }

    assert_eq!(gateway.metric("rejected_total{reason=\"origin\"}").await, 3.0);
}

/// W6 to W10: frames that break the protocol get the code that says so, and only their socket ends.
#[tokio::test]
async fn w6_w7_w8_w9_w10_bad_frames() {
    let gateway = gateway::start().await;
    let mut alive = Client::connect(&gateway, "u1").await;
    for (what, frame, code) in [
        ("unmasked", vec![0x81, 0x01, b'x'], 1002u16),
        ("reserved bit", vec![0xc1, 0x80, 0, 0, 0, 0], 1002),
        ("reserved opcode", vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        ("fragmented ping", vec![0x09, 0x80, 0, 0, 0, 0], 1002),
        ("long ping", vec![0x89, 0xfe, 0, 200, 0, 0, 0, 0], 1002),
        ("stray continuation", vec![0x80, 0x80, 0, 0, 0, 0], 1002),
        ("not UTF-8", vec![0x81, 0x81, 0, 0, 0, 0, 0xff], 1007),
        ("close code 1005", vec![0x88, 0x82, 0, 0, 0, 0, 3, 237], 1002),
        ("2^63 bytes", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
    ] {
        let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
        let request =
            format!("GET /ws?token={} HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}\r\n", token("u2"));
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(&frame).await.unwrap();

        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        read.expect("closed").unwrap();
        let close = answer.windows(4).any(|w| w[0] == 0x88 && w[2..] == code.to_be_bytes());
        assert!(close, "{what}: {:?}", String::from_utf8_lossy(&answer));
    }

    alive.nothing_came().await;
}

/// W14: clients that vanish at any point of the handshake leave nothing behind.
#[tokio::test]
async fn w14_vanishing_clients_leave_nothing() {
    let gateway = gateway::start().await;
    let request = format!("GET /ws?token={} HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}\r\n", token("u1"));
    for cut in (0..=request.len()).step_by(40).chain([request.len()]) {
        let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
        stream.write_all(&request.as_bytes()[..cut]).await.unwrap();
        if cut == request.len() {
            // This request is complete and becomes a socket.
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head[9..], b"101");
        }
        // A reset, rather than an orderly end.
        socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(stream);
    }

    let mut client = Client::connect(&gateway, "u2").await;
    // The last client's socket came and went.
    gateway.metric_reaches("connections_closed_total{reason=\"client_gone\"}", 1.0).await;
    eventually("only one is left", || async {
        let left = gateway.metric("connections{").await + gateway.metric("channels").await;
        (left == 2.0).then_some(())
    })
    .await;

    gateway.publish("user:u2", &json!(1)).await;
    assert_eq!(client.next().await, json!(1));
}

/// W1 turned round: a client that does not read its answers does not keep its connection for good.
#[tokio::test]
async fn w1_unread_answers_end_their_connection() {
    let gateway = gateway::with("[limits]\nhttp_connections = 3\n").await;
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(gateway.public.parse().unwrap()).await.unwrap();
        let request = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        let request = request.replace("/nowhere", "/api/publish");
        // The client writes until neither side can take more.
        let full = async { while stream.write_all(request.as_bytes()).await.is_ok() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), full).await;
        stuck.push(stream);
    }

    eventually_within(std::time::Duration::from_secs(120), "a place", || async {
        let answer = try_http(&gateway.public, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        answer.is_some_and(|answer| !answer.contains(" 503 ")).then_some(())
    })
    .await;
    drop(stuck);
}

/// A client beyond the limit is told that it may come again. Its connection used to be cut without
/// an answer.
#[tokio::test]
async fn one_connection_too_many_is_put_off_with_503() {
    let gateway = gateway::with("[limits]\nhttp_connections = 2\n").await;
    let idle = [
        TcpStream::connect(&gateway.public).await.unwrap(),
        TcpStream::connect(&gateway.public).await.unwrap(),
    ];
    let answer = eventually("an answer", || async {
        try_http(&gateway.public, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    gateway.metric_reaches("rejected_total{reason=\"limit_http_connections\"}", 1.0).await;
    drop(idle);
}

/// W13: a client that answers no ping is found, also when pings come faster than their deadline;
/// each ping used to move the deadline of the one before.
#[tokio::test]
async fn w13_no_answer_to_pings_that_overlap() {
    let gateway = gateway::with("[limits]\nping_interval = \"1s\"\npong_timeout = \"3s\"\n").await;
    let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
    let request = format!("GET /ws?token={} HTTP/1.1\r\n{UPGRADE}{KEY}{VERSION}\r\n", token("u1"));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    read.expect("closed").unwrap();
    let code = 4408u16.to_be_bytes();
    assert!(answer.windows(4).any(|w| w[0] == 0x88 && w[2..] == code));
}

/// RFC 9112 section 3.2, on both listeners.
#[tokio::test]
async fn field_f10_a_request_names_its_host_once() {
    let gateway = gateway::start().await;
    for (name, head, status) in [
        ("none", "HTTP/1.1\r\n", "400"),
        ("two", "HTTP/1.1\r\nHost: gw\r\nHost: gw\r\n", "400"),
        ("two of 1.0", "HTTP/1.0\r\nHost: a\r\nHost: b\r\n", "400"),
        ("a list", "HTTP/1.1\r\nHost: a, b\r\n", "400"),
        ("with a user", "HTTP/1.1\r\nHost: u@gw\r\n", "400"),
        ("with a path", "HTTP/1.1\r\nHost: gw/x\r\n", "400"),
        ("odd", "HTTP/1.1\r\nHost: g\u{fc}\r\n", "400"),
        ("one", "HTTP/1.1\r\nHost: gw:8000\r\n", "404"),
        ("an address", "HTTP/1.1\r\nHost: [::1]:8000\r\n", "404"),
        ("an empty one", "HTTP/1.1\r\nHost:\r\n", "404"),
        ("none of 1.0", "HTTP/1.0\r\n", "404"),
    ] {
        for listener in [&gateway.public, &gateway.admin] {
            let request = format!("GET /nothing {head}Connection: close\r\n\r\n");
            let (answer, _) = http_raw(listener, request.as_bytes()).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{name}: {answer}");
        }
    }
}
