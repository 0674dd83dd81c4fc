//! The load: connected sockets, their channels, and what is published on them. What it costs is
//! `constants`' business, what machines it needs is `plan`'s.

#[derive(Debug, Clone)]
pub struct Load {
    pub sockets: f64,
    pub own_channels: f64,
    /// Publications a second on all sockets' own channels together.
    pub own_events: f64,
    pub shared: Option<Shared>,
    pub payload: f64,
    /// New connections a second.
    pub connects: f64,
}

#[derive(Debug, Clone)]
pub struct Shared {
    pub channels: f64,
    /// Shared channels of one socket.
    pub each: f64,
    pub zipf: f64,
    /// Publications a second.
    pub events: f64,
    /// Whether more sockets have more channels, rather than more sockets sharing each channel.
    pub grows: bool,
}

/// Channels with the same number of subscribers and the same rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    pub channels: f64,
    /// Subscribers of each channel.
    pub sockets: f64,
    /// Publications a second on each channel.
    pub events: f64,
}

/// Each rank up to this one is a group of its own.
const SINGLE: f64 = 256.0;
/// Each further group ends at so many times the rank at which it begins.
const STEP: f64 = 1.05;

impl Load {
    /// The load of `factor` times as many sockets with the same habits.
    pub fn times(&self, factor: f64) -> Self {
        let mut load = self.clone();
        load.sockets *= factor;
        load.own_events *= factor;
        load.connects *= factor;

        if let Some(shared) = &mut load.shared {
            shared.events *= factor;
            if shared.grows {
                shared.channels *= factor;
            }
        }

        load
    }

    /// The shared channels by popularity, the most popular first.
    pub fn groups(&self) -> Vec<Group> {
        let Some(shared) = &self.shared else { return Vec::new() };

        let group = |channels: f64, share: f64| Group {
            channels,
            sockets: self.sockets * (1.0 - (1.0 - share.min(1.0)).powf(shared.each)),
            events: shared.events * share,
        };

        let Shared { channels, zipf, .. } = *shared;
        if zipf == 0.0 {
            return vec![group(channels, 1.0 / channels)];
        }

        let mut weights = Vec::new();
        let mut rank = 1.0;
        while rank <= channels {
            let length = if rank <= SINGLE { 1.0 } else { (rank * (STEP - 1.0)).floor() };
            let length = length.min(channels - rank + 1.0);
            weights.push((length, weight(rank, length, zipf)));
            rank += length;
        }

        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        weights.iter().map(|(length, weight)| group(*length, weight / total / length)).collect()
    }

    /// Publications a second.
    pub fn events(&self) -> f64 {
        self.own_events + self.shared.as_ref().map_or(0.0, |shared| shared.events)
    }

    /// The number of different shared channels that such a share of the sockets has.
    pub fn channels_of(&self, share: f64) -> f64 {
        let of = |g: &Group| g.channels * (1.0 - (1.0 - share.min(1.0)).powf(g.sockets));
        self.groups().iter().map(of).sum()
    }

    /// The number of channels of one socket.
    pub fn subscriptions(&self) -> f64 {
        self.own_channels + self.shared.as_ref().map_or(0.0, |shared| shared.each)
    }
}

/// The weight of `length` ranks from `rank` on, together.
fn weight(rank: f64, length: f64, zipf: f64) -> f64 {
    if length == 1.0 {
        return rank.powf(-zipf);
    }

    // The integral of Zipf's law stands for the sum: at these ranks they hardly differ.
    let (from, to) = (rank - 0.5, rank + length - 0.5);
    if (zipf - 1.0).abs() < 1e-9 {
        (to / from).ln()
    } else {
        (to.powf(1.0 - zipf) - from.powf(1.0 - zipf)) / (1.0 - zipf)
    }
}

/// The expected number of replicas with at least one of `sockets` sockets, which are spread
/// at random.
pub fn interested(replicas: f64, sockets: f64) -> f64 {
    replicas * (1.0 - (1.0 - 1.0 / replicas.max(1.0)).powf(sockets))
}

#[cfg(test)]
impl Load {
    /// A load in which each socket has a quiet channel of its own, and shared ones.
    pub fn sharing(sockets: f64, shared: Shared) -> Self {
        Load {
            sockets,
            own_channels: 1.0,
            own_events: 0.0,
            shared: Some(shared),
            payload: 200.0,
            connects: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(channels: f64, zipf: f64) -> Load {
        let shared = Shared { channels, each: 2.0, zipf, events: 100.0, grows: false };
        Load::sharing(10_000.0, shared)
    }

    #[test]
    fn groups_have_all_channels_and_all_events() {
        for (channels, zipf) in [(1.0, 0.0), (300.0, 0.0), (1_000.0, 1.0), (250_000.0, 0.8)] {
            let groups = load(channels, zipf).groups();
            let sum = |of: fn(&Group) -> f64| groups.iter().map(of).sum::<f64>();
            assert!((sum(|g| g.channels) - channels).abs() < 1e-6);
            assert!((sum(|g| g.channels * g.events) - 100.0).abs() < 1e-6);
        }
    }

    #[test]
    fn groups_of_ranks_weigh_what_their_channels_do() {
        let groups = load(5_000.0, 1.1).groups();
        let exact: f64 = (1..=5_000).map(|rank| f64::from(rank).powf(-1.1)).sum();
        assert!((groups[0].events - 100.0 / exact).abs() / groups[0].events < 0.001);
    }

    #[test]
    fn interest_goes_from_one_replica_to_all() {
        assert_eq!(interested(1.0, 5.0), 1.0);
        assert!((interested(50.0, 1.0) - 1.0).abs() < 1e-9);
        assert!(interested(50.0, 1_000.0) > 49.99);
        assert!((interested(100.0, 100.0) - 63.4).abs() < 0.1);
    }
}
