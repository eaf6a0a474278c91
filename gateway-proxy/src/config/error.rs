//! What can be wrong with a configuration. Every message names the key, where the value came from,
//! the value (never a secret one) and what is allowed.

use std::path::PathBuf;

use super::raw::Source;
use crate::exit::Fatal;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value outside what its key allows.
    #[error("{origin}: {value:?} is not allowed, expected {allowed}")]
    Invalid {
        /// The flag, environment variable or file key it came from.
        origin: String,
        /// What was given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// A secret value that cannot be used; it is not shown.
    #[error("{origin}: the value (not shown) is not allowed, expected {allowed}")]
    InvalidSecret {
        /// Where it came from.
        origin: String,
        /// What is allowed.
        allowed: String,
    },
    /// A key without a default that nobody set.
    #[error("{key} is not set: {allowed}")]
    Missing {
        /// The key.
        key: &'static str,
        /// How to set it.
        allowed: String,
    },
    /// Two settings that exclude each other.
    #[error("{first} and {second} contradict each other: {reason}")]
    Conflict {
        /// Where the first came from.
        first: String,
        /// Where the second came from.
        second: String,
        /// Why both cannot hold.
        reason: String,
    },
    /// An environment variable that is not text.
    #[error("environment variable {name} is not valid UTF-8")]
    NotUnicode {
        /// The variable.
        name: &'static str,
    },
    /// A key the file may not have.
    #[error("{file}: unknown key `{key}`, expected one of the flags without `--` (see --help)", file = path.display())]
    UnknownKey {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A configuration file that is not TOML of the right shape.
    #[error("{file}: {problem}", file = path.display())]
    File {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong, with the line but never its text: it may be a secret.
        problem: String,
    },
    /// A file some key names cannot be read or used.
    #[error("{origin}: {file}: {problem}", file = path.display())]
    Referenced {
        /// Where the path came from.
        origin: String,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    /// A value outside what `source`'s key allows.
    pub(crate) fn invalid(source: &Source, value: &str, allowed: impl Into<String>) -> Self {
        Self::Invalid {
            origin: source.origin(),
            value: value.to_owned(),
            allowed: allowed.into(),
        }
    }

    /// Two settings that exclude each other.
    pub(crate) fn conflict(first: &Source, second: &Source, reason: impl Into<String>) -> Self {
        Self::Conflict {
            first: first.origin(),
            second: second.origin(),
            reason: reason.into(),
        }
    }
}

impl From<ConfigError> for Fatal {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string(), "see `gateway-proxy run --help`")
    }
}
