//! Runs the simulation with seeds: every publication is delivered once and in order, or passed over
//! behind a declared gap.

use super::simulation::{Choices, Nature, World};

/// Runs one simulation with this seed. Returns how often the history was to be read.
fn live(seed: u64, attacks: u32) -> usize {
    let choices = Choices::Seeded(fastrand::Rng::with_seed(seed));
    let plain = seed % 3 == 2;
    let mut world =
        World::new(choices, Nature { attacks, plain, lies: false, kept: 1 + seed % 40 });
    world.live(2500);
    world.reads
}

#[test]
fn whatever_happens_nothing_is_lost_in_silence() {
    for seed in 0..150 {
        live(seed, 0);
    }
}

/// The same with false claims of any kind, which must neither cost much nor be believed for long.
#[test]
fn field_a6_whatever_is_forged_nothing_is_lost_in_silence() {
    for seed in 0..100 {
        let reads = live(seed, 4);
        assert!(reads < 1500, "seed {seed}: {reads} reads");
    }
}
