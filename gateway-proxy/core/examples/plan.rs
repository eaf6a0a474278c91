//! How long a plan takes: `cargo run --release -p gateway-proxy-core --example plan`.

use std::collections::BTreeMap;
use std::time::Instant;

use gateway_proxy_core::fleet::plan::{Candidate, Input, plan};
use schemas::Plan;

const SHARDS: u32 = 10_000;
const PROXIES: u32 = 200;
const ROUNDS: u32 = 20;

fn member(number: u32) -> Candidate {
    Candidate {
        proxy: format!("proxy-{number}").parse().expect("a valid name"),
        max_shards: Some(60 + number % 7),
        zone: Some(format!("zone-{}", number % 3)),
        pinned: None,
        draining: false,
        hot: false,
    }
}

/// Plans as often as [`ROUNDS`] says and tells the fastest and the slowest: on a busy machine the
/// latter is the scheduler's.
fn measure(name: &str, members: &[Candidate], previous: Option<&Plan>) -> Plan {
    let holders = BTreeMap::new();
    let input = Input {
        shard_count: SHARDS,
        members,
        previous,
        holders: &holders,
        requests: &[],
        moves_max: u32::MAX,
    };
    let mut times = Vec::new();
    let mut outcome = plan(&input);
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        outcome = plan(&input);
        times.push(begin.elapsed());
    }
    times.sort();
    let (fastest, slowest) = (times[0], times[times.len() - 1]);
    eprintln!(
        "{name}: {} moves, {ROUNDS} times: {fastest:?} to {slowest:?}",
        outcome.moves.len()
    );
    outcome
        .to_plan(&input, 1, 0)
        .unwrap_or_else(|| previous.expect("a plan that does not change").clone())
}

fn main() {
    let mut members: Vec<Candidate> = (0..PROXIES).map(member).collect();
    let first = measure("first plan", &members, None);
    let same = measure("nothing changes", &members, Some(&first));
    members.drain(0..20);
    let fewer = measure("20 proxies die", &members, Some(&same));
    members.extend((PROXIES..PROXIES + 20).map(member));
    measure("20 proxies join", &members, Some(&fewer));
}
