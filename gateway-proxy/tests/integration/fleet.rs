//! Proxies that share shards: whatever happens to one of them, each session goes on elsewhere, nothing is
//! lost or doubled, and no IDENTIFY is spent.

mod sharding;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use schemas::health::ClusterState;
use schemas::{FleetKey, Leader, Plan};
use testkit::audit::AuditReport;
use testkit::simulator::{Action, Config, GuildBytes, Load, Rule, Step};

use crate::harness::{Proxy, Run, eventually, patience};
use crate::relay::Relay;
use crate::rig::Rig;

/// Twelve shards, a little load, and Discord's own identify window. The guilds are small: a lease must be
/// renewed on a machine that builds something else meanwhile.
fn twelve_shards() -> Config {
    Config {
        guilds: 60,
        guild_bytes: GuildBytes {
            median: 1_500,
            max: 15_000,
            ..GuildBytes::default()
        },
        shards: 12,
        max_concurrency: 12,
        heartbeat_interval: Duration::from_secs(2),
        load: Load::rate(300.0),
        ..Config::default()
    }
}

/// What a fleet's tests look at.
struct Fleet {
    rig: Rig,
    proxies: BTreeMap<String, Proxy>,
}

impl Fleet {
    async fn start(config: Config, names: &[&str]) -> Self {
        let mut fleet = Self::empty(config).await;
        for name in names {
            fleet.join(name, &[]);
        }
        fleet.all_ready().await;
        fleet
    }

    async fn empty(config: Config) -> Self {
        Self {
            rig: Rig::start(config).await,
            proxies: BTreeMap::new(),
        }
    }

    fn member(&self, name: &str) -> Run {
        self.rig.proxy().args(&["--fleet", "--proxy-id", name])
    }

    fn join(&mut self, name: &str, args: &[&str]) {
        let proxy = self.member(name).args(args).spawn();
        self.proxies.insert(name.to_owned(), proxy);
    }

    fn proxy(&self, name: &str) -> &Proxy {
        &self.proxies[name]
    }

    /// Every proxy says that it has all it shall have.
    async fn all_ready(&self) {
        for proxy in self.proxies.values() {
            eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
        }
        self.until("every shard is ready", |state| {
            state.ready_shards == state.total_shards && state.total_shards > 0
        })
        .await;
    }

    async fn value<T: serde::de::DeserializeOwned>(&self, key: &FleetKey) -> Option<T> {
        let jetstream = async_nats::jetstream::new(self.rig.client().await);
        let bucket = jetstream.get_key_value("discord_fleet").await.unwrap();
        let value = bucket.get(key.to_string()).await.unwrap()?;
        serde_json::from_slice(&value).ok()
    }

    async fn leader(&self) -> String {
        let wait = async {
            loop {
                if let Some(leader) = self.value::<Leader>(&FleetKey::Leader).await {
                    return leader.proxy.to_string();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(patience(), wait)
            .await
            .expect("somebody coordinates")
    }

    async fn plan(&self) -> Plan {
        self.value(&FleetKey::Plan).await.expect("there is a plan")
    }

    /// What the coordinator says of everybody.
    async fn state(&self) -> Result<ClusterState, String> {
        let client = self.rig.client().await;
        let asked = client.request("discord.fleet.state", "".into());
        let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
        let answer = answer.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        let state = serde_json::from_slice(&answer.payload);
        state.map_err(|error| format!("{error}: {answer:?}"))
    }

    async fn until(&self, what: &str, wanted: impl Fn(&ClusterState) -> bool) -> ClusterState {
        let mut last = Err("nothing".to_owned());
        let wait = async {
            loop {
                last = self.state().await;
                if let Ok(state) = &last
                    && wanted(state)
                {
                    return state.clone();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(patience(), wait).await {
            Ok(state) => state,
            Err(_) => panic!("{what} did not happen: {last:#?}\n{:#?}", self.logs()),
        }
    }

    /// Shards by proxy.
    async fn shares(&self) -> BTreeMap<String, usize> {
        let plan = self.plan().await;
        let mut shares = BTreeMap::new();
        for proxy in plan.shards.values() {
            *shares.entry(proxy.to_string()).or_default() += 1;
        }
        shares
    }

    fn logs(&self) -> Vec<(String, Vec<String>)> {
        let logs = self.proxies.iter();
        logs.map(|(name, proxy)| (name.clone(), proxy.log()))
            .collect()
    }

    /// Ends the load, and expects that nothing was lost, doubled or identified more often than `identifies`.
    async fn expect_clean(&self, identifies: usize) -> AuditReport {
        self.rig.simulator.set_load(Load::quiet());
        let proxies: Vec<&Proxy> = self.proxies.values().collect();
        let report = self.rig.expect_clean(&proxies).await;
        assert_eq!(
            report.identifies,
            identifies,
            "{report}\n{:#?}",
            self.logs()
        );
        assert!(report.gaps.is_empty(), "{report}");
        for rule in [Rule::IdentifyTooFast, Rule::SessionBudget] {
            assert!(!report.violations.contains_key(&rule), "{report}");
        }
        report
    }

    async fn kill(&mut self, name: &str) {
        let proxy = self.proxies.remove(name).unwrap();
        proxy.signal(Signal::SIGKILL);
        proxy.exit_code().await;
    }

    /// All shards are ready, none of them at `gone`.
    async fn carried_on_without(&self, gone: &str) -> ClusterState {
        self.until("the others carry every shard on", |state| {
            state.ready_shards == state.total_shards
                && !state
                    .workers
                    .iter()
                    .any(|worker| worker.proxy.as_str() == gone)
        })
        .await
    }
}

/// A verb an operator types.
fn verb(fleet: &Fleet, args: &[&str]) -> Run {
    Run::new(args).env("NATS_URL", &fleet.rig.nats.url())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_starts_cold_shares_the_shards_evenly_and_identifies_each_once() {
    let config = Config {
        max_concurrency: 4,
        ..twelve_shards()
    };
    let fleet = Fleet::start(config, &["a", "b", "c"]).await;
    assert!(fleet.shares().await.values().all(|shards| *shards == 4));
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_killed_member_are_resumed_by_the_others() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    let leader = fleet.leader().await;
    let victim = ["a", "b", "c"].into_iter().find(|name| *name != leader);
    let victim = victim.unwrap();
    let began = Instant::now();
    fleet.kill(victim).await;
    fleet.carried_on_without(victim).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_killed_coordinator_are_resumed_by_the_others() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    let leader = fleet.leader().await;
    fleet.kill(&leader).await;
    fleet.carried_on_without(&leader).await;
    assert_ne!(fleet.leader().await, leader);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_told_to_end_hands_its_shards_over_and_exits_0() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    let proxy = fleet.proxies.remove("b").unwrap();
    proxy.signal(Signal::SIGTERM);
    let finished = proxy.finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        finished.stderr.contains("others have taken the shards"),
        "{finished:#?}"
    );
    fleet.carried_on_without("b").await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_receives_its_share() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    fleet.join("c", &[]);
    fleet.all_ready().await;
    assert!(fleet.shares().await.values().all(|shards| *shards == 4));
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cut_off_from_nats_lets_go_before_others_take_its_shards() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let relay = Relay::to(&fleet.rig.nats.url()).await;
    let cut_off = fleet.member("c").env("NATS_URL", &relay.url());
    fleet.proxies.insert("c".to_owned(), cut_off.spawn());
    fleet.all_ready().await;
    relay.cut();
    fleet.proxy("c").logged("it lets go of everything").await;
    fleet.carried_on_without("c").await;
    relay.join();
    // It joins again, under the same name, and gets a share again.
    fleet.all_ready().await;
    fleet
        .until("three members", |state| state.workers.len() == 3)
        .await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_member_finds_its_shards_taken_and_does_no_harm() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    let leader = fleet.leader().await;
    for name in [leader.as_str(), "a", "b"] {
        fleet.proxy(name).signal(Signal::SIGSTOP);
        fleet.carried_on_without(name).await;
        fleet.proxy(name).signal(Signal::SIGCONT);
        fleet
            .until("three members", |state| state.workers.len() == 3)
            .await;
        fleet.all_ready().await;
    }
    fleet.expect_clean(12).await;
    fleet.kill("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_keeps_the_shards_busy_costs_no_lease() {
    let config = Config {
        guilds: 96,
        guild_bytes: GuildBytes {
            median: 400_000,
            max: 2_000_000,
            ..GuildBytes::default()
        },
        load: Load::quiet(),
        heartbeat_interval: Duration::from_secs(41),
        ..twelve_shards()
    };
    let fleet = Fleet::start(config, &["a"]).await;
    fleet.rig.caught_up(&[fleet.proxy("a")]).await;
    for line in fleet.proxy("a").log() {
        assert!(!line.contains("it lets go of everything"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn going_from_one_process_to_shard_ranges_to_a_fleet_keeps_the_sessions() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    let single = fleet.rig.proxy().spawn();
    eventually(single.http().await, "/ready", |status, _| status == 200).await;
    single.signal(Signal::SIGTERM);
    assert_eq!(single.exit_code().await, Some(0));
    let mut explicit = Vec::new();
    for ids in ["0-5", "6-11"] {
        let run = fleet
            .rig
            .proxy()
            .args(&["--shards", "12", "--shard-ids", ids]);
        explicit.push(run.spawn());
    }
    for proxy in &explicit {
        eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    }
    // The fleet begins while the others still run, and takes what they let go of.
    fleet.join("a", &[]);
    fleet.join("b", &[]);
    for proxy in explicit {
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code().await, Some(0));
    }
    fleet.all_ready().await;
    fleet
        .until("two members", |state| state.workers.len() == 2)
        .await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_without_a_fleet_share_the_identify_limit() {
    let config = Config {
        shards: 6,
        max_concurrency: 1,
        guilds: 12,
        ..twelve_shards()
    };
    let fleet = Fleet::empty(config).await;
    let halves = ["0-2", "3-5"].map(|ids| {
        let run = fleet
            .rig
            .proxy()
            .args(&["--shards", "6", "--shard-ids", ids]);
        run.spawn()
    });
    for proxy in &halves {
        eventually(proxy.http().await, "/ready", |status, _| status == 200).await;
    }
    fleet.expect_clean(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_the_same_name_ends_with_78_and_names_the_first() {
    let fleet = Fleet::start(twelve_shards(), &["a"]).await;
    let http = fleet.proxy("a").http().await.to_string();
    let finished = fleet.member("a").finish().await;
    finished.expect(78, &["a is alive", &http, "--proxy-id"]);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_empties_a_proxy_which_then_exits_0() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    // The coordinator itself: another one has to end what it began.
    let leader = fleet.leader().await;
    let finished = verb(&fleet, &["drain", &leader]).finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        finished.stdout.contains(&format!("{leader} has ended")),
        "{finished:#?}"
    );
    let proxy = fleet.proxies.remove(&leader).unwrap();
    let finished = proxy.finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    fleet.carried_on_without(&leader).await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_moves_one_shard_and_restart_connects_it_anew() {
    let fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let plan = fleet.plan().await;
    let to = if plan.shards[&3].as_str() == "a" {
        "b"
    } else {
        "a"
    };
    let finished = verb(&fleet, &["migrate", "3", to]).finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        finished.stdout.contains(&format!("{to} delivers shard 3")),
        "{finished:#?}"
    );
    let moved = fleet.plan().await;
    let differ = (0..12).filter(|shard| moved.shards[shard] != plan.shards[shard]);
    assert_eq!(differ.collect::<Vec<_>>(), [3]);
    let http = fleet.proxy(to).http().await;
    let resumes = |body: &str| {
        let health: schemas::health::Health = serde_json::from_str(body).unwrap();
        let shard = health.shards.iter().find(|shard| shard.shard.id() == 3);
        shard.map_or(0, |shard| shard.resumes)
    };
    assert_eq!(resumes(&crate::harness::get(http, "/health").await.1), 1);
    let finished = verb(&fleet, &["restart", "3"]).finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    eventually(http, "/health", |_, body| resumes(body) == 2).await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_a_fresh_session_identifies_once_and_announces_the_gap() {
    let fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let finished = verb(&fleet, &["restart", "5", "--fresh"]).finish().await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    for proxy in fleet.proxies.values() {
        eventually(proxy.http().await, "/health", |_, body| {
            let health: schemas::health::Health = serde_json::from_str(body).unwrap();
            let mut fifth = health.shards.iter().filter(|shard| shard.shard.id() == 5);
            fifth.all(|shard| shard.gaps == 1 && shard.status.is_ready())
        })
        .await;
    }
    fleet.rig.simulator.set_load(Load::quiet());
    // The old session is nobody's; Discord would forget it in some minutes.
    fleet.rig.simulator.apply(Action::ExpireSessions);
    let proxies: Vec<&Proxy> = fleet.proxies.values().collect();
    let report = fleet.rig.expect_clean(&proxies).await;
    assert_eq!((report.identifies, report.gaps.len()), (13, 1), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_by_name() {
    let fleet = Fleet::start(twelve_shards(), &["a"]).await;
    for (args, parts) in [
        (
            ["drain", "nobody"].as_slice(),
            ["no proxy nobody", "there are: a"].as_slice(),
        ),
        (&["migrate", "3", "nobody"], &["no proxy nobody"]),
        (&["migrate", "99", "a"], &["shard 99", "no such shard"]),
        (&["restart", "99"], &["no proxy holds shard 99"]),
        (&["drain", "a b"], &["a b"]),
        (
            &["status", "--nats-url", "embedded"],
            &["--nats-url", "embedded"],
        ),
    ] {
        verb(&fleet, args).finish().await.expect(64, parts);
    }
    let strange = verb(&fleet, &["status", "--subject-prefix", "other"])
        .finish()
        .await;
    strange.expect(78, &["other_fleet"]);
    let client = fleet.rig.client().await;
    let answer = client
        .request("discord.fleet.migrate", "nonsense".into())
        .await
        .unwrap();
    let headers = answer.headers.unwrap();
    assert_eq!(
        headers.get("Nats-Service-Error-Code").unwrap().as_str(),
        "400"
    );
    assert!(
        headers
            .get("Nats-Service-Error")
            .unwrap()
            .as_str()
            .contains("nonsense")
    );
    let there = verb(&fleet, &["migrate", "3", "a"]).finish().await;
    assert!(there.stdout.contains("a has shard 3 already"), "{there:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_every_proxy_and_shard_and_the_coordinator_answers_over_http() {
    let mut fleet = Fleet::start(twelve_shards(), &["a"]).await;
    fleet.join("b", &["--zone", "west", "--max-shards", "5"]);
    fleet.all_ready().await;
    let status = verb(&fleet, &["status"]).finish().await;
    let leader = fleet.leader().await;
    let head = format!("healthy: 12 of 12 shards ready, 2 proxies, coordinated by {leader}");
    assert!(status.stdout.starts_with(&head), "{status:#?}");
    let line = status
        .stdout
        .lines()
        .find(|line| line.starts_with("b "))
        .unwrap();
    assert!(line.contains("5/5") && line.contains("west"), "{line}");
    let shards = status
        .stdout
        .lines()
        .filter(|line| line.contains(" ready "));
    assert_eq!(shards.count(), 14, "{}", status.stdout);
    let json = verb(&fleet, &["status", "--json"]).finish().await;
    let state: ClusterState = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(state.workers.len(), 2);
    for (name, proxy) in &fleet.proxies {
        let wanted = if *name == leader { 200 } else { 503 };
        let http = proxy.http().await;
        let body = eventually(http, "/cluster/state", |status, _| status == wanted).await;
        if wanted == 200 {
            assert_eq!(
                serde_json::from_str::<ClusterState>(&body)
                    .unwrap()
                    .total_shards,
                12
            );
        } else {
            assert!(body.contains(&leader), "{body}");
        }
    }
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitor_shows_what_changes_until_it_is_ended() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let monitor = verb(&fleet, &["monitor"]).spawn_printing();
    monitor
        .printed("healthy: 12 of 12 shards ready, 2 proxies")
        .await;
    fleet.kill("a").await;
    monitor
        .printed("healthy: 12 of 12 shards ready, 1 proxy, coordinated by b")
        .await;
    monitor.signal(Signal::SIGINT);
    assert_eq!(monitor.exit_code().await, Some(0));
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_without_room_are_named_and_the_others_run() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    fleet.join("a", &["--max-shards", "5"]);
    fleet.join("b", &["--max-shards", "4"]);
    fleet
        .until("nine shards are ready", |state| {
            state.ready_shards == 9 && state.unplaced_shards.len() == 3
        })
        .await;
    let leader = fleet.leader().await;
    let proxy = fleet.proxy(&leader);
    proxy.logged("have room for 9 of 12 shards").await;
    let http = proxy.http().await;
    let unready = eventually(http, "/ready", |status, _| status == 503).await;
    assert!(unready.contains("without a place"), "{unready}");
    let health = eventually(http, "/health", |_, body| body.contains("unplaced_shards")).await;
    let health: schemas::health::Health = serde_json::from_str(&health).unwrap();
    assert_eq!(health.fleet.unwrap().unplaced_shards.len(), 3);
    // Room comes, and with it the rest.
    fleet.join("c", &[]);
    fleet.all_ready().await;
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_shards_stay_with_their_proxy() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    fleet.join("pinned", &["--shard-ids", "0,7"]);
    fleet.join("a", &[]);
    fleet.all_ready().await;
    let shards = fleet.plan().await.shards;
    let pinned = shards
        .iter()
        .filter(|(_, proxy)| proxy.as_str() == "pinned");
    assert_eq!(pinned.map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 7]);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_the_bucket_is_named_and_survived() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let jetstream = async_nats::jetstream::new(fleet.rig.client().await);
    let bucket = jetstream.get_key_value("discord_fleet").await.unwrap();
    for (key, value) in [
        ("member.ghost", "{"),
        ("member", "x"),
        ("shard.12.99", "{}"),
        ("shard.12.3", "what?"),
        ("identify", "[]"),
        ("plan", "no plan"),
        ("leader", "me"),
    ] {
        bucket.put(key, value.into()).await.unwrap();
    }
    fleet.join("c", &[]);
    fleet.all_ready().await;
    let status = verb(&fleet, &["status"]).finish().await;
    assert!(
        status
            .stdout
            .contains("unreadable values in the bucket: member.ghost"),
        "{status:#?}"
    );
    let logs: Vec<String> = fleet.logs().into_iter().flat_map(|(_, log)| log).collect();
    for key in [
        "member.ghost",
        "shard.12.99",
        "\"plan\"",
        "\"leader\"",
        "\"identify\"",
    ] {
        assert!(
            logs.iter().any(|line| line.contains(key)),
            "{key} is not named"
        );
    }
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_a_newer_version_is_not_followed_and_what_runs_goes_on() {
    let fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    let jetstream = async_nats::jetstream::new(fleet.rig.client().await);
    let bucket = jetstream.get_key_value("discord_fleet").await.unwrap();
    let plan = fleet.plan().await;
    let newer = Plan {
        epoch: plan.epoch + 1,
        format: Plan::FORMAT + 1,
        shards: BTreeMap::new(),
        ..plan
    };
    let value = serde_json::to_vec(&newer).unwrap();
    bucket.put("plan", value.into()).await.unwrap();
    for proxy in fleet.proxies.values() {
        proxy.logged("the plan has format 2").await;
    }
    let leader = fleet.leader().await;
    fleet.proxy(&leader).logged("is of a newer version").await;
    assert_eq!(fleet.plan().await.format, Plan::FORMAT + 1);
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_higher_priority_takes_the_coordination_back_without_moving_a_shard() {
    let mut fleet = Fleet::empty(twelve_shards()).await;
    fleet.join("a", &["--coordinator-priority", "5"]);
    fleet.join("b", &[]);
    fleet.all_ready().await;
    fleet.kill("a").await;
    fleet.carried_on_without("a").await;
    assert_eq!(fleet.leader().await, "b");
    fleet.join("a", &["--coordinator-priority", "5"]);
    fleet.all_ready().await;
    fleet.proxy("a").logged("this proxy coordinates").await;
    let plan = fleet.plan().await;
    fleet
        .until("a coordinates", |state| {
            state
                .coordinator
                .as_ref()
                .is_some_and(|proxy| proxy.as_str() == "a")
        })
        .await;
    assert_eq!(fleet.plan().await.shards, plan.shards);
    fleet.expect_clean(12).await;
}

/// The longest time a session was without a connection before it was resumed.
fn longest_pause(fleet: &Fleet) -> Duration {
    let mut gone_at = BTreeMap::new();
    let mut longest = 0;
    for event in fleet.rig.simulator.ledger().lifecycle {
        match event.step {
            Step::Disconnected { .. } => drop(gone_at.insert(event.session, event.at_us)),
            Step::Resumed { .. } => {
                let since = gone_at.remove(&event.session).unwrap_or(event.at_us);
                longest = longest.max(event.at_us - since);
            }
            _ => {}
        }
    }
    Duration::from_micros(longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_spends_no_identify_and_pauses_each_shard_for_a_moment() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c"]).await;
    for name in ["a", "b", "c"] {
        let proxy = fleet.proxies.remove(name).unwrap();
        proxy.signal(Signal::SIGTERM);
        assert_eq!(proxy.exit_code().await, Some(0));
        fleet.join(name, &[]);
        fleet.all_ready().await;
    }
    fleet.expect_clean(12).await;
    let pause = longest_pause(&fleet);
    println!("longest pause of a shard: {pause:?}");
    // On a machine of its own it is some ten milliseconds; a takeover would take two seconds.
    assert!(pause < Duration::from_millis(1_500), "{pause:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_away_for_longer_than_the_leases_costs_a_fleet_no_session() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b"]).await;
    fleet.rig.nats.kill9().unwrap();
    for proxy in fleet.proxies.values() {
        proxy.logged("it lets go of everything").await;
        eventually(proxy.http().await, "/ready", |status, _| status == 503).await;
    }
    fleet.rig.nats.start_again().unwrap();
    fleet.all_ready().await;
    // Nobody took the other's shards because it was back first.
    assert!(fleet.shares().await.values().all(|shards| *shards == 6));
    fleet.expect_clean(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_and_the_coordinator_killed_at_once_are_replaced() {
    let mut fleet = Fleet::start(twelve_shards(), &["a", "b", "c", "d"]).await;
    let leader = fleet.leader().await;
    let other = if leader == "a" { "b" } else { "a" };
    fleet.kill(&leader).await;
    fleet.kill(other).await;
    fleet.carried_on_without(&leader).await;
    fleet.carried_on_without(other).await;
    fleet.expect_clean(12).await;
}
