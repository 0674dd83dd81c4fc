//! What one subscribing connection is to have: a table of channels, and the operations that are due.
//!
//! Pure: no connection. Invariant: a channel that was live and is not any more gets its
//! `Interrupted` when, and not before, it is confirmed again, and before anything published after.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::broker::{Confirmation, Event, Subscribed, Track};
use crate::channel::{ChannelName, GapReason, Position};
use crate::sizes::shrink;

/// A channel that the gateway wants.
#[derive(Default)]
pub(super) struct Want {
    pub(super) confirmations: Vec<Confirmation>,
    /// Confirmed on the current connection.
    pub(super) live: bool,
    /// It was live before the connection was lost.
    pub(super) gap_due: bool,
    /// And whatever its history says, something else may be missing.
    pub(super) lost: bool,
    pub(super) track: Track,
    /// Where its history stood before the subscription that is on its way, for an interruption.
    pub(super) position: Option<Position>,
    /// Whoever waits is answered when it is known where the history stands behind the confirmation.
    pub(super) position_due: bool,
    /// It is live, had not been before, and that was not told yet.
    fresh: bool,
}

impl Want {
    /// Somebody asks for it. What is known of it stays: a gap may be due.
    pub(super) fn add(&mut self, track: Track, confirmation: Option<Confirmation>) {
        self.track = self.track.max(track);
        self.confirmations.extend(confirmation);
    }

    fn reason(&self) -> GapReason {
        if self.lost { GapReason::HistoryLost } else { GapReason::BrokerReconnected }
    }

    /// No longer live, for a reason that is not the gateway's wish.
    pub(super) fn interrupt(&mut self) {
        let was_told = std::mem::take(&mut self.live) && !std::mem::take(&mut self.fresh);
        self.gap_due |= was_told;
        self.position_due = false;
    }

    /// The answer to all who have asked; `None` where it would say nothing.
    fn subscribed(&mut self, channel: ChannelName, position: Option<Position>) -> Option<Event> {
        let confirmations = std::mem::take(&mut self.confirmations);
        let fresh = std::mem::take(&mut self.fresh);
        let says_something = !confirmations.is_empty() || position.is_some();
        says_something
            .then(|| Event::Subscribed(channel, Subscribed { confirmations, position, fresh }))
    }
}

pub(super) enum Op {
    Subscribe(ChannelName),
    Unsubscribe(ChannelName),
}

type Names<T> = HashMap<ChannelName, T, ahash::RandomState>;

#[derive(Default)]
pub(super) struct Wanted {
    pub(super) channels: Names<Want>,
    pub(super) ops: VecDeque<Op>,
    /// Subscriptions asked for on this connection and not yet confirmed, by channel. A channel that
    /// was given up and wanted again has two on the way, and only the last one's answer counts.
    unconfirmed: Names<u32>,
    /// Ends of subscriptions that were asked for and are not confirmed yet.
    leaving: Names<u32>,
    /// Channels that the server would not give: asked for again at that moment.
    pub(super) refused: Vec<(Instant, ChannelName)>,
    /// Without a connection no operations are queued: the next one subscribes to everything.
    pub(super) connected: bool,
}

impl Wanted {
    /// The server answered one subscription to this channel: was it the last one on the way?
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

    /// Queues a subscription, if there is a connection to make it on.
    pub(super) fn ask(&mut self, channel: &ChannelName) {
        if self.connected {
            self.ops.push_back(Op::Subscribe(channel.clone()));
            *self.unconfirmed.entry(channel.clone()).or_default() += 1;
        }
    }

    /// Takes a channel out; the server is told.
    pub(super) fn give_up(&mut self, channel: &ChannelName) -> Option<Want> {
        let want = self.channels.remove(channel)?;
        shrink(&mut self.channels);
        if self.connected {
            self.ops.push_back(Op::Unsubscribe(channel.clone()));
            *self.leaving.entry(channel.clone()).or_default() += 1;
        }
        Some(want)
    }

    /// The server says that a subscription has ended: true if nobody asked for that.
    pub(super) fn ended_unasked(&mut self, name: &str) -> bool {
        let Some(left) = self.leaving.get_mut(name) else { return true };
        *left -= 1;
        if *left == 0 {
            self.leaving.remove(name);
            shrink(&mut self.leaving);
        }
        false
    }

    /// A new connection: everything wanted is to be subscribed on it, control first: a subscription
    /// must not be live on a replica that cannot be told to end it.
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
    }

    /// The connection is lost.
    pub(super) fn end(&mut self) {
        self.connected = false;
        self.ops = VecDeque::new();
        self.unconfirmed = HashMap::default();
        self.leaving = HashMap::default();
        self.refused = Vec::new();
        self.channels.values_mut().for_each(Want::interrupt);
    }

    /// The channel's subscription is confirmed: what the gateway is to be told, in this order. Of a tracked
    /// channel [`Wanted::stands`] says the rest.
    pub(super) fn confirmed(&mut self, name: &str) -> [Option<Event>; 2] {
        if !self.answered(name) {
            // Another answer is on the way, but publications come from this one on. What is due stays due:
            // the subscription may be ended in between.
            let due = self.channels.get_key_value(name).filter(|(_, want)| want.gap_due);
            let due = due.map(|(channel, want)| {
                Event::Interrupted(channel.clone(), want.reason(), want.position.clone())
            });
            return [due, None];
        }
        let Some((channel, _)) = self.channels.get_key_value(name) else {
            return [None, None];
        };
        let channel = channel.clone();
        let Some(want) = self.channels.get_mut(name) else {
            return [None, None];
        };
        want.fresh |= !want.live && !want.gap_due;
        want.live = true;
        let position = want.position.take();
        let interrupted = std::mem::take(&mut want.gap_due).then(|| {
            let reason = want.reason();
            want.lost = false;
            Event::Interrupted(channel.clone(), reason, position)
        });
        if want.position_due {
            return [interrupted, None];
        }
        [interrupted, want.subscribed(channel, None)]
    }

    /// Where the channel's history stands behind the confirmation: what the gateway is to be told.
    /// Publications that came between a look before and the subscription show by it.
    pub(super) fn stands(&mut self, name: &str, position: Option<Position>) -> Option<Event> {
        if self.unconfirmed.contains_key(name) {
            // Another subscription is on the way, and its answer counts for all.
            return None;
        }
        let channel = self.channels.get_key_value(name)?.0.clone();
        let want = self.channels.get_mut(name).filter(|want| want.live)?;
        want.position_due = false;
        want.subscribed(channel, position)
    }

    /// Asks again for what was refused and is still wanted. True if there was any.
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
        wanted: &mut Wanted,
        n: usize,
    ) -> watch::Receiver<Option<Result<(), crate::broker::BrokerError>>> {
        let (confirmation, answer) = watch::channel(None);
        wanted.channels.entry(name(n)).or_default().confirmations.push(confirmation);
        wanted.ask(&name(n));
        answer
    }

    /// What the gateway is told, as words.
    fn words(events: [Option<Event>; 2]) -> Vec<String> {
        let word = |event| match event {
            Event::Interrupted(_, reason, _) => format!("interrupted {}", reason.label()),
            Event::Subscribed(_, s) => {
                format!(
                    "subscribed {} for {}",
                    if s.fresh { "anew" } else { "again" },
                    s.confirmations.len()
                )
            }
            Event::Publication(_) | Event::Control(_) => "?".to_owned(),
        };
        events.into_iter().flatten().map(word).collect()
    }

    #[test]
    fn everything_wanted_is_asked_for_on_each_connection_control_first() {
        let mut wanted = Wanted::default();
        for n in 0..20 {
            want(&mut wanted, n);
        }
        wanted.channels.entry(ChannelName::control()).or_default();
        assert!(wanted.ops.is_empty(), "there is no connection");
        wanted.begin();
        assert!(matches!(&wanted.ops[0], Op::Subscribe(c) if *c == ChannelName::control()));
        assert_eq!(wanted.ops.len(), 21);
        assert_eq!(words(wanted.confirmed("c:7")), ["subscribed anew for 1"]);
        // Lost and made again: said before anything that follows, with a word for who has waited since.
        wanted.end();
        want(&mut wanted, 7);
        want(&mut wanted, 7);
        wanted.begin();
        let told = ["interrupted broker_reconnected", "subscribed again for 2"];
        assert_eq!(words(wanted.confirmed("c:7")), told);
        assert_eq!(words(wanted.confirmed("c:8")), ["subscribed anew for 1"]);
        assert!(words(wanted.confirmed("nobody")).is_empty());
        // Somebody comes while that is under way: publications flow from the first answer on, and the
        // interruption used to wait for the second.
        wanted.end();
        wanted.begin();
        want(&mut wanted, 7);
        assert_eq!(words(wanted.confirmed("c:7")), ["interrupted broker_reconnected"]);
        let told = ["interrupted broker_reconnected", "subscribed again for 1"];
        assert_eq!(words(wanted.confirmed("c:7")), told);
    }

    #[test]
    fn only_the_last_answer_of_a_channel_given_up_and_wanted_again_counts() {
        let mut wanted = Wanted::default();
        wanted.begin();
        want(&mut wanted, 1);
        wanted.give_up(&name(1));
        want(&mut wanted, 1);
        assert!(words(wanted.confirmed("c:1")).is_empty());
        assert!(!wanted.ended_unasked("c:1"), "that was asked for");
        assert_eq!(words(wanted.confirmed("c:1")), ["subscribed anew for 1"]);
        assert!(wanted.ended_unasked("c:1"), "and that was not");
    }

    #[test]
    fn what_was_lost_beside_the_connection_is_said_with_it() {
        let mut wanted = Wanted::default();
        wanted.begin();
        want(&mut wanted, 1);
        words(wanted.confirmed("c:1"));
        wanted.end();
        wanted.channels.get_mut("c:1").unwrap().lost = true;
        wanted.begin();
        assert_eq!(words(wanted.confirmed("c:1")), ["interrupted history_lost"]);
    }

    #[test]
    fn who_follows_a_history_is_answered_when_it_is_known_where_it_stands() {
        let mut wanted = Wanted::default();
        wanted.begin();
        want(&mut wanted, 1);
        let due = |wanted: &mut Wanted| wanted.channels.get_mut("c:1").unwrap().position_due = true;
        due(&mut wanted);
        assert!(words(wanted.confirmed("c:1")).is_empty());
        // Lost before that: nobody has been told that it was live, so nothing is interrupted.
        wanted.end();
        wanted.begin();
        due(&mut wanted);
        assert!(words(wanted.confirmed("c:1")).is_empty());
        assert_eq!(words([wanted.stands("c:1", None), None]), ["subscribed anew for 1"]);
        // Asked again meanwhile: the last answer is for all.
        want(&mut wanted, 1);
        due(&mut wanted);
        assert!(words(wanted.confirmed("c:1")).is_empty());
        want(&mut wanted, 1);
        assert!(wanted.stands("c:1", Position::new("e", 1)).is_none());
        due(&mut wanted);
        assert!(words(wanted.confirmed("c:1")).is_empty());
        let told = words([wanted.stands("c:1", Position::new("e", 1)), None]);
        assert_eq!(told, ["subscribed again for 2"]);
        // With nobody to answer, where it stands is told all the same.
        wanted.end();
        wanted.begin();
        due(&mut wanted);
        assert_eq!(words(wanted.confirmed("c:1")), ["interrupted broker_reconnected"]);
        let told = words([wanted.stands("c:1", Position::new("e", 2)), None]);
        assert_eq!(told, ["subscribed again for 0"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_asked_for_again_when_it_is_time() {
        let mut wanted = Wanted::default();
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
