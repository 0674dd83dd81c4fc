//! The channels that one subscribing connection is to have, and the operations that are
//! due for that.
//!
//! Pure: no connection. Invariants: a channel that was live and is live no longer gets its
//! `Interrupted` only when it is confirmed again, and before anything that is published later. On a
//! channel whose history is followed, nothing is passed on between the confirmation and the answer
//! with the history's position.

mod early;

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use self::early::Early;
use crate::broker::{Confirmation, Event, Subscribed, Tracking};
use crate::channel::{ChannelName, GapReason, Position, Publication};
use crate::sizes::shrink;

/// The gateway's wish for one channel, and how far it is fulfilled.
#[derive(Default)]
pub(super) struct Subscription {
    pub(super) confirmations: Vec<Confirmation>,
    /// The channel is confirmed on the current connection.
    pub(super) live: bool,
    /// The channel was live before the connection was lost, so an `Interrupted` is due.
    pub(super) gap_due: bool,
    /// Something else may be missing, whatever the channel's history says.
    pub(super) lost: bool,
    pub(super) tracking: Tracking,
    /// The history's position has to be read after the subscription that is on its way.
    pub(super) position_due: bool,
    /// The server refuses the channel, so the connection does not have to catch up with it.
    pub(super) refused: bool,
    /// The channel has become live without having been so before, and the gateway has not
    /// been told yet.
    fresh: bool,
    /// Publications that arrive before the position of the history is known.
    early: Option<Box<Early>>,
}

impl Subscription {
    /// Adds a request for the channel. What is known of the channel stays: a gap may be due.
    pub(super) fn add(&mut self, tracking: Tracking, confirmation: Option<Confirmation>) {
        self.tracking = self.tracking.max(tracking);
        self.confirmations.extend(confirmation);
    }

    fn reason(&self) -> GapReason {
        if self.lost { GapReason::HistoryLost } else { GapReason::BrokerReconnected }
    }

    /// Notes that the channel is live no longer, for a reason other than the gateway's wish.
    pub(super) fn interrupt(&mut self) {
        let was_told = std::mem::take(&mut self.live) && !std::mem::take(&mut self.fresh);
        self.gap_due |= was_told;
        self.position_due = false;
        // The gateway was not told that the channel was live, or the gap that is due covers these.
        self.early = None;
    }

    /// True if the channel may have missed something that the gateway does not know of yet.
    pub(super) fn is_behind(&self) -> bool {
        self.gap_due && !self.refused
    }

    /// True if arriving publications have to wait; see [`SubscriptionTable::hold`].
    pub(super) fn waits(&self) -> bool {
        self.early.is_some()
    }

    /// Lets arriving publications wait until the position of the history is known.
    fn wait(&mut self) {
        if self.fresh || self.gap_due {
            self.early.get_or_insert_default();
        }
    }

    /// The interruption that is due, if there is one.
    fn interrupted(&mut self, channel: &ChannelName, position: Option<Position>) -> Option<Event> {
        let reason = self.reason();
        std::mem::take(&mut self.gap_due).then(|| {
            self.lost = false;
            Event::Interrupted(channel.clone(), reason, position)
        })
    }

    /// The answer to all requests for the channel; `None` if it would say nothing.
    fn subscribed(&mut self, channel: &ChannelName, position: Option<Position>) -> Option<Event> {
        let confirmations = std::mem::take(&mut self.confirmations);
        let fresh = std::mem::take(&mut self.fresh);
        let says_something = !confirmations.is_empty() || position.is_some();
        let subscribed = Subscribed { confirmations, position, fresh };
        says_something.then(|| Event::Subscribed(channel.clone(), subscribed))
    }
}

/// What has to be sent to the server.
pub(super) enum Operation {
    Subscribe(ChannelName),
    Unsubscribe(ChannelName),
}

type Names<T> = HashMap<ChannelName, T, ahash::RandomState>;

/// The channels of one subscribing connection.
#[derive(Default)]
pub(super) struct SubscriptionTable {
    pub(super) channels: Names<Subscription>,
    pub(super) ops: VecDeque<Operation>,
    /// Subscriptions that were requested on this connection and are not confirmed yet, by channel.
    /// A channel that was given up and wanted again has two on the way, and only the last one's
    /// answer counts.
    unconfirmed: Names<u32>,
    /// Ends of subscriptions that were requested and are not confirmed yet.
    leaving: Names<u32>,
    /// Channels that the server refused, with the time at which each is asked for again.
    pub(super) refused: Vec<(Instant, ChannelName)>,
    /// Without a connection no operations are queued: the next one subscribes to everything.
    pub(super) connected: bool,
    /// True if some channel may be behind.
    behind: bool,
    /// Operations that were queued when the connection was made and have not been carried out yet.
    first: usize,
}

impl SubscriptionTable {
    /// Notes that the server answered one subscription to this channel. Returns true if it was the
    /// last one on the way.
    pub(super) fn answered(&mut self, name: &str) -> bool {
        let Some(left) = self.unconfirmed.get_mut(name) else {
            return true;
        };
        *left -= 1;
        if *left > 0 {
            return false;
        }
        self.unconfirmed.remove(name);
        shrink(&mut self.unconfirmed);
        true
    }

    /// Takes the next operation out of the queue. If it subscribes to a channel whose history is
    /// followed, the position becomes due.
    pub(super) fn take_op(&mut self, subscribes: bool) -> Option<(ChannelName, Tracking)> {
        let channel = match self.ops.front()? {
            Operation::Subscribe(channel) if subscribes => channel.clone(),
            Operation::Unsubscribe(channel) if !subscribes => channel.clone(),
            Operation::Subscribe(_) | Operation::Unsubscribe(_) => return None,
        };
        self.ops.pop_front();
        self.first = self.first.saturating_sub(1);

        let tracking = match self.channels.get_mut(&channel) {
            Some(want) => {
                want.position_due |= subscribes && want.tracking > Tracking::Off;
                want.tracking
            }
            None => Tracking::Off,
        };
        Some((channel, tracking))
    }

    /// True if everything that was wanted when the connection was made has been asked for.
    pub(super) fn has_caught_up(&self) -> bool {
        self.first == 0
    }

    /// True if some channel may have missed something that the gateway has not been told of.
    pub(super) fn is_behind(&mut self) -> bool {
        self.behind = self.behind && self.channels.values().any(Subscription::is_behind);
        self.behind
    }

    /// Takes in a channel that another connection had.
    pub(super) fn take_in(&mut self, channel: &ChannelName, want: Subscription) {
        self.behind |= want.gap_due;
        self.channels.insert(channel.clone(), want);
        self.ask(channel);
    }

    /// Notes that a channel is live no longer, for a reason other than the gateway's wish.
    pub(super) fn interrupt(&mut self, name: &str) -> Option<&mut Subscription> {
        let want = self.channels.get_mut(name)?;
        want.interrupt();
        self.behind |= want.gap_due;
        Some(want)
    }

    /// Holds a publication that has to wait; any other one is returned.
    pub(super) fn hold(&mut self, publication: Publication) -> Option<Publication> {
        let want = self.channels.get_mut(&publication.channel);
        match want.and_then(|want| want.early.as_mut()) {
            Some(early) => {
                early.hold(publication);
                None
            }
            None => Some(publication),
        }
    }

    /// Queues a subscription, if there is a connection for it.
    pub(super) fn ask(&mut self, channel: &ChannelName) {
        if self.connected {
            self.ops.push_back(Operation::Subscribe(channel.clone()));
            *self.unconfirmed.entry(channel.clone()).or_default() += 1;
        }
    }

    /// Removes a channel, and queues the end of its subscription.
    pub(super) fn give_up(&mut self, channel: &ChannelName) -> Option<Subscription> {
        let want = self.channels.remove(channel)?;
        shrink(&mut self.channels);
        if self.connected {
            self.ops.push_back(Operation::Unsubscribe(channel.clone()));
            *self.leaving.entry(channel.clone()).or_default() += 1;
        }
        Some(want)
    }

    /// Notes that the server has ended a subscription. Returns true if nobody asked for that.
    pub(super) fn ended_unasked(&mut self, name: &str) -> bool {
        let Some(left) = self.leaving.get_mut(name) else { return true };
        *left -= 1;
        if *left == 0 {
            self.leaving.remove(name);
            shrink(&mut self.leaving);
        }
        false
    }

    /// Begins a new connection, which has to subscribe to everything that is wanted. The
    /// control channel comes first: a subscription must not be live on a replica that cannot be
    /// told to end it.
    pub(super) fn begin(&mut self) {
        self.end();
        self.connected = true;
        let control = ChannelName::control();
        let first = self.channels.contains_key(&control).then(|| control.clone());
        let rest = self.channels.keys().filter(|c| **c != control).cloned();
        let all: Vec<_> = first.into_iter().chain(rest).collect();

        for channel in &all {
            self.ask(channel);
        }
        self.first = all.len();
    }

    /// Ends a connection: no channel is live any more.
    pub(super) fn end(&mut self) {
        (self.connected, self.first) = (false, 0);
        self.ops = VecDeque::new();
        self.unconfirmed = HashMap::default();
        self.leaving = HashMap::default();
        self.refused = Vec::new();
        self.channels.values_mut().for_each(Subscription::interrupt);
        self.behind = true;
    }

    /// Notes that the channel's subscription is confirmed. Returns what the gateway is to be
    /// told, in this order. For a channel whose history is followed,
    /// [`SubscriptionTable::on_position`] returns it.
    pub(super) fn on_confirmed(&mut self, name: &str) -> [Option<Event>; 2] {
        let is_last = self.answered(name);
        let Some((channel, _)) = self.channels.get_key_value(name) else { return [None, None] };
        let channel = channel.clone();
        let Some(want) = self.channels.get_mut(name) else { return [None, None] };

        if !is_last {
            // Another answer is on the way, but publications arrive from this one on. What is due
            // stays due: the subscription may be ended in between.
            if want.position_due {
                want.wait();
                return [None, None];
            }
            let due = want.gap_due.then(|| Event::Interrupted(channel, want.reason(), None));
            return [due, None];
        }

        want.fresh |= !want.live && !want.gap_due;
        (want.live, want.refused) = (true, false);

        if want.position_due {
            want.wait();
            return [None, None];
        }

        [want.interrupted(&channel, None), want.subscribed(&channel, None)]
    }

    /// Notes the position of the channel's history, which was read after the confirmation. Returns
    /// what the gateway is to be told.
    pub(super) fn on_position(&mut self, name: &str, position: Option<Position>) -> Vec<Event> {
        if self.unconfirmed.contains_key(name) {
            // Another subscription is on the way, and its answer counts for all.
            return Vec::new();
        }

        let Some((channel, _)) = self.channels.get_key_value(name) else { return Vec::new() };
        let channel = channel.clone();
        let Some(want) = self.channels.get_mut(name).filter(|want| want.live) else {
            return Vec::new();
        };

        want.position_due = false;
        let early = want.early.take();
        let is_fresh = want.fresh;
        let interrupted = want.interrupted(&channel, position.clone());
        let subscribed = want.subscribed(&channel, position.clone());

        let known = position.filter(|_| is_fresh);
        let early = early.map(|early| early.events(&channel, known.as_ref())).unwrap_or_default();
        interrupted.into_iter().chain(subscribed).chain(early).collect()
    }

    /// Asks again for channels that were refused and are still wanted. Returns true if
    /// there were any.
    pub(super) fn retry(&mut self, now: Instant) -> bool {
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.refused).into_iter().partition(|(at, _)| *at <= now);
        self.refused = later;
        let due: Vec<_> = due.into_iter().filter(|(_, c)| self.channels.contains_key(c)).collect();
        for (_, channel) in &due {
            self.ask(channel);
        }
        !due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::*;

    fn name(n: usize) -> ChannelName {
        format!("c:{n}").parse().unwrap()
    }

    fn want(
        wanted: &mut SubscriptionTable,
        n: usize,
    ) -> watch::Receiver<Option<Result<(), crate::broker::BrokerError>>> {
        let (confirmation, answer) = watch::channel(None);
        wanted.channels.entry(name(n)).or_default().confirmations.push(confirmation);
        wanted.ask(&name(n));
        answer
    }

    /// What the gateway is told, as words.
    fn words(events: [Option<Event>; 2]) -> Vec<String> {
        all_words(events.into_iter().flatten().collect())
    }

    fn all_words(events: Vec<Event>) -> Vec<String> {
        let word = |event| match event {
            Event::Interrupted(_, reason, _) => format!("interrupted {}", reason.label()),
            Event::Subscribed(_, s) => {
                format!(
                    "subscribed {} for {}",
                    if s.fresh { "anew" } else { "again" },
                    s.confirmations.len()
                )
            }
            Event::Publication(p) => p.position.map_or("plain".to_owned(), |p| p.to_string()),
            Event::Control(_) => "?".to_owned(),
        };
        events.into_iter().map(word).collect()
    }

    #[test]
    fn everything_wanted_is_asked_for_on_each_connection_control_first() {
        let mut wanted = SubscriptionTable::default();
        for n in 0..20 {
            want(&mut wanted, n);
        }
        wanted.channels.entry(ChannelName::control()).or_default();
        assert!(wanted.ops.is_empty(), "there is no connection");

        wanted.begin();
        assert!(matches!(&wanted.ops[0], Operation::Subscribe(c) if *c == ChannelName::control()));
        assert_eq!(wanted.ops.len(), 21);
        assert_eq!(words(wanted.on_confirmed("c:7")), ["subscribed anew for 1"]);

        // After a reconnect the interruption is told before anything that follows, together with
        // the answer to all requests since.
        wanted.end();
        want(&mut wanted, 7);
        want(&mut wanted, 7);
        wanted.begin();
        let told = ["interrupted broker_reconnected", "subscribed again for 2"];
        assert_eq!(words(wanted.on_confirmed("c:7")), told);
        assert_eq!(words(wanted.on_confirmed("c:8")), ["subscribed anew for 1"]);
        assert!(words(wanted.on_confirmed("nobody")).is_empty());

        // A subscriber joins while that is under way. Publications arrive from the first answer on,
        // but the interruption used to wait for the second one.
        wanted.end();
        wanted.begin();
        want(&mut wanted, 7);
        assert_eq!(words(wanted.on_confirmed("c:7")), ["interrupted broker_reconnected"]);
        let told = ["interrupted broker_reconnected", "subscribed again for 1"];
        assert_eq!(words(wanted.on_confirmed("c:7")), told);
    }

    #[test]
    fn only_the_last_answer_of_a_channel_given_up_and_wanted_again_counts() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        want(&mut wanted, 1);
        wanted.give_up(&name(1));
        want(&mut wanted, 1);
        assert!(words(wanted.on_confirmed("c:1")).is_empty());
        assert!(!wanted.ended_unasked("c:1"), "that was asked for");
        assert_eq!(words(wanted.on_confirmed("c:1")), ["subscribed anew for 1"]);
        assert!(wanted.ended_unasked("c:1"), "and that was not");
    }

    #[test]
    fn what_was_lost_beside_the_connection_is_said_with_it() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        want(&mut wanted, 1);
        words(wanted.on_confirmed("c:1"));
        wanted.end();
        wanted.channels.get_mut("c:1").unwrap().lost = true;
        wanted.begin();
        assert_eq!(words(wanted.on_confirmed("c:1")), ["interrupted history_lost"]);
    }

    /// The steps of one subscription: it is taken out of the queue, it is confirmed, and its
    /// position is read.
    fn round(wanted: &mut SubscriptionTable, offset: Option<u64>) -> Vec<String> {
        let (channel, _) = wanted.take_op(true).unwrap();
        assert!(words(wanted.on_confirmed(channel.as_str())).is_empty());
        let position = offset.and_then(|offset| Position::new("e", offset));
        all_words(wanted.on_position(channel.as_str(), position))
    }

    fn follow(wanted: &mut SubscriptionTable) {
        want(wanted, 1);
        wanted.channels.get_mut("c:1").unwrap().tracking = Tracking::Follow;
    }

    fn publication(offset: Option<u64>) -> Publication {
        let position = offset.and_then(|offset| Position::new("e", offset));
        let payload = bytes::Bytes::from_static(b"1");
        Publication { channel: name(1), payload, position, cut: None, published: None }
    }

    #[test]
    fn who_follows_a_history_is_answered_when_it_is_known_where_it_stands() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        follow(&mut wanted);
        wanted.take_op(true).unwrap();
        assert!(words(wanted.on_confirmed("c:1")).is_empty());

        // The connection is lost before that. The gateway has not been told that the channel was
        // live, so nothing is interrupted.
        wanted.end();
        assert!(!wanted.is_behind());
        wanted.begin();
        assert_eq!(round(&mut wanted, None), ["subscribed anew for 1"]);

        // The channel is asked for again meanwhile: the last answer counts for all.
        want(&mut wanted, 1);
        wanted.take_op(true).unwrap();
        want(&mut wanted, 1);
        assert!(words(wanted.on_confirmed("c:1")).is_empty());
        assert!(wanted.on_position("c:1", Position::new("e", 1)).is_empty());
        assert_eq!(round(&mut wanted, Some(1)), ["subscribed again for 2"]);

        // The position is told even if there is nobody to answer.
        wanted.end();
        assert!(wanted.is_behind());
        wanted.begin();
        assert!(!wanted.has_caught_up());
        let told = ["interrupted broker_reconnected", "subscribed again for 0"];
        assert_eq!(round(&mut wanted, Some(2)), told);
        assert!(wanted.has_caught_up() && !wanted.is_behind());
    }

    /// Publications that arrive between the confirmation and that answer are passed on behind the
    /// answer, or are covered by it.
    #[test]
    fn what_comes_before_it_is_known_where_the_history_stands_waits() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        follow(&mut wanted);
        wanted.take_op(true).unwrap();
        words(wanted.on_confirmed("c:1"));

        for offset in [Some(6), None, Some(7), Some(8)] {
            assert!(wanted.hold(publication(offset)).is_none());
        }
        let told = all_words(wanted.on_position("c:1", Position::new("e", 7)));
        assert_eq!(told, ["subscribed anew for 1", "plain", "e-8"]);
        assert!(wanted.hold(publication(Some(9))).is_some());

        // After an interruption the gateway decides about each publication.
        wanted.end();
        wanted.begin();
        wanted.take_op(true).unwrap();
        words(wanted.on_confirmed("c:1"));
        assert!(wanted.hold(publication(Some(10))).is_none());
        let told = all_words(wanted.on_position("c:1", Position::new("e", 10)));
        assert_eq!(told, ["interrupted broker_reconnected", "subscribed again for 0", "e-10"]);

        // Publications on a channel that stayed live do not wait.
        want(&mut wanted, 1);
        wanted.take_op(true).unwrap();
        words(wanted.on_confirmed("c:1"));
        assert!(wanted.hold(publication(Some(11))).is_some());
        assert_eq!(all_words(wanted.on_position("c:1", None)), ["subscribed again for 1"]);
    }

    #[test]
    fn too_much_of_it_is_an_interruption() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        follow(&mut wanted);
        wanted.take_op(true).unwrap();
        words(wanted.on_confirmed("c:1"));

        for offset in 1..10_000 {
            assert!(wanted.hold(publication(Some(offset))).is_none());
        }

        let told = all_words(wanted.on_position("c:1", None));
        assert_eq!(told.first().unwrap(), "subscribed anew for 1");
        assert_eq!(told.last().unwrap(), "interrupted overflow");
        assert!(told.len() < 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_asked_for_again_when_it_is_time() {
        let mut wanted = SubscriptionTable::default();
        wanted.begin();
        want(&mut wanted, 1);
        want(&mut wanted, 2);
        wanted.ops.clear();
        let later = Instant::now() + Duration::from_secs(5);
        wanted.refused = vec![(later, name(1)), (later, name(9))];
        assert!(!wanted.retry(Instant::now()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(wanted.retry(Instant::now()));
        assert_eq!(wanted.ops.len(), 1, "the other one is not wanted any more");
        assert!(!wanted.retry(Instant::now()));
    }
}
