//! Carrying out a connection's operations: positions, SUBSCRIBE, UNSUBSCRIBE, and what to do about a
//! server that refuses some of them.

use std::time::Duration;

use futures_util::future::join_all;
use redis::{RedisError, Value};
use tokio::time::Instant;

use super::super::fault::{self, Fault};
use super::super::wanted::Op;
use super::super::{Role, connect, history};
use super::Subscriber;
use crate::broker::{Event, Track};
use crate::channel::{ChannelName, GapReason, Position};
use crate::metrics;

/// Channels in one SUBSCRIBE.
const PER_COMMAND: usize = 512;
/// Histories without a publication are opened again this often: they last an hour.
const KEEP_OPEN: Duration = Duration::from_secs(20 * 60);
/// Channels whose operations go out together.
const PER_ROUND: usize = 1024;
/// Rounds that follow each other so soon wait so long for company: in a rush of new connections a
/// command for each would cost more than all the rest of them. A lone subscription does not wait.
const PACE: Duration = Duration::from_millis(1);
/// Between two attempts at a channel that Redis refuses, and at one that was not where it was
/// looked for.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Subscriber {
    /// The next operations of one kind; true for subscriptions.
    fn next_ops(&self) -> Option<(bool, Vec<(ChannelName, Track)>)> {
        let mut wanted = self.wanted.lock();
        let subscribe = matches!(wanted.ops.front()?, Op::Subscribe(_));
        let mut names = Vec::new();
        while names.len() < PER_ROUND {
            let Some(op) = wanted.take_op(subscribe) else { break };
            names.push(op);
        }
        Some((subscribe, names))
    }

    /// Carries out what was asked, in order, until an operation fails for the connection's sake.
    pub(super) async fn operate(&self, link: &connect::Link) -> String {
        let mut last = Instant::now();
        loop {
            if self.wanted.lock().has_caught_up() {
                self.hearing.caught_up();
            }
            let Some((subscribe, names)) = self.next_ops() else {
                self.changed.notified().await;
                if last.elapsed() < PACE {
                    tokio::time::sleep(PACE).await;
                }
                last = Instant::now();
                continue;
            };
            let carried_out = if subscribe {
                self.subscribe_to(link, &names).await
            } else {
                self.command_all(link, false, &names).await
            };
            if let Err(e) = carried_out {
                return fault::describe(&e);
            }
        }
    }

    /// Subscribes, and answers who waits for channels with histories with where these stand then: a look
    /// before it would leave out what is published in between.
    async fn subscribe_to(
        &self,
        link: &connect::Link,
        names: &[(ChannelName, Track)],
    ) -> Result<(), RedisError> {
        self.command_all(link, true, names).await?;

        let is_tracked = |(_, track): &&(ChannelName, Track)| *track > Track::No;
        let tracked: Vec<_> = names.iter().filter(is_tracked).cloned().collect();
        let positions = self.read_positions(link, &tracked).await?;
        let mut wanted = self.wanted.lock();
        let events = positions.into_iter().flat_map(|(c, at)| wanted.stands(c.as_str(), at));
        events.for_each(|event| self.shared.events.push(event));
        Ok(())
    }

    /// Sends commands for all of these channels, together.
    async fn command_all(
        &self,
        link: &connect::Link,
        subscribe: bool,
        names: &[(ChannelName, Track)],
    ) -> Result<(), RedisError> {
        let names: Vec<_> = names.iter().map(|(channel, _)| self.shared.key(channel)).collect();
        let commands = self.batches(&names).into_iter().map(|batch| async move {
            let result = self.command(link, subscribe, &batch).await;
            (batch, result)
        });
        for (batch, result) in join_all(commands).await {
            match result {
                Ok(()) => {}
                // What could not be given up goes on arriving, and nobody is there to have it.
                Err(e) if !subscribe && Fault::of(&e).is_an_answer() => {}
                Err(e) if Fault::of(&e).is_an_answer() && batch.len() == 1 => {
                    self.refuse(&batch[0], &e);
                }
                Err(e) if Fault::of(&e).is_an_answer() => self.one_by_one(link, &batch).await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// In a cluster the channels of one command would have to share a slot, and the library counts
    /// one confirmation to a command that it does not know.
    fn batches(&self, names: &[String]) -> Vec<Vec<String>> {
        let size = if self.shared.is_cluster() { 1 } else { PER_COMMAND };
        names.chunks(size).map(<[String]>::to_vec).collect()
    }

    pub(super) async fn command(
        &self,
        link: &connect::Link,
        subscribe: bool,
        names: &[String],
    ) -> Result<(), RedisError> {
        let mut connection = link.connection.clone();
        match (self.shared.is_cluster(), subscribe) {
            (false, true) => connection.subscribe(names).await,
            (false, false) => connection.unsubscribe(names).await,
            (true, _) => {
                let command = if subscribe { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" };
                let mut command = redis::cmd(command);
                command.arg(names);
                fault::ask::<Value>(&mut connection, &command).await.map(|_| ())
            }
        }
    }

    /// Where the histories of these channels stand now.
    async fn read_positions(
        &self,
        link: &connect::Link,
        tracked: &[(ChannelName, Track)],
    ) -> Result<Vec<(ChannelName, Option<Position>)>, RedisError> {
        let reads = tracked.iter().map(|(channel, track)| async move {
            let key = self.shared.key(channel);
            (channel, history::position(&self.shared, link, &key, *track).await)
        });
        let mut positions = Vec::with_capacity(tracked.len());
        for (channel, position) in join_all(reads).await {
            let position = match position {
                Ok(position) => position,
                Err(e) if Fault::of(&e).is_an_answer() => {
                    let error = format!("{channel}: {}", fault::describe(&e));
                    let what = "cannot read a channel's position";
                    self.shared.note(Role::Subscriber, &self.server, what, &error);
                    None
                }
                Err(e) => return Err(e),
            };
            positions.push((channel.clone(), position));
        }
        Ok(positions)
    }

    /// Returns only what ended it.
    pub(super) async fn keep_histories(&self, link: &connect::Link) -> String {
        loop {
            let kept = tokio::select! {
                () = tokio::time::sleep(KEEP_OPEN) => self.keep_open(link).await,
                () = self.renew.notified() => self.read_again(link).await,
            };
            if let Err(e) = kept {
                return fault::describe(&e);
            }
        }
    }

    async fn keep_open(&self, link: &connect::Link) -> Result<(), RedisError> {
        for chunk in self.followed(Track::Open).chunks(PER_COMMAND) {
            let opened = chunk.iter().map(|(channel, _)| async move {
                history::open(&self.shared, link, &self.shared.key(channel)).await
            });
            for result in join_all(opened).await {
                match result {
                    Err(e) if !Fault::of(&e).is_an_answer() => return Err(e),
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Where the tracked histories stand now. Another epoch says by itself what that means.
    async fn read_again(&self, link: &connect::Link) -> Result<(), RedisError> {
        for chunk in self.followed(Track::Read).chunks(PER_COMMAND) {
            let positions = self.read_positions(link, chunk).await?;
            let wanted = self.wanted.lock();
            for (channel, position) in positions {
                if wanted.channels.get(&channel).is_some_and(|want| want.live) {
                    let reason = GapReason::BrokerReconnected;
                    self.shared.events.push(Event::Interrupted(channel, reason, position));
                }
            }
        }
        Ok(())
    }

    /// The channels that are followed that closely, or more.
    fn followed(&self, track: Track) -> Vec<(ChannelName, Track)> {
        let wanted = self.wanted.lock();
        let closely = wanted.channels.iter().filter(|(_, want)| want.track >= track);
        closely.map(|(channel, want)| (channel.clone(), want.track)).collect()
    }

    /// Redis refuses a whole command for the sake of one channel (ACL, slot): which one was it?
    async fn one_by_one(&self, link: &connect::Link, names: &[String]) -> Result<(), RedisError> {
        for name in names {
            if let Err(e) = self.command(link, true, std::slice::from_ref(name)).await {
                if !Fault::of(&e).is_an_answer() {
                    return Err(e);
                }
                self.refuse(name, &e);
            }
        }
        Ok(())
    }

    /// Answers the waiting subscribers of a channel that Redis refused. Where the channel was live
    /// before, its sockets are told that it is not, and it is asked for again after a while.
    fn refuse(&self, name: &str, error: &RedisError) {
        let moved = fault::is_moved(error);
        if moved {
            self.shared.directory.doubt();
        } else {
            metrics::redis_error(Fault::of(error).label());
            let error = format!("{name}: {}", fault::describe(error));
            self.shared.note(Role::Subscriber, &self.server, "Redis refused SUBSCRIBE", &error);
        }
        let Some(name) = self.shared.strip(name.as_bytes()) else { return };
        let mut wanted = self.wanted.lock();
        if !wanted.answered(name) {
            return;
        }
        let Some((channel, _)) = wanted.channels.get_key_value(name) else { return };
        let channel = channel.clone();
        let Some(want) = wanted.interrupt(name) else { return };
        if moved {
            wanted.refused.push((Instant::now() + LOOK_AGAIN, channel));
            return;
        }
        for confirmation in want.confirmations.drain(..) {
            confirmation.send_replace(Some(Err(fault::classify(error))));
        }
        if !want.gap_due && !channel.is_control() {
            wanted.channels.remove(name);
            return;
        }
        want.refused = true;
        let reason = GapReason::BrokerRefused;
        self.shared.events.push(Event::Interrupted(channel.clone(), reason, None));
        wanted.refused.push((Instant::now() + ASK_AGAIN, channel));
    }

    /// Asks again for what was refused, now and then; never returns.
    pub(super) async fn ask_again(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK_AGAIN / 2).await;
            if self.wanted.lock().retry(Instant::now()) {
                self.changed.notify_one();
            }
        }
    }
}
