//! Against a real server: who writes in place of what.

use std::collections::BTreeSet;

use schemas::{GuildEntry, ShardId};
use testkit::nats::Server;
use tokio::sync::watch;

use super::super::batch::{At, Batch, Known as _};
use super::super::event::GuildEvent;
use super::*;
use crate::nats::LinkState;

async fn store() -> (Server, Store) {
    let server = testkit::nats::start(testkit::nats::Options::default())
        .await
        .unwrap();
    let jetstream = testkit::nats::jetstream(&server.url()).await.unwrap();
    let (_, state) = watch::channel(LinkState::default());
    let link = Link {
        client: async_nats::connect(server.url()).await.unwrap(),
        jetstream,
        state,
    };
    let store = Store::open(&link, &Prefix::default(), 1).await.unwrap();
    (server, store)
}

fn guild() -> GuildId {
    GuildId::new(1 << 22).unwrap()
}

fn named(name: &str, members: u64) -> GuildEntry {
    GuildEntry {
        name: Some(name.to_owned()),
        member_count: Some(members),
        stream: "0-1".to_owned(),
        seq: 1,
        ..GuildEntry::stub(guild().into(), 1)
    }
}

fn batch(view: &View, event: GuildEvent) -> Changes {
    let mut batch = Batch::new(view);
    let at = At {
        shard: 1,
        stream: "0-1",
        seq: 2,
        unix_ms: 1,
    };
    batch.apply(at, event);
    batch.into_changes()
}

async fn write(store: &Store, view: &View, entry: Option<GuildEntry>) -> Result<(), WriteError> {
    let revision = view.revised(guild()).revision;
    let change = Revised { entry, revision };
    store.write_guild(view, guild(), change).await
}

/// What others see in the bucket.
async fn stored(store: &Store) -> Option<GuildEntry> {
    let key = DirectoryKey::Guild(guild()).to_string();
    let entry = store.bucket.entry(key).await.unwrap()?;
    let put = entry.operation == Operation::Put;
    put.then(|| serde_json::from_slice(&entry.value).unwrap())
}

#[tokio::test]
async fn a_refresh_between_reading_a_guild_and_writing_it_is_not_overwritten() {
    let (_server, store) = store().await;
    let view = View::new();
    write(&store, &view, Some(named("old", 10))).await.unwrap();
    let joined = || GuildEvent::Joined { guild: guild() };
    let changes = batch(&view, joined());
    // Discord's answer comes in, while the batch is on its way.
    write(&store, &view, Some(named("new", 20))).await.unwrap();
    let written = store.write_guilds(&view, changes).await;
    assert!(matches!(written, Err(WriteError::Conflict { .. })));
    assert_eq!(stored(&store).await, Some(named("new", 20)));
    // Read again, the event comes on top.
    let again = batch(&view, joined());
    store.write_guilds(&view, again).await.unwrap();
    let entry = stored(&store).await.unwrap();
    assert_eq!(
        (entry.name.as_deref(), entry.member_count, entry.seq),
        (Some("new"), Some(21), 2)
    );
    assert_eq!(view.guild(guild()), Some(entry));
}

#[tokio::test]
async fn a_guild_that_is_removed_before_anybody_knew_it_and_described_meanwhile_is_looked_at_again()
{
    let (_server, store) = store().await;
    let view = View::new();
    let mut batch = Batch::new(&view);
    let at = |seq| At {
        shard: 1,
        stream: "0-1",
        seq,
        unix_ms: 1,
    };
    batch.apply(at(2), GuildEvent::Outage(guild()));
    batch.apply(at(3), GuildEvent::Removed(guild()));
    let changes = batch.into_changes();
    write(&store, &view, Some(named("listed", 5)))
        .await
        .unwrap();
    let written = store.write_guilds(&view, changes).await;
    assert!(matches!(written, Err(WriteError::Conflict { .. })));
    assert_eq!(stored(&store).await, Some(named("listed", 5)));
}

#[tokio::test]
async fn a_guild_comes_again_in_place_of_the_marker_of_its_removal() {
    let (_server, store) = store().await;
    let view = View::new();
    write(&store, &view, Some(named("first", 5))).await.unwrap();
    let ready = GuildEvent::Ready {
        shard: ShardId::new(1, 2).ok(),
        guilds: BTreeSet::new(),
    };
    let gone = batch(&view, ready);
    store.write_guilds(&view, gone).await.unwrap();
    assert_eq!((stored(&store).await, view.guild(guild())), (None, None));
    // An instance that never heard of it expects nothing there.
    let other = View::new();
    write(&store, &other, Some(named("again", 6)))
        .await
        .unwrap();
    assert_eq!(stored(&store).await, Some(named("again", 6)));
}
