use std::collections::BTreeSet;

use schemas::Snowflake;

use super::*;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Store(BTreeMap<GuildId, GuildEntry>);

impl Known for Store {
    fn revised(&self, guild: GuildId) -> Revised {
        Revised {
            entry: self.0.get(&guild).cloned(),
            revision: 0,
        }
    }

    fn of_shard(&self, shard: u32) -> Vec<GuildId> {
        let here = self.0.iter().filter(|(_, entry)| entry.shard == shard);
        here.map(|(guild, _)| *guild).collect()
    }
}

impl Store {
    /// Applies events with the sequences from `first` on, in batches of `size`.
    fn apply(&mut self, first: u64, size: usize, events: &[GuildEvent]) {
        let numbered: Vec<_> = (first..).zip(events.iter().cloned()).collect();
        for chunk in numbered.chunks(size) {
            let mut batch = Batch::new(&*self);
            for (seq, event) in chunk {
                batch.apply(at(*seq), event.clone());
            }
            self.write(batch.into_changes());
        }
    }

    fn write(&mut self, changes: Changes) {
        for (guild, changed) in changes {
            match changed.entry {
                Some(entry) => drop(self.0.insert(guild, entry)),
                None => drop(self.0.remove(&guild)),
            }
        }
    }

    fn entry(&self, guild: GuildId) -> &GuildEntry {
        &self.0[&guild]
    }
}

const fn at(seq: u64) -> At<'static> {
    At {
        shard: 1,
        stream: "0-1",
        seq,
        unix_ms: 1000 + seq,
    }
}

/// A guild that lies on shard 1 of 4.
fn guild(number: u64) -> GuildId {
    GuildId::new((number * 4 + 1) << 22).unwrap()
}

fn id(id: u64) -> Snowflake {
    Snowflake::new(id).unwrap()
}

fn created(guild: GuildId) -> GuildEvent {
    GuildEvent::Created(Box::new(Facts {
        id: guild,
        name: Some("name".to_owned()),
        owner_id: Some(id(5)),
        member_count: Some(10),
        channels: Some([id(11), id(12)].into()),
        roles: Some([id(21)].into()),
        features: Some(vec!["A".to_owned()]),
        joined_at: None,
    }))
}

fn ready(guilds: impl IntoIterator<Item = GuildId>) -> GuildEvent {
    GuildEvent::Ready {
        shard: ShardId::new(1, 4).ok(),
        guilds: guilds.into_iter().collect::<BTreeSet<_>>(),
    }
}

#[test]
fn members_channels_and_roles_are_counted_as_they_come_and_go() {
    let (mut store, g) = (Store::default(), guild(1));
    store.apply(
        1,
        100,
        &[
            created(g),
            GuildEvent::Joined { guild: g },
            GuildEvent::Joined { guild: g },
            GuildEvent::Left { guild: g },
            GuildEvent::Channel {
                guild: g,
                channel: id(13),
            },
            GuildEvent::Channel {
                guild: g,
                channel: id(13),
            },
            GuildEvent::ChannelGone {
                guild: g,
                channel: id(11),
            },
            GuildEvent::ChannelGone {
                guild: g,
                channel: id(99),
            },
            GuildEvent::Role {
                guild: g,
                role: id(22),
            },
            GuildEvent::RoleGone {
                guild: g,
                role: id(21),
            },
        ],
    );
    let entry = store.entry(g);
    assert_eq!(entry.member_count, Some(11));
    assert_eq!(entry.channels, [id(12), id(13)].into());
    assert_eq!(entry.roles, [id(22)].into());
    assert!(entry.available);
    assert_eq!((entry.shard, entry.seq), (1, 10));
}

#[test]
fn events_that_are_read_again_after_a_crash_change_nothing() {
    let (a, b) = (guild(1), guild(2));
    let events = [
        ready([a, b]),
        created(a),
        GuildEvent::Joined { guild: a },
        created(b),
        GuildEvent::Joined { guild: b },
        GuildEvent::Removed(b),
        created(b),
        GuildEvent::Outage(a),
        GuildEvent::Joined { guild: b },
        GuildEvent::Left { guild: a },
    ];
    let mut whole = Store::default();
    whole.apply(1, 100, &events);
    for size in 1..=events.len() {
        for position in 0..events.len() {
            let mut store = Store::default();
            store.apply(1, size, &events);
            assert_eq!(store, whole, "batches of {size}");
            // The position was written later than the entries: everything after it comes again.
            store.apply(position as u64 + 1, size, &events[position..]);
            assert_eq!(store, whole, "from {position} again, in batches of {size}");
        }
    }
}

#[test]
fn half_a_batch_that_was_written_is_completed() {
    let (a, b) = (guild(1), guild(2));
    let events = [
        created(a),
        created(b),
        GuildEvent::Joined { guild: a },
        GuildEvent::Joined { guild: b },
    ];
    let mut whole = Store::default();
    whole.apply(1, 100, &events);
    let empty = Store::default();
    let mut batch = Batch::new(&empty);
    for (seq, event) in (1..).zip(events.clone()) {
        batch.apply(at(seq), event);
    }
    let mut changes = batch.into_changes();
    changes.remove(&b);
    let mut store = Store::default();
    store.write(changes);
    store.apply(1, 100, &events);
    assert_eq!(store, whole);
}

#[test]
fn a_new_session_removes_what_it_does_not_list_and_awaits_the_rest() {
    let (a, b, c) = (guild(1), guild(2), guild(3));
    let mut store = Store::default();
    store.apply(1, 1, &[created(a), created(b)]);
    store.apply(10, 1, &[ready([a, c])]);
    assert_eq!(store.guild(b), None);
    let (known, new) = (store.entry(a), store.entry(c));
    assert_eq!(known.name.as_deref(), Some("name"), "what is known is kept");
    assert!(!known.available && !new.available);
    assert_eq!(known.stale_since_unix_ms, Some(1010));
    store.apply(11, 1, &[created(a), GuildEvent::Outage(c)]);
    assert!(store.entry(a).available);
    assert_eq!(store.entry(a).stale_since_unix_ms, None);
    let unknown = store.entry(c);
    assert!(
        unknown.stale_since_unix_ms.is_some(),
        "nobody has told its name yet"
    );
}

#[test]
fn guilds_of_the_other_sharding_are_left_alone_by_a_session() {
    // On shard 1 of 2, but 3 of 4.
    let other = GuildId::new(3 << 22).unwrap();
    let mut store = Store::default();
    store.apply(1, 1, &[created(other), created(guild(1))]);
    store.apply(5, 1, &[ready([])]);
    assert!(store.guild(other).is_some());
    assert_eq!(store.guild(guild(1)), None);
}

#[test]
fn a_gap_marks_the_shards_guilds_until_they_are_described_again() {
    let (a, b) = (guild(1), guild(2));
    let mut store = Store::default();
    let shard = ShardId::new(1, 4).unwrap();
    store.apply(1, 1, &[created(a), created(b), GuildEvent::Gap { shard }]);
    assert_eq!(store.entry(a).stale_since_unix_ms, Some(1003));
    store.apply(
        4,
        1,
        &[
            GuildEvent::Joined { guild: a },
            GuildEvent::Gap { shard },
            created(b),
        ],
    );
    assert_eq!(
        store.entry(a).stale_since_unix_ms,
        Some(1003),
        "since the first gap"
    );
    assert_eq!(store.entry(b).stale_since_unix_ms, None);
}

#[test]
fn an_outage_keeps_what_is_known() {
    let (mut store, g) = (Store::default(), guild(1));
    store.apply(1, 1, &[created(g), GuildEvent::Outage(g)]);
    let entry = store.entry(g);
    assert!(!entry.available);
    assert_eq!(
        (entry.member_count, entry.stale_since_unix_ms),
        (Some(10), None)
    );
    store.apply(3, 1, &[created(g)]);
    assert!(store.entry(g).available);
}

#[test]
fn an_event_of_an_unknown_guild_tells_that_it_must_be_asked_for() {
    let (mut store, g) = (Store::default(), guild(1));
    store.apply(1, 1, &[GuildEvent::Joined { guild: g }]);
    let entry = store.entry(g);
    assert_eq!(
        (entry.member_count, entry.stale_since_unix_ms),
        (None, Some(1001))
    );
    store.apply(2, 1, &[GuildEvent::Removed(g)]);
    assert_eq!(store.guild(g), None);
}

#[test]
fn a_stream_that_is_made_again_counts_anew() {
    let (mut store, g) = (Store::default(), guild(1));
    store.apply(100, 1, &[created(g)]);
    let mut batch = Batch::new(&store);
    let again = At {
        stream: "0-2",
        ..at(1)
    };
    batch.apply(again, GuildEvent::Joined { guild: g });
    store.write(batch.into_changes());
    assert_eq!(store.entry(g).member_count, Some(11));
}

#[test]
fn what_cannot_be_read_marks_its_guild() {
    let (mut store, g) = (Store::default(), guild(1));
    store.apply(1, 1, &[created(g), GuildEvent::Unreadable { guild: g }]);
    assert_eq!(store.entry(g).stale_since_unix_ms, Some(1002));
}
