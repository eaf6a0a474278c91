//! Build → parse → build: every name of the contract means the same in both directions, whatever
//! Discord or an operator puts into it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use schemas::event::guild_key;
use schemas::message::{is_session_id, push_dispatch_id};
use schemas::subject::{EVENT_TOKEN_MAX, event_root, push_event_subject};
use schemas::{
    EventKind, EventName, FleetKey, GuildId, Intents, MessageId, Prefix, ShardId, Subject,
    Timestamp,
};

fn prefix() -> impl Strategy<Value = Prefix> {
    "[A-Za-z0-9_-]{1,32}".prop_map(|text| text.parse().unwrap())
}

fn guild() -> impl Strategy<Value = GuildId> {
    prop_oneof![1..=u64::MAX, 1_u64..200].prop_map(|id| GuildId::new(id).unwrap())
}

fn shard() -> impl Strategy<Value = ShardId> {
    (1..=u32::MAX)
        .prop_flat_map(|count| (0..count, Just(count)))
        .prop_map(|(id, count)| ShardId::new(id, count).unwrap())
}

/// Names as Discord has them, and names it should never send.
fn event() -> impl Strategy<Value = String> {
    prop_oneof![
        "[A-Z_]{1,40}",
        any::<String>(),
        r"[.*> \r\n\tA-Z]{0,12}",
        Just(String::new()),
        "[a-zé]{250,300}",
        prop::sample::select(EventKind::ALL.to_vec()).prop_map(|kind| kind.name().to_owned()),
    ]
}

/// The words a caller fills into a subject, so that one strategy can own them.
#[derive(Debug)]
struct Words {
    shard: u32,
    guild: GuildId,
    event: String,
    word: String,
    other: String,
    topic: String,
}

fn words() -> impl Strategy<Value = Words> {
    let parts = (
        any::<u32>(),
        guild(),
        "[A-Za-z0-9_-]{1,40}",
        r"[^.*>\s\pC]{1,20}",
        r"[^.*>\s\pC]{1,20}",
    );
    (parts, r"[a-z0-9_-]{1,8}(\.[a-z0-9_-]{1,8}){0,3}").prop_map(
        |((shard, guild, event, word, other), topic)| Words {
            shard,
            guild,
            event,
            word,
            other,
            topic,
        },
    )
}

fn subjects(words: &Words) -> [Subject<'_>; 12] {
    let Words {
        shard,
        guild,
        event,
        word,
        other,
        topic,
    } = words;
    let (shard, guild) = (*shard, *guild);
    [
        Subject::Event {
            shard,
            guild: Some(guild),
            event,
        },
        Subject::Event {
            shard,
            guild: None,
            event,
        },
        Subject::LiveFeed { shard },
        Subject::ShardCommands { shard },
        Subject::GuildCommands { guild },
        Subject::ShardMessages { shard },
        Subject::Query {
            what: word,
            id: None,
        },
        Subject::Query {
            what: word,
            id: Some(other),
        },
        Subject::Broadcast { topic },
        Subject::Broadcast { topic: word },
        Subject::Fleet { verb: word },
        Subject::Dead { consumer: word },
    ]
}

/// What a NATS server accepts to publish to (its `IsValidLiteralSubject`, and no line ends).
fn assert_valid_nats_subject(subject: &str) {
    assert!(subject.len() < 1024, "{subject:?} is long");
    for token in subject.split('.') {
        assert!(!token.is_empty(), "{subject:?} has an empty token");
        let bad = |c: char| c == '*' || c == '>' || c.is_whitespace() || c.is_control();
        assert!(!token.contains(bad), "{subject:?}");
    }
}

proptest! {
    #[test]
    fn every_subject_round_trips(prefix in prefix(), words in words()) {
        for subject in subjects(&words) {
            let text = subject.with_prefix(&prefix);
            assert_valid_nats_subject(&text);
            let parsed = Subject::parse(&prefix, &text);
            prop_assert_eq!(parsed.as_ref(), Ok(&subject));
            prop_assert_eq!(subject.checked(&prefix), Ok(text));
        }
    }

    #[test]
    fn what_parses_is_spelled_the_only_way(prefix in prefix(), rest in r"[a-z0-9.*>+ -]{0,24}") {
        let roots = ["", "shard.", "shard.1.events.", "guild.", "query.", "broadcast.", "dead."];
        for root in roots {
            let text = format!("{prefix}.{root}{rest}");
            if let Ok(subject) = Subject::parse(&prefix, &text) {
                prop_assert_eq!(subject.with_prefix(&prefix), text);
            }
        }
    }

    #[test]
    fn parsing_any_text_never_panics(text in any::<String>()) {
        let prefix = Prefix::default();
        let prefixed = format!("discord.{text}");
        let _: [bool; 5] = [
            Subject::parse(&prefix, &text).is_ok(),
            Subject::parse(&prefix, &prefixed).is_ok(),
            MessageId::parse(&text).is_ok(),
            text.parse::<FleetKey>().is_ok(),
            text.parse::<Timestamp>().is_ok(),
        ];
    }

    #[test]
    fn the_hot_path_spells_what_the_subject_type_spells(
        prefix in prefix(),
        shard in any::<u32>(),
        guild in prop::option::of(guild()),
        event in event(),
    ) {
        let mut pushed = b"kept".to_vec();
        push_event_subject(&mut pushed, &event_root(&prefix, shard), guild, &event);
        let pushed = String::from_utf8(pushed).unwrap();
        let subject = Subject::Event { shard, guild, event: &event }.with_prefix(&prefix);
        prop_assert_eq!(pushed.strip_prefix("kept"), Some(subject.as_str()));
        assert_valid_nats_subject(&subject);

        let Ok(Subject::Event { shard: s, guild: g, event: token }) =
            Subject::parse(&prefix, &subject)
        else {
            panic!("{subject} is no event's subject");
        };
        prop_assert_eq!((s, g), (shard, guild));
        prop_assert_eq!(token.len(), event.chars().count().clamp(1, EVENT_TOKEN_MAX));
        for (from, to) in event.chars().zip(token.chars()) {
            let plain = from.is_ascii_alphanumeric() || from == '_' || from == '-';
            prop_assert_eq!(to, if plain { from } else { '_' });
        }
    }

    #[test]
    fn every_message_id_round_trips(
        session in "[!-9;-~]{1,40}",
        seq in any::<u64>(),
        name in "[A-Z_]{1,20}",
        unique in "[!-~]{1,30}",
    ) {
        prop_assert!(is_session_id(&session));
        let dispatch = MessageId::dispatch(&session, seq);
        for id in [dispatch.clone(), MessageId::synthetic(&session, seq, &name, &unique)] {
            let text = id.to_string();
            prop_assert_eq!(MessageId::parse(&text), Ok(id));
        }
        let mut pushed = Vec::new();
        push_dispatch_id(&mut pushed, &session, seq);
        prop_assert_eq!(pushed, dispatch.to_string().into_bytes());
    }

    #[test]
    fn an_id_that_parses_is_spelled_the_only_way(text in "[a-z0]{0,3}:[0-9+]{0,3}(:[A-Z:]{0,5})?") {
        if let Ok(id) = MessageId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn every_fleet_key_round_trips(shard in shard(), proxy in "[A-Za-z0-9_-]{1,64}") {
        let member = FleetKey::Member(proxy.parse().unwrap());
        let keys =
            [member, FleetKey::Leader, FleetKey::Plan, FleetKey::Shard(shard), FleetKey::Identify];
        for key in keys {
            let text = key.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
            prop_assert_eq!(text.parse(), Ok(key));
        }
    }

    #[test]
    fn a_fleet_key_that_parses_is_spelled_the_only_way(
        text in r"(member|shard|leader|plan)(\.[0-9a+]{0,3}){0,2}",
    ) {
        if let Ok(key) = text.parse::<FleetKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn guild_digits_follow_the_number(id in any::<u64>(), zeros in 0_usize..4, tail in "[0-9a]?") {
        let digits = format!("{}{id}{tail}", "0".repeat(zeros));
        let expect = digits.parse::<u64>().ok().and_then(GuildId::new);
        prop_assert_eq!(GuildId::from_digits(digits.as_bytes()), expect);
    }

    #[test]
    fn names_outside_the_table_stay_what_they_are(name in any::<String>()) {
        let parsed = EventName::parse(&name);
        prop_assert_eq!(parsed.as_str(), &name);
        let known = EventKind::ALL.into_iter().find(|kind| kind.name() == name);
        prop_assert_eq!(parsed.kind(), known);
        prop_assert!(["id", "guild_id"].contains(&guild_key(&name)));
    }

    #[test]
    fn a_known_name_with_one_letter_changed_is_another(
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        at in any::<prop::sample::Index>(),
        letter in "[A-Z_]",
    ) {
        let mut name = kind.name().to_owned();
        let at = at.index(name.len());
        name.replace_range(at..=at, &letter);
        let found = EventKind::from_name(&name);
        prop_assert_eq!(found, EventKind::ALL.into_iter().find(|kind| kind.name() == name));
    }

    #[test]
    fn intents_round_trip(bits in any::<u64>()) {
        let intents = Intents::from_bits(bits);
        prop_assert_eq!(intents.to_string().parse(), Ok(intents));
        prop_assert_eq!(bits.to_string().parse(), Ok(intents));
    }

    #[test]
    fn times_round_trip(unix_ms in 0..=Timestamp::MAX.unix_ms()) {
        let at = Timestamp::from_unix_ms(unix_ms);
        prop_assert_eq!(at.to_string().parse(), Ok(at));
    }
}
