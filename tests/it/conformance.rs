//! One suite for every broker: the contract of `trait Broker`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tollgate::broker::memory::MemoryBroker;
use tollgate::broker::redis::{Login, RedisBroker, Settings};
use tollgate::broker::{Broker, BrokerError, Durable, Event, Events, HistoryBounds, Tracking};
use tollgate::channel::{ChannelName, Position, Retention};
use tollgate_support::DEADLINE;
use tollgate_support::redis::Redis;

struct Subject {
    broker: Box<dyn Broker>,
    events: Arc<Events>,
    /// Events that were taken from the queue and not yet asked for.
    taken: Vec<Event>,
}

impl Subject {
    fn memory() -> Self {
        let events = Arc::new(Events::new(1000, 1 << 20));
        let broker = Box::new(MemoryBroker::new(Arc::clone(&events), 1 << 20));
        Self { broker, events, taken: Vec::new() }
    }

    async fn redis(redis: &Redis) -> Self {
        let events = Arc::new(Events::new(1000, 1 << 20));
        let settings = Settings {
            url: redis.url(),
            prefix: "t:".to_owned(),
            tls: None,
            password_file: None,
            sentinel: Login::default(),
            subscribers: 1,
            connect_timeout: Duration::from_secs(3),
            command_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_secs(6),
            canary_interval: Duration::from_secs(1),
            canary_deadline: Duration::from_secs(6),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(100),
            beside_0_1: false,
            refuse_wrong: true,
            max_publication: 1 << 20,
            address_interval: Duration::from_secs(10),
        };

        let ready = Arc::new(Notify::new());
        let told = Arc::clone(&ready);
        let broker =
            RedisBroker::start(settings, Arc::clone(&events), move || told.notify_one()).unwrap();
        tokio::time::timeout(DEADLINE, ready.notified()).await.expect("ready");
        Self { broker: Box::new(broker), events, taken: Vec::new() }
    }

    /// Subscribes, and takes what comes before the confirmation.
    async fn subscribe(&mut self, channel: &ChannelName) -> Result<(), BrokerError> {
        self.follow(channel, Tracking::Off).await.map(|_| ())
    }

    /// Subscribes, and returns the position of the channel's history.
    async fn follow(
        &mut self,
        channel: &ChannelName,
        track: Tracking,
    ) -> Result<Option<Position>, BrokerError> {
        let (confirmation, mut answer) = watch::channel(None);
        self.broker.subscribe(channel, track, confirmation);
        loop {
            let batch = tokio::select! {
                batch = self.events.drain() => batch,
                found = answer.wait_for(Option::is_some) => {
                    return found.unwrap().clone().unwrap().map(|()| None);
                }
                () = tokio::time::sleep(DEADLINE) => panic!("no answer in time"),
            };
            assert!(batch.overflowed.is_empty());

            let mut confirmed = None;
            for event in batch.events {
                match event {
                    Event::Subscribed(name, subscribed) if name == *channel => {
                        confirmed = Some(subscribed.position);
                    }
                    Event::Subscribed(..) => {}
                    Event::Publication(_) | Event::Interrupted(..) | Event::Control(_) => {
                        self.taken.push(event);
                    }
                }
            }

            if let Some(position) = confirmed {
                return Ok(position);
            }
        }
    }

    async fn publish(&self, channel: &ChannelName, payload: &str) {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let published = self.broker.publish(channel, payload, None).await.unwrap();
        assert_eq!(published.position, None);
    }

    async fn publish_durable(&self, channel: &ChannelName, payload: &str, key: &str) -> Position {
        let retention = Retention { size: 5, ttl: Duration::from_secs(60), plain: true };
        let idempotency_key = (!key.is_empty()).then(|| key.to_owned());
        let durable = Durable { retention, idempotency_key };
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.broker.publish(channel, payload, Some(durable)).await.unwrap().position.unwrap()
    }

    /// The history's top offset and its payloads.
    async fn history(&self, channel: &ChannelName, messages: usize, bytes: usize) -> String {
        let Some(history) =
            self.broker.history(channel, HistoryBounds { messages, bytes }).await.unwrap()
        else {
            return "none".to_owned();
        };
        let first = history.top.offset + 1 - history.publications.len() as u64;
        for (publication, offset) in history.publications.iter().zip(first..) {
            let due = Position { offset, ..history.top.clone() };
            assert_eq!(publication.position, Some(due));
            assert_eq!(publication.channel, *channel);
        }

        let text =
            |p: &tollgate::channel::Publication| String::from_utf8_lossy(&p.payload).into_owned();
        let all: Vec<_> = history.publications.iter().map(text).collect();
        format!("{}: {}", history.top.offset, all.join(" "))
    }

    /// The next event as `channel=payload` or `control:message`.
    async fn next(&mut self) -> String {
        if self.taken.is_empty() {
            let batch = tokio::time::timeout(DEADLINE, self.events.drain()).await.expect("events");
            assert!(batch.overflowed.is_empty());
            self.taken = batch.events;
        }
        match self.taken.remove(0) {
            Event::Publication(p) => {
                let at = p.position.map_or_else(String::new, |p| format!("@{}", p.offset));
                format!("{}{at}={}", p.channel, String::from_utf8_lossy(&p.payload))
            }
            Event::Interrupted(channel, _, _) => format!("interrupted {channel}"),
            Event::Subscribed(channel, _) => format!("subscribed {channel}"),
            Event::Control(message) => format!("control:{}", String::from_utf8_lossy(&message)),
        }
    }
}

/// Subscribing and publishing.
async fn conforms(mut subject: Subject) {
    let (a, ab): (ChannelName, ChannelName) = ("a".parse().unwrap(), "ab".parse().unwrap());
    assert!(subject.broker.health().ready);

    // Without a subscription nothing comes. Control messages always do, and show that nothing
    // came before.
    subject.publish(&a, "lost").await;
    subject.broker.control(Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(subject.next().await, "control:one");

    // Once confirmed, everything published comes, in order, and only on exactly this channel.
    subject.subscribe(&a).await.unwrap();
    for i in 0..100 {
        subject.publish(&a, &i.to_string()).await;
        subject.publish(&ab, "other").await;
    }
    for i in 0..100 {
        assert_eq!(subject.next().await, format!("a={i}"));
    }

    // A second subscription to the same channel does not double it.
    subject.subscribe(&a).await.unwrap();
    subject.subscribe(&ab).await.unwrap();
    subject.publish(&a, "x").await;
    subject.publish(&ab, "y").await;
    assert_eq!(subject.next().await, "a=x");
    assert_eq!(subject.next().await, "ab=y");

    // Unsubscribing and subscribing again at once leaves it subscribed.
    subject.broker.unsubscribe(&a);
    subject.subscribe(&a).await.unwrap();
    subject.publish(&a, "again").await;
    assert_eq!(subject.next().await, "a=again");

    // A subscription is given up before its confirmation and asked for again: only the second
    // answer counts.
    for i in 0..200 {
        let channel: ChannelName = format!("again:{i}").parse().unwrap();
        subject.broker.subscribe(&channel, Tracking::Off, watch::channel(None).0);
        subject.broker.unsubscribe(&channel);
        subject.subscribe(&channel).await.unwrap();
        subject.publish(&channel, "here").await;
        assert_eq!(subject.next().await, format!("again:{i}=here"));
    }

    // After unsubscribing nothing comes.
    subject.broker.unsubscribe(&a);
    subject.subscribe(&"fence".parse().unwrap()).await.unwrap();
    subject.publish(&a, "gone").await;
    subject.broker.control(Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(subject.next().await, "control:two");
}

/// Histories, positions, epochs and idempotency.
async fn keeps_histories(mut subject: Subject) {
    let (a, b): (ChannelName, ChannelName) = ("h:a".parse().unwrap(), "h:b".parse().unwrap());
    assert_eq!(subject.follow(&a, Tracking::Follow).await, Ok(None), "nothing was published");
    assert_eq!(subject.history(&a, 10, 1000).await, "none");

    // Offsets count from 1 in one epoch; both kinds come on one channel, in order.
    let first = subject.publish_durable(&a, "1", "").await;
    subject.publish(&a, "plain").await;
    let second = subject.publish_durable(&a, "2", "").await;
    assert_eq!((first.offset, second.offset), (1, 2));
    assert_eq!(first.epoch, second.epoch);
    for expected in ["h:a@1=1", "h:a=plain", "h:a@2=2"] {
        assert_eq!(subject.next().await, expected);
    }
    assert_eq!(subject.history(&a, 10, 1000).await, "2: 1 2");

    // A repeated idempotency key publishes nothing and gets the first answer; each channel has keys
    // of its own.
    let third = subject.publish_durable(&a, "3", "key").await;
    assert_eq!(subject.publish_durable(&a, "\"other\"", "key").await, third);
    assert_eq!(subject.publish_durable(&b, "\"b\"", "key").await.offset, 1);
    assert_eq!(subject.next().await, "h:a@3=3");

    // The retention's size limits what is kept, the bounds limit what is read, and reading ends at
    // the top.
    for n in 4..=9 {
        subject.publish_durable(&a, &n.to_string(), "").await;
        assert_eq!(subject.next().await, format!("h:a@{n}={n}"));
    }
    assert_eq!(subject.history(&a, 10, 1000).await, "9: 5 6 7 8 9");
    assert_eq!(subject.history(&a, 2, 1000).await, "9: 8 9");
    assert_eq!(subject.history(&a, 10, 3).await, "9: 7 8 9");

    // A later subscriber learns the history's position; a created channel has a position at once.
    let top = Position { offset: 9, ..first };
    assert_eq!(subject.follow(&a, Tracking::Follow).await, Ok(Some(top.clone())));
    assert_eq!(subject.follow(&a, Tracking::Create).await, Ok(Some(top)));
    let opened = subject.follow(&"h:c".parse().unwrap(), Tracking::Create).await.unwrap().unwrap();
    assert_eq!(opened.offset, 0);
    let c = subject.publish_durable(&"h:c".parse().unwrap(), "1", "").await;
    assert_eq!((c.offset, c.epoch), (1, opened.epoch));

    // A long history takes more than one read.
    let long: ChannelName = "h:long".parse().unwrap();
    let retention = Retention { size: 500, ttl: Duration::from_secs(60), plain: true };
    for n in 1..=400 {
        let durable = Durable { retention, idempotency_key: None };
        subject.broker.publish(&long, Bytes::from(n.to_string()), Some(durable)).await.unwrap();
    }
    let all: Vec<_> = (1..=400).map(|n| n.to_string()).collect();
    assert_eq!(subject.history(&long, 1000, 100_000).await, format!("400: {}", all.join(" ")));
    assert_eq!(
        subject.history(&long, 300, 100_000).await,
        format!("400: {}", all[100..].join(" "))
    );
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Subject::memory()).await;
    keeps_histories(Subject::memory()).await;
}

#[tokio::test]
async fn redis_conforms() {
    let redis = Redis::start().await;
    conforms(Subject::redis(&redis).await).await;
    keeps_histories(Subject::redis(&redis).await).await;
}

/// Valkey, and a newer Redis.
#[tokio::test]
async fn other_servers_conform() {
    for name in ["valkey-8", "valkey-9", "redis-8"] {
        let redis = Redis::other(name).await;
        conforms(Subject::redis(&redis).await).await;
        keeps_histories(Subject::redis(&redis).await).await;
    }
}

/// On a server without functions the same code runs as a script.
#[tokio::test]
async fn redis_without_functions_conforms() {
    let names = ["FCALL", "FCALL_RO", "FUNCTION"];
    let lines = names.map(|name| format!("rename-command {name} \"\""));
    let redis = Redis::with(&lines.each_ref().map(String::as_str)).await;
    keeps_histories(Subject::redis(&redis).await).await;
}

/// With either broker, channels whose events the reader cannot queue are named.
#[tokio::test]
async fn overflow_is_declared() {
    let redis = Redis::start().await;
    for mut subject in [Subject::memory(), Subject::redis(&redis).await] {
        let a: ChannelName = "a".parse().unwrap();
        subject.subscribe(&a).await.unwrap();
        let full = Arc::clone(&subject.events);
        for i in 0..1500 {
            subject.publish(&a, &i.to_string()).await;
        }

        // The last publication has been answered, so Redis has pushed all of them: wait for those
        // that are still on their way.
        let (mut events, mut overflowed) = (0, Vec::new());
        while overflowed.is_empty() {
            let batch = tokio::time::timeout(DEADLINE, full.drain()).await.expect("overflow");
            events += batch.events.len();
            overflowed = batch.overflowed;
        }

        assert_eq!((events, overflowed), (1000, vec![(a, true)]));
    }
}
