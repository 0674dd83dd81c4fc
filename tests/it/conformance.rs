//! One suite for every broker: the contract of `trait Broker`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tollgate::broker::memory::MemoryBroker;
use tollgate::broker::redis::{RedisBroker, Settings};
use tollgate::broker::{Broker, BrokerError, Event, Events};
use tollgate::channel::ChannelName;

use super::DEADLINE;
use super::redis::Redis;

struct Subject {
    broker: Box<dyn Broker>,
    events: Arc<Events>,
    /// Taken and not yet asked for.
    taken: Vec<Event>,
}

impl Subject {
    fn memory() -> Self {
        let events = Arc::new(Events::new(1000, 1 << 20));
        let broker = Box::new(MemoryBroker::new(Arc::clone(&events)));
        Self { broker, events, taken: Vec::new() }
    }

    async fn redis(redis: &Redis) -> Self {
        let events = Arc::new(Events::new(1000, 1 << 20));
        let settings = Settings {
            url: redis.url(),
            prefix: "t:".to_owned(),
            connect_timeout: Duration::from_secs(3),
            command_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_secs(2),
            reconnect_min: Duration::from_millis(10),
            reconnect_max: Duration::from_millis(100),
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
        let (confirmation, mut answer) = watch::channel(None);
        self.broker.subscribe(channel, confirmation);
        loop {
            let batch = tokio::select! {
                batch = self.events.take() => batch,
                found = answer.wait_for(Option::is_some) => return found.unwrap().unwrap(),
                () = tokio::time::sleep(DEADLINE) => panic!("no answer in time"),
            };
            assert!(batch.overflowed.is_empty());
            let mut confirmed = false;
            for event in batch.events {
                match event {
                    Event::Subscribed(name, _) => confirmed |= name == *channel,
                    Event::Publication(_) | Event::Gap(..) | Event::Control(_) => {
                        self.taken.push(event);
                    }
                }
            }
            if confirmed {
                return Ok(());
            }
        }
    }

    async fn publish(&self, channel: &ChannelName, payload: &str) {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.broker.publish(channel, payload).await.unwrap();
    }

    /// The next event as `channel=payload` or `control:message`.
    async fn next(&mut self) -> String {
        if self.taken.is_empty() {
            let batch = tokio::time::timeout(DEADLINE, self.events.take()).await.expect("events");
            assert!(batch.overflowed.is_empty());
            self.taken = batch.events;
        }
        match self.taken.remove(0) {
            Event::Publication(p) => {
                format!("{}={}", p.channel, String::from_utf8_lossy(&p.payload))
            }
            Event::Gap(channel, _) => format!("gap {channel}"),
            Event::Subscribed(channel, _) => format!("subscribed {channel}"),
            Event::Control(message) => format!("control:{}", String::from_utf8_lossy(&message)),
        }
    }
}

/// The suite.
async fn conforms(mut subject: Subject) {
    let (a, ab): (ChannelName, ChannelName) = ("a".parse().unwrap(), "ab".parse().unwrap());
    assert!(subject.broker.health().ready);

    // Not subscribed: nothing comes. Control always does, and shows that nothing came before it.
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

    // Given up before it was confirmed and wanted again: only the second answer counts.
    for i in 0..200 {
        let channel: ChannelName = format!("again:{i}").parse().unwrap();
        subject.broker.subscribe(&channel, watch::channel(None).0);
        subject.broker.unsubscribe(&channel);
        subject.subscribe(&channel).await.unwrap();
        subject.publish(&channel, "here").await;
        assert_eq!(subject.next().await, format!("again:{i}=here"));
    }

    // After the end nothing comes.
    subject.broker.unsubscribe(&a);
    subject.subscribe(&"fence".parse().unwrap()).await.unwrap();
    subject.publish(&a, "gone").await;
    subject.broker.control(Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(subject.next().await, "control:two");
}

#[tokio::test]
async fn memory_conforms() {
    conforms(Subject::memory()).await;
}

#[tokio::test]
async fn redis_conforms() {
    let redis = Redis::start();
    conforms(Subject::redis(&redis).await).await;
}

/// What the reader cannot queue is named, for either broker.
#[tokio::test]
async fn overflow_is_declared() {
    let redis = Redis::start();
    for mut subject in [Subject::memory(), Subject::redis(&redis).await] {
        let a: ChannelName = "a".parse().unwrap();
        subject.subscribe(&a).await.unwrap();
        let full = Arc::clone(&subject.events);
        for i in 0..1500 {
            subject.publish(&a, &i.to_string()).await;
        }
        // The last publication has been answered, and with it all were pushed by Redis; what is
        // still on its way to us is waited for.
        let (mut events, mut overflowed) = (0, Vec::new());
        while overflowed.is_empty() {
            let batch = tokio::time::timeout(DEADLINE, full.take()).await.expect("overflow");
            events += batch.events.len();
            overflowed = batch.overflowed;
        }
        assert_eq!((events, overflowed), (1000, vec![a]));
    }
}
