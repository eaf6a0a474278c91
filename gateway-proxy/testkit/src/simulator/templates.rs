//! Payloads made cheaply: realistic templates with ids, names and texts patched in.
//!
//! Rendering is a pure function of template, guild, seed and moment, so that a replay buffer keeps
//! recipes instead of bytes and a replayed event is byte-identical. `templates/events.tsv` holds
//! `key <tab> d <tab> d without MESSAGE_CONTENT`, `templates/parts.tsv` the pieces of a guild.

mod slots;

use std::collections::HashMap;

use self::slots::{List, Piece, compile, render};
use super::events::{Names, intents_for};
use super::guilds::{Entity, Guild, World, entity, splitmix};

static EVENTS: &str = include_str!("templates/events.tsv");
static PARTS: &str = include_str!("templates/parts.tsv");

/// Where generated moments start (2026-11-20 07:00 UTC): events carry made-up times, so that the
/// same seed makes the same bytes. Interactions carry the real time.
pub(crate) const VIRTUAL_EPOCH_MS: u64 = 1_795_158_000_000;

/// A user's number within a guild is below this; the same users come again and again.
const USERS_PER_GUILD: u64 = 60;

/// One kind of event that can be generated.
pub(crate) struct EventTemplate {
    pub(crate) key: &'static str,
    pub(crate) event: &'static str,
    /// Number of the name in [`Names`].
    pub(crate) name: u16,
    /// Belongs to no guild: shard 0 only.
    pub(crate) direct: bool,
    /// Intents of which one is enough; 0 for none.
    pub(crate) intents: u64,
    full: Vec<Piece>,
    stripped: Option<Vec<Piece>>,
}

/// All templates.
pub(crate) struct Templates {
    pub(crate) events: Vec<EventTemplate>,
    by_key: HashMap<&'static str, u16>,
    parts: HashMap<&'static str, Vec<Piece>>,
    application_id: u64,
}

/// A slash command's particulars, for the template `INTERACTION_CREATE`.
pub(crate) struct Command<'a> {
    pub(crate) id: u64,
    pub(crate) token: &'a str,
    pub(crate) name: &'a str,
    pub(crate) command_id: u64,
    /// As they stand in `data`.
    pub(crate) options: &'a [serde_json::Value],
}

/// What the slots of one rendering draw from.
pub(crate) struct Context<'a> {
    pub(crate) guild: u64,
    pub(crate) user: u64,
    pub(crate) other: u64,
    pub(crate) index: u64,
    pub(crate) ms: u64,
    pub(crate) rng: fastrand::Rng,
    pub(crate) command: Option<&'a Command<'a>>,
    plan: Option<GuildPlan>,
}

/// How many of everything a rendered guild has.
#[derive(Clone, Copy)]
struct GuildPlan {
    roles: u64,
    channels: u64,
    emojis: u64,
    stickers: u64,
    threads: u64,
    voice_states: u64,
    sounds: u64,
    presences: u64,
    /// Members are listed until the guild is this long.
    bytes: usize,
    start: usize,
}

impl GuildPlan {
    /// Shares as large public guilds have them; the limits are Discord's own.
    fn new(bytes: usize, presences: bool, start: usize) -> Self {
        let bytes = bytes as u64;
        Self {
            roles: (bytes / 1500).clamp(2, 250),
            channels: (bytes / 1000).clamp(3, 500),
            emojis: (bytes / 2000).min(250),
            stickers: (bytes / 100_000).min(30),
            threads: (bytes / 50_000).min(100),
            voice_states: (bytes / 20_000).min(200),
            sounds: (bytes / 20_000).min(8),
            presences: if presences {
                (bytes / 1500).min(1000)
            } else {
                0
            },
            bytes: bytes as usize,
            start,
        }
    }

    /// Members in all, of which only some are listed.
    const fn member_count(&self) -> u64 {
        5 + self.bytes as u64 / 100
    }
}

impl Templates {
    pub(crate) fn new(names: &Names, application_id: u64) -> Self {
        let mut events = Vec::new();
        let mut by_key = HashMap::new();
        for line in EVENTS.lines() {
            let mut columns = line.split('\t');
            let (Some(key), Some(full)) = (columns.next(), columns.next()) else {
                continue;
            };
            let stripped = columns.next().filter(|text| !text.is_empty());
            let event = key.split('.').next().unwrap_or(key);
            let direct = !names_its_guild(event, full);
            by_key.insert(key, events.len() as u16);
            events.push(EventTemplate {
                key,
                event,
                name: names.number(event),
                direct,
                intents: intents_for(event, direct),
                full: compile(full),
                stripped: stripped.map(compile),
            });
        }
        let parts = PARTS.lines().filter_map(|line| line.split_once('\t'));
        let parts = parts.map(|(key, text)| (key, compile(text))).collect();
        Self {
            events,
            by_key,
            parts,
            application_id,
        }
    }

    /// The template of a key such as `MESSAGE_CREATE.reply`.
    pub(crate) fn find(&self, key: &str) -> Option<u16> {
        self.by_key.get(key).copied()
    }

    /// Appends the `d` of one event.
    pub(crate) fn render(&self, out: &mut Vec<u8>, template: u16, stripped: bool, c: Context<'_>) {
        let template = &self.events[usize::from(template)];
        let pieces = match &template.stripped {
            Some(pieces) if stripped => pieces,
            _ => &template.full,
        };
        let mut context = c;
        if context.plan.is_none() {
            context.plan = Some(GuildPlan::new(6000, false, out.len()));
        }
        render(self, out, pieces, &mut context);
    }

    /// Appends the `d` of a guild's GUILD_CREATE.
    pub(crate) fn render_guild(&self, out: &mut Vec<u8>, world: &World, guild: u32, full: bool) {
        let guild = world.guild(guild);
        let mut context = Context::new(guild.id, splitmix(guild.id), VIRTUAL_EPOCH_MS, None);
        context.plan = Some(GuildPlan::new(guild.bytes as usize, full, out.len()));
        render(self, out, &self.parts["guild"], &mut context);
    }

    /// Appends a guild as the list of the bot's guilds has it, under the name of its GUILD_CREATE.
    pub(crate) fn render_listed(&self, out: &mut Vec<u8>, guild: Guild, counts: bool) {
        self.render_over_rest(out, &self.parts["guild.listed"], guild, counts);
    }

    /// Appends a guild object, with name, owner and roles of its GUILD_CREATE.
    pub(crate) fn render_object(&self, out: &mut Vec<u8>, guild: Guild, counts: bool) {
        let update = usize::from(self.by_key["GUILD_UPDATE"]);
        self.render_over_rest(out, &self.events[update].full, guild, counts);
    }

    fn render_over_rest(&self, out: &mut Vec<u8>, pieces: &[Piece], guild: Guild, counts: bool) {
        // The same draws as for the GUILD_CREATE.
        let mut context = Context::new(guild.id, splitmix(guild.id), VIRTUAL_EPOCH_MS, None);
        context.plan = Some(GuildPlan::new(guild.bytes as usize, false, out.len()));
        render(self, out, pieces, &mut context);
        if counts {
            let members = Self::member_count(guild.bytes as usize);
            let closing = out.pop();
            for (field, count) in [("member", members), ("presence", members / 2)] {
                out.extend_from_slice(format!(",\"approximate_{field}_count\":{count}").as_bytes());
            }
            out.extend(closing);
        }
    }

    /// Appends members as GUILD_MEMBERS_CHUNK lists them.
    pub(crate) fn render_members(&self, out: &mut Vec<u8>, guild: u64, from: u64, to: u64) {
        let mut context = Context::new(guild, splitmix(guild ^ from), VIRTUAL_EPOCH_MS, None);
        for index in from..to {
            context.user = entity(Entity::User, guild, index);
            render(self, out, &self.parts["member"], &mut context);
            out.push(b',');
        }
        if to > from {
            out.pop();
        }
    }

    /// How many members a guild of so many bytes has.
    pub(crate) const fn member_count(bytes: usize) -> u64 {
        5 + bytes as u64 / 100
    }

    pub(crate) const fn application_id(&self) -> u64 {
        self.application_id
    }

    fn list(&self, out: &mut Vec<u8>, list: List, context: &mut Context<'_>) {
        let Some(plan) = context.plan else { return };
        let before = out.len();
        match list {
            List::Roles => {
                self.part(out, "everyone", 0, context);
                (1..=plan.roles).for_each(|n| self.part(out, "role", n, context));
            }
            List::Channels => {
                for n in 0..plan.channels {
                    let part = match n {
                        0 => "channel.category",
                        _ if n % 5 == 4 => "channel.voice",
                        _ => "channel.text",
                    };
                    self.part(out, part, n, context);
                }
            }
            List::Emojis => (0..plan.emojis).for_each(|n| self.part(out, "emoji", n, context)),
            List::Stickers => {
                (0..plan.stickers).for_each(|n| self.part(out, "sticker", n, context));
            }
            List::Threads => (0..plan.threads).for_each(|n| self.part(out, "thread", n, context)),
            List::VoiceStates => {
                (1..=plan.voice_states).for_each(|n| self.part(out, "voice_state", n, context));
            }
            List::Presences => {
                (1..=plan.presences).for_each(|n| self.part(out, "presence", n, context));
            }
            List::Sounds => (0..plan.sounds).for_each(|n| self.part(out, "sound", n, context)),
            List::Members => {
                self.part(out, "bot_member", 0, context);
                let mut n = 1;
                while out.len() - plan.start < plan.bytes && n < plan.member_count() {
                    self.part(out, "member", n, context);
                    n += 1;
                }
            }
        }
        if out.len() > before {
            out.pop();
        }
    }

    fn part(&self, out: &mut Vec<u8>, part: &str, index: u64, context: &mut Context<'_>) {
        context.index = index;
        context.user = entity(Entity::User, context.guild, index);
        render(self, out, &self.parts[part], context);
        out.push(b',');
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(guild: u64, seed: u64, ms: u64, command: Option<&'a Command<'a>>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let user = entity(Entity::User, guild, 1 + rng.u64(..USERS_PER_GUILD));
        let other = entity(Entity::User, guild, 1 + rng.u64(..USERS_PER_GUILD));
        Self {
            guild,
            user,
            other,
            index: 0,
            ms,
            rng,
            command,
            plan: None,
        }
    }
}

/// Whether the guild stands where the rule of the subjects looks for it.
fn names_its_guild(event: &str, d: &str) -> bool {
    let key = match event {
        "GUILD_UPDATE" => "id",
        _ => "guild_id",
    };
    let span = super::scan::member(d.as_bytes(), key);
    span.is_some_and(|span| &d.as_bytes()[span] == b"\"{{g}}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::config::GuildBytes;
    use crate::simulator::scan;

    fn templates() -> Templates {
        Templates::new(&Names::default(), 77)
    }

    fn rendered(templates: &Templates, index: usize, stripped: bool, seed: u64) -> Vec<u8> {
        let command = Command {
            id: 5,
            token: "tok",
            name: "ping",
            command_id: 6,
            options: &[],
        };
        let context = Context::new(123_456_789, seed, VIRTUAL_EPOCH_MS, Some(&command));
        let mut out = Vec::new();
        templates.render(&mut out, index as u16, stripped, context);
        out
    }

    #[test]
    fn every_template_renders_json_that_names_its_guild() {
        let templates = templates();
        assert!(templates.events.len() > 90);
        for (index, template) in templates.events.iter().enumerate() {
            for seed in 0..5 {
                let d = rendered(&templates, index, seed % 2 == 0, seed);
                let value: serde_json::Value = serde_json::from_slice(&d)
                    .unwrap_or_else(|e| panic!("{}: {e}: {}", template.key, text(&d)));
                assert!(!text(&d).contains("{{"), "{}", template.key);
                assert!(value.is_object());
                let guild = if template.direct { 0 } else { 123_456_789 };
                assert_eq!(
                    scan::guild_of(template.event, &d),
                    guild,
                    "{}",
                    template.key
                );
            }
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_bytes() {
        let templates = templates();
        let index = usize::from(templates.find("MESSAGE_CREATE").unwrap());
        assert_eq!(
            rendered(&templates, index, false, 9),
            rendered(&templates, index, false, 9)
        );
        assert_ne!(
            rendered(&templates, index, false, 9),
            rendered(&templates, index, false, 8)
        );
    }

    #[test]
    fn without_message_content_the_fields_come_empty() {
        let templates = templates();
        for key in [
            "MESSAGE_CREATE",
            "MESSAGE_CREATE.bot_embed",
            "MESSAGE_CREATE.attachment",
        ] {
            let index = usize::from(templates.find(key).unwrap());
            let d: serde_json::Value =
                serde_json::from_slice(&rendered(&templates, index, true, 3)).unwrap();
            assert_eq!(d["content"], "", "{key}");
            for field in ["embeds", "attachments", "components"] {
                assert_eq!(d[field], serde_json::json!([]), "{key} {field}");
            }
        }
        let dm = usize::from(templates.find("MESSAGE_CREATE.dm").unwrap());
        let d: serde_json::Value =
            serde_json::from_slice(&rendered(&templates, dm, true, 3)).unwrap();
        assert_ne!(d["content"], "");
    }

    #[test]
    fn guilds_are_about_as_large_as_planned() {
        let templates = templates();
        let bytes = GuildBytes {
            forced_max: 1,
            ..GuildBytes::default()
        };
        let world = World::new(1, 50, bytes);
        let mut sizes = Vec::new();
        for index in 0..50 {
            let mut out = Vec::new();
            templates.render_guild(&mut out, &world, index, true);
            let d: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(d["id"], world.guild(index).id.to_string());
            sizes.push(out.len());
        }
        assert!(sizes[0] > 1_900_000, "{}", sizes[0]);
        sizes.sort_unstable();
        assert!((8_000..60_000).contains(&sizes[25]), "{}", sizes[25]);
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }
}
