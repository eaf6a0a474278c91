//! The third stage's tool: turns merged text into values, and notes each effective value with its
//! source for `check-config`.

use secrecy::SecretString;

use super::ConfigError;
use super::raw::{Given, Merged, Source};
use super::setting::{ALL, API_URL, NATS_URL, OTLP_ENDPOINT, Setting};
use super::shown::Shown;

/// What `check-config` prints in place of a secret.
const REDACTED: &str = "[redacted]";

/// One setting as it is in effect.
#[derive(Debug)]
struct Effective {
    setting: &'static Setting,
    /// `None`: not set, and no default.
    value: Option<toml::Value>,
    source: Source,
}

/// Parses merged values one by one.
#[derive(Debug)]
pub(crate) struct Resolver {
    merged: Merged,
    effective: Vec<Effective>,
}

impl Resolver {
    pub(crate) fn new(merged: Merged) -> Self {
        Self {
            merged,
            effective: Vec::new(),
        }
    }

    /// What was given for a setting, unparsed and unnoted.
    pub(crate) fn given(&self, setting: &'static Setting) -> Option<&Given> {
        self.merged.get(setting)
    }

    /// A setting without meaning beyond its text (a path, a name).
    pub(crate) fn text(&mut self, setting: &'static Setting) -> Option<Given> {
        let given = self.given(setting)?.clone();
        self.note(setting, given.text.shown(), &given.source);
        Some(given)
    }

    /// A setting that may be absent.
    pub(crate) fn optional<T: Shown>(
        &mut self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.given(setting) else {
            return Ok(None);
        };
        let source = given.source.clone();
        let value = parse(&given.text).map_err(|allowed| {
            ConfigError::invalid(&source, &without_credentials(setting, &given.text), allowed)
        })?;
        self.note(setting, value.shown(), &source);
        Ok(Some(value))
    }

    /// A setting that has a default.
    pub(crate) fn required<T: Shown>(
        &mut self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let missing = || ConfigError::Missing {
            key: setting.key,
            allowed: format!("set {}", setting.names()),
        };
        self.optional(setting, parse)?.ok_or_else(missing)
    }

    /// A secret, given as such or as the file that holds it. The stronger source wins; in the
    /// environment the file comes first.
    pub(crate) fn secret(
        &mut self,
        value: &'static Setting,
        file: &'static Setting,
        parse: impl Fn(&str) -> Result<SecretString, String>,
    ) -> Result<Option<(Given, SecretString)>, ConfigError> {
        let (direct, named) = (self.given(value).cloned(), self.given(file).cloned());
        let (setting, given) = match (direct, named) {
            (None, None) => return Ok(None),
            (Some(direct), None) => (value, direct),
            (None, Some(named)) => (file, named),
            (Some(direct), Some(named)) => match direct.source.rank().cmp(&named.source.rank()) {
                std::cmp::Ordering::Greater => (value, direct),
                std::cmp::Ordering::Less => (file, named),
                std::cmp::Ordering::Equal if matches!(named.source, Source::Env(_)) => {
                    (file, named)
                }
                std::cmp::Ordering::Equal => {
                    let reason = "they mean the same secret";
                    return Err(ConfigError::conflict(&direct.source, &named.source, reason));
                }
            },
        };
        let secret = if setting.key == file.key {
            let text = super::secret::read_file(&given)?;
            self.note(file, given.text.shown(), &given.source);
            parse(&text).map_err(|allowed| {
                super::secret::referenced(&given, format!("expected its text {allowed}"))
            })?
        } else {
            self.note(value, REDACTED.to_owned().shown(), &given.source);
            parse(&given.text).map_err(|allowed| ConfigError::InvalidSecret {
                origin: given.source.origin(),
                allowed: format!("it {allowed}"),
            })?
        };
        Ok(Some((given, secret)))
    }

    /// Notes a value that nobody gave and no table holds, such as a generated name.
    pub(crate) fn note_default(&mut self, setting: &'static Setting, value: toml::Value) {
        self.note(setting, value, &Source::Default(setting.key));
    }

    fn note(&mut self, setting: &'static Setting, value: toml::Value, source: &Source) {
        self.effective.push(Effective {
            setting,
            value: Some(value),
            source: source.clone(),
        });
    }

    /// The effective configuration as TOML, in the order of the help, each key with its source.
    pub(crate) fn into_toml(mut self) -> String {
        for setting in ALL.iter().copied() {
            if !self
                .effective
                .iter()
                .any(|noted| noted.setting.key == setting.key)
            {
                let source = Source::Default(setting.key);
                self.effective.push(Effective {
                    setting,
                    value: None,
                    source,
                });
            }
        }
        let place = |noted: &Effective| ALL.iter().position(|one| one.key == noted.setting.key);
        self.effective.sort_by_key(place);
        let lines: Vec<_> = self.effective.iter().map(Effective::line).collect();
        let width = lines
            .iter()
            .map(|(text, _)| text.chars().count())
            .max()
            .unwrap_or(0);
        // A comment after a very long value would only be pushed out of sight.
        let width = width.min(60);
        let mut toml = String::new();
        let mut heading = "";
        for (noted, (text, comment)) in self.effective.iter().zip(&lines) {
            if noted.setting.heading != heading {
                let gap = if heading.is_empty() { "" } else { "\n" };
                heading = noted.setting.heading;
                toml.push_str(&format!("{gap}# {heading}\n"));
            }
            toml.push_str(&format!("{text:<width$}  # {comment}\n"));
        }
        toml
    }
}

impl Effective {
    fn line(&self) -> (String, String) {
        let key = self.setting.key;
        match &self.value {
            Some(value) => (format!("{key} = {value}"), self.source.label()),
            None => (format!("# {key}"), "not set".to_owned()),
        }
    }
}

/// A URL may carry a password; a message must not.
fn without_credentials(setting: &Setting, text: &str) -> String {
    let is_url = [API_URL.key, NATS_URL.key, OTLP_ENDPOINT.key].contains(&setting.key);
    if !is_url || !text.contains('@') {
        return text.to_owned();
    }
    let masked = text.split(',').map(|part| match part.rsplit_once('@') {
        None => part.to_owned(),
        Some((before, host)) => {
            let scheme = before
                .split_once("://")
                .map(|(scheme, _)| format!("{scheme}://"));
            format!("{}…@{host}", scheme.unwrap_or_default())
        }
    });
    masked.collect::<Vec<_>>().join(",")
}
