//! `tollgate publish`: one event on a channel, and an answer that a person understands.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tokio::time::{sleep, timeout};

use super::file::{File, problems, sources};
use crate::access;
use crate::app::relaying;
use crate::broker::{Broker as _, BrokerError, Durable, Published};
use crate::channel::{ChannelName, Retention};
use crate::config::{self, Loaded, Sources};
use crate::protocol::payload;
use crate::terminal::{complain, print};

/// How long Redis may take to be found.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The retention of a channel whose rule has none, as in the function library.
const DEFAULT: Retention = Retention { size: 100, ttl: Duration::from_secs(600), plain: true };

#[derive(Debug, Args)]
pub(super) struct Publish {
    #[command(flatten)]
    file: File,
    /// The channel without the prefix, for example user:u1
    channel: String,
    /// The event, as JSON; without it, or with -, it is read from standard input
    #[arg(value_name = "JSON")]
    event: Option<String>,
    /// Keep the event in the channel's history [default: if the channel's rule has a history]
    #[arg(long)]
    durable: bool,
    /// An idempotency key: the same key within 5 minutes publishes nothing; implies --durable
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

pub(super) fn run(args: &Publish) -> anyhow::Result<ExitCode> {
    let loaded = match config::load(&Sources { dev: true, ..sources(&args.file) }) {
        Ok(loaded) => loaded,
        Err(found) => return Ok(problems(&found)),
    };
    let event = read_event(args.event.as_deref(), loaded.config.limits.publication_bytes)?;
    let (channel, event) = match judge(&args.channel, event, &loaded) {
        Ok(judged) => judged,
        Err(why) => return Ok(refused(&why)),
    };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(publish(args, &loaded, &channel, event));
    runtime.shutdown_background();
    result
}

fn refused(why: &str) -> ExitCode {
    complain(&format!("tollgate: not published: {why}\n"));
    ExitCode::FAILURE
}

fn read_event(given: Option<&str>, limit: usize) -> anyhow::Result<Bytes> {
    match given {
        Some(text) if text != "-" => Ok(Bytes::copy_from_slice(text.as_bytes())),
        _ => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                complain("tollgate: reading the event from standard input; end it with Ctrl-D\n");
            }
            let mut text = Vec::new();
            stdin.take(limit as u64 + 1).read_to_end(&mut text)?;
            if text.ends_with(b"\n") {
                text.pop();
            }
            Ok(Bytes::from(text))
        }
    }
}

/// What is wrong with channel or event, before anybody is asked.
fn judge(channel: &str, event: Bytes, loaded: &Loaded) -> Result<(ChannelName, Bytes), String> {
    let prefix = &loaded.config.redis.prefix;
    if !prefix.is_empty()
        && let Some(name) = channel.strip_prefix(&**prefix)
    {
        return Err(format!(
            "the channel is named without the prefix \"{prefix}\", which is added: {name}"
        ));
    }
    let channel: ChannelName = channel.parse().map_err(|e| format!("{channel:?}: {e}"))?;
    if let Some(id) = channel.missing_id() {
        return Err(format!("{channel} has the id \"{id}\": somebody had none"));
    }
    let limit = loaded.config.limits.publication_bytes;
    if event.len() > limit {
        return Err(format!("the event is larger than {limit} bytes (limits.publication_bytes)"));
    }
    payload::check(&event).map_err(|fault| format!("the event: {fault}"))?;
    Ok((channel, event))
}

async fn publish(
    args: &Publish,
    loaded: &Loaded,
    channel: &ChannelName,
    event: Bytes,
) -> anyhow::Result<ExitCode> {
    let rules = &loaded.policy.rules;
    if !rules.is_empty() && !access::is_given(channel, rules) {
        complain(&format!(
            "tollgate: warning: no rule in [[channels]] gives {channel}, so no client can subscribe to it\n"
        ));
    }
    let by_rule = access::history(channel, rules);
    let kept = args.durable || args.key.is_some() || by_rule.is_some();
    let durable = kept.then(|| Durable {
        retention: by_rule.unwrap_or(DEFAULT),
        idempotency_key: args.key.clone(),
    });

    let broker = relaying::broker(&loaded.config)?;
    let up = async {
        while !broker.health().publisher {
            sleep(Duration::from_millis(10)).await;
        }
    };
    if timeout(CONNECT_WITHIN, up).await.is_err() {
        let why = broker.health().last_error.map_or_else(String::new, |e| e.what);
        return Ok(refused(&format!("Redis cannot be reached: {why}")));
    }

    match broker.publish(channel, event, durable).await {
        Ok(published) => print(&in_words(channel, &published)),
        Err(BrokerError::TimedOut) => Ok(refused(
            "Redis did not answer in time; the event may have been published all the same. A retry with \
             the same --key is safe",
        )),
        Err(error) => Ok(refused(&error.to_string())),
    }
}

fn in_words(channel: &ChannelName, published: &Published) -> String {
    let kept = match &published.position {
        Some(position) => {
            format!("it is kept as offset {} of epoch {}", position.offset, position.epoch)
        }
        None => "it is not kept".to_owned(),
    };
    let s = |n: i64| if n == 1 { "" } else { "s" };
    match published.heard {
        Some(-1) => format!(
            "published before on {channel} with this key: nothing was published now; {kept}\n"
        ),
        Some(0) => format!("published on {channel}: no replica is subscribed to it now; {kept}\n"),
        Some(n) => {
            format!("published on {channel}: heard by {n} subscribing connection{}; {kept}\n", s(n))
        }
        None => format!("published on {channel}; {kept}\n"),
    }
}
