//! The costs of a message in our own code, without sockets: encoding, decoding, the access rules.
//! Tokens are measured in `auth`, the fan-out in `hub`.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod parts;

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use parts::push;
use tollgate::access::{self, Allow, Identity, Rule, TokenId};
use tollgate::channel::ChannelName;
use tollgate::protocol::{Push, Wire, payload};
use tollgate::websocket::Decoder;

fn codec(c: &mut Criterion) {
    let push = push();

    for wire in Wire::ALL {
        c.bench_function(&format!("encode {}", wire.label()), |b| {
            b.iter_batched_ref(
                || BytesMut::with_capacity(512),
                |out| push.encode(black_box(wire), out),
                BatchSize::SmallInput,
            );
        });
    }

    if let Push::Publication(publication) = &push {
        c.bench_function("check a payload", |b| {
            b.iter(|| payload::check(black_box(&publication.payload)));
        });
    }

    let command = br#"{"type":"subscribe","channel":{"type":"post","postId":"42"},"id":1}"#;
    let mut frame = vec![0x81, 0x80 | command.len() as u8, 1, 2, 3, 4];
    frame.extend(command.iter().enumerate().map(|(i, b)| b ^ [1, 2, 3, 4][i & 3]));

    let mut group = c.benchmark_group("client frame");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("decode and parse a subscribe", |b| {
        b.iter_batched_ref(
            || (Decoder::default(), frame.clone()),
            |(decoder, bytes)| {
                decoder
                    .feed(bytes, 65536, |message| {
                        if let tollgate::websocket::Message::Text(text) = message {
                            black_box(Wire::Plain.decode(text));
                        }
                        true
                    })
                    .unwrap();
            },
            BatchSize::SmallInput,
        );
    });
}

fn access_rules(c: &mut Criterion) {
    let rules: Vec<Rule> = ["user:{user}", "post:{id}", "room:{id}"]
        .iter()
        .map(|p| Rule {
            pattern: p.parse().unwrap(),
            allow: Allow::Authenticated,
            auto_subscribe: false,
            history: None,
        })
        .collect();

    let identity = Identity {
        token: TokenId::default(),
        user: "u1".into(),
        expires_at: None,
        granted: Box::default(),
        claims: Box::default(),
    };
    let channel: ChannelName = "room:42".parse().unwrap();

    c.bench_function("decide by the third rule", |b| {
        b.iter(|| access::decide(Some(&identity), black_box(&channel), &rules));
    });
}

criterion_group!(benches, codec, access_rules);
criterion_main!(benches);
