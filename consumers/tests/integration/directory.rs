//! The directory against a real nats-server: what it knows, what it answers, and what it survives.

mod truth;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use consumers::{Directory, DirectoryConfig, DirectoryOptions, DirectoryService, QueryError};
use consumers::{Options, RunningDirectory};
use schemas::message::MessageId;
use schemas::{
    GuildId, GuildInfo, GuildsRequest, ShardId, ShardRecord, ShardState, ShardsRequest, Snowflake,
    Subject,
};
use serde_json::{Value, json};
use testkit::simulator::{Action, Config, GuildBytes, Load, Simulator};

use crate::fake_discord::TOKEN;
use crate::proxy::Process;
use crate::world::{Stalls, World, http_get, slowness, until, until_within};

/// Guilds that lie on shard 1 of 4.
pub(crate) fn on_shard_1(number: u64) -> GuildId {
    GuildId::new((number * 4 + 1) << 22).unwrap()
}

/// A world whose stream is filled by the test itself.
pub(crate) struct Scene {
    pub(crate) world: World,
    seq: std::cell::Cell<u64>,
    pub(crate) directory: Directory,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        let world = World::start().await;
        let client = testkit::nats::connect(&world.nats.url()).await.unwrap();
        let directory = Directory::new(client, world.prefix.clone());
        let seq = std::cell::Cell::new(0);
        // A proxy speaks of its shards before it delivers events.
        let scene = Self {
            world,
            seq,
            directory,
        };
        scene.fleet(&[ShardId::new(1, 4).unwrap()]).await;
        scene
    }

    /// Records of shards, as proxies keep them.
    async fn fleet(&self, shards: &[ShardId]) {
        let records = shards.iter().map(|shard| ShardRecord {
            state: ShardState::Ready,
            latency_ms: Some(41.5),
            ..ShardRecord::new(*shard)
        });
        self.world.fleet(records).await;
    }

    async fn event(&self, shard: u32, guild: Option<GuildId>, event: &str, d: Value) {
        let seq = self.seq.get() + 1;
        self.seq.set(seq);
        let subject = Subject::Event {
            shard,
            guild,
            event,
        };
        let frame = json!({"t": event, "s": seq, "op": 0, "d": d}).to_string();
        let id = MessageId::dispatch("scene", seq).to_string();
        self.world.publish(&subject, id, frame).await.unwrap();
    }

    pub(crate) async fn guild(&self, shard: u32, guild: GuildId, name: &str) {
        let id = guild.to_string();
        let d = json!({
            "id": id, "name": name, "owner_id": "5", "member_count": 10, "features": ["A"],
            "channels": [{"id": "11"}, {"id": "12"}], "roles": [{"id": id}],
            "joined_at": "2026-08-06T12:34:56.789000+00:00", "large": false,
        });
        self.event(shard, Some(guild), "GUILD_CREATE", d).await;
    }

    fn options(&self) -> DirectoryOptions {
        DirectoryOptions {
            worker: self.world.options(),
            users: false,
        }
    }

    pub(crate) async fn serve(&self) -> RunningDirectory {
        self.serve_with(self.options(), |config| config).await
    }

    async fn serve_with(
        &self,
        options: DirectoryOptions,
        change: impl FnOnce(DirectoryConfig) -> DirectoryConfig,
    ) -> RunningDirectory {
        let env = |name: &str| (name == "DISCORD_TOKEN").then(|| OsString::from(TOKEN));
        let config = DirectoryConfig::with_environment(options, &env).unwrap();
        DirectoryService::new(change(config)).start().await.unwrap()
    }

    /// Waits until the directory knows the guild as wanted.
    pub(crate) async fn known(
        &self,
        guild: GuildId,
        wanted: impl Fn(&GuildInfo) -> bool,
    ) -> GuildInfo {
        until("the guild to be known", async || {
            let found = self.directory.find_guild(guild).await.ok()??;
            wanted(&found).then_some(found)
        })
        .await
    }
}

/// A directory's `/metrics` line with this name.
async fn metric(directory: &RunningDirectory, name: &str) -> u64 {
    let (_, text) = http_get(directory.http_address(), "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().parse().ok())
        .unwrap_or_else(|| panic!("{name} in {text}"))
}

#[tokio::test]
async fn a_guild_is_answered_with_what_its_events_told() {
    let scene = Scene::start().await;
    let (guild, other) = (on_shard_1(7), on_shard_1(8));
    scene.guild(1, guild, "First").await;
    let running = scene.serve().await;
    let in_guild = json!({"guild_id": guild.to_string(), "id": "13", "role": {"id": "21"}});
    for event in ["GUILD_MEMBER_ADD", "CHANNEL_CREATE", "GUILD_ROLE_CREATE"] {
        scene.event(1, Some(guild), event, in_guild.clone()).await;
    }
    let found = scene.known(guild, |guild| guild.roles == 2).await;
    assert_eq!(
        found,
        GuildInfo {
            id: guild.into(),
            shard: 1,
            name: Some("First".to_owned()),
            owner_id: Snowflake::new(5),
            member_count: Some(11),
            channels: 3,
            roles: 2,
            features: vec!["A".to_owned()],
            joined_at: Some("2026-08-06T12:34:56.789Z".parse().unwrap()),
            available: true,
            stale: false,
        }
    );
    assert_eq!(scene.directory.find_guild(other).await.unwrap(), None);
    let gone = json!({"id": guild.to_string()});
    scene.event(1, Some(guild), "GUILD_DELETE", gone).await;
    until("the guild to be gone", async || {
        let found = scene.directory.find_guild(guild).await.unwrap();
        found.is_none().then_some(())
    })
    .await;
    running.stop().await;
    let nobody = scene.directory.aggregate_stats().await;
    assert!(matches!(nobody, Err(QueryError::NoDirectory)), "{nobody:?}");
}

#[tokio::test]
async fn sums_shards_and_pages_agree() {
    let scene = Scene::start().await;
    let shard_2 = ShardId::new(2, 4).unwrap();
    scene.fleet(&[shard_2]).await;
    for number in 0..30 {
        scene
            .guild(1, on_shard_1(number), &format!("Guild {number}"))
            .await;
    }
    let other = GuildId::new(2 << 22).unwrap();
    scene.guild(2, other, "Elsewhere").await;
    let _running = scene.serve().await;
    let stats = until("all guilds to be known", async || {
        let stats = scene.directory.aggregate_stats().await.ok()?;
        (stats.guilds == 31 && stats.shards == 2).then_some(stats)
    })
    .await;
    assert_eq!(
        (stats.members, stats.channels, stats.users),
        (310, 62, None)
    );
    assert_eq!(
        (stats.unavailable, stats.stale, stats.shards_ready),
        (0, 0, 2)
    );
    assert_eq!(stats.latency_ms, [(1, 41.5), (2, 41.5)].into());
    let page = scene
        .directory
        .shards(&ShardsRequest::default())
        .await
        .unwrap();
    let lines: Vec<_> = page
        .shards
        .iter()
        .map(|line| (line.shard, line.guilds, line.members))
        .collect();
    assert_eq!(lines, [(1, 30, 300), (2, 1, 10)]);
    let mut request = GuildsRequest {
        shard: Some(1),
        limit: Some(7),
        ..GuildsRequest::default()
    };
    let mut seen = BTreeSet::new();
    loop {
        let page = scene.directory.guilds(&request).await.unwrap();
        assert!(page.guilds.len() <= 7);
        seen.extend(page.guilds.into_iter().map(|guild| guild.id));
        let Some(next) = page.next else { break };
        request.after = Some(next);
    }
    assert_eq!(seen.len(), 30);
    let by_name = GuildsRequest {
        name: Some("ELSE".to_owned()),
        ..GuildsRequest::default()
    };
    let page = scene.directory.guilds(&by_name).await.unwrap();
    assert_eq!(page.guilds.len(), 1);
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused_in_the_service_headers() {
    let scene = Scene::start().await;
    let _running = scene.serve().await;
    let client = testkit::nats::connect(&scene.world.nats.url())
        .await
        .unwrap();
    for (subject, payload, code) in [
        ("discord.query.guild.x", "", "400"),
        ("discord.query.guild.0", "", "400"),
        ("discord.query.guild.7", "", "404"),
        ("discord.query.user.7", "", "501"),
        ("discord.query.guilds", "{", "400"),
        ("discord.query.shards", r#"{"after":"x"}"#, "400"),
    ] {
        let answer = client.request(subject, payload.into()).await.unwrap();
        let headers = answer.headers.unwrap();
        let found = headers.get(schemas::message::SERVICE_ERROR_CODE).unwrap();
        assert_eq!(found.as_str(), code, "{subject}");
        let text = headers.get(schemas::message::SERVICE_ERROR).unwrap();
        assert!(!text.as_str().is_empty());
    }
    let refused = scene.directory.find_user(Snowflake::new(7).unwrap()).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("--users"), "{text}");
    let pong = client
        .request("$SRV.PING.discord-directory", "".into())
        .await;
    assert!(pong.is_ok(), "the directory is a NATS service");
}

#[tokio::test]
async fn users_are_found_when_they_are_kept() {
    let scene = Scene::start().await;
    let options = DirectoryOptions {
        users: true,
        ..scene.options()
    };
    let _running = scene.serve_with(options, |config| config).await;
    let (guild, user) = (on_shard_1(7), Snowflake::new(42).unwrap());
    let author = json!({"id": "42", "username": "ann", "global_name": "Ann"});
    let message = json!({"guild_id": guild.to_string(), "author": author});
    scene.event(1, Some(guild), "MESSAGE_CREATE", message).await;
    let found = until("the user", async || {
        scene.directory.find_user(user).await.unwrap()
    })
    .await;
    assert_eq!((found.username.as_str(), found.bot), ("ann", false));
    assert_eq!(found.guilds, [guild.into()]);
    let other = Snowflake::new(43).unwrap();
    assert_eq!(scene.directory.find_user(other).await.unwrap(), None);
    assert_eq!(
        scene.directory.aggregate_stats().await.unwrap().users,
        Some(1)
    );
}

#[tokio::test]
async fn a_guild_on_the_wrong_shard_is_counted() {
    let scene = Scene::start().await;
    let wrong = GuildId::new(2 << 22).unwrap();
    scene.guild(1, on_shard_1(3), "Right").await;
    scene.guild(1, wrong, "Wrong").await;
    let ready = json!({"session_id": "a", "shard": [1, 4], "guilds": []});
    let running = scene.serve().await;
    scene.known(wrong, |_| true).await;
    scene.event(1, None, "READY", ready).await;
    scene.guild(1, wrong, "Still wrong").await;
    scene
        .known(wrong, |guild| guild.name.as_deref() == Some("Still wrong"))
        .await;
    assert!(metric(&running, "directory_guilds_misplaced_total").await >= 1);
}

#[tokio::test]
async fn a_gap_marks_guilds_and_discord_is_asked_about_them() {
    let scene = Scene::start().await;
    let tokens = vec![TOKEN.to_owned()];
    let config = Config {
        tokens,
        guilds: 3,
        ..Config::default()
    };
    let simulator = Simulator::start(config).await.unwrap();
    let guilds: Vec<GuildId> = simulator
        .guild_ids()
        .into_iter()
        .filter_map(GuildId::new)
        .collect();
    let gone = on_shard_1(99);
    for guild in guilds.iter().chain([&gone]) {
        scene.guild(1, *guild, "Before").await;
    }
    let at = "2026-08-06T12:34:56.789Z";
    let gap = json!({
        "shard": [1, 4], "old_session_id": "a", "last_seq": 3, "new_session_id": "a",
        "lost": 1, "reason": "oversized_frame", "from": at, "to": at,
    });
    scene.event(1, None, "PROXY_GAP", gap).await;
    let options = DirectoryOptions {
        worker: Options {
            api_url: Some(simulator.api_url().to_owned()),
            ..scene.world.options()
        },
        users: false,
    };
    let slow = scene.serve_with(options.clone(), |config| config).await;
    until("the guilds to be marked", async || {
        (scene.directory.aggregate_stats().await.ok()?.stale == 4).then_some(())
    })
    .await;
    slow.stop().await;
    assert_eq!(
        simulator.stats().rest_requests,
        0,
        "their own events come first"
    );
    let quick = |config: DirectoryConfig| config.refresh_after(Duration::ZERO);
    let running = scene.serve_with(options, quick).await;
    until("the guilds to be fresh", async || {
        let stats = scene.directory.aggregate_stats().await.ok()?;
        (stats.stale == 0 && stats.guilds == 3).then_some(())
    })
    .await;
    let fresh = scene
        .directory
        .find_guild(guilds[0])
        .await
        .unwrap()
        .unwrap();
    assert_ne!(fresh.name.as_deref(), Some("Before"));
    assert_eq!(
        fresh.channels, 2,
        "Discord did not list them, so they are kept"
    );
    assert_eq!(scene.directory.find_guild(gone).await.unwrap(), None);
    assert_eq!(
        metric(&running, "directory_guilds_refreshed_total").await,
        4
    );
}

#[tokio::test]
async fn guilds_whose_events_have_aged_out_are_asked_of_discord() {
    let scene = Scene::start().await;
    let world = &scene.world;
    let quick = |config: DirectoryConfig| config.refresh_after(Duration::ZERO);
    // 250 quiet guilds here: two pages with those of other shards.
    let here: Vec<GuildId> = (1..=250).map(on_shard_1).collect();
    let elsewhere = (1..=30).map(|number| GuildId::new((number * 4 + 2) << 22).unwrap());
    let mut all: Vec<u64> = here
        .iter()
        .copied()
        .chain(elsewhere)
        .map(GuildId::get)
        .collect();
    all.sort_unstable();
    world.discord.set_guilds(all);
    let ready = json!({"session_id": "a", "shard": [1, 4], "guilds": []});
    scene.event(1, None, "READY", ready.clone()).await;
    let stream = world.jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    stream.purge().await.unwrap();
    // One of them says something.
    scene.guild(1, here[0], "Loud").await;
    let first = scene.serve_with(scene.options(), quick).await;
    until("all guilds of the shard to be known", async || {
        let stats = scene.directory.aggregate_stats().await.ok()?;
        (stats.guilds == 250).then_some(())
    })
    .await;
    let loud = scene.known(here[0], |_| true).await;
    assert_eq!(loud.name.as_deref(), Some("Loud"));
    // Each is asked for by itself: the list does not say everything.
    scene
        .known(here[100], |guild| guild.name.as_deref() == Some("A guild"))
        .await;
    assert_eq!(world.discord.lists(), 2);
    first.stop().await;

    // What was asked once is not asked again, and a READY makes it needless.
    let second = scene.serve_with(scene.options(), quick).await;
    scene.guild(1, here[1], "Louder").await;
    scene
        .known(here[1], |guild| guild.name.as_deref() == Some("Louder"))
        .await;
    assert_eq!(world.discord.lists(), 2);
    second.stop().await;
    stream.purge().await.unwrap();
    let listed = json!([{"id": here[0].to_string(), "unavailable": true}]);
    let ready = json!({"session_id": "b", "shard": [1, 4], "guilds": listed});
    scene.event(1, None, "READY", ready).await;
    let third = scene.serve_with(scene.options(), quick).await;
    until("the new session's guilds alone", async || {
        let stats = scene.directory.aggregate_stats().await.ok()?;
        (stats.guilds == 1).then_some(())
    })
    .await;
    assert_eq!(world.discord.lists(), 2);
    third.stop().await;
}

#[tokio::test]
async fn guilds_that_no_event_tells_of_are_found_at_discord_page_by_page() {
    let scene = Scene::start().await;
    // More than two pages, a quarter of them on this shard.
    let config = Config {
        tokens: vec![TOKEN.to_owned()],
        guilds: 450,
        ..Config::default()
    };
    let simulator = Simulator::start(config).await.unwrap();
    let ids = simulator.guild_ids().into_iter().filter_map(GuildId::new);
    let here: BTreeSet<Snowflake> = ids
        .filter(|guild| guild.shard(4) == 1)
        .map(Snowflake::from)
        .collect();
    let ready = json!({"session_id": "a", "shard": [1, 4], "guilds": []});
    scene.event(1, None, "READY", ready).await;
    let jetstream = &scene.world.jetstream;
    let stream = jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    stream.purge().await.unwrap();
    // The stream knows the shard again, and nothing of its guilds.
    let resumed = json!({"_trace": []});
    scene.event(1, None, "RESUMED", resumed).await;
    let mut options = scene.options();
    options.worker.api_url = Some(simulator.api_url().to_owned());
    let quick = |config: DirectoryConfig| config.refresh_after(Duration::ZERO);
    let running = scene.serve_with(options, quick).await;
    until("the guilds of the shard to be known", async || {
        let known = truth::known(&scene.directory).await?;
        let named = known.values().filter(|guild| guild.name.is_some()).count();
        (known.len() == here.len() && named == here.len()).then_some(())
    })
    .await;
    let known = truth::known(&scene.directory).await.unwrap();
    assert!(known.keys().eq(&here));
    assert!(
        known
            .values()
            .all(|guild| guild.available && guild.shard == 1)
    );
    assert_eq!(simulator.stats().violations, 0, "within Discord's limits");
    running.stop().await;
}

#[tokio::test]
async fn the_shards_of_a_dead_instance_are_read_by_another() {
    let scene = Scene::start().await;
    let shards: Vec<ShardId> = (0..8).map(|id| ShardId::new(id, 8).unwrap()).collect();
    scene.fleet(&shards).await;
    let named = |name: &str| {
        let mut options = scene.options();
        options.worker.worker_id = Some(name.to_owned());
        options
    };
    let first = scene.serve_with(named("first"), |config| config).await;
    let second = scene.serve_with(named("second"), |config| config).await;
    let readers = async || {
        let page = scene
            .directory
            .shards(&ShardsRequest::default())
            .await
            .ok()?;
        let readers: Option<Vec<String>> =
            page.shards.into_iter().map(|line| line.read_by).collect();
        readers.filter(|readers| readers.len() == 8)
    };
    until("both to read", async || {
        let distinct: BTreeSet<String> = readers().await?.into_iter().collect();
        (distinct.len() == 2).then_some(())
    })
    .await;
    for id in 0..8 {
        let guild = GuildId::new((16 + id) << 22).unwrap();
        scene.guild(id as u32, guild, "Spread").await;
        scene.known(guild, |_| true).await;
    }
    let stalls = Stalls::watch(&scene.world.nats.url()).await;
    drop(first);
    let (died, lost) = (Instant::now(), stalls.lost());
    until("the second to read all", async || {
        readers()
            .await?
            .iter()
            .all(|reader| reader == "second")
            .then_some(())
    })
    .await;
    let limit = Duration::from_secs(3) * slowness();
    stalls.assert_within(limit, died, lost);
    let joined = json!({"guild_id": (GuildId::new(16 << 22).unwrap()).to_string()});
    for _ in 0..5 {
        let guild = GuildId::new(16 << 22);
        scene
            .event(0, guild, "GUILD_MEMBER_ADD", joined.clone())
            .await;
    }
    let guild = GuildId::new(16 << 22).unwrap();
    scene
        .known(guild, |guild| guild.member_count == Some(15))
        .await;
    second.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_made_again_is_read_from_its_beginning() {
    let scene = Scene::start().await;
    let guild = on_shard_1(7);
    let running = scene.serve().await;
    for _ in 0..5 {
        scene.guild(1, guild, "Old").await;
    }
    scene.known(guild, |_| true).await;
    running.stop().await;
    let jetstream = &scene.world.jetstream;
    jetstream.delete_stream("DISCORD_EVENTS").await.unwrap();
    scene.world.create_stream(None).await;
    let running = scene.serve().await;
    until("the old knowledge to be marked", async || {
        (scene.directory.aggregate_stats().await.ok()?.stale == 1).then_some(())
    })
    .await;
    scene.guild(1, guild, "New").await;
    let found = scene
        .known(guild, |guild| guild.name.as_deref() == Some("New"))
        .await;
    assert!(!found.stale);
    running.stop().await;
}

/// How large the world of the storm is, and how often everything is disturbed.
struct Storm {
    guilds: usize,
    shards: u32,
    rounds: usize,
}

#[tokio::test]
async fn after_a_storm_kills_and_a_takeover_the_directory_equals_discord() {
    storm(Storm {
        guilds: 240,
        shards: 4,
        rounds: 3,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a soak of a minute; its short form is the storm above (consumers/README.md)"]
async fn a_bot_on_16_shards_survives_the_storm_too() {
    storm(Storm {
        guilds: 2500,
        shards: 16,
        rounds: 2,
    })
    .await;
}

/// 16 shards as full as Discord makes them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a soak of minutes; its short form is the storm above (consumers/README.md)"]
async fn a_large_bot_survives_the_storm_too() {
    storm(Storm {
        guilds: 16 * 2500,
        shards: 16,
        rounds: 1,
    })
    .await;
}

/// A Discord of this size, and patient with slow readers.
async fn simulated(storm: &Storm) -> Simulator {
    Simulator::start(Config {
        guilds: storm.guilds,
        guild_bytes: GuildBytes {
            median: 4000,
            max: 60_000,
            ..GuildBytes::default()
        },
        shards: storm.shards,
        max_concurrency: storm.shards,
        guilds_per_shard_max: storm.guilds,
        replay_events: 1_000_000,
        // A burst in every guild is more than a slow reader's socket may hold, and a replay of several
        // bursts too; it is not slow readers that are shown here.
        backlog_events: 1_000_000,
        ..Config::default()
    })
    .await
    .unwrap()
}

async fn storm(storm: Storm) {
    let world = World::without_stream().await;
    let nats = world.nats.url();
    let simulator = simulated(&storm).await;
    let proxy = Process::proxy(&nats, &simulator, &["--proxy-id", "one"]);
    proxy.logs("shard is ready").await;
    let first = Process::directory(&nats, &simulator, &["--worker-id", "first"]);
    let second = Process::directory(&nats, &simulator, &["--worker-id", "second"]);
    first.logs("answering queries").await;
    second.logs("answering queries").await;
    let client = testkit::nats::connect(&nats).await.unwrap();
    let directory = Directory::new(client, world.prefix.clone());
    let loading = Instant::now();
    until_within(10, "all guilds to be known", async || {
        let stats = directory.aggregate_stats().await.ok()?;
        (stats.guilds == storm.guilds as u64 && stats.unavailable == 0).then_some(())
    })
    .await;
    eprintln!(
        "{} guilds known after {:?}",
        storm.guilds,
        loading.elapsed()
    );

    let (began, before) = (Instant::now(), truth::made(&simulator));
    let (directories, proxy) = disturb(&nats, &simulator, [first, second], proxy, &storm).await;
    let out = storm.guilds / 10;
    simulator.apply(Action::Outage {
        guilds: out,
        ms: None,
    });
    simulator.set_load(Load::quiet());
    let disturbed = began.elapsed();
    let truth = truth::when_all_is_stored(&world, &simulator, out, storm.shards).await;
    let stored = began.elapsed();
    until_within(10, "the directory to equal the truth", async || {
        let known = truth::known(&directory).await?;
        (known == truth).then_some(())
    })
    .await;
    for running in &directories {
        eprintln!(
            "a directory has read {} events and written {} entries",
            running.metric("directory_events_total ").await,
            running.metric("directory_writes_total ").await
        );
    }
    eprintln!(
        "a storm of {} events: disturbed for {disturbed:?}, stored after {stored:?}, known after {:?}",
        truth::made(&simulator) - before,
        began.elapsed()
    );
    let stats = directory.aggregate_stats().await.unwrap();
    assert_eq!(stats.unavailable, out as u64);
    assert_eq!(u64::from(stats.shards), u64::from(storm.shards));
    assert_eq!(simulator.stats().violations, 0);

    for running in directories {
        assert_eq!(running.stop().await, 0);
    }
    restart(&nats, &simulator, &directory, &truth).await;
    drop(proxy);
}

/// Kills directories and proxies in turn while everything happens at once.
async fn disturb(
    nats: &str,
    simulator: &Simulator,
    directories: [Process; 2],
    mut proxy: Process,
    storm: &Storm,
) -> ([Process; 2], Process) {
    simulator.set_load(Load::rate(300.0));
    let [mut next, mut other] = directories;
    for round in 0..storm.rounds {
        // They come back, with a GUILD_CREATE each, before or after the proxy dies.
        simulator.apply(Action::Outage {
            guilds: storm.guilds / 20,
            ms: Some(700),
        });
        burst(simulator);
        next.kill().await;
        burst(simulator);
        // A successor resumes: no READY, no GUILD_CREATE.
        proxy.kill().await;
        let name = format!("successor-{round}");
        proxy = Process::proxy(nats, simulator, &["--proxy-id", &name]);
        burst(simulator);
        let name = format!("again-{round}");
        let again = Process::directory(nats, simulator, &["--worker-id", &name]);
        again.logs("answering queries").await;
        // RESUMED comes behind the replay, which is all that happened meanwhile.
        proxy.logs_within(10, "shard is ready").await;
        next = std::mem::replace(&mut other, again);
        until("the outage to be over", async || {
            (simulator.unavailable_guilds() == 0).then_some(())
        })
        .await;
    }
    ([next, other], proxy)
}

/// A directory that starts again answers at once, and the same.
async fn restart(
    nats: &str,
    simulator: &Simulator,
    directory: &Directory,
    truth: &std::collections::BTreeMap<Snowflake, GuildInfo>,
) {
    let restarting = Instant::now();
    let again = Process::directory(nats, simulator, &["--worker-id", "restarted"]);
    let stats = until("the first answer", async || {
        directory.aggregate_stats().await.ok()
    })
    .await;
    let took = restarting.elapsed();
    eprintln!("first answer {took:?} after the start of the process");
    assert_eq!(stats.guilds, truth.len() as u64);
    let limit = Duration::from_secs(1) * slowness();
    assert!(took < limit, "{took:?}");
    assert_eq!(truth::known(directory).await.as_ref(), Some(truth));
    drop(again);
}

/// Everything that changes what is kept of a guild, in every guild.
fn burst(simulator: &Simulator) {
    for event in [
        "GUILD_MEMBER_ADD",
        "CHANNEL_CREATE",
        "GUILD_ROLE_CREATE",
        "GUILD_MEMBER_ADD",
        "GUILD_UPDATE",
        "CHANNEL_DELETE",
        "GUILD_MEMBER_REMOVE",
        "GUILD_ROLE_DELETE",
    ] {
        let event = event.to_owned();
        simulator.apply(Action::Burst {
            event,
            per_guild: 1,
        });
    }
}
