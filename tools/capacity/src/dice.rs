//! Random draws for the simulation: a channel by its popularity, and how many rare events happen.

use fastrand::Rng;

/// The popularity of ranks: by Zipf's law, or the same for all.
pub struct Popularity {
    /// The running sums of the ranks' weights; empty if all ranks are alike.
    sums: Vec<f64>,
    count: u32,
}

impl Popularity {
    pub fn new(count: u32, zipf: f64) -> Self {
        let mut sums = Vec::new();
        if zipf != 0.0 {
            let mut sum = 0.0;
            sums.extend((1..=count).map(|rank| {
                sum += f64::from(rank).powf(-zipf);
                sum
            }));
        }

        Popularity { sums, count }
    }

    pub fn draw(&self, rng: &mut Rng) -> u32 {
        let Some(total) = self.sums.last() else { return rng.u32(0..self.count) };
        let point = rng.f64() * total;
        (self.sums.partition_point(|sum| *sum <= point) as u32).min(self.count - 1)
    }

    /// The share of all draws that falls on this rank.
    pub fn share(&self, rank: u32) -> f64 {
        let at = rank as usize;
        match self.sums.last() {
            None => 1.0 / f64::from(self.count),
            Some(total) if at == 0 => self.sums[0] / total,
            Some(total) => (self.sums[at] - self.sums[at - 1]) / total,
        }
    }
}

/// Draws how many events happen where so many are expected (Poisson).
pub fn happen(rng: &mut Rng, expected: f64) -> u64 {
    if expected > 60.0 {
        // The normal distribution is close enough here. Two uniform draws make one normal draw (Box
        // and Muller).
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * rng.f64()).cos();
        return (expected + normal * expected.sqrt()).round().max(0.0) as u64;
    }

    let bound = (-expected).exp();
    let (mut count, mut product) = (0, rng.f64());
    while product > bound {
        count += 1;
        product *= rng.f64();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        let mut rng = Rng::with_seed(7);
        for zipf in [0.0, 1.0] {
            let popularity = Popularity::new(10, zipf);
            let mut seen = [0.0; 10];
            for _ in 0..100_000 {
                seen[popularity.draw(&mut rng) as usize] += 1e-5;
            }
            for rank in 0..10 {
                assert!((seen[rank as usize] - popularity.share(rank)).abs() < 0.01);
            }
        }
    }

    #[test]
    fn as_many_happen_as_are_expected_on_average() {
        let mut rng = Rng::with_seed(7);
        for expected in [0.0, 0.5, 20.0, 500.0] {
            let sum: u64 = (0..10_000).map(|_| happen(&mut rng, expected)).sum();
            let mean = sum as f64 / 10_000.0;
            assert!((mean - expected).abs() <= 0.03 * expected, "{expected}: {mean}");
        }
    }
}
