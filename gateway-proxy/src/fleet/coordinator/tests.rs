use gateway_proxy_core::fleet::TTL;
use schemas::{Load, ShardId};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const SHARDS: u32 = 8;
/// As with a TTL of 16 s.
const SETTLE: Duration = Duration::from_secs(20);

/// A coordinator and the members it sees, who follow every plan at once.
struct Fleet {
    coordinator: Coordinator,
    view: View,
    members: BTreeMap<ProxyId, Member>,
    revision: u64,
    now: Instant,
    begun: Instant,
}

/// A shard that changed hands, and when.
#[derive(Debug, PartialEq, Eq)]
struct Moved {
    shard: u32,
    to: ProxyId,
    after: Duration,
}

impl Fleet {
    fn of(names: &[&str]) -> Self {
        let process = ProcessStatus::new(proxy("a"));
        let metrics = Metrics::new(Arc::clone(&process));
        let sharding = Sharding {
            wish: Some(SHARDS),
            first: SHARDS,
            void_plan: None,
        };
        let now = Instant::now();
        let mut view = View::new(proxy("a"), TTL, SETTLE);
        view.handle_reset();
        view.handle_listed(now);
        let member = |name: &&str| {
            let member = Member {
                fleet: true,
                wants_shards: Some(SHARDS),
                instance: Some((*name).to_owned()),
                ..serde_json::from_str::<Member>(r#"{"version":"1.0.0"}"#).unwrap()
            };
            (proxy(name), member)
        };
        let mut fleet = Self {
            coordinator: Coordinator::new(metrics, process, sharding),
            view,
            members: names.iter().map(member).collect(),
            revision: 0,
            now,
            begun: now,
        };
        // Everybody has a share before anything else is looked at.
        for _ in 0..5 {
            fleet.second();
        }
        fleet.begun = fleet.now;
        fleet
    }

    /// The watch begins anew, as after NATS was away.
    fn look_anew(&mut self) {
        self.view.handle_reset();
        self.view.handle_listed(self.now);
        self.begun = self.now;
    }

    fn cpu(&mut self, name: &str, percent: f64) {
        let load = Load {
            cpu_percent: percent,
            latency_ms: Some(40.0),
            events_per_second: 1_000.0,
            ..Load::default()
        };
        self.members.get_mut(&proxy(name)).unwrap().load = load;
    }

    /// Heartbeats, a look, and what came of it.
    fn second(&mut self) -> Vec<Moved> {
        self.now += SECOND;
        for (proxy, member) in &self.members {
            self.revision += 1;
            let value = serde_json::to_vec(member).unwrap();
            let (view, now) = (&mut self.view, self.now);
            view.handle_put(proxy, self.revision, &value, now).unwrap();
        }
        let Some(work) = self.coordinator.turn(1, &self.view, self.now) else {
            return Vec::new();
        };
        self.revision += 1;
        let plan = work.plan;
        let mut moved = Vec::new();
        for (id, to) in &plan.shards {
            let shard = ShardId::new(*id, SHARDS).unwrap();
            if self.members[to].shards.contains(&shard) {
                continue;
            }
            for member in self.members.values_mut() {
                member.shards.retain(|held| *held != shard);
            }
            self.members.get_mut(to).unwrap().shards.push(shard);
            moved.push(Moved {
                shard: *id,
                to: to.clone(),
                after: self.now - self.begun,
            });
        }
        let revision = self.revision;
        self.coordinator
            .hear(Done::Written { plan, revision }, self.now);
        moved
    }

    fn run(&mut self, seconds: u32) -> Vec<Moved> {
        (0..seconds).flat_map(|_| self.second()).collect()
    }

    fn held(&self, name: &str) -> usize {
        self.members[&proxy(name)].shards.len()
    }
}

fn proxy(name: &str) -> ProxyId {
    name.parse().unwrap()
}

#[test]
fn a_proxy_that_stays_overloaded_gives_shards_away_with_rests_between() {
    let mut fleet = Fleet::of(&["a", "b"]);
    assert_eq!((fleet.held("a"), fleet.held("b")), (4, 4));
    fleet.cpu("a", 95.0);
    fleet.cpu("b", 10.0);
    let moved = fleet.run(300);
    assert!(!moved.is_empty(), "95 % for five minutes");
    assert!(fleet.held("a") >= 1, "moving the last one helps nobody");
    assert!(moved.iter().all(|one| one.to == proxy("b")), "{moved:?}");
    // Each round waits for the load to last, or for the effect of the one before.
    let mut rounds: Vec<Duration> = moved.iter().map(|one| one.after).collect();
    rounds.dedup();
    let mut before = Duration::ZERO;
    for round in rounds {
        assert!(round - before >= Duration::from_secs(60), "{moved:?}");
        before = round;
    }
    // It cools down: what was moved stays where it is.
    let held = (fleet.held("a"), fleet.held("b"));
    fleet.cpu("a", 30.0);
    assert_eq!(fleet.run(600), []);
    assert_eq!((fleet.held("a"), fleet.held("b")), held);
}

#[test]
fn load_that_comes_and_goes_moves_nothing() {
    let mut fleet = Fleet::of(&["a", "b"]);
    fleet.cpu("b", 10.0);
    for round in 0..20 {
        fleet.cpu("a", if round % 2 == 0 { 99.0 } else { 40.0 });
        assert_eq!(fleet.run(30), []);
    }
}

#[test]
fn when_all_are_overloaded_nobody_gets_more() {
    let mut fleet = Fleet::of(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        fleet.cpu(name, 97.0);
    }
    assert_eq!(fleet.run(600), []);
}

#[test]
fn a_plan_waits_for_members_that_may_only_be_late_and_for_nobody_else() {
    let mut fleet = Fleet::of(&["a", "b"]);
    assert_eq!((fleet.held("a"), fleet.held("b")), (4, 4), "within 5 s");
    // NATS was away, and one of them has not returned.
    let b = fleet.members.remove(&proxy("b")).unwrap();
    fleet.look_anew();
    assert_eq!(fleet.run(19), []);
    assert_eq!(fleet.run(2).len(), b.shards.len());
    // All have returned: a member that joins gets its share at once.
    fleet.look_anew();
    let joining = Member {
        shards: Vec::new(),
        ..b
    };
    fleet.members.insert(proxy("b"), joining);
    assert_eq!(fleet.run(5).len(), 4);
}
