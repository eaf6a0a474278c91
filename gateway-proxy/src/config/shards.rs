//! Which shards there are and which of them this process holds.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use schemas::{IdError, ShardId};

use super::shown::Shown;
use super::value::number;

/// Most shards a bot may be given here. The largest known bots have a few ten thousand; a bound
/// keeps `0-4000000000` from filling the memory.
pub const SHARDS_MAX: u32 = 65_536;

/// How many shards the bot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardCount {
    /// What `GET /gateway/bot` recommends.
    Auto,
    /// This many.
    Fixed(NonZeroU32),
}

impl ShardCount {
    /// The number, if one was given.
    #[must_use]
    pub const fn fixed(self) -> Option<u32> {
        match self {
            Self::Auto => None,
            Self::Fixed(count) => Some(count.get()),
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "auto" {
            return Ok(Self::Auto);
        }
        let count = number(text, 1, SHARDS_MAX).ok().and_then(NonZeroU32::new);
        count
            .map(Self::Fixed)
            .ok_or_else(|| format!("`auto` or a number from 1 to {SHARDS_MAX}"))
    }
}

impl Shown for ShardCount {
    fn shown(&self) -> toml::Value {
        match self {
            Self::Auto => toml::Value::String("auto".to_owned()),
            Self::Fixed(count) => toml::Value::Integer(i64::from(count.get())),
        }
    }
}

/// Shard numbers somebody listed; never empty, ascending, without repetition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSet(BTreeSet<u32>);

impl ShardSet {
    /// Reads `0,2,4-7`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            let last = SHARDS_MAX - 1;
            format!(
                "shard numbers from 0 to {last} and ranges, separated by commas, as in `0,2,4-7`"
            )
        };
        let shard = |text: &str| number(text, 0, SHARDS_MAX - 1).map_err(|_| expected());
        let mut ids = BTreeSet::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => drop(ids.insert(shard(part)?)),
                Some((first, last)) => {
                    let (first, last) = (shard(first)?, shard(last)?);
                    if first > last {
                        return Err(expected());
                    }
                    ids.extend(first..=last);
                }
            }
        }
        Ok(Self(ids))
    }

    /// One number.
    pub(crate) fn single(id: u32) -> Self {
        Self(BTreeSet::from([id]))
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }

    /// The largest number.
    #[must_use]
    pub fn max(&self) -> u32 {
        // Never empty: parse adds at least one number or fails.
        self.0.last().copied().unwrap_or(0)
    }

    /// The shards of a sharding of `count`.
    ///
    /// # Errors
    /// [`IdError`] when one of the numbers is not below `count`.
    pub fn of(&self, count: NonZeroU32) -> Result<Vec<ShardId>, IdError> {
        self.iter()
            .map(|id| ShardId::new(id, count.get()))
            .collect()
    }
}

impl Shown for ShardSet {
    fn shown(&self) -> toml::Value {
        toml::Value::Array(
            self.iter()
                .map(|id| toml::Value::Integer(i64::from(id)))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<&[u32]>) {
        let got = ShardSet::parse(text)
            .ok()
            .map(|set| set.iter().collect::<Vec<_>>());
        assert_eq!(got.as_deref(), expect, "{text:?}");
    }

    #[test]
    fn lists_and_ranges_are_sorted_and_unique() {
        check("0,2,4-7", Some(&[0, 2, 4, 5, 6, 7]));
        check(" 7 , 3 - 4, 3", Some(&[3, 4, 7]));
        check("5-5", Some(&[5]));
    }

    #[test]
    fn malformed_lists_are_refused() {
        for bad in [
            "",
            ",",
            "1,",
            "a",
            "-1",
            "3-1",
            "1-2-3",
            "65536",
            "0-4000000000",
            "1.5",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn numbers_must_be_below_the_count() {
        let set = ShardSet::parse("0,3").unwrap();
        assert_eq!(set.of(NonZeroU32::new(4).unwrap()).unwrap().len(), 2);
        let error = set.of(NonZeroU32::new(3).unwrap()).unwrap_err();
        assert_eq!(error, IdError::ShardOutOfRange { id: 3, count: 3 });
    }

    #[test]
    fn a_count_is_auto_or_positive() {
        assert_eq!(ShardCount::parse("auto"), Ok(ShardCount::Auto));
        assert_eq!(
            ShardCount::parse("16"),
            Ok(ShardCount::Fixed(NonZeroU32::new(16).unwrap()))
        );
        for bad in ["0", "-1", "", "many", "65537"] {
            assert!(ShardCount::parse(bad).is_err(), "{bad}");
        }
    }
}
