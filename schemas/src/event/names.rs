//! The table of documented dispatch events (Discord, Gateway Events, Receive Events) and the
//! lookup by name, which runs once per event.

use super::{Delivery, GuildLocation};
use crate::Intents;
use GuildLocation::{GuildId, Id, Nowhere, OptionalGuildId};

const ALWAYS: Delivery = Delivery::Always;

const fn guild(guild: Intents) -> Delivery {
    Delivery::Intents {
        guild,
        direct: Intents::NONE,
    }
}

const fn either(guild: Intents, direct: Intents) -> Delivery {
    Delivery::Intents { guild, direct }
}

const GUILDS: Delivery = guild(Intents::GUILDS);
const THREAD_MEMBERS: Delivery = guild(Intents::GUILDS.union(Intents::GUILD_MEMBERS));
const MEMBERS: Delivery = guild(Intents::GUILD_MEMBERS);
const MODERATION: Delivery = guild(Intents::GUILD_MODERATION);
const EXPRESSIONS: Delivery = guild(Intents::GUILD_EXPRESSIONS);
const INTEGRATIONS: Delivery = guild(Intents::GUILD_INTEGRATIONS);
const WEBHOOKS: Delivery = guild(Intents::GUILD_WEBHOOKS);
const INVITES: Delivery = guild(Intents::GUILD_INVITES);
const VOICE: Delivery = guild(Intents::GUILD_VOICE_STATES);
const PRESENCES: Delivery = guild(Intents::GUILD_PRESENCES);
const SCHEDULED: Delivery = guild(Intents::GUILD_SCHEDULED_EVENTS);
const AUTOMOD_RULES: Delivery = guild(Intents::AUTO_MODERATION_CONFIGURATION);
const AUTOMOD_ACTIONS: Delivery = guild(Intents::AUTO_MODERATION_EXECUTION);
const PINS: Delivery = either(Intents::GUILDS, Intents::DIRECT_MESSAGES);
const GUILD_MESSAGES: Delivery = guild(Intents::GUILD_MESSAGES);
const MESSAGES: Delivery = either(Intents::GUILD_MESSAGES, Intents::DIRECT_MESSAGES);
const REACTIONS: Delivery = either(
    Intents::GUILD_MESSAGE_REACTIONS,
    Intents::DIRECT_MESSAGE_REACTIONS,
);
const TYPING: Delivery = either(
    Intents::GUILD_MESSAGE_TYPING,
    Intents::DIRECT_MESSAGE_TYPING,
);
const POLLS: Delivery = either(Intents::GUILD_MESSAGE_POLLS, Intents::DIRECT_MESSAGE_POLLS);

macro_rules! events {
    ($($kind:ident $name:literal $delivery:ident $location:ident;)*) => {
        /// A dispatch event that Discord documents.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum EventKind {
            $(
                #[doc = concat!("`", $name, "`")]
                $kind,
            )*
        }

        impl EventKind {
            /// Every documented event, in the order of Discord's documentation.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$kind),*];

            /// The name as it stands in `t`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// Which intents make Discord send it.
            #[must_use]
            pub const fn delivery(self) -> Delivery {
                match self {
                    $(Self::$kind => $delivery,)*
                }
            }

            /// Where Discord's documentation puts its guild id.
            #[must_use]
            pub const fn guild_location(self) -> GuildLocation {
                match self {
                    $(Self::$kind => $location,)*
                }
            }
        }
    };
}

events! {
    Ready "READY" ALWAYS Nowhere;
    Resumed "RESUMED" ALWAYS Nowhere;
    RateLimited "RATE_LIMITED" ALWAYS Nowhere;
    ApplicationCommandPermissionsUpdate "APPLICATION_COMMAND_PERMISSIONS_UPDATE" ALWAYS GuildId;
    AutoModerationRuleCreate "AUTO_MODERATION_RULE_CREATE" AUTOMOD_RULES GuildId;
    AutoModerationRuleUpdate "AUTO_MODERATION_RULE_UPDATE" AUTOMOD_RULES GuildId;
    AutoModerationRuleDelete "AUTO_MODERATION_RULE_DELETE" AUTOMOD_RULES GuildId;
    AutoModerationActionExecution "AUTO_MODERATION_ACTION_EXECUTION" AUTOMOD_ACTIONS GuildId;
    ChannelCreate "CHANNEL_CREATE" GUILDS GuildId;
    ChannelUpdate "CHANNEL_UPDATE" GUILDS GuildId;
    ChannelDelete "CHANNEL_DELETE" GUILDS GuildId;
    ChannelInfo "CHANNEL_INFO" ALWAYS GuildId;
    ChannelPinsUpdate "CHANNEL_PINS_UPDATE" PINS OptionalGuildId;
    ThreadCreate "THREAD_CREATE" GUILDS GuildId;
    ThreadUpdate "THREAD_UPDATE" GUILDS GuildId;
    ThreadDelete "THREAD_DELETE" GUILDS GuildId;
    ThreadListSync "THREAD_LIST_SYNC" GUILDS GuildId;
    ThreadMemberUpdate "THREAD_MEMBER_UPDATE" GUILDS GuildId;
    ThreadMembersUpdate "THREAD_MEMBERS_UPDATE" THREAD_MEMBERS GuildId;
    EntitlementCreate "ENTITLEMENT_CREATE" ALWAYS OptionalGuildId;
    EntitlementUpdate "ENTITLEMENT_UPDATE" ALWAYS OptionalGuildId;
    EntitlementDelete "ENTITLEMENT_DELETE" ALWAYS OptionalGuildId;
    GuildCreate "GUILD_CREATE" GUILDS Id;
    GuildUpdate "GUILD_UPDATE" GUILDS Id;
    GuildDelete "GUILD_DELETE" GUILDS Id;
    GuildAuditLogEntryCreate "GUILD_AUDIT_LOG_ENTRY_CREATE" MODERATION GuildId;
    GuildBanAdd "GUILD_BAN_ADD" MODERATION GuildId;
    GuildBanRemove "GUILD_BAN_REMOVE" MODERATION GuildId;
    GuildEmojisUpdate "GUILD_EMOJIS_UPDATE" EXPRESSIONS GuildId;
    GuildStickersUpdate "GUILD_STICKERS_UPDATE" EXPRESSIONS GuildId;
    GuildIntegrationsUpdate "GUILD_INTEGRATIONS_UPDATE" INTEGRATIONS GuildId;
    GuildMemberAdd "GUILD_MEMBER_ADD" MEMBERS GuildId;
    GuildMemberRemove "GUILD_MEMBER_REMOVE" MEMBERS GuildId;
    GuildMemberUpdate "GUILD_MEMBER_UPDATE" MEMBERS GuildId;
    GuildMembersChunk "GUILD_MEMBERS_CHUNK" ALWAYS GuildId;
    GuildRoleCreate "GUILD_ROLE_CREATE" GUILDS GuildId;
    GuildRoleUpdate "GUILD_ROLE_UPDATE" GUILDS GuildId;
    GuildRoleDelete "GUILD_ROLE_DELETE" GUILDS GuildId;
    GuildScheduledEventCreate "GUILD_SCHEDULED_EVENT_CREATE" SCHEDULED GuildId;
    GuildScheduledEventUpdate "GUILD_SCHEDULED_EVENT_UPDATE" SCHEDULED GuildId;
    GuildScheduledEventDelete "GUILD_SCHEDULED_EVENT_DELETE" SCHEDULED GuildId;
    GuildScheduledEventUserAdd "GUILD_SCHEDULED_EVENT_USER_ADD" SCHEDULED GuildId;
    GuildScheduledEventUserRemove "GUILD_SCHEDULED_EVENT_USER_REMOVE" SCHEDULED GuildId;
    GuildSoundboardSoundCreate "GUILD_SOUNDBOARD_SOUND_CREATE" EXPRESSIONS GuildId;
    GuildSoundboardSoundUpdate "GUILD_SOUNDBOARD_SOUND_UPDATE" EXPRESSIONS GuildId;
    GuildSoundboardSoundDelete "GUILD_SOUNDBOARD_SOUND_DELETE" EXPRESSIONS GuildId;
    GuildSoundboardSoundsUpdate "GUILD_SOUNDBOARD_SOUNDS_UPDATE" EXPRESSIONS GuildId;
    SoundboardSounds "SOUNDBOARD_SOUNDS" ALWAYS GuildId;
    IntegrationCreate "INTEGRATION_CREATE" INTEGRATIONS GuildId;
    IntegrationUpdate "INTEGRATION_UPDATE" INTEGRATIONS GuildId;
    IntegrationDelete "INTEGRATION_DELETE" INTEGRATIONS GuildId;
    InteractionCreate "INTERACTION_CREATE" ALWAYS OptionalGuildId;
    InviteCreate "INVITE_CREATE" INVITES OptionalGuildId;
    InviteDelete "INVITE_DELETE" INVITES OptionalGuildId;
    MessageCreate "MESSAGE_CREATE" MESSAGES OptionalGuildId;
    MessageUpdate "MESSAGE_UPDATE" MESSAGES OptionalGuildId;
    MessageDelete "MESSAGE_DELETE" MESSAGES OptionalGuildId;
    MessageDeleteBulk "MESSAGE_DELETE_BULK" GUILD_MESSAGES OptionalGuildId;
    MessageReactionAdd "MESSAGE_REACTION_ADD" REACTIONS OptionalGuildId;
    MessageReactionRemove "MESSAGE_REACTION_REMOVE" REACTIONS OptionalGuildId;
    MessageReactionRemoveAll "MESSAGE_REACTION_REMOVE_ALL" REACTIONS OptionalGuildId;
    MessageReactionRemoveEmoji "MESSAGE_REACTION_REMOVE_EMOJI" REACTIONS OptionalGuildId;
    PresenceUpdate "PRESENCE_UPDATE" PRESENCES GuildId;
    StageInstanceCreate "STAGE_INSTANCE_CREATE" GUILDS GuildId;
    StageInstanceUpdate "STAGE_INSTANCE_UPDATE" GUILDS GuildId;
    StageInstanceDelete "STAGE_INSTANCE_DELETE" GUILDS GuildId;
    SubscriptionCreate "SUBSCRIPTION_CREATE" ALWAYS Nowhere;
    SubscriptionUpdate "SUBSCRIPTION_UPDATE" ALWAYS Nowhere;
    SubscriptionDelete "SUBSCRIPTION_DELETE" ALWAYS Nowhere;
    TypingStart "TYPING_START" TYPING OptionalGuildId;
    UserUpdate "USER_UPDATE" ALWAYS Nowhere;
    VoiceChannelEffectSend "VOICE_CHANNEL_EFFECT_SEND" VOICE GuildId;
    VoiceChannelStartTimeUpdate "VOICE_CHANNEL_START_TIME_UPDATE" GUILDS GuildId;
    VoiceChannelStatusUpdate "VOICE_CHANNEL_STATUS_UPDATE" GUILDS GuildId;
    VoiceStateUpdate "VOICE_STATE_UPDATE" VOICE OptionalGuildId;
    VoiceServerUpdate "VOICE_SERVER_UPDATE" ALWAYS GuildId;
    WebhooksUpdate "WEBHOOKS_UPDATE" WEBHOOKS GuildId;
    MessagePollVoteAdd "MESSAGE_POLL_VOTE_ADD" POLLS OptionalGuildId;
    MessagePollVoteRemove "MESSAGE_POLL_VOTE_REMOVE" POLLS OptionalGuildId;
}

impl EventKind {
    /// The event of this name; `None` for all others. One hash of 17 bytes and one comparison.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let slot = LOOKUP.slots[slot_of(name.as_bytes(), LOOKUP.seed)];
        let kind = *Self::ALL.get(usize::from(slot))?;
        (kind.name() == name).then_some(kind)
    }
}

/// A perfect hash of the names, found when the crate is compiled.
struct Lookup {
    seed: u64,
    /// Index into [`EventKind::ALL`], or [`VACANT`].
    slots: [u8; SLOTS],
}

/// Twelve slots per name make every thirtieth seed or so free of collisions; 1 KiB stays in L1.
const SLOTS: usize = 1024;
const VACANT: u8 = u8::MAX;
/// Far above what is needed; the build stops here instead of searching for ever.
const SEEDS_MAX: u64 = 2_000;

static LOOKUP: Lookup = find_lookup();

const fn find_lookup() -> Lookup {
    assert!(
        EventKind::ALL.len() < VACANT as usize,
        "indices must fit a u8"
    );
    let mut seed = 0;
    while seed < SEEDS_MAX {
        if let Some(slots) = fill(seed) {
            return Lookup { seed, slots };
        }
        seed += 1;
    }
    panic!("no seed hashes the event names without a collision: raise SLOTS")
}

const fn fill(seed: u64) -> Option<[u8; SLOTS]> {
    let mut slots = [VACANT; SLOTS];
    let mut index = 0;
    while index < EventKind::ALL.len() {
        let slot = slot_of(EventKind::ALL[index].name().as_bytes(), seed);
        if slots[slot] != VACANT {
            return None;
        }
        slots[slot] = index as u8;
        index += 1;
    }
    Some(slots)
}

/// Length, first and last eight bytes tell all names apart (the compiler's search proves it).
const fn slot_of(name: &[u8], seed: u64) -> usize {
    let (first, last) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => (short(name), 0),
    };
    let mixed = (first ^ seed.wrapping_mul(0xff51_afd7_ed55_8ccd))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ last.rotate_left(29).wrapping_add(name.len() as u64);
    let mixed = mixed.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (mixed >> (u64::BITS - SLOTS.trailing_zeros())) as usize
}

const fn short(name: &[u8]) -> u64 {
    let mut word = 0;
    let mut at = 0;
    while at < name.len() {
        word = word << 8 | name[at] as u64;
        at += 1;
    }
    word
}
