//! Identifiers, parsed at the edge so that everything inward carries proven values.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

mod snowflake;

pub use snowflake::{Snowflake, SnowflakeError};

/// A guild's snowflake: any 64-bit number but 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuildId(NonZeroU64);

impl GuildId {
    /// The id, or `None` for 0.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// Reads ASCII digits, as they stand in a JSON string or a JSON integer.
    ///
    /// `None` for anything that is not all digits, does not fit 64 bits, or is 0: the rule of
    /// `<guild>` in subjects.
    #[must_use]
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        if digits.is_empty() {
            return None;
        }
        let mut id = 0_u64;
        for digit in digits {
            if !digit.is_ascii_digit() {
                return None;
            }
            id = id.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        }
        Self::new(id)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The shard that receives this guild's events: `(guild_id >> 22) % num_shards` (Discord,
    /// Gateway, Sharding).
    #[must_use]
    pub const fn shard(self, count: u32) -> u32 {
        if count == 0 {
            return 0;
        }
        // The remainder of a division by a u32 fits a u32.
        ((self.0.get() >> 22) % count as u64) as u32
    }
}

impl fmt::Display for GuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One shard of a sharding: zero-based number and the count it belongs to.
///
/// Serialised as Discord does, `[id, count]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "[u32; 2]", into = "[u32; 2]")]
pub struct ShardId {
    id: u32,
    count: u32,
}

impl ShardId {
    /// The shard `id` of `count`.
    ///
    /// # Errors
    /// [`IdError::ShardOutOfRange`] unless `id < count`.
    pub const fn new(id: u32, count: u32) -> Result<Self, IdError> {
        if id < count {
            Ok(Self { id, count })
        } else {
            Err(IdError::ShardOutOfRange { id, count })
        }
    }

    /// Zero-based number of this shard.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.id
    }

    /// How many shards the sharding has.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The identify bucket: `shard_id % max_concurrency` (Discord, Gateway, Rate limits).
    #[must_use]
    pub const fn bucket(self, max_concurrency: u32) -> u32 {
        if max_concurrency == 0 {
            0
        } else {
            self.id % max_concurrency
        }
    }
}

impl JsonSchema for ShardId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ShardId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A shard as Discord writes it: [id, count] with id < count.",
            "type": "array",
            "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
            "minItems": 2,
            "maxItems": 2,
        })
    }
}

impl TryFrom<[u32; 2]> for ShardId {
    type Error = IdError;

    fn try_from([id, count]: [u32; 2]) -> Result<Self, IdError> {
        Self::new(id, count)
    }
}

impl From<ShardId> for [u32; 2] {
    fn from(shard: ShardId) -> Self {
        [shard.id, shard.count]
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.id, self.count)
    }
}

/// The name of one proxy process in the fleet: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProxyId(String);

impl ProxyId {
    /// Longest name, so that a KV key stays readable.
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JsonSchema for ProxyId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ProxyId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Name of one proxy process in the fleet.",
            "type": "string",
            "pattern": "^[A-Za-z0-9_-]{1,64}$",
        })
    }
}

impl FromStr for ProxyId {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::try_from(name.to_owned())
    }
}

impl TryFrom<String> for ProxyId {
    type Error = IdError;

    fn try_from(name: String) -> Result<Self, IdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > Self::MAX_LEN || !name.bytes().all(allowed) {
            return Err(IdError::ProxyId { name });
        }
        Ok(Self(name))
    }
}

impl From<ProxyId> for String {
    fn from(id: ProxyId) -> Self {
        id.0
    }
}

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a number that has one spelling, so that building and parsing are inverse: no sign, no
/// leading zeros.
pub(crate) fn canonical_u32(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits && (text.len() == 1 || !text.starts_with('0'));
    canonical.then(|| u32::from_str(text).ok()).flatten()
}

/// An identifier outside its rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A shard number at or above the shard count.
    #[error("shard {id} is out of range: {count} shards have the numbers below {count}")]
    ShardOutOfRange {
        /// The number.
        id: u32,
        /// The count it should be below.
        count: u32,
    },
    /// A proxy name with other characters or of another length.
    #[error("proxy id {name:?} is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -")]
    ProxyId {
        /// What was given.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guild_id_is_digits_that_fit_64_bits_and_are_not_0() {
        let check = |digits: &str, expect: Option<u64>| {
            assert_eq!(
                GuildId::from_digits(digits.as_bytes()).map(GuildId::get),
                expect,
                "{digits}"
            );
        };
        check("1", Some(1));
        check("81384788765712384", Some(81_384_788_765_712_384));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("99999999999999999999999", None);
        check("0", None);
        check("000", None);
        check("007", Some(7));
        check("", None);
        check("-1", None);
        check("+1", None);
        check("1.0", None);
        check("1e3", None);
        check(" 1", None);
        check("0x1", None);
        check("\u{661}", None);
        assert_eq!(GuildId::from_digits(&[0xff]), None);
    }

    #[test]
    fn a_guild_belongs_to_the_shard_of_the_documented_formula() {
        let guild = GuildId::new(197_038_439_483_310_086).unwrap();
        assert_eq!(guild.shard(1), 0);
        assert_eq!(
            u64::from(guild.shard(16)),
            (197_038_439_483_310_086 >> 22) % 16
        );
        assert_eq!(
            GuildId::new(u64::MAX).unwrap().shard(u32::MAX),
            ((u64::MAX >> 22) % u64::from(u32::MAX)) as u32
        );
        assert_eq!(guild.shard(0), 0);
    }

    #[test]
    fn a_shard_is_written_as_discord_does_and_checked_when_read() {
        let shard = ShardId::new(3, 16).unwrap();
        assert_eq!(serde_json::to_string(&shard).unwrap(), "[3,16]");
        assert_eq!(serde_json::from_str::<ShardId>("[3,16]").unwrap(), shard);
        for text in ["[16,16]", "[0,0]", "[-1,16]", "[3]", "[3,16,1]", "3"] {
            assert!(serde_json::from_str::<ShardId>(text).is_err(), "{text}");
        }
        assert_eq!(
            (shard.bucket(16), shard.bucket(2), shard.bucket(0)),
            (3, 1, 0)
        );
    }

    #[test]
    fn a_proxy_id_is_one_key_token() {
        for name in ["a", "proxy-1_B", &"x".repeat(64)] {
            assert_eq!(name.parse::<ProxyId>().unwrap().as_str(), name);
        }
        for name in ["", "a.b", "a b", "é", "*", &"x".repeat(65)] {
            let error = name.parse::<ProxyId>().unwrap_err();
            assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
            assert!(serde_json::from_value::<ProxyId>(name.into()).is_err());
        }
    }
}
