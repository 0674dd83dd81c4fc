//! Examines a sample of the refused tokens, off the hot path, and logs what is wrong with them.
//!
//! Not here: the examination (`auth::diagnose`). Invariants: offering a token costs the refusing
//! side one atomic operation if the sample is full; at most `per_second` tokens are examined; a
//! cause is logged once per `log_interval`, with the advice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::auth::Reason;
use crate::auth::diagnose::Report;
use crate::logging;
use crate::metrics;

/// Tokens that wait to be examined.
const MAX_WAITING: usize = 4;

/// How much is examined, and how often it is logged.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub per_second: u32,
    pub log_interval: Duration,
}

/// The sample of refused tokens.
pub struct Sampler {
    settings: Settings,
    started: Instant,
    /// The millisecond from which the next token is accepted.
    free_at: AtomicU64,
    waiting: Mutex<Vec<Box<str>>>,
    offered: Notify,
}

impl Sampler {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            started: Instant::now(),
            free_at: AtomicU64::new(0),
            waiting: Mutex::default(),
            offered: Notify::new(),
        }
    }

    /// Offers a refused token. It is examined if the sample has room.
    pub fn offer(&self, reason: Reason, token: &str) {
        // These reasons explain themselves, or come without a token to examine.
        if matches!(reason, Reason::Missing | Reason::Expired | Reason::Oversize | Reason::Revoked)
            || self.settings.per_second == 0
        {
            return;
        }

        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let free_at = self.free_at.load(Ordering::Relaxed);
        let next = now + u64::from(1000 / self.settings.per_second.min(1000));

        if now < free_at
            || self
                .free_at
                .compare_exchange(free_at, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }

        let mut waiting = self.waiting.lock();
        if waiting.len() < MAX_WAITING {
            waiting.push(token.into());
            self.offered.notify_one();
        }
    }

    /// Examines the offered tokens, for ever.
    pub async fn run(self: Arc<Self>, examine: impl Fn(&str) -> Report) {
        loop {
            self.offered.notified().await;
            let tokens = std::mem::take(&mut *self.waiting.lock());
            for token in tokens {
                let report = examine(&token);
                let Some(finding) = report.finding() else { continue };

                metrics::auth_diagnosis(finding.cause);

                let cause = finding.cause.slug();
                let side = finding.side.label();
                let reason = report.reason.unwrap_or_default();
                let advice = finding.advice.clone();
                let each = self.settings.log_interval;
                logging::repeated_each(each, ("doctor", cause), "", move |repeated| {
                    tracing::warn!(
                        reason,
                        cause,
                        side,
                        repeated,
                        "refused tokens, explained: {advice}"
                    );
                });
            }
        }
    }
}
