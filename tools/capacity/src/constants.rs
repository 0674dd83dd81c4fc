//! What one socket, delivery, publication or subscription costs. Such a figure is only here, each
//! with its origin. What follows from the figures is computed in `model` and counted in `simulate`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Measured on one shared machine; another machine has other figures.
    Measured,
    /// Computed from measured figures or from sizes that protocols have.
    Computed,
    /// A default of the gateway, of Redis or of clients.
    Default,
}

pub struct Row {
    pub name: &'static str,
    pub unit: &'static str,
    pub origin: Origin,
    pub what: &'static str,
}

macro_rules! constants {
    ($($name:ident = $value:expr, $unit:literal, $origin:ident, $what:literal;)*) => {
        #[derive(Debug, Clone)]
        pub struct Constants { $(pub $name: f64,)* }

        impl Default for Constants {
            fn default() -> Self { Constants { $($name: $value,)* } }
        }

        pub const ROWS: &[Row] = &[$(Row {
            name: stringify!($name), unit: $unit, origin: Origin::$origin, what: $what,
        },)*];

        impl Constants {
            fn field(&mut self, name: &str) -> Option<&mut f64> {
                match name { $(stringify!($name) => Some(&mut self.$name),)* _ => None }
            }

            pub fn values(&self) -> Vec<f64> { vec![$(self.$name,)*] }
        }
    };
}

constants! {
    process_mib = 10.0, "MiB", Measured, "a gateway without sockets";
    queues_mib = 320.0, "MiB", Default,
        "what may wait: limits.queue_bytes_total and broker.queue_bytes, as they are counted";
    socket_kib = 2.15, "KiB", Measured, "resident memory of a socket with a channel of its own";
    kernel_kib = 4.0, "KiB", Measured, "the kernel's memory for one end of a connection";
    subscription_bytes = 20.0, "B", Measured, "a further subscription, to a channel that others have";
    channel_bytes = 560.0, "B", Measured, "a further subscription, the first to its channel here";
    write_us = 9.9, "us", Measured, "one write to a socket";
    event_us = 0.12, "us", Measured, "each event in such a write";
    publication_us = 4.0, "us", Computed, "a publication from Redis to the shards: unicast less a write";
    ping_us = 20.0, "us", Computed, "a ping and its answer: two passes through the kernel";
    ping_interval_s = 25.0, "s", Default, "limits.ping_interval";
    handshake_us = 78.0, "us", Measured, "a handshake with an HS256 token, without TLS";
    subscription_us = 4.0, "us", Measured, "a further subscription, to a channel that others have";
    channel_us = 18.0, "us", Measured, "a further subscription, the first to its channel here";
    frame_bytes = 70.0, "B", Computed, "WebSocket, TCP, IP and Ethernet headers of one write";
    redis_loop_us = 19.0, "us", Measured, "Redis: a turn of its loop: read, answer, poll";
    redis_publish_us = 1.6, "us", Measured, "Redis: each PUBLISH in it";
    redis_write_us = 11.0, "us", Measured, "Redis: each connection written to in it";
    redis_message_us = 0.15, "us", Measured, "Redis: each message to each connection";
    redis_subscribe_us = 4.2, "us", Measured, "Redis: SUBSCRIBE, per channel, 512 to a command";
    redis_ssubscribe_us = 8.3, "us", Measured, "Redis: SSUBSCRIBE, per channel";
    redis_subscription_bytes = 220.0, "B", Measured, "Redis: memory of a subscribed channel";
    redis_subscriber_bytes = 127.0, "B", Measured, "Redis: each further connection on a channel";
    redis_message_bytes = 48.0, "B", Measured, "Redis: a message beyond its payload";
    redis_connections = 9_900.0, "", Default, "Redis: maxclients, less a hundred for publishers";
    wait_ms = 10.0, "ms", Default, "how long events may wait for each other at the limit";
    largest_batch = 32.0, "", Measured, "the largest batch that was measured: none is taken as larger";
    settle_s = 5.0, "s", Default, "drain.settle";
    window_s = 20.0, "s", Default, "drain.window";
    start_s = 10.0, "s", Default, "until a new replica is ready";
    backoff_s = 1.0, "s", Default, "clients wait up to this before the first attempt, at random";
}

impl Constants {
    /// The defaults, changed by the file first and then by each `NAME=VALUE` in turn.
    pub fn with(file: Option<&Path>, settings: &[String]) -> Result<Self> {
        let mut constants = Constants::default();

        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let values: Map<String, Value> = serde_json::from_str(&text)
                .with_context(|| format!("{} is not a JSON object", path.display()))?;

            for (name, value) in values {
                let value = value.as_f64().with_context(|| format!("{name} takes a number"))?;
                constants.set(&name, value)?;
            }
        }

        for setting in settings {
            let (name, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: NAME=VALUE"))?;
            let value = value.parse().with_context(|| format!("--set {setting}: not a number"))?;
            constants.set(name, value)?;
        }

        Ok(constants)
    }

    fn set(&mut self, name: &str, value: f64) -> Result<()> {
        if !(value.is_finite() && value >= 0.0) {
            bail!("{name} takes a number that is not negative");
        }

        let Some(field) = self.field(name) else {
            let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            bail!("there is no constant {name}; there are {}", names.join(", "));
        };

        *field = value;
        Ok(())
    }

    pub fn json(&self) -> Value {
        let rows = ROWS.iter().zip(self.values());
        rows.map(|(row, value)| (row.name.to_owned(), json!(value))).collect::<Map<_, _>>().into()
    }

    pub fn print(&self) {
        for (row, value) in ROWS.iter().zip(self.values()) {
            let origin = format!("{:?}", row.origin).to_lowercase();
            println!("{:26} {value:>9} {:4} {origin:9} {}", row.name, row.unit, row.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_wins_over_the_file_and_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("constants.json");
        std::fs::write(&file, r#"{"write_us": 5, "event_us": 0.5}"#).unwrap();

        let constants = Constants::with(Some(&file), &["write_us=7.5".to_owned()]).unwrap();
        assert_eq!((constants.write_us, constants.event_us), (7.5, 0.5));
        assert_eq!(constants.handshake_us, Constants::default().handshake_us);
    }

    #[test]
    fn what_is_not_a_constant_is_refused() {
        for wrong in ["nothing=1", "write_us", "write_us=x", "write_us=-1", "write_us=NaN"] {
            assert!(Constants::with(None, &[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
