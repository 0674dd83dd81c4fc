//! Plays a load: each publication is drawn, goes through its Redis server to the replicas that have
//! a socket for it, and costs there what `constants` says; work that does not fit into a tick
//! waits. The result stands beside the formulas' answer. Sockets that move in numbers are
//! `upheaval`'s business.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::dice::happen;
use crate::load::Load;
use crate::model::{GIB, Model};
use crate::plan::Plan;
use crate::upheaval;
use crate::world::World;

pub struct Compared {
    pub name: &'static str,
    pub formula: f64,
    /// The mean over all replicas or servers, and all seconds.
    pub mean: f64,
    /// The figure of the worst of them, in its worst second.
    pub peak: f64,
}

pub struct Simulated {
    pub rows: Vec<Compared>,
    /// The time that the simulation took, in seconds.
    pub took: f64,
}

/// What came to one replica or Redis server in a tick and in the current second.
#[derive(Clone, Default)]
pub struct Meter {
    /// Seconds of CPU that this tick asks for.
    pub work: f64,
    second: f64,
    /// Seconds of CPU that are not done yet.
    pub waiting: f64,
    bytes: f64,
    publications: f64,
}

/// The mean and the largest of what was seen.
#[derive(Default)]
pub struct Seen {
    sum: f64,
    count: f64,
    pub peak: f64,
}

impl Seen {
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
        self.peak = self.peak.max(value);
    }

    pub fn row(&self, name: &'static str, formula: f64) -> Compared {
        Compared { name, formula, mean: self.sum / self.count.max(1.0), peak: self.peak }
    }
}

impl Meter {
    /// Ends a tick: work that the cores could not do waits. Answers for how many seconds.
    pub fn tick(&mut self, cores: f64, seconds: f64) -> f64 {
        let work = std::mem::take(&mut self.work);
        self.second += work;
        self.waiting = (self.waiting + work - cores * seconds).max(0.0);
        self.waiting / cores
    }
}

struct Steady<'a> {
    model: &'a Model,
    load: &'a Load,
    world: &'a mut World,
    replicas: Vec<Meter>,
    servers: Vec<Meter>,
    /// For each server and subscribing connection, whether this turn of the loop writes to it.
    written: Vec<Vec<bool>>,
    interested: Seen,
}

pub fn simulate(
    model: &Model,
    load: &Load,
    plan: Plan,
    (seed, seconds): (u64, f64),
) -> Result<Simulated> {
    let began = Instant::now();
    if load.sockets > 5e7 || plan.replicas > 10_000.0 || load.subscriptions() > 32.0 {
        bail!("50 million sockets, 10,000 replicas, 32 channels a socket are the most to simulate");
    }

    let at_once = model.at_once(plan.replicas) as u32;
    let mut world = World::new(model, load, plan, (seed, at_once))?;

    let mut rows = memory(model, load, plan, &world);
    rows.extend(steady(model, load, plan, (&mut world, seconds)));
    rows.extend(upheaval::upheaval(model, load, plan, &mut world));
    Ok(Simulated { rows, took: began.elapsed().as_secs_f64() })
}

/// Compares sockets, memory and subscriptions, for which nothing has to be published.
fn memory(model: &Model, load: &Load, plan: Plan, world: &World) -> Vec<Compared> {
    let (mut sockets, mut memory, mut redis) = (Seen::default(), Seen::default(), Seen::default());

    for place in world.places.iter().filter(|place| place.alive) {
        sockets.add(f64::from(place.sockets));
        let bytes = model.memory(load, f64::from(place.sockets), f64::from(place.channels));
        memory.add(bytes / GIB);
    }

    for server in &world.servers {
        redis.add((server.own as f64) * load.own_channels + server.subscriptions as f64);
    }

    let replica = model.replica(load, plan.replicas, 1.0);
    let on_shared = plan.replicas * load.channels_of(1.0 / plan.replicas);
    let subscriptions = (load.sockets * load.own_channels + on_shared) / plan.shards;

    vec![
        sockets.row("sockets of a replica", replica.sockets),
        memory.row("memory of a replica, GiB", replica.memory / GIB),
        redis.row("subscriptions at a Redis", subscriptions),
    ]
}

fn steady(
    model: &Model,
    load: &Load,
    plan: Plan,
    (world, seconds): (&mut World, f64),
) -> Vec<Compared> {
    let tick = (model.constants.wait_ms / 1e3).max(1e-3);
    let connections = (plan.replicas * model.machine.subscriber_connections) as usize;
    let mut steady = Steady {
        replicas: vec![Meter::default(); plan.replicas as usize],
        servers: vec![Meter::default(); plan.shards as usize],
        written: vec![vec![false; connections]; plan.shards as usize],
        interested: Seen::default(),
        model,
        load,
        world,
    };

    // Queues are seen by tick (0: replicas, 1: servers), all else by second (2 to 4: replicas, 5
    // and 6: servers).
    let mut seen: [Seen; 7] = Default::default();
    let ticks = (1.0 / tick).round() as u64;
    for at in 1..=(seconds / tick).round() as u64 {
        steady.publish(tick);
        steady.rest(tick);

        for replica in &mut steady.replicas {
            seen[0].add(replica.tick(model.machine.cores_per_replica, tick) * 1e3);
        }
        for server in &mut steady.servers {
            seen[1].add(server.tick(1.0, tick) * 1e3);
        }

        if at % ticks == 0 {
            for replica in &mut steady.replicas {
                seen[2].add(std::mem::take(&mut replica.second));
                seen[3].add(std::mem::take(&mut replica.bytes) / 1e6);
                seen[4].add(std::mem::take(&mut replica.publications));
            }
            for server in &mut steady.servers {
                seen[5].add(std::mem::take(&mut server.second));
                seen[6].add(std::mem::take(&mut server.bytes) / 1e6);
            }
        }
    }

    let replica = model.replica(load, plan.replicas, 1.0);
    let shard = model.shard(load, plan.replicas, plan.shards);
    vec![
        seen[2].row("CPU of a replica, cores", replica.cpu),
        seen[3].row("network of a replica, MB/s", replica.network / 1e6),
        seen[4].row("publications to a replica, /s", replica.publications),
        Compared {
            peak: mean(&steady.interested),
            ..steady.interested.row("replicas for a publication", shard.interested)
        },
        seen[5].row("CPU of a Redis, cores", shard.cpu),
        seen[6].row("output of a Redis, MB/s", shard.network / 1e6),
        seen[0].row("queue of a replica, ms", 0.0),
        seen[1].row("queue of a Redis, ms", 0.0),
    ]
}

fn mean(seen: &Seen) -> f64 {
    seen.sum / seen.count.max(1.0)
}

impl Steady<'_> {
    /// Plays all publications of a tick.
    fn publish(&mut self, seconds: f64) {
        let mut turns = vec![0u64; self.servers.len()];
        let mut times: BTreeMap<u32, u64> = BTreeMap::new();
        let shared = self.load.shared.as_ref().map_or(0.0, |shared| shared.events);

        for _ in 0..happen(&mut self.world.rng, shared * seconds) {
            let Some(popularity) = &self.world.popularity else { break };
            let channel = popularity.draw(&mut self.world.rng);
            *times.entry(channel).or_default() += 1;
            let server = self.world.server_of(channel);
            self.turn(server, &mut turns);
            let on = self.push(server, channel);
            self.interested.add(on);
        }

        // Publications of one channel in one tick leave a replica together.
        for (channel, count) in times {
            self.deliver(channel, count as f64);
        }

        for _ in 0..happen(&mut self.world.rng, self.load.own_events * seconds) {
            let socket = self.world.rng.usize(..self.world.at.len());
            let server = self.world.server_of_own(socket);
            self.turn(server, &mut turns);
            let at = self.world.at[socket] as usize;
            self.write(server, at, socket);
            self.servers[server].work += self.model.constants.redis_message_us / 1e6;
            self.receive(at, 1.0);
            self.send(at, (1.0, 1.0));
            self.interested.add(1.0);
        }
    }

    /// Takes a publication at a server, in the turn of its loop that is under way or the next.
    fn turn(&mut self, server: usize, turns: &mut [u64]) {
        let c = &self.model.constants;
        if turns[server].is_multiple_of(c.largest_batch.max(1.0) as u64) {
            self.written[server].fill(false);
            self.servers[server].work += c.redis_loop_us / 1e6;
        }
        turns[server] += 1;
        self.servers[server].work += c.redis_publish_us / 1e6;
    }

    /// Pushes a publication to all replicas with a socket for it, and answers how many they are.
    fn push(&mut self, server: usize, channel: u32) -> f64 {
        let mut on = 0.0;
        let row = self.world.row(channel).to_vec();
        for (at, sockets) in row.into_iter().enumerate().take(self.replicas.len()) {
            if sockets > 0 {
                on += 1.0;
                self.write(server, at, channel as usize);
            }
        }

        self.servers[server].work += on * self.model.constants.redis_message_us / 1e6;
        on
    }

    fn write(&mut self, server: usize, replica: usize, channel: usize) {
        let each = self.model.machine.subscriber_connections.max(1.0) as usize;
        let connection = replica * each + channel % each;
        let bytes = self.load.payload + self.model.constants.redis_message_bytes;
        self.servers[server].bytes += bytes;
        if !std::mem::replace(&mut self.written[server][connection], true) {
            self.servers[server].work += self.model.constants.redis_write_us / 1e6;
        }
    }

    /// Delivers so many publications on a channel, in one tick, to its sockets on all replicas.
    fn deliver(&mut self, channel: u32, count: f64) {
        for at in 0..self.replicas.len() {
            let sockets = f64::from(self.world.row(channel)[at]);
            if sockets > 0.0 {
                self.receive(at, count);
                let writes = sockets * (count / self.model.constants.largest_batch).ceil();
                self.send(at, (writes, sockets * count));
            }
        }
    }

    fn receive(&mut self, replica: usize, count: f64) {
        let meter = &mut self.replicas[replica];
        meter.publications += count;
        meter.work += count * self.model.constants.publication_us / 1e6;
        meter.bytes += count * (self.load.payload + self.model.constants.redis_message_bytes);
    }

    fn send(&mut self, replica: usize, (writes, events): (f64, f64)) {
        let c = &self.model.constants;
        let meter = &mut self.replicas[replica];
        meter.work += (writes * c.write_us + events * c.event_us) / 1e6;
        meter.bytes += writes * c.frame_bytes + events * self.load.payload;
    }

    /// Plays pings, canaries, and clients that come and go.
    fn rest(&mut self, seconds: f64) {
        let c = &self.model.constants;
        for (at, meter) in self.replicas.iter_mut().enumerate() {
            let pings = f64::from(self.world.places[at].sockets) * seconds / c.ping_interval_s;
            meter.work += pings * c.ping_us / 1e6;
        }

        let housekeeping = self.model.housekeeping_us(self.replicas.len() as f64) / 1e6;
        self.servers.iter_mut().for_each(|meter| meter.work += housekeeping * seconds);

        for _ in 0..happen(&mut self.world.rng, self.load.connects * seconds) {
            let socket = self.world.rng.usize(..self.world.at.len());
            self.world.disconnect(socket);
            let (at, first) = self.world.connect(socket);
            let (here, redis) = upheaval::connect_cost(self.model, self.load, first);
            self.replicas[at].work += here;
            let server = self.world.server_of_own(socket);
            self.servers[server].work += redis;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{model, rooms};

    fn rows(seed: u64) -> Vec<Compared> {
        let plan = Plan { replicas: 10.0, shards: 2.0 };
        simulate(&model(), &rooms(50_000.0), plan, (seed, 2.0)).unwrap().rows
    }

    #[test]
    fn what_is_counted_is_what_is_computed_where_nothing_is_crowded() {
        for row in rows(1).iter().take(8).filter(|row| row.formula > 1.0) {
            assert!((row.mean / row.formula - 1.0).abs() < 0.1, "{} {}", row.name, row.mean);
        }
    }

    #[test]
    fn the_same_seed_plays_the_same() {
        let peaks = |seed| rows(seed).iter().map(|row| row.peak).collect::<Vec<_>>();
        assert_eq!(peaks(5), peaks(5));
        assert_ne!(peaks(5), peaks(6));
    }

    #[test]
    fn what_does_not_fit_waits() {
        let mut meter = Meter { work: 0.05, ..Meter::default() };
        assert!((meter.tick(2.0, 0.01) - 0.015).abs() < 1e-9);
        assert!((meter.tick(2.0, 0.01) - 0.005).abs() < 1e-9);
        assert_eq!(meter.tick(2.0, 0.01), 0.0);
    }
}
