//! Reading the configuration again: on SIGHUP, and when the content of a watched file changes.
//!
//! Invariants: what is refused changes nothing; a content that was not looked at yet is looked at, so
//! no change is lost whenever it comes; a refused configuration is tried again by itself, because what
//! it lacks (a secret that is mounted later) may not be a watched file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Reload, apply_limits, callback_of, short_hash, with_revocations};
use crate::config::{Config, Loaded, Policy, Problem};
use crate::http::App;
use crate::lifecycle::Hangup;
use crate::metrics;

/// How often watched files are looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

type Content = Option<Vec<u8>>;

/// The watched files, each with what it held when it was last looked at; `None`: not looked at yet.
struct Watched(Vec<(PathBuf, Content)>);

impl Watched {
    /// The configuration, and the secrets and keys that it points to.
    fn of(file: Option<&PathBuf>, policy: &Policy) -> Self {
        let files = file.into_iter().chain(&policy.files);
        Self(files.map(|f| (f.clone(), None)).collect())
    }

    /// Looks; true when a content is new. Compared by content, because a Kubernetes mount swaps a
    /// symlink and keeps the path. A file that is missing for a moment is not a new content.
    fn look(&mut self) -> bool {
        let mut changed = false;
        for (path, kept) in &mut self.0 {
            let now = std::fs::read(path).ok();
            if now.is_some() && now != *kept {
                *kept = now;
                changed = true;
            }
        }
        changed
    }

    /// Keeps what was looked at before of the files that stay.
    fn keep(mut self, before: &Self) -> Self {
        for (path, content) in &mut self.0 {
            let same = before.0.iter().find(|(p, _)| p == path);
            *content = same.and_then(|(_, c)| c.clone());
        }
        self
    }
}

/// Watches for ever. `sha` is the hash of the configuration that was started with.
pub(super) async fn watch(
    app: App,
    reload: Reload,
    (mut hangup, file): (Hangup, Option<PathBuf>),
    mut sha: String,
) {
    let mut watched = Watched::of(file.as_ref(), &app.context.policy.load());
    // What changed between the start's own reading and this look is taken in; that nothing did is no
    // news.
    watched.look();
    match reload() {
        Ok(Loaded { config, policy, printed, .. }) if short_hash(&printed) == sha => {
            put_in_force(&app, policy, &config);
        }
        Ok(loaded) => watched = taken(&app, loaded, &mut sha).keep(&watched),
        Err(problems) => refused(&app, &problems, true),
    }
    loop {
        let asked = tokio::select! {
            () = hangup.signalled() => true,
            () = sleep(WATCH_EVERY) => false,
        };
        let changed = watched.look();
        if !asked && !changed && app.lifecycle.reload_problem().is_none() {
            continue;
        }
        match reload() {
            Ok(loaded) => watched = taken(&app, loaded, &mut sha).keep(&watched),
            Err(problems) => refused(&app, &problems, asked || changed),
        }
    }
}

/// Keeps the old configuration. Tried again by itself and refused for the same, it is no news.
fn refused(app: &App, problems: &[Problem], news: bool) {
    let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let all = all.join("; ");
    if news || app.lifecycle.reload_problem().as_ref() != Some(&all) {
        metrics::config_reload(false);
        tracing::error!(problems = all, "configuration not reloaded; the old one stays");
    }
    app.lifecycle.reloaded(Some(all));
}

/// Takes a configuration in, and says which files it hangs on.
fn taken(app: &App, loaded: Loaded, sha: &mut String) -> Watched {
    let Loaded { config, policy, printed, file } = loaded;
    let new = short_hash(&printed);
    if new != *sha {
        metrics::config_replaced(sha, &new);
        *sha = new;
    }
    for warning in &policy.warnings {
        tracing::warn!("configuration: {warning}");
    }
    let watched = Watched::of(file.as_ref(), &policy);
    put_in_force(app, policy, &config);
    app.lifecycle.reloaded(None);
    metrics::config_reload(true);
    tracing::info!(
        "configuration reloaded: tokens, keys, rules, callback, limits, origins, API keys"
    );
    watched
}

fn put_in_force(app: &App, policy: Policy, config: &Config) {
    let mut policy = with_revocations(policy, &app.context.gateway);
    app.context.jwks.adopt(policy.verifier.keys_mut());
    match callback_of(&config.callback, &policy) {
        Ok(callback) => app.context.callback.store(callback),
        Err(e) => tracing::error!(error = %e, "the callback stays as it was"),
    }
    app.context.policy.store(Arc::new(policy));
    apply_limits(app, config);
}
