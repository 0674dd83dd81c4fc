//! The pump: events from the broker to the hub, in order. It alone moves channels' flows forward.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::de::IgnoredAny;
use tokio::sync::mpsc;

use super::Gateway;
use super::continuity::Step;
use crate::broker::{BrokerError, Event, Events, History, Subscribed};
use crate::channel::{ChannelName, GapReason, Publication};
use crate::lifecycle;
use crate::metrics::{self, Rejected};
use crate::protocol::Push;

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

impl Gateway {
    /// Moves events from the broker to the hub, in order, for ever. There is one pump.
    pub async fn pump(self: Arc<Self>, events: Arc<Events>) {
        let kind = self.broker.health().kind;
        let received = ["plain", "durable"].map(|k| metrics::publications(kind, k));
        let Some(mut reads) = self.reads.lock().take() else { return };
        let mut steps = Vec::new();
        let control = ChannelName::control();
        loop {
            let batch = match next(&events, &mut reads).await {
                Next::Batch(batch) => batch,
                Next::Read(Read { channel, ticket, history }) => {
                    let bounds = self.tail_bounds();
                    self.interest.with_flow(&channel, |flow, _| {
                        flow.read(ticket, history, bounds, &mut steps);
                    });
                    self.carry_out_steps(&channel, &mut steps).await;
                    continue;
                }
            };
            let bounds = self.tail_bounds();
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
                    Event::Interrupted(channel, ..) if channel == control => {
                        self.recall_due.store(true, Ordering::Release);
                    }
                    Event::Interrupted(channel, reason, position) => {
                        let followed = self.interest.with_flow(&channel, |flow, _| {
                            flow.interrupted(reason, position, &mut steps);
                        });
                        if followed.is_none() {
                            steps.push(Step::Declare(reason));
                        }
                        self.carry_out_steps(&channel, &mut steps).await;
                    }
                    Event::Control(message) => self.apply(&message),
                }
            }
            for (channel, plain) in batch.overflowed {
                let followed =
                    self.interest.with_flow(&channel, |flow, _| flow.overflowed(plain, &mut steps));
                if followed.is_none() {
                    steps.push(Step::Declare(GapReason::Overflow));
                }
                self.carry_out_steps(&channel, &mut steps).await;
            }
        }
    }

    async fn subscribed(
        self: &Arc<Self>,
        channel: &ChannelName,
        Subscribed { confirmation, position, fresh }: Subscribed,
        steps: &mut Vec<Step>,
    ) {
        self.interest.with_flow(channel, |flow, _| flow.subscribed(position, fresh, steps));
        self.carry_out_steps(channel, steps).await;
        let confirm = move || {
            confirmation.send_replace(Some(Ok(())));
        };
        self.hub.mark(channel, confirm).await;
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

    /// Reads the end of a history when it is its turn.
    pub(super) async fn read_history(
        &self,
        channel: &ChannelName,
    ) -> Result<Option<History>, BrokerError> {
        let _turn = self.readings.acquire().await.map_err(|_| BrokerError::Unavailable)?;
        self.broker.history(channel, self.history_bounds()).await
    }

    /// Anyone who may publish in Redis may write anything there: what is not JSON text of a
    /// permitted size cannot be delivered, and that is declared too.
    async fn deliver(&self, publication: Publication) {
        let payload = &publication.payload;
        if payload.len() > self.max_publication.load(Ordering::Relaxed) {
            metrics::rejected(Rejected::PublicationSize);
            tracing::warn!(channel = %publication.channel, bytes = payload.len(), "publication too large");
            return self.declare_gap(publication.channel, GapReason::PayloadTooLarge).await;
        }
        let valid = std::str::from_utf8(payload)
            .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
        if !valid {
            metrics::rejected(Rejected::PublicationInvalid);
            tracing::warn!(channel = %publication.channel, "publication is not JSON");
            return self.declare_gap(publication.channel, GapReason::InvalidPayload).await;
        }
        self.hub.dispatch(Push::Publication(publication)).await;
    }
}
