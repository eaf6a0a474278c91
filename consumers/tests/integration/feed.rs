//! The feed: every event in order, and the markers among them.

use consumers::{Feed, FeedItem, Start};
use schemas::message::MessageId;
use schemas::{
    GapReason, ProxyEvent, ProxyGap, ProxyShard, ShardId, ShardState, Subject, Timestamp,
};

use crate::world::{World, patience};

fn gap(shard: ShardId, last_seq: u64) -> ProxyEvent {
    ProxyEvent::Gap(ProxyGap {
        shard,
        old_session_id: "old".to_owned(),
        last_seq,
        new_session_id: "new".to_owned(),
        lost: None,
        reason: GapReason::InvalidSession,
        from: Timestamp::from_unix_ms(1),
        to: Timestamp::from_unix_ms(2),
    })
}

fn change(shard: ShardId) -> ProxyEvent {
    ProxyEvent::Shard(ProxyShard {
        shard,
        state: ShardState::Ready,
        previous: ShardState::Resuming,
        reason: "RESUMED".to_owned(),
        proxy: None,
        at: Timestamp::from_unix_ms(3),
    })
}

async fn store(world: &World, shard: u32, event: &str, id: String, frame: Vec<u8>) {
    let subject = Subject::Event {
        shard,
        guild: None,
        event,
    };
    world.publish(&subject, id, frame).await.unwrap();
}

async fn store_dispatch(world: &World, shard: u32, session: &str, seq: u64) {
    let frame = format!(r#"{{"t":"TYPING_START","s":{seq},"op":0,"d":{{}}}}"#);
    let id = MessageId::dispatch(session, seq).to_string();
    store(world, shard, "TYPING_START", id, frame.into()).await;
}

async fn store_marker(world: &World, marker: &ProxyEvent, seq: u64) {
    let name = marker.kind().name();
    let id = MessageId::synthetic("old", seq, name, "u").to_string();
    store(world, marker.shard().id(), name, id, marker.frame()).await;
}

async fn next(feed: &mut Feed) -> FeedItem {
    let next = tokio::time::timeout(patience(), feed.next());
    next.await.expect("an event in time").unwrap().unwrap()
}

#[tokio::test]
async fn gaps_and_shard_changes_stand_typed_between_the_events_of_their_shard() {
    let world = World::start().await;
    let shard = ShardId::new(1, 2).unwrap();
    store_dispatch(&world, 1, "old", 41).await;
    store_marker(&world, &gap(shard, 41), 41).await;
    store_dispatch(&world, 1, "new", 1).await;
    store_marker(&world, &change(shard), 42).await;
    let mut feed = Feed::open(&world.jetstream, &world.prefix, 1, Start::Oldest)
        .await
        .unwrap();
    let first = next(&mut feed).await;
    assert_eq!((first.shard, first.message_id.as_str()), (1, "old:41"));
    assert_eq!((first.event.as_str(), first.gap()), ("TYPING_START", None));
    let second = next(&mut feed).await;
    assert_eq!(second.marker, Some(gap(shard, 41)));
    assert_eq!(second.gap().unwrap().last_seq, 41);
    assert_eq!(second.frame, gap(shard, 41).frame());
    assert_eq!(next(&mut feed).await.message_id, "new:1");
    let fourth = next(&mut feed).await;
    assert_eq!(fourth.shard_change().unwrap().state, ShardState::Ready);

    // From a place that was remembered.
    let start = Start::Sequence(second.sequence);
    let mut again = Feed::open(&world.jetstream, &world.prefix, 1, start)
        .await
        .unwrap();
    assert_eq!(next(&mut again).await.marker, Some(gap(shard, 41)));
}

#[tokio::test]
async fn a_marker_that_cannot_be_read_is_delivered_raw() {
    let world = World::start().await;
    let mut feed = Feed::open(&world.jetstream, &world.prefix, 1, Start::New)
        .await
        .unwrap();
    let id = "old:1:PROXY_GAP:u".to_owned();
    store(&world, 0, "PROXY_GAP", id, b"{}".to_vec()).await;
    let item = next(&mut feed).await;
    assert_eq!((item.event.as_str(), &item.marker), ("PROXY_GAP", &None));
    assert_eq!(item.frame, b"{}".as_slice());
}

#[tokio::test]
async fn a_feed_without_its_stream_says_so() {
    let world = World::without_stream().await;
    let missing = Feed::open(&world.jetstream, &world.prefix, 1, Start::New).await;
    let text = missing.err().unwrap().to_string();
    assert!(text.contains("DISCORD_EVENTS"), "{text}");
}
