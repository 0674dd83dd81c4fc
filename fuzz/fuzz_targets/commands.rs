//! Client commands: no text panics, and every answer that echoes part of it is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::protocol::codes::ErrorCode;
use tollgate::protocol::plain::{self, Command};

fn check(frame: &[u8]) {
    let start = frame.iter().position(|b| *b == b'{').expect("a JSON object");
    serde_json::from_slice::<serde_json::Value>(&frame[start..]).expect("valid JSON");
}

fuzz_target!(|text: &str| {
    let request = plain::parse(text);
    let id = request.id.as_deref();
    check(&plain::pong(id));
    match request.command {
        Command::Subscribe(channel, _) | Command::Unsubscribe(channel) => {
            let name = channel.name.as_str();
            assert!(!name.is_empty() && name.len() <= 255);
            assert!(!name.chars().any(tollgate::channel::is_forbidden), "{name:?}");
            check(&plain::subscribed(id, &channel, None));
            check(&plain::error(id, ErrorCode::Forbidden, "no", Some(&channel.raw)));
        }
        Command::Invalid(code, message) => check(&plain::error(id, code, &message, None)),
        Command::Auth(_) | Command::Refresh(_) | Command::Ping => {}
    }
});
