//! Gateway intents: which groups of events a bot asks Discord for, by bit and by name.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of gateway intents, as the number IDENTIFY carries.
///
/// Bits that Discord does not document are kept: an operator may set them by number, and Discord
/// answers an unknown one with close code 4013.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Intents(u64);

macro_rules! intents {
    ($($name:ident = $bit:literal, $doc:literal;)*) => {
        impl Intents {
            $(
                #[doc = concat!("Bit ", $bit, ": ", $doc)]
                pub const $name: Self = Self(1 << $bit);
            )*

            /// Every documented intent and its name, in the order of the bits.
            pub const NAMES: &'static [(&'static str, Self)] =
                &[$((stringify!($name), Self::$name)),*];
        }
    };
}

intents! {
    GUILDS = 0, "guilds, channels, roles, threads, stages.";
    GUILD_MEMBERS = 1, "members joining, leaving, changing. Privileged.";
    GUILD_MODERATION = 2, "bans and the audit log.";
    GUILD_EXPRESSIONS = 3, "emojis, stickers, soundboard sounds.";
    GUILD_INTEGRATIONS = 4, "integrations.";
    GUILD_WEBHOOKS = 5, "webhooks.";
    GUILD_INVITES = 6, "invites.";
    GUILD_VOICE_STATES = 7, "who is in which voice channel.";
    GUILD_PRESENCES = 8, "presences. Privileged.";
    GUILD_MESSAGES = 9, "messages in guilds.";
    GUILD_MESSAGE_REACTIONS = 10, "reactions in guilds.";
    GUILD_MESSAGE_TYPING = 11, "typing in guilds.";
    DIRECT_MESSAGES = 12, "direct messages, ephemeral ones too.";
    DIRECT_MESSAGE_REACTIONS = 13, "reactions in direct messages.";
    DIRECT_MESSAGE_TYPING = 14, "typing in direct messages.";
    MESSAGE_CONTENT = 15, "fills content, embeds, attachments, components and poll. Privileged.";
    GUILD_SCHEDULED_EVENTS = 16, "scheduled events.";
    AUTO_MODERATION_CONFIGURATION = 20, "auto moderation rules.";
    AUTO_MODERATION_EXECUTION = 21, "auto moderation actions.";
    GUILD_MESSAGE_POLLS = 24, "poll votes in guilds.";
    DIRECT_MESSAGE_POLLS = 25, "poll votes in direct messages.";
}

/// Names Discord has replaced; read, never written.
const OLD_NAMES: [(&str, Intents); 2] = [
    ("GUILD_BANS", Intents::GUILD_MODERATION),
    ("GUILD_EMOJIS_AND_STICKERS", Intents::GUILD_EXPRESSIONS),
];

/// Names for sets of intents.
const GROUPS: [(&str, Intents); 4] = [
    ("ALL", Intents::ALL_DOCUMENTED),
    ("UNPRIVILEGED", Intents::UNPRIVILEGED),
    ("PRIVILEGED", Intents::PRIVILEGED),
    ("NONE", Intents::NONE),
];

impl Intents {
    /// No intent: only the events that need none.
    pub const NONE: Self = Self(0);
    /// Every documented intent.
    pub const ALL_DOCUMENTED: Self = Self(53_608_447);
    /// The three intents Discord grants by application settings or review only; asking for one
    /// that is not granted closes the connection with 4014.
    pub const PRIVILEGED: Self =
        Self(Self::GUILD_MEMBERS.0 | Self::GUILD_PRESENCES.0 | Self::MESSAGE_CONTENT.0);
    /// Every documented intent but the privileged ones: the default.
    pub const UNPRIVILEGED: Self = Self(53_575_421);

    /// The set with exactly these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The number IDENTIFY carries.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// True when no intent is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when every intent of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when at least one intent of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intents of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Names of the documented intents that are set, in the order of the bits.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .iter()
            .filter(move |(_, bit)| self.contains(*bit))
            .map(|(name, _)| *name)
    }

    /// Names of the privileged intents that are set: what an operator must switch on when Discord
    /// closes with 4014.
    pub fn privileged_names(self) -> impl Iterator<Item = &'static str> {
        Self(self.0 & Self::PRIVILEGED.0).names()
    }

    /// The bits that Discord does not document.
    #[must_use]
    pub const fn undocumented(self) -> Self {
        self.without(Self::ALL_DOCUMENTED)
    }

    fn by_name(name: &str) -> Option<Self> {
        all_names()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, bits)| bits)
    }
}

/// Reads a number, or names separated by commas, spaces or `|`, in any case; `all`,
/// `unprivileged`, `privileged` and `none` stand for sets.
impl FromStr for Intents {
    type Err = IntentsError;

    fn from_str(text: &str) -> Result<Self, IntentsError> {
        let separator = |c: char| c == ',' || c == '|' || c.is_whitespace();
        let mut words = text
            .split(separator)
            .filter(|word| !word.is_empty())
            .peekable();
        if words.peek().is_none() {
            return Err(IntentsError::Empty);
        }
        words.try_fold(Self::NONE, |set, word| {
            parse_word(word).map(|bits| set | bits)
        })
    }
}

fn parse_word(word: &str) -> Result<Intents, IntentsError> {
    if word.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = word.parse().map_err(|_| IntentsError::TooLarge {
            word: word.to_owned(),
        })?;
        return Ok(Intents(number));
    }
    Intents::by_name(word).ok_or_else(|| IntentsError::UnknownName {
        word: word.to_owned(),
        closest: closest_name(word),
    })
}

/// A text [`Intents`] reads back: names separated by commas, undocumented bits as one number.
impl fmt::Display for Intents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("0");
        }
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
        match self.undocumented() {
            Self(0) => Ok(()),
            Self(bits) => write!(f, "{separator}{bits}"),
        }
    }
}

impl BitOr for Intents {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl BitOrAssign for Intents {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.union(other);
    }
}

impl BitAnd for Intents {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Text that names no set of intents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntentsError {
    /// Nothing but separators.
    #[error("no intent given: use a number, names such as GUILDS,GUILD_MESSAGES, or none")]
    Empty,
    /// A word that is no intent's name.
    #[error("{word:?} is no intent: did you mean {closest}?")]
    UnknownName {
        /// The word.
        word: String,
        /// The name with the fewest letters different.
        closest: &'static str,
    },
    /// A number above 64 bits.
    #[error("{word} is no intents number: it does not fit 64 bits")]
    TooLarge {
        /// The digits.
        word: String,
    },
}

fn all_names() -> impl Iterator<Item = (&'static str, Intents)> {
    Intents::NAMES
        .iter()
        .chain(&GROUPS)
        .chain(&OLD_NAMES)
        .copied()
}

fn closest_name(word: &str) -> &'static str {
    // A name longer than this is no slip of the pen; cutting it bounds the work on hostile input.
    const COMPARED_MAX: usize = 64;
    let word: String = word
        .chars()
        .take(COMPARED_MAX)
        .collect::<String>()
        .to_ascii_uppercase();
    all_names()
        .map(|(name, _)| name)
        .min_by_key(|name| edit_distance(&word, name))
        .unwrap_or("GUILDS")
}

/// Levenshtein distance in characters.
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, b) in to.chars().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, String> {
        text.parse::<Intents>()
            .map(Intents::bits)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_documented_sums_equal_the_table() {
        let all = Intents::NAMES
            .iter()
            .fold(Intents::NONE, |set, (_, bit)| set | *bit);
        assert_eq!(all, Intents::ALL_DOCUMENTED);
        assert_eq!(all.without(Intents::PRIVILEGED), Intents::UNPRIVILEGED);
        assert_eq!(Intents::NAMES.len(), 21);
    }

    #[test]
    fn names_numbers_and_sets_are_read_with_any_separator_and_case() {
        assert_eq!(parse("GUILDS,GUILD_MESSAGES"), Ok(513));
        assert_eq!(parse(" guilds | Guild_Messages,, "), Ok(513));
        assert_eq!(parse("GUILDS\tGUILD_MESSAGES\n"), Ok(513));
        assert_eq!(parse("513"), Ok(513));
        assert_eq!(parse("512|guilds"), Ok(513));
        assert_eq!(parse("all"), Ok(53_608_447));
        assert_eq!(parse("Unprivileged"), Ok(53_575_421));
        assert_eq!(parse("privileged"), Ok(1 << 1 | 1 << 8 | 1 << 15));
        assert_eq!(
            parse("unprivileged,message_content"),
            Ok(53_575_421 | 1 << 15)
        );
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("none"), Ok(0));
        assert_eq!(parse("GUILD_EMOJIS_AND_STICKERS"), Ok(1 << 3));
        assert_eq!(parse("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn a_wrong_name_is_named_with_the_closest_one() {
        let message = |text| parse(text).unwrap_err();
        assert_eq!(
            message("GUILDS,GUILD_MESAGES"),
            "\"GUILD_MESAGES\" is no intent: did you mean GUILD_MESSAGES?"
        );
        assert!(message("guild_presence").ends_with("did you mean GUILD_PRESENCES?"));
        assert!(message("-1").starts_with("\"-1\" is no intent"));
        assert!(message("18446744073709551616").contains("does not fit 64 bits"));
        assert!(message(" , ").starts_with("no intent given"));
        assert!(message(&"é".repeat(100_000)).contains("is no intent"));
    }

    #[test]
    fn display_is_what_parse_reads() {
        for bits in [0, 1, 513, 53_608_447, 1 << 17, 1 << 63 | 1, u64::MAX] {
            let set = Intents::from_bits(bits);
            assert_eq!(set.to_string().parse(), Ok(set), "{set}");
        }
        assert_eq!(Intents::from_bits(513).to_string(), "GUILDS,GUILD_MESSAGES");
        assert_eq!(Intents::from_bits(1 << 17 | 1).to_string(), "GUILDS,131072");
    }

    #[test]
    fn privileged_names_are_those_an_operator_must_switch_on() {
        let names: Vec<_> = Intents::ALL_DOCUMENTED.privileged_names().collect();
        assert_eq!(
            names,
            ["GUILD_MEMBERS", "GUILD_PRESENCES", "MESSAGE_CONTENT"]
        );
        assert_eq!(Intents::UNPRIVILEGED.privileged_names().count(), 0);
    }

    #[test]
    fn edit_distance_counts_changed_letters() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", ""), 3);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }
}
