//! `check-config`, `--help` and `--version`, by running the program.

use crate::harness::{Run, TempFile};

#[tokio::test]
async fn check_config_prints_toml_with_every_source_and_no_secret() {
    let file = TempFile::new("zone = \"eu\"\nnats-token = \"nats-secret\"\n");
    let finished = Run::new(&["check-config", "--shards", "4", "--shard-ids", "0,2-3"])
        .env("GATEWAY_PROXY_CONFIG", file.path().to_str().unwrap())
        .env("DISCORD_BOT_TOKEN", "Bot discord-secret")
        .env("DISCORD_INTENTS", "GUILDS")
        .finish()
        .await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    let table: toml::Table = finished.stdout.parse().unwrap();
    assert_eq!(table["shards"].as_integer(), Some(4));
    assert_eq!(table["shard-ids"].as_array().unwrap().len(), 3);
    assert_eq!(table["intents"].as_str(), Some("GUILDS"));
    assert_eq!(table["token"].as_str(), Some("[redacted]"));
    assert_eq!(table["nats-token"].as_str(), Some("[redacted]"));
    for (key, source) in [
        ("shards", "flag"),
        ("token", "env DISCORD_BOT_TOKEN"),
        ("intents", "env DISCORD_INTENTS"),
        ("zone", "file"),
        ("http", "default"),
    ] {
        let mut lines = finished.stdout.lines();
        let line = lines
            .find(|line| line.starts_with(&format!("{key} = ")))
            .unwrap();
        assert!(line.ends_with(&format!("# {source}")), "{line}");
    }
    let shown = format!("{}{}", finished.stdout, finished.stderr);
    assert!(
        !shown.contains("discord-secret") && !shown.contains("nats-secret"),
        "{shown}"
    );
}

#[tokio::test]
async fn check_config_warns_of_what_is_probably_not_meant() {
    let finished = Run::new(&["check-config", "--drop-events", "MESAGE_CREATE"])
        .env("DISCORD_TOKEN", "t")
        .finish()
        .await;
    assert_eq!(finished.code, Some(0), "{finished:#?}");
    assert!(
        finished.stderr.contains("warning: MESAGE_CREATE"),
        "{finished:#?}"
    );
}

#[tokio::test]
async fn help_and_version_are_answers() {
    let version = Run::new(&["--version"]).finish().await;
    assert_eq!((version.code, version.stderr.as_str()), (Some(0), ""));
    assert!(version.stdout.starts_with("gateway-proxy "), "{version:#?}");
    for verb in ["run", "check-config"] {
        let help = Run::new(&[verb, "--help"]).finish().await;
        assert_eq!(help.code, Some(0));
        for part in [
            "--token-file",
            "DISCORD_TOKEN_FILE",
            "--nats-url",
            "NATS_URL",
            "[default: nats://127.0.0.1:4222]",
            "Event stream:",
            "GATEWAY_PROXY_CONFIG",
        ] {
            assert!(
                help.stdout.contains(part),
                "{part:?} is missing in the help of {verb}"
            );
        }
        assert!(
            !help.stdout.contains("--token <"),
            "a token must not be a flag"
        );
    }
}
