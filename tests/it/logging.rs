//! The log never harms the gateway: not when it cannot be written, not when nothing reads it, not
//! by its length.

use std::fs::File;
use std::process::Stdio;

use serde_json::json;
use tollgate_support::client::Client;
use tollgate_support::gateway::Reader;
use tollgate_support::http::http_raw;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::{SECRET, sign};

use super::gateway;

/// A token that is refused.
const BAD: &str = "nonsense";

/// Many commands on one socket.
const BUSY: &str = "[limits]\ncommands_per_second = 1000000\ncommand_burst = 1000000\n";

/// Sends `n` bad tokens on one socket, and reads as many refusals.
async fn refused_tokens(client: &mut Client, n: usize) {
    let refresh = json!({"type": "refresh", "token": BAD});
    for batch in (0..n).step_by(100) {
        let many = vec![refresh.clone(); 100.min(n - batch)];
        client.send_together(&many).await;
        for _ in &many {
            assert_eq!(client.next().await["data"]["code"], "token_refused");
        }
    }
}

/// The log goes to a full disk, or its reader has died.
#[tokio::test]
async fn field_a1_a_log_that_cannot_be_written_changes_nothing() {
    for full in [true, false] {
        let log = || if full { File::create("/dev/full").unwrap().into() } else { Stdio::piped() };
        let mut gateway = gateway::without_log(BUSY, log(), log()).await;
        let mut client = Client::connect(&gateway, "u1").await;
        refused_tokens(&mut client, 10).await;
        assert_eq!(Client::refused(&gateway, BAD).await.0, 4401);
        gateway.publish("user:u1", &json!(1)).await;
        assert_eq!(client.next().await, json!(1));
        gateway.metric_reaches("log_lines_dropped_total", 3.0).await;

        gateway.signal("-TERM");
        assert_eq!(client.closed().await.0, 1012);
        assert!(gateway.exited().await.success());
    }
}

/// The log's reader stops reading, and there are more lines than the pipe and the queue can hold.
#[tokio::test]
async fn field_a2_a_log_that_nobody_reads_holds_up_nobody() {
    let config = format!("{BUSY}[log]\nsummary_interval = \"0s\"\n");
    for reads_again in [true, false] {
        let mut gateway = gateway::with(&config).await;
        let mut client = Client::connect(&gateway, "u1").await;
        gateway.log_reader(Reader::Hangs);
        refused_tokens(&mut client, 10_000).await;
        gateway.metric_reaches("log_lines_dropped_total", 1.0).await;

        assert_eq!(gateway.get_admin("/livez").await.0, 200);
        assert_eq!(gateway.get_admin("/readyz").await.0, 200);
        assert_eq!(Client::refused(&gateway, BAD).await.0, 4401);
        let mut other = Client::connect(&gateway, "u2").await;
        gateway.publish("user:u2", &json!(1)).await;
        assert_eq!(other.next().await, json!(1));

        if reads_again {
            gateway.log_reader(Reader::Reads);
            let told = gateway.logged("log lines were dropped").await;
            assert!(told.contains(" WARN tollgate::logging: "), "{told}");
        }
        gateway.signal("-TERM");
        assert_eq!(client.closed().await.0, 1012);
        assert!(gateway.exited().await.success());
    }
}

/// How many lines of the log hold a text, and for how many lines they stand.
fn counted(log: &str, text: &str) -> (usize, usize) {
    let stands_for = |line: &str| {
        let n = line.split("repeated=").nth(1).and_then(|rest| rest.split(' ').next());
        n.map_or(1, |n| n.parse().unwrap())
    };
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).map(stands_for).collect();
    (lines.len(), lines.iter().sum())
}

#[tokio::test]
async fn field_a3_a_thousand_refused_tokens_are_a_few_lines() {
    let mut gateway = gateway::with(BUSY).await;
    let mut client = Client::connect(&gateway, "u1").await;
    refused_tokens(&mut client, 1000).await;
    let expired = sign(&json!({"sub": "u1", "exp": 1000}), SECRET);
    assert_eq!(Client::refused(&gateway, &expired).await.1, "expired");
    // A line of another kind is not held back.
    gateway.logged("reason=expired").await;

    gateway.signal("-TERM");
    assert!(gateway.exited().await.success());
    gateway.logged("drained").await;
    let (lines, stand_for) = counted(&gateway.log(), "token refused");
    assert!((2..20).contains(&lines), "{lines} lines");
    assert_eq!(stand_for, 1001, "what is held back is told at the end");
}

#[tokio::test]
async fn field_a3_a_refused_origin_is_told_once() {
    let mut gateway = gateway::start().await;
    let request = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Origin: https://evil.example.com\r\n\r\n"
        )
    };
    for path in ["/ws", "/sse?channels=post:1"] {
        for _ in 0..50 {
            let (head, _) = http_raw(&gateway.public, request(path).as_bytes()).await;
            assert!(head.contains(" 403 "), "{head}");
        }
    }
    let line = gateway.logged("origin refused").await;
    assert!(line.contains("https://evil.example.com"), "{line}");
    assert!(counted(&gateway.log(), "origin refused").0 < 10);
}

/// A server accepts connections and drops them. The log has few lines, and each names the server.
#[tokio::test]
async fn field_a3_errors_of_redis_say_which_server_and_are_summed_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = format!(
        "[broker]\nkind = \"redis\"\n[redis]\nurl = \"redis://{address}\"\n\
         reconnect_min = \"10ms\"\nreconnect_max = \"20ms\"\n"
    );
    let mut gateway = gateway::with(&config).await;
    for _ in 0..60 {
        listener.accept().await.unwrap();
    }
    let line = gateway.logged("cannot connect to Redis").await;
    assert!(line.contains(&format!("server={address} ")), "{line}");
    let (lines, _) = counted(&gateway.log(), "cannot connect to Redis");
    assert!(lines < 20, "{lines} lines");
}

/// The line says what is wrong and at which position, and shows nothing of the payload.
#[tokio::test]
async fn field_f15_an_invalid_publication_says_what_is_wrong_where() {
    let redis = Redis::start().await;
    let mut gateway = gateway::on_redis(&redis).await;
    let mut client = Client::connect(&gateway, "u1").await;
    for (channel, payload, why) in [
        ("post:1", "{\"a\": secretive}", "expected value at line 1 column 7"),
        ("post:2", "{\"secretive\": 1", "EOF while parsing an object at line 1 column 15"),
        ("post:3", "", "EOF while parsing a value at line 1 column 0"),
    ] {
        client.subscribe(json!(channel)).await;
        for _ in 0..20 {
            redis.publish(&format!("tollgate:{channel}"), payload);
            assert_eq!(client.next().await["data"]["reason"], "invalid_payload");
        }

        let line = gateway.logged(&format!("publication not delivered channel={channel}")).await;
        assert!(line.contains(why), "{line}");
        let (lines, _) = counted(&gateway.log(), &format!("not delivered channel={channel}"));
        assert!(lines < 5, "{lines} lines");
    }
    assert!(!gateway.log().contains("secretive"));
}
