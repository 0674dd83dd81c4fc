//! The pump: events from the broker to the hub, in order. It alone moves channels' flows forward.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use super::Gateway;
use super::continuity::{Flow, Step};
use crate::broker::{BrokerError, Event, Events, History, Subscribed};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::lifecycle;
use crate::logging;
use crate::metrics::{self, Rejected};
use crate::protocol::Push;

/// Between the attempts at a history.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_secs(1);
/// After which a history that cannot be read counts as lost. Live events wait meanwhile.
const READ_WITHIN: Duration = Duration::from_secs(6);

/// The answer to [`Step::Read`].
pub(super) struct Read {
    channel: ChannelName,
    ticket: u64,
    history: Result<Option<History>, BrokerError>,
}

/// The next thing to do.
enum Next {
    Batch(crate::broker::Batch),
    Read(Read),
}

async fn next(events: &Events, reads: &mut mpsc::Receiver<Read>) -> Next {
    tokio::select! {
        batch = events.take() => Next::Batch(batch),
        Some(read) = reads.recv() => Next::Read(read),
    }
}

/// Why a publication cannot be delivered.
struct Unfit {
    reason: GapReason,
    /// What is wrong, and where.
    why: String,
}

impl Gateway {
    /// Moves events from the broker to the hub, in order, for ever. There is one pump.
    pub async fn pump(self: Arc<Self>, events: Arc<Events>) {
        let kind = self.broker.health().kind;
        let received = ["plain", "durable"].map(|k| metrics::publications(kind, k));
        let Some(mut reads) = self.reads.lock().take() else { return };
        let mut steps = Vec::new();
        loop {
            let batch = match next(&events, &mut reads).await {
                Next::Batch(batch) => batch,
                Next::Read(Read { channel, ticket, history }) => {
                    let bounds = self.history_bounds();
                    self.interest.with_flow(&channel, |flow, _| {
                        flow.read(ticket, history, bounds, &mut steps);
                    });
                    self.carry_out_steps(&channel, &mut steps).await;
                    continue;
                }
            };
            let bounds = self.history_bounds();
            for event in batch.events {
                match event {
                    Event::Publication(publication) => {
                        received[usize::from(publication.position.is_some())].increment(1);
                        let channel = publication.channel.clone();
                        self.interest.take(publication, bounds, &mut steps);
                        self.carry_out_steps(&channel, &mut steps).await;
                    }
                    Event::Subscribed(channel, subscribed) => {
                        self.subscribed(&channel, subscribed, &mut steps).await;
                    }
                    // A revocation may have been missed: the store has it.
                    Event::Interrupted(channel, ..) if channel.is_control() => {
                        self.recall.now();
                    }
                    Event::Interrupted(channel, reason, position) => {
                        self.lost(&channel, reason, &mut steps, |flow, steps| {
                            flow.interrupted(reason, position, steps);
                        })
                        .await;
                    }
                    Event::Control(message) => self.apply(&message),
                }
            }
            for (channel, plain) in batch.overflowed {
                self.lost(&channel, GapReason::Overflow, &mut steps, |flow, steps| {
                    flow.overflowed(plain, steps);
                })
                .await;
            }
        }
    }

    async fn subscribed(
        self: &Arc<Self>,
        channel: &ChannelName,
        Subscribed { confirmations, position, fresh }: Subscribed,
        steps: &mut Vec<Step>,
    ) {
        self.interest.with_flow(channel, |flow, _| flow.subscribed(position, fresh, steps));
        self.carry_out_steps(channel, steps).await;
        let confirm = move || {
            for confirmation in confirmations {
                confirmation.send_replace(Some(Ok(())));
            }
        };
        self.hub.mark(channel, confirm).await;
    }

    /// Something may be missing: the channel's flow knows what to do, and without one it is declared.
    async fn lost(
        self: &Arc<Self>,
        channel: &ChannelName,
        reason: GapReason,
        steps: &mut Vec<Step>,
        work: impl FnOnce(&mut Flow, &mut Vec<Step>),
    ) {
        if self.interest.with_flow(channel, |flow, _| work(flow, steps)).is_none() {
            steps.push(Step::Declare(reason));
        }
        self.carry_out_steps(channel, steps).await;
    }

    async fn carry_out_steps(self: &Arc<Self>, channel: &ChannelName, steps: &mut Vec<Step>) {
        for step in steps.drain(..) {
            match step {
                Step::Deliver(publication) => self.deliver(publication).await,
                Step::Declare(reason) => self.declare_gap(channel.clone(), reason).await,
                Step::Read(ticket) => {
                    let (gateway, channel) = (Arc::clone(self), channel.clone());
                    lifecycle::spawn("recovery", async move {
                        let history = gateway.read_history(&channel).await;
                        // The pump lives as long as the process.
                        let _ = gateway.read.send(Read { channel, ticket, history }).await;
                    });
                }
            }
        }
    }

    /// Reads the end of a history when it is its turn. After an outage the connection that reads may
    /// be back later than the one that subscribes: a failure is tried again before it is declared.
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

    /// The end of a history behind the last publication that cannot be delivered: who has not got that
    /// far is told that something is missing.
    fn deliverable_end(&self, mut history: History) -> History {
        let publications = &mut history.publications;
        let bad = publications.iter().rposition(|p| self.judge(&p.payload).is_err());
        publications.drain(..bad.map_or(0, |at| at + 1));
        history
    }

    /// Can this be delivered?
    fn judge(&self, payload: &[u8]) -> Result<(), Unfit> {
        let most = self.max_publication.load(Ordering::Relaxed);
        if payload.len() > most {
            let why = format!("more than limits.publication_bytes, {most}");
            return Err(Unfit { reason: GapReason::PayloadTooLarge, why });
        }
        let invalid = |why: &dyn std::fmt::Display| Unfit {
            reason: GapReason::InvalidPayload,
            why: why.to_string(),
        };
        let text = std::str::from_utf8(payload).map_err(|e| invalid(&e))?;
        // Its text names what was expected and the place, and nothing of the payload.
        serde_json::from_str::<IgnoredAny>(text).map_err(|e| invalid(&e))?;
        Ok(())
    }

    /// Anyone who may publish in Redis may write anything there: what is not JSON text of a
    /// permitted size cannot be delivered, and that is declared too.
    async fn deliver(&self, publication: Publication) {
        let Err(Unfit { reason, why }) = self.judge(&publication.payload) else {
            return self.hub.dispatch(Push::Publication(publication)).await;
        };
        let too_large = reason == GapReason::PayloadTooLarge;
        metrics::rejected(if too_large {
            Rejected::PublicationSize
        } else {
            Rejected::PublicationInvalid
        });
        let (channel, bytes) = (publication.channel, publication.payload.len());
        let (name, label) = (channel.clone(), reason.label());
        logging::repeated(("publication", label), &channel, move |repeated| {
            tracing::warn!(channel = %name, bytes, reason = label, why, repeated, "publication not delivered");
        });
        // Nobody may resume over it as if it had been.
        self.interest.with_flow(&channel, |flow, _| flow.tail = None);
        self.declare_gap(channel, reason).await;
    }
}
