//! Event names and the intents they need (Discord, Gateway, List of intents).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// GUILD_MEMBERS, GUILD_PRESENCES and MESSAGE_CONTENT.
pub const PRIVILEGED: u64 = 1 << 1 | 1 << 8 | 1 << 15;
/// Every documented intent bit: 0–16, 20, 21, 24, 25.
pub const ALL_INTENTS: u64 = 53_608_447;
/// Bits that Discord knows, though bots gain nothing by some of them: 0–28.
pub(crate) const KNOWN_INTENTS: u64 = (1 << 29) - 1;

pub(crate) const GUILDS: u64 = 1 << 0;
pub(crate) const GUILD_MEMBERS: u64 = 1 << 1;
pub(crate) const GUILD_VOICE_STATES: u64 = 1 << 7;
pub(crate) const GUILD_PRESENCES: u64 = 1 << 8;
pub(crate) const MESSAGE_CONTENT: u64 = 1 << 15;

/// The intents of which one is enough for an event; 0 when it is always sent.
pub(crate) fn intents_for(event: &str, direct_message: bool) -> u64 {
    let (guild, direct) = match event {
        "AUTO_MODERATION_ACTION_EXECUTION" => (1 << 21, 0),
        "CHANNEL_PINS_UPDATE" => (GUILDS, 1 << 12),
        "GUILD_MEMBER_ADD" | "GUILD_MEMBER_REMOVE" | "GUILD_MEMBER_UPDATE" => (GUILD_MEMBERS, 0),
        "THREAD_MEMBERS_UPDATE" => (GUILDS | GUILD_MEMBERS, 0),
        "GUILD_AUDIT_LOG_ENTRY_CREATE" | "GUILD_BAN_ADD" | "GUILD_BAN_REMOVE" => (1 << 2, 0),
        "GUILD_EMOJIS_UPDATE" | "GUILD_STICKERS_UPDATE" => (1 << 3, 0),
        "GUILD_INTEGRATIONS_UPDATE" => (1 << 4, 0),
        "WEBHOOKS_UPDATE" => (1 << 5, 0),
        "INVITE_CREATE" | "INVITE_DELETE" => (1 << 6, 0),
        "VOICE_STATE_UPDATE" | "VOICE_CHANNEL_EFFECT_SEND" => (GUILD_VOICE_STATES, 0),
        "PRESENCE_UPDATE" => (GUILD_PRESENCES, 0),
        "MESSAGE_CREATE" | "MESSAGE_UPDATE" | "MESSAGE_DELETE" | "MESSAGE_DELETE_BULK" => {
            (1 << 9, 1 << 12)
        }
        "TYPING_START" => (1 << 11, 1 << 14),
        "MESSAGE_POLL_VOTE_ADD" | "MESSAGE_POLL_VOTE_REMOVE" => (1 << 24, 1 << 25),
        "EMBEDDED_ACTIVITY_UPDATE_V2" => (1 << 17, 1 << 26),
        "VOICE_CHANNEL_STATUS_UPDATE" | "VOICE_CHANNEL_START_TIME_UPDATE" => (GUILDS, 0),
        "GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE" => (GUILDS, 0),
        _ => return intents_by_family(event, direct_message),
    };
    if direct_message { direct } else { guild }
}

fn intents_by_family(event: &str, direct_message: bool) -> u64 {
    let family = |prefix: &str| event.starts_with(prefix);
    let (guild, direct) = if family("AUTO_MODERATION_RULE_") {
        (1 << 20, 0)
    } else if family("MESSAGE_REACTION_") {
        (1 << 10, 1 << 13)
    } else if family("GUILD_SCHEDULED_EVENT_") {
        (1 << 16, 0)
    } else if family("GUILD_SOUNDBOARD_SOUND") {
        (1 << 3, 0)
    } else if family("INTEGRATION_") {
        (1 << 4, 0)
    } else if family("CHANNEL_") && event != "CHANNEL_INFO"
        || family("THREAD_")
        || family("GUILD_ROLE_")
        || family("STAGE_INSTANCE_")
    {
        (GUILDS, 0)
    } else {
        (0, 0)
    };
    if direct_message { direct } else { guild }
}

/// Names by small numbers, so that a ledger entry need not hold text.
#[derive(Default)]
pub(crate) struct Names {
    inner: Mutex<NameTable>,
}

#[derive(Default)]
struct NameTable {
    numbers: HashMap<Arc<str>, u16>,
    names: Vec<Arc<str>>,
}

impl Names {
    /// Most different names: an entry holds 16 bits. Later names share the last number.
    const MAX: usize = u16::MAX as usize;

    pub(crate) fn number(&self, name: &str) -> u16 {
        let mut table = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = table.numbers.get(name) {
            return *number;
        }
        let number = table.names.len().min(Self::MAX) as u16;
        if table.names.len() < Self::MAX {
            let name: Arc<str> = Arc::from(name);
            table.names.push(Arc::clone(&name));
            table.numbers.insert(name, number);
        }
        number
    }

    pub(crate) fn all(&self) -> Vec<Arc<str>> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .names
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_need_the_intents_that_discord_lists() {
        assert_eq!(intents_for("MESSAGE_CREATE", false), 1 << 9);
        assert_eq!(intents_for("MESSAGE_CREATE", true), 1 << 12);
        assert_eq!(intents_for("MESSAGE_REACTION_REMOVE_EMOJI", false), 1 << 10);
        assert_eq!(intents_for("THREAD_LIST_SYNC", false), 1);
        assert_eq!(intents_for("GUILD_SOUNDBOARD_SOUNDS_UPDATE", false), 1 << 3);
        assert_eq!(
            intents_for("GUILD_SCHEDULED_EVENT_USER_ADD", false),
            1 << 16
        );
        for always in [
            "INTERACTION_CREATE",
            "CHANNEL_INFO",
            "SOUNDBOARD_SOUNDS",
            "NEVER_HEARD_OF",
        ] {
            assert_eq!(intents_for(always, false), 0, "{always}");
        }
    }

    #[test]
    fn a_name_keeps_its_number() {
        let names = Names::default();
        let first = names.number("A");
        let second = names.number("B");
        assert_ne!(first, second);
        assert_eq!(names.number("A"), first);
        assert_eq!(&*names.all()[usize::from(second)], "B");
    }
}
