//! Metrics about keys: which ones count (`key_info`), and whether the issuers sign with the same
//! ones (`issuer_key_match`). Each issuer keeps its fingerprint in the store under `issuer:<name>`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::KeySet;
use crate::broker::Store;
use crate::clock::unix_now;
use crate::metrics;

/// Each key's id, algorithm and fingerprint.
pub type Fingerprints = BTreeSet<(String, &'static str, String)>;

/// Compares keys and issuers at each interval, for ever. `current` returns what [`fingerprints`]
/// says of the keys in force.
pub async fn watch(
    store: Arc<dyn Store>,
    current: impl Fn() -> Fingerprints,
    issuers: Vec<String>,
    interval: Duration,
) {
    let mut shown = Fingerprints::new();
    let mut differs = BTreeSet::new();
    loop {
        show(&current(), &mut shown);
        for issuer in &issuers {
            compare(&*store, &current, issuer, &mut differs).await;
        }
        tokio::time::sleep(interval).await;
    }
}

/// The fingerprints of the keys of a set that verify now, remote ones included.
#[must_use]
pub fn fingerprints(keys: &KeySet) -> Fingerprints {
    let remotes: Vec<_> = keys.remotes().iter().map(|r| r.state()).collect();
    let now = unix_now();

    keys.fixed()
        .iter()
        .chain(remotes.iter().flat_map(|r| &r.keys))
        .filter(|key| !key.is_retired(now))
        .map(|key| {
            let alg = key.algs().first().map_or("none", |a| a.name());
            let kid: String = key.kid().unwrap_or_default().chars().take(64).collect();
            (kid, alg, key.fingerprint().to_string())
        })
        .collect()
}

/// Shows the keys that verify `now` as metrics, and those that no longer verify as such.
fn show(now: &Fingerprints, shown: &mut Fingerprints) {
    for (kid, alg, fingerprint) in shown.difference(now) {
        metrics::key_info(kid, alg, fingerprint, false);
    }
    for (kid, alg, fingerprint) in now {
        metrics::key_info(kid, alg, fingerprint, true);
    }
    shown.clone_from(now);
}

/// Compares an issuer's key with ours.
async fn compare(
    store: &dyn Store,
    current: &impl Fn() -> Fingerprints,
    issuer: &str,
    differs: &mut BTreeSet<String>,
) {
    // Without an answer of the store, or without the issuer's heartbeat, there is
    // nothing to compare.
    let Ok(Some(theirs)) = store.read(&format!("issuer:{issuer}")).await else {
        return;
    };

    let theirs = theirs.trim();
    // The keys are looked at now: one may have been fetched while the store was asked.
    let matches = current().iter().any(|(_, _, ours)| ours == theirs);
    metrics::issuer_key_match(issuer, matches);

    if matches {
        differs.remove(issuer);
    } else if differs.insert(issuer.to_owned()) {
        tracing::error!(
            issuer,
            "the issuer signs with a key that this gateway does not have: its tokens will be refused \
             as bad_signature; compare with tollgate token fingerprint"
        );
    }
}
