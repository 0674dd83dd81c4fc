//! Many sockets that move: the loss of a replica, a cut of all connections at once, and a rollout.
//! Each socket has its own waits; ordinary events go on at their mean rates.

use crate::load::Load;
use crate::model::{GIB, Model};
use crate::plan::Plan;
use crate::simulate::{Compared, Meter, Seen};
use crate::world::{Place, World};

/// The length of a tick in seconds.
const TICK: f64 = 0.01;
/// A return that takes more seconds than this is not played to its end.
const LONGEST: f64 = 600.0;

/// CPU seconds of a new connection, at the replica and in Redis, if it is the first there on so
/// many shared channels.
pub fn connect_cost(model: &Model, load: &Load, first: u32) -> (f64, f64) {
    let c = &model.constants;
    let first = f64::from(first);
    let here = model.connect_us(load) + first * (c.channel_us - c.subscription_us).max(0.0);
    let own = load.own_channels;
    let redis = model.redis_connect_us(load) * (own + first) / own.max(1.0);
    (here / 1e6, redis / 1e6)
}

pub fn upheaval(model: &Model, load: &Load, plan: Plan, world: &mut World) -> Vec<Compared> {
    let moves = model.moves(load, plan);
    let mut rows = Vec::new();

    if plan.replicas > 1.0 {
        let (seen, _) = lose(model, load, world, 0);
        rows.push(seen.row("back after a loss, s", moves.loss_s));
        let mut sockets = Seen::default();
        let alive = world.places.iter().filter(|place| place.alive);
        alive.for_each(|place| sockets.add(f64::from(place.sockets)));
        rows.push(sockets.row("sockets after a loss", load.sockets / (plan.replicas - 1.0)));
        world.places[0].alive = true;
    }

    let (seen, waiting) = cut_all(model, load, world);
    let formula = moves.storm_s.max(moves.storm_redis_s);
    rows.push(seen.row("back after all were cut, s", formula));
    rows.push(
        waiting.row(
            "queue of a replica then, s",
            (moves.storm_s - model.constants.backoff_s).max(0.0),
        ),
    );

    rows.extend(rollout(model, load, plan, world));
    rows
}

fn lose(model: &Model, load: &Load, world: &mut World, place: usize) -> (Seen, Seen) {
    let sockets = world.sockets_at(place);
    world.places[place].alive = false;
    come_back(model, load, world, sockets)
}

fn cut_all(model: &Model, load: &Load, world: &mut World) -> (Seen, Seen) {
    let sockets = (0..world.at.len() as u32).collect();
    come_back(model, load, world, sockets)
}

/// Cuts all of the sockets off at once. Answers after how many seconds each had its subscriptions
/// again, and how long work waited at the replicas.
fn come_back(model: &Model, load: &Load, world: &mut World, mut sockets: Vec<u32>) -> (Seen, Seen) {
    sockets.iter().for_each(|socket| world.disconnect(*socket as usize));
    world.rng.shuffle(&mut sockets);

    let spread = model.constants.backoff_s.max(TICK);
    // An even flow in random order equals a random time for each socket, but for the noise.
    let each_tick = sockets.len() as f64 * TICK / spread;

    let mut replicas = vec![Meter::default(); world.places.len()];
    let mut servers = vec![Meter::default(); world.servers.len()];
    let (mut back, mut waits) = (Seen::default(), Seen::default());
    let (mut done, mut now) = (0, 0.0);

    while done < sockets.len() && now < LONGEST {
        let until = (((now / TICK).round() + 1.0) * each_tick).ceil() as usize;
        for socket in &sockets[done..until.min(sockets.len())] {
            let socket = *socket as usize;
            let (at, first) = world.connect(socket);
            let (here, redis) = connect_cost(model, load, first);
            replicas[at].work += here;
            let server = world.server_of_own(socket);
            servers[server].work += redis;

            let ahead =
                (replicas[at].waiting + replicas[at].work) / model.machine.cores_per_replica;
            let redis = servers[server].waiting + servers[server].work;
            back.add(now + ahead.max(redis));
        }
        done = until.min(sockets.len());

        for (meter, place) in replicas.iter_mut().zip(&world.places) {
            meter.work += ordinary(model, load, place) * TICK;
            waits.add(meter.tick(model.machine.cores_per_replica, TICK));
        }
        for (meter, server) in servers.iter_mut().zip(&world.servers) {
            meter.work += publishing(model, load, world, server) * TICK;
            meter.tick(1.0, TICK);
        }
        now += TICK;
    }

    (back, waits)
}

/// The cores that events and pings need at a replica, at their mean rates.
fn ordinary(model: &Model, load: &Load, place: &Place) -> f64 {
    let c = &model.constants;
    let sockets = f64::from(place.sockets);
    let own = load.own_events * sockets / load.sockets;
    ((place.publications + own) * c.publication_us
        + (place.writes + own) * c.write_us
        + (place.deliveries + own) * c.event_us
        + sockets * c.ping_us / c.ping_interval_s)
        / 1e6
}

/// The share of a Redis server's core that publications need.
fn publishing(model: &Model, load: &Load, world: &World, server: &crate::world::Server) -> f64 {
    let replicas = world.places.iter().filter(|place| place.alive).count() as f64;
    let own = load.own_events * server.own as f64 / load.sockets;
    let publications = server.publications + own;
    if publications == 0.0 {
        return 0.0;
    }

    let on = (server.pushes + own) / publications;
    let each = model.publish_us(on, replicas, model.batch(publications));
    (publications * each + model.housekeeping_us(replicas)) / 1e6
}

/// What a rollout has seen.
#[derive(Default)]
struct Rollout {
    sockets: Seen,
    memory: Seen,
    cpu: Seen,
    redis: Seen,
    connects: Seen,
    moved: u64,
    seconds: f64,
}

fn rollout(model: &Model, load: &Load, plan: Plan, world: &mut World) -> Vec<Compared> {
    let step = model.at_once(plan.replicas) as usize;
    let c = &model.constants;
    let mut seen = Rollout::default();
    let mut old: Vec<usize> =
        (0..world.places.len()).filter(|at| world.places[*at].alive).collect();

    while !old.is_empty() {
        let leaving: Vec<usize> = old.drain(..step.min(old.len())).collect();
        let free: Vec<usize> =
            (0..world.places.len()).filter(|at| !world.places[*at].alive).collect();

        // New replicas come before old ones go.
        free.iter().take(leaving.len()).for_each(|at| world.places[*at].alive = true);
        leaving.iter().for_each(|at| world.places[*at].alive = false);
        drain(model, load, world, (&leaving, &mut seen));
        leaving.iter().for_each(|at| world.places[*at] = Place::default());
        seen.seconds += c.start_s + c.settle_s + c.window_s;
    }

    let moves = model.moves(load, plan);
    let formula = model.replica(load, plan.replicas, moves.peak);
    let back = model.comes_back(plan.replicas, formula.sockets) * model.connect_us(load) / 1e6;
    let shard = model.shard(load, plan.replicas, plan.shards).cpu;
    let redis = model.rollout_redis(load, plan.replicas) / plan.shards;

    let whole = |name, formula, value| Compared { name, formula, mean: value, peak: value };
    vec![
        seen.sockets.row("sockets in a rollout", formula.sockets),
        seen.memory.row("memory in a rollout, GiB", formula.memory / GIB),
        seen.cpu.row("CPU in a rollout, cores", formula.cpu + back),
        seen.redis.row("Redis in a rollout, cores", shard + redis),
        seen.connects.row("reconnects in a rollout, /s", moves.connects),
        whole("moves of a socket", moves.moves, seen.moved as f64 / load.sockets),
        whole("rollout, s", moves.rollout_s, seen.seconds),
    ]
}

/// The sockets of these replicas leave within the window, each at a time of its own.
fn drain(model: &Model, load: &Load, world: &mut World, (leaving, seen): (&[usize], &mut Rollout)) {
    let window = model.constants.window_s.max(1.0);
    let seconds = (window + model.constants.backoff_s).ceil() as usize;
    let mut arrivals: Vec<Vec<u32>> = vec![Vec::new(); seconds + 1];

    for (socket, at) in world.at.iter().enumerate() {
        if leaving.contains(&(*at as usize)) {
            let wait = world.rng.f64() * window + world.rng.f64() * model.constants.backoff_s;
            arrivals[wait as usize].push(socket as u32);
        }
    }

    for sockets in arrivals {
        let mut work = vec![0.0; world.places.len()];
        let mut servers = vec![0.0; world.servers.len()];
        for socket in &sockets {
            world.disconnect(*socket as usize);
            let (at, first) = world.connect(*socket as usize);
            let (here, redis) = connect_cost(model, load, first);
            work[at] += here;
            servers[world.server_of_own(*socket as usize)] += redis;
        }

        seen.moved += sockets.len() as u64;
        seen.connects.add(sockets.len() as f64);
        for (server, work) in world.servers.iter().zip(servers) {
            seen.redis.add(publishing(model, load, world, server) + work);
        }

        for (place, work) in world.places.iter().zip(work).filter(|(place, _)| place.alive) {
            seen.sockets.add(f64::from(place.sockets));
            let memory = model.memory(load, f64::from(place.sockets), f64::from(place.channels));
            seen.memory.add(memory / GIB);
            seen.cpu.add(ordinary(model, load, place) + work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{model, rooms};

    fn played() -> (Model, Load, World) {
        let (model, load) = (model(), rooms(20_000.0));
        let plan = Plan { replicas: 8.0, shards: 2.0 };
        let world = World::new(&model, &load, plan, (3, 2)).unwrap();
        (model, load, world)
    }

    #[test]
    fn after_a_loss_everybody_is_on_the_others() {
        let (model, load, mut world) = played();
        let (back, _) = lose(&model, &load, &mut world, 0);
        assert_eq!(world.places[0].sockets, 0);
        assert_eq!(world.places.iter().map(|p| p.sockets).sum::<u32>(), 20_000);
        assert!(back.peak <= 1.1, "{}", back.peak);
    }

    #[test]
    fn a_storm_takes_as_long_as_its_work() {
        let (mut model, load, mut world) = played();
        model.constants.handshake_us = 4_000.0;
        let (back, waits) = cut_all(&model, &load, &mut world);
        // Each replica has 2,500 handshakes of 4 ms, on two cores less what events need.
        assert!((5.0..6.5).contains(&back.peak), "{}", back.peak);
        assert!(waits.peak > 4.0, "{}", waits.peak);
    }

    #[test]
    fn a_rollout_replaces_all_and_crowds_the_last() {
        let (model, load, mut world) = played();
        let plan = Plan { replicas: 8.0, shards: 2.0 };
        let rows = rollout(&model, &load, plan, &mut world);
        assert_eq!(world.places.iter().filter(|place| place.alive).count(), 8);
        assert_eq!(world.places.iter().map(|p| p.sockets).sum::<u32>(), 20_000);
        for row in rows.iter().filter(|row| row.name.contains("sockets")) {
            assert!((row.peak / row.formula - 1.0).abs() < 0.1, "{} {}", row.peak, row.formula);
        }
    }
}
