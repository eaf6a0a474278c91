use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A model of processes whose CPU follows their shards.
struct Fleet {
    proxies: Vec<ProxyId>,
    // Shard to (index of the proxy, CPU it costs).
    shards: Vec<(usize, f64)>,
    latency_ms: Vec<f64>,
    now: Instant,
    moves: Vec<(Instant, u32, usize, usize)>,
}

impl Fleet {
    fn new(shards: Vec<(usize, f64)>, proxies: usize) -> Self {
        let name = |number| format!("p{number}").parse().unwrap();
        Self {
            proxies: (0..proxies).map(name).collect(),
            shards,
            latency_ms: vec![50.0; proxies],
            now: Instant::now(),
            moves: Vec::new(),
        }
    }

    fn cpu(&self, proxy: usize) -> f64 {
        let own = self.shards.iter().filter(|(held, _)| *held == proxy);
        own.map(|(_, cpu)| cpu).sum()
    }

    /// Observes every 5 s for so long, and does what is asked.
    fn run(&mut self, rebalancer: &mut Rebalancer, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += 5 * SECOND;
            let requests = {
                let fleet = self.observed();
                rebalancer.observe(&fleet, self.now);
                rebalancer.requests(&fleet, self.now)
            };
            for request in requests {
                let to = self.proxies.iter().position(|proxy| *proxy == request.to);
                let to = to.unwrap();
                let from = std::mem::replace(&mut self.shards[request.shard as usize].0, to);
                assert_eq!(request.reason, Reason::Load);
                self.moves.push((self.now, request.shard, from, to));
            }
        }
    }

    fn observed(&self) -> Vec<Observed<'_>> {
        let observe = |(number, proxy)| {
            let own = self.shards.iter().enumerate();
            let own = own.filter(|(_, (held, _))| *held == number);
            Observed {
                proxy,
                load: Load {
                    cpu_percent: self.cpu(number),
                    latency_ms: Some(self.latency_ms[number]),
                    ..Load::default()
                },
                takes: true,
                room: 100,
                shards: own
                    .map(|(shard, (_, cpu))| ShardLoad {
                        shard: shard as u32,
                        events_per_second: cpu * 10.0,
                    })
                    .collect(),
            }
        };
        self.proxies.iter().enumerate().map(observe).collect()
    }
}

#[test]
fn sustained_heat_moves_shards_away_until_it_is_cool_and_then_nothing_more() {
    let mut rebalancer = Rebalancer::new(30);
    let mut shards = vec![(0, 10.0); 10];
    shards.extend([(1, 5.0); 4]);
    let mut fleet = Fleet::new(shards, 2);
    fleet.run(&mut rebalancer, 55 * SECOND);
    assert!(fleet.moves.is_empty(), "not sustained yet");
    fleet.run(&mut rebalancer, 20 * SECOND);
    assert_eq!(fleet.moves.len(), 3);
    assert!(fleet.cpu(0) <= 70.0 && fleet.cpu(1) < COOL_CPU_PERCENT);
    fleet.run(&mut rebalancer, 4 * 3600 * SECOND);
    assert_eq!(fleet.moves.len(), 3);
}

#[test]
fn a_spike_moves_nothing() {
    let mut rebalancer = Rebalancer::new(30);
    let mut fleet = Fleet::new(vec![(0, 10.0); 6], 2);
    for _ in 0..50 {
        fleet.shards.push((0, 60.0));
        fleet.run(&mut rebalancer, 50 * SECOND);
        fleet.shards.pop();
        fleet.run(&mut rebalancer, 10 * SECOND);
    }
    assert!(fleet.moves.is_empty());
}

#[test]
fn latency_moves_one_shard_and_waits_for_the_effect() {
    let mut rebalancer = Rebalancer::new(30);
    let mut fleet = Fleet::new(vec![(0, 1.0); 8], 2);
    fleet.latency_ms[0] = 900.0;
    fleet.run(&mut rebalancer, 70 * SECOND);
    assert_eq!(fleet.moves.len(), 1);
    fleet.run(&mut rebalancer, 50 * SECOND);
    assert_eq!(fleet.moves.len(), 1);
    fleet.run(&mut rebalancer, 30 * SECOND);
    assert_eq!(fleet.moves.len(), 2);
}

#[test]
fn the_last_shard_and_one_that_fits_nowhere_stay() {
    let mut rebalancer = Rebalancer::new(30);
    let mut fleet = Fleet::new(vec![(0, 95.0), (1, 10.0)], 2);
    fleet.run(&mut rebalancer, 3600 * SECOND);
    assert!(fleet.moves.is_empty());
    // Everybody is hot.
    let mut fleet = Fleet::new(vec![(0, 45.0), (0, 45.0), (1, 45.0), (1, 45.0)], 2);
    fleet.run(&mut rebalancer, 3600 * SECOND);
    assert!(fleet.moves.is_empty());
}

#[test]
fn moves_per_minute_are_limited_together_with_those_of_joining() {
    let mut rebalancer = Rebalancer::new(4);
    let mut fleet = Fleet::new(vec![(0, 5.0); 60], 8);
    fleet.run(&mut rebalancer, 1800 * SECOND);
    assert!(!fleet.moves.is_empty());
    for (at, ..) in &fleet.moves {
        let window = fleet.moves.iter().filter(|(other, ..)| {
            *other >= *at && other.saturating_duration_since(*at) < 60 * SECOND
        });
        assert!(window.count() <= 4);
    }
    let now = fleet.now + 60 * SECOND;
    rebalancer.handle_moved(3, now);
    assert_eq!(rebalancer.moves_left(now), 1);
    rebalancer.handle_moved(1, now + SECOND);
    assert_eq!(
        rebalancer.moves_again_at(now + SECOND),
        Some(now + 60 * SECOND)
    );
    assert_eq!(rebalancer.moves_left(now + 60 * SECOND), 3);
}

#[test]
fn nothing_plays_ping_pong_however_the_load_jumps() {
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = (0..24).map(|shard| (shard % 3, 2.0 + rng.f64() * 12.0));
        let mut fleet = Fleet::new(shards.collect(), 3);
        let mut rebalancer = Rebalancer::new(10);
        for _ in 0..60 {
            let shard = rng.usize(0..24);
            fleet.shards[shard].1 = rng.f64() * 20.0;
            let proxy = rng.usize(0..3);
            fleet.latency_ms[proxy] = rng.f64() * 900.0;
            fleet.run(&mut rebalancer, 120 * SECOND);
        }
        for (index, (at, shard, from, to)) in fleet.moves.iter().enumerate() {
            assert_ne!(from, to);
            for (later, other, _, _) in &fleet.moves[index + 1..] {
                let apart = later.saturating_duration_since(*at);
                assert!(other != shard || apart >= SHARD_RESTS, "seed {seed}");
            }
            for (later, _, giver, _) in &fleet.moves[index + 1..] {
                let apart = later.saturating_duration_since(*at);
                assert!(giver != to || apart >= RECEIVER_RESTS, "seed {seed}");
            }
        }
    }
}

#[test]
fn figures_that_are_no_numbers_count_as_nothing() {
    let mut rebalancer = Rebalancer::new(10);
    let mut fleet = Fleet::new(vec![(0, f64::NAN), (0, f64::INFINITY), (1, -5.0)], 2);
    fleet.latency_ms = vec![f64::NAN, f64::NEG_INFINITY];
    fleet.run(&mut rebalancer, 600 * SECOND);
    assert!(fleet.moves.is_empty());
}
