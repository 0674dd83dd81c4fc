//! Gateways as the integration tests start them: with rules for users and for posts, unless a test
//! brings its own.
//!
//! Not here: the process (`tollgate_support::gateway`).

use std::process::Stdio;

use tollgate_support::gateway::{Gateway, Launch};
use tollgate_support::http::API_KEY;
use tollgate_support::redis::Redis;
use tollgate_support::tokens::SECRET;

/// The program under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_tollgate");

/// The configuration of a test gateway: free ports and a debug log, then what the test wants.
pub fn config(extra: &str) -> String {
    let keys = format!("keys = [\"{API_KEY}\"]");
    let base = [
        ("[server]", "listen = \"127.0.0.1:0\""),
        ("[admin]", "listen = \"127.0.0.1:0\""),
        ("[log]", "level = \"debug\""),
        ("[api]", &keys),
        // Many clients here answer pings only when they read, which on a busy machine is late.
        ("[limits]", "ping_interval = \"10m\""),
        // Many tests have many tokens refused.
        ("[limits]", "refusal_wait = \"0s\""),
        ("[drain]", "settle = \"50ms\"\nwindow = \"200ms\""),
    ];

    let mut text = extra.to_owned();
    for (section, line) in base {
        // A section of the test's own gets the base's line, unless it sets that itself.
        let name = line.split(" =").next().unwrap_or_default();
        if !text.contains(section) {
            text.push_str(&format!("\n{section}\n{line}\n"));
        } else if section != "[drain]" && !text.contains(&format!("\n{name} =")) {
            text = text.replace(section, &format!("{section}\n{line}"));
        }
    }

    if !text.contains("[[auth.keys]]") {
        text.push_str(&format!("\n[[auth.keys]]\nsecret = \"{SECRET}\"\n"));
    }
    if !text.contains("[[channels]]") {
        text.push_str(
            r#"
[[channels]]
pattern = "user:{user}"
allow = "owner"
auto_subscribe = true
[[channels]]
pattern = "post:{id}"
allow = "authenticated"
"#,
        );
    }
    text
}

/// The launch of a gateway with further configuration.
fn launch(extra: &str) -> Launch {
    // Measurements use another build.
    let program = std::env::var("TOLLGATE_BIN").unwrap_or_else(|_| BIN.to_owned());
    Launch::new(program, config(extra))
}

/// Starts a gateway with a memory broker.
pub async fn start() -> Gateway {
    with("").await
}

/// Starts a gateway on a Redis, and waits until it is ready.
pub async fn on_redis(redis: &Redis) -> Gateway {
    let gateway = with(&redis.config()).await;
    gateway.ready().await;
    gateway
}

/// Starts a gateway with further configuration.
pub async fn with(extra: &str) -> Gateway {
    launch(extra).start().await
}

/// Starts a gateway with the demo page.
pub async fn dev(extra: &str) -> Gateway {
    launch(extra).arguments(&["--dev"]).start().await
}

/// Starts a gateway with further environment variables.
pub async fn with_env(extra: &str, env: &[(&str, &str)]) -> Gateway {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    launch(extra).environment(env).start().await
}

/// Starts a gateway whose log goes elsewhere, or nowhere: to a pipe without a reader from
/// the start.
pub async fn without_log(extra: &str, stdout: Stdio, stderr: Stdio) -> Gateway {
    launch(extra).log_to(stdout, stderr).start().await
}
