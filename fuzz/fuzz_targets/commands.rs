//! Client commands: no text panics, and every answer that echoes part of it is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::protocol::codes::ErrorCode;
use tollgate::protocol::plain::{self, Command, Start, Subscribe};
use tollgate::protocol::{Message, sse};

fn check(message: &Message) {
    let json: serde_json::Value = serde_json::from_str(&message.text).expect("valid JSON");
    assert_eq!(json["type"], message.kind.name());
}

fuzz_target!(|text: &str| {
    // What is accepted as an id of a stream is written again as it can be read.
    if let Ok(since) = sse::parse_id(text) {
        let mut id = bytes::BytesMut::new();
        sse::id(&mut id, &since);
        let id = std::str::from_utf8(&id).expect("ASCII").trim_start_matches("id: ");
        let again = sse::parse_id(id.trim_end()).unwrap_or_default();
        assert!(again == since || id.len() > sse::MAX_ID);
    }
    let request = plain::parse(text);
    let id = request.id.as_deref();
    check(&plain::pong(id));
    match request.command {
        Command::Subscribe(Subscribe { channel, .. }) | Command::Unsubscribe(channel) => {
            let name = channel.name.as_str();
            assert!(!name.is_empty() && name.len() <= 255);
            assert!(!name.chars().any(tollgate::channel::is_forbidden), "{name:?}");
            check(&plain::subscribed(id, &channel, None, Start::default()));
            check(&plain::error(id, ErrorCode::Forbidden, "no", Some(&channel.raw)));
        }
        Command::Invalid(code, message) => check(&plain::error(id, code, &message, None)),
        Command::Auth(_) | Command::Refresh(_) | Command::Ping => {}
    }
});
