//! Reads the histories as they grow, so that what they forget later has been seen.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use tollgate_support::redis::connect;

use super::api::user_name;
use super::records::Entry;
use crate::record::Shared;

const LOOK: Duration = Duration::from_millis(40);

/// An entry of a stream: its id and its fields.
type Raw = (String, Vec<String>);

/// Reads what is new, again and again.
pub async fn record(address: String, users: usize, seen: Shared<BTreeSet<Entry>>) {
    let mut last: Vec<Option<String>> = vec![None; users];
    loop {
        for (user, last) in last.iter_mut().enumerate() {
            let from = last.as_ref().map_or("-".to_owned(), |id| format!("({id}"));
            let Some(entries) = read(&address, user, &from).await else { continue };
            if let Some((id, _)) = entries.last() {
                *last = Some(id.clone());
            }
            seen.lock().extend(entries.iter().filter_map(|raw| entry(user, raw)));
        }
        sleep(LOOK).await;
    }
}

/// Reads all that the histories hold now.
pub async fn read_all(address: &str, users: usize) -> BTreeSet<Entry> {
    let mut all = BTreeSet::new();
    for user in 0..users {
        let entries = read(address, user, "-").await.expect("Redis answers");
        all.extend(entries.iter().filter_map(|raw| entry(user, raw)));
    }
    all
}

async fn read(address: &str, user: usize, from: &str) -> Option<Vec<Raw>> {
    let mut connection = connect(address).await.ok()?;
    let mut range = redis::cmd("XRANGE");
    range.arg(format!("{}:stream", meta_key(user))).arg(from).arg("+");
    range.query_async(&mut connection).await.ok()
}

/// The key of the hash beside a user's history.
pub fn meta_key(user: usize) -> String {
    let key = format!("tollgate:user:{}", user_name(user));
    format!("{key}:{{{key}}}")
}

fn entry(user: usize, (id, fields): &Raw) -> Option<Entry> {
    let (epoch, offset) = id.split_once('-')?;
    let event: Value = serde_json::from_str(fields.get(1)?).ok()?;
    Some(Entry {
        user,
        epoch: epoch.parse().ok()?,
        offset: offset.parse().ok()?,
        purchase: usize::try_from(event["n"].as_u64()?).ok()?,
    })
}
