//! Shares of the events. The figures follow public numbers of large bots; the split of the small
//! ones is an assumption.

use super::super::config::Mix;
use super::super::templates::Templates;

/// A table has this many places; a draw is one index.
const PLACES: f64 = 8192.0;

/// Every template not named below gets this share of all events, so that each documented event
/// occurs.
const REST: f64 = 0.01;

/// With GUILD_PRESENCES: 93 % presences, 3 % messages.
const PRESENCES_ON: &[(&str, f64)] = &[
    ("PRESENCE_UPDATE", 35.0),
    ("PRESENCE_UPDATE.offline", 14.0),
    ("PRESENCE_UPDATE.custom", 22.0),
    ("PRESENCE_UPDATE.game", 8.0),
    ("PRESENCE_UPDATE.rich", 7.0),
    ("PRESENCE_UPDATE.spotify", 7.0),
    ("MESSAGE_CREATE", 2.1),
    ("MESSAGE_CREATE.attachment", 0.24),
    ("MESSAGE_CREATE.bot_embed", 0.24),
    ("MESSAGE_CREATE.reply", 0.42),
    ("TYPING_START", 1.6),
    ("GUILD_MEMBER_UPDATE", 0.6),
    ("VOICE_STATE_UPDATE", 0.4),
    ("VOICE_STATE_UPDATE.leave", 0.2),
    ("MESSAGE_REACTION_ADD", 0.4),
    ("MESSAGE_UPDATE", 0.35),
    ("MESSAGE_DELETE", 0.2),
    ("GUILD_MEMBER_ADD", 0.08),
    ("GUILD_MEMBER_REMOVE", 0.07),
    ("MESSAGE_REACTION_REMOVE", 0.05),
    ("CHANNEL_UPDATE", 0.05),
    ("INTERACTION_CREATE", 0.0),
];

/// Without it: messages and typing lead.
const PRESENCES_OFF: &[(&str, f64)] = &[
    ("MESSAGE_CREATE", 26.6),
    ("MESSAGE_CREATE.attachment", 3.0),
    ("MESSAGE_CREATE.bot_embed", 3.0),
    ("MESSAGE_CREATE.reply", 5.1),
    ("MESSAGE_CREATE.mention", 0.3),
    ("TYPING_START", 21.5),
    ("TYPING_START.dm", 0.5),
    ("VOICE_STATE_UPDATE", 6.0),
    ("VOICE_STATE_UPDATE.leave", 3.0),
    ("MESSAGE_REACTION_ADD", 8.0),
    ("GUILD_MEMBER_UPDATE", 7.0),
    ("MESSAGE_UPDATE", 6.0),
    ("MESSAGE_DELETE", 3.0),
    // Slash commands are typed by somebody, at a rate of their own; these are the other kinds.
    ("INTERACTION_CREATE", 0.0),
    ("INTERACTION_CREATE.component", 1.0),
    ("INTERACTION_CREATE.autocomplete", 0.7),
    ("INTERACTION_CREATE.modal", 0.3),
    ("GUILD_MEMBER_ADD", 1.3),
    ("GUILD_MEMBER_REMOVE", 1.1),
    ("MESSAGE_REACTION_REMOVE", 1.0),
    ("CHANNEL_UPDATE", 0.5),
    ("THREAD_UPDATE", 0.4),
    ("GUILD_AUDIT_LOG_ENTRY_CREATE", 0.4),
    ("GUILD_ROLE_UPDATE", 0.2),
    ("INVITE_CREATE", 0.1),
    ("PRESENCE_UPDATE", 0.0),
    ("PRESENCE_UPDATE.offline", 0.0),
    ("PRESENCE_UPDATE.custom", 0.0),
    ("PRESENCE_UPDATE.game", 0.0),
    ("PRESENCE_UPDATE.rich", 0.0),
    ("PRESENCE_UPDATE.spotify", 0.0),
];

/// A table in which each allowed template stands as often as its share says, at least once.
pub(super) fn slots(templates: &Templates, mix: Mix, allowed: impl Fn(u16) -> bool) -> Vec<u16> {
    let named = match mix {
        Mix::PresencesOn => PRESENCES_ON,
        Mix::PresencesOff => PRESENCES_OFF,
    };
    let share = |key: &str| {
        named
            .iter()
            .find(|(name, _)| *name == key)
            .map_or(REST, |(_, n)| *n)
    };
    let mut table = Vec::new();
    for (template, number) in templates.events.iter().zip(0_u16..) {
        let share = share(template.key);
        if share > 0.0 && allowed(number) {
            let places = (share / 100.0 * PLACES).round().max(1.0) as usize;
            table.extend(std::iter::repeat_n(number, places));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::events::Names;

    fn share(mix: Mix, event: &str) -> f64 {
        let templates = Templates::new(&Names::default(), 1);
        let table = slots(&templates, mix, |_| true);
        let hits = table
            .iter()
            .filter(|n| templates.events[usize::from(**n)].event == event);
        hits.count() as f64 / table.len() as f64 * 100.0
    }

    #[test]
    fn the_mixes_have_the_published_shares() {
        assert!((91.0..95.0).contains(&share(Mix::PresencesOn, "PRESENCE_UPDATE")));
        assert!((2.0..4.0).contains(&share(Mix::PresencesOn, "MESSAGE_CREATE")));
        assert!((36.0..40.0).contains(&share(Mix::PresencesOff, "MESSAGE_CREATE")));
        assert!((20.0..24.0).contains(&share(Mix::PresencesOff, "TYPING_START")));
        assert!(share(Mix::PresencesOff, "PRESENCE_UPDATE") < f64::EPSILON);
    }

    #[test]
    fn every_share_names_a_template() {
        let templates = Templates::new(&Names::default(), 1);
        for (key, _) in PRESENCES_ON.iter().chain(PRESENCES_OFF) {
            assert!(templates.find(key).is_some(), "{key}");
        }
    }
}
