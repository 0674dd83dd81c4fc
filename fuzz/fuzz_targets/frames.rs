//! Frames: no input panics, and however the bytes are cut, the messages are the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::websocket::Decoder;

const MAX_MESSAGE: usize = 4096;

fn decode(parts: impl Iterator<Item = Vec<u8>>) -> (Vec<String>, Option<String>) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();

    for mut part in parts {
        let fed = decoder.feed(&mut part, MAX_MESSAGE, |message| {
            messages.push(format!("{message:?}"));
            true
        });
        if let Err(error) = fed {
            return (messages, Some(error.to_string()));
        }
    }
    (messages, None)
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (cut, bytes) = input;
    let whole = decode(std::iter::once(bytes.clone()));
    let parts = decode(bytes.chunks(usize::from(cut).max(1)).map(<[u8]>::to_vec));
    assert_eq!(whole, parts);
});
