//! The pump moves events from the broker to the hub, in order.
//!
//! Not here: what is done about a missing event (`continuity`). Invariants: the pump alone advances
//! the channels' sequencers; it never waits for a history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::metrics::Counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};

use super::Gateway;
use super::continuity::{ChannelSequencer, Step};
use super::outage::{Outages, Tell};
use super::recovery::Recovery;
use crate::broker::{BrokerError, Event, EventBatch, Events, History, Silence, Subscribed};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::clock::unix_micros;
use crate::hub::Outage;
use crate::lifecycle;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::Push;
use crate::protocol::payload::{self, PayloadFault};

/// The first and the longest wait between two attempts to read a history.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(1);
/// After this time a history that cannot be read counts as lost. Live events wait until then.
const READ_WITHIN: Duration = Duration::from_secs(6);

/// The time between two checks for silent parts.
const LOOK: Duration = Duration::from_millis(100);

/// What the pump does next.
enum Next {
    EventBatch(EventBatch),
    Recovery(Recovery),
    Look,
}

async fn next(events: &Events, reads: &mut mpsc::Receiver<Recovery>, look: &mut Interval) -> Next {
    tokio::select! {
        batch = events.drain() => Next::EventBatch(batch),
        Some(said) = reads.recv() => Next::Recovery(said),
        _ = look.tick() => Next::Look,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What makes a publication undeliverable.
struct Unfit {
    reason: GapReason,
    rejected: Rejected,
    /// What is wrong with it, and where.
    why: String,
}

impl Gateway {
    /// Moves events from the broker to the hub, in order, for ever. There is only one pump.
    pub async fn pump(self: Arc<Self>, events: Arc<Events>) {
        let kind = self.broker.health().kind;
        let received = ["plain", "durable"].map(|k| metrics::publications(kind, k));
        let Some(mut reads) = self.reads.lock().take() else { return };

        let mut steps = Vec::new();
        let mut outages = Outages::new(self.interrupted_after);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        metrics::delivery_interrupted(false);

        loop {
            match next(&events, &mut reads, &mut look).await {
                Next::EventBatch(batch) => self.route(batch, &received, &mut steps).await,
                Next::Recovery(Recovery::Begins(channel, ticket, go)) => {
                    self.interest
                        .with_sequencer(&channel, |sequencer, _| sequencer.begin_reading(ticket));
                    // A reading whose task is gone needs no answer.
                    let _ = go.send(());
                }
                Next::Recovery(Recovery::Ended(channel, ticket, history)) => {
                    let bounds = self.history_bounds();
                    self.interest.with_sequencer(&channel, |sequencer, _| {
                        sequencer.apply_history(ticket, history, bounds, &mut steps);
                    });

                    self.carry_out_steps(&channel, &mut steps).await;
                    self.recoveries.fetch_sub(1, Ordering::Relaxed);
                }
                Next::Look => {
                    // The batch is taken after the silence was looked up, so gaps from before the
                    // end of the silence are told before that end.
                    let silence = self.broker.silence();
                    self.route(events.drain_now(), &received, &mut steps).await;
                    self.tell(&mut outages, silence).await;
                }
            }
        }
    }

    /// Handles one batch of the broker's events, in their order.
    async fn route(
        self: &Arc<Self>,
        batch: EventBatch,
        received: &[Counter; 2],
        steps: &mut Vec<Step>,
    ) {
        let bounds = self.history_bounds();

        for event in batch.events {
            match event {
                Event::Publication(publication) => {
                    received[usize::from(publication.position.is_some())].increment(1);
                    let channel = publication.channel.clone();
                    self.interest.route(publication, bounds, steps);
                    self.carry_out_steps(&channel, steps).await;
                }
                Event::Subscribed(channel, subscribed) => {
                    self.subscribed(&channel, subscribed, steps).await;
                }
                // A revocation may have been missed; the store still has it.
                Event::Interrupted(channel, ..) if channel.is_control() => {
                    self.recall.now();
                }
                Event::Interrupted(channel, reason, position) => {
                    self.lost(&channel, reason, steps, |sequencer, steps| {
                        sequencer.interrupted(reason, position, steps);
                    })
                    .await;
                }
                Event::Control(message) => self.apply(&message),
            }
        }

        for (channel, plain) in batch.overflowed {
            self.lost(&channel, GapReason::Overflow, steps, |sequencer, steps| {
                sequencer.overflowed(plain, steps);
            })
            .await;
        }
    }

    /// Tells clients which channels have been silent for long, and when that is over.
    async fn tell(&self, outages: &mut Outages, silence: Option<Silence>) {
        let reading = self.recoveries.load(Ordering::Relaxed) > 0;
        let outage = match outages.observe(silence, reading, Instant::now()) {
            None => return,
            Some(Tell::Live) => {
                tracing::info!("publications arrive again: clients receive `live`");
                None
            }
            Some(Tell::Interrupted(interruption)) => {
                let all = interruption.all;
                tracing::warn!(all, "publications cannot arrive: clients receive `interrupted`");
                let since = unix_micros().saturating_sub(micros(interruption.since.elapsed()));
                let since = since / 1_000_000;
                Some(if all {
                    Outage::of_all(since)
                } else {
                    Outage::of_some(since, move |channel| interruption.concerns(channel))
                })
            }
        };

        metrics::delivery_interrupted(outage.is_some());
        self.hub.tell(outage).await;
    }

    async fn subscribed(
        self: &Arc<Self>,
        channel: &ChannelName,
        Subscribed { confirmations, position, fresh }: Subscribed,
        steps: &mut Vec<Step>,
    ) {
        self.interest
            .with_sequencer(channel, |sequencer, _| sequencer.subscribed(position, fresh, steps));
        self.carry_out_steps(channel, steps).await;

        if confirmations.is_empty() {
            return;
        }

        // Only then is the subscription confirmed: behind everything older, in the pump and
        // in the shards.
        let confirm = move || {
            for confirmation in confirmations {
                confirmation.send_replace(Some(Ok(())));
            }
        };
        self.hub.barrier(channel, confirm).await;
    }

    /// Handles a possible loss: the channel's sequencer decides what to do. A channel without a
    /// sequencer gets a gap.
    async fn lost(
        self: &Arc<Self>,
        channel: &ChannelName,
        reason: GapReason,
        steps: &mut Vec<Step>,
        work: impl FnOnce(&mut ChannelSequencer, &mut Vec<Step>),
    ) {
        if self.interest.with_sequencer(channel, |sequencer, _| work(sequencer, steps)).is_none() {
            steps.push(Step::Declare(reason));
        }

        self.carry_out_steps(channel, steps).await;
    }

    async fn carry_out_steps(self: &Arc<Self>, channel: &ChannelName, steps: &mut Vec<Step>) {
        for step in steps.drain(..) {
            match step {
                Step::Deliver(publication) => self.deliver(publication).await,
                Step::Declare(reason) => self.declare_gap(channel.clone(), reason).await,
                Step::Read(ticket, wait) => {
                    let gateway = Arc::clone(self);
                    let channel = channel.clone();
                    self.recoveries.fetch_add(1, Ordering::Relaxed);

                    lifecycle::spawn("recovery", async move {
                        gateway.recover(channel, ticket, wait).await;
                    });
                }
                Step::Refuted(claims) => {
                    metrics::claims_refuted(claims);
                    let name = channel.clone();
                    logging::repeated(("publication", "position"), channel, move |repeated| {
                        tracing::warn!(
                            channel = %name,
                            repeated,
                            "received a publication whose position is not in the channel's \
                             history: a publisher writes the format that only tollgate_publish \
                             may write"
                        );
                    });
                }
            }
        }
    }

    /// Reads a history for a missing range. The pump lives as long as the process, so a failed send
    /// means that the process ends.
    async fn recover(&self, channel: ChannelName, ticket: u64, wait: Duration) {
        tokio::time::sleep(wait).await;
        let (go, begun) = oneshot::channel();
        if self.read.send(Recovery::Begins(channel.clone(), ticket, go)).await.is_err()
            || begun.await.is_err()
        {
            return;
        }

        let history = self.read_history(&channel).await;
        let _ = self.read.send(Recovery::Ended(channel, ticket, history)).await;
    }

    /// Reads the end of a history when its turn comes. After an outage the connection that reads
    /// may return later than the one that is subscribed, so a failed reading is tried again before
    /// a gap is declared.
    pub(super) async fn read_history(
        &self,
        channel: &ChannelName,
    ) -> Result<Option<History>, BrokerError> {
        let began = Instant::now();
        let mut wait = FIRST_WAIT;

        loop {
            let history = {
                let turn = self.readings.acquire().await;
                let _turn = turn.map_err(|_| BrokerError::Unavailable)?;
                if began.elapsed() > READ_WITHIN {
                    return Err(BrokerError::Unavailable);
                }
                self.broker.history(channel, self.history_bounds()).await
            };

            match history {
                Err(BrokerError::Unavailable | BrokerError::TimedOut)
                    if began.elapsed() < READ_WITHIN => {}
                answer => return answer.map(|history| history.map(|h| self.deliverable_end(h))),
            }

            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// Keeps only the part of a history that follows its last undeliverable publication. A client
    /// whose position is before that publication is told that events are missing.
    fn deliverable_end(&self, mut history: History) -> History {
        let publications = &mut history.publications;
        let bad = publications.iter().rposition(|p| self.check_deliverable(p).is_err());
        publications.drain(..bad.map_or(0, |at| at + 1));
        history
    }

    /// Checks whether a publication can be delivered. The error says why not.
    fn check_deliverable(&self, publication: &Publication) -> Result<(), Unfit> {
        let payload = &publication.payload;
        let most = self.max_publication.load(Ordering::Relaxed);

        if publication.cut.unwrap_or(payload.len()) > most {
            let why = format!("more than limits.publication_bytes, {most}");
            let reason = GapReason::PayloadTooLarge;
            let rejected = Rejected::PublicationSize;
            return Err(Unfit { reason, rejected, why });
        }

        payload::check(payload).map_err(|fault| {
            let (reason, rejected) = match fault {
                PayloadFault::Reserved(_) => (GapReason::ReservedType, Rejected::PublicationType),
                PayloadFault::NotUtf8 { .. } | PayloadFault::NotJson(_) => {
                    (GapReason::InvalidPayload, Rejected::PublicationInvalid)
                }
            };
            Unfit { reason, rejected, why: fault.to_string() }
        })
    }

    /// Delivers a publication, or declares a gap in its place. Anyone who may publish in Redis can
    /// write anything there: a payload that is not JSON, is too large, or could be mistaken for a
    /// message of the gateway's own cannot be delivered.
    async fn deliver(&self, publication: Publication) {
        let Err(Unfit { reason, rejected, why }) = self.check_deliverable(&publication) else {
            return self.hub.dispatch(Push::Publication(publication)).await;
        };

        metrics::rejected(rejected);
        let bytes = publication.cut.unwrap_or(publication.payload.len());
        let channel = publication.channel;
        let name = channel.clone();
        let label = reason.label();
        logging::repeated(("publication", label), &channel, move |repeated| {
            tracing::warn!(channel = %name, bytes, reason = label, why, repeated, "publication not delivered");
        });

        // A client must not resume across this publication as if it had been delivered.
        self.interest.with_sequencer(&channel, |sequencer, _| sequencer.cache = None);
        self.declare_gap(channel, reason).await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broker::memory::MemoryBroker;
    use crate::broker::{Broker as _, Durable, Tracking};
    use crate::channel::Retention;
    use crate::gateway::{NodeInfo, PublishError, Resumed};
    use crate::hub::Hub;
    use crate::protocol::Wire;

    /// Such an event comes from a publisher whose Redis function does not check it, as in an
    /// older version.
    #[tokio::test]
    async fn field_c6_a_durable_event_of_a_reserved_type_is_declared() {
        let hub = Hub::unbounded();
        let events = Arc::new(Events::new(100, 10_000));
        let broker = Arc::new(MemoryBroker::new(Arc::clone(&events), 1 << 20));
        let node = NodeInfo::default();
        let linger = Duration::from_secs(5);
        let gateway = Arc::new(Gateway::new(Arc::clone(&hub), Arc::clone(&broker), linger, node));
        lifecycle::spawn("pump", Arc::clone(&gateway).pump(events));

        let connection = hub.register(None, Wire::Sse);
        let channel: ChannelName = "post:1".parse().unwrap();
        let pending = gateway.subscribe(&connection, &channel, Tracking::Create).unwrap();
        gateway.await_confirmation(&connection, &channel, pending).await.unwrap();
        gateway.activate(&connection, &channel, &[], &Resumed::default());

        let retention = Retention { size: 10, ttl: Duration::from_secs(60), plain: true };
        let durable = || Some(Durable { retention, idempotency_key: None });
        let forged = Bytes::from_static(br#"{"type":"close"}"#);
        let refused = gateway.publish(&channel, forged.clone(), durable()).await;
        assert!(matches!(refused, Err(PublishError::Reserved(_))), "{refused:?}");

        broker.publish(&channel, forged, durable()).await.unwrap();
        let next = Bytes::from_static(br#"{"type":"mine"}"#);
        broker.publish(&channel, next, durable()).await.unwrap();

        let mut came = String::new();
        while !came.contains("mine") {
            tokio::task::yield_now().await;
            let chunk = connection.take_queued().unwrap_or_default();
            came.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        assert!(came.starts_with("event: gap\n") && came.contains("reserved_type"), "{came}");
        assert!(!came.contains("close"), "{came}");
    }
}
