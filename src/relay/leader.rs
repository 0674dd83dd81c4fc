//! What the leading relay does: read rows that wait, publish them, mark them, again and again.
//!
//! A row is published with its identity and marked afterwards. Whatever dies in between, the row is read
//! again, and the channel in Redis says that it has it. The identities are forgotten (settled) only when
//! the marks are committed, so there is no time after which that fails.
//!
//! Not here: who leads (`leadership`), the guard (`broker/redis/rows`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::batch::{Batch, ChannelRows, Outcome};
use super::connection::{Connection, DatabaseError};
use super::outbox::Bounds;
use super::parts::Parts;
use super::set_aside::SetAside;
use crate::broker::{BrokerError, Mandate, RelayError};
use crate::channel::ChannelName;
use crate::lifecycle::Phase;
use crate::logging;
use crate::metrics;

/// How often rows are counted.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// How often old rows are deleted.
const PURGE_EVERY: Duration = Duration::from_secs(10);

/// Waits after everything has failed: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Why the leader stopped.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The process ends.
    Asked,
    /// Another relay has taken a later term.
    Deposed,
    Database(DatabaseError),
}

impl From<DatabaseError> for Stopped {
    fn from(error: DatabaseError) -> Self {
        Self::Database(error)
    }
}

/// Identities of rows by channel.
type Identities = HashMap<ChannelName, Vec<String>>;

/// The relay that leads.
pub(super) struct Leader<'r> {
    parts: &'r Parts,
    session: &'r Connection,
    work: Connection,
    mandate: Mandate,
    aside: SetAside,
    pause: Duration,
}

/// What became of a batch in Redis.
#[derive(Default)]
struct Published {
    outcome: Outcome,
    /// Guarded rows of the same channels that were not in the batch.
    others: Identities,
    /// The highest term that a channel has seen, if that is above ours.
    above: Option<u64>,
    /// How many channels got their rows, how many did not because Redis could not be reached, and how many
    /// because it refused them.
    done: usize,
    unreached: usize,
    refused: usize,
}

impl<'r> Leader<'r> {
    /// Begins to lead.
    pub(super) async fn begin(
        parts: &'r Parts,
        session: &'r Connection,
        mandate: Mandate,
    ) -> Result<Self, DatabaseError> {
        let work = parts.work.connect().await?;
        let aside = SetAside::default();
        Ok(Self { parts, session, work, mandate, aside, pause: FIRST_PAUSE })
    }

    /// Works until it has to stop.
    pub(super) async fn run(mut self) -> Stopped {
        match self.work().await {
            Ok(never) => match never {},
            Err(stopped) => stopped,
        }
    }

    async fn work(&mut self) -> Result<std::convert::Infallible, Stopped> {
        self.settle_last().await?;
        let mut counted: Option<Instant> = None;
        let mut purged: Option<Instant> = None;
        let is_due = |last: Option<Instant>, every| last.is_none_or(|at| at.elapsed() >= every);

        loop {
            if self.parts.lifecycle.phase() > Phase::Running {
                return Err(Stopped::Asked);
            }

            if is_due(counted, COUNT_EVERY) {
                let counts = self.parts.outbox.count(&self.work).await?;
                self.parts.health.counted(counts);
                counted = Some(Instant::now());
            }
            let retention = self.parts.settings.retention;
            if is_due(purged, PURGE_EVERY) {
                let more = self.parts.outbox.purge(&self.work, retention).await?;
                purged = (!more).then(Instant::now);
            }

            let settings = &self.parts.settings;
            let bounds = Bounds {
                rows: settings.batch_rows,
                bytes: settings.batch_bytes,
                event_bytes: settings.event_bytes,
            };
            let without = self.aside.left_out();
            let pending = self.parts.outbox.read(&self.work, bounds, &without).await?;
            if pending.is_empty() {
                self.rest().await;
                continue;
            }

            let batch = Batch::of(
                pending,
                &self.mandate.outbox,
                settings.event_bytes,
                &*self.parts.retained,
            );
            self.relay_batch(batch).await?;
        }
    }

    /// Waits for a row, or for the next look.
    async fn rest(&self) {
        let next = self.parts.settings.poll_interval.min(self.aside.next());
        let woken = timeout(next, self.session.woken.notified());
        tokio::select! {
            _ = woken => {}
            () = self.parts.lifecycle.wait_for(Phase::Settling) => {}
        }
    }

    /// Publishes, marks and settles a batch.
    async fn relay_batch(&mut self, mut batch: Batch) -> Result<(), Stopped> {
        let mut published = self.publish(&batch.channels).await;
        let outcome = &mut published.outcome;
        outcome.dead.append(&mut batch.dead);

        let (outbox, term) = (&self.parts.outbox, self.mandate.term);
        let waited = match &*outcome.marks {
            [] => vec![],
            marks => outbox.mark(&self.work, term, marks).await?.ok_or(Stopped::Deposed)?,
        };
        if !outcome.dead.is_empty() {
            if !outbox.bury(&self.work, term, &outcome.dead).await? {
                return Err(Stopped::Deposed);
            }
            report_dead(outcome);
        }
        metrics::relay::published(&waited, outcome.repeated, outcome.unheard);

        self.settle(&batch.channels, &published).await?;
        self.recover(&published).await
    }

    /// Publishes the rows of all channels at once; those of one channel keep their order.
    async fn publish(&mut self, channels: &[ChannelRows]) -> Published {
        let (broker, mandate) = (&self.parts.broker, &self.mandate);
        let calls = channels.iter().map(|of_channel| async move {
            broker.relay(&of_channel.channel, mandate, &of_channel.rows).await
        });

        let mut published = Published::default();
        for (of_channel, answer) in channels.iter().zip(join_all(calls).await) {
            let name = of_channel.channel.as_str();
            match answer {
                Ok(mut relayed) => {
                    let others = std::mem::take(&mut relayed.others_in_doubt);
                    if !others.is_empty() {
                        published.others.insert(of_channel.channel.clone(), others);
                    }
                    published.outcome.add(&of_channel.ids, relayed);
                    published.done += 1;
                    self.aside.forgive(name);
                }
                Err(RelayError::Stale(term)) => published.above = published.above.max(Some(term)),
                Err(RelayError::Broker(error)) => {
                    let one_channel = matches!(error, BrokerError::Refused(_));
                    self.failed(name, &error);
                    if one_channel {
                        published.refused += 1;
                        self.aside.put(name);
                    } else {
                        // In a cluster the others may be within reach.
                        published.unreached += 1;
                        self.aside.put_for(name, self.pause * 2);
                    }
                }
            }
        }
        published
    }

    fn failed(&self, channel: &str, error: &BrokerError) {
        metrics::relay::failed("redis");
        self.parts.health.failed(format!("redis: {channel}: {error}"));
        let (channel, error) = (channel.to_owned(), error.clone());
        logging::repeated(("relay", "redis"), &error.to_string(), move |repeated| {
            tracing::warn!(channel, %error, repeated, "rows of the outbox could not be published; they wait");
        });
    }

    /// Ends the guard of rows whose marks are committed. What fails here is made up for when the channel
    /// has its next row.
    async fn settle(
        &self,
        channels: &[ChannelRows],
        published: &Published,
    ) -> Result<(), DatabaseError> {
        let marked: HashSet<i64> = published.outcome.marks.iter().map(|mark| mark.id).collect();
        let mut settled = self.no_longer_pending(&published.others).await?;
        for of_channel in channels {
            let rows = of_channel.ids.iter().zip(&of_channel.rows);
            let identities =
                rows.filter(|(id, _)| marked.contains(id)).map(|(_, row)| row.identity.clone());
            settled.entry(of_channel.channel.clone()).or_default().extend(identities);
        }
        self.settle_all(&settled).await;

        if self.parts.settings.retention.is_zero() && !marked.is_empty() {
            let ids: Vec<_> = marked.into_iter().collect();
            self.parts.outbox.delete(&self.work, &ids).await?;
        }
        Ok(())
    }

    async fn settle_all(&self, settled: &Identities) {
        let calls = settled.iter().filter(|(_, identities)| !identities.is_empty()).map(
            |(channel, identities)| self.parts.broker.settle(channel, &self.mandate, identities),
        );
        for answer in join_all(calls).await {
            if let Err(error) = answer {
                tracing::debug!(%error, "guards of published rows stay for now");
            }
        }
    }

    /// Of guarded rows that an earlier relay has published, those that do not wait any more.
    async fn no_longer_pending(&self, others: &Identities) -> Result<Identities, DatabaseError> {
        if others.is_empty() {
            return Ok(Identities::new());
        }
        let id_of = |identity: &String| identity.split(':').nth(1)?.parse::<i64>().ok();
        let ids: Vec<_> = others.values().flatten().filter_map(id_of).collect();
        let pending =
            self.parts.outbox.still_pending(&self.work, &ids, &self.mandate.outbox).await?;

        let gone = |identities: &Vec<String>| {
            identities.iter().filter(|identity| !pending.contains(identity)).cloned().collect()
        };
        Ok(others.iter().map(|(channel, rows)| (channel.clone(), gone(rows))).collect())
    }

    /// Settles what the relay before may have marked and not settled.
    async fn settle_last(&self) -> Result<(), DatabaseError> {
        let count = self.parts.settings.batch_rows;
        let mut settled = Identities::new();
        for (channel, identity) in
            self.parts.outbox.published_last(&self.work, count, &self.mandate.outbox).await?
        {
            if let Ok(channel) = channel.parse() {
                settled.entry(channel).or_default().push(identity);
            }
        }
        self.settle_all(&settled).await;
        Ok(())
    }

    /// After a failure: waits, if nothing else could be done. Where Redis was out of reach it takes a new
    /// term, because a call whose answer is missing may still be on its way to Redis, and must not arrive
    /// after its rows were published anew and settled.
    async fn recover(&mut self, published: &Published) -> Result<(), Stopped> {
        if published.above.is_some() || published.unreached > 0 {
            let above = published.above.unwrap_or_default();
            match self.parts.leadership.renew(&self.work, self.mandate.term, above).await? {
                Some(term) => self.mandate.term = term,
                None => return Err(Stopped::Deposed),
            }
            self.parts.health.leads(self.mandate.term);
        }

        if published.done > 0 || published.unreached + published.refused == 0 {
            self.pause = FIRST_PAUSE;
            return Ok(());
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Counts and logs rows that have died.
fn report_dead(outcome: &Outcome) {
    for dead in &outcome.dead {
        metrics::relay::died(dead.reason);
        let (id, reason, why) = (dead.id, dead.reason, Arc::new(dead.explanation.clone()));
        logging::repeated(("relay", reason), "", move |repeated| {
            tracing::error!(
                id, reason, why = %why, repeated,
                "a row of the outbox can never be published; it is in tollgate_outbox_dead"
            );
        });
    }
}
