//! A bare Redis subscriber: one connection that measures when publications reach it. The scenario
//! `redis-floor` is that alone; other scenarios have it beside their clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use hdrhistogram::Histogram;

use crate::args::RedisFloor;
use crate::client::Plan;
use crate::clock;
use crate::event::Events;
use crate::publisher::{Publisher, Schedule};
use crate::report::Report;
use crate::shared::{Shared, Window};
use crate::sink::{SinkConfig, redis_connection};
use crate::tally::{histogram, record};
use crate::target::Target;
use crate::token::Tokens;
use crate::topology::Topology;

pub struct BareSubscriber {
    handle: JoinHandle<Result<Histogram<u64>>>,
    stop: Arc<AtomicBool>,
}

impl BareSubscriber {
    /// Subscribes to the first channel.
    pub fn start(sink: &SinkConfig, plan: &Arc<Plan>, measured_from: u64) -> Result<Self> {
        Self::counting(sink, plan, measured_from, None)
    }

    fn counting(
        sink: &SinkConfig,
        plan: &Arc<Plan>,
        measured_from: u64,
        shared: Option<Arc<Shared>>,
    ) -> Result<Self> {
        let SinkConfig::Redis { url, prefix, durable } = sink else {
            bail!("a bare Redis subscriber needs --redis");
        };
        if *durable {
            bail!("a bare Redis subscriber measures PUBLISH; leave out --durable");
        }

        let mut connection = redis_connection(url)?;
        let channel = format!("{prefix}{}", plan.topology.name(0, &plan.tokens));
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, plan) = (Arc::clone(&stop), Arc::clone(plan));
        let (subscribed, confirmation) = std::sync::mpsc::channel();

        let run = move || -> Result<Histogram<u64>> {
            let mut latency = histogram();
            let mut window = shared.as_ref().map(|shared| shared.window.of_thread(0));
            let mut subscriber = connection.as_pubsub();
            subscriber.subscribe(channel)?;
            let _ = subscribed.send(());
            subscriber.set_read_timeout(Some(Duration::from_millis(100)))?;

            while !flag.load(Ordering::Acquire) {
                let message = match subscriber.get_message() {
                    Ok(message) => message,
                    Err(error) if error.is_timeout() => continue,
                    Err(error) => return Err(error.into()),
                };
                let Some(event) = plan.events.find(message.get_payload_bytes()) else { continue };

                if event.intended >= measured_from {
                    record(&mut latency, clock::now().saturating_sub(event.intended));
                }
                if let (Some(window), Some(shared)) = (&mut window, &shared) {
                    window.delivered(&shared.window, event.channel, event.sequence);
                    window.publish(&shared.window);
                }
            }
            Ok(latency)
        };

        let handle = std::thread::Builder::new().name("bare".to_owned()).spawn(run)?;
        let bare = BareSubscriber { handle, stop };
        match confirmation.recv_timeout(Duration::from_secs(5)) {
            Ok(()) => Ok(bare),
            Err(_) => match bare.stop() {
                Err(error) => Err(error),
                Ok(_) => bail!("Redis did not confirm a subscription within 5 s"),
            },
        }
    }

    pub fn stop(self) -> Result<Histogram<u64>> {
        self.stop.store(true, Ordering::Release);
        self.handle.join().map_err(|_| anyhow!("the bare subscriber panicked"))?
    }
}

pub fn redis_floor(args: &RedisFloor) -> Result<bool> {
    let mut report = Report::new("redis-floor", args.output.label.as_deref());
    let (sink, pace) = (args.publish.sink()?, args.run.pace()?);

    let shared = Some((args.channel.clone(), 1));
    let topology = Topology { shared, own: None, auto: false, bystanders: None, clients: 1 };
    let window = Window::new(true, &topology, 1);
    let plan = Arc::new(Plan {
        // No client connects there.
        target: Target::new(&["ws://127.0.0.1".to_owned()], Vec::new(), None)?,
        tokens: Tokens::None,
        topology,
        events: Events::new(fastrand::u32(1..), args.publish.payload),
        raw: true,
        retry: None,
        timeout: 0,
        churn: None,
    });

    let shared = Arc::new(Shared::new(window));
    let begin = clock::now() + 100_000_000;
    let measured_from = begin + clock::nanos(args.run.warmup);
    let bare = BareSubscriber::counting(&sink, &plan, measured_from, Some(Arc::clone(&shared)))?;
    let schedule = Schedule { pace, until: args.run.until(), begin, measured_from, channels: 0..1 };
    let published = Publisher::start(&plan, &shared, &sink, schedule)?.join()?;

    // The last publications have this long to arrive.
    std::thread::sleep(Duration::from_millis(200));
    let latency = bare.stop()?;

    report.figure("published", "published", published.measured as f64, "");
    report.figure("delivered", "delivered", latency.len() as f64, "");
    report.percentiles("latency", "latency", &latency);
    report.curve("", &latency);
    if latency.len() != published.measured {
        report.problem("not everything that was published came");
    }
    report.finish(args.output.json.as_deref(), args.output.plot.as_deref())
}
