//! Which channels this replica wants from the broker. A channel is subscribed for its first local
//! subscription and kept for a while after the last one (`broker.linger`), so that a page reload
//! costs Redis nothing.
//!
//! Not here: which connection has which channel (`hub`). Invariant: the broker's `subscribe` and
//! `unsubscribe` for a channel are called with the channel's entry locked, so their order is the
//! order of the counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::continuity::{ChannelSequencer, Step, caches_are_full};
use crate::broker::{Broker, BrokerError, HistoryBounds, Tracking};
use crate::channel::{ChannelName, Publication};
use crate::sizes::shrink_shared;

type Answered = watch::Receiver<Option<Result<(), BrokerError>>>;

/// Most channels that linger at once; any further channel is unsubscribed immediately.
const MAX_LINGERING: usize = 65_536;

/// How long a replay cache is kept after a client last resumed from it.
const CACHE_IDLE: Duration = Duration::from_secs(10);

/// A reading of a channel's history that is in progress; the value becomes true when it has ended.
pub(super) struct OngoingReading(pub(super) watch::Receiver<bool>);

/// What is known of a channel's durable publications.
struct Followed {
    sequencer: ChannelSequencer,
    reading: Option<OngoingReading>,
}

impl Followed {
    fn new(tracking: Tracking) -> Box<Self> {
        Box::new(Self { sequencer: ChannelSequencer::new(tracking), reading: None })
    }
}

/// A channel that this replica wants.
struct Entry {
    subscribers: u32,
    tracking: Tracking,
    followed: Option<Box<Followed>>,
    /// The broker's answer; `None` once the channel is confirmed.
    answer: Option<Answered>,
    /// When the last subscriber left, while there is none.
    idle_since: Option<Instant>,
}

/// A subscription that the broker may not have confirmed yet, and the deadline for that.
pub struct PendingSubscription {
    answer: Option<Answered>,
    deadline: tokio::time::Instant,
}

impl PendingSubscription {
    /// True if the broker had not yet confirmed the channel when this subscription was requested.
    pub(super) fn is_first(&self) -> bool {
        self.answer.is_some()
    }

    pub(super) async fn answer(self) -> Result<(), BrokerError> {
        let Some(mut answer) = self.answer else {
            return Ok(());
        };
        match tokio::time::timeout_at(self.deadline, answer.wait_for(Option::is_some)).await {
            Ok(found) => {
                found.ok().and_then(|a| a.clone()).unwrap_or(Err(BrokerError::Unavailable))
            }
            Err(_) => Err(BrokerError::TimedOut),
        }
    }
}

/// The channels that this replica wants.
pub(super) struct Interest {
    broker: Arc<dyn Broker>,
    entries: DashMap<ChannelName, Entry, ahash::RandomState>,
    lingering: Mutex<VecDeque<(Instant, ChannelName)>>,
    linger: Duration,
    /// How long a subscriber waits for the broker's confirmation.
    pub(super) confirm_within: Duration,
}

impl Interest {
    pub(super) fn new(broker: Arc<dyn Broker>, linger: Duration) -> Self {
        let confirm_within = Duration::from_secs(3);
        let entries = DashMap::default();
        let lingering = Mutex::default();
        Self { broker, entries, lingering, linger, confirm_within }
    }

    /// Counts one more local subscription, and asks the broker where that is necessary.
    pub(super) fn acquire(&self, channel: &ChannelName, tracking: Tracking) -> PendingSubscription {
        let mut entry = self.entries.entry(channel.clone()).or_insert_with(|| Entry {
            subscribers: 0,
            tracking,
            followed: (tracking > Tracking::Off).then(|| Followed::new(tracking)),
            answer: Some(self.ask(channel, tracking)),
            idle_since: None,
        });

        entry.subscribers += 1;
        entry.idle_since = None;

        if entry.tracking < tracking {
            // The channel is live, but nobody has asked yet for the position of its history.
            entry.tracking = tracking;
            let followed = entry.followed.get_or_insert_with(|| Followed::new(tracking));
            followed.sequencer.follow(tracking);
            entry.answer = Some(self.ask(channel, tracking));
        }

        let answered = entry.answer.as_ref().and_then(|a| a.borrow().clone());
        match answered {
            Some(Ok(())) => entry.answer = None,
            // A refused subscription is tried again for the next subscriber.
            Some(Err(_)) => entry.answer = Some(self.ask(channel, entry.tracking)),
            None => {}
        }

        // The confirmation came on a connection that is gone, so the channel is not live any more.
        if entry.answer.is_none() && !self.broker.is_up(channel) {
            entry.answer = Some(self.ask(channel, entry.tracking));
        }

        let deadline = tokio::time::Instant::now() + self.confirm_within;
        PendingSubscription { answer: entry.answer.clone(), deadline }
    }

    /// True if the channel is wanted already, together with a history.
    pub(super) fn has_history_of(&self, channel: &ChannelName) -> bool {
        self.entries.get(channel).is_some_and(|entry| entry.tracking >= Tracking::Create)
    }

    /// Forgets the broker's answer once it is a confirmation: nobody has to wait for it any more.
    pub(super) fn forget_answer(&self, channel: &ChannelName) {
        if let Some(mut entry) = self.entries.get_mut(channel)
            && entry.answer.as_ref().is_some_and(|answer| *answer.borrow() == Some(Ok(())))
        {
            entry.answer = None;
        }
    }

    fn ask(&self, channel: &ChannelName, tracking: Tracking) -> Answered {
        let (confirmation, answer) = watch::channel(None);
        self.broker.subscribe(channel, tracking, confirmation);
        answer
    }

    /// Passes a publication through its channel's sequencer, and adds the resulting steps to `out`.
    pub(super) fn route(
        &self,
        publication: Publication,
        bounds: HistoryBounds,
        out: &mut Vec<Step>,
    ) {
        if let Some(mut entry) = self.entries.get_mut(&publication.channel) {
            let entry = &mut *entry;
            if publication.position.is_some() && entry.followed.is_none() {
                entry.followed = Some(Followed::new(entry.tracking));
            }
            if let Some(followed) = &mut entry.followed {
                return followed.sequencer.sequence(publication, bounds, out);
            }
        }

        out.push(Step::Deliver(publication));
    }

    /// Runs `work` on a channel's sequencer; `None` if the channel has none.
    pub(super) fn with_sequencer<T>(
        &self,
        channel: &ChannelName,
        work: impl FnOnce(&mut ChannelSequencer, &mut Option<OngoingReading>) -> T,
    ) -> Option<T> {
        let mut entry = self.entries.get_mut(channel)?;
        let Followed { sequencer, reading } = entry.followed.as_deref_mut()?;
        Some(work(sequencer, reading))
    }

    /// Drops the replay caches that no client resumes from any more.
    pub(super) fn sweep_caches(&self) {
        let idle = if caches_are_full() { Duration::from_secs(1) } else { CACHE_IDLE };
        for mut entry in self.entries.iter_mut() {
            if let Some(Followed { sequencer, reading }) = entry.followed.as_deref_mut()
                && reading
                    .as_ref()
                    .is_none_or(|OngoingReading(answer)| answer.has_changed().is_err())
                && sequencer.cache.as_ref().is_some_and(|cache| cache.used.elapsed() > idle)
            {
                sequencer.cache = None;
            }
        }
    }

    /// Counts one local subscription less. After the last one the channel lingers, or is
    /// unsubscribed at once.
    pub(super) fn release(&self, channel: &ChannelName) {
        let MapEntry::Occupied(mut occupied) = self.entries.entry(channel.clone()) else {
            return;
        };

        let entry = occupied.get_mut();
        entry.subscribers -= 1;
        if entry.subscribers > 0 {
            return;
        }

        let mut lingering = self.lingering.lock();
        if self.linger.is_zero() || lingering.len() >= MAX_LINGERING {
            drop(lingering);
            self.broker.unsubscribe(channel);
            occupied.remove();
            return;
        }

        let now = Instant::now();
        entry.idle_since = Some(now);
        lingering.push_back((now, occupied.key().clone()));
    }

    /// Returns memory after many channels have ended.
    pub(super) fn shrink(&self) {
        shrink_shared(&self.entries);
        let mut lingering = self.lingering.lock();
        if lingering.is_empty() {
            *lingering = VecDeque::new();
        }
    }

    /// Unsubscribes the channels that have lingered for long enough and that nobody wanted again.
    pub(super) fn sweep(&self) {
        let Some(before) = Instant::now().checked_sub(self.linger) else {
            return;
        };

        loop {
            let channel = {
                let mut lingering = self.lingering.lock();
                match lingering.front() {
                    Some((since, _)) if *since <= before => lingering.pop_front(),
                    _ => None,
                }
            };

            let Some((since, channel)) = channel else {
                return;
            };

            if let MapEntry::Occupied(occupied) = self.entries.entry(channel)
                && occupied.get().idle_since == Some(since)
            {
                self.broker.unsubscribe(occupied.key());
                occupied.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broker::Published;
    use crate::broker::{BrokerFuture, Confirmation, Durable, Health, History, Said};

    /// Records the calls, and confirms only when a test says so.
    #[derive(Default)]
    struct Recorder {
        calls: Mutex<Vec<String>>,
        waiting: Mutex<Vec<Confirmation>>,
    }

    impl Broker for Recorder {
        fn subscribe(&self, channel: &ChannelName, _: Tracking, confirmation: Confirmation) {
            self.calls.lock().push(format!("+{channel}"));
            self.waiting.lock().push(confirmation);
        }
        fn unsubscribe(&self, channel: &ChannelName) {
            self.calls.lock().push(format!("-{channel}"));
        }
        fn publish(
            &self,
            _: &ChannelName,
            _: Bytes,
            _: Option<Durable>,
        ) -> BrokerFuture<'_, Published> {
            let published = Published { position: None, heard: None };
            Box::pin(std::future::ready(Ok(published)))
        }
        fn history(&self, _: &ChannelName, _: HistoryBounds) -> BrokerFuture<'_, Option<History>> {
            Box::pin(std::future::ready(Ok(None)))
        }
        fn control(&self, _: Bytes) -> BrokerFuture<'_, usize> {
            Box::pin(std::future::ready(Ok(1)))
        }
        fn is_up(&self, _: &ChannelName) -> bool {
            true
        }
        fn health(&self) -> Health {
            Health {
                kind: "x",
                ready: true,
                subscriber: true,
                publisher: true,
                writer: true,
                last_error: None,
            }
        }
    }

    fn setup(linger: Duration) -> (Arc<Recorder>, Interest, ChannelName) {
        let broker = Arc::new(Recorder::default());
        let interest = Interest::new(Arc::clone(&broker) as Arc<dyn Broker>, linger);
        (broker, interest, "a".parse().unwrap())
    }

    #[tokio::test]
    async fn the_first_subscribes_the_last_lingers_and_all_wait_for_one_answer() {
        let (broker, interest, a) = setup(Duration::from_millis(20));
        let (first, second) =
            (interest.acquire(&a, Tracking::Off), interest.acquire(&a, Tracking::Off));

        assert_eq!(*broker.calls.lock(), ["+a"]);
        broker.waiting.lock().pop().unwrap().send_replace(Some(Ok(())));
        assert_eq!(first.answer().await, Ok(()));
        assert_eq!(second.answer().await, Ok(()));

        interest.release(&a);
        interest.release(&a);
        interest.sweep();
        assert_eq!(*broker.calls.lock(), ["+a"], "it lingers");

        // A reload within the linger costs the broker nothing.
        assert_eq!(interest.acquire(&a, Tracking::Off).answer().await, Ok(()));
        std::thread::sleep(Duration::from_millis(25));
        interest.sweep();
        assert_eq!(*broker.calls.lock(), ["+a"], "it is wanted");

        interest.release(&a);
        std::thread::sleep(Duration::from_millis(25));
        interest.sweep();
        assert_eq!(*broker.calls.lock(), ["+a", "-a"]);
    }

    #[tokio::test]
    async fn a_followed_history_is_looked_up() {
        let (broker, interest, a) = setup(Duration::ZERO);
        interest.acquire(&a, Tracking::Off);
        interest.acquire(&a, Tracking::Follow);
        interest.acquire(&a, Tracking::Follow);
        assert_eq!(*broker.calls.lock(), ["+a", "+a"]);
        interest.acquire(&a, Tracking::Create);
        assert_eq!(broker.calls.lock().len(), 3);
    }

    #[tokio::test]
    async fn a_refused_subscription_is_tried_again() {
        let (broker, interest, a) = setup(Duration::ZERO);
        let first = interest.acquire(&a, Tracking::Off);
        let confirmation = broker.waiting.lock().pop().unwrap();
        let refused = || BrokerError::Refused(Said::new("NOPERM"));
        confirmation.send_replace(Some(Err(refused())));
        assert_eq!(first.answer().await, Err(refused()));

        let second = interest.acquire(&a, Tracking::Off);
        assert_eq!(*broker.calls.lock(), ["+a", "+a"]);
        drop(broker.waiting.lock().pop());
        assert_eq!(second.answer().await, Err(BrokerError::Unavailable), "the broker is gone");
    }
}
