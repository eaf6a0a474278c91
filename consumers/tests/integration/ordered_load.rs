//! Ordered mode as it is meant to run: real processes that are killed, frozen, started and stopped
//! while events flow.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::kv;
use consumers::{Config, Context, Events, HandlerError, Options, Router, Worker};
use futures_util::StreamExt as _;
use schemas::{GuildId, ShardClaim, WorkersKey};
use tokio::process::{Child, Command};
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::fake_discord::TOKEN;
use crate::world::{Stalls, World, hand_over_max, until};

const SHARDS: u32 = 8;
const GUILDS: u64 = 4;
/// The name of the environment variable that makes a process of this test a worker.
const CHILD: &str = "ORDERED_LOAD_WORKER";

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_micros() as u64
}

/// One thing a handler did.
#[derive(Clone, Debug)]
struct Sight {
    at_us: u64,
    begins: bool,
    worker: String,
    event: (u32, u64, u64),
}

impl Sight {
    fn read(text: &str) -> Self {
        let mut parts = text.split(' ');
        let mut next = || parts.next().unwrap();
        Self {
            at_us: next().parse().unwrap(),
            begins: next() == "begin",
            worker: next().to_owned(),
            event: (
                next().parse().unwrap(),
                next().parse().unwrap(),
                next().parse().unwrap(),
            ),
        }
    }
}

/// Not a test: one worker, in a process of its own, until it is killed or told to stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "not a test: a worker that the test below starts as a process"]
async fn child() {
    let Ok(name) = std::env::var(CHILD) else {
        return;
    };
    let nats = std::env::var("NATS_URL").unwrap();
    let client = async_nats::connect(&nats).await.unwrap();
    let worker = name.clone();
    let handler = move |context: Context, event: MessageDelete| {
        let (client, worker) = (client.clone(), worker.clone());
        async move {
            let (shard, seq) = (context.shard().id, event.id.get());
            let guild = context.event().guild.map_or(0, GuildId::get);
            let tell = async |what: &str| {
                let text = format!("{} {what} {worker} {shard} {guild} {seq}", now_us());
                client.publish("seen", text.into()).await?;
                client.flush().await?;
                Ok::<(), HandlerError>(())
            };
            tell("begin").await?;
            tokio::time::sleep(Duration::from_millis(1 + seq % 5)).await;
            tell("end").await
        }
    };
    let events = Events::ordered("load").shards(0..SHARDS);
    let router = Router::new().events(events.on::<MessageDelete>(handler));
    let options = Options {
        worker_id: Some(name),
        http: Some("0".to_owned()),
        ..Options::default()
    };
    let config = Config::from_options(options).unwrap();
    let running = Worker::new(config, router).start().await.unwrap();
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminate.recv().await;
    running.stop().await;
}

struct Load {
    world: Arc<World>,
    workers: BTreeMap<String, Child>,
    sights: Arc<Mutex<Vec<Sight>>>,
    stalls: Stalls,
    /// Every life that every worker had in the group.
    lives: Arc<Mutex<BTreeSet<String>>>,
    bucket: kv::Store,
}

impl Load {
    async fn start() -> Self {
        let world = Arc::new(World::start().await);
        let sights = Arc::new(Mutex::new(Vec::new()));
        let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
        let client = options.connect(world.nats.url()).await.unwrap();
        let mut seen = client.subscribe("seen").await.unwrap();
        client.flush().await.unwrap();
        let noted = Arc::clone(&sights);
        tokio::spawn(async move {
            while let Some(message) = seen.next().await {
                let text = std::str::from_utf8(&message.payload).unwrap();
                noted.lock().unwrap().push(Sight::read(text));
            }
        });
        let config = kv::Config {
            bucket: world.prefix.workers_bucket(),
            limit_markers: Some(Duration::from_secs(60)),
            history: 1,
            ..kv::Config::default()
        };
        let bucket = world.jetstream.create_key_value(config).await.unwrap();
        let lives = Arc::new(Mutex::new(BTreeSet::new()));
        let (noted, mut all) = (lives.clone(), bucket.watch("load.member.*").await.unwrap());
        tokio::spawn(async move {
            while let Some(Ok(entry)) = all.next().await {
                noted.lock().unwrap().insert(entry.key);
            }
        });
        let workers = BTreeMap::new();
        let stalls = Stalls::watch(&world.nats.url()).await;
        Self {
            stalls,
            world,
            workers,
            sights,
            lives,
            bucket,
        }
    }

    fn begin_worker(&mut self, name: &str) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "ordered_load::child", "--nocapture"])
            .env(CHILD, name)
            .env("NATS_URL", self.world.nats.url())
            .env("DISCORD_API_URL", self.world.discord.url())
            .env("DISCORD_TOKEN", TOKEN)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.workers.insert(name.to_owned(), child);
    }

    async fn signal(&self, name: &str, signal: &str) {
        let pid = self.workers[name].id().unwrap().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await;
        assert!(sent.unwrap().success());
    }

    /// Which worker holds which shard.
    async fn holders(&self) -> BTreeMap<u32, String> {
        let mut holders = BTreeMap::new();
        for shard in 0..SHARDS {
            let group = "load".to_owned();
            let key = WorkersKey::Shard { group, shard }.to_string();
            if let Ok(Some(value)) = self.bucket.get(key).await {
                let claim: ShardClaim = serde_json::from_slice(&value).unwrap();
                let worker = claim.member.split('-').next().unwrap().to_owned();
                holders.insert(shard, worker);
            }
        }
        holders
    }

    async fn spread_over(&self, names: &[&str]) {
        let each = SHARDS as usize / names.len();
        until("the shards to be spread", async || {
            let holders = self.holders().await;
            let fair = names.iter().all(|name| {
                let count = holders.values().filter(|holder| holder == name).count();
                (each..=each + 1).contains(&count)
            });
            (fair && holders.len() == SHARDS as usize).then_some(())
        })
        .await;
    }

    /// Waits until other workers have begun events of all these shards after `since`; says how long
    /// that took, without the time that a busy machine took away.
    async fn taken_over(&self, from: &str, shards: &BTreeSet<u32>, since: u64) -> Duration {
        let lost = self.stalls.lost();
        let last = until("the shards to be taken over", async || {
            let sights = self.sights.lock().unwrap();
            let mut first: BTreeMap<u32, u64> = BTreeMap::new();
            for sight in sights.iter().rev().take_while(|s| s.at_us > since) {
                let of_these = shards.contains(&sight.event.0);
                if sight.begins && sight.worker != from && of_these {
                    first.insert(sight.event.0, sight.at_us);
                }
            }
            (first.len() == shards.len()).then(|| first.values().max().copied())
        })
        .await;
        let took = Duration::from_micros(last.unwrap_or(since) - since);
        let lost = self.stalls.lost() - lost;
        eprintln!(
            "{} shards of {from} taken over in {took:?}, {lost:?} of it lost",
            shards.len()
        );
        took.saturating_sub(lost)
    }

    async fn of(&self, name: &str) -> BTreeSet<u32> {
        let holders = self.holders().await.into_iter();
        let of_name = holders.filter(|(_, holder)| holder == name);
        of_name.map(|(shard, _)| shard).collect()
    }

    /// How many lives a worker had: more than one if it could not renew its lease in time.
    fn lives_of(&self, name: &str) -> usize {
        let lives = self.lives.lock().unwrap();
        let prefix = format!("load.member.{name}-");
        lives.iter().filter(|key| key.starts_with(&prefix)).count()
    }
}

/// Stores rounds of events until told to stop; returns how many.
async fn flow(world: &World, stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        for shard in 0..SHARDS {
            let guilds = (1..=GUILDS).map(|guild| world.store_delete_as(shard, guild, round));
            futures_util::future::join_all(guilds).await;
        }
    }
    round
}

/// What was done to workers, and when.
struct Fault {
    worker: &'static str,
    at_us: u64,
}

async fn disturb(load: &mut Load) -> Vec<Fault> {
    let mut faults = Vec::new();
    // A worker dies.
    let shards = load.of("b").await;
    let at_us = now_us();
    load.workers.get_mut("b").unwrap().start_kill().unwrap();
    let worker = "b";
    faults.push(Fault { worker, at_us });
    let took = load.taken_over("b", &shards, at_us).await;
    assert!(took < hand_over_max(), "hand-over took {took:?}");
    load.spread_over(&["a", "c", "d"]).await;
    // Another comes.
    load.begin_worker("e");
    load.spread_over(&["a", "c", "d", "e"]).await;
    // One dies while another comes.
    let shards = load.of("a").await;
    load.begin_worker("f");
    let at_us = now_us();
    load.workers.get_mut("a").unwrap().start_kill().unwrap();
    let worker = "a";
    faults.push(Fault { worker, at_us });
    let took = load.taken_over("a", &shards, at_us).await;
    assert!(took < hand_over_max(), "hand-over took {took:?}");
    load.spread_over(&["c", "d", "e", "f"]).await;
    // One is frozen, its shards go elsewhere, and it comes back as if nothing had been.
    let shards = load.of("c").await;
    let at_us = now_us();
    load.signal("c", "-STOP").await;
    let worker = "c";
    faults.push(Fault { worker, at_us });
    load.taken_over("c", &shards, at_us).await;
    load.signal("c", "-CONT").await;
    load.spread_over(&["c", "d", "e", "f"]).await;
    // One leaves in order.
    load.signal("d", "-TERM").await;
    load.workers.get_mut("d").unwrap().wait().await.unwrap();
    load.spread_over(&["c", "e", "f"]).await;
    faults
}

/// How long before a fault an acknowledgement may have been on its way and lost.
const IN_FLIGHT_US: u64 = 250_000;

/// Everything that was stored was handled; guilds are in order; only what was in flight at a fault
/// was handled again.
fn judge(load: &Load, rounds: u64, faults: &[Fault]) {
    let mut sights = load.sights.lock().unwrap().clone();
    sights.sort_by_key(|sight| sight.at_us);
    let ended: BTreeSet<_> = sights
        .iter()
        .filter(|s| !s.begins)
        .map(|s| s.event)
        .collect();
    for shard in 0..SHARDS {
        for guild in 1..=GUILDS {
            for seq in 1..=rounds {
                let event = (shard, guild, seq);
                assert!(
                    ended.contains(&event),
                    "{event:?} of {rounds} was never handled"
                );
            }
        }
    }
    let mut last: BTreeMap<(u32, u64), u64> = BTreeMap::new();
    let mut begun: BTreeMap<(u32, u64, u64), Sight> = BTreeMap::new();
    let mut again = 0;
    for sight in sights.iter().filter(|sight| sight.begins) {
        let (shard, guild, seq) = sight.event;
        let before = last.insert((shard, guild), seq);
        assert!(before <= Some(seq), "{sight:?} after {before:?}");
        let Some(first) = begun.insert(sight.event, sight.clone()) else {
            continue;
        };
        again += 1;
        // Who could not renew its lease in time (a machine that stalls) was as good as frozen.
        if load.lives_of(&first.worker) > 1 {
            continue;
        }
        let fault = faults.iter().find(|fault| fault.worker == first.worker);
        let fault = fault.unwrap_or_else(|| panic!("{sight:?} again after {first:?}, no fault"));
        let of_first = |s: &&Sight| !s.begins && s.event == sight.event && s.worker == first.worker;
        let done = sights.iter().find(of_first).map_or(u64::MAX, |s| s.at_us);
        assert!(
            done.saturating_add(IN_FLIGHT_US) >= fault.at_us,
            "{sight:?} again after {first:?}, which was done"
        );
    }
    eprintln!("{} events, {again} handled again", begun.len());
    // What was in flight is bounded by the handlers that run at once.
    assert!(
        again <= faults.len() * 64,
        "{again} events were handled again"
    );
}

#[tokio::test]
async fn workers_that_are_killed_frozen_and_joined_under_load_keep_every_guild_in_order() {
    let mut load = Load::start().await;
    for name in ["a", "b", "c", "d"] {
        load.begin_worker(name);
    }
    load.spread_over(&["a", "b", "c", "d"]).await;
    let (world, stop) = (Arc::clone(&load.world), AtomicBool::new(false));
    let disturbed = async {
        let faults = disturb(&mut load).await;
        stop.store(true, Ordering::Relaxed);
        faults
    };
    let (rounds, faults) = tokio::join!(flow(&world, &stop), disturbed);
    for shard in 0..SHARDS {
        world.drained(&format!("load-{shard}")).await;
    }
    let expect = rounds * GUILDS * u64::from(SHARDS);
    until("everything to be seen", async || {
        let sights = load.sights.lock().unwrap();
        let ended = sights.iter().filter(|sight| !sight.begins);
        let distinct: BTreeSet<_> = ended.map(|sight| sight.event).collect();
        (distinct.len() as u64 >= expect).then_some(())
    })
    .await;
    judge(&load, rounds, &faults);
}
