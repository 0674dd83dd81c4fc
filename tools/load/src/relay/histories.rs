//! Whether each row stands once in its channel's history, in the order of the ids.

use std::collections::{HashMap, HashSet};

use anyhow::Result;

use super::postgres::Postgres;
use super::rig::Rig;
use crate::report::Report;
use crate::sink::redis_connection;
use crate::suite::Side;

/// What the histories keep (`suite::processes`).
const KEPT: usize = 1000;

/// An entry of a stream: its id, and its fields and values in turn.
type Entry = (String, Vec<String>);

pub fn last_id(postgres: &Postgres) -> Result<i64> {
    let sql = "SELECT coalesce(max(id), 0) FROM tollgate_outbox";
    Ok(postgres.connect()?.query_one(sql, &[])?.get(0))
}

/// Compares the rows behind an id with the histories of their channels.
pub fn check(rig: &Rig, behind: i64, report: &mut Report) -> Result<()> {
    let sql = "SELECT channel, outbox || ':' || id || ':' || uuid FROM tollgate_outbox, tollgate_relay \
               WHERE id > $1 ORDER BY id";
    let mut rows: HashMap<String, Vec<String>> = HashMap::new();
    for row in rig.postgres.connect()?.query(sql, &[&behind])? {
        rows.entry(row.get(0)).or_default().push(row.get(1));
    }

    let url = format!("redis://127.0.0.1:{}", rig.processes.redis.port);
    let mut redis = redis_connection(&url)?;
    let (mut found, mut twice, mut missing, mut out_of_order) = (0, 0, 0, 0);
    for (channel, rows) in &rows {
        let key = format!("{}{channel}", Side::Tollgate.prefix());
        let entries: Vec<Entry> = redis::cmd("XRANGE")
            .arg(format!("{key}:{{{key}}}:stream"))
            .arg("-")
            .arg("+")
            .query(&mut redis)?;
        let identities: Vec<&String> =
            entries.iter().filter_map(|(_, fields)| fields.get(3)).collect();
        let once: HashSet<&String> = identities.iter().copied().collect();
        twice += identities.len() - once.len();

        let kept = rows.iter().filter(|identity| once.contains(identity)).count();
        found += kept;
        // What a full history has lost was there before.
        missing += if entries.len() < KEPT { rows.len() - kept } else { 0 };
        let id_of = |identity: &&String| identity.split(':').nth(1)?.parse::<i64>().ok();
        let ids: Vec<i64> = identities.iter().filter_map(id_of).collect();
        out_of_order += ids.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    }

    report.figure("takeover_in_histories", "takeover: rows in the histories", found as f64, "");
    for (key, text, count) in [
        ("twice", "twice in the histories", twice),
        ("lost", "not in the histories", missing),
        ("order", "out of order in the histories", out_of_order),
    ] {
        report.figure(&format!("takeover_{key}"), &format!("takeover: {text}"), count as f64, "");
        if count > 0 {
            report.problem(format!("takeover: {count} rows {text}"));
        }
    }
    Ok(())
}
