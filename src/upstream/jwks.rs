//! Key sets at URLs, kept fresh in the background. A set is fetched at the start, again after
//! `refresh`, and if a token names a `kid` that is in no set: one fetch at a time, and not more
//! often than `min_interval`.
//!
//! Not here: reading a set (`auth::jwk`). Invariant: a failed fetch changes nothing but the age of
//! the keys; a good one replaces the whole set, so that a withdrawn key is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use reqwest::Client;
use tokio::sync::Semaphore;

use super::UpstreamError;
use crate::auth::jwk::{self, LeftOut, Set};
use crate::auth::keys::Fetched;
use crate::auth::{KeySet, Remote};
use crate::logging;
use crate::metrics;

/// Unknown `kid`s that are remembered, so that they do not cause another fetch.
const MAX_UNKNOWN: usize = 1024;

/// The longest `kid` that is looked for.
const MAX_KID: usize = 256;

/// The wait after a first failure. It doubles with each further one, up to `refresh`.
const RETRY: Duration = Duration::from_secs(1);

/// The settings of all sets.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub refresh: Duration,
    pub min_interval: Duration,
    pub timeout: Duration,
    pub max_bytes: usize,
}

/// How the fetching of one set goes.
#[derive(Default)]
struct Progress {
    next: Option<Instant>,
    failures: u32,
    /// When the last attempt began, successful or not.
    attempt: Option<Instant>,
    /// How many fetches have succeeded.
    successes: u64,
    error: Option<String>,
    /// What the last good fetch left out. It is logged again only if it changes.
    left_out: LeftOut,
    /// When each `kid` was last not found.
    unknown: HashMap<Box<str>, Instant>,
}

/// One key set.
struct Entry {
    remote: Arc<Remote>,
    progress: Mutex<Progress>,
    /// Permits one fetch at a time.
    turn: Semaphore,
}

impl Entry {
    fn new(remote: Arc<Remote>) -> Arc<Self> {
        Arc::new(Self { remote, progress: Mutex::default(), turn: Semaphore::new(1) })
    }
}

/// The state of a set, for the readiness body.
#[derive(Debug, Clone)]
pub struct Health {
    pub url: String,
    pub keys: usize,
    /// Unix seconds.
    pub fetched_at: Option<u64>,
    pub usable: bool,
    pub error: Option<String>,
}

/// The outcome of looking for an unknown `kid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KidLookup {
    /// The sets have changed since the token was checked, so another check makes sense.
    Changed,
    /// The `kid` is in no set.
    Unknown,
    /// A set cannot be fetched, so nobody knows.
    Failed,
}

/// The key sets of the configuration.
pub struct Jwks {
    client: Client,
    settings: Settings,
    /// True once all sets of the start have been fetched. A set that is added later does
    /// not undo that.
    started: AtomicBool,
    entries: ArcSwap<Vec<Arc<Entry>>>,
    now: fn() -> u64,
}

impl Jwks {
    /// `now` is the wall clock in Unix seconds.
    #[must_use]
    pub fn new(client: Client, settings: Settings, now: fn() -> u64) -> Arc<Self> {
        let started = AtomicBool::new(false);
        Arc::new(Self { client, settings, started, entries: ArcSwap::default(), now })
    }

    /// Takes over the sets of a configuration. A set that was there before goes on as it was.
    pub fn adopt(&self, keys: &mut KeySet) {
        let old = self.entries.load();
        let entries = keys.remotes_mut().iter_mut().map(|remote| {
            let before = old.iter().find(|e| e.remote.is_same_set(remote));
            match before {
                Some(entry) if entry.remote.max_age == remote.max_age => {
                    *remote = Arc::clone(&entry.remote);
                    Arc::clone(entry)
                }
                Some(entry) => {
                    remote.take_over(&entry.remote);
                    Entry::new(Arc::clone(remote))
                }
                None => Entry::new(Arc::clone(remote)),
            }
        });
        self.entries.store(Arc::new(entries.collect()));
    }

    /// True if all sets were fetched at least once. Until then no token of theirs can be accepted.
    #[must_use]
    pub fn is_started(&self) -> bool {
        if self.started.load(Ordering::Acquire) {
            return true;
        }
        let all = self.entries.load().iter().all(|e| e.remote.state().fetched_at.is_some());
        self.started.fetch_or(all, Ordering::AcqRel);
        all
    }

    /// Fetches every set once, and returns what went wrong.
    pub async fn fetch_all(&self) -> Vec<String> {
        let entries = self.entries.load_full();
        let mut problems = Vec::new();
        for entry in entries.iter() {
            self.fetch(entry, None).await;
            let url = entry.remote.shown_url();
            let progress = entry.progress.lock();
            if let Some(error) = &progress.error {
                problems.push(format!("the key set at {url} cannot be fetched: {error}"));
            }
            if !progress.left_out.is_empty() {
                problems.push(format!("keys at {url}: {}", progress.left_out));
            }
        }
        problems
    }

    #[must_use]
    pub fn health(&self) -> Vec<Health> {
        let now = (self.now)();
        let health = |e: &Arc<Entry>| Health {
            url: e.remote.shown_url(),
            keys: e.remote.state().keys.len(),
            fetched_at: e.remote.state().fetched_at,
            usable: e.remote.is_usable(now),
            error: e.progress.lock().error.clone(),
        };
        self.entries.load().iter().map(health).collect()
    }

    /// Keeps the sets fresh, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let entries = self.entries.load_full();
            let due =
                |e: &&Arc<Entry>| e.progress.lock().next.is_none_or(|at| Instant::now() >= at);
            let due = entries.iter().filter(due).map(|entry| self.fetch(entry, None));
            futures_util::future::join_all(due).await;
        }
    }

    /// Looks for a `kid` that a token names and no set has. It fetches a set if that may help, or
    /// waits for a fetch that is under way.
    pub async fn find_kid(&self, kid: &str) -> KidLookup {
        if kid.is_empty() || kid.len() > MAX_KID {
            return KidLookup::Unknown;
        }

        let entries = self.entries.load_full();
        let mut look = KidLookup::Unknown;
        for entry in entries.iter() {
            let seen = entry.progress.lock().successes;
            let under_way = entry.turn.available_permits() == 0;
            if under_way || self.is_worth_asking(entry, kid) {
                self.fetch(entry, Some(kid)).await;
            }

            let progress = entry.progress.lock();
            let has = entry.remote.state().keys.iter().any(|k| k.kid() == Some(kid));
            if has || progress.successes != seen {
                return KidLookup::Changed;
            }
            if progress.error.is_some() {
                look = KidLookup::Failed;
            }
        }

        look
    }

    /// True if fetching the set may find the `kid`.
    fn is_worth_asking(&self, entry: &Entry, kid: &str) -> bool {
        let progress = entry.progress.lock();
        let remembered =
            progress.unknown.get(kid).is_some_and(|at| at.elapsed() < self.settings.refresh);
        !remembered && progress.attempt.is_none_or(|at| at.elapsed() >= self.settings.min_interval)
    }

    /// Fetches one set. With a `kid`, a task that waited for another's fetch does not fetch again.
    async fn fetch(&self, entry: &Entry, kid: Option<&str>) {
        let Ok(_turn) = entry.turn.acquire().await else { return };
        if kid.is_some_and(|kid| !self.is_worth_asking(entry, kid)) {
            return;
        }

        entry.progress.lock().attempt = Some(Instant::now());
        let fetched = self.get(&entry.remote).await;
        metrics::jwks_fetched(fetched.is_ok());

        let mut progress = entry.progress.lock();
        match fetched {
            Ok(Set { keys, left_out }) => {
                let fetched_at = Some((self.now)());
                let is_news = left_out != progress.left_out || progress.successes == 0;
                if is_news && (keys.is_empty() || !left_out.is_empty()) {
                    let url = entry.remote.shown_url();
                    let usable = keys.len();
                    tracing::warn!(
                        url,
                        usable,
                        "some keys of the key set cannot be used: {left_out}"
                    );
                }

                progress.left_out = left_out;
                entry.remote.replace(Fetched { keys, fetched_at });
                progress.successes += 1;
                progress.failures = 0;

                if progress.error.take().is_some() {
                    let url = entry.remote.shown_url().to_owned();
                    logging::repeated(("key set", "back"), &url.clone(), move |repeated| {
                        tracing::info!(url, repeated, "the key set can be fetched again");
                    });
                }

                progress.next = Some(Instant::now() + self.settings.refresh);
            }
            Err(e) => {
                progress.failures += 1;
                let wait = RETRY * 2u32.saturating_pow(progress.failures.min(12) - 1);
                progress.next = Some(Instant::now() + wait.min(self.settings.refresh));

                let said = e.to_string();
                if progress.error.as_ref() != Some(&said) {
                    let url = entry.remote.shown_url().to_owned();
                    let error = said.clone();
                    logging::repeated(("key set", "failed"), &url.clone(), move |repeated| {
                        let what = "cannot fetch the key set: the previous keys stay in use";
                        tracing::warn!(url, error, repeated, "{what}");
                    });
                }

                progress.error = Some(said);
            }
        }

        if let Some(kid) = kid
            && progress.error.is_none()
            && !entry.remote.state().keys.iter().any(|k| k.kid() == Some(kid))
        {
            if progress.unknown.len() >= MAX_UNKNOWN {
                progress.unknown.clear();
            }
            progress.unknown.insert(kid.into(), Instant::now());
        }
    }

    async fn get(&self, remote: &Remote) -> Result<Set, UpstreamError> {
        let request = self.client.get(&remote.url).header("accept", "application/json").send();
        let work = async { super::body(request.await?, self.settings.max_bytes).await };
        let body = tokio::time::timeout(self.settings.timeout, work).await;
        let body = body.map_err(|_| UpstreamError::TimedOut)??;
        jwk::read(&body, &remote.algs, false).map_err(UpstreamError::Unusable)
    }
}
