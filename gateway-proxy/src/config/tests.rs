//! The three stages together: who wins, what contradicts, what messages name.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use secrecy::ExposeSecret as _;

use super::*;

/// A configuration from arguments, variables and a file's text.
#[derive(Default)]
struct Given<'a> {
    args: &'a [&'a str],
    env: &'a [(&'a str, &'a str)],
    file: Option<&'a str>,
}

impl Given<'_> {
    fn load(&self) -> Result<Config, String> {
        let mut env: HashMap<&str, OsString> = self
            .env
            .iter()
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect();
        let file = self.file.map(TempFile::new);
        if let Some(file) = &file {
            env.insert("GATEWAY_PROXY_CONFIG", file.0.clone().into());
        }
        let command = with_settings(clap::Command::new("test"));
        let args = ["test"].iter().chain(self.args);
        let flags = command
            .try_get_matches_from(args)
            .map_err(|error| error.to_string())?;
        let load = Config::load(&flags, &|name| env.get(name).cloned());
        load.map_err(|error| error.to_string())
    }

    fn good(&self) -> Config {
        self.load().unwrap()
    }

    /// The message, which must have all of `parts`.
    fn bad(&self, parts: &[&str]) {
        let error = self.load().expect_err("should be refused");
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
    }
}

/// A file that goes with the test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gateway-proxy-{:016x}", fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

const TOKEN: (&str, &str) = ("DISCORD_TOKEN", "the-token");

fn flags(args: &[&str]) -> Result<Config, String> {
    Given {
        args,
        env: &[TOKEN],
        file: None,
    }
    .load()
}

fn env(variables: &[(&str, &str)]) -> Result<Config, String> {
    let mut all = variables.to_vec();
    all.push(TOKEN);
    Given {
        args: &[],
        env: &all,
        file: None,
    }
    .load()
}

fn file(text: &str) -> Result<Config, String> {
    Given {
        args: &[],
        env: &[TOKEN],
        file: Some(text),
    }
    .load()
}

#[test]
fn every_default_of_the_contract_holds() {
    let config = flags(&[]).unwrap();
    assert_eq!(config.api_url().as_str(), "https://discord.com/api/v10");
    assert_eq!(config.shards(), ShardCount::Auto);
    assert_eq!(config.intents(), Intents::UNPRIVILEGED);
    assert_eq!(config.compression(), Compression::Zstd);
    assert_eq!(config.http().to_string(), "127.0.0.1:9100");
    assert_eq!(config.prefix().as_str(), "discord");
    assert_eq!(config.startup_timeout(), Duration::from_secs(30));
    assert_eq!(config.silent_after(), Some(Duration::from_secs(120)));
    assert_eq!(config.identify_reserve_percent(), 20);
    assert_eq!(config.buffer_bytes(), 64 << 20);
    assert_eq!(config.stream().max_age, Duration::from_secs(86_400));
    assert_eq!(
        (
            config.stream().event_streams.get(),
            config.stream().replicas
        ),
        (1, 1)
    );
    assert!(config.stream().live_feed && config.events().is_everything());
    assert!(config.fleet().is_none() && config.shard_ids().is_none());
    let NatsTarget::Servers(nats) = config.nats() else {
        panic!("the default is not an embedded server");
    };
    assert_eq!(nats.display_urls(), "nats://127.0.0.1:4222");
    assert!(config.warnings().is_empty());
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let text = "subject-prefix = \"file\"\nzone = \"file\"\nreplicas = 3\n";
    let variables = [TOKEN, ("SUBJECT_PREFIX", "env"), ("ZONE", "env")];
    let args = ["--subject-prefix", "flag"];
    let config = Given {
        args: &args,
        env: &variables,
        file: Some(text),
    }
    .good();
    assert_eq!(config.prefix().as_str(), "flag");
    assert_eq!(config.fleet.zone.as_deref(), Some("env"));
    assert_eq!(config.stream().replicas, 3);
    let toml = config.to_toml();
    for (key, source) in [
        ("subject-prefix", "# flag"),
        ("zone", "# env ZONE"),
        ("replicas", "# file"),
        ("compression", "# default"),
    ] {
        let line = toml
            .lines()
            .find(|line| line.starts_with(&format!("{key} =")))
            .unwrap();
        assert!(line.ends_with(source), "{line}");
    }
}

#[test]
fn the_file_may_use_toml_types() {
    let text = r#"
        shards = 16
        shard-ids = [0, 2, "4-7"]
        intents = ["GUILDS", "GUILD_MESSAGES"]
        live-feed = false
        publish-events = ["MESSAGE_CREATE"]
        nats-url = ["nats://a", "nats://b:1"]
        startup-timeout = 5
        [presence]
        status = "idle"
        [[presence.activities]]
        name = "chess"
        type = 0
    "#;
    let config = file(text).unwrap();
    assert_eq!(config.shard_ids().unwrap().iter().count(), 6);
    assert_eq!(config.intents().bits(), 513);
    assert!(!config.stream().live_feed);
    assert_eq!(config.startup_timeout(), Duration::from_secs(5));
    assert!(config.presence().unwrap().as_json().contains("chess"));
    let NatsTarget::Servers(nats) = config.nats() else {
        panic!("embedded")
    };
    assert_eq!(nats.servers().len(), 2);
}

#[test]
fn the_token_comes_from_a_file_before_a_variable_and_its_alias_counts() {
    let secret = TempFile::new("Bot from-file\n");
    let both = [TOKEN, ("DISCORD_TOKEN_FILE", secret.path())];
    let config = Given {
        env: &both,
        ..Given::default()
    }
    .good();
    assert_eq!(config.token().expose_secret(), "from-file");
    let alias = [("DISCORD_BOT_TOKEN", " Bot abc ")];
    let config = Given {
        env: &alias,
        ..Given::default()
    }
    .good();
    assert_eq!(config.token().expose_secret(), "abc");
    let args = ["--token-file", secret.path()];
    let config = Given {
        args: &args,
        env: &[TOKEN],
        ..Given::default()
    }
    .good();
    assert_eq!(config.token().expose_secret(), "from-file");
    let text = format!("token-file = {:?}", secret.path());
    let config = Given {
        env: &[TOKEN],
        file: Some(&text),
        ..Given::default()
    }
    .good();
    assert_eq!(
        config.token().expose_secret(),
        "the-token",
        "the environment is stronger"
    );
}

#[test]
fn a_missing_or_unusable_token_names_its_keys_and_never_its_value() {
    Given::default().bad(&["token", "--token-file", "DISCORD_TOKEN"]);
    let differ = [TOKEN, ("DISCORD_BOT_TOKEN", "another-token")];
    let given = Given {
        env: &differ,
        ..Given::default()
    };
    given.bad(&["DISCORD_TOKEN", "DISCORD_BOT_TOKEN", "contradict"]);
    assert!(!given.load().unwrap_err().contains("another-token"));
    Given {
        env: &[("DISCORD_TOKEN_FILE", "/no/such/file")],
        ..Given::default()
    }
    .bad(&["DISCORD_TOKEN_FILE", "/no/such/file", "cannot be read"]);
    let two_lines = TempFile::new("one-secret\ntwo-secret\n");
    let given = [("DISCORD_TOKEN_FILE", two_lines.path())];
    let given = Given {
        env: &given,
        ..Given::default()
    };
    given.bad(&["DISCORD_TOKEN_FILE", "single line"]);
    assert!(!given.load().unwrap_err().contains("one-secret"));
    let inline = [("DISCORD_TOKEN", "bad\u{1}token")];
    let error = Given {
        env: &inline,
        ..Given::default()
    }
    .load()
    .unwrap_err();
    assert!(
        !error.contains("bad\u{1}token") && error.contains("DISCORD_TOKEN"),
        "{error}"
    );
}

#[test]
fn shard_counts_from_several_variables_must_agree() {
    let count = |variables: &[(&str, &str)]| env(variables).map(|config| config.shards());
    let four = ShardCount::Fixed(NonZeroU32::new(4).unwrap());
    assert_eq!(count(&[("SHARD_COUNT", "4")]), Ok(four));
    assert_eq!(
        count(&[("SHARD_COUNT", "4"), ("DISCORD_SHARD_COUNT", "4")]),
        Ok(four)
    );
    assert_eq!(
        count(&[("DISCORD_AUTO_SHARD", "true")]),
        Ok(ShardCount::Auto)
    );
    assert_eq!(
        count(&[("DISCORD_AUTO_SHARD", "false"), ("SHARD_COUNT", "4")]),
        Ok(four)
    );
    assert_eq!(
        count(&[("DISCORD_AUTO_SHARD", "TRUE"), ("SHARD_COUNT", "auto")]),
        Ok(ShardCount::Auto)
    );
    let error = count(&[("SHARD_COUNT", "4"), ("DISCORD_AUTO_SHARD", "true")]).unwrap_err();
    assert!(
        error.contains("SHARD_COUNT") && error.contains("DISCORD_AUTO_SHARD"),
        "{error}"
    );
    let error = count(&[("SHARD_COUNT", "4"), ("DISCORD_SHARD_COUNT", "5")]).unwrap_err();
    assert!(
        error.contains("SHARD_COUNT") && error.contains("DISCORD_SHARD_COUNT"),
        "{error}"
    );
    let error = count(&[("DISCORD_AUTO_SHARD", "maybe")]).unwrap_err();
    assert!(
        error.contains("DISCORD_AUTO_SHARD") && error.contains("maybe"),
        "{error}"
    );
    let stronger = Given {
        args: &["--shards", "4"],
        env: &[TOKEN, ("SHARD_COUNT", "5")],
        file: None,
    };
    assert_eq!(stronger.good().shards(), four);
}

#[test]
fn shard_id_and_shard_ids_are_one_setting() {
    let ids = |config: Config| config.shard_ids().unwrap().iter().collect::<Vec<_>>();
    assert_eq!(ids(flags(&["--shard-id", "3"]).unwrap()), [3]);
    let stronger = Given {
        args: &["--shard-id", "3"],
        env: &[TOKEN, ("DISCORD_SHARD_IDS", "0-1")],
        file: None,
    };
    assert_eq!(ids(stronger.good()), [3]);
    let error = flags(&["--shard-id", "3", "--shard-ids", "0"]).unwrap_err();
    assert!(
        error.contains("--shard-id ") && error.contains("--shard-ids"),
        "{error}"
    );
    let error = flags(&["--shard-ids", "0,4", "--shards", "4"]).unwrap_err();
    assert!(
        error.contains("--shard-ids") && error.contains("\"4\""),
        "{error}"
    );
}

/// A flag, a value it refuses, and what the message must have besides both.
const REFUSED: &[(&str, &str, &str)] = &[
    ("--large-threshold", "9", "50 to 250"),
    ("--compression", "brotli", "zstd, zlib or none"),
    ("--intents", "GUILDZ", "did you mean GUILDS"),
    ("--replicas", "2", "1, 3 or 5"),
    ("--http", "nowhere", "0.0.0.0:9100"),
    ("--subject-prefix", "a.b", "A-Z"),
    ("--proxy-id", "a b", "64"),
    ("--identify-reserve", "200", "90"),
    ("--startup-timeout", "soon", "30s"),
    ("--grace-period", "1h", "10m"),
    ("--heartbeat-timeout", "0", "1s"),
    ("--silent-after", "never", "off"),
    ("--stream-max-age", "1m", "2m"),
    ("--stream-max-bytes", "1", "16MiB"),
    ("--buffer-bytes", "1", "8MiB"),
    ("--log-filter", "a=b=c", "info"),
    ("--log", "xml", "text or json"),
    ("--drop-events", "PROXY_GAP", "never"),
    ("--publish-events", "A,,B", "MESSAGE_CREATE"),
    ("--event-streams", "0", "1 to 256"),
    ("--presence", "away", "online"),
    ("--zone", "a b", "A-Z"),
    ("--max-shards", "0", "1 to"),
    ("--coordinator-priority", "first", "whole number"),
    ("--live-feed", "maybe", "on or off"),
    ("--nats-url", "http://x", "nats://host:4222"),
    ("--api-url", "discord", "http"),
    ("--otlp-endpoint", "x:1", "http"),
    ("--nats-ca", "/no/ca", "cannot be read"),
    ("--nats-creds", "/no/creds", "cannot be read"),
];

#[test]
fn messages_name_the_place_the_value_and_what_is_allowed() {
    for (flag, value, allowed) in REFUSED {
        let error = flags(&[flag, value]).expect_err(flag);
        for part in [flag, value, allowed] {
            assert!(error.contains(part), "{part:?} is missing in: {error}");
        }
    }
    let error = flags(&["--nats-cert", "/no/cert"]).unwrap_err();
    assert!(
        error.contains("--nats-cert needs --nats-key too"),
        "{error}"
    );
    let error = flags(&["--nats-user", "me"]).unwrap_err();
    assert!(error.contains("NATS_PASSWORD"), "{error}");
    let error = env(&[("DISCORD_LARGE_THRESHOLD", "9")]).unwrap_err();
    assert!(
        error.contains("environment variable DISCORD_LARGE_THRESHOLD"),
        "{error}"
    );
    let error = file("large-threshold = 9").unwrap_err();
    assert!(error.contains("`large-threshold` in /"), "{error}");
}

#[test]
fn an_unknown_key_or_broken_file_is_named_without_its_text() {
    let error = file("shardz = 4").unwrap_err();
    assert!(error.contains("unknown key `shardz`"), "{error}");
    let error = file("zone = \"a\"\ntoken = very-secret").unwrap_err();
    assert!(
        error.contains("line 2") && !error.contains("very-secret"),
        "{error}"
    );
    let error = file("zone = 2020-01-01").unwrap_err();
    assert!(error.contains("`zone`"), "{error}");
    let missing = Given {
        args: &["--config", "/no/such.toml"],
        env: &[TOKEN],
        file: None,
    };
    missing.bad(&["/no/such.toml", "cannot be read"]);
}

#[test]
fn ways_to_authenticate_exclude_each_other() {
    let both = [
        ("NATS_TOKEN", "t"),
        ("NATS_USER", "u"),
        ("NATS_PASSWORD", "p"),
    ];
    let error = env(&both).unwrap_err();
    assert!(
        error.contains("NATS_USER") && error.contains("NATS_TOKEN"),
        "{error}"
    );
    let error = env(&[("NATS_URL", "nats://u:hidden@a"), ("NATS_TOKEN", "t")]).unwrap_err();
    assert!(
        error.contains("NATS_URL") && !error.contains("hidden"),
        "{error}"
    );
    let error = env(&[("NATS_URL", "embedded"), ("NATS_TOKEN", "t")]).unwrap_err();
    assert!(
        error.contains("NATS_URL") && error.contains("NATS_TOKEN"),
        "{error}"
    );
    let error = env(&[("NATS_PASSWORD", "p")]).unwrap_err();
    assert!(
        error.contains("nats-user") && error.contains("NATS_PASSWORD"),
        "{error}"
    );
    let error = env(&[("NATS_URL", "nats://u:hidden@a/path")]).unwrap_err();
    assert!(
        error.contains("NATS_URL") && !error.contains("hidden"),
        "{error}"
    );
}

#[test]
fn a_credentials_file_becomes_jwt_and_key() {
    let seed = nkeys::KeyPair::new_user().seed().unwrap();
    let creds = TempFile::new(&format!(
        "-----BEGIN NATS USER JWT-----\neyJ0.eyJz.c2ln\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    ));
    let config = env(&[("NATS_CREDS", creds.path())]).unwrap();
    let NatsTarget::Servers(nats) = config.nats() else {
        panic!("embedded")
    };
    let NatsAuth::Creds { jwt, key } = nats.auth() else {
        panic!("{:?}", nats.auth())
    };
    assert_eq!(jwt.expose_secret(), "eyJ0.eyJz.c2ln");
    assert_eq!(key.seed().unwrap(), seed);
    assert!(!format!("{config:?}").contains(&seed));
    let error = env(&[("NATS_CREDS", TempFile::new("nothing").path())]).unwrap_err();
    assert!(error.contains("NATS_CREDS"), "{error}");
}

#[test]
fn an_embedded_server_has_a_store() {
    let config = flags(&["--nats-url", "embedded", "--nats-store", "here"]).unwrap();
    let NatsTarget::Embedded { store } = config.nats() else {
        panic!("not embedded")
    };
    assert_eq!(store, &PathBuf::from("here"));
}

#[test]
fn neither_debug_nor_toml_shows_a_secret() {
    let secrets = [
        ("DISCORD_TOKEN", "secret-token"),
        ("NATS_URL", "nats://alice:secret-password@a"),
    ];
    let config = Given {
        env: &secrets,
        ..Given::default()
    }
    .good();
    let shown = format!("{config:?}{}", config.to_toml());
    assert!(
        !shown.contains("secret-token") && !shown.contains("secret-password"),
        "{shown}"
    );
    assert!(config.to_toml().contains("token = \"[redacted]\""));
}

#[test]
fn the_effective_configuration_is_toml_that_reads_back() {
    let args = [
        "--shards",
        "8",
        "--presence",
        "dnd:x",
        "--drop-events",
        "TYPING_START",
    ];
    let first = flags(&args).unwrap();
    let second = file(&first.to_toml().replace("[redacted]", "t")).unwrap();
    let plain = |config: &Config| config.to_toml().parse::<toml::Table>().unwrap();
    assert_eq!(plain(&first), plain(&second));
}

#[test]
fn fleet_mode_is_a_switch_with_companions() {
    let args = [
        "--fleet",
        "--max-shards",
        "32",
        "--zone",
        "eu-1",
        "--coordinator-priority",
        "-5",
    ];
    let joined = [
        "--fleet",
        "--max-shards=32",
        "--zone=eu-1",
        "--coordinator-priority=-5",
    ];
    let config = flags(&joined).unwrap();
    let fleet = config.fleet().unwrap();
    assert_eq!(fleet.max_shards.map(NonZeroU32::get), Some(32));
    assert_eq!(
        (fleet.zone.as_deref(), fleet.coordinator_priority),
        (Some("eu-1"), -5)
    );
    assert_eq!(flags(&args).unwrap().fleet(), Some(fleet));
    assert!(env(&[("FLEET", "true")]).unwrap().fleet().is_some());
    assert!(env(&[("FLEET", "maybe")]).unwrap_err().contains("FLEET"));
    let alone = flags(&["--max-shards", "3"]).unwrap();
    assert_eq!(
        alone.warnings(),
        ["--max-shards has no effect without --fleet"]
    );
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let config = flags(&["--api-url", "http://simulator:8080/api/v10"]).unwrap();
    assert!(config.warnings()[0].contains("--api-url"));
    let config = flags(&["--drop-events", "MESAGE_CREATE"]).unwrap();
    assert!(config.warnings()[0].contains("MESAGE_CREATE"));
    let error = flags(&[
        "--publish-events",
        "READY,RESUMED",
        "--drop-events",
        "READY",
    ])
    .unwrap_err();
    assert!(
        error.contains("READY") && error.contains("--drop-events"),
        "{error}"
    );
}

#[test]
fn empty_variables_count_as_unset() {
    let config = env(&[("NATS_CREDS", ""), ("DISCORD_SHARD_COUNT", "")]).unwrap();
    assert_eq!(config.shards(), ShardCount::Auto);
}

#[test]
fn more_streams_than_shards_are_refused() {
    let error = flags(&["--event-streams", "3", "--shards", "2"]).unwrap_err();
    assert!(
        error.contains("--event-streams") && error.contains("--shards is 2"),
        "{error}"
    );
}

#[test]
fn two_processes_of_one_host_have_different_names() {
    let (a, b) = (flags(&[]).unwrap(), flags(&[]).unwrap());
    assert_ne!(a.proxy_id(), b.proxy_id());
}

/// `status` and all its like panicked where clap was built without its debug assertions: it then does
/// not say that a verb has no flag `--fresh`.
#[test]
fn an_operators_verb_is_not_asked_for_flags_that_only_run_has() {
    let command = with_operator_settings(clap::Command::new("status"));
    let flags = command.get_matches_from(["status", "--subject-prefix", "flag"]);
    let env = |name: &str| match name {
        "FRESH" => Some(OsString::from("true")),
        "SUBJECT_PREFIX" => Some(OsString::from("env")),
        _ => None,
    };
    let config = OperatorConfig::load(&flags, &env).unwrap();
    assert_eq!(config.prefix.as_str(), "flag");
}

#[test]
fn what_a_prefix_and_a_lease_may_be_is_said_once_and_as_it_is() {
    let problem = |args: &[&str]| {
        let given = Given {
            args,
            env: &[TOKEN],
            ..Given::default()
        };
        given.load().unwrap_err()
    };
    let prefix = problem(&["--subject-prefix", "a.b"]);
    assert!(
        prefix.ends_with(
            "\"a.b\" is not allowed, expected 1 to 32 characters of A-Z, a-z, 0-9, `_` and `-`"
        ),
        "{prefix}"
    );
    for ttl in ["1500ms", "2500ms", "2m"] {
        let lease = problem(&["--lease-ttl", ttl]);
        assert!(
            lease.ends_with("expected whole seconds from 2 to 60, such as `10s`"),
            "{lease}"
        );
    }
}

#[test]
fn an_operators_verb_does_not_offer_an_embedded_server() {
    let mut command = with_operator_settings(clap::Command::new("status"));
    let help = command.render_help().to_string();
    assert!(
        help.contains("NATS servers separated by commas [env: NATS_URL]"),
        "{help}"
    );
    assert!(!help.contains("embedded"), "{help}");
}
