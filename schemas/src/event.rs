//! The names of dispatch events: the 79 Discord documents, the three a proxy adds, and all others.
//!
//! Nothing here decides whether an event is delivered; an unknown name is as good as a known one.

use std::fmt;

use crate::Intents;

mod names;
mod synthetic;

pub use names::EventKind;
pub use synthetic::{
    Dispatch, GapReason, ProxyEvent, ProxyEventKind, ProxyGap, ProxyReshard, ProxyShard,
    ReshardPhase,
};

/// What a dispatch is called: Discord's `t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventName<'a> {
    /// One of the documented events.
    Known(EventKind),
    /// A synthetic event of a proxy, `PROXY_*`.
    Proxy(ProxyEventKind),
    /// Anything else: undocumented, or newer than this table.
    Other(&'a str),
}

impl<'a> EventName<'a> {
    /// Reads a name; every text is one.
    #[must_use]
    pub fn parse(name: &'a str) -> Self {
        match EventKind::from_name(name) {
            Some(kind) => Self::Known(kind),
            None => match ProxyEventKind::from_name(name) {
                Some(kind) => Self::Proxy(kind),
                None => Self::Other(name),
            },
        }
    }

    /// The name as it stands in `t`.
    #[must_use]
    pub const fn as_str(&self) -> &'a str {
        match self {
            Self::Known(kind) => kind.name(),
            Self::Proxy(kind) => kind.name(),
            Self::Other(name) => name,
        }
    }

    /// The documented event, if it is one.
    #[must_use]
    pub const fn kind(&self) -> Option<EventKind> {
        match self {
            Self::Known(kind) => Some(*kind),
            Self::Proxy(_) | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for EventName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which intents make Discord send an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Sent whatever the intents are.
    Always,
    /// Sent when one of these is set: `guild` for what happens in a guild, `direct` for direct
    /// messages (empty: never there).
    Intents {
        /// One of these, in a guild.
        guild: Intents,
        /// One of these, in a direct message.
        direct: Intents,
    },
}

/// Where in `d` Discord's documentation puts the id of the guild an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuildLocation {
    /// `d.guild_id`, always there.
    GuildId,
    /// `d.guild_id`, absent when the event belongs to no guild.
    OptionalGuildId,
    /// `d.id`: the event is about the guild itself.
    Id,
    /// Nowhere; such events go to shard 0 only, but for READY and RESUMED.
    Nowhere,
}

impl EventKind {
    /// How many documented events there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in [`EventKind::ALL`], for arrays with one element per event.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// True when a bot with these intents receives the event.
    ///
    /// Two exceptions stand outside: a bot receives `GUILD_MEMBER_UPDATE` about itself without any
    /// intent, and with `GUILDS` but without `GUILD_MEMBERS` it receives `THREAD_MEMBERS_UPDATE`
    /// only about itself.
    #[must_use]
    pub const fn is_delivered(self, intents: Intents, in_guild: bool) -> bool {
        match self.delivery() {
            Delivery::Always => true,
            Delivery::Intents { guild, direct } => {
                intents.intersects(if in_guild { guild } else { direct })
            }
        }
    }
}

/// The key of `d` that holds an event's guild id: the rule of `<guild>` in subjects, for any name.
#[must_use]
pub fn guild_key(event: &str) -> &'static str {
    match event {
        "GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE" => "id",
        _ => "guild_id",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_kind_and_back() {
        assert_eq!(EventKind::COUNT, 79);
        for (index, kind) in EventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.index(), index);
            assert_eq!(EventKind::from_name(kind.name()), Some(kind));
            assert_eq!(EventName::parse(kind.name()), EventName::Known(kind));
            assert_eq!(EventName::parse(kind.name()).kind(), Some(kind));
        }
        for kind in ProxyEventKind::ALL {
            assert_eq!(EventName::parse(kind.name()), EventName::Proxy(kind));
            assert_eq!(EventName::parse(kind.name()).to_string(), kind.name());
        }
    }

    #[test]
    fn names_that_only_resemble_a_known_one_are_others() {
        for name in [
            "",
            "READ",
            "READY ",
            "ready",
            "MESSAGE_CREAT",
            "MESSAGE_CREATE\0",
            "PROXY_",
        ] {
            assert_eq!(EventName::parse(name), EventName::Other(name));
            assert_eq!(EventName::parse(name).as_str(), name);
        }
        // The same first and last eight bytes and the same length as MESSAGE_CREATE's neighbours.
        for kind in EventKind::ALL {
            let mut twin = kind.name().to_owned().into_bytes();
            let middle = twin.len() / 2;
            twin[middle] = b'#';
            assert_eq!(
                EventKind::from_name(std::str::from_utf8(&twin).unwrap()),
                None
            );
        }
    }

    #[test]
    fn guild_and_direct_events_follow_their_own_intents() {
        let delivered = |kind: EventKind, intents, in_guild| kind.is_delivered(intents, in_guild);
        let message = EventKind::MessageCreate;
        assert!(delivered(message, Intents::GUILD_MESSAGES, true));
        assert!(!delivered(message, Intents::GUILD_MESSAGES, false));
        assert!(delivered(message, Intents::DIRECT_MESSAGES, false));
        assert!(!delivered(message, Intents::DIRECT_MESSAGES, true));
        assert!(!delivered(
            EventKind::MessageDeleteBulk,
            Intents::ALL_DOCUMENTED,
            false
        ));
        assert!(delivered(EventKind::InteractionCreate, Intents::NONE, true));
        assert!(delivered(EventKind::Ready, Intents::NONE, false));
        assert!(delivered(
            EventKind::ThreadMembersUpdate,
            Intents::GUILD_MEMBERS,
            true
        ));
        assert!(!delivered(
            EventKind::PresenceUpdate,
            Intents::UNPRIVILEGED,
            true
        ));
    }

    #[test]
    fn every_event_reaches_a_bot_with_all_intents_and_every_intent_but_content_has_events() {
        let mut used = Intents::MESSAGE_CONTENT;
        for kind in EventKind::ALL {
            assert!(
                kind.is_delivered(Intents::ALL_DOCUMENTED, true),
                "{}",
                kind.name()
            );
            if let Delivery::Intents { guild, direct } = kind.delivery() {
                used |= guild | direct;
            }
        }
        assert_eq!(used, Intents::ALL_DOCUMENTED);
    }

    #[test]
    fn the_guild_rule_agrees_with_the_documented_places() {
        for kind in EventKind::ALL {
            let by_id = kind.guild_location() == GuildLocation::Id;
            assert_eq!(guild_key(kind.name()) == "id", by_id, "{}", kind.name());
        }
        assert_eq!(guild_key("SOMETHING_NEW"), "guild_id");
    }
}
