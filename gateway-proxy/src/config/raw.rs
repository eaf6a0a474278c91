//! The first two stages: what flags, environment and file say, as text, and which of them wins.
//! Knows names and precedence, not what a value means.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::ConfigError;
use super::setting::{
    ALL, AUTO_SHARD_ENV, CONFIG_ENV, Kind, NATS_URL, OPERATOR, SHARDS_COUNT, Setting,
};

/// Largest configuration file: far above any real one, far below what would hurt.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Reads one environment variable; tests pass a map.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag(&'static str),
    Env(&'static str),
    File { key: &'static str, path: PathBuf },
    Default(&'static str),
}

impl Source {
    /// The place for a message: a person must find it again.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Flag(key) => format!("--{key}"),
            Self::Env(name) => format!("environment variable {name}"),
            Self::File { key, path } => format!("`{key}` in {}", path.display()),
            Self::Default(key) => format!("default of `{key}`"),
        }
    }

    /// The place for `check-config`.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Flag(_) => "flag".to_owned(),
            Self::Env(name) => format!("env {name}"),
            Self::File { .. } => "file".to_owned(),
            Self::Default(_) => "default".to_owned(),
        }
    }

    /// Flag > environment > file > default.
    pub(crate) const fn rank(&self) -> u8 {
        match self {
            Self::Flag(_) => 3,
            Self::Env(_) => 2,
            Self::File { .. } => 1,
            Self::Default(_) => 0,
        }
    }
}

/// One value as text, and its place.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) text: String,
    pub(crate) source: Source,
}

/// The values that won, by key. A key nobody set and without a default is absent.
#[derive(Debug)]
pub(crate) struct Merged(BTreeMap<&'static str, Given>);

impl Merged {
    /// Reads the three sources and keeps, per key, the strongest. `flagged` are the settings that the
    /// verb has flags for; the others come from environment and file alone.
    pub(crate) fn read(
        flags: &ArgMatches,
        flagged: &[&Setting],
        env: Environment<'_>,
    ) -> Result<Self, ConfigError> {
        let file = match config_path(flags, env)? {
            Some(path) => read_file(&path)?,
            None => BTreeMap::new(),
        };
        let mut merged = BTreeMap::new();
        for setting in ALL.iter().copied() {
            let default = || {
                let source = Source::Default(setting.key);
                setting.default.map(|text| Given {
                    text: text.to_owned(),
                    source,
                })
            };
            let from_env = from_environment(setting, env)?;
            // Asked for a flag that the verb lacks, clap panics.
            let has_flag = flagged.iter().any(|flagged| flagged.key == setting.key);
            let from_flag = has_flag.then(|| from_flag(setting, flags)).flatten();
            let strongest = from_flag
                .or(from_env)
                .or_else(|| file.get(setting.key).cloned())
                .or_else(default);
            if let Some(given) = strongest {
                merged.insert(setting.key, given);
            }
        }
        Ok(Self(merged))
    }

    pub(crate) fn get(&self, setting: &Setting) -> Option<&Given> {
        self.0.get(setting.key)
    }
}

/// Adds every setting to a verb.
pub(crate) fn with_settings(command: Command) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!(
            "Configuration file (TOML; its keys are these flags) [env: {CONFIG_ENV}]"
        ));
    let settings = ALL.iter().filter_map(|setting| argument(setting));
    command.arg(config).args(settings)
}

/// Adds what an operator's verb needs to reach the fleet.
pub(crate) fn with_operator_settings(command: Command) -> Command {
    let config = Arg::new("config")
        .long("config")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!(
            "Configuration file, as of `run` [env: {CONFIG_ENV}]"
        ));
    let settings = OPERATOR.iter().filter_map(|setting| argument(setting));
    let help = format!(
        "NATS servers separated by commas [env: {}] [default: {}]",
        NATS_URL.env.join(", "),
        NATS_URL.default.unwrap_or_default()
    );
    command
        .arg(config)
        .args(settings)
        // `embedded` is for the proxy that starts the server; who asks needs its address.
        .mut_arg(NATS_URL.key, |arg| arg.help(help))
}

/// The environment is read by [`from_environment`], not by clap, so that aliases and tests work;
/// the help names it all the same.
fn argument(setting: &'static Setting) -> Option<Arg> {
    let mut help = format!("{} [env: {}]", setting.help, setting.env.join(", "));
    if let Some(default) = setting.default
        && setting.kind != Kind::Switch
    {
        help.push_str(&format!(" [default: {default}]"));
    }
    let arg = Arg::new(setting.key)
        .long(setting.key)
        .help(help)
        .help_heading(setting.heading);
    match setting.kind {
        Kind::Value(name) => Some(
            arg.value_name(name)
                .action(ArgAction::Set)
                .allow_negative_numbers(true),
        ),
        Kind::Switch => Some(arg.action(ArgAction::SetTrue)),
        Kind::Secret => None,
    }
}

fn from_flag(setting: &'static Setting, flags: &ArgMatches) -> Option<Given> {
    let text = match setting.kind {
        Kind::Value(_) => flags.get_one::<String>(setting.key)?.clone(),
        Kind::Switch => flags.get_flag(setting.key).then(|| "true".to_owned())?,
        Kind::Secret => return None,
    };
    Some(Given {
        text,
        source: Source::Flag(setting.key),
    })
}

fn from_environment(
    setting: &'static Setting,
    env: Environment<'_>,
) -> Result<Option<Given>, ConfigError> {
    let mut found: Option<Given> = None;
    let mut add = |name: &'static str, text: String| {
        let given = Given {
            text,
            source: Source::Env(name),
        };
        match &found {
            Some(first) if first.text.trim() != given.text.trim() => {
                let reason = "they mean the same setting and differ";
                Err(ConfigError::conflict(&first.source, &given.source, reason))
            }
            Some(_) => Ok(()),
            None => {
                found = Some(given);
                Ok(())
            }
        }
    };
    for name in setting.env {
        if let Some(text) = variable(env, name)? {
            add(name, text)?;
        }
    }
    if setting.key == SHARDS_COUNT.key
        && let Some(text) = variable(env, AUTO_SHARD_ENV)?
        && boolean(&text).ok_or_else(|| {
            let allowed = "`true` or `false`";
            ConfigError::invalid(&Source::Env(AUTO_SHARD_ENV), &text, allowed)
        })?
    {
        add(AUTO_SHARD_ENV, "auto".to_owned())?;
    }
    Ok(found)
}

/// An empty variable counts as unset: compose files pass through variables nobody set.
fn variable(env: Environment<'_>, name: &'static str) -> Result<Option<String>, ConfigError> {
    match env(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => value
            .into_string()
            .map(Some)
            .map_err(|_| ConfigError::NotUnicode { name }),
    }
}

/// The spellings of a switch outside the command line.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn config_path(flags: &ArgMatches, env: Environment<'_>) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = flags.get_one::<PathBuf>("config") {
        return Ok(Some(path.clone()));
    }
    Ok(variable(env, CONFIG_ENV)?.map(PathBuf::from))
}

fn read_file(path: &Path) -> Result<BTreeMap<&'static str, Given>, ConfigError> {
    let broken = |problem: String| ConfigError::File {
        path: path.to_owned(),
        problem,
    };
    let text = read_bounded(path, FILE_MAX_BYTES).map_err(broken)?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own text quotes the line, which may hold a secret.
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        broken(format!("line {line}: {}", error.message()))
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let unknown = || ConfigError::UnknownKey {
            path: path.to_owned(),
            key: key.clone(),
        };
        let setting = Setting::of_key(&key).ok_or_else(unknown)?;
        let text = as_text(value).ok_or_else(|| {
            broken(format!(
                "key `{key}` has a type no key has (a date or nested lists)"
            ))
        })?;
        let source = Source::File {
            key: setting.key,
            path: path.to_owned(),
        };
        values.insert(setting.key, Given { text, source });
    }
    Ok(values)
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// Values in the file's own types, in the spelling of the flags: lists with commas, a table as JSON.
fn as_text(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Datetime(_) => None,
        toml::Value::Table(table) => serde_json::to_string(&table).ok(),
        toml::Value::Array(items) => {
            let texts = items.into_iter().map(|item| match item {
                toml::Value::String(text) => Some(text),
                toml::Value::Integer(number) => Some(number.to_string()),
                toml::Value::Float(_)
                | toml::Value::Boolean(_)
                | toml::Value::Datetime(_)
                | toml::Value::Array(_)
                | toml::Value::Table(_) => None,
            });
            texts
                .collect::<Option<Vec<_>>>()
                .map(|texts| texts.join(","))
        }
    }
}
