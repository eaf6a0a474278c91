//! One test's surroundings: a real nats-server with the event stream, a fake Discord, and the means
//! to publish interactions as a proxy would.

pub(crate) mod room;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::stream::{Republish, StorageType};
use async_nats::jetstream::{self, kv, stream};
use consumers::{Config, Fatal, Options, Router, Running, Worker};
use schemas::message::{MessageId, NATS_MSG_ID};
use schemas::{FleetKey, GuildId, Prefix, ShardRecord, Subject};
use serde_json::{Value, json};
use testkit::nats::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::fake_discord::{FakeDiscord, TOKEN};

const SLASH: &str = include_str!("../fixtures/INTERACTION_CREATE.json");
const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;

/// By what limits of time are multiplied on slow machines: `TEST_PATIENCE`.
pub(crate) fn slowness() -> u32 {
    let factor = std::env::var("TEST_PATIENCE").ok();
    factor.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Time a condition may take.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(20) * slowness()
}

/// Longest time until the shards of a dead worker are with others.
pub(crate) fn hand_over_max() -> Duration {
    Duration::from_secs(2) * slowness()
}

/// Waits until the condition holds.
pub(crate) async fn until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(1, what, condition).await
}

/// The same with so many times the patience.
pub(crate) async fn until_within<T>(
    times: u32,
    what: &str,
    condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let held = held_within(times, condition).await;
    held.unwrap_or_else(|| panic!("timed out waiting for: {what}"))
}

/// The same for who has more to say when that takes too long, which is `None`.
pub(crate) async fn held_within<T>(
    times: u32,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Option<T> {
    // What takes longer is looked at less often: looking costs the machine something too.
    let pause = Duration::from_millis(10) * times;
    let deadline = Instant::now() + patience() * times;
    loop {
        let held = condition().await;
        if held.is_some() || Instant::now() >= deadline {
            return held;
        }
        tokio::time::sleep(pause).await;
    }
}

/// What a busy machine takes away from a test: by how much looks at NATS, which answers in less than
/// a millisecond, are late. Limits of time are for programs that run.
pub(crate) struct Stalls {
    lost_us: Arc<AtomicU64>,
    worst_us: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Stalls {
    pub(crate) async fn watch(nats: &str) -> Self {
        const PAUSE: Duration = Duration::from_millis(20);
        /// More than a machine with time to spare needs.
        const LATE: Duration = Duration::from_millis(60);
        let client = async_nats::connect(nats).await.unwrap();
        let lost_us = Arc::new(AtomicU64::new(0));
        let worst_us = Arc::new(AtomicU64::new(0));
        let (noted, worst) = (Arc::clone(&lost_us), Arc::clone(&worst_us));
        let task = tokio::spawn(async move {
            loop {
                let began = Instant::now();
                tokio::time::sleep(PAUSE).await;
                client.request("$JS.API.INFO", "".into()).await.ok();
                let took = began.elapsed();
                if took > LATE {
                    let lost = (took - PAUSE).as_micros() as u64;
                    noted.fetch_add(lost, Ordering::Relaxed);
                    worst.fetch_max(lost, Ordering::Relaxed);
                }
            }
        });
        Self {
            lost_us,
            worst_us,
            task,
        }
    }

    /// Time lost up to now.
    pub(crate) fn lost(&self) -> Duration {
        Duration::from_micros(self.lost_us.load(Ordering::Relaxed))
    }

    /// The longest time lost at once.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Ordering::Relaxed))
    }

    /// Fails when something took longer than this since a moment, but for the time lost since.
    pub(crate) fn assert_within(&self, limit: Duration, since: Instant, lost_before: Duration) {
        let (took, lost) = (since.elapsed(), self.lost() - lost_before);
        assert!(
            took <= limit + lost,
            "{took:?}, of which {lost:?} were lost"
        );
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) struct World {
    pub(crate) nats: Server,
    pub(crate) discord: FakeDiscord,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) prefix: Prefix,
    sequence: AtomicU64,
}

impl World {
    /// With the event stream.
    pub(crate) async fn start() -> Self {
        let world = Self::without_stream().await;
        world.create_stream(None).await;
        world
    }

    pub(crate) async fn without_stream() -> Self {
        let nats = testkit::nats::start(testkit::nats::Options::default())
            .await
            .unwrap();
        let jetstream = testkit::nats::jetstream(&nats.url()).await.unwrap();
        Self {
            discord: FakeDiscord::start().await,
            jetstream,
            nats,
            prefix: Prefix::default(),
            sequence: AtomicU64::new(0),
        }
    }

    /// The stream as a proxy makes it; `of` is one of several, as (index, count).
    pub(crate) async fn create_stream(&self, of: Option<(u32, u32)>) {
        self.create_stream_with(of, 1).await;
    }

    pub(crate) async fn create_stream_with(&self, of: Option<(u32, u32)>, replicas: usize) {
        let subjects = match of {
            None => vec![self.prefix.all_events()],
            Some((index, count)) => {
                let shards = (0..8).filter(|shard| shard % count == index);
                shards
                    .map(|shard| self.prefix.shard_events(shard))
                    .collect()
            }
        };
        let republish = of.is_none().then(|| Republish {
            source: self.prefix.all_events(),
            destination: self.prefix.live_feed_transform(),
            headers_only: false,
        });
        let config = stream::Config {
            name: self.prefix.event_stream(of.map(|(index, _)| index)),
            subjects,
            storage: StorageType::File,
            max_age: Duration::from_secs(24 * 3600),
            duplicate_window: Duration::from_secs(120),
            allow_direct: true,
            allow_batch_publish: true,
            num_replicas: replicas,
            republish,
            ..stream::Config::default()
        };
        self.jetstream.create_stream(config).await.unwrap();
    }

    /// Hears when a worker asks for the consumer of interactions.
    pub(crate) async fn asked_for_the_consumer(&self) -> async_nats::Subscriber {
        let client = async_nats::connect(self.nats.url()).await.unwrap();
        let asked = "$JS.API.CONSUMER.INFO.DISCORD_EVENTS.commands";
        let asking = client.subscribe(asked).await.unwrap();
        client.flush().await.unwrap();
        asking
    }

    /// Flags of a worker of this world.
    pub(crate) fn options(&self) -> Options {
        Options {
            nats_url: Some(self.nats.url()),
            api_url: Some(self.discord.url().to_owned()),
            http: Some("0".to_owned()),
            ..Options::default()
        }
    }

    pub(crate) async fn try_worker(
        &self,
        router: Router,
        options: Options,
    ) -> Result<Running, Fatal> {
        let env = |name: &str| (name == "DISCORD_TOKEN").then(|| OsString::from(TOKEN));
        let config = Config::with_environment(options, &env).unwrap();
        Worker::new(config, router).start().await
    }

    pub(crate) async fn worker(&self, router: Router) -> Running {
        self.try_worker(router, self.options()).await.unwrap()
    }

    /// A worker that says this name.
    pub(crate) async fn worker_named(&self, name: &str, router: Router) -> Running {
        let mut options = self.options();
        options.worker_id = Some(name.to_owned());
        self.try_worker(router, options).await.unwrap()
    }

    /// Stores a slash command that was typed `age` ago on this shard; returns the interaction's id.
    pub(crate) async fn typed(&self, shard: u32, command: &str, age: Duration) -> u64 {
        let id = self.snowflake(age);
        self.store(shard, frame(id, command).to_string().into())
            .await;
        id
    }

    /// Stores a slash command that was typed right now on shard 0.
    pub(crate) async fn type_command(&self, command: &str) -> u64 {
        self.typed(0, command, Duration::ZERO).await
    }

    /// Stores any payload as an interaction of a shard.
    pub(crate) async fn store(&self, shard: u32, payload: bytes::Bytes) {
        let seq = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let subject = Subject::Event {
            shard,
            guild: GuildId::new(1_235_680_858_241_376_258),
            event: "INTERACTION_CREATE",
        };
        let id = MessageId::dispatch("session", seq).to_string();
        self.publish(&subject, id, payload).await.unwrap();
    }

    /// Stores a frame under this id, as a proxy would.
    pub(crate) async fn publish(
        &self,
        subject: &Subject<'_>,
        id: String,
        frame: impl Into<bytes::Bytes>,
    ) -> Result<(), PublishError> {
        let subject = subject.with_prefix(&self.prefix);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MSG_ID, id);
        let sent = self
            .jetstream
            .publish_with_headers(subject, headers, frame.into());
        sent.await?.await.map(drop)
    }

    /// The bucket in which proxies keep the records of their shards, with these.
    pub(crate) async fn fleet(&self, records: impl IntoIterator<Item = ShardRecord>) -> kv::Store {
        let config = kv::Config {
            bucket: self.prefix.fleet_bucket(),
            ..kv::Config::default()
        };
        let bucket = self.jetstream.create_key_value(config).await.unwrap();
        for record in records {
            let key = FleetKey::Shard(record.shard).to_string();
            let value = serde_json::to_vec(&record).unwrap();
            bucket.put(key, value.into()).await.unwrap();
        }
        bucket
    }

    pub(crate) fn snowflake(&self, age: Duration) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - age;
        let increment = self.sequence.fetch_add(1, Ordering::Relaxed) & 0xfff;
        ((now.as_millis() as u64 - DISCORD_EPOCH_MS) << 22) | increment
    }

    /// Waits for the answer to an interaction and returns its text.
    pub(crate) async fn answer(&self, interaction: u64) -> String {
        until("an answer", async || self.discord.answer_to(interaction))
            .await
            .content()
            .to_owned()
    }

    /// Waits until the consumer of interactions has nothing left to deliver and nothing unacknowledged.
    pub(crate) async fn settled(&self, stream: &str) {
        self.settled_at(stream, "commands").await;
    }

    /// The same for any consumer.
    pub(crate) async fn settled_at(&self, stream: &str, consumer: &str) {
        until("the consumer to settle", async || {
            let stream = self.jetstream.get_stream_no_info(stream).await.ok()?;
            let info = stream.consumer_info(consumer).await.ok()?;
            (info.num_ack_pending == 0 && info.num_pending == 0).then_some(())
        })
        .await;
    }
}

/// A real INTERACTION_CREATE with another id and command.
pub(crate) fn frame(id: u64, command: &str) -> Value {
    let mut frame: Value = serde_json::from_str(SLASH).unwrap();
    frame["d"]["id"] = json!(id.to_string());
    frame["d"]["token"] = json!(format!("token-{id}"));
    frame["d"]["data"]["name"] = json!(command);
    frame
}

/// `GET path` of a worker's HTTP endpoints: status and body.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
}

/// Waits until `/ready` says yes.
pub(crate) async fn ready(address: SocketAddr) {
    until("ready", async || {
        (http_get(address, "/ready").await.0 == 200).then_some(())
    })
    .await;
}

/// Waits until `/ready` says no, for this reason among others.
pub(crate) async fn not_ready(address: SocketAddr, reason: &str) {
    until("not ready", async || {
        let (status, body) = http_get(address, "/ready").await;
        (status == 503 && body.contains(reason)).then_some(())
    })
    .await;
}

/// Waits until `/metrics` has this line.
pub(crate) async fn metric(worker: &Running, line: &str) {
    let address = worker.http_address();
    until(line, async || {
        let (_, body) = http_get(address, "/metrics").await;
        body.lines().any(|found| found == line).then_some(())
    })
    .await;
}
