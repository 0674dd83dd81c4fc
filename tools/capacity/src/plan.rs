//! How many replicas and Redis servers a load needs, by each resource; what breaks first; what a
//! rollout and a loss do. What one replica or server bears is `model`'s business.

use crate::load::Load;
use crate::model::{GIB, Model, Replica, Shard};
use crate::options::{Balancer, Topology};

/// The most that are tried: a larger number does not help.
const MOST: f64 = 60_000.0;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub replicas: f64,
    pub shards: f64,
}

/// One resource: what is used where it is scarcest, what there is, and what may be used.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    pub name: &'static str,
    pub unit: &'static str,
    pub used: f64,
    pub limit: f64,
    pub allowed: f64,
}

#[derive(Debug, Clone, Copy)]
pub struct Need {
    pub name: &'static str,
    /// `None`: no number is enough.
    pub count: Option<f64>,
}

/// What happens to connections when replicas go.
#[derive(Debug, Clone, Copy)]
pub struct Moves {
    /// The most sockets that one replica has during a rollout, in shares of one replica's.
    pub peak: f64,
    /// How often each socket reconnects in a rollout, on average.
    pub moves: f64,
    pub rollout_s: f64,
    /// New connections a second, all replicas together, at the worst of a rollout.
    pub connects: f64,
    /// Seconds from the loss of one replica until its sockets are back.
    pub loss_s: f64,
    /// Seconds from the loss of all connections until the gateway has all sockets again, and Redis
    /// all their channels.
    pub storm_s: f64,
    pub storm_redis_s: f64,
}

/// A rollout. Sockets are counted in shares of one replica's.
struct Rollout {
    rounds: f64,
    /// The most sockets at one replica.
    peak: f64,
    /// How often each socket moves, on average.
    moves: f64,
    /// The most sockets that leave in one round.
    leaving: f64,
}

fn of(name: &'static str, unit: &'static str, used: f64, limit: f64, share: f64) -> Use {
    Use { name, unit, used, limit, allowed: limit * share }
}

impl Model {
    /// How many times its share of the sockets a replica has: after a loss, and at the worst, a
    /// rollout included.
    pub fn crowd(&self, replicas: f64) -> (f64, f64) {
        let left = (replicas - self.machine.spare as f64).max(1.0);
        let lost = if replicas > left { replicas / left } else { 1.0 };
        (lost, lost.max(self.rollout(replicas).peak))
    }

    /// Each round sends the sockets of the leaving replicas to all others, also to those that
    /// leave next.
    fn rollout(&self, replicas: f64) -> Rollout {
        let at_once = self.at_once(replicas);
        let rounds = (replicas / at_once).ceil();
        let last = replicas - at_once * (rounds - 1.0);

        let grows = match self.machine.balancer {
            Balancer::Random => 1.0 + at_once / replicas,
            // The new replicas fill up to what the others have.
            Balancer::Least => 1.0,
        };

        let peak = grows.powf(rounds - 1.0);
        let before = at_once * grows.powf(rounds - 2.0);
        let moves = match self.machine.balancer {
            Balancer::Random => peak - 1.0 + peak * last / replicas,
            Balancer::Least => 1.0,
        };

        let leaving = if rounds > 1.0 { before.max(last * peak) } else { last };
        Rollout { rounds, peak, moves, leaving }
    }

    /// New connections a second at one replica during a round whose leaving replicas have so many
    /// sockets each.
    pub fn comes_back(&self, replicas: f64, sockets: f64) -> f64 {
        // All other replicas share the sockets. A balancer that counts gives them to the new
        // replicas, of which there is one for each that leaves.
        let share = match self.machine.balancer {
            Balancer::Random => self.at_once(replicas) / replicas,
            Balancer::Least => 1.0,
        };
        sockets / self.constants.window_s.max(0.1) * share
    }

    /// Replicas that a rollout replaces at once.
    pub fn at_once(&self, replicas: f64) -> f64 {
        (replicas * self.machine.rollout_at_once).round().max(1.0)
    }

    pub fn replica_uses(&self, load: &Load, replicas: f64) -> Vec<Use> {
        let machine = &self.machine;
        let (lost, crowd) = self.crowd(replicas);
        let room = 1.0 - machine.headroom;

        let Replica { cpu, network, publications, .. } = self.replica(load, replicas, lost);
        let crowded = self.replica(load, replicas, crowd);
        let back = self.comes_back(replicas, crowded.sockets) * self.connect_us(load) / 1e6;
        let pump = publications * self.constants.publication_us / 1e6;
        let bandwidth = machine.network * 1e9 / 8.0;
        let memory = machine.memory_per_replica * GIB;

        vec![
            of("sockets (files)", "", crowded.sockets, machine.sockets_per_replica, 1.0),
            of("memory", "GiB", crowded.memory / GIB, memory / GIB, 0.9),
            of("CPU", "cores", cpu, machine.cores_per_replica, room),
            of("CPU in a rollout", "cores", crowded.cpu + back, machine.cores_per_replica, 1.0),
            of("CPU of the pump", "cores", pump, 1.0, room),
            of("network", "MB/s", network.max(crowded.network) / 1e6, bandwidth / 1e6, room),
        ]
    }

    pub fn shard_uses(&self, load: &Load, plan: Plan) -> Vec<Use> {
        let room = 1.0 - self.machine.headroom;
        let shard: Shard = self.shard(load, plan.replicas, plan.shards);
        let bandwidth = self.machine.network * 1e9 / 8.0;
        let memory = self.machine.memory_per_shard;
        let back = self.rollout_redis(load, plan.replicas);

        vec![
            of("Redis CPU", "cores", shard.cpu.max(shard.hottest), 1.0, room),
            of("Redis in a rollout", "cores", shard.cpu + back / plan.shards, 1.0, 1.0),
            of("Redis output", "MB/s", shard.network / 1e6, bandwidth / 1e6, room),
            of("Redis memory", "GiB", shard.memory / GIB, memory, 0.9),
            of("Redis connections", "", shard.connections, self.constants.redis_connections, 1.0),
        ]
    }

    /// The fewest replicas that each resource asks for, the spare ones included.
    pub fn replicas_needed(&self, load: &Load) -> Vec<Need> {
        let least = self.machine.spare as f64 + 1.0;
        let count = self.replica_uses(load, 2.0).len();

        let need = |at: usize| {
            let fits = |replicas| {
                let used = self.replica_uses(load, replicas)[at];
                used.used <= used.allowed
            };
            Need { name: self.replica_uses(load, least)[at].name, count: fewest(least, fits) }
        };

        (0..count).map(need).collect()
    }

    pub fn shards_needed(&self, load: &Load, replicas: f64) -> Vec<Need> {
        let need = |at: usize| {
            let uses = |shards| self.shard_uses(load, Plan { replicas, shards })[at];
            let fits = |shards| uses(shards).used <= uses(shards).allowed;
            Need { name: uses(1.0).name, count: fewest(1.0, fits) }
        };
        (0..self.shard_uses(load, Plan { replicas, shards: 1.0 }).len()).map(need).collect()
    }

    /// For each resource the load at which it is used up, in times of this load, in
    /// ascending order.
    pub fn breaks(&self, load: &Load, plan: Plan) -> Vec<(&'static str, f64)> {
        let uses = |factor: f64| {
            let load = load.times(factor);
            let mut uses = self.replica_uses(&load, plan.replicas);
            uses.extend(self.shard_uses(&load, plan));
            uses
        };

        let count = uses(1.0).len();
        let mut found = Vec::new();
        for at in 0..count {
            let within = |factor: f64| {
                let used = uses(factor)[at];
                used.used <= used.limit
            };

            let (mut low, mut high) = (1e-4, 1e4);
            if within(high) {
                continue;
            }

            // A bisection on a logarithmic scale: the factors span eight orders of magnitude.
            for _ in 0..60 {
                let middle = f64::sqrt(low * high);
                if within(middle) { low = middle } else { high = middle }
            }
            found.push((uses(1.0)[at].name, low));
        }

        found.sort_by(|a, b| a.1.total_cmp(&b.1));
        found
    }

    /// New connections a second, all replicas together, at the worst of a rollout.
    fn rollout_connects(&self, load: &Load, replicas: f64) -> f64 {
        load.sockets / replicas * self.rollout(replicas).leaving / self.constants.window_s.max(0.1)
    }

    /// The Redis cores that subscriptions need at the worst of a rollout: sockets' own channels,
    /// and the shared ones that the first second's sockets want on the new replicas.
    pub fn rollout_redis(&self, load: &Load, replicas: f64) -> f64 {
        let sockets = load.sockets / replicas * self.rollout(replicas).peak;
        let share = self.comes_back(replicas, sockets) / load.sockets;
        let shared = self.at_once(replicas) * load.channels_of(share) * self.redis_channel_us();
        let own = self.rollout_connects(load, replicas) * self.redis_connect_us(load);
        (own + shared) / 1e6
    }

    pub fn moves(&self, load: &Load, plan: Plan) -> Moves {
        let c = &self.constants;
        let replicas = plan.replicas;
        let Rollout { rounds, peak, moves, .. } = self.rollout(replicas);

        let busy = self.replica(load, replicas, 1.0).cpu;
        let free = (self.machine.cores_per_replica - busy).max(0.01);
        let connect = self.connect_us(load) / 1e6;

        let shared = replicas * load.channels_of(1.0 / replicas) * self.redis_channel_us() / 1e6;
        let redis = load.sockets * self.redis_connect_us(load) / 1e6 + shared;
        let free_redis = (1.0 - self.shard(load, replicas, plan.shards).cpu).max(0.01);

        let lost = load.sockets / replicas;
        let left = (replicas - 1.0).max(1.0);
        Moves {
            peak,
            moves,
            rollout_s: rounds * (c.start_s + c.settle_s + c.window_s),
            connects: self.rollout_connects(load, replicas),
            loss_s: c.backoff_s.max(lost * connect / (left * free)),
            storm_s: c.backoff_s.max(load.sockets * connect / (replicas * free)),
            storm_redis_s: redis / (plan.shards * free_redis),
        }
    }

    /// The price of a month.
    pub fn price(&self, plan: Plan) -> f64 {
        let machine = &self.machine;
        let cores = plan.replicas * machine.cores_per_replica + plan.shards;
        let gib =
            plan.replicas * machine.memory_per_replica + plan.shards * machine.memory_per_shard;
        cores * machine.price_core + gib * machine.price_gib
    }

    pub fn one_shard_only(&self) -> bool {
        self.machine.redis == Topology::Standalone
    }
}

/// The smallest count from `least` up that fits.
fn fewest(least: f64, fits: impl Fn(f64) -> bool) -> Option<f64> {
    let mut high = least;
    while !fits(high) {
        high = (high * 2.0).max(2.0);
        if high > MOST {
            return None;
        }
    }

    let mut low = (high / 2.0).floor().max(least - 1.0);
    while high - low > 1.0 {
        let middle = ((low + high) / 2.0).floor();
        if fits(middle) { high = middle } else { low = middle }
    }

    Some(high)
}

/// The count that meets all needs; `None` if one cannot be met.
pub fn most(needs: &[Need]) -> Option<f64> {
    needs.iter().map(|need| need.count).try_fold(1.0, |most: f64, count| Some(most.max(count?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{model, rooms};

    #[test]
    fn the_fewest_that_fit() {
        for least in [1.0, 2.0] {
            for wanted in [1.0, 2.0, 3.0, 7.0, 64.0, 1_000.0] {
                let found = fewest(least, |count| count >= wanted);
                assert_eq!(found, Some(f64::max(least, wanted)));
            }
        }
        assert_eq!(fewest(1.0, |_| false), None);
    }

    #[test]
    fn what_is_needed_is_enough_and_one_less_is_not() {
        let (model, load) = (model(), rooms(1e6));
        let replicas = most(&model.replicas_needed(&load)).unwrap();
        let fits = |count| model.replica_uses(&load, count).iter().all(|u| u.used <= u.allowed);
        assert!(fits(replicas));
        assert!(!fits(replicas - 1.0));
    }

    #[test]
    fn a_rollout_one_by_one_crowds_the_last_with_e_shares() {
        let mut model = model();
        model.machine.rollout_at_once = 0.001;
        let Rollout { peak, moves, .. } = model.rollout(1_000.0);
        assert!((peak - std::f64::consts::E).abs() < 0.01, "{peak}");
        assert!((moves - (std::f64::consts::E - 1.0)).abs() < 0.01, "{moves}");

        model.machine.rollout_at_once = 1.0;
        assert_eq!(model.rollout(1_000.0).peak, 1.0);
        assert_eq!(model.rollout(1_000.0).moves, 1.0);

        model.machine.rollout_at_once = 0.001;
        model.machine.balancer = Balancer::Least;
        assert_eq!(model.rollout(1_000.0).peak, 1.0);
        assert_eq!(model.rollout(1_000.0).moves, 1.0);
    }

    #[test]
    fn the_first_to_break_breaks_beyond_one_and_the_list_is_in_order() {
        let (model, load) = (model(), rooms(1e6));
        let replicas = most(&model.replicas_needed(&load)).unwrap();
        let breaks = model.breaks(&load, Plan { replicas, shards: 100.0 });
        assert!(breaks[0].1 > 1.0, "{breaks:?}");
        assert!(breaks.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
}
