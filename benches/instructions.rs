//! The hot path for `make instructions`, which runs this under callgrind. With NAME and ROUNDS it
//! runs that one scenario so many times and nothing else; with `--list` it prints the scenarios and
//! the number of rounds that each needs.
//!
//! Everything is the same in every run: fixed inputs, one thread. Only the random keys of the hash
//! tables and the hub's four ticks a second differ, which move a count by less than 1 %.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]
#![expect(clippy::print_stdout, reason = "the list is for the script that reads it")]

use std::hint::black_box;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::task::yield_now;
use tollgate::auth::{
    Algorithm, Encoding, Key, KeySet, Secret, Settings as TokenSettings, UserClaim, Verifier,
};
use tollgate::broker::Events;
use tollgate::broker::memory::MemoryBroker;
use tollgate::channel::{ChannelName, Position, Publication};
use tollgate::config::{Loaded, Sources, load};
use tollgate::diagnosis::sampler::{Sampler, Settings as SamplerSettings};
use tollgate::gateway::{Gateway, NodeInfo};
use tollgate::http::{App, Peer};
use tollgate::hub::{Activation, Hub, QueueBounds};
use tollgate::lifecycle::Lifecycle;
use tollgate::protocol::{ChannelRef, Command, Reply, Start};
use tollgate::protocol::{Push, Wire};
use tollgate::session::Context;
use tollgate::upstream;
use tollgate::upstream::jwks::{Jwks, Settings as JwksSettings};
use tollgate::websocket::{Decoder, Message};
use tower_service::Service as _;

/// A name, the number of rounds that makes the start of the process small beside them, and the
/// function that runs them.
type Scenario = (&'static str, u32, fn(u32));

const SCENARIOS: [Scenario; 10] = [
    ("encode_plain", 500, |rounds| codec_encode(Wire::Plain, rounds)),
    ("encode_envelope", 500, |rounds| codec_encode(Wire::Envelope, rounds)),
    ("encode_sse", 500, |rounds| codec_encode(Wire::Sse, rounds)),
    ("encode_sse_envelope", 500, |rounds| codec_encode(Wire::SseEnvelope, rounds)),
    ("codec_decode", 500, codec_decode),
    ("parse_command", 500, parse_command),
    ("verify_hs256", 500, verify_hs256),
    ("hub_fanout", 4000, |rounds| run(hub_fanout(rounds))),
    ("hub_subscribe", 20000, hub_subscribe),
    ("handshake", 2500, |rounds| run(handshake(rounds))),
];

const SECRET: &str = "a benchmark's secret of sufficient length";
const IAT: u64 = 1_700_000_000;
const NOW: u64 = 1_800_000_000;
/// The expiry is in the year 2096, because the router uses the machine's clock.
const EXP: u64 = 4_000_000_000;
const SUBSCRIBERS: usize = 100;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [name, rounds] = args[..] else {
        for (name, rounds, _) in SCENARIOS {
            println!("{name} {rounds}");
        }
        return if matches!(args[..], ["--list"]) { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };

    let (.., scenario) =
        SCENARIOS.iter().find(|(known, ..)| *known == name).expect("one of --list");
    scenario(rounds.parse().expect("a number of rounds"));
    ExitCode::SUCCESS
}

/// Runs a future on this thread.
fn run(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future);
}

/// A durable publication whose event has 200 bytes.
fn push() -> Push {
    let event = |pad| json!({"type": "post_purchased", "postId": "p1", "pad": "x".repeat(pad)});
    let pad = 200 - event(0).to_string().len();
    Push::Publication(Publication {
        channel: "post:42".parse().unwrap(),
        payload: Bytes::from(event(pad).to_string()),
        cut: None,
        position: Position::new("5eb63bbbe01eeed0", 4711),
        published: Some(1_795_828_520_000_001),
    })
}

/// A frame as a client masks it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Encodes for one wire alone: an additional allocation of a fast wire would not show beside the
/// slowest wire.
fn codec_encode(wire: Wire, rounds: u32) {
    let push = push();
    let mut out = BytesMut::with_capacity(4096);
    for _ in 0..rounds {
        out.clear();
        push.encode(black_box(wire), &mut out);
        black_box(&out);
    }
}

/// Decodes a text frame of 60 bytes, and a message in three fragments that come one by one.
fn codec_decode(rounds: u32) {
    let text = br#"{"type":"subscribe","channel":"post:42","id":1,"pad":"1234"}"#;
    assert_eq!(text.len(), 60);

    let frames = [
        frame(0x81, text),
        frame(0x01, &text[..20]),
        frame(0x00, &text[20..40]),
        frame(0x80, &text[40..]),
    ];

    let mut decoder = Decoder::default();
    let (mut read, mut messages) = ([0; 128], 0);

    for _ in 0..rounds {
        for frame in &frames {
            // The decoder unmasks in place, so each round needs the bytes as they came from the
            // socket.
            let read = &mut read[..frame.len()];
            read.copy_from_slice(black_box(frame));
            let fed = decoder.feed(read, 65536, |message| {
                messages += u32::from(matches!(black_box(message), Message::Text(_)));
                true
            });
            fed.unwrap();
        }
    }

    assert_eq!(messages, 2 * rounds);
}

fn parse_command(rounds: u32) {
    let command = r#"{"type":"subscribe","channel":{"type":"post","postId":"42"},"id":1}"#;
    for _ in 0..rounds {
        let request = Wire::Plain.decode(black_box(command));
        assert!(matches!(black_box(request).command, Command::Subscribe(_)));
    }
}

fn key() -> Key {
    let secret = Secret::new(SECRET, Encoding::Utf8).unwrap();
    Key::new(None, vec![Algorithm::Hs256], secret)
}

/// A token as an API signs it.
fn token() -> String {
    let claims = json!({
        "sub": "8f14e45f-ceea-467f-9b1c-1a2b3c4d5e6f", "email": "someone@example.com",
        "name": "Someone", "role": "member", "jti": "c9f0f895-fb98-4b91-a2d1-0f1e2d3c4b5a",
        "iss": "https://api.example.com", "aud": "realtime", "iat": IAT, "exp": EXP,
    });
    key().sign(&claims, None).unwrap()
}

fn verify_hs256(rounds: u32) {
    let settings = TokenSettings {
        issuer: vec!["https://api.example.com".into()],
        audience: vec!["realtime".into()],
        leeway: 30,
        require_exp: true,
        user_claim: vec![UserClaim("userId".into()), UserClaim("sub".into())],
        max_token_bytes: 16384,
        kept_claims: vec![],
        max_granted: 128,
    };
    let verifier = Verifier::new(settings, KeySet::new(vec![key()], vec![]));

    let token = token();
    for _ in 0..rounds {
        black_box(verifier.verify(black_box(&token), NOW).unwrap());
    }
}

fn hub() -> Arc<Hub> {
    let bounds = QueueBounds {
        queue_messages: AtomicUsize::new(1024),
        queue_bytes: AtomicUsize::new(1 << 20),
        queue_bytes_total: AtomicUsize::new(1 << 28),
        queued: AtomicUsize::new(0),
        channels_per_connection: AtomicUsize::new(128),
    };
    Hub::new(1, bounds)
}

/// Delivers publications to 100 sockets, each of which the client reads. A `read` counts as the few
/// instructions of a system call: the kernel's own are not counted.
async fn hub_fanout(rounds: u32) {
    tollgate::metrics::install();
    let (hub, push) = (hub(), push());
    hub.start_fanout();
    hub.start_timers();

    let channel = push.channel().clone();
    let mut frame = BytesMut::new();
    push.encode(Wire::Plain, &mut frame);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut clients = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = tokio::net::TcpStream::from_std(server).unwrap();
        server.writable().await.unwrap();
        let connection = hub.register(Some(server), Wire::Plain);
        hub.subscribe(&connection, &channel).unwrap();
        hub.activate(&connection, &channel, &[], &Activation::default());
        clients.push((client, connection));
    }

    let mut read = vec![0; frame.len()];
    for _ in 0..rounds {
        hub.dispatch(push.clone()).await;
        // The fan-out needs two turns: one for the batch, and one in which it waits for the next.
        yield_now().await;
        yield_now().await;
        for (client, _) in &mut clients {
            client.read_exact(&mut read).unwrap();
        }
    }

    assert_eq!(read, frame);
}

/// A connection registers, subscribes to a channel with 100 other subscribers, gets its reply, and
/// ends.
fn hub_subscribe(rounds: u32) {
    tollgate::metrics::install();
    let hub = hub();
    let channel: ChannelName = "post:42".parse().unwrap();
    let (user, begin) = (Arc::from("u1"), Activation::default());

    let named = ChannelRef::from_name(channel.clone());
    let (id, start) = (Some("1"), Start::default());
    let reply = [Reply::Subscribed { id, channel: &named, data: None, start }];

    let enter = |user: &Arc<str>| {
        let connection = hub.register(None, Wire::Plain);
        assert!(hub.bind(&connection, user, 10));
        hub.subscribe(&connection, black_box(&channel)).unwrap();
        hub.mark_confirmed(&connection, &channel);
        hub.activate(&connection, &channel, &reply, &begin);
        black_box(connection.take_queued().unwrap());
        connection
    };

    let others = (0..SUBSCRIBERS).map(|n| enter(&Arc::from(format!("other{n}"))));
    let others: Vec<_> = others.collect();

    for _ in 0..rounds {
        let connection = enter(&user);
        assert_eq!(hub.remove(&connection).len(), 1);
    }

    assert_eq!(hub.counts().connections, others.len());
}

/// A gateway without listeners.
fn app() -> App {
    let key = toml::Table::from_iter([("secret".to_owned(), SECRET.into())]);
    let sources = Sources {
        presets: vec![("auth.keys", toml::Value::Array(vec![key.into()]))],
        file: None,
        env: vec![],
        flags: vec![],
        dev: false,
        dev_secret: None,
    };
    let Loaded { config, policy, .. } = load(&sources).unwrap();

    let events = Arc::new(Events::new(config.broker.queue_messages, config.broker.queue_bytes));
    let broker = Arc::new(MemoryBroker::new(events, config.broker.history_bytes));
    let gateway = Gateway::new(hub(), broker, config.broker.linger.0, NodeInfo::default());
    let gateway = Arc::new(gateway);

    let verifier = policy.verifier.revoking(Arc::clone(gateway.revocations()));
    let jwks = JwksSettings {
        refresh: config.auth.jwks.refresh.0,
        min_interval: config.auth.jwks.min_interval.0,
        timeout: config.auth.jwks.timeout.0,
        max_bytes: config.auth.jwks.max_bytes,
    };

    let client = upstream::client(config.auth.jwks.timeout.0, None).unwrap();
    let sampler = SamplerSettings {
        per_second: config.doctor.per_second,
        log_interval: config.doctor.log_interval.0,
    };

    let context = Context {
        gateway,
        policy: ArcSwap::from_pointee(tollgate::config::Policy { verifier, ..policy }),
        change: ArcSwap::default(),
        jwks: Jwks::new(client, jwks, || NOW),
        callback: ArcSwapOption::empty(),
        sampler: Arc::new(Sampler::new(sampler)),
    };

    App::new(Arc::new(context), Lifecycle::default(), tollgate::metrics::install())
}

/// Measures the way from a parsed request, with a browser's headers and its token as a subprotocol,
/// to the answer: routes, checks, limits, token. The socket is never handed over, so its task ends
/// at once.
async fn handshake(rounds: u32) {
    let mut router: Router = tollgate::http::public(app());
    let peer: SocketAddr = "192.0.2.7:50000".parse().unwrap();

    let request = Request::get("/ws")
        .header("host", "realtime.example.com")
        .header("connection", "Upgrade")
        .header("pragma", "no-cache")
        .header("cache-control", "no-cache")
        .header(
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        )
        .header("upgrade", "websocket")
        .header("origin", "https://realtime.example.com")
        .header("sec-websocket-version", "13")
        .header("accept-encoding", "gzip, deflate, br")
        .header("accept-language", "en-GB,en;q=0.9")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", format!("tollgate, bearer.{}", token()))
        .body(())
        .unwrap();

    for _ in 0..rounds {
        // This upgrade belongs to a request without a connection, so it never completes.
        let upgrade = hyper::upgrade::on(Request::new(()));
        let mut request = black_box(&request).clone().map(|()| Body::empty());
        request.extensions_mut().insert(upgrade);
        request.extensions_mut().insert(Peer(peer));

        let response = router.call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        yield_now().await;
    }
}
