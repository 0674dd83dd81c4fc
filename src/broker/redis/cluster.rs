//! Cluster: which master has which slots. The servers are asked in turn at intervals, and at once
//! when something indicates a change (MOVED, an unsolicited `sunsubscribe`, a lost connection).
//!
//! Not here: what a changed map causes (`upkeep`). Invariant: a server with an old map misleads
//! nobody while newer ones are seen.

use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Value};
use tokio::time::{Instant, sleep, timeout};

use super::core::{Core, Role};
use super::fault::ask as query;
use super::masters::{Map, SLOTS, UNSERVED};
use crate::redis_url::Server;

const ASK_EVERY: Duration = Duration::from_secs(5);
/// For how long only older configurations must have been seen before one of them is believed.
const MADE_ANEW: Duration = Duration::from_secs(15);
/// The pause between two questions, however many doubts there are.
const PAUSE: Duration = Duration::from_millis(100);

/// Keeps the map up to date, for ever.
pub(super) async fn run(core: Arc<Core>, seeds: Vec<Server>) {
    let mut turn = 0;
    let mut newest = 0;
    let mut accepted = Instant::now();

    loop {
        let current = core.directory.current();
        let mut servers = current.masters.clone();
        servers.extend(seeds.iter().filter(|s| !current.masters.contains(s)).cloned());

        // Another server is asked each time, because one that is cut off from the rest
        // has an old map.
        let server = &servers[turn % servers.len()];
        turn += 1;

        match ask(&core, server).await {
            // A server that is cut off from the others has an old map and tells an old epoch. If
            // only old epochs are seen for long, the cluster was made anew.
            Ok(Some((epoch, map))) if epoch >= newest || accepted.elapsed() > MADE_ANEW => {
                newest = epoch;
                accepted = Instant::now();
                core.directory.set(map);
                // The next question follows at once when in doubt, otherwise after a while.
                let _ = timeout(ASK_EVERY, core.directory.doubted()).await;
            }
            Ok(Some((epoch, _))) => {
                let what = "a server of the cluster has an old configuration";
                core.note(
                    Role::Subscriber,
                    server,
                    what,
                    &format!("epoch {epoch}, known {newest}"),
                );
                sleep(ASK_EVERY / 5).await;
            }
            Ok(None) => {
                let what = "the cluster is down, or this server is cut off from it";
                core.note(Role::Subscriber, server, what, "cluster_state");
            }
            Err(e) => {
                let what = "cannot ask the cluster for its slots";
                core.failed(Role::Subscriber, server, what, &e);
            }
        }

        sleep(PAUSE).await;
    }
}

/// Returns the cluster's epoch and the map, as one server has them, or `None` if the server says
/// that something is wrong.
async fn ask(core: &Core, server: &Server) -> RedisResult<Option<(u64, Map)>> {
    let connector = &core.connector;
    let mut connection = connector.open(server, &connector.login, None).await?;
    let info: String = query(&mut connection, redis::cmd("CLUSTER").arg("INFO")).await?;

    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if field("cluster_state:") != Some("ok") {
        return Ok(None);
    }

    let epoch = field("cluster_current_epoch:").and_then(|e| e.parse().ok()).unwrap_or(0);
    let slots: Value = query(&mut connection, redis::cmd("CLUSTER").arg("SLOTS")).await?;
    Ok(parse(slots, server).map(|map| (epoch, map)))
}

/// Parses an answer to `CLUSTER SLOTS`. Returns `None` if no master has any slots.
fn parse(answer: Value, asked: &Server) -> Option<Map> {
    let mut map = Map { masters: Vec::new(), slots: Some(vec![UNSERVED; SLOTS].into()) };
    let Value::Array(ranges) = answer else { return None };

    for range in ranges {
        let Value::Array(parts) = range else { continue };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else {
            continue;
        };

        let [host, Value::Int(port), ..] = &master[..] else { continue };
        let host: String = redis::from_redis_value_ref(host).unwrap_or_default();
        // A server that does not know its own address is the one that was asked.
        let host = if host.is_empty() || host == "?" { asked.host.clone() } else { host };
        let Ok(port) = u16::try_from(*port) else { continue };
        let server = Server { host, port };

        let at = map.masters.iter().position(|m| *m == server).unwrap_or_else(|| {
            map.masters.push(server);
            map.masters.len() - 1
        });

        let (Ok(first), Ok(last)) = (usize::try_from(*first), usize::try_from(*last)) else {
            continue;
        };
        if let Some(slots) = map.slots.as_mut().and_then(|s| s.get_mut(first..=last)) {
            slots.fill(at as u16);
        }
    }

    (!map.masters.is_empty()).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port)])
    }

    #[test]
    fn slots_are_read() {
        let range = |a, b, master| Value::Array(vec![Value::Int(a), Value::Int(b), master]);
        let answer = Value::Array(vec![
            range(0, 99, node("a", 1)),
            range(100, 200, node("", 2)),
            range(300, 300, node("a", 1)),
            range(400, 99_999, node("c", 3)),
            Value::Nil,
        ]);

        let asked = Server { host: "b".into(), port: 9 };
        let map = parse(answer, &asked).unwrap();
        let names: Vec<_> = map.masters.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a:1", "b:2", "c:3"]);

        let slots = map.slots.unwrap();
        assert_eq!([slots[0], slots[150], slots[300]], [0, 1, 0]);
        assert_eq!([slots[250], slots[400]], [UNSERVED, UNSERVED]);
        assert_eq!(parse(Value::Array(vec![]), &asked), None);
    }
}
