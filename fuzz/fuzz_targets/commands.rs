//! Client commands: no text panics, and every answer that echoes part of it is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::protocol::codes::ErrorCode;
use tollgate::protocol::{Command, Reply, Start, Subscribe, Wire, sse};

fn check(reply: &Reply<'_>) {
    let frame = Wire::Sse.frame(reply);
    let frame = std::str::from_utf8(&frame).expect("UTF-8");
    let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    let json: serde_json::Value = serde_json::from_str(data).expect("valid JSON on one line");
    assert_eq!(json["type"], reply.kind().name());
}

fuzz_target!(|text: &str| {
    // A text that is accepted as an id of a stream is written in a form that can be read again.
    if let Ok(since) = sse::parse_id(text) {
        let mut id = bytes::BytesMut::new();
        sse::id(&mut id, &since);
        let id = std::str::from_utf8(&id).expect("ASCII").trim_start_matches("id: ");
        let again = sse::parse_id(id.trim_end()).unwrap_or_default();
        assert!(again == since || id.len() > sse::MAX_ID);
    }

    let request = Wire::Plain.decode(text);
    let id = request.id.as_deref();
    check(&Reply::Pong { id });

    match request.command {
        Command::Subscribe(Subscribe { channel, .. }) | Command::Unsubscribe(channel) => {
            let name = channel.name.as_str();
            assert!(!name.is_empty() && name.len() <= 255);
            assert!(!name.chars().any(tollgate::channel::is_forbidden), "{name:?}");
            let (code, raw) = (ErrorCode::Forbidden, Some(&*channel.raw));
            let start = Start::default();
            check(&Reply::Subscribed { id, channel: &channel, data: None, start });
            check(&Reply::Error { id, code, message: "no", channel: raw });
        }
        Command::Invalid(code, message) => {
            check(&Reply::Error { id, code, message: &message, channel: None })
        }
        Command::Auth(_) | Command::Refresh(_) | Command::Ping => {}
    }
});
