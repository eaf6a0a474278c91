//! Every exit code that does not need a gateway connection, by running the program.

use std::time::Duration;

use async_nats::jetstream::stream::{Config as Stream, StorageType};
use nats_server::Options;
use nix::sys::signal::Signal;
use testkit::simulator::{Action, Config, Fault, Target};
use tokio::net::TcpListener;

use crate::harness::{FakeDiscord, Finished, Run, TempFile, dead_address, eventually, fake_nats};
use crate::rig::Rig;

/// Runs `run` with a token and these arguments; nothing it names exists.
async fn run(args: &[&str]) -> Finished {
    Run::new(&["run"])
        .args(args)
        .env("DISCORD_TOKEN", "t")
        .finish()
        .await
}

#[tokio::test]
async fn bad_flags_end_with_64_and_name_the_key_and_the_value() {
    for (args, parts) in [
        (&["--bogus"][..], &["--bogus"][..]),
        (&["--shards"], &["--shards"]),
        (&["--token", "x"], &["--token"]),
        (&["--shards", "0"], &["--shards", "\"0\"", "auto"]),
        (
            &["--shards", "2", "--shard-ids", "0-2"],
            &["--shard-ids", "\"2\"", "below 2"],
        ),
        (
            &["--shards", "2", "--shards", "3"],
            &["--shards", "multiple"],
        ),
        (&["--intents", "GUILDZ"], &["--intents", "GUILDZ"]),
        (
            &["--large-threshold", "300"],
            &["--large-threshold", "300", "50 to 250"],
        ),
        (&["--http", "300.0.0.1:1"], &["--http", "300.0.0.1:1"]),
        (&["--nats-url", "http://x"], &["--nats-url", "http://x"]),
        (&["--config", "/no/such"], &["/no/such"]),
        (&["--token-file", "/no/such"], &["--token-file", "/no/such"]),
    ] {
        run(args).await.expect(64, parts);
    }
}

#[tokio::test]
async fn a_missing_or_unknown_verb_ends_with_64() {
    let missing = Run::new(&[]).finish().await;
    assert_eq!(missing.code, Some(64), "{missing:#?}");
    assert!(missing.stderr.contains("check-config"), "{missing:#?}");
    Run::new(&["fly"]).finish().await.expect(64, &["fly"]);
    // Clap says what is missing in lines of their own.
    let alone = Run::new(&["migrate", "3"]).finish().await;
    alone.expect(64, &["not provided: <PROXY>"]);
}

#[tokio::test]
async fn bad_environment_and_file_end_with_64_and_name_the_key() {
    Run::new(&["run"])
        .finish()
        .await
        .expect(64, &["token", "DISCORD_TOKEN"]);
    let with_env = |name: &str, value: &str| {
        Run::new(&["run"])
            .env("DISCORD_TOKEN", "t")
            .env(name, value)
    };
    let finished = with_env("DISCORD_SHARD_COUNT", "many").finish().await;
    finished.expect(64, &["DISCORD_SHARD_COUNT", "many"]);
    let finished = with_env("DISCORD_BOT_TOKEN", "other").finish().await;
    finished.expect(64, &["DISCORD_TOKEN", "DISCORD_BOT_TOKEN"]);
    let both = with_env("DISCORD_SHARD_COUNT", "4").env("DISCORD_AUTO_SHARD", "true");
    both.finish()
        .await
        .expect(64, &["DISCORD_SHARD_COUNT", "DISCORD_AUTO_SHARD"]);
    for (text, parts) in [
        ("shardz = 1", &["unknown key `shardz`"][..]),
        ("shards = [", &["line 1"]),
        ("replicas = 2", &["`replicas`", "\"2\"", "1, 3 or 5"]),
    ] {
        let file = TempFile::new(text);
        let path = file.path().to_str().unwrap();
        with_env("GATEWAY_PROXY_CONFIG", path)
            .finish()
            .await
            .expect(64, parts);
        run(&["--config", path]).await.expect(64, parts);
    }
}

#[tokio::test]
async fn an_http_address_in_use_ends_with_64() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    run(&["--http", &address])
        .await
        .expect(64, &["--http", &address]);
}

#[tokio::test]
async fn an_api_url_that_is_not_the_api_ends_with_64() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::start(404, "not here").await;
    let finished = Run::proxy(&nats.url(), &discord.api_url()).finish().await;
    finished.expect(64, &["--api-url", "404"]);
}

#[tokio::test]
async fn shard_ids_beyond_what_discord_recommends_end_with_64() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(2).await;
    let finished = Run::proxy(&nats.url(), &discord.api_url())
        .args(&["--shard-ids", "0,2"])
        .finish()
        .await;
    finished.expect(64, &["--shard-ids", "shard 2 is out of range"]);
}

#[tokio::test]
async fn nats_unreachable_ends_with_69() {
    let discord = FakeDiscord::with_shards(1).await;
    let nobody = format!("nats://{}", dead_address().await);
    let proxy = Run::proxy(&nobody, &discord.api_url()).with("--startup-timeout", "1s");
    proxy
        .finish()
        .await
        .expect(69, &["NATS", &nobody, "1s", "--startup-timeout"]);
    let status = Run::new(&["status", "--nats-url", &nobody]).finish().await;
    status.expect(69, &["NATS", &nobody, "check --nats-url, and"]);
}

#[tokio::test]
async fn discord_unreachable_or_failing_ends_with_69() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let nobody = format!("http://{}/api/v10", dead_address().await);
    let short = |api: &str| Run::proxy(&nats.url(), api).with("--startup-timeout", "1s");
    short(&nobody)
        .finish()
        .await
        .expect(69, &["Discord", &nobody, "1s"]);
    let failing = FakeDiscord::start(503, "").await;
    short(&failing.api_url())
        .finish()
        .await
        .expect(69, &["Discord", "503"]);
    assert!(failing.asked().len() > 1, "a 503 is worth another try");
    let garbage = FakeDiscord::start(200, "<html>captive portal</html>").await;
    let finished = short(&garbage.api_url()).finish().await;
    finished.expect(69, &["not gateway information", "captive portal"]);
}

#[tokio::test]
async fn a_refused_token_ends_with_77_after_one_question() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    for status in [401, 403] {
        let discord = FakeDiscord::start(status, r#"{"message": "401: Unauthorized"}"#).await;
        let finished = Run::proxy(&nats.url(), &discord.api_url()).finish().await;
        finished.expect(77, &[&status.to_string(), "--token-file"]);
        assert!(
            !finished.stderr.contains("simulated.bot.token"),
            "{finished:#?}"
        );
        let asked = discord.asked();
        let agent = "GET /api/v10/gateway/bot Bot simulated.bot.token DiscordBot (https://";
        assert!(asked.len() == 1 && asked[0].starts_with(agent), "{asked:?}");
    }
}

#[tokio::test]
async fn an_old_nats_server_ends_with_78() {
    let discord = FakeDiscord::with_shards(1).await;
    let old = fake_nats("2.9.25").await;
    let finished = Run::proxy(&old, &discord.api_url()).finish().await;
    finished.expect(78, &["2.9.25", "2.14"]);
}

#[tokio::test]
async fn nats_without_jetstream_ends_with_78() {
    // An account without JetStream on a server that has it: the commoner mistake.
    let accounts = r#"
        accounts {
          FULL { jetstream: enabled, users: [{user: full, password: full}] }
          PLAIN { users: [{user: plain, password: plain}] }
        }
        no_auth_user: full
    "#;
    let options = Options {
        extra_config: accounts.to_owned(),
        ..Options::default()
    };
    let nats = testkit::nats::start(options).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let proxy = Run::proxy(&nats.url(), &discord.api_url());
    let proxy = proxy
        .env("NATS_USER", "plain")
        .env("NATS_PASSWORD", "plain");
    proxy
        .finish()
        .await
        .expect(78, &["JetStream is not", "account"]);
}

#[tokio::test]
async fn wrong_nats_credentials_end_with_78() {
    let options = Options {
        extra_config: "authorization { user: a, password: b }".to_owned(),
        ..Options::default()
    };
    let nats = testkit::nats::start(options).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let finished = Run::proxy(&nats.url(), &discord.api_url())
        .env("NATS_USER", "a")
        .env("NATS_PASSWORD", "wrong-secret")
        .finish()
        .await;
    finished.expect(78, &["credentials", "--nats-user"]);
    assert!(!finished.stderr.contains("wrong-secret"), "{finished:#?}");
}

#[tokio::test]
async fn a_stream_with_other_settings_ends_with_78_and_stays_as_it_is() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let jetstream = testkit::nats::jetstream(&nats.url()).await.unwrap();
    let other = Stream {
        name: "DISCORD_EVENTS".to_owned(),
        subjects: vec!["discord.shard.*.events.*.*".to_owned()],
        storage: StorageType::Memory,
        max_age: Duration::from_secs(3_600),
        ..Stream::default()
    };
    jetstream.create_stream(other).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let finished = Run::proxy(&nats.url(), &discord.api_url()).finish().await;
    finished.expect(
        78,
        &[
            "DISCORD_EVENTS",
            "storage: is memory, must be file",
            "max_age: is 3600s, must be 86400s",
            "allow_batched: is false, must be true",
            "republish: is none",
        ],
    );
    let stream = jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    assert_eq!(stream.cached_info().config.storage, StorageType::Memory);
}

#[tokio::test]
async fn a_stream_that_overlaps_or_replicas_without_a_cluster_end_with_78() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let proxy = Run::proxy(&nats.url(), &discord.api_url());
    let finished = proxy.clone().args(&["--replicas", "3"]).finish().await;
    finished.expect(78, &["KV_discord_fleet", "--replicas"]);
    let jetstream = testkit::nats::jetstream(&nats.url()).await.unwrap();
    let other = Stream {
        name: "EVERYTHING".to_owned(),
        subjects: vec!["discord.>".to_owned()],
        ..Stream::default()
    };
    jetstream.create_stream(other).await.unwrap();
    proxy
        .finish()
        .await
        .expect(78, &["DISCORD_EVENTS", "--subject-prefix"]);
}

#[tokio::test]
async fn a_bucket_without_ttl_ends_with_78() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let jetstream = testkit::nats::jetstream(&nats.url()).await.unwrap();
    let bucket = async_nats::jetstream::kv::Config {
        bucket: "discord_fleet".to_owned(),
        ..async_nats::jetstream::kv::Config::default()
    };
    jetstream.create_key_value(bucket).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let finished = Run::proxy(&nats.url(), &discord.api_url()).finish().await;
    finished.expect(
        78,
        &["KV_discord_fleet", "allow_msg_ttl: is false, must be true"],
    );
}

#[tokio::test]
async fn missing_permissions_end_with_78_and_name_the_subject() {
    let restricted = r#"
        authorization {
          users: [
            {user: full, password: full}
            {user: small, password: small, permissions: {publish: "x.>", subscribe: ">"}}
          ]
        }
        no_auth_user: full
    "#;
    let options = Options {
        extra_config: restricted.to_owned(),
        ..Options::default()
    };
    let nats = testkit::nats::start(options).await.unwrap();
    let discord = FakeDiscord::with_shards(1).await;
    let proxy = Run::proxy(&nats.url(), &discord.api_url());
    let proxy = proxy
        .env("NATS_USER", "small")
        .env("NATS_PASSWORD", "small");
    proxy.finish().await.expect(78, &["permit", "$JS.API."]);
}

#[tokio::test]
async fn a_signal_ends_with_0_and_the_next_start_accepts_its_own_streams() {
    let nats = testkit::nats::start(Options::default()).await.unwrap();
    let discord = FakeDiscord::with_shards(2).await;
    for (signal, streams) in [(Signal::SIGTERM, "1"), (Signal::SIGINT, "1")] {
        let run = Run::proxy(&nats.url(), &discord.api_url()).args(&["--event-streams", streams]);
        let proxy = run.spawn();
        let http = proxy.http().await;
        eventually(http, "/health", |_, body| {
            body.contains("\"total_shards\":2")
        })
        .await;
        proxy.signal(signal);
        assert_eq!(proxy.exit_code().await, Some(0));
    }
    let other = Run::proxy(&nats.url(), &discord.api_url()).args(&[
        "--event-streams",
        "2",
        "--subject-prefix",
        "big",
    ]);
    let proxy = other.spawn();
    let http = proxy.http().await;
    eventually(http, "/health", |_, body| {
        body.contains("\"total_shards\":2")
    })
    .await;
    let jetstream = testkit::nats::jetstream(&nats.url()).await.unwrap();
    let name = "BIG_EVENTS_1";
    let created = async {
        while jetstream.get_stream(name).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::harness::patience(), created)
        .await
        .unwrap();
    let stream = jetstream.get_stream(name).await.unwrap();
    assert_eq!(
        stream.cached_info().config.subjects,
        ["big.shard.1.events.*.*"]
    );
}

/// A proxy that is connected, and how it ends after Discord closed with this code.
async fn after_close(code: u16) -> Finished {
    let rig = Rig::start(Config {
        shards: 2,
        max_concurrency: 2,
        ..Config::default()
    })
    .await;
    let proxy = rig.proxy().spawn();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    let reached = rig
        .simulator
        .inject(Target::Shard(1), Fault::Close { code });
    assert_eq!(reached, 1, "shard 1 is connected");
    proxy.finish().await
}

#[tokio::test]
async fn close_codes_that_refuse_token_or_intents_end_with_77_and_name_the_shard() {
    for code in [4004, 4013, 4014] {
        after_close(code)
            .await
            .expect(77, &["shard 1/2", &code.to_string()]);
    }
}

#[tokio::test]
async fn close_codes_that_refuse_shard_or_version_end_with_78_and_name_the_shard() {
    for code in [4010, 4011, 4012] {
        after_close(code)
            .await
            .expect(78, &["shard 1/2", &code.to_string()]);
    }
}

#[tokio::test]
async fn intents_the_bot_may_not_have_end_with_77_at_the_first_identify() {
    let rig = Rig::start(Config {
        privileged_intents: 0,
        ..Config::default()
    })
    .await;
    let privileged = rig
        .proxy()
        .args(&["--intents", "GUILDS,MESSAGE_CONTENT"])
        .finish()
        .await;
    privileged.expect(77, &["4014", "--intents"]);
    let unknown = rig
        .proxy()
        .args(&["--intents", "9223372036854775808"])
        .finish()
        .await;
    unknown.expect(77, &["4013", "--intents"]);
}

#[tokio::test]
async fn a_shard_with_too_many_guilds_ends_with_78() {
    let rig = Rig::start(Config {
        guilds_per_shard_max: 5,
        ..Config::default()
    })
    .await;
    rig.proxy().finish().await.expect(78, &["4011", "--shards"]);
}

#[tokio::test]
async fn the_start_outlives_answers_that_pass() {
    let rig = Rig::start(Config::default()).await;
    let fault = |status| Action::RestFault {
        status,
        count: 1,
        retry_after_ms: 20,
    };
    rig.simulator.apply(fault(429));
    rig.simulator.apply(fault(502));
    let proxy = rig.proxy().spawn();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    let log = proxy.log().join("\n");
    assert!(log.contains("limits requests"), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once_without_draining() {
    let mut rig = Rig::start(Config::default()).await;
    let run = rig.proxy().args(&["--grace-period", "10m"]);
    let proxy = run.spawn();
    let http = proxy.http().await;
    eventually(http, "/ready", |status, _| status == 200).await;
    // Frozen, NATS acknowledges nothing, and the drain waits for it.
    rig.nats.pause().unwrap();
    rig.simulator.apply(Action::Burst {
        event: "MESSAGE_CREATE".to_owned(),
        per_guild: 1,
    });
    let waiting = |_, body: &str| !body.contains("\"unacknowledged\":0");
    eventually(http, "/health", waiting).await;
    proxy.signal(Signal::SIGTERM);
    let draining = |status, body: &str| status == 503 && body.contains("draining");
    eventually(http, "/ready", draining).await;
    proxy.signal(Signal::SIGINT);
    proxy
        .finish()
        .await
        .expect(130, &["SIGINT came a second time"]);
    rig.nats.resume().unwrap();
}
