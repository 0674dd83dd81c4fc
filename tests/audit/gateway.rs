//! Gateways as the auditor starts them: the rules and limits of every round, and what shows in
//! their logs.
//!
//! Not here: the process (`tollgate_support::gateway`).

use std::path::Path;
use std::time::{Duration, Instant};

use tollgate_support::gateway::{Gateway, Launch};
use tollgate_support::http::try_status;
use tollgate_support::tokens::{SECRET, long_token};

/// Today's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate");

/// The rules and limits of every round; the secret and the broker's URL come on top.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
[admin]
listen = "127.0.0.1:0"
[drain]
settle = "300ms"
window = "1s"
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "durable:{id}"
allow = "authenticated"
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "mixed:{id}"
allow = "authenticated"
history = { size = 500, ttl = "5m" }
[[channels]]
pattern = "plain:{id}"
allow = "authenticated"
[limits]
queue_bytes = 33554432
[broker]
kind = "redis"
linger = "300ms"
"#;

/// Launches any version's program on a Redis URL.
pub fn of(program: &Path, url: &str) -> Launch {
    let keys = format!("[[auth.keys]]\nsecret = \"{SECRET}\"\n");
    Launch::new(program, format!("{CONFIG}[redis]\nurl = \"{url}\"\n{keys}"))
}

/// Launches today's program on a Redis URL. It answers refused tokens at once, as earlier versions
/// always do.
pub fn today(url: &str) -> Launch {
    let at_once = ("TOLLGATE_LIMITS__REFUSAL_WAIT".to_owned(), "0s".to_owned());
    of(Path::new(PROGRAM), url).environment([at_once])
}

/// Starts a gateway and waits until it is ready.
pub async fn start(launch: Launch) -> Gateway {
    let gateway = launch.start().await;
    gateway.ready().await;
    gateway
}

/// Whether this version serves event streams.
pub async fn has_sse(gateway: &Gateway) -> bool {
    let path = format!("/sse?channels=plain:1&token={}", long_token("u1"));
    try_status(&gateway.public, &path).await == Some(200)
}

/// How long after a moment the log first spoke of trouble with Redis.
pub fn noticed(gateway: &Gateway, after: Instant) -> Option<Duration> {
    const SIGNS: [&str; 5] =
        [" WARN ", " ERROR ", "Redis masters", "connected to Redis", "no longer a master"];
    gateway.first_logged(after, &SIGNS).map(|at| at.duration_since(after))
}
