//! The simulated deployment: the replica and the shared channels of each socket, and what follows
//! from them for each replica and Redis server. All of it stays true while sockets move; when they
//! move is decided in `simulate` and `upheaval`.

use anyhow::{Result, bail};
use fastrand::Rng;

use crate::dice::Popularity;
use crate::load::Load;
use crate::model::Model;
use crate::options::Balancer;
use crate::plan::Plan;

/// Stands for no replica, and for a channel that was drawn twice.
pub const NONE: u32 = u32::MAX;
/// The most entries of a table.
const LARGEST: usize = 500_000_000;

/// One replica. Its rates follow from the sockets that it has.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub alive: bool,
    pub sockets: u32,
    /// Shared channels with at least one socket here.
    pub channels: u32,
    /// Publications and deliveries a second on shared channels.
    pub publications: f64,
    pub deliveries: f64,
    pub writes: f64,
}

/// What happens on one shared channel in a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    events: f64,
    /// Writes to each of its sockets.
    writes: f64,
}

/// One Redis server.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// What is published on shared channels in a second, and what is pushed to replicas.
    pub publications: f64,
    pub pushes: f64,
    /// Subscriptions of replicas to shared channels, and channels of sockets' own.
    pub subscriptions: u64,
    pub own: u64,
}

pub struct World {
    pub rng: Rng,
    /// Each socket's replica.
    pub at: Vec<u32>,
    pub places: Vec<Place>,
    pub servers: Vec<Server>,
    pub channels: u32,
    pub popularity: Option<Popularity>,
    rates: Vec<Rate>,
    /// Each socket's shared channels, `each` apart.
    memberships: Vec<u32>,
    each: usize,
    /// The number of sockets of channel c at replica r, at c * places + r.
    counts: Vec<u32>,
    balancer: Balancer,
    /// Replicas that had the fewest sockets when they were last looked at, and how many that was.
    emptiest: Vec<u32>,
    least: u32,
    own: bool,
}

impl World {
    /// A deployment in which all sockets are connected. `more`: places for replicas that a
    /// rollout brings.
    pub fn new(model: &Model, load: &Load, plan: Plan, (seed, more): (u64, u32)) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let sockets = load.sockets as usize;
        let (channels, each, zipf, events) = match &load.shared {
            Some(s) => (s.channels as u32, s.each as usize, s.zipf, s.events),
            None => (0, 0, 0.0, 0.0),
        };

        let replicas = plan.replicas as u32;
        let table = channels as usize * (replicas + more) as usize;
        if table > LARGEST || sockets * each > LARGEST {
            bail!("{channels} channels on {replicas} replicas are too many to simulate");
        }

        let popularity = (channels > 0).then(|| Popularity::new(channels, zipf));
        let rates = match &popularity {
            Some(popularity) => {
                let rate = |channel| {
                    let events = events * popularity.share(channel);
                    Rate { events, writes: events / model.batch(events) }
                };
                (0..channels).map(rate).collect()
            }
            None => Vec::new(),
        };

        let memberships = memberships(&mut rng, popularity.as_ref(), (sockets, each));
        let mut world = World {
            rng,
            at: vec![NONE; sockets],
            places: vec![Place::default(); (replicas + more) as usize],
            servers: vec![Server::default(); plan.shards as usize],
            channels,
            popularity,
            rates,
            memberships,
            each,
            counts: vec![0; table],
            balancer: model.machine.balancer,
            emptiest: Vec::new(),
            least: 0,
            own: load.own_channels > 0.0,
        };

        for channel in 0..channels {
            let server = world.server_of(channel);
            world.servers[server].publications += world.rates[channel as usize].events;
        }

        world.places[..replicas as usize].iter_mut().for_each(|place| place.alive = true);
        for socket in 0..sockets {
            world.connect(socket);
        }
        Ok(world)
    }

    /// The server of a shared channel, as Redis Cluster finds it: the channel's hash is one of
    /// 16,384 slots, and each server has a range of slots.
    pub fn server_of(&self, channel: u32) -> usize {
        let hash = (u64::from(channel) ^ 0x9e37_79b9).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        hash as usize * self.servers.len() / 16_384
    }

    /// The server of a socket's own channel.
    pub fn server_of_own(&self, socket: usize) -> usize {
        self.server_of((socket as u32).wrapping_add(self.channels))
    }

    /// Where the load balancer puts the next connection.
    fn choose(&mut self) -> u32 {
        match self.balancer {
            Balancer::Random => loop {
                let at = self.rng.usize(..self.places.len());
                if self.places[at].alive {
                    return at as u32;
                }
            },
            Balancer::Least => loop {
                while let Some(at) = self.emptiest.pop() {
                    let place = &self.places[at as usize];
                    if place.alive && place.sockets == self.least {
                        return at;
                    }
                }

                // The list is used up: other replicas have the fewest sockets now.
                let alive = || self.places.iter().enumerate().filter(|(_, place)| place.alive);
                self.least = alive().map(|(_, place)| place.sockets).min().unwrap_or(0);
                let emptiest = alive().filter(|(_, place)| place.sockets == self.least);
                self.emptiest = emptiest.map(|(at, _)| at as u32).collect();
            },
        }
    }

    /// Connects a socket. Answers at which replica, and on how many channels it is the first there.
    pub fn connect(&mut self, socket: usize) -> (usize, u32) {
        let place = self.choose();
        self.at[socket] = place;
        self.places[place as usize].sockets += 1;

        if self.own {
            let server = self.server_of_own(socket);
            self.servers[server].own += 1;
        }

        let mut first = 0;
        for channel in self.channels_of(socket) {
            let rate = self.rates[channel as usize];
            let at = channel as usize * self.places.len() + place as usize;
            self.counts[at] += 1;
            let place = &mut self.places[place as usize];
            place.deliveries += rate.events;
            place.writes += rate.writes;

            if self.counts[at] == 1 {
                first += 1;
                place.channels += 1;
                place.publications += rate.events;
                let server = self.server_of(channel);
                self.servers[server].pushes += rate.events;
                self.servers[server].subscriptions += 1;
            }
        }

        (place as usize, first)
    }

    pub fn disconnect(&mut self, socket: usize) {
        let place = std::mem::replace(&mut self.at[socket], NONE);
        if place == NONE {
            return;
        }

        self.places[place as usize].sockets -= 1;
        if self.places[place as usize].alive {
            // This replica may be the emptiest now.
            self.emptiest.clear();
        }
        if self.own {
            let server = self.server_of_own(socket);
            self.servers[server].own -= 1;
        }

        for channel in self.channels_of(socket) {
            let rate = self.rates[channel as usize];
            let at = channel as usize * self.places.len() + place as usize;
            self.counts[at] -= 1;
            let place = &mut self.places[place as usize];
            place.deliveries -= rate.events;
            place.writes -= rate.writes;

            if self.counts[at] == 0 {
                place.channels -= 1;
                place.publications -= rate.events;
                let server = self.server_of(channel);
                self.servers[server].pushes -= rate.events;
                self.servers[server].subscriptions -= 1;
            }
        }
    }

    fn channels_of(&self, socket: usize) -> impl Iterator<Item = u32> + use<> {
        // The channels are few and copied, so that the world may change meanwhile.
        let mut channels = [NONE; 32];
        let each = self.each.min(32);
        let from = socket * self.each;
        channels[..each].copy_from_slice(&self.memberships[from..from + each]);
        channels.into_iter().take(each).filter(|channel| *channel != NONE)
    }

    /// The number of a shared channel's sockets at each replica.
    pub fn row(&self, channel: u32) -> &[u32] {
        let from = channel as usize * self.places.len();
        &self.counts[from..from + self.places.len()]
    }

    /// The sockets at a replica.
    pub fn sockets_at(&self, place: usize) -> Vec<u32> {
        let there = |(_, at): &(usize, &u32)| **at == place as u32;
        self.at.iter().enumerate().filter(there).map(|(socket, _)| socket as u32).collect()
    }
}

/// Draws the channels of each socket, `each` apart.
fn memberships(
    rng: &mut Rng,
    popularity: Option<&Popularity>,
    (sockets, each): (usize, usize),
) -> Vec<u32> {
    let Some(popularity) = popularity else { return Vec::new() };
    let mut memberships = Vec::with_capacity(sockets * each);

    for _ in 0..sockets {
        let start = memberships.len();
        for _ in 0..each {
            let channel = popularity.draw(rng);
            let twice = memberships[start..].contains(&channel);
            memberships.push(if twice { NONE } else { channel });
        }
    }

    memberships
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::tests::{model, rooms};
    use crate::options::Balancer;

    pub fn small() -> World {
        let plan = Plan { replicas: 5.0, shards: 3.0 };
        World::new(&model(), &rooms(10_000.0), plan, (1, 1)).unwrap()
    }

    #[test]
    fn everybody_is_somewhere_and_nobody_where_no_replica_is() {
        let world = small();
        assert_eq!(world.places.iter().map(|p| p.sockets).sum::<u32>(), 10_000);
        assert_eq!(world.places[5].sockets, 0);
        assert_eq!(world.servers.iter().map(|s| s.own).sum::<u64>(), 10_000);
    }

    #[test]
    fn what_is_kept_while_sockets_move_is_what_counting_anew_gives() {
        let mut world = small();
        for socket in 0..5_000 {
            world.disconnect(socket);
        }
        for socket in 0..2_500 {
            world.connect(socket);
        }

        for (at, place) in world.places.iter().enumerate() {
            let here: u32 = (0..world.channels).map(|c| world.row(c)[at]).sum();
            assert_eq!(here, place.sockets);
            assert!((place.deliveries - f64::from(here) * 10.0).abs() < 1e-6);
        }

        let pushes: f64 = world.servers.iter().map(|s| s.pushes).sum();
        let publications: f64 = world.places.iter().map(|p| p.publications).sum();
        assert!((pushes - publications).abs() < 1e-6);
    }

    #[test]
    fn the_balancer_that_counts_keeps_all_alike() {
        let plan = Plan { replicas: 7.0, shards: 1.0 };
        let mut model = model();
        model.machine.balancer = Balancer::Least;
        let world = World::new(&model, &rooms(1_000.0), plan, (1, 0)).unwrap();
        assert!(world.places.iter().all(|p| (142..=143).contains(&p.sockets)));
    }
}
