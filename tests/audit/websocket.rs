//! One WebSocket of a client, from the handshake to its end.

use std::time::Duration;

use futures_util::SinkExt as _;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message;
use tollgate_support::client::{Socket, hear, upgrade};

use super::client::{Client, Ended, Phase, position_of};
use super::record::{Manner, What, Wire};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Receive buffer of a slow reader, so small that the gateway soon notices.
const NARROW: u32 = 8192;

/// Opens a TCP connection; that of a slow client buffers little.
pub async fn dial(client: &Client, address: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((client.from, 0).into())?;
    if client.manner == Manner::Slow {
        socket.set_recv_buffer_size(NARROW)?;
    }
    socket.connect(address.parse().map_err(std::io::Error::other)?).await
}

async fn open(client: &Client, address: &str) -> Result<Socket, String> {
    let mut path = "/ws".to_owned();
    if client.wire == Wire::Envelope {
        path.push_str("?format=envelope");
        let own = format!("user:{}", client.user);
        if let Some((epoch, offset)) = client.positions.get(&own) {
            path.push_str(&format!("&since={}%3D{epoch}-{offset}", own.replace(':', "%253A")));
        }
    }
    let bearer = format!("Bearer {}", client.bearer);
    let connect = async {
        let stream = dial(client, address).await.map_err(|e| e.to_string())?;
        let upgraded = upgrade(stream, address, &path, &[("authorization", &bearer)]).await;
        upgraded.map_err(|e| e.to_string())
    };
    timeout(HANDSHAKE, connect).await.unwrap_or_else(|_| Err("no answer".to_owned()))
}

pub async fn session(client: &mut Client, replica: usize, address: &str) -> Ended {
    let mut ws = match open(client, address).await {
        Ok(ws) => ws,
        Err(why) => return Ended::Refused(why),
    };

    let hello = match timeout(HANDSHAKE, hear(&mut ws)).await {
        Ok(Ok(hello)) if hello["type"] == "connected" => hello,
        Ok(Ok(other)) => return Ended::Refused(other.to_string()),
        Ok(Err((code, reason))) => return Ended::Refused(format!("{code} {reason}")),
        Err(_) => return Ended::Refused("no greeting".to_owned()),
    };

    client.note(What::Opened(replica));
    let own = format!("user:{}", client.user);
    let start = &hello["data"]["positions"][&own];
    let resumes = client.wire == Wire::Envelope && client.positions.contains_key(&own);
    client.live(&own, start, resumes);

    for channel in client.channels.clone() {
        if channel != own && ask(client, &mut ws, &channel).await.is_err() {
            return Ended::Closed(1006, "while subscribing".to_owned());
        }
    }
    read(client, &mut ws).await
}

async fn ask(client: &Client, ws: &mut Socket, channel: &str) -> Result<(), ()> {
    let mut ask = json!({"type": "subscribe", "channel": channel, "id": 0});
    if client.wire == Wire::Envelope
        && let Some((epoch, offset)) = client.positions.get(channel)
    {
        ask["since"] = json!({"epoch": epoch, "offset": offset});
        ask["id"] = json!(1);
    }
    ws.send(Message::text(ask.to_string())).await.map_err(|_| ())
}

/// Notes what comes until the socket ends.
async fn read(client: &mut Client, ws: &mut Socket) -> Ended {
    let leave = client.leaves_at();
    let far = Instant::now() + Duration::from_secs(3600);

    // Subscriptions that were refused temporarily, and when to ask for them again.
    let mut again: Vec<(Instant, String)> = Vec::new();
    let mut phase = client.phase.clone();
    loop {
        let retry = again.first().map_or(far, |(at, _)| *at);
        let wander = leave.filter(|_| client.phase() == Phase::Load).unwrap_or(far);
        let message = tokio::select! {
            message = hear(ws) => message,
            () = sleep_until(wander) => return Ended::Left,
            () = sleep_until(retry) => {
                let (_, channel) = again.remove(0);
                if ask(client, ws, &channel).await.is_err() {
                    return Ended::Closed(1006, "while subscribing".to_owned());
                }
                continue;
            }
            changed = phase.changed() => {
                if changed.is_err() || *phase.borrow() == Phase::End {
                    return Ended::Over;
                }
                continue;
            }
        };

        let message = match message {
            Ok(message) => message,
            Err((code, reason)) => return Ended::Closed(code, reason),
        };
        take(client, &message, &mut again);
        client.dawdle().await;
    }
}

fn take(client: &mut Client, message: &Value, again: &mut Vec<(Instant, String)>) {
    let data = &message["data"];
    match message["type"].as_str() {
        None => client.event(message, None, None),
        Some("event") => {
            client.event(data, message["channel"].as_str(), position_of(message));
        }
        Some("subscribed") => {
            let channel = data["channelKey"].as_str().unwrap_or_default().to_owned();
            client.live(&channel, data, message["id"] == 1);
        }
        Some("error") if data["code"] == "unavailable" => {
            let channel = data["channel"].as_str().unwrap_or_default().to_owned();
            client.note(What::Note(format!("error {data}")));
            again.push((Instant::now() + Duration::from_millis(200), channel));
        }
        Some(kind) => client.said(kind, data),
    }
}
