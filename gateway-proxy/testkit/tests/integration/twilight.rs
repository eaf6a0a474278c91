//! twilight-gateway, unchanged: connect, resume, op 7. It chooses zstd when it is built; the same
//! with zlib is `foreign/twilight-zlib`.

use std::time::Duration;

use testkit::simulator::{
    Action, Config, Fault, Load, Mix, SessionState, Simulator, Target, Transport,
};
use tokio::time::timeout;
use twilight_gateway::{
    ConfigBuilder, Event, EventTypeFlags, Intents, Shard, ShardId, StreamExt as _,
};

use crate::client::PATIENCE;

fn shard(sim: &Simulator, id: u32, count: u32) -> Shard {
    let config = ConfigBuilder::new(sim.token().to_owned(), Intents::all())
        .proxy_url(sim.gateway_url().to_owned())
        .build();
    Shard::with_config(ShardId::new(id, count), config)
}

/// The next event; everything must decode.
async fn next(shard: &mut Shard) -> Event {
    let next = timeout(PATIENCE, shard.next_event(EventTypeFlags::all())).await;
    next.expect("an event in time")
        .expect("the stream goes on")
        .expect("it decodes")
}

async fn until(shard: &mut Shard, what: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut seen = Vec::new();
    loop {
        let event = next(shard).await;
        let found = what(&event);
        seen.push(event);
        if found {
            return seen;
        }
    }
}

#[tokio::test]
async fn it_connects_loads_its_guilds_and_decodes_every_event_it_knows() {
    for mix in [Mix::PresencesOff, Mix::PresencesOn] {
        let load = Load::flood(Some(3000)).mix(mix);
        let sim = Simulator::start(Config {
            guilds: 8,
            load,
            ..Config::default()
        })
        .await
        .unwrap();
        let mut shard = shard(&sim, 0, 1);
        let mut guilds = 0;
        let mut events = 0;
        while events < 2000 {
            match next(&mut shard).await {
                Event::GuildCreate(_) => guilds += 1,
                _ => events += 1,
            }
        }
        assert_eq!(guilds, 8);
    }
}

#[tokio::test]
async fn it_resumes_after_op_7_and_after_a_dropped_connection() {
    let sim = Simulator::start(Config {
        guilds: 3,
        ..Config::default()
    })
    .await
    .unwrap();
    let mut shard = shard(&sim, 0, 1);
    until(&mut shard, |event| matches!(event, Event::GuildCreate(_))).await;
    for fault in [
        Fault::Reconnect,
        Fault::DropTcp,
        Fault::Close { code: 4000 },
    ] {
        assert_eq!(sim.inject(Target::All, fault.clone()), 1);
        until(&mut shard, |event| matches!(event, Event::Resumed)).await;
        sim.apply(Action::Burst {
            event: "TYPING_START".to_owned(),
            per_guild: 1,
        });
        until(&mut shard, |event| matches!(event, Event::TypingStart(_))).await;
        assert_eq!(sim.stats().identifies, 1, "{fault:?}");
    }
    assert_eq!(sim.progress()[0].transport, Transport::ZstdStream);
    let ledger = sim.ledger();
    assert_eq!(ledger.violations, []);
    assert_eq!(ledger.sessions.len(), 1);
    assert_eq!(ledger.sessions[0].state, SessionState::Connected);
}

#[tokio::test]
async fn it_begins_a_new_session_after_op_9_false() {
    let config = Config {
        identify_window: Duration::from_millis(50),
        ..Config::default()
    };
    let sim = Simulator::start(config).await.unwrap();
    let mut shard = shard(&sim, 0, 1);
    until(&mut shard, |event| matches!(event, Event::Ready(_))).await;
    sim.inject(Target::All, Fault::InvalidSession { resumable: false });
    until(&mut shard, |event| matches!(event, Event::Ready(_))).await;
    assert_eq!(sim.ledger().sessions.len(), 2);
}
