//! The table of events against a second one, extracted from Discord's documentation.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use schemas::event::{Delivery, GuildLocation};
use schemas::{EventKind, Intents};

const DOCUMENTED: &str = include_str!("dispatch_events.tsv");

fn bits(column: &str) -> Intents {
    match column {
        "-" => Intents::NONE,
        bits => bits
            .split('+')
            .map(|bit| Intents::from_bits(1 << bit.parse::<u32>().unwrap()))
            .fold(Intents::NONE, Intents::union),
    }
}

#[test]
fn the_table_equals_discords_documentation() {
    let rows: Vec<Vec<&str>> = DOCUMENTED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(rows.len(), EventKind::COUNT);
    for (row, kind) in rows.iter().zip(EventKind::ALL) {
        let [name, guild, direct, location] = row[..] else {
            panic!("{row:?}")
        };
        assert_eq!(kind.name(), name);
        let delivery = match guild {
            "always" => Delivery::Always,
            guild => Delivery::Intents {
                guild: bits(guild),
                direct: bits(direct),
            },
        };
        assert_eq!(kind.delivery(), delivery, "{name}");
        let location = match location {
            "guild_id" => GuildLocation::GuildId,
            "guild_id?" => GuildLocation::OptionalGuildId,
            "id" => GuildLocation::Id,
            "none" => GuildLocation::Nowhere,
            other => panic!("{name} has the location {other}"),
        };
        assert_eq!(kind.guild_location(), location, "{name}");
    }
}
