//! Resuming: a client says up to which position it has a channel, and receives what it missed:
//! either all of it, or nothing.
//!
//! Not here: how clients say what they have (`session::since`). Invariants: the missed events end
//! exactly where the subscription's own events begin; clients that resume on the same channel at
//! the same time share one reading of its history.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Gateway;
use super::continuity::{ReplayCache, caches_are_full};
use super::interest::OngoingReading;
use crate::broker::HistoryBounds;
use crate::channel::{ChannelName, Position, Publication};
use crate::hub::{Activation, Connection};
use crate::lifecycle;
use crate::metrics;
use crate::protocol::Reply;

/// How long a client may be ahead of this replica: it received an event from another replica, and
/// the event is still on its way to this one.
const AHEAD: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long all channels of one client together may wait for readings.
const WITHIN: Duration = Duration::from_secs(12);

/// Most readings that one client waits for before it is told that it may have missed events.
const MAX_TRIES: u32 = 2;

/// What a subscription begins with.
#[derive(Debug, Default)]
pub struct Resumed {
    /// The events that follow continue from here; `None` if no history is known.
    pub position: Option<Position>,
    /// `None` if the client did not ask; false if it may have missed events.
    pub recovered: Option<bool>,
    /// The missed events, in order; empty unless recovered.
    pub publications: Vec<Publication>,
    /// Events up to here are part of the resume already.
    pub after: Option<Position>,
}

/// What one look at a channel's sequencer found.
enum ResumeStep {
    Done(Resumed),
    /// The client is ahead of this replica, or there is no room for another replay cache now.
    Ahead,
    /// The client has waited for enough readings.
    Enough,
    Wait(watch::Receiver<bool>),
    /// Read the history, then tell every client that waits for it.
    Read(watch::Sender<bool>),
}

impl Resumed {
    /// Begins at a position, without missed events.
    fn at(position: Option<Position>, recovered: Option<bool>) -> Self {
        let after = position.clone();
        Self { position, recovered, publications: Vec::new(), after }
    }
}

fn found(position: Option<Position>, recovered: Option<bool>) -> ResumeStep {
    ResumeStep::Done(Resumed::at(position, recovered))
}

impl Gateway {
    /// Says what a confirmed subscription begins with. `since`: the position that the client has.
    /// `began`: when the client asked, for this channel and its others.
    pub async fn resume(
        self: &Arc<Self>,
        channel: &ChannelName,
        since: Option<&Position>,
        began: Instant,
    ) -> Resumed {
        let mut tries = 0;

        let resumed = loop {
            let may_read = tries < MAX_TRIES && began.elapsed() < WITHIN;
            let reading = match self.plan_resume(channel, since, may_read) {
                ResumeStep::Done(resumed) => break resumed,
                ResumeStep::Ahead if began.elapsed() < AHEAD => {
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                ResumeStep::Ahead | ResumeStep::Enough => {
                    break self.not_recovered(channel, since).await;
                }
                ResumeStep::Wait(reading) => reading,
                ResumeStep::Read(done) => {
                    let reading = done.subscribe();
                    let gateway = Arc::clone(self);
                    let name = channel.clone();
                    let read = async move { gateway.fill_cache(&name, done).await };
                    lifecycle::spawn("history", read);
                    reading
                }
            };

            tries += 1;
            if !is_over(reading).await {
                break self.not_recovered(channel, since).await;
            }
        };

        if let Some(recovered) = resumed.recovered {
            metrics::resume(recovered);
        }
        resumed
    }

    /// Sends `replies`, then the missed events, and lets the subscription's events through
    /// from then on.
    pub fn activate(
        &self,
        connection: &Connection,
        channel: &ChannelName,
        replies: &[Reply<'_>],
        resumed: &Resumed,
    ) {
        let Resumed { position, publications, after, .. } = resumed;
        let begin = Activation { position: position.as_ref(), publications, after: after.as_ref() };
        self.hub.activate(connection, channel, replies, &begin);
    }

    /// The position of the channel's history as this replica knows it, if there is one.
    #[must_use]
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        self.interest
            .with_sequencer(channel, |sequencer, _| sequencer.position().cloned())
            .flatten()
    }

    /// The start of a client that may have missed events.
    async fn not_recovered(&self, channel: &ChannelName, since: Option<&Position>) -> Resumed {
        let here = self.position(channel);
        let is_behind = |here: &Position| since.is_some_and(|s| !here.has_reached(s));
        let top = match &here {
            Some(here) if is_behind(here) => self.top(channel).await,
            _ => None,
        };

        Resumed::at(begins(here, since, top.as_ref()), Some(false))
    }

    /// The latest position of the stored history, which may be ahead of this replica.
    async fn top(&self, channel: &ChannelName) -> Option<Position> {
        let _turn = timeout(AHEAD, self.readings.acquire()).await.ok()?.ok()?;
        let bounds = HistoryBounds { messages: 1, ..self.history_bounds() };
        Some(self.broker.history(channel, bounds).await.ok()??.top)
    }

    /// Compares the client's position with the sequencer's, and says what follows from that.
    fn plan_resume(
        &self,
        channel: &ChannelName,
        since: Option<&Position>,
        may_read: bool,
    ) -> ResumeStep {
        let look = self.interest.with_sequencer(channel, |sequencer, reading| {
            // While it is unknown which position follows, none is given: the next event brings one.
            let last = sequencer.position().cloned();
            let (Some(since), Some(last)) = (since, last.clone()) else {
                return found(last, since.map(|_| false));
            };

            let complete = sequencer.is_complete_since(since);
            if since.epoch != last.epoch {
                return found(Some(last), Some(false));
            }
            if since.offset > last.offset {
                return ResumeStep::Ahead;
            }
            if *since == last {
                return found(Some(last), Some(complete));
            }

            if let Some(cache) = sequencer.cache.as_mut().filter(|cache| cache.whole) {
                return match cache.since(since.offset).filter(|_| complete) {
                    Some(publications) => ResumeStep::Done(Resumed {
                        position: Some(since.clone()),
                        recovered: Some(true),
                        publications,
                        after: Some(last),
                    }),
                    None => found(Some(last), Some(false)),
                };
            }

            if !may_read {
                return ResumeStep::Enough;
            }
            if caches_are_full() {
                return ResumeStep::Ahead;
            }

            if let Some(OngoingReading(answer)) = reading
                && answer.has_changed().is_ok()
            {
                return ResumeStep::Wait(answer.clone());
            }

            let (done, answer) = watch::channel(false);
            *reading = Some(OngoingReading(answer));
            sequencer.cache = Some(ReplayCache::begin(last.offset));
            ResumeStep::Read(done)
        });

        look.unwrap_or_else(|| found(None, since.map(|_| false)))
    }

    /// Reads a history for all clients that wait for it. The semaphore is fair: readings get their
    /// turn in the order of asking.
    async fn fill_cache(&self, channel: &ChannelName, done: watch::Sender<bool>) {
        let history = self.read_history(channel).await;
        self.interest.with_sequencer(channel, |sequencer, reading| {
            *reading = None;

            let epoch = sequencer.last().map(|last| Arc::clone(&last.epoch));
            let whole = match (history.ok().flatten(), &mut sequencer.cache) {
                (Some(history), Some(cache)) if epoch.as_ref() == Some(&history.top.epoch) => {
                    cache.complete(history, self.history_bounds())
                }
                _ => false,
            };

            if !whole || caches_are_full() {
                sequencer.cache = None;
            }
        });

        done.send_replace(true);
    }

    pub(super) fn history_bounds(&self) -> HistoryBounds {
        *self.history_bounds.lock()
    }
}

/// The position from which a client receives events if it could not be resumed. A client that is
/// ahead of this replica does not receive the events again that it had elsewhere, but only as far
/// as the history confirms the position that it claims.
fn begins(
    here: Option<Position>,
    since: Option<&Position>,
    top: Option<&Position>,
) -> Option<Position> {
    let ahead = since.filter(|since| here.as_ref().is_some_and(|here| since.has_reached(here)));
    let confirmed = ahead.filter(|since| top.is_some_and(|top| top.has_reached(since)));
    confirmed.cloned().or(here)
}

/// Waits until the reading has ended. Returns false if its task died.
async fn is_over(mut reading: watch::Receiver<bool>) -> bool {
    reading.wait_for(|done| *done).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that was ahead of its replica received events again that it had received elsewhere.
    #[test]
    fn field_f12_a_client_that_is_ahead_gets_nothing_again() {
        let at = |offset| Position::new("9", offset);
        for (here, since, top, begin) in [
            (at(5), at(7), at(8), at(7)),
            (at(5), at(7), at(7), at(7)),
            // A position that the history does not have is not believed, and hides no events.
            (at(5), at(1_000_000), at(8), at(5)),
            (at(5), at(7), Position::new("8", 8), at(5)),
            (at(5), at(7), None, at(5)),
            (at(5), at(3), at(8), at(5)),
            (at(5), Position::new("8", 7), at(8), at(5)),
            (at(5), None, at(8), at(5)),
            (None, at(7), at(8), None),
        ] {
            assert_eq!(begins(here, since.as_ref(), top.as_ref()), begin, "{since:?} of {top:?}");
        }
    }
}
