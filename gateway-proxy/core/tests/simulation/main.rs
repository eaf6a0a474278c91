//! Seeded simulations: the state machines against naive models of Discord and JetStream, with faults.
//!
//! A failure prints its seed. `SIMULATION_SEED=<n>` runs that one, `SIMULATION_SEEDS=<n>` so many.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic; clippy knows only the test functions themselves"
)]

mod discord;
mod fleet;
mod hostile;
mod jetstream;
mod publishing;
mod sessions;
mod world;

use std::env;

/// Runs a simulation for every seed asked for, by default so many.
fn for_each_seed(default: u64, run: impl Fn(u64)) {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_SEEDS").unwrap_or(default),
    };
    for seed in seeds {
        let _report = Report { seed };
        run(seed);
    }
}

/// Prints the seed when the simulation panics.
struct Report {
    seed: u64,
}

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with SIMULATION_SEED={}", self.seed);
        }
    }
}
