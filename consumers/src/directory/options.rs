//! Flags of the directory: a worker's, but for those of interactions, and its own.

use std::ffi::OsString;
use std::time::Duration;

use super::refresh::Refresh;
use crate::config::{Config, Options};
use crate::exit::Fatal;

/// The flags of `consumers directory`, unread.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    mut_arg("consumer", |arg| arg.hide(true)),
    mut_arg("concurrency", |arg| arg.hide(true))
)]
pub struct DirectoryOptions {
    /// What it has in common with workers.
    #[command(flatten)]
    pub worker: Options,
    /// Also keep the users that events show, for 30 days [env: DIRECTORY_USERS=true]
    #[arg(long, help_heading = "Directory")]
    pub users: bool,
}

/// What the directory runs with. Built from flags and environment; it cannot be invalid.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    pub(crate) worker: Config,
    pub(crate) users: bool,
    pub(crate) refresh_after: Duration,
}

impl DirectoryConfig {
    /// Reads flags and, for what they leave out, the environment of the process.
    ///
    /// # Errors
    /// [`Fatal::Usage`] names the key, its value and what is allowed.
    pub fn from_options(options: DirectoryOptions) -> Result<Self, Fatal> {
        Self::with_environment(options, &|name| std::env::var_os(name))
    }

    /// The same with another source of environment variables.
    ///
    /// # Errors
    /// As [`DirectoryConfig::from_options`].
    pub fn with_environment(
        options: DirectoryOptions,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Fatal> {
        let users = options.users || switched_on(env)?;
        Ok(Self {
            worker: Config::with_environment(options.worker, env)?,
            users,
            refresh_after: Refresh::DUE_AFTER,
        })
    }

    /// How long a guild of which events may be missing waits for its own GUILD_CREATE before
    /// Discord's REST API is asked; 60 s unless set.
    #[must_use]
    pub const fn refresh_after(mut self, after: Duration) -> Self {
        self.refresh_after = after;
        self
    }
}

fn switched_on(env: &dyn Fn(&str) -> Option<OsString>) -> Result<bool, Fatal> {
    let value = env("DIRECTORY_USERS").unwrap_or_default();
    match value.to_str() {
        Some("" | "false") => Ok(false),
        Some("true") => Ok(true),
        _ => Err(Fatal::usage(
            format!("DIRECTORY_USERS is {value:?}"),
            "set it to true or false",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(value: &str) -> Result<DirectoryConfig, Fatal> {
        let env = |name: &str| match name {
            "DISCORD_TOKEN" => Some(OsString::from("abc")),
            "DIRECTORY_USERS" => Some(OsString::from(value)),
            _ => None,
        };
        DirectoryConfig::with_environment(DirectoryOptions::default(), &env)
    }

    #[test]
    fn users_are_kept_only_when_asked_for() {
        assert!(!load("").unwrap().users);
        assert!(!load("false").unwrap().users);
        assert!(load("true").unwrap().users);
        let refused = load("yes").err().unwrap();
        assert_eq!(refused.code(), 64);
        assert!(refused.to_string().contains("DIRECTORY_USERS"), "{refused}");
    }
}
