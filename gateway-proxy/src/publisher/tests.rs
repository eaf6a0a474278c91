//! The publisher against a real nats-server: everything once, in order, whatever happens to NATS.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt;
use schemas::message::NATS_MSG_ID;
use schemas::{EventName, GuildId, Prefix, ProxyId, ShardId, Timestamp};
use testkit::nats::{Options, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::NatsSettings;
use crate::fence::Fence;
use crate::ownership::Ownership;
use crate::status::ProcessStatus;

/// Patience for anything NATS must get done on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the stream of these tests remembers ids: the outages in them last longer.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(2);

struct Rig {
    server: Server,
    publisher: Arc<Publisher>,
    lanes: Vec<Arc<Lane>>,
    metrics: Metrics,
    stop: CancellationToken,
    fence: Fence,
    sent: Vec<u64>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Rig {
    async fn start(options: Options) -> Self {
        let server = testkit::nats::start(options).await.unwrap();
        let url = server.url();
        Self::start_behind(server, &url).await
    }

    /// With a publisher that reaches the server by another url.
    async fn start_behind(server: Server, url: &str) -> Self {
        create_stream(&server).await;
        let fence = Fence::endless();
        let process = ProcessStatus::new(ProxyId::try_from("test".to_owned()).unwrap());
        let metrics = Metrics::new(process);
        let publisher = Publisher::new(64 << 20, metrics.clone());
        let stop = CancellationToken::new();
        let settings = NatsSettings::local(url).unwrap();
        let jetstream = testkit::nats::jetstream(&server.url()).await.unwrap();
        let stream = jetstream
            .get_stream_no_info("DISCORD_EVENTS")
            .await
            .unwrap();
        let bucket = jetstream::kv::Config {
            bucket: "discord_fleet".to_owned(),
            ..Default::default()
        };
        let bucket = jetstream.create_key_value(bucket).await.unwrap();
        let reconcile = Reconcile {
            stream,
            after: DUPLICATE_WINDOW / 2,
            ownership: Ownership::new(bucket, fence.clone()),
            replicated: false,
        };
        let name = "test".to_owned();
        tokio::spawn(run(
            Arc::clone(&publisher),
            settings,
            name,
            reconcile,
            stop.clone(),
        ));
        let lanes = (0..4)
            .map(|id| Lane::new(&Prefix::default(), ShardId::new(id, 4).unwrap(), (0, 0)))
            .collect::<Vec<_>>();
        let sent = vec![0; lanes.len()];
        Self {
            server,
            publisher,
            lanes,
            metrics,
            stop,
            fence,
            sent,
        }
    }

    /// Hands over the next event of a shard.
    fn send(&mut self, shard: usize, payload: &[u8]) {
        self.sent[shard] += 1;
        let seq = self.sent[shard];
        let session = format!("session{shard}");
        let tag = SessionTag {
            id: &session,
            generation: 0,
        };
        let message = Outbound::dispatch(
            &self.lanes[shard],
            tag,
            seq,
            GuildId::new(1 + seq % 100),
            &EventName::parse("MESSAGE_CREATE"),
            payload,
            Instant::now(),
        );
        self.lanes[shard].set_published((0, seq));
        self.publisher.hand_over(message);
    }

    /// Waits until the publisher has given a connection up.
    async fn trouble(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.publisher.trouble().is_none() {
            assert!(Instant::now() < deadline, "nobody noticed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Hands over a change of state of a shard.
    fn send_marker(&mut self, shard: usize) {
        let event = schemas::ProxyEvent::Shard(schemas::ProxyShard {
            shard: self.lanes[shard].shard(),
            state: schemas::ShardState::Disconnected,
            previous: schemas::ShardState::Ready,
            reason: String::new(),
            proxy: None,
            at: Timestamp::from_unix_ms(0),
        });
        let session = format!("session{shard}");
        let checkpoint = Some((session.as_str(), self.sent[shard]));
        let lane = &self.lanes[shard];
        let marker = Outbound::synthetic(lane, checkpoint, "x", &event, Instant::now());
        self.publisher.hand_over(marker);
    }

    async fn flood(&mut self, count: usize) {
        let payload = [b'x'; 700];
        for index in 0..count {
            self.send(index % 4, &payload);
            if index % 50 == 0 {
                drop(self.publisher.room().await);
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits until everything is stored, then reads it all and compares.
    async fn check(&self) {
        assert!(
            self.publisher.drained(PATIENCE).await,
            "{:?}",
            self.publisher.trouble()
        );
        let stored = read_stream(&self.server).await;
        for (shard, sent) in self.sent.iter().enumerate() {
            let ids: Vec<_> = stored
                .iter()
                .filter(|(subject, _)| subject.starts_with(&format!("discord.shard.{shard}.")))
                .filter(|(subject, _)| !subject.contains("PROXY_SHARD"))
                .map(|(_, id)| id.clone())
                .collect();
            let expect: Vec<_> = (1..=*sent)
                .map(|seq| format!("session{shard}:{seq}"))
                .collect();
            assert_eq!(ids, expect, "shard {shard}");
            assert_eq!(self.lanes[shard].checkpoint(), (0, *sent));
        }
        assert_eq!(self.publisher.kept_bytes(), 0);
    }
}

async fn create_stream(server: &Server) {
    let jetstream = testkit::nats::jetstream(&server.url()).await.unwrap();
    let config = jetstream::stream::Config {
        name: "DISCORD_EVENTS".to_owned(),
        subjects: vec!["discord.shard.*.events.*.*".to_owned()],
        allow_batch_publish: true,
        allow_direct: true,
        duplicate_window: DUPLICATE_WINDOW,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
}

/// Subject and message id of every message, in the stream's order.
async fn read_stream(server: &Server) -> Vec<(String, String)> {
    let jetstream = testkit::nats::jetstream(&server.url()).await.unwrap();
    let stream = jetstream.get_stream("DISCORD_EVENTS").await.unwrap();
    let count = stream.cached_info().state.messages;
    if count == 0 {
        return Vec::new();
    }
    let consumer = stream
        .create_consumer(OrderedConfig::default())
        .await
        .unwrap();
    let messages = consumer.messages().await.unwrap().take(count as usize);
    messages
        .map(|message| {
            let message = message.unwrap();
            let headers = message.headers.as_ref().unwrap();
            (
                message.subject.to_string(),
                headers.get(NATS_MSG_ID).unwrap().to_string(),
            )
        })
        .collect()
        .await
}

#[tokio::test]
async fn everything_is_stored_once_and_in_order() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(20_000).await;
    rig.check().await;
    assert_eq!(rig.metrics.publish_restarts.get(), 0);
}

#[tokio::test]
async fn a_single_event_is_acknowledged_at_once() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(1).await;
    rig.check().await;
    for _ in 0..50 {
        let started = Instant::now();
        rig.send(0, b"{}");
        assert!(rig.publisher.drained(PATIENCE).await);
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "waited for a flow acknowledgement"
        );
    }
    rig.check().await;
}

#[tokio::test]
async fn kills_of_nats_during_a_flood_lose_double_and_invert_nothing() {
    let mut rig = Rig::start(Options::default()).await;
    for _ in 0..4 {
        rig.flood(3_000).await;
        rig.server.kill9().unwrap();
        rig.flood(500).await;
        rig.server.start_again().unwrap();
    }
    rig.check().await;
}

#[tokio::test]
async fn a_frame_above_max_payload_is_replaced_by_a_marker_in_its_place() {
    let max_payload = 64 * 1024;
    let mut rig = Rig::start(Options {
        max_payload,
        ..Options::default()
    })
    .await;
    rig.flood(8).await;
    rig.send(2, &vec![b'y'; max_payload as usize]);
    rig.flood(8).await;
    assert!(rig.publisher.drained(PATIENCE).await);
    let stored = read_stream(&rig.server).await;
    assert_eq!(stored.len(), 17);
    assert_eq!(stored[8].0, "discord.shard.2.events.none.PROXY_GAP");
    assert_eq!(stored[8].1, "session2:3:PROXY_GAP:oversized");
    assert_eq!(rig.lanes[2].checkpoint(), (0, 5));
}

#[tokio::test]
async fn a_frozen_nats_is_given_up_and_taken_up_again() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(1_000).await;
    rig.server.pause().unwrap();
    rig.flood(1_000).await;
    rig.trouble().await;
    rig.server.resume().unwrap();
    rig.check().await;
}

#[tokio::test]
async fn an_outage_longer_than_the_duplicate_window_stores_nothing_twice() {
    let server = testkit::nats::start(Options::default()).await.unwrap();
    let deaf = Arc::new(AtomicBool::new(false));
    let url = one_way_proxy(server.port(), Arc::clone(&deaf)).await;
    let mut rig = Rig::start_behind(server, &url).await;
    rig.flood(400).await;
    rig.check().await;
    // The server stores what comes, but its answers do not reach us until the connection is given up,
    // which is longer after than the stream remembers ids.
    deaf.store(true, Ordering::Relaxed);
    rig.flood(400).await;
    // Ends with a marker, as when a session ends: it must not hide the events before it.
    rig.send_marker(3);
    rig.trouble().await;
    deaf.store(false, Ordering::Relaxed);
    rig.check().await;
    let stored = read_stream(&rig.server).await;
    assert_eq!(stored.len(), 801, "the marker is stored once too");
}

/// What a successor does: stores events of a shard under the ids Discord's replay gives them.
fn successor_stores(url: &str, shard: u32, seqs: std::ops::RangeInclusive<u64>) {
    let url = url.to_owned();
    let stores = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let jetstream = testkit::nats::jetstream(&url).await.unwrap();
            for seq in seqs {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert(NATS_MSG_ID, format!("session{shard}:{seq}"));
                let subject = format!(
                    "discord.shard.{shard}.events.{}.MESSAGE_CREATE",
                    1 + seq % 100
                );
                let sent = jetstream
                    .publish_with_headers(subject, headers, "{}".into())
                    .await;
                sent.unwrap().await.unwrap();
            }
        });
    });
    stores.join().unwrap();
}

/// What a successor does: names itself in the shard's record.
fn successor_takes(url: &str, shard: ShardId) {
    let url = url.to_owned();
    let takes = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let jetstream = testkit::nats::jetstream(&url).await.unwrap();
            let bucket = jetstream.get_key_value("discord_fleet").await.unwrap();
            let mut record = schemas::ShardRecord::new(shard);
            record.owner_instance = Some("successor".to_owned());
            let key = schemas::FleetKey::Shard(shard).to_string();
            let value = serde_json::to_vec(&record).unwrap();
            bucket.put(&key, value.into()).await.unwrap();
        });
    });
    takes.join().unwrap();
}

#[tokio::test]
async fn a_process_that_stood_still_publishes_nothing_its_successor_stored() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(40).await;
    rig.check().await;
    // Handed over, not written yet; then this thread, and the publisher with it, stands still.
    rig.send(0, b"{}");
    rig.send(1, b"{}");
    successor_stores(&rig.server.url(), 0, 11..=11);
    std::thread::sleep(Duration::from_secs(12));
    rig.check().await;
    assert!(
        rig.publisher.trouble().is_none(),
        "{:?}",
        rig.publisher.trouble()
    );
}

#[tokio::test]
async fn a_process_that_stood_still_leaves_a_taken_shard_to_its_successor() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(40).await;
    rig.check().await;
    rig.send(0, b"{}");
    rig.send(1, b"{}");
    successor_takes(&rig.server.url(), ShardId::new(0, 4).unwrap());
    std::thread::sleep(Duration::from_secs(12));
    assert!(
        rig.publisher.drained(PATIENCE).await,
        "{:?}",
        rig.publisher.trouble()
    );
    let stored = read_stream(&rig.server).await;
    assert!(
        stored.iter().all(|(_, id)| id != "session0:11"),
        "{stored:?}"
    );
    assert!(
        stored.iter().any(|(_, id)| id == "session1:11"),
        "{stored:?}"
    );
}

#[tokio::test]
async fn what_is_queued_when_the_lease_ends_is_left_to_others() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(40).await;
    rig.check().await;
    rig.fence.lower();
    rig.flood(40).await;
    assert!(rig.publisher.drained(PATIENCE).await, "nothing is kept");
    assert!(rig.lanes.iter().all(|lane| lane.checkpoint() == (0, 10)));
    for lane in &rig.lanes {
        lane.close();
    }
    // Its shards begin anew with the next lease; words of the old ones are still not heard.
    rig.send(0, b"{}");
    rig.fence.raise(Instant::now() + PATIENCE);
    rig.lanes[1] = Lane::new(&Prefix::default(), ShardId::new(1, 4).unwrap(), (0, 10));
    rig.sent[1] = 10;
    rig.send(0, b"{}");
    rig.send(1, b"{}");
    rig.lanes[1].settled().await;
    assert!(rig.publisher.drained(PATIENCE).await);
    let stored = read_stream(&rig.server).await;
    let ids: Vec<_> = stored[40..].iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids, ["session1:11"]);
}

#[tokio::test]
async fn sweeping_drops_what_a_shard_that_was_let_go_of_has_on_its_way() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(4_000).await;
    rig.lanes[2].close();
    rig.publisher.sweep();
    rig.lanes[2].settled().await;
    let (_, stored_of_it) = rig.lanes[2].checkpoint();
    rig.lanes[0].settled().await;
    assert!(rig.publisher.drained(PATIENCE).await);
    let stored = read_stream(&rig.server).await;
    for shard in [0, 1, 3] {
        let own = format!("session{shard}:");
        let count = stored.iter().filter(|(_, id)| id.starts_with(&own)).count();
        assert_eq!(count, 1_000, "shard {shard} is not disturbed");
    }
    let ids: Vec<_> = stored
        .iter()
        .filter(|(_, id)| id.starts_with("session2:"))
        .collect();
    assert!(ids.len() as u64 >= stored_of_it);
    let expect = (1..=ids.len()).map(|seq| format!("session2:{seq}"));
    assert!(
        ids.iter().map(|(_, id)| id.clone()).eq(expect),
        "a prefix, in order"
    );
}

/// Forwards everything to the port, and nothing back while `deaf`.
async fn one_way_proxy(port: u16, deaf: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let deaf = Arc::clone(&deaf);
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    let lost = deaf.load(Ordering::Relaxed);
                    if !lost && to_client.write_all(&buffer[..count]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_stream_deleted_under_us_is_waited_for() {
    let mut rig = Rig::start(Options::default()).await;
    rig.flood(100).await;
    rig.check().await;
    let jetstream = testkit::nats::jetstream(&rig.server.url()).await.unwrap();
    jetstream.delete_stream("DISCORD_EVENTS").await.unwrap();
    rig.send(0, b"{}");
    rig.trouble().await;
    assert!(
        rig.publisher.trouble().unwrap().contains("no stream"),
        "{:?}",
        rig.publisher.trouble()
    );
    create_stream(&rig.server).await;
    assert!(rig.publisher.drained(PATIENCE).await);
    let stored = read_stream(&rig.server).await;
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].1, "session0:26");
}

#[test]
fn a_marker_counts_as_the_frame_it_stands_for() {
    let lane = Lane::new(&Prefix::default(), ShardId::new(0, 1).unwrap(), (0, 0));
    let tag = SessionTag {
        id: "s",
        generation: 2,
    };
    let name = EventName::parse("GUILD_CREATE");
    let frame = Outbound::dispatch(&lane, tag, 5, None, &name, b"{}", Instant::now());
    lane.set_published((2, 5));
    frame
        .oversized_marker(Timestamp::from_unix_ms(1))
        .unwrap()
        .acknowledge();
    assert_eq!(lane.checkpoint(), (2, 5));
}
