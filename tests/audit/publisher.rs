//! Publishers: one task and one connection for each stream, every answer awaited before the next
//! event. They find the master by themselves, as backends do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tollgate_support::redis::{MASTER, connect};

use super::record::{Clock, Kind, Position, Published, Shared, StreamLog};

pub const PREFIX: &str = "tollgate:";

/// Where the master is.
#[derive(Clone)]
pub enum Place {
    Fixed(String),
    /// Where a name leads, looked up again and again.
    Named(Shared<String>),
    /// Asked of these Sentinels, again and again.
    Sentinel(Vec<String>),
    /// Follows redirections, from these on.
    Cluster(Vec<String>),
    /// This server for as long as it says that it is a master.
    OldMaster(String),
}

/// How fast publishers publish, and how much. A round may change it.
pub struct Dial {
    pub pause_us: AtomicU64,
    /// Bytes that an event is filled up with.
    pub pad: AtomicUsize,
    /// Events in one MULTI.
    pub batch: AtomicUsize,
}

impl Dial {
    pub fn new(pause: Duration) -> Self {
        let pause_us = AtomicU64::new(u64::try_from(pause.as_micros()).unwrap());
        Self { pause_us, pad: AtomicUsize::new(120), batch: AtomicUsize::new(1) }
    }
}

pub struct Publisher {
    pub clock: Clock,
    pub index: usize,
    pub log: Shared<StreamLog>,
    pub place: Place,
    pub dial: Arc<Dial>,
}

/// How long a publisher waits for an answer. Without one nobody knows whether the event exists.
const ANSWER: Duration = Duration::from_millis(1500);
const SWITCH_CHECK: Duration = Duration::from_millis(250);
/// How long after the end of the load a publisher tries to get one last event accepted.
const LAST_WORD: Duration = Duration::from_secs(12);

enum Refusal {
    /// Certainly not published: try again at this address, after `ASKING` if true.
    Moved(String, bool),
    Again,
    Failed(String),
}

impl Publisher {
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let (mut at, mut connection, mut checked) = (String::new(), None, Instant::now());
        let mut stopped: Option<Instant> = None;
        let mut well = false;
        loop {
            if *stop.borrow_and_update() {
                let since = *stopped.get_or_insert_with(Instant::now);
                if well || since.elapsed() > LAST_WORD {
                    return;
                }
            }

            let may_move = matches!(self.place, Place::Sentinel(_) | Place::Named(_));
            if may_move && checked.elapsed() > SWITCH_CHECK {
                checked = Instant::now();
                if let Some(master) = self.find().await
                    && master != at
                {
                    connection = None;
                }
            }

            if connection.is_none() {
                match self.open().await {
                    Some((address, opened)) => (at, connection) = (address, Some(opened)),
                    None if matches!(self.place, Place::OldMaster(_)) => return,
                    None => {
                        sleep(Duration::from_millis(40)).await;
                        continue;
                    }
                }
            }

            let Some(link) = connection.as_mut() else { continue };
            well = self.publish(link).await;
            if !well {
                connection = None;
                if matches!(self.place, Place::OldMaster(_)) {
                    return;
                }
            }

            let pause = self.dial.pause_us.load(Ordering::Relaxed);
            let pause = Duration::from_micros(pause / 2 + fastrand::u64(..=pause));
            if !*stop.borrow() {
                let _ = timeout(pause, stop.changed()).await;
            }
        }
    }

    async fn find(&self) -> Option<String> {
        match &self.place {
            Place::Fixed(address) | Place::OldMaster(address) => Some(address.clone()),
            Place::Named(address) => Some(address.lock().clone()),
            Place::Cluster(seeds) => Some(seeds[fastrand::usize(..seeds.len())].clone()),
            Place::Sentinel(sentinels) => {
                let sentinel = &sentinels[fastrand::usize(..sentinels.len())];
                let mut connection = connect(sentinel).await.ok()?;
                let mut ask = redis::cmd("SENTINEL");
                ask.arg("GET-MASTER-ADDR-BY-NAME").arg(MASTER);
                let (host, port): (String, u16) = ask.query_async(&mut connection).await.ok()?;
                Some(format!("{host}:{port}"))
            }
        }
    }

    async fn open(&self) -> Option<(String, MultiplexedConnection)> {
        let address = self.find().await?;
        Some((address.clone(), connect(&address).await.ok()?))
    }

    /// Publishes the next event, or a batch. Returns false if the connection is unusable.
    async fn publish(&self, connection: &mut MultiplexedConnection) -> bool {
        let batch = self.dial.batch.load(Ordering::Relaxed).max(1);
        let (first, commands) = {
            let mut log = self.log.lock();
            let first = log.published.len();
            let started = self.clock.now();
            let new = Published { started, accepted: false, position: None, error: None };
            log.published.extend(std::iter::repeat_n(new, batch));
            let commands = (first..first + batch).map(|number| self.command(&log, number));
            (first, commands.collect::<Vec<_>>())
        };

        let answers = self.send(connection, &commands).await;
        let mut log = self.log.lock();
        let log = &mut log.published[first..];

        match answers {
            Ok(answers) => {
                for (published, answer) in log.iter_mut().zip(answers) {
                    published.accepted = true;
                    published.position = position(answer);
                }
                true
            }
            Err(error) => {
                log.iter_mut().for_each(|p| p.error = Some(error.clone()));
                false
            }
        }
    }

    fn command(&self, log: &StreamLog, number: usize) -> Cmd {
        let stream = &log.stream;
        let pad = self.dial.pad.load(Ordering::Relaxed);
        let pad = "x".repeat(pad / 2 + fastrand::usize(..=pad / 2));
        let payload = format!(
            "{{\"s\":{},\"n\":{number},\"c\":\"{}\",\"pad\":\"{pad}\"}}",
            self.index, stream.channel
        );

        let key = format!("{PREFIX}{}", stream.channel);
        let mut command;
        match (stream.kind, &self.place) {
            (Kind::Durable, _) => {
                command = redis::cmd("FCALL");
                command.arg("tollgate_publish").arg(1).arg(key).arg(payload);
                command.arg(300).arg(stream.kept);
            }
            (Kind::Plain, Place::Cluster(_)) => {
                command = redis::cmd("SPUBLISH");
                command.arg(key).arg(payload);
            }
            (Kind::Plain, _) => {
                command = redis::cmd("PUBLISH");
                command.arg(key).arg(payload);
            }
        }

        command
    }

    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, String> {
        let began = Instant::now();
        let mut asking = false;

        loop {
            let sent = timeout(ANSWER, self.once(connection, commands, asking)).await;
            let refusal = match sent {
                Ok(Ok(answers)) => return Ok(answers),
                Ok(Err(error)) => error,
                Err(_) => Refusal::Failed("no answer in time".to_owned()),
            };

            match refusal {
                Refusal::Failed(why) => return Err(why),
                _ if began.elapsed() > LAST_WORD => {
                    return Err("redirected for too long".to_owned());
                }
                Refusal::Moved(address, ask) => {
                    asking = ask;
                    let opened = connect(&address).await;
                    *connection = opened.map_err(|e| format!("not published: {e}"))?;
                }
                Refusal::Again => {
                    asking = false;
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    async fn once(
        &self,
        connection: &mut MultiplexedConnection,
        commands: &[Cmd],
        asking: bool,
    ) -> Result<Vec<Value>, Refusal> {
        if let (Place::Cluster(_), [command]) = (&self.place, commands) {
            let answer: RedisResult<Value> = if asking {
                let mut pipe = redis::pipe();
                pipe.cmd("ASKING").ignore().add_command(command.clone());
                pipe.query_async::<(Value,)>(connection).await.map(|(answer,)| answer)
            } else {
                command.query_async(connection).await
            };
            return answer.map(|a| vec![a]).map_err(|e| refusal(&e));
        }

        // A server that is no longer a master accepts a PUBLISH too, for its own subscribers: hence
        // ROLE in the same transaction.
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("ROLE");
        for command in commands {
            pipe.add_command(command.clone());
        }
        let answers: RedisResult<Vec<Value>> = pipe.query_async(connection).await;
        let mut answers = answers.map_err(|e| refusal(&e))?;

        let role = answers.remove(0);
        let role: Vec<Value> = redis::from_redis_value(role).unwrap_or_default();
        let role: Option<String> =
            role.into_iter().next().and_then(|r| redis::from_redis_value(r).ok());
        if role.as_deref() != Some("master") {
            return Err(Refusal::Failed("not a master".to_owned()));
        }

        Ok(answers)
    }
}

fn refusal(error: &RedisError) -> Refusal {
    match (error.code(), error.redirect_node()) {
        (Some("MOVED"), Some((address, _))) => Refusal::Moved(address.to_owned(), false),
        (Some("ASK"), Some((address, _))) => Refusal::Moved(address.to_owned(), true),
        (Some("TRYAGAIN"), _) => Refusal::Again,
        _ => Refusal::Failed(error.to_string()),
    }
}

/// The position in a durable publication's answer; beside version 0.1 nothing follows it.
fn position(answer: Value) -> Option<Position> {
    let answer: Vec<Value> = redis::from_redis_value(answer).ok()?;
    let [offset, epoch, ..] = &*answer else { return None };
    let (offset, epoch) = (offset.clone(), epoch.clone());
    Some((redis::from_redis_value(epoch).ok()?, redis::from_redis_value(offset).ok()?))
}
