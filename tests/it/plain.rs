//! The plain protocol over real sockets.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::http::API_KEY;
use tollgate_support::tokens::{SECRET, now, sign, token};

use super::gateway;

#[tokio::test]
async fn connected_comes_first_and_the_users_channel_is_live() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let data = &client.connected["data"];
    assert_eq!(data["userId"], "u1");
    assert_eq!(data["channels"], json!(["user:u1"]));
    assert!(data["expiresAt"].as_u64().unwrap() > now());
    assert!(!data["connectionId"].as_str().unwrap().is_empty());
    let event = json!({"type": "post_purchased", "postId": "p1"});
    gateway.publish("user:u1", &event).await;
    assert_eq!(client.next().await, event);
}

#[tokio::test]
async fn an_event_is_the_published_json_to_the_byte() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let odd = "{\"b\" : 1.0,\t\"a\":\"\\u00fc\",\"n\":12345678901234567890}";
    let body = format!("{{\"channel\":\"user:u1\",\"data\":{odd}}}");
    let (status, _) = gateway.api_raw("publish", Some(API_KEY), &body).await;
    assert_eq!(status, 200);
    assert_eq!(client.next_text().await, odd);
}

#[tokio::test]
async fn subscribe_and_unsubscribe_in_both_forms_echo_id_and_channel() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let object = json!({"type": "post", "postId": "42"});
    client.send(json!({"type": "subscribe", "id": "a-1", "channel": object})).await;
    assert_eq!(
        client.next().await,
        json!({"type": "subscribed", "id": "a-1", "data": {"channel": object, "channelKey": "post:42"}})
    );

    assert_eq!(client.subscribe(json!("post:42")).await["type"], "subscribed", "again is fine");
    gateway.publish("post:42", &json!(1)).await;
    assert_eq!(client.next().await, json!(1));
    client.nothing_came().await;

    client.send(json!({"type": "unsubscribe", "id": 7, "channel": "post:42"})).await;
    assert_eq!(
        client.next().await,
        json!({"type": "unsubscribed", "id": 7, "data": {"channel": "post:42", "channelKey": "post:42"}})
    );
    gateway.publish("post:42", &json!(2)).await;
    client.nothing_came().await;
}

#[tokio::test]
async fn the_envelope_names_the_channel() {
    let gateway = gateway::start().await;
    let mut plain = Client::connect(&gateway, "u1").await;
    let mut envelope = Client::connect_with(&gateway, "/ws?format=envelope", &token("u1")).await;
    gateway.publish("user:u1", &json!({"x": [1]})).await;
    assert_eq!(plain.next().await, json!({"x": [1]}));
    assert_eq!(
        envelope.next().await,
        json!({"type": "event", "channel": "user:u1", "data": {"x": [1]}})
    );
}

#[tokio::test]
async fn errors_have_codes_and_leave_the_socket_open() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    for (message, code) in [
        ("not json", "bad_request"),
        ("[]", "bad_request"),
        (r#"{"type":"dance"}"#, "bad_request"),
        (r#"{"type":"subscribe"}"#, "bad_request"),
        (r#"{"type":"subscribe","channel":"user:*"}"#, "bad_request"),
        (r#"{"type":"subscribe","channel":"user:u2"}"#, "forbidden"),
        (r#"{"type":"subscribe","channel":"elsewhere"}"#, "forbidden"),
        (r#"{"type":"subscribe","channel":"control"}"#, "bad_request"),
        (r#"{"type":"unsubscribe","channel":"post:1"}"#, "not_subscribed"),
        (r#"{"type":"subscribe","channel":"post:1","since":{}}"#, "bad_request"),
        (r#"{"type":"auth","token":"x"}"#, "bad_request"),
        (r#"{"type":"refresh","token":"x"}"#, "token_refused"),
    ] {
        client.send_text(message).await;
        let answer = client.next().await;
        assert_eq!(
            (answer["type"].as_str(), answer["data"]["code"].as_str()),
            (Some("error"), Some(code)),
            "{message}: {answer}"
        );
    }

    let binary = tokio_tungstenite::tungstenite::Message::binary(vec![1]);
    client.send_raw(binary).await.unwrap();
    assert_eq!(client.next().await["data"]["code"], "bad_request");
    client.nothing_came().await;
}

#[tokio::test]
async fn a_token_comes_by_all_five_carriers_and_never_reaches_a_log() {
    let gateway = gateway::with("[auth]\ncookie = \"session\"\n[log]\nlevel = \"trace\"\n").await;
    let mut tokens = Vec::new();
    for (carrier, good) in [0, 1, 2, 3, 4].into_iter().flat_map(|c| [(c, true), (c, false)]) {
        let secret = if good { SECRET } else { "another secret of sufficient length" };
        let user = format!("u{carrier}");
        let token = sign(&json!({"sub": user, "exp": now() + 60, "n": carrier}), secret);
        let (bearer, cookie) = (format!("Bearer {token}"), format!("a=b; session={token}"));
        let protocols = format!("tollgate, bearer.{token}");
        let path = format!("/ws?x=1&token={token}");
        let headers: Vec<(&'static str, &str)> = match carrier {
            0 => vec![("authorization", &bearer)],
            1 => vec![("sec-websocket-protocol", &protocols)],
            2 => vec![("cookie", &cookie)],
            _ => vec![],
        };
        let path = match carrier {
            3 => path.as_str(),
            4 => "/ws?auth=message",
            _ => "/ws",
        };

        let mut client = Client::open(&gateway.public, path, &headers).await.unwrap();
        if carrier == 4 {
            client.send(json!({"type": "auth", "token": token})).await;
        }
        if good {
            assert_eq!(client.next().await["data"]["userId"], user, "carrier {carrier}");
        } else {
            let (code, reason, _) = client.closed().await;
            assert_eq!((code, reason.as_str()), (4401, "bad_signature"), "carrier {carrier}");
        }
        tokens.push(token);
    }

    gateway.metric_reaches("auth_failures_total{reason=\"bad_signature\"}", 5.0).await;
    let log = gateway.log();
    assert!(log.contains("token refused"), "the log is at its finest\n{log}");

    for token in &tokens {
        for part in token.split('.') {
            let known = part == token.split('.').next().unwrap();
            assert!(known || !log.contains(part), "a token in the log:\n{log}");
        }
    }
    assert!(!log.contains("token=") && !log.contains("eyJ"), "{log}");
}

#[tokio::test]
async fn a_token_subprotocol_is_never_echoed() {
    let gateway = gateway::start().await;
    for (offered, selected) in [
        (format!("tollgate, bearer.{}", token("u1")), Some("tollgate")),
        (format!("bearer.{}", token("u1")), None),
    ] {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {offered}\r\n\r\n"
        );

        let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 400];
        let n = stream.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
        let got =
            head.split("sec-websocket-protocol: ").nth(1).map(|r| r.split("\r\n").next().unwrap());
        assert_eq!(got, selected, "{head}");
    }
}

/// W16: what a client sends behind its request, before the answer, is kept.
#[tokio::test]
async fn w16_frames_sent_with_the_request_are_kept() {
    let gateway = gateway::start().await;
    let token = token("u1");
    let mut request = format!(
        "GET /ws?token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes();
    let command = br#"{"type":"subscribe","channel":"post:9"}"#;
    request.extend([0x81, 0x80 | command.len() as u8, 0, 0, 0, 0]);
    request.extend(command);

    let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("\"subscribed\"") {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&part[..n]);
    }
}

#[tokio::test]
async fn without_a_token_the_deadline_closes_and_commands_are_told() {
    let gateway = gateway::with("[auth]\ndeadline = \"1s\"\n").await;
    let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    assert_eq!(client.subscribe(json!("post:1")).await["data"]["code"], "unauthorized");
    let (code, reason, _) = client.closed().await;
    assert_eq!((code, reason.as_str()), (4408, "no token in time"));
}

/// W15: any number of sockets per user; closing one never touches another.
#[tokio::test]
async fn w15_closing_one_socket_leaves_the_users_others() {
    let gateway = gateway::start().await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        clients.push(Client::connect(&gateway, "u1").await);
    }
    clients.truncate(15);
    eventually("15 sockets", || async {
        (gateway.metric("connections{").await == 15.0).then_some(())
    })
    .await;
    gateway.publish("user:u1", &json!("still here")).await;
    for client in &mut clients {
        assert_eq!(client.next().await, json!("still here"));
    }
}

#[tokio::test]
async fn a_client_that_closes_is_answered() {
    let gateway = gateway::start().await;
    let mut client = Client::connect(&gateway, "u1").await;
    let close = tokio_tungstenite::tungstenite::Message::Close(None);
    client.send_raw(close).await.unwrap();
    assert_eq!(client.closed().await.0, 1005);
    gateway.metric_reaches("connections_closed_total{reason=\"normal\"}", 1.0).await;
}
