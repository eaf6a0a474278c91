//! Configuration of a worker: flags and environment as text, then a [`Config`] whose fields cannot
//! be invalid. Names are the proxy's where they mean the same. Flag > environment > default.

mod options;
mod source;
mod value;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use schemas::Prefix;
use secrecy::{ExposeSecret as _, SecretString};

pub use options::Options;
use source::{Environment, Given};

use crate::exit::Fatal;
use crate::rest::ApiBase;

/// Loopback, next to the proxy's 9100, so that both run on one machine unconfigured.
const DEFAULT_HTTP: &str = "127.0.0.1:9101";
const DEFAULT_NATS_URL: &str = "nats://127.0.0.1:4222";
/// The durable consumer that workers share.
const DEFAULT_CONSUMER: &str = "commands";
/// Interactions handled at once: a handler mostly waits for Discord (~100 ms), so this is several
/// hundred commands per second, and 64 × ~4 KiB of frames.
const DEFAULT_CONCURRENCY: &str = "64";
const DEFAULT_STARTUP_TIMEOUT: &str = "30s";
/// Above Discord's 3 seconds, after which nothing in flight can be of use any more.
const DEFAULT_GRACE_PERIOD: &str = "10s";
/// Longest startup timeout and grace period: beyond an hour it is a typing mistake.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// What Discord allows a bot (Discord, Rate Limits, Global Rate Limit).
const DEFAULT_REST_BUDGET: &str = "50";
/// Far above what Discord has allowed anybody.
const REST_BUDGET_MAX: u32 = 10_000;
const CONCURRENCY_MAX: u32 = 10_000;
/// As many event streams as the proxy's largest setting.
const EVENT_STREAMS_MAX: u32 = 1024;

/// How a worker proves itself to NATS; all of it may be absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct NatsAuth {
    pub(crate) creds: Option<SecretString>,
    pub(crate) nkey: Option<SecretString>,
    pub(crate) user: Option<(String, SecretString)>,
    pub(crate) token: Option<SecretString>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) client_cert: Option<(PathBuf, PathBuf)>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// What a worker runs with. Built from flags and environment; it cannot be invalid.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) token: SecretString,
    pub(crate) api: ApiBase,
    pub(crate) nats: Vec<ServerAddr>,
    pub(crate) nats_auth: NatsAuth,
    pub(crate) prefix: Prefix,
    pub(crate) event_streams: u32,
    pub(crate) consumer: String,
    pub(crate) concurrency: usize,
    /// REST requests per second of all workers together; `None`: somebody else limits them.
    pub(crate) rest_budget: Option<u32>,
    pub(crate) worker_id: String,
    pub(crate) http: SocketAddr,
    pub(crate) startup_timeout: Duration,
    pub(crate) grace_period: Duration,
    pub(crate) log: LogFormat,
    pub(crate) log_filter: String,
}

impl Config {
    /// Reads flags and, for what they leave out, the environment of the process.
    ///
    /// # Errors
    /// [`Fatal::Usage`] names the key, its value and what is allowed.
    pub fn from_options(options: Options) -> Result<Self, Fatal> {
        Self::with_environment(options, &|name| std::env::var_os(name))
    }

    /// The same with another source of environment variables.
    ///
    /// # Errors
    /// As [`Config::from_options`].
    pub fn with_environment(
        options: Options,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Fatal> {
        let env = Environment(env);
        let nats_auth = nats_auth(&options, &env)?;
        let setting = |flag: Option<String>, key, name, default: &str| {
            env.setting(flag, key, name)
                .map(|found| found.unwrap_or_else(|| Given::default(default)))
        };
        let nats_url = setting(options.nats_url, "nats-url", "NATS_URL", DEFAULT_NATS_URL)?;
        let api = setting(
            options.api_url,
            "api-url",
            "DISCORD_API_URL",
            ApiBase::DEFAULT,
        )?;
        let prefix = setting(
            options.subject_prefix,
            "subject-prefix",
            "SUBJECT_PREFIX",
            Prefix::DEFAULT,
        )?;
        let streams = setting(options.event_streams, "event-streams", "EVENT_STREAMS", "1")?;
        let consumer = setting(
            options.consumer,
            "consumer",
            "CONSUMER_NAME",
            DEFAULT_CONSUMER,
        )?;
        let concurrency = setting(
            options.concurrency,
            "concurrency",
            "CONCURRENCY",
            DEFAULT_CONCURRENCY,
        )?;
        let (key, name) = ("rest-budget", "REST_BUDGET");
        let rest_budget = setting(options.rest_budget, key, name, DEFAULT_REST_BUDGET)?;
        let worker_id = setting(
            options.worker_id,
            "worker-id",
            "WORKER_ID",
            &default_worker_id(),
        )?;
        let http = setting(options.http, "http", "HTTP_LISTEN", DEFAULT_HTTP)?;
        let (key, name) = ("startup-timeout", "STARTUP_TIMEOUT");
        let startup_timeout = setting(options.startup_timeout, key, name, DEFAULT_STARTUP_TIMEOUT)?;
        let (key, name) = ("grace-period", "GRACE_PERIOD");
        let grace_period = setting(options.grace_period, key, name, DEFAULT_GRACE_PERIOD)?;
        let log = setting(options.log, "log", "LOG_FORMAT", "text")?;
        let log_filter = setting(options.log_filter, "log-filter", "RUST_LOG", "info")?;
        Ok(Self {
            token: bot_token(options.token_file, &env)?,
            api: api.read(|text| text.parse().map_err(|_| API_URL_ALLOWED.to_owned()))?,
            nats: nats_url.read(nats_servers)?,
            nats_auth,
            prefix: prefix.read(|text| text.parse().map_err(|_| PREFIX_ALLOWED.to_owned()))?,
            event_streams: streams.read(|text| value::number(text, 1, EVENT_STREAMS_MAX))?,
            consumer: consumer.read(value::name)?,
            concurrency: concurrency.read(|text| value::number(text, 1, CONCURRENCY_MAX))? as usize,
            rest_budget: rest_budget.read(budget)?,
            worker_id: worker_id.read(value::name)?,
            http: http.read(value::http_listen)?,
            startup_timeout: startup_timeout.read(|text| value::duration(text, WAIT_MAX))?,
            grace_period: grace_period.read(|text| value::duration(text, WAIT_MAX))?,
            log: log.read(log_format)?,
            log_filter: log_filter.read(|text| {
                let parsed = tracing_subscriber::EnvFilter::try_new(text);
                parsed
                    .map(|_| text.to_owned())
                    .map_err(|_| "a level or directives such as `info,consumers=debug`".to_owned())
            })?,
        })
    }
}

const API_URL_ALLOWED: &str = "an http or https URL that ends in /api/v10, without user and query";
const PREFIX_ALLOWED: &str = "1 to 32 characters of A-Z, a-z, 0-9, _ and -";

fn bot_token(flag: Option<String>, env: &Environment<'_>) -> Result<SecretString, Fatal> {
    let names = ["DISCORD_TOKEN", "DISCORD_BOT_TOKEN"];
    let token = env
        .secret(flag, "token-file", "DISCORD_TOKEN_FILE", &names)?
        .ok_or_else(|| {
            Fatal::usage(
                "the bot's token is missing",
                "set DISCORD_TOKEN, or --token-file to a file that holds it",
            )
        })?;
    // It becomes an HTTP header.
    let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if token.expose_secret().is_empty() || !token.expose_secret().bytes().all(printable) {
        return Err(Fatal::usage(
            "the bot's token (--token-file or DISCORD_TOKEN) has characters no token has",
            "copy it again from Discord's developer portal",
        ));
    }
    Ok(token)
}

fn nats_auth(options: &Options, env: &Environment<'_>) -> Result<NatsAuth, Fatal> {
    let path = |flag: &Option<String>, key, name| {
        env.setting(flag.clone(), key, name)
            .map(|given| given.map(|given| PathBuf::from(given.text)))
    };
    let password = env.secret(
        options.nats_password_file.clone(),
        "nats-password-file",
        "NATS_PASSWORD_FILE",
        &["NATS_PASSWORD"],
    )?;
    let user = match (
        env.setting(options.nats_user.clone(), "nats-user", "NATS_USER")?,
        password,
    ) {
        (Some(user), Some(password)) => Some((user.text, password)),
        (None, None) => None,
        (Some(_), None) => {
            return Err(Fatal::usage(
                "--nats-user has no password",
                "set NATS_PASSWORD too",
            ));
        }
        (None, Some(_)) => {
            return Err(Fatal::usage(
                "NATS_PASSWORD has no user",
                "set --nats-user too",
            ));
        }
    };
    let cert = path(&options.nats_cert, "nats-cert", "NATS_CERT")?;
    let client_cert = match (cert, path(&options.nats_key, "nats-key", "NATS_KEY")?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Fatal::usage(
                "only one of --nats-cert and --nats-key is set",
                "a client certificate needs both",
            ));
        }
    };
    let token_file = options.nats_token_file.clone();
    Ok(NatsAuth {
        creds: env.secret(options.nats_creds.clone(), "nats-creds", "NATS_CREDS", &[])?,
        nkey: env.secret(options.nats_nkey.clone(), "nats-nkey", "NATS_NKEY", &[])?,
        user,
        token: env.secret(
            token_file,
            "nats-token-file",
            "NATS_TOKEN_FILE",
            &["NATS_TOKEN"],
        )?,
        ca: path(&options.nats_ca, "nats-ca", "NATS_CA")?,
        client_cert,
    })
}

fn nats_servers(text: &str) -> Result<Vec<ServerAddr>, String> {
    let allowed = || "NATS addresses such as `nats://host:4222`, separated by commas".to_owned();
    let servers = text
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty());
    let servers: Result<Vec<ServerAddr>, _> = servers.map(str::parse).collect();
    let servers = servers.map_err(|_| allowed())?;
    // `embedded` belongs to the proxy, which starts a server; a worker needs its address.
    if servers.is_empty() || text.trim() == "embedded" {
        return Err(allowed());
    }
    Ok(servers)
}

fn budget(text: &str) -> Result<Option<u32>, String> {
    if text == "off" {
        return Ok(None);
    }
    let number = value::number(text, 1, REST_BUDGET_MAX).map(Some);
    number.map_err(|allowed| format!("{allowed}, or off"))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("text or json".to_owned()),
    }
}

/// Unique among the workers of a deployment: containers have their own host names, processes of one
/// host their own ids.
fn default_worker_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() {
        "worker"
    } else {
        host.trim()
    };
    let host: String = host.chars().take(48).collect();
    value::to_name(&format!("{host}-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(options: Options, env: &[(&str, &str)]) -> Result<Config, Fatal> {
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        Config::with_environment(options, &|name| env.get(name).map(OsString::from))
    }

    fn problem(options: Options, env: &[(&str, &str)]) -> String {
        let fatal = load(options, env).err().unwrap();
        assert_eq!(fatal.code(), 64);
        fatal.to_string()
    }

    const TOKEN: (&str, &str) = ("DISCORD_TOKEN", "abc.def");

    #[test]
    fn a_token_is_all_that_is_required() {
        let config = load(Options::default(), &[TOKEN]).unwrap();
        assert_eq!(config.token.expose_secret(), "abc.def");
        assert_eq!(config.api.to_string(), "https://discord.com/api/v10");
        assert_eq!(config.nats.len(), 1);
        assert_eq!(config.http.to_string(), "127.0.0.1:9101");
        assert_eq!(
            (config.consumer.as_str(), config.event_streams),
            ("commands", 1)
        );
        assert_eq!(config.startup_timeout, Duration::from_secs(30));
        assert!(problem(Options::default(), &[]).contains("DISCORD_TOKEN"));
    }

    #[test]
    fn a_flag_beats_the_environment_and_an_empty_variable_is_unset() {
        let flags = Options {
            consumer: Some("flag".to_owned()),
            ..Options::default()
        };
        let env = [
            TOKEN,
            ("CONSUMER_NAME", "env"),
            ("WORKER_ID", "env"),
            ("HTTP_LISTEN", ""),
        ];
        let config = load(flags, &env).unwrap();
        assert_eq!(
            (config.consumer.as_str(), config.worker_id.as_str()),
            ("flag", "env")
        );
        assert_eq!(config.http.port(), 9101);
    }

    #[test]
    fn the_token_file_beats_the_variable_and_is_trimmed() {
        let dir = std::env::temp_dir().join(format!("consumers-token-{}", std::process::id()));
        std::fs::write(&dir, " from.file\n").unwrap();
        let file = dir.to_str().unwrap();
        let config = load(Options::default(), &[TOKEN, ("DISCORD_TOKEN_FILE", file)]).unwrap();
        assert_eq!(config.token.expose_secret(), "from.file");
        std::fs::remove_file(&dir).unwrap();
        let text = problem(Options::default(), &[TOKEN, ("DISCORD_TOKEN_FILE", file)]);
        assert!(
            text.contains("DISCORD_TOKEN_FILE") && text.contains(file),
            "{text}"
        );
    }

    #[test]
    fn wrong_values_are_refused_with_their_key() {
        for (name, value) in [
            ("NATS_URL", "embedded"),
            ("NATS_URL", "http://"),
            ("NATS_USER", "me"),
            ("NATS_PASSWORD", "secret"),
            ("DISCORD_API_URL", "https://discord.com"),
            ("SUBJECT_PREFIX", "a.b"),
            ("EVENT_STREAMS", "0"),
            ("CONSUMER_NAME", "a.b"),
            ("CONCURRENCY", "0"),
            ("REST_BUDGET", "0"),
            ("WORKER_ID", "a b"),
            ("HTTP_LISTEN", "nowhere"),
            ("STARTUP_TIMEOUT", "soon"),
            ("GRACE_PERIOD", "2h"),
            ("LOG_FORMAT", "xml"),
            ("RUST_LOG", "consumers=loud"),
        ] {
            let text = problem(Options::default(), &[TOKEN, (name, value)]);
            let flag = name.to_lowercase().replace('_', "-");
            assert!(
                text.contains(name) || text.contains(&flag),
                "{name}: {text}"
            );
        }
        assert!(problem(Options::default(), &[("DISCORD_TOKEN", "a\u{7f}b")]).contains("token"));
    }

    #[test]
    fn a_problem_never_shows_a_secret() {
        let env = [("DISCORD_TOKEN", "very\u{7}secret")];
        assert!(!problem(Options::default(), &env).contains("secret"));
        let config = load(Options::default(), &[TOKEN]).unwrap();
        assert!(!format!("{config:?}").contains("abc.def"));
    }
}
