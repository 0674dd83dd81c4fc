//! Reading the configuration again, on SIGHUP and if the content of a watched file changes.
//!
//! Invariants: a refused configuration changes nothing, and an unchanged one does nothing; a file
//! is compared with its content at the last reading, so no change is lost whenever it comes; a
//! refused configuration is tried again by itself, because what it lacks (a secret that is mounted
//! later) may not be a watched file.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::parts::{apply_limits, callback_of, short_hash, with_revocations};
use crate::config::{Config, Loaded, Policy, Problem, Values, is_reloaded};
use crate::http::App;
use crate::lifecycle::Hangup;
use crate::metrics;
use crate::session::Change;

/// How often watched files are read.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// How many connections are judged by new rules together, and the pause after them. 100,000
/// connections take some seconds.
const AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);

/// How long the next connections wait until the application has room.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// Reads the configuration again.
pub(crate) type Reload = Box<dyn Fn() -> Result<Loaded, Vec<Problem>> + Send>;

/// The configuration in force.
pub(super) struct InForce {
    pub(super) values: Values,
    /// The hash of the configuration as it is printed.
    pub(super) sha: String,
}

/// Reloads the configuration when that is asked for or files have changed, for ever.
pub(super) async fn watch(app: App, reload: Reload, mut hangup: Hangup, mut in_force: InForce) {
    let mut files = app.context.policy.load().files.clone();
    loop {
        let asked = tokio::select! {
            () = hangup.signalled() => true,
            () = sleep(WATCH_EVERY) => false,
        };

        let changed = files.check();
        if !asked && !changed && app.lifecycle.reload_problem().is_none() {
            continue;
        }

        match reload() {
            Ok(loaded) => {
                files = loaded.policy.files.clone();
                if taken(&app, loaded, &mut in_force) {
                    judge_again(&app).await;
                }
            }
            Err(problems) => refused(&app, &problems, asked || changed),
        }
    }
}

/// Keeps the old configuration. If the attempt was not asked for and is refused like the one
/// before, it is not logged again.
fn refused(app: &App, problems: &[Problem], news: bool) {
    let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let all = all.join("; ");
    if news || app.lifecycle.reload_problem().as_ref() != Some(&all) {
        metrics::config_reload("failed");
        tracing::error!(
            problems = all,
            "configuration not reloaded: the previous one stays in force"
        );
    }
    app.lifecycle.record_reload(Some(all));
}

/// Puts a configuration in force if it differs. Returns true if the rules have changed.
fn taken(app: &App, loaded: Loaded, in_force: &mut InForce) -> bool {
    app.lifecycle.record_reload(None);
    let Loaded { config, policy, printed, values } = loaded;
    let settings = values.differing(&in_force.values);
    let files = policy.files.differing(&app.context.policy.load().files);
    if settings.is_empty() && files.is_empty() {
        metrics::config_reload("unchanged");
        tracing::info!("configuration reread: nothing has changed");
        return false;
    }

    let sha = short_hash(&printed);
    if sha != in_force.sha {
        metrics::config_replaced(&in_force.sha, &sha);
    }

    *in_force = InForce { values, sha };

    for warning in &policy.warnings {
        tracing::warn!("configuration: {warning}");
    }
    let rules_changed = put_in_force(app, policy, &config);

    metrics::config_reload("ok");
    let (now, later): (Vec<_>, Vec<_>) = settings.into_iter().partition(|path| is_reloaded(path));
    let changed = [now, files].concat().join(", ");
    tracing::info!(changed, "configuration reloaded");
    if !later.is_empty() {
        let changed = later.join(", ");
        tracing::warn!(changed, "changes to these settings take effect only after a restart");
    }
    rules_changed
}

/// Replaces the policy. What the new configuration does not touch stays: key sets, the callback's
/// answers and connections. Returns true if the rules differ, or if connections without a token are
/// no longer allowed.
fn put_in_force(app: &App, policy: Policy, config: &Config) -> bool {
    let mut policy = with_revocations(policy, &app.context.gateway);
    app.context.jwks.adopt(policy.verifier.keys_mut());
    let before = app.context.callback.load_full();
    match callback_of(&config.callback, &policy, before.as_ref()) {
        Ok(callback) => app.context.callback.store(callback),
        Err(e) => {
            tracing::error!(error = %e, "callback not reconfigured: the previous callback stays \
                                         in use")
        }
    }
    let old = app.context.policy.swap(Arc::new(policy));
    apply_limits(app, config);

    let now = app.context.policy.load();
    if old.rules == now.rules && (now.anonymous || !old.anonymous) {
        return false;
    }
    let number = app.context.change.load().number.wrapping_add(1);
    app.context.change.store(Arc::new(Change { number, before: old.rules.clone() }));
    true
}

/// Lets every session judge its channels by the new rules: a few at a time, so that nothing else
/// waits for them, and only while the application has room for questions.
async fn judge_again(app: &App) {
    let hub = app.context.gateway.hub();
    let ids = hub.ids();
    for some in ids.chunks(AT_ONCE) {
        let began = Instant::now();
        while began.elapsed() < ROOM_WITHIN
            && app.context.callback.load().as_ref().is_some_and(|callback| !callback.has_room())
        {
            sleep(PAUSE).await;
        }

        some.iter().filter_map(|id| hub.get(*id)).for_each(|connection| connection.recheck());
        sleep(PAUSE).await;
    }
    tracing::info!(
        connections = ids.len(),
        "open connections checked against the new channel rules"
    );
}
