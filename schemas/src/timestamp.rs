//! Points in time on the wire. Nothing here reads a clock.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time to the millisecond; in JSON an RFC 3339 text in UTC such as
/// `2026-08-06T12:34:56.789Z`.
///
/// Events and HTTP answers, which people read, carry this; KV values, which machines compare, carry
/// Unix milliseconds in fields named `…_unix_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    unix_ms: u64,
}

impl Timestamp {
    /// The last instant RFC 3339 can write: 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self {
        unix_ms: 253_402_300_799_999,
    };

    /// The instant this many milliseconds after 1970, at most [`Timestamp::MAX`].
    #[must_use]
    pub const fn from_unix_ms(unix_ms: u64) -> Self {
        if unix_ms > Self::MAX.unix_ms {
            Self::MAX
        } else {
            Self { unix_ms }
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.unix_ms
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let malformed = || TimestampError {
            text: text.to_owned(),
        };
        let date = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| malformed())?;
        let unix_ms = date.unix_timestamp_nanos().div_euclid(1_000_000);
        u64::try_from(unix_ms)
            .map(Self::from_unix_ms)
            .map_err(|_| malformed())
    }
}

impl TryFrom<String> for Timestamp {
    type Error = TimestampError;

    fn try_from(text: String) -> Result<Self, TimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(at: Timestamp) -> Self {
        at.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Holds: `from_unix_ms` is the only way in and keeps the value within the years 1970–9999.
        let seconds = i64::try_from(self.unix_ms / 1000).map_err(|_| fmt::Error)?;
        let date = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| fmt::Error)?;
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        let (hour, minute, second) = date.to_hms();
        let ms = self.unix_ms % 1000;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A point in time, RFC 3339 in UTC with milliseconds.",
            "type": "string",
            "format": "date-time",
        })
    }
}

/// Text that is no point in time since 1970.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no RFC 3339 time between 1970 and 9999")]
pub struct TimestampError {
    /// What was given.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        let check = |unix_ms, expect: &str| {
            assert_eq!(Timestamp::from_unix_ms(unix_ms).to_string(), expect);
            assert_eq!(expect.parse(), Ok(Timestamp::from_unix_ms(unix_ms)));
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_007, "2000-02-29T00:00:00.007Z");
        check(1_786_019_696_789, "2026-08-06T12:34:56.789Z");
        check(u64::MAX, "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn other_spellings_of_rfc_3339_are_read() {
        let same = Ok(Timestamp::from_unix_ms(1_786_019_696_000));
        assert_eq!("2026-08-06T12:34:56Z".parse(), same);
        assert_eq!("2026-08-06T14:34:56.000999+02:00".parse(), same);
    }

    #[test]
    fn what_is_no_time_is_refused_by_name() {
        for text in [
            "",
            "now",
            "2026-13-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-08-06",
        ] {
            let error = text.parse::<Timestamp>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
