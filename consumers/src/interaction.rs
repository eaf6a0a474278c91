//! Types an INTERACTION_CREATE frame and decides whether Discord still accepts an answer to it.
//! Pure: the time is an argument.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use twilight_model::application::interaction::application_command::{
    CommandData, CommandOptionValue,
};
use twilight_model::application::interaction::{Interaction, InteractionData, InteractionType};

/// Discord invalidates an interaction's token when no first response came within 3 seconds
/// (Discord, Receiving and Responding, Interaction Callback).
pub const RESPONSE_WINDOW: Duration = Duration::from_secs(3);

/// First second of 2015 in Unix milliseconds: where Discord's snowflakes start counting.
const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;

/// The moment an id was made, in Unix milliseconds.
#[must_use]
pub const fn created_ms(snowflake: u64) -> u64 {
    (snowflake >> 22) + DISCORD_EPOCH_MS
}

/// Whether an answer can still arrive in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Discord waits this much longer.
    Fresh {
        /// What is left of [`RESPONSE_WINDOW`].
        left: Duration,
    },
    /// The window is over: answering would be an error, and a confusing one for the user.
    Stale {
        /// Time since the interaction was made.
        age: Duration,
    },
}

/// Judges an interaction by its snowflake. An id from the future (our clock is behind Discord's)
/// has the whole window, never more.
#[must_use]
pub fn freshness(snowflake: u64, now_ms: u64) -> Freshness {
    let age = Duration::from_millis(now_ms.saturating_sub(created_ms(snowflake)));
    match RESPONSE_WINDOW.checked_sub(age) {
        Some(left) if !left.is_zero() => Freshness::Fresh { left },
        _ => Freshness::Stale { age },
    }
}

/// One INTERACTION_CREATE as it came out of the stream.
#[derive(Clone, Debug)]
pub struct InteractionEvent {
    /// The frame `{"t","s","op","d"}` exactly as Discord sent it.
    pub frame: Bytes,
    /// Discord's sequence number within the shard's session.
    pub seq: Option<u64>,
    /// Its typed `d`.
    pub interaction: Interaction,
}

impl InteractionEvent {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`DecodeError`] when the frame is not an INTERACTION_CREATE that the typed model knows.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Frame {
            t: String,
            s: Option<u64>,
            d: Interaction,
        }
        let Frame { t, s, d } = serde_json::from_slice(&frame).map_err(DecodeError::Payload)?;
        if t != "INTERACTION_CREATE" {
            return Err(DecodeError::OtherEvent { event: t });
        }
        Ok(Self {
            frame,
            seq: s,
            interaction: d,
        })
    }
}

/// A frame that cannot be handled as an interaction, however often it is delivered.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or `d` does not have the shape of an interaction.
    #[error("the frame is not a typed interaction")]
    Payload(#[source] serde_json::Error),
    /// Another event under the subject of interactions.
    #[error("the frame is a {event}, not an INTERACTION_CREATE")]
    OtherEvent {
        /// Discord's `t`.
        event: String,
    },
}

/// How long an interaction's token is good for edits and further messages (Discord, Receiving and
/// Responding, Followup Messages).
pub const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);

/// What an interaction is for: the key by which its handler is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// A command of this type and name.
    Command(u8, String),
    /// Suggestions for an option of the slash command with this name.
    Autocomplete(String),
    /// A component with this custom id, or what stands before its first colon.
    Component(String),
    /// A form with this custom id, or what stands before its first colon.
    Modal(String),
}

impl Key {
    /// The key of an interaction; `None` for a ping, or for kinds that are not known yet.
    pub(crate) fn of(interaction: &Interaction) -> Option<Self> {
        let name = |custom_id: &str| {
            let name = custom_id.split_once(':');
            name.map_or(custom_id, |(name, _)| name).to_owned()
        };
        match (&interaction.kind, interaction.data.as_ref()?) {
            (InteractionType::ApplicationCommand, InteractionData::ApplicationCommand(data)) => {
                Some(Self::Command(data.kind.into(), data.name.clone()))
            }
            (
                InteractionType::ApplicationCommandAutocomplete,
                InteractionData::ApplicationCommand(data),
            ) => Some(Self::Autocomplete(data.name.clone())),
            (InteractionType::MessageComponent, InteractionData::MessageComponent(data)) => {
                Some(Self::Component(name(&data.custom_id)))
            }
            (InteractionType::ModalSubmit, InteractionData::ModalSubmit(data)) => {
                Some(Self::Modal(name(&data.custom_id)))
            }
            _ => None,
        }
    }
}

/// What the user gave for an option of a slash command; options of subcommands are within theirs.
#[must_use]
pub fn option<'a>(interaction: &'a Interaction, name: &str) -> Option<&'a CommandOptionValue> {
    let data = command(interaction)?;
    let found = data.options.iter().find(|option| option.name == name);
    found.map(|option| &option.value)
}

/// The command an interaction asks for; `None` for components, modals and autocomplete.
#[must_use]
pub fn command(interaction: &Interaction) -> Option<&CommandData> {
    match (&interaction.kind, &interaction.data) {
        (InteractionType::ApplicationCommand, Some(InteractionData::ApplicationCommand(data))) => {
            Some(data)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use twilight_model::application::interaction::application_command::CommandDataOption;

    use super::*;

    const SLASH: &[u8] = include_bytes!("../tests/fixtures/INTERACTION_CREATE.json");
    const DM: &[u8] = include_bytes!("../tests/fixtures/INTERACTION_CREATE.dm.json");
    const COMPONENT: &[u8] = include_bytes!("../tests/fixtures/INTERACTION_CREATE.component.json");
    const MODAL: &[u8] = include_bytes!("../tests/fixtures/INTERACTION_CREATE.modal.json");
    const AUTOCOMPLETE: &[u8] =
        include_bytes!("../tests/fixtures/INTERACTION_CREATE.autocomplete.json");
    const FOREIGN: &[u8] =
        include_bytes!("../tests/fixtures/INTERACTION_CREATE.user_install_foreign_guild.json");

    fn decode(frame: &'static [u8]) -> InteractionEvent {
        InteractionEvent::decode(Bytes::from_static(frame)).unwrap()
    }

    #[test]
    fn a_snowflake_tells_its_time() {
        // The example of Discord's reference, Snowflakes: 2016-04-30T11:18:25.796Z.
        assert_eq!(created_ms(175_928_847_299_117_063), 1_462_015_105_796);
        assert_eq!(created_ms(0), 1_420_070_400_000);
    }

    #[test]
    fn an_interaction_is_fresh_until_three_seconds_after_its_snowflake() {
        let id = 1_573_231_421_031_137_343;
        let made = created_ms(id);
        let left = |ms| Freshness::Fresh {
            left: Duration::from_millis(ms),
        };
        assert_eq!(freshness(id, made), left(3000));
        assert_eq!(freshness(id, made + 2999), left(1));
        let stale = |ms| Freshness::Stale {
            age: Duration::from_millis(ms),
        };
        assert_eq!(freshness(id, made + 3000), stale(3000));
        assert_eq!(freshness(id, made + 86_400_000), stale(86_400_000));
    }

    #[test]
    fn an_interaction_from_the_future_has_the_window_and_no_more() {
        let id = 1_573_231_421_031_137_343;
        let now = created_ms(id) - 60_000;
        assert_eq!(
            freshness(id, now),
            Freshness::Fresh {
                left: RESPONSE_WINDOW
            }
        );
        assert_eq!(
            freshness(u64::MAX, 0),
            Freshness::Fresh {
                left: RESPONSE_WINDOW
            }
        );
    }

    #[test]
    fn every_kind_of_interaction_decodes_and_keeps_its_bytes() {
        for frame in [SLASH, DM, COMPONENT, MODAL, AUTOCOMPLETE, FOREIGN] {
            let event = decode(frame);
            assert_eq!(event.frame, frame);
            assert!(event.seq.is_some());
        }
        assert_eq!(
            decode(SLASH).interaction.id.get(),
            1_573_231_421_031_137_343
        );
        assert_eq!(decode(SLASH).seq, Some(34_816));
    }

    #[test]
    fn every_kind_of_interaction_has_the_key_of_its_handler() {
        let key = |frame| Key::of(&decode(frame).interaction).unwrap();
        assert_eq!(key(SLASH), Key::Command(1, "shieli".to_owned()));
        assert_eq!(key(COMPONENT), Key::Component("page".to_owned()));
        assert_eq!(key(MODAL), Key::Modal("modal".to_owned()));
        assert_eq!(key(AUTOCOMPLETE), Key::Autocomplete("elidro".to_owned()));
    }

    #[test]
    fn an_option_is_found_by_its_name() {
        let mut slash = decode(SLASH).interaction;
        assert_eq!(option(&slash, "sides"), None);
        let Some(InteractionData::ApplicationCommand(data)) = &mut slash.data else {
            panic!("a slash command");
        };
        data.options = vec![CommandDataOption {
            name: "sides".to_owned(),
            value: CommandOptionValue::Integer(6),
        }];
        assert_eq!(
            option(&slash, "sides"),
            Some(&CommandOptionValue::Integer(6))
        );
        assert_eq!(option(&slash, "other"), None);
    }

    #[test]
    fn only_application_commands_have_a_command() {
        let name = |frame| command(&decode(frame).interaction).map(|data| data.name.clone());
        assert_eq!(name(SLASH).as_deref(), Some("shieli"));
        assert_eq!(name(DM).as_deref(), Some("kafen"));
        for other in [COMPONENT, MODAL, AUTOCOMPLETE] {
            assert_eq!(name(other), None);
        }
    }

    #[test]
    fn frames_that_are_no_interaction_are_refused() {
        let refused = |frame: &'static [u8]| {
            InteractionEvent::decode(Bytes::from_static(frame))
                .err()
                .unwrap()
        };
        let payload: [&[u8]; 6] = [
            b"",
            b"\xff\xfe",
            b"{\"t\":\"INTERACTION_CREATE\"",
            b"[]",
            br#"{"t":"INTERACTION_CREATE","s":1,"op":0,"d":{"id":"1"}}"#,
            br#"{"t":null,"s":1,"op":0,"d":{}}"#,
        ];
        for frame in payload {
            assert!(
                matches!(refused(frame), DecodeError::Payload(_)),
                "{frame:?}"
            );
        }
        let other = String::from_utf8(SLASH.to_vec())
            .unwrap()
            .replace("_CREATE", "_UPDATE");
        let other = InteractionEvent::decode(Bytes::from(other)).err().unwrap();
        assert!(
            matches!(other, DecodeError::OtherEvent { event } if event == "INTERACTION_UPDATE")
        );
    }
}
