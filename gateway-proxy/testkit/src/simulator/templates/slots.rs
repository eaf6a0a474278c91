//! The slots of a template and what is written into them.

use super::super::guilds::{Entity, entity, snowflake, splitmix};
use super::{Context, Templates};

/// A piece of a template: text as it stands, or something to write.
pub(super) enum Piece {
    Text(&'static str),
    Slot(Slot),
}

/// What can be written into a template.
#[derive(Clone, Copy)]
pub(super) enum Slot {
    Application,
    Guild,
    Channel,
    ChannelAtIndex,
    Category,
    Role,
    Roles,
    RoleAtIndex,
    User(Person, Field),
    Nick,
    Fresh,
    Old,
    Now,
    Past,
    Millis,
    Seconds,
    Text,
    Words(u8),
    Title(u8),
    Name,
    Capital,
    Hex(u8),
    Status,
    MemberCount,
    Large,
    InteractionId,
    InteractionToken,
    CommandName,
    CommandId,
    CommandOptions,
    List(List),
}

/// The two people an event may be about.
#[derive(Clone, Copy)]
pub(super) enum Person {
    Actor,
    Other,
}

/// A user's members.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Id,
    Username,
    GlobalName,
    Avatar,
    Flags,
}

/// The lists of a guild.
#[derive(Clone, Copy)]
pub(super) enum List {
    Roles,
    Emojis,
    Stickers,
    Channels,
    Threads,
    VoiceStates,
    Presences,
    Members,
    Sounds,
}

/// Cuts a template at its `{{slots}}`. A template is part of this crate: an unknown slot is a bug.
pub(super) fn compile(text: &'static str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let close = open
            + rest[open..]
                .find("}}")
                .expect("templates close their slots");
        if open > 0 {
            pieces.push(Piece::Text(&rest[..open]));
        }
        let name = &rest[open + 2..close];
        pieces.push(Piece::Slot(
            slot(name).unwrap_or_else(|| panic!("unknown slot {name}")),
        ));
        rest = &rest[close + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}

fn slot(name: &str) -> Option<Slot> {
    let plain = match name {
        "app" => Slot::Application,
        "g" => Slot::Guild,
        "c" => Slot::Channel,
        "ci" => Slot::ChannelAtIndex,
        "cat" => Slot::Category,
        "r" => Slot::Role,
        "rs" => Slot::Roles,
        "ri" => Slot::RoleAtIndex,
        "u" => Slot::User(Person::Actor, Field::Id),
        "un" => Slot::User(Person::Actor, Field::Username),
        "ug" => Slot::User(Person::Actor, Field::GlobalName),
        "ua" => Slot::User(Person::Actor, Field::Avatar),
        "uf" => Slot::User(Person::Actor, Field::Flags),
        "v" => Slot::User(Person::Other, Field::Id),
        "vn" => Slot::User(Person::Other, Field::Username),
        "vg" => Slot::User(Person::Other, Field::GlobalName),
        "va" => Slot::User(Person::Other, Field::Avatar),
        "vf" => Slot::User(Person::Other, Field::Flags),
        "nick" => Slot::Nick,
        "m" => Slot::Fresh,
        "o" => Slot::Old,
        "iso" => Slot::Now,
        "past" => Slot::Past,
        "ms" => Slot::Millis,
        "sec" => Slot::Seconds,
        "w" => Slot::Text,
        "name" => Slot::Name,
        "Name" => Slot::Capital,
        "st" => Slot::Status,
        "members" => Slot::MemberCount,
        "large" => Slot::Large,
        "iid" => Slot::InteractionId,
        "itok" => Slot::InteractionToken,
        "cmd" => Slot::CommandName,
        "cmdid" => Slot::CommandId,
        "cmdopts" => Slot::CommandOptions,
        "*roles" => Slot::List(List::Roles),
        "*emojis" => Slot::List(List::Emojis),
        "*stickers" => Slot::List(List::Stickers),
        "*channels" => Slot::List(List::Channels),
        "*threads" => Slot::List(List::Threads),
        "*voice_states" => Slot::List(List::VoiceStates),
        "*presences" => Slot::List(List::Presences),
        "*members" => Slot::List(List::Members),
        "*sounds" => Slot::List(List::Sounds),
        _ => return counted_slot(name),
    };
    Some(plain)
}

/// `w12` words, `W3` words in title case, `h32` hexadecimal digits.
fn counted_slot(name: &str) -> Option<Slot> {
    let kind = name.chars().next()?;
    let count = name.get(1..)?.parse::<u16>().ok()?.min(255) as u8;
    match kind {
        'w' => Some(Slot::Words(count)),
        'W' => Some(Slot::Title(count)),
        'h' => Some(Slot::Hex(count)),
        _ => None,
    }
}

pub(super) fn render(all: &Templates, out: &mut Vec<u8>, pieces: &[Piece], c: &mut Context<'_>) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Slot(slot) => write(all, out, *slot, c),
        }
    }
}

fn write(all: &Templates, out: &mut Vec<u8>, slot: Slot, c: &mut Context<'_>) {
    match slot {
        Slot::Application => decimal(out, all.application_id()),
        Slot::Guild => decimal(out, c.guild),
        Slot::Channel => {
            // The first few channels of a guild are the busy ones; number 0 is the category.
            let index = 1 + c.rng.u64(..3);
            decimal(out, entity(Entity::Channel, c.guild, index));
        }
        Slot::ChannelAtIndex => decimal(out, entity(Entity::Channel, c.guild, c.index)),
        Slot::Category => decimal(out, entity(Entity::Channel, c.guild, 0)),
        Slot::Role => decimal(out, entity(Entity::Role, c.guild, 1 + c.rng.u64(..2))),
        Slot::Roles => roles(out, c),
        Slot::RoleAtIndex => decimal(out, entity(Entity::Role, c.guild, c.index)),
        Slot::User(Person::Actor, field) => user(out, c.user, field),
        Slot::User(Person::Other, field) => user(out, c.other, field),
        Slot::Nick => {
            if c.rng.u8(..5) == 0 {
                quoted_name(out, c.rng.u64(..));
            } else {
                out.extend_from_slice(b"null");
            }
        }
        Slot::Fresh => decimal(out, snowflake(c.ms, c.rng.u64(..))),
        Slot::Old => decimal(
            out,
            snowflake(c.ms - c.rng.u64(..HUNDRED_DAYS_MS), c.rng.u64(..)),
        ),
        Slot::Now => timestamp(out, c.ms),
        Slot::Past => timestamp(out, c.ms - c.rng.u64(..HUNDRED_DAYS_MS)),
        Slot::Millis => decimal(out, c.ms),
        Slot::Seconds => decimal(out, c.ms / 1000),
        Slot::Text => {
            // Exponential lengths around nine words, as chats have them.
            let count = (-9.0 * (1.0 - c.rng.f64()).ln()) as u32;
            words(out, c, 1 + count.min(300), false);
        }
        Slot::Words(count) => words(out, c, u32::from(count), false),
        Slot::Title(count) => words(out, c, u32::from(count), true),
        Slot::Name => name(out, c.rng.u64(..), false),
        Slot::Capital => name(out, c.rng.u64(..), true),
        Slot::Hex(count) => hex(out, &mut c.rng, count),
        Slot::Status => out.extend_from_slice(STATUSES[c.rng.usize(..STATUSES.len())].as_bytes()),
        Slot::MemberCount => decimal(out, c.plan.map_or(5, |plan| plan.member_count())),
        Slot::Large => {
            let large = c.plan.is_some_and(|plan| plan.member_count() > 250);
            out.extend_from_slice(if large { b"true" } else { b"false" });
        }
        Slot::InteractionId => decimal(out, c.command.map_or(0, |command| command.id)),
        Slot::InteractionToken => {
            out.extend_from_slice(c.command.map_or("", |command| command.token).as_bytes());
        }
        Slot::CommandName => {
            out.extend_from_slice(c.command.map_or("ping", |command| command.name).as_bytes());
        }
        Slot::CommandId => decimal(out, c.command.map_or(0, |command| command.command_id)),
        Slot::CommandOptions => {
            let options = c.command.map_or(&[][..], |command| command.options);
            // Absent for a command without any, as from Discord.
            if !options.is_empty() {
                out.extend_from_slice(b",\"options\":");
                out.extend_from_slice(serde_json::json!(options).to_string().as_bytes());
            }
        }
        Slot::List(list) => all.list(out, list, c),
    }
}

const HUNDRED_DAYS_MS: u64 = 100 * 86_400_000;
const STATUSES: [&str; 4] = ["online", "online", "idle", "dnd"];
const SYLLABLES: [&str; 16] = [
    "ka", "lo", "mi", "ra", "ten", "zu", "vor", "nel", "shi", "pax", "dro", "fen", "qui", "lum",
    "bas", "tor",
];
const WORDS: [&str; 64] = [
    "the", "and", "you", "that", "it", "was", "for", "on", "are", "with", "as", "they", "be", "at",
    "one", "have", "this", "from", "or", "had", "by", "hot", "but", "some", "what", "there", "we",
    "can", "out", "other", "were", "all", "your", "when", "up", "use", "word", "how", "said", "an",
    "each", "she", "which", "do", "their", "time", "if", "will", "way", "about", "many", "then",
    "them", "would", "lol", "gg", "wp", "brb", "😂", "👍", "ok", "nice", "thx", "naïve",
];

fn decimal(out: &mut Vec<u8>, number: u64) {
    schemas::subject::push_decimal(out, number);
}

fn roles(out: &mut Vec<u8>, c: &mut Context<'_>) {
    let count = u64::from(c.rng.u8(..3));
    for index in 1..=count {
        if index > 1 {
            out.push(b',');
        }
        out.push(b'"');
        decimal(out, entity(Entity::Role, c.guild, index));
        out.push(b'"');
    }
}

/// A user's name and avatar follow from its id, so that it is the same user everywhere.
fn user(out: &mut Vec<u8>, id: u64, field: Field) {
    let hash = splitmix(id);
    match field {
        Field::Id => decimal(out, id),
        Field::Username => {
            name(out, hash, false);
            decimal(out, hash % 1000);
        }
        Field::GlobalName if hash.is_multiple_of(5) => out.extend_from_slice(b"null"),
        Field::GlobalName => quoted_name(out, hash),
        Field::Avatar if hash.is_multiple_of(7) => out.extend_from_slice(b"null"),
        Field::Avatar => {
            out.push(b'"');
            hex(out, &mut fastrand::Rng::with_seed(hash), 32);
            out.push(b'"');
        }
        Field::Flags => decimal(out, if hash.is_multiple_of(3) { 64 } else { 0 }),
    }
}

fn quoted_name(out: &mut Vec<u8>, hash: u64) {
    out.push(b'"');
    name(out, hash, true);
    out.push(b'"');
}

fn name(out: &mut Vec<u8>, hash: u64, capital: bool) {
    let start = out.len();
    for shift in 0..2 + (hash >> 60) % 2 {
        let syllable = SYLLABLES[(hash >> (shift * 4 + 8)) as usize % SYLLABLES.len()];
        out.extend_from_slice(syllable.as_bytes());
    }
    if capital {
        out[start].make_ascii_uppercase();
    }
}

fn words(out: &mut Vec<u8>, c: &mut Context<'_>, count: u32, title: bool) {
    for n in 0..count {
        if n > 0 {
            out.push(b' ');
        }
        let start = out.len();
        out.extend_from_slice(WORDS[c.rng.usize(..WORDS.len())].as_bytes());
        if title {
            out[start].make_ascii_uppercase();
        }
    }
}

fn hex(out: &mut Vec<u8>, rng: &mut fastrand::Rng, count: u8) {
    let mut left = usize::from(count);
    while left > 0 {
        let mut bits = rng.u64(..);
        for _ in 0..left.min(16) {
            out.push(b"0123456789abcdef"[(bits & 15) as usize]);
            bits >>= 4;
        }
        left -= left.min(16);
    }
}

/// `2026-11-20T07:00:00.123000+00:00`, as Discord writes moments.
fn timestamp(out: &mut Vec<u8>, ms: u64) {
    // Civil date from days, after Howard Hinnant's public-domain algorithm.
    let days = ms / 86_400_000 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let second = ms / 1000 % 86_400;
    digits(out, year, 4);
    for (mark, value) in [
        (b'-', month),
        (b'-', day),
        (b'T', second / 3600),
        (b':', second / 60 % 60),
        (b':', second % 60),
    ] {
        out.push(mark);
        digits(out, value, 2);
    }
    out.push(b'.');
    digits(out, ms % 1000, 3);
    out.extend_from_slice(b"000+00:00");
}

fn digits(out: &mut Vec<u8>, value: u64, count: u32) {
    for at in (0..count).rev() {
        out.push(b'0' + (value / 10_u64.pow(at) % 10) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_discord_does() {
        for (ms, expect) in [
            (1_795_158_000_123, "2026-11-20T07:00:00.123000+00:00"),
            (951_782_400_000, "2000-02-29T00:00:00.000000+00:00"),
            (1_735_689_599_999, "2024-12-31T23:59:59.999000+00:00"),
        ] {
            let mut out = Vec::new();
            timestamp(&mut out, ms);
            assert_eq!(std::str::from_utf8(&out).unwrap(), expect);
        }
    }
}
