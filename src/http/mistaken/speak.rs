//! What a mistaken client is told on its WebSocket, in its own protocol.

use std::time::Duration;

use axum::http::request::Parts;
use bytes::BytesMut;
use hyper::upgrade::OnUpgrade;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::Client;
use crate::http::headers::parameters;
use crate::http::socket::{HandedOver, LINGER, handed_over};
use crate::lifecycle::{Lifecycle, Phase};
use crate::websocket::{Decoder, Message, Opcode, close_frame, encode};

/// The text that all of them get. A close reason has at most 123 bytes.
pub(super) const WHY: &str = "wrong server: Tollgate does not speak this protocol. Use a plain WebSocket at /ws, \
                   or EventSource at /sse";
const _: () = assert!(WHY.len() <= 123);

/// The largest message that is read.
const MAX_MESSAGE: usize = 16 * 1024;

/// A client that is kept connected sends its heartbeats more often than this.
const QUIET: Duration = Duration::from_secs(90);

/// What a client is told, and how its socket ends.
pub(super) struct Words {
    messages: BytesMut,
    end: Ending,
}

enum Ending {
    /// We close with this code.
    Close(u16),
    /// The client closes by itself; if it does not, we close after a while.
    TheirClose,
    /// The client reconnects after every end, whatever the code, so it is answered until it leaves.
    Phoenix,
}

/// Centrifugo's message that ends a connection for good.
pub(super) fn disconnect() -> Value {
    json!({ "push": { "disconnect": { "code": 3501, "reason": WHY } } })
}

/// Socket.IO's packets: the handshake, then the refusal of the namespace.
pub(super) fn socket_io(request: &Parts) -> Vec<String> {
    let open = json!({
        "sid": "tollgate", "upgrades": [], "pingInterval": 25000, "pingTimeout": 20000,
        "maxPayload": 100_000,
    });
    let open = format!("0{open}");
    if parameters(&request.uri, "EIO").any(|version| version == "4") {
        return vec![open, format!("44{}", json!({ "message": WHY }))];
    }
    // Version 3 has each packet's length, in characters, in front of it. It knows no lasting
    // refusal, so the client is disconnected.
    let packets = [open, format!("44{}", json!(WHY)), "41".to_owned()];
    if parameters(&request.uri, "transport").any(|transport| transport == "websocket") {
        return packets.into();
    }
    vec![packets.iter().map(|p| format!("{}:{p}", p.chars().count())).collect()]
}

/// Ably's error, as JSON or as MessagePack.
fn ably(request: &Parts) -> (Opcode, Vec<u8>) {
    if parameters(&request.uri, "format").all(|format| format != "msgpack") {
        let error = json!({ "code": 40400, "statusCode": 404, "message": WHY });
        return (Opcode::Text, json!({ "action": 9, "error": error }).to_string().into_bytes());
    }
    let [high, low] = 40400u16.to_be_bytes();
    let mut out = b"\x82\xa6action\x09\xa5error\x83\xa4code\xcd".to_vec();
    out.extend([high, low]);
    out.extend(b"\xaastatusCode\xcd\x01\x94\xa7message\xd9");
    out.push(u8::try_from(WHY.len()).unwrap_or(0));
    out.extend(WHY.as_bytes());
    (Opcode::Binary, out)
}

impl Words {
    pub(super) fn of(client: Client, request: &Parts) -> Self {
        let text = |text: String| vec![(Opcode::Text, text.into_bytes())];
        let (said, end) = match client {
            Client::Centrifuge => (Vec::new(), Ending::Close(3501)),
            // 4005 is "Path not found". Clients do not try again after 4000 to 4099.
            Client::Pusher => {
                let data = json!({ "code": 4005, "message": WHY });
                let error = json!({ "event": "pusher:error", "data": data });
                (text(error.to_string()), Ending::Close(4005))
            }
            Client::Phoenix => (Vec::new(), Ending::Phoenix),
            Client::ActionCable => {
                let end = json!({ "type": "disconnect", "reason": WHY, "reconnect": false });
                (text(end.to_string()), Ending::TheirClose)
            }
            Client::Ably => (vec![ably(request)], Ending::TheirClose),
            Client::SocketIo => {
                let packets = socket_io(request).into_iter();
                let said = packets.map(|packet| (Opcode::Text, packet.into_bytes())).collect();
                (said, Ending::TheirClose)
            }
            Client::EngineIo => (Vec::new(), Ending::Close(1008)),
            Client::GraphQl => (Vec::new(), Ending::Close(4400)),
        };

        let mut messages = BytesMut::new();
        said.iter().for_each(|(opcode, text)| encode(&mut messages, *opcode, text));
        Self { messages, end }
    }
}

/// Sends the words, and waits for the client's end if the client has to make it.
pub(super) async fn to(upgrade: OnUpgrade, words: Words, lifecycle: Lifecycle) {
    let Some(HandedOver { mut stream, early, held }) = handed_over(upgrade).await else { return };
    let first = [&held[..], &words.messages].concat();
    if !matches!(timeout(LINGER, stream.write_all(&first)).await, Ok(Ok(()))) {
        return;
    }

    let mut socket = Socket { stream, decoder: Decoder::default(), early };
    let code = match words.end {
        Ending::Close(code) => code,
        Ending::TheirClose => match timeout(LINGER, socket.their_end()).await {
            Ok(()) => 1000,
            Err(_) => 1008,
        },
        Ending::Phoenix => {
            let answers =
                async { while let Ok(true) = timeout(QUIET, socket.step(phoenix)).await {} };
            tokio::select! {
                () = answers => {}
                () = lifecycle.wait_for(Phase::Draining) => {}
            }
            1000
        }
    };

    let reason = if code == 1000 { "" } else { WHY };
    let frame = close_frame(code, reason);
    let goodbye = async {
        if socket.stream.write_all(&frame).await.is_ok() {
            socket.their_end().await;
        }
    };

    // A client that does not answer is ended all the same.
    let _ = timeout(LINGER, goodbye).await;
    let _ = socket.stream.shutdown().await;
}

struct Socket {
    stream: TcpStream,
    decoder: Decoder,
    early: Vec<u8>,
}

impl Socket {
    /// Reads to the client's Close or the end of the connection.
    async fn their_end(&mut self) {
        while self.step(|_| None).await {}
    }

    /// Reads the next bytes and answers them. Returns false at the client's Close or end.
    async fn step(&mut self, reply: impl Fn(&str) -> Option<String>) -> bool {
        let mut buffer = [0; 4096];
        let mut bytes = std::mem::take(&mut self.early);
        if bytes.is_empty() {
            match self.stream.read(&mut buffer).await {
                Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
                _ => return false,
            }
        }

        let mut out = BytesMut::new();
        let mut closed = false;
        let fed = self.decoder.feed(&mut bytes, MAX_MESSAGE, |message| {
            match message {
                Message::Text(text) => {
                    if let Some(answer) = reply(text) {
                        answer
                            .lines()
                            .for_each(|line| encode(&mut out, Opcode::Text, line.as_bytes()));
                    }
                }
                Message::Ping(data) => encode(&mut out, Opcode::Pong, data),
                Message::Close(_) => closed = true,
                Message::Binary(_) | Message::Pong => {}
            }
            !closed
        });

        let wrote = timeout(LINGER, self.stream.write_all(&out)).await;
        !closed && fed.is_ok() && matches!(wrote, Ok(Ok(())))
    }
}

/// Answers one message of Phoenix' protocol, in version 1 (objects) or 2 (lists), with one message
/// a line. A channel is refused and closed, which ends the client's attempts to join it; a
/// heartbeat is answered.
fn phoenix(text: &str) -> Option<String> {
    let message = serde_json::from_str::<Value>(text).ok()?;
    let at = |index: usize, name: &str| {
        let field = if message.is_array() { message.get(index) } else { message.get(name) };
        field.cloned().unwrap_or(Value::Null)
    };

    let join = at(0, "join_ref");
    let reference = at(1, "ref");
    let topic = at(2, "topic");
    let event = at(3, "event");
    let is_list = message.is_array();

    let line = |reference: &Value, event: &str, payload: Value| {
        if is_list {
            json!([join, reference, topic, event, payload])
        } else {
            json!({ "topic": topic, "event": event, "ref": reference, "payload": payload })
        }
        .to_string()
    };
    let reply = |status: &str, response: Value| {
        line(&reference, "phx_reply", json!({ "status": status, "response": response }))
    };

    match event.as_str()? {
        "heartbeat" | "phx_leave" => Some(reply("ok", json!({}))),
        "phx_join" => {
            let refused = reply("error", json!({ "reason": WHY }));
            Some(format!("{refused}\n{}", line(&Value::Null, "phx_close", json!({}))))
        }
        _ => Some(reply("error", json!({ "reason": WHY }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phoenix_is_answered_in_both_versions() {
        let heartbeat = phoenix(r#"[null,"7","phoenix","heartbeat",{}]"#).unwrap();
        let ok = r#"[null,"7","phoenix","phx_reply",{"response":{},"status":"ok"}]"#;
        assert_eq!(heartbeat, ok);

        let join = phoenix(r#"{"topic":"a:b","event":"phx_join","ref":"1","payload":{}}"#).unwrap();
        let lines: Vec<Value> =
            join.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect();
        assert_eq!(lines[0]["payload"]["response"]["reason"], WHY);
        assert_eq!((&lines[1]["event"], &lines[1]["topic"]), (&json!("phx_close"), &json!("a:b")));

        for nothing in ["", "7", "[]", "{}", "[1,2,3,4]"] {
            assert_eq!(phoenix(nothing), None);
        }
    }
}
