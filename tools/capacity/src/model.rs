//! The formulas: what one replica and one Redis server bear when so many of them share a load. How
//! many are needed follows from that in `plan`; whether the formulas hold is `simulate`'s business.

use crate::constants::Constants;
use crate::load::{Group, Load, interested};
use crate::options::{Machine, Topology};

pub const KIB: f64 = 1024.0;
pub const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

pub struct Model {
    pub constants: Constants,
    pub machine: Machine,
}

/// What one replica bears.
#[derive(Debug, Clone, Copy, Default)]
pub struct Replica {
    pub sockets: f64,
    /// Publications that come from Redis, a second.
    pub publications: f64,
    pub deliveries: f64,
    /// CPU in cores.
    pub cpu: f64,
    /// Bytes a second.
    pub network: f64,
    pub memory: f64,
}

/// What one Redis server bears.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shard {
    /// Replicas that get a publication, on average.
    pub interested: f64,
    /// The share of its one core.
    pub cpu: f64,
    /// The share that the most popular channel needs, which no other server can take.
    pub hottest: f64,
    pub network: f64,
    pub memory: f64,
    pub connections: f64,
}

impl Model {
    /// How many events leave in one write when they come at this rate. Where they do not fit into
    /// the largest batch, the last batch is half full on average.
    pub fn batch(&self, rate: f64) -> f64 {
        let waiting = (rate * self.constants.wait_ms / 1e3).max(1.0);
        waiting / (waiting / self.constants.largest_batch.max(1.0) + 0.5).max(1.0)
    }

    /// One of `replicas` replicas, which has `crowd` times its share of the sockets.
    pub fn replica(&self, load: &Load, replicas: f64, crowd: f64) -> Replica {
        let c = &self.constants;
        let share = (crowd / replicas).min(1.0);
        let sockets = load.sockets * share;
        let mut publications = load.own_events * share;
        let (mut deliveries, mut writes) = (publications, publications);
        let mut channels = 0.0;

        for group in load.groups() {
            let here = 1.0 - (1.0 - share).powf(group.sockets);
            channels += group.channels * here;
            publications += group.channels * group.events * here;
            let delivered = group.channels * group.events * group.sockets * share;
            deliveries += delivered;
            writes += delivered / self.batch(group.events);
        }

        let cpu = publications * c.publication_us
            + writes * c.write_us
            + deliveries * c.event_us
            + sockets * c.ping_us / c.ping_interval_s.max(0.1)
            + load.connects * share * self.connect_us(load);

        let network = deliveries * load.payload
            + writes * c.frame_bytes
            + publications * (load.payload + c.redis_message_bytes);

        let memory = self.memory(load, sockets, channels);
        Replica { sockets, publications, deliveries, cpu: cpu / 1e6, network, memory }
    }

    /// The bytes that so many sockets need, with so many shared channels among them.
    pub fn memory(&self, load: &Load, sockets: f64, channels: f64) -> f64 {
        let c = &self.constants;
        let each = load.shared.as_ref().map_or(0.0, |shared| shared.each);
        let further = (load.own_channels - 1.0).max(0.0);
        (c.process_mib + c.queues_mib) * KIB * KIB
            + sockets * (c.socket_kib + c.kernel_kib) * KIB
            + sockets * (each * c.subscription_bytes + further * c.channel_bytes)
            + channels * c.channel_bytes
    }

    /// What a new connection costs the gateway, with its subscriptions.
    pub fn connect_us(&self, load: &Load) -> f64 {
        let c = &self.constants;
        let each = load.shared.as_ref().map_or(0.0, |shared| shared.each);
        let further = (load.own_channels - 1.0).max(0.0);
        c.handshake_us + each * c.subscription_us + further * c.channel_us
    }

    /// What a new connection costs Redis: only its own channels are new there.
    pub fn redis_connect_us(&self, load: &Load) -> f64 {
        load.own_channels * self.redis_channel_us()
    }

    /// What a replica's subscription to one channel costs Redis.
    pub fn redis_channel_us(&self) -> f64 {
        match self.machine.redis {
            Topology::Standalone => self.constants.redis_subscribe_us,
            Topology::Cluster => self.constants.redis_ssubscribe_us,
        }
    }

    /// One of `shards` Redis servers, to which `replicas` replicas subscribe.
    pub fn shard(&self, load: &Load, replicas: f64, shards: f64) -> Shard {
        let c = &self.constants;
        let groups = load.groups();

        let mut pushes = load.own_events;
        let mut memory = load.sockets * load.own_channels * c.redis_subscription_bytes;
        for group in &groups {
            let on = interested(replicas, group.sockets);
            pushes += group.channels * group.events * on;
            memory += group.channels
                * (c.redis_subscription_bytes + (on - 1.0).max(0.0) * c.redis_subscriber_bytes);
        }

        let publications = load.events() / shards;
        let on = if load.events() > 0.0 { pushes / load.events() } else { 0.0 };
        let each = self.publish_us(on, replicas, self.batch(publications));
        let connections = replicas * (self.machine.subscriber_connections + 1.0);

        let cpu = publications * each
            + self.housekeeping_us(replicas)
            + load.connects * self.redis_connect_us(load) / shards;
        let hottest = groups.first().map_or(0.0, |group| self.alone(group, replicas));

        Shard {
            interested: on,
            cpu: cpu / 1e6,
            hottest,
            network: pushes / shards * (load.payload + c.redis_message_bytes),
            memory: memory / shards,
            connections,
        }
    }

    /// What a publication to `on` of the replicas costs Redis when `batch` publications come in one
    /// turn of its loop.
    pub fn publish_us(&self, on: f64, replicas: f64, batch: f64) -> f64 {
        let c = &self.constants;
        let connections = (replicas * self.machine.subscriber_connections).max(1.0);
        let wanted = (on / connections).min(1.0);

        // The connections that at least one publication of the batch goes to.
        let written = connections * (1.0 - (1.0 - wanted).powf(batch));
        (c.redis_loop_us + written * c.redis_write_us) / batch
            + c.redis_publish_us
            + on * c.redis_message_us
    }

    /// The microseconds a second that canaries and pings take, whatever is published.
    pub fn housekeeping_us(&self, replicas: f64) -> f64 {
        let subscribing = replicas * self.machine.subscriber_connections;
        subscribing * self.publish_us(1.0, replicas, 1.0)
            + (subscribing + replicas) * self.constants.redis_loop_us
    }

    /// The share of a core that one channel of this group needs.
    fn alone(&self, group: &Group, replicas: f64) -> f64 {
        let on = interested(replicas, group.sockets);
        group.events * self.publish_us(on, replicas, self.batch(group.events)) / 1e6
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::load::Shared;
    use crate::options::Balancer;

    pub fn model() -> Model {
        let machine = Machine {
            cores_per_replica: 2.0,
            memory_per_replica: 2.0,
            sockets_per_replica: 100_000.0,
            redis: Topology::Standalone,
            memory_per_shard: 4.0,
            subscriber_connections: 1.0,
            network: 10.0,
            headroom: 0.3,
            spare: 1,
            balancer: Balancer::Random,
            rollout_at_once: 0.25,
            price_core: 0.0,
            price_gib: 0.0,
        };
        Model { constants: Constants::default(), machine }
    }

    pub fn rooms(sockets: f64) -> Load {
        let channels = sockets / 1_000.0;
        let shared =
            Shared { channels, each: 1.0, zipf: 0.0, events: channels * 10.0, grows: true };
        Load::sharing(sockets, shared)
    }

    #[test]
    fn a_room_costs_its_writes() {
        let replica = model().replica(&rooms(10_000.0), 1.0, 1.0);
        assert!((replica.deliveries - 100_000.0).abs() < 1e-6);
        let writes = 100_000.0 * 10.02e-6;
        assert!((replica.cpu - writes).abs() / writes < 0.02, "{replica:?}");
    }

    #[test]
    fn redis_costs_what_was_measured() {
        let model = model();
        for (subscribers, batch, measured) in
            [(1.0, 1.0, 32.0), (4.0, 1.0, 61.4), (4.0, 32.0, 4.67), (8.0, 32.0, 6.08)]
        {
            let computed = model.publish_us(subscribers, subscribers, batch);
            assert!((computed / measured - 1.0).abs() < 0.12, "{subscribers} {batch}: {computed}");
        }
    }

    #[test]
    fn a_batch_is_neither_less_than_one_nor_more_than_was_measured() {
        let model = model();
        assert_eq!(model.batch(0.1), 1.0);
        assert_eq!(model.batch(1_000.0), 10.0);
        assert!((model.batch(1e9) - 32.0).abs() < 0.01);
        assert!((model.batch(5_000.0) - 24.2).abs() < 0.1);
    }

    #[test]
    fn more_replicas_bear_less_each_and_cost_redis_more() {
        let (model, load) = (model(), rooms(1e6));
        assert!(model.replica(&load, 40.0, 1.0).cpu < model.replica(&load, 20.0, 1.0).cpu);
        assert!(model.shard(&load, 40.0, 1.0).cpu > model.shard(&load, 20.0, 1.0).cpu);
    }
}
