//! Any of Discord's ids, as a text in JSON.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::GuildId;

/// The id of a guild, user, channel or role: any 64-bit number but 0. In JSON a text of digits, as
/// Discord writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snowflake(NonZeroU64);

impl Snowflake {
    /// The id, or `None` for 0.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The guild with this id.
    #[must_use]
    pub const fn as_guild(self) -> GuildId {
        GuildId(self.0)
    }
}

impl From<GuildId> for Snowflake {
    fn from(guild: GuildId) -> Self {
        Self(guild.0)
    }
}

impl FromStr for Snowflake {
    type Err = SnowflakeError;

    fn from_str(text: &str) -> Result<Self, SnowflakeError> {
        // The rule is the one of guilds: digits only, 64 bits, not 0.
        let id = GuildId::from_digits(text.as_bytes());
        id.map(Self::from).ok_or_else(|| SnowflakeError {
            text: text.to_owned(),
        })
    }
}

impl TryFrom<String> for Snowflake {
    type Error = SnowflakeError;

    fn try_from(text: String) -> Result<Self, SnowflakeError> {
        text.parse()
    }
}

impl From<Snowflake> for String {
    fn from(id: Snowflake) -> Self {
        id.to_string()
    }
}

impl fmt::Display for Snowflake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for Snowflake {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Snowflake".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An id of Discord's: the digits of a number of 64 bits, not 0.",
            "type": "string",
            "pattern": "^[0-9]{1,20}$",
        })
    }
}

/// Text that is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no id: digits of a number of 64 bits, not 0")]
pub struct SnowflakeError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_text_in_json() {
        let id: Snowflake = serde_json::from_str("\"81384788765712384\"").unwrap();
        assert_eq!(id.get(), 81_384_788_765_712_384);
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"81384788765712384\"");
        assert_eq!(Snowflake::from(id.as_guild()), id);
    }

    #[test]
    fn what_is_no_id_is_refused_by_name() {
        for text in ["", "0", "-1", "x", "18446744073709551616", " 1"] {
            let error = text.parse::<Snowflake>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
