//! Carries out the operations that are due on a subscribing connection: SUBSCRIBE, UNSUBSCRIBE,
//! reading positions, and what follows if the server refuses some of them.
//!
//! Not here: which operations are due (`subscription_table`).

use std::time::Duration;

use futures_util::future::join_all;
use redis::{RedisError, Value};
use tokio::time::Instant;

use super::SubscribingConnection;
use crate::broker::redis::connect::MasterConnection;
use crate::broker::redis::core::Role;
use crate::broker::redis::fault::{self, Fault};
use crate::broker::redis::history;
use crate::broker::redis::subscription_table::Operation;
use crate::broker::{Event, Tracking};
use crate::channel::{ChannelName, GapReason, Position};
use crate::metrics;

/// Most channels in one SUBSCRIBE.
const PER_COMMAND: usize = 512;
/// The interval at which histories without a publication are opened again: Redis keeps them
/// for an hour.
const KEEP_OPEN: Duration = Duration::from_secs(20 * 60);
/// Most channels whose operations are sent together.
const PER_ROUND: usize = 1024;
/// A round that follows the previous one sooner than this waits for this long, so that more
/// operations join it: in a rush of new connections, one command for each would cost more than
/// everything else about them. A lone subscription does not wait.
const PACE: Duration = Duration::from_millis(1);
/// The time before another attempt at a channel that Redis refuses, and at one that was not on the
/// server where it was expected.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl SubscribingConnection {
    /// Takes the next operations of one kind. The flag is true if they are subscriptions.
    fn next_ops(&self) -> Option<(bool, Vec<(ChannelName, Tracking)>)> {
        let mut table = self.table.lock();
        let subscribe = matches!(table.ops.front()?, Operation::Subscribe(_));
        let mut names = Vec::new();
        while names.len() < PER_ROUND {
            let Some(op) = table.take_op(subscribe) else { break };
            names.push(op);
        }
        Some((subscribe, names))
    }

    /// Carries out the queued operations in order, until one fails because of the connection.
    pub(super) async fn operate(&self, master: &MasterConnection) -> String {
        let mut last = Instant::now();

        loop {
            if self.table.lock().has_caught_up() {
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
                self.subscribe_to(master, &names).await
            } else {
                self.command_all(master, false, &names).await
            };

            if let Err(e) = carried_out {
                return fault::describe(&e);
            }
        }
    }

    /// Subscribes, and then reads the positions of the followed histories for those that wait. A
    /// reading before the subscription would leave out what is published in between.
    async fn subscribe_to(
        &self,
        master: &MasterConnection,
        names: &[(ChannelName, Tracking)],
    ) -> Result<(), RedisError> {
        self.command_all(master, true, names).await?;

        let is_tracked = |(_, tracking): &&(ChannelName, Tracking)| *tracking > Tracking::Off;
        let tracked: Vec<_> = names.iter().filter(is_tracked).cloned().collect();
        let positions = self.read_positions(master, &tracked).await?;
        let mut table = self.table.lock();
        let events = positions.into_iter().flat_map(|(c, at)| table.on_position(c.as_str(), at));
        events.for_each(|event| self.core.events.push(event));
        Ok(())
    }

    /// Sends the commands for all of these channels together.
    async fn command_all(
        &self,
        master: &MasterConnection,
        subscribe: bool,
        names: &[(ChannelName, Tracking)],
    ) -> Result<(), RedisError> {
        let names: Vec<_> = names.iter().map(|(channel, _)| self.core.key(channel)).collect();

        let commands = self.batches(&names).into_iter().map(|batch| async move {
            let result = self.command(master, subscribe, &batch).await;
            (batch, result)
        });

        for (batch, result) in join_all(commands).await {
            match result {
                Ok(()) => {}
                // Messages of a channel that could not be unsubscribed keep arriving, and nobody
                // receives them.
                Err(e) if !subscribe && Fault::of(&e).is_an_answer() => {}
                Err(e) if Fault::of(&e).is_an_answer() && batch.len() == 1 => {
                    self.refuse(&batch[0], &e);
                }
                Err(e) if Fault::of(&e).is_an_answer() => self.one_by_one(master, &batch).await?,
                Err(e) => return Err(e),
            }
        }

        Ok(())
    }

    /// Splits names into commands. In a cluster the channels of one command would have to share a
    /// slot, and the library expects one confirmation for a command that it does not know.
    fn batches(&self, names: &[String]) -> Vec<Vec<String>> {
        let size = if self.core.is_cluster() { 1 } else { PER_COMMAND };
        names.chunks(size).map(<[String]>::to_vec).collect()
    }

    pub(super) async fn command(
        &self,
        master: &MasterConnection,
        subscribe: bool,
        names: &[String],
    ) -> Result<(), RedisError> {
        let mut connection = master.connection.clone();
        match (self.core.is_cluster(), subscribe) {
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

    /// Reads the current positions of these channels' histories.
    async fn read_positions(
        &self,
        master: &MasterConnection,
        tracked: &[(ChannelName, Tracking)],
    ) -> Result<Vec<(ChannelName, Option<Position>)>, RedisError> {
        let reads = tracked.iter().map(|(channel, tracking)| async move {
            let key = self.core.key(channel);
            (channel, history::position(&self.core, master, &key, *tracking).await)
        });

        let mut positions = Vec::with_capacity(tracked.len());
        for (channel, position) in join_all(reads).await {
            let position = match position {
                Ok(position) => position,
                Err(e) if Fault::of(&e).is_an_answer() => {
                    let error = format!("{channel}: {}", fault::describe(&e));
                    let what = "cannot read a channel's position";
                    self.core.note(Role::Subscriber, &self.server, what, &error);
                    None
                }
                Err(e) => return Err(e),
            };

            positions.push((channel.clone(), position));
        }

        Ok(positions)
    }

    /// Keeps histories open, and reads positions again when that is asked for, until the connection
    /// fails. Returns the reason.
    pub(super) async fn keep_histories(&self, master: &MasterConnection) -> String {
        loop {
            let kept = tokio::select! {
                () = tokio::time::sleep(KEEP_OPEN) => self.keep_open(master).await,
                () = self.renew.notified() => self.read_again(master).await,
            };
            if let Err(e) = kept {
                return fault::describe(&e);
            }
        }
    }

    /// Opens the histories that have to exist again, so that the empty ones do not end.
    async fn keep_open(&self, master: &MasterConnection) -> Result<(), RedisError> {
        for chunk in self.followed(Tracking::Create).chunks(PER_COMMAND) {
            let opened = chunk.iter().map(|(channel, _)| async move {
                history::open(&self.core, master, &self.core.key(channel)).await
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

    /// Reads the positions of the followed histories again. A new epoch says by itself
    /// what that means.
    async fn read_again(&self, master: &MasterConnection) -> Result<(), RedisError> {
        for chunk in self.followed(Tracking::Follow).chunks(PER_COMMAND) {
            let positions = self.read_positions(master, chunk).await?;
            let table = self.table.lock();
            for (channel, position) in positions {
                if table.channels.get(&channel).is_some_and(|want| want.live) {
                    let reason = GapReason::BrokerReconnected;
                    self.core.events.push(Event::Interrupted(channel, reason, position));
                }
            }
        }
        Ok(())
    }

    /// The channels whose history is followed at least that closely.
    fn followed(&self, tracking: Tracking) -> Vec<(ChannelName, Tracking)> {
        let table = self.table.lock();
        let closely = table.channels.iter().filter(|(_, want)| want.tracking >= tracking);
        closely.map(|(channel, want)| (channel.clone(), want.tracking)).collect()
    }

    /// Finds out which channel made Redis refuse a whole command (ACL, slot), by asking
    /// for each alone.
    async fn one_by_one(
        &self,
        master: &MasterConnection,
        names: &[String],
    ) -> Result<(), RedisError> {
        for name in names {
            if let Err(e) = self.command(master, true, std::slice::from_ref(name)).await {
                if !Fault::of(&e).is_an_answer() {
                    return Err(e);
                }
                self.refuse(name, &e);
            }
        }
        Ok(())
    }

    /// Answers the subscribers that wait for a channel that Redis refused. If the channel was
    /// live before, its clients are told that it is live no longer, and it is asked for again
    /// after a while.
    fn refuse(&self, name: &str, error: &RedisError) {
        let moved = fault::is_moved(error);
        if moved {
            self.core.directory.doubt();
        } else {
            metrics::redis_error(Fault::of(error).label());
            let error = format!("{name}: {}", fault::describe(error));
            self.core.note(Role::Subscriber, &self.server, "Redis refused SUBSCRIBE", &error);
        }

        let Some(name) = self.core.strip(name.as_bytes()) else { return };
        let mut table = self.table.lock();
        if !table.answered(name) {
            return;
        }

        let Some((channel, _)) = table.channels.get_key_value(name) else { return };
        let channel = channel.clone();
        let Some(want) = table.interrupt(name) else { return };
        if moved {
            table.refused.push((Instant::now() + LOOK_AGAIN, channel));
            return;
        }

        for confirmation in want.confirmations.drain(..) {
            confirmation.send_replace(Some(Err(fault::classify(error))));
        }

        if !want.gap_due && !channel.is_control() {
            table.channels.remove(name);
            return;
        }

        want.refused = true;
        let reason = GapReason::BrokerRefused;
        self.core.events.push(Event::Interrupted(channel.clone(), reason, None));
        table.refused.push((Instant::now() + ASK_AGAIN, channel));
    }

    /// Asks again for refused channels, at intervals; never returns.
    pub(super) async fn ask_again(&self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK_AGAIN / 2).await;
            if self.table.lock().retry(Instant::now()) {
                self.changed.notify_one();
            }
        }
    }
}
