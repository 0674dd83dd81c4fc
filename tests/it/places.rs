//! Connections, file descriptors and waiting times have shares: what one address takes is not taken
//! from other addresses, nor from the gateway itself.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tollgate_support::client::Client;
use tollgate_support::eventually;
use tollgate_support::gateway::Gateway;
use tollgate_support::http::http_raw;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::{SECRET, sign, token};

use super::gateway;

/// Connects from another address of this machine.
async fn from(ip: &str, to: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    socket.connect(to.parse().unwrap()).await.unwrap()
}

/// The head of the answer to an upgrade from another address.
async fn upgrade_from(ip: &str, gateway: &Gateway) -> String {
    let mut stream = from(ip, &gateway.public).await;
    let request = format!(
        "GET /ws?token={} HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        token("u2")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1024];
    let n = stream.read(&mut answer).await.unwrap_or(0);
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

/// How many of the held connections are still open, once at most `most` of them are.
async fn alive(held: &mut Vec<TcpStream>, most: usize) -> usize {
    eventually("the others end", || {
        held.retain(|stream| {
            let mut bytes = [0; 4096];
            loop {
                match stream.try_read(&mut bytes) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(e) => return e.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
        });
        std::future::ready((held.len() <= most).then_some(held.len()))
    })
    .await
}

/// Connections of one address beyond its share end, whatever is asked on them; others find room.
#[tokio::test]
async fn field_a8_an_address_has_its_share_of_connections_whatever_it_asks() {
    let limits =
        "[limits]\nconnections_per_ip = 5\nhttp_connections = 40\nhandshake_timeout = \"20s\"\n";
    for ask in ["", "OPTIONS /sse HTTP/1.1\r\nHost: gw\r\n\r\n", "GET /x HTTP/1.1\r\nHost: gw\r\n"]
    {
        let gateway = gateway::with(limits).await;
        let mut held = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(&gateway.public).await.unwrap();
            let _ = stream.write_all(ask.as_bytes()).await;
            held.push(stream);
        }

        // A few more than five stay, so that the next client can be told.
        let left = alive(&mut held, 13).await;
        assert!(left >= 5, "{ask:?}: {left}");
        gateway.metric_reaches("rejected_total{reason=\"limit_per_ip\"}", 1.0).await;
        assert!(upgrade_from("127.0.0.2", &gateway).await.contains(" 101 "), "{ask:?}");

        // An address can use again what it gives back.
        drop(held);
        let mut client = eventually("a place", || async {
            let bearer = format!("Bearer {}", token("u1"));
            let headers = [("authorization", bearer.as_str())];
            let mut client = Client::open(&gateway.public, "/ws", &headers).await.ok()?;
            (client.try_next().await?["type"] == "connected").then_some(client)
        })
        .await;
        client.nothing_came().await;
    }
}

/// Sockets count for their address to their end, and one too many is still told why.
#[tokio::test]
async fn field_a8_sockets_and_idle_connections_share_the_places_of_their_address() {
    let gateway = gateway::with("[limits]\nconnections_per_ip = 5\n").await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(Client::connect(&gateway, "u1").await);
    }

    let idle = [
        TcpStream::connect(&gateway.public).await.unwrap(),
        TcpStream::connect(&gateway.public).await.unwrap(),
    ];
    let told = (4429, "too many connections of this address".to_owned());
    assert_eq!(Client::refused(&gateway, &token("u1")).await, told);

    // Other requests get one answer too.
    let request = b"OPTIONS /sse HTTP/1.1\r\nHost: gw\r\n\r\n";
    let (head, _) = http_raw(&gateway.public, request).await;
    assert!(head.contains(" 204 "), "{head}");

    drop(idle);
    for client in &mut sockets {
        client.nothing_came().await;
    }
}

/// Handshakes of one address leave places for those of others.
#[tokio::test]
async fn field_a8_an_address_has_its_share_of_http_connections() {
    let limits = "[limits]\nhttp_connections = 40\nhttp_connections_per_ip = 10\nhandshake_timeout = \"20s\"\n";
    let gateway = gateway::with(limits).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(TcpStream::connect(&gateway.public).await.unwrap());
    }
    assert!(alive(&mut held, 18).await >= 10);
    for _ in 0..5 {
        assert!(upgrade_from("127.0.0.2", &gateway).await.contains(" 101 "));
    }
}

/// A trusted proxy may carry the clients of many addresses.
#[tokio::test]
async fn field_a8_a_trusted_proxy_is_not_locked_out() {
    let limits = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
                  [limits]\nconnections_per_ip = 3\nhttp_connections_per_ip = 3\n";
    let gateway = gateway::with(limits).await;
    let mut idle = Vec::new();
    let mut sockets = Vec::new();
    for n in 0..30 {
        idle.push(TcpStream::connect(&gateway.public).await.unwrap());
        let (bearer, ip) = (format!("Bearer {}", token("u1")), format!("10.0.0.{}", n % 10));
        let headers = [("authorization", bearer.as_str()), ("x-forwarded-for", ip.as_str())];
        let mut client = Client::open(&gateway.public, "/ws", &headers).await.unwrap();
        assert_eq!(client.next().await["type"], "connected", "{n}");
        sockets.push(client);
    }
    assert_eq!(gateway.metric("rejected_total{reason=\"limit_per_ip\"}").await, 0.0);
}

/// A scraper that opens connections and leaves them leaves room for the probes.
#[tokio::test]
async fn field_a8_the_admin_listener_is_shared_too() {
    let gateway = gateway::start().await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(&gateway.admin).await.unwrap());
    }
    let mut probe = from("127.0.0.2", &gateway.admin).await;
    probe.write_all(b"GET /livez HTTP/1.1\r\nHost: gw\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    probe.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

/// Allows the gateway as many open files as this many more clients need.
pub fn room_for(gateway: &Gateway, clients: usize) {
    // A quarter of its files is not for clients.
    gateway.allow_files((gateway.open_files() + clients) * 4 / 3 + 1);
}

/// Clients use up the descriptors, and Redis drops the gateway's connections: the
/// gateway reconnects.
#[tokio::test]
async fn field_a9_descriptors_for_redis_and_probes_are_reserved() {
    let server = Redis::start().await;
    let gateway = gateway::on_redis(&server).await;
    let mut client = Client::connect(&gateway, "u1").await;
    client.subscribe(json!("post:1")).await;
    room_for(&gateway, 10);

    // These are more clients than there is room for; each waits for its turn.
    let waiting: Vec<_> = (0..30)
        .map(|_| {
            let public = gateway.public.clone();
            tokio::spawn(async move {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(&public).await {
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    gateway.metric_reaches("rejected_total{reason=\"limit_open_files\"}", 50.0).await;

    for n in 1..=3 {
        for kind in ["pubsub", "normal"] {
            server.kill_clients(kind);
        }
        gateway.metric_reaches("redis_reconnects_total", f64::from(n)).await;
        eventually("connections and writing", || async {
            (gateway.metric("redis_connected").await == 3.0).then_some(())
        })
        .await;
        assert_eq!(gateway.get_admin("/livez").await.0, 200);
    }

    // Connected is not subscribed yet.
    eventually("somebody hears it", || async {
        (server.publish("tollgate:post:1", "\"heard\"") > 0).then_some(())
    })
    .await;

    loop {
        let event = client.next().await;
        if event == json!("heard") {
            break;
        }
        assert_eq!(event["type"], "gap", "{event}");
    }

    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    let mut next = eventually("room again", || async {
        let headers = [("authorization", format!("Bearer {}", token("u2")))];
        let headers = [("authorization", headers[0].1.as_str())];
        Client::open(&gateway.public, "/ws", &headers).await.ok()
    })
    .await;
    assert_eq!(next.next().await["type"], "connected");
}

/// Refused clients that come back at once, again and again, wait; clients with good tokens do not.
#[tokio::test]
async fn field_c5_repeated_refusals_wait_and_harm_nobody() {
    let gateway = gateway::with("[limits]\nrefusal_wait = \"30s\"\n").await;
    let expired = sign(&json!({"sub": "u1", "exp": 1000}), SECRET);

    // The first five refusals come at once.
    for _ in 0..5 {
        assert_eq!(Client::refused(&gateway, &expired).await, (4401, "expired".to_owned()));
    }

    let loops: Vec<_> = (0..20)
        .map(|_| {
            let (public, token) = (gateway.public.clone(), expired.clone());
            tokio::spawn(async move {
                loop {
                    let stream = TcpStream::connect(&public).await.unwrap();
                    let request =
                        format!("ws://{public}/ws?token={token}").into_client_request().unwrap();
                    let _ = tokio_tungstenite::client_async(request, stream).await;
                }
            })
        })
        .collect();
    gateway.metric_reaches("auth_failures_total{reason=\"expired\"}", 20.0).await;
    let before = gateway.metric("auth_failures_total{reason=\"expired\"}").await;

    // Good tokens of the same address wait for nothing.
    for n in 0..20 {
        let mut client = Client::connect(&gateway, &format!("good{n}")).await;
        client.nothing_came().await;
    }

    let after = gateway.metric("auth_failures_total{reason=\"expired\"}").await;
    assert!(after - before < 200.0, "{} refusals meanwhile", after - before);
    loops.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Refusals wait too if the token comes in the first message, and for API keys.
#[tokio::test]
async fn field_c5_first_messages_and_api_keys_wait_too() {
    let gateway = gateway::with("[limits]\nrefusal_wait = \"400ms\"\n").await;
    let began = std::time::Instant::now();
    for _ in 0..9 {
        let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
        client.send(json!({"type": "auth", "token": "nonsense"})).await;
        assert_eq!(client.closed().await.0, 4401);
    }
    // 50, 100, 200 and 400 ms: never less.
    assert!(began.elapsed() >= Duration::from_millis(750), "{:?}", began.elapsed());

    let began = std::time::Instant::now();
    assert_eq!(gateway.api_raw("info", Some("a wrong key"), "{}").await.0, 401);
    assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    assert_eq!(gateway.api("info", &json!({})).await["error"], json!(null));
}

/// Refused sockets are not counted as closed: they were never opened.
#[tokio::test]
async fn field_f1_what_was_never_opened_is_not_counted_as_closed() {
    let gateway = gateway::start().await;
    for _ in 0..5 {
        Client::refused(&gateway, "nonsense").await;
    }
    let mut client = Client::open(&gateway.public, "/ws", &[]).await.unwrap();
    client.send(json!({"type": "auth", "token": "nonsense"})).await;
    client.closed().await;
    drop(Client::connect(&gateway, "u1").await);
    gateway.metric_reaches("connections_closed_total", 1.0).await;
    eventually("nobody is left", || async {
        (gateway.metric("connections{").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(gateway.metric("connections_closed_total").await, 1.0);
    assert_eq!(gateway.metric("connections_opened_total").await, 1.0);
}

/// A core file would have secrets in it.
#[tokio::test]
async fn field_f11_a_crash_leaves_no_core_file() {
    let gateway = gateway::start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
