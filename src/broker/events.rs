//! The bounded queue from a broker to the gateway. The broker's reader must never wait, or Redis
//! closes its connection (`client-output-buffer-limit`). So when the queue is full, a channel's
//! publications are dropped until the queue is drained, and the batch says on which channels
//! that happened.
//!
//! Invariant: nothing is dropped without a declaration, except control messages beyond a room
//! of their own.

use std::collections::HashMap;
use std::mem;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Event;
use crate::channel::ChannelName;
use crate::logging;

#[derive(Default)]
struct State {
    events: Vec<Event>,
    bytes: usize,
    /// The channels whose publications were dropped. There are no more of them than subscriptions,
    /// and each name is shared with the subscription table. The value is true if a plain
    /// publication was among those dropped: no history has it.
    overflowed: HashMap<ChannelName, bool, ahash::RandomState>,
}

/// Everything that the queue held when it was drained. `overflowed` comes after all `events`.
#[derive(Debug, Default)]
pub struct EventBatch {
    pub events: Vec<Event>,
    /// The value is true if plain publications, which no history has, were among those dropped.
    pub overflowed: Vec<(ChannelName, bool)>,
}

/// The queue: one side pushes without waiting, the other takes everything at once.
pub struct Events {
    state: Mutex<State>,
    filled: Notify,
    max_events: usize,
    max_bytes: usize,
}

impl Events {
    #[must_use]
    pub fn new(max_events: usize, max_bytes: usize) -> Self {
        Self { state: Mutex::default(), filled: Notify::new(), max_events, max_bytes }
    }

    /// Adds an event, or notes its channel as overflowed. An interruption or a confirmation is
    /// always accepted: there can be only one of each per channel. Control messages have
    /// additional room, as large as that of the publications, since they are few and losing one
    /// cannot be declared.
    pub fn push(&self, event: Event) {
        let mut state = self.state.lock();
        let was_empty = state.events.is_empty() && state.overflowed.is_empty();

        if let Event::Publication(publication) = &event {
            let size = publication.payload.len();
            // After the first publication that did not fit, all of the channel's publications
            // are dropped until the queue is drained, so that the gap stands where the
            // missing ones were.
            if state.events.len() >= self.max_events
                || state.bytes + size > self.max_bytes
                || (!state.overflowed.is_empty()
                    && state.overflowed.contains_key(&publication.channel))
            {
                let plain = publication.position.is_none();
                *state.overflowed.entry(publication.channel.clone()).or_default() |= plain;
            } else {
                state.bytes += size;
                state.events.push(event);
            }
        } else if let Event::Control(message) = &event {
            if state.events.len() >= 2 * self.max_events
                || state.bytes + message.len() > 2 * self.max_bytes
            {
                drop(state);
                logging::repeated(("control", "flood"), "", |repeated| {
                    let what = "the broker's queue is full of control messages: one was dropped";
                    tracing::error!(repeated, "{what}");
                });
                return;
            }

            state.bytes += message.len();
            state.events.push(event);
        } else {
            state.events.push(event);
        }

        drop(state);

        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Waits for events and takes all of them.
    pub async fn drain(&self) -> EventBatch {
        loop {
            let batch = self.drain_now();
            if !batch.events.is_empty() || !batch.overflowed.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    /// Takes the events that are there.
    pub fn drain_now(&self) -> EventBatch {
        let mut state = self.state.lock();
        state.bytes = 0;
        EventBatch {
            events: mem::take(&mut state.events),
            overflowed: mem::take(&mut state.overflowed).into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::channel::Publication;

    fn publication(channel: &str, size: usize) -> Event {
        Event::Publication(Publication {
            channel: channel.parse().unwrap(),
            payload: Bytes::from(vec![b'x'; size]),
            position: None,
            cut: None,
            published: None,
        })
    }

    #[tokio::test]
    async fn what_does_not_fit_is_named() {
        let events = Events::new(3, 10);
        events.push(publication("a", 5));
        events.push(publication("b", 6));
        // This publication would fit, but an earlier one on its channel did not.
        events.push(publication("b", 1));
        events.push(publication("a", 1));
        events.push(Event::Control(Bytes::new()));
        events.push(publication("c", 0));

        let batch = events.drain().await;
        assert_eq!(batch.events.len(), 3);
        let mut names: Vec<_> = batch.overflowed.iter().map(|(c, _)| c.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "c"]);

        events.push(publication("b", 6));
        assert_eq!(events.drain().await.events.len(), 1);
    }
}
