//! What an operator's verb needs to know: where NATS is, and the prefix.

use clap::ArgMatches;
use schemas::Prefix;

use super::raw::{Environment, Merged};
use super::{ConfigError, NatsSettings, NatsTarget, Resolver, load, setting, value};

/// A checked configuration of `status`, `drain` and the like.
#[derive(Debug)]
pub(crate) struct OperatorConfig {
    pub(crate) nats: NatsSettings,
    pub(crate) prefix: Prefix,
}

impl OperatorConfig {
    /// Reads flags, environment and the file they name, as a proxy does.
    ///
    /// # Errors
    /// [`ConfigError`] names the first key that cannot be used.
    pub(crate) fn load(flags: &ArgMatches, env: Environment<'_>) -> Result<Self, ConfigError> {
        let mut resolver = Resolver::new(Merged::read(flags, &setting::OPERATOR, env)?);
        let nats = match load::nats_target(&mut resolver)? {
            NatsTarget::Servers(settings) => settings,
            NatsTarget::Embedded { .. } => {
                let given = resolver.given(setting::NATS_URL);
                let source = given.map_or(super::raw::Source::Default("nats-url"), |given| {
                    given.source.clone()
                });
                let allowed = "the address that the proxy with the embedded server has logged";
                return Err(ConfigError::invalid(&source, "embedded", allowed));
            }
        };
        let prefix = resolver.required(setting::SUBJECT_PREFIX, value::prefix)?;
        Ok(Self { nats, prefix })
    }
}
