//! What a run needs around its workers: a nats-server with a stream, consumers that are held back until
//! everything is in place, and the kernel's account of each process.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::{AckPolicy, PriorityPolicy, pull};
use nats_server::Server;
use schemas::Prefix;
use testkit::nats::Options;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::Part;
use super::publish;
use super::pull::{HOLDER, Pull, PullSetup};
use super::worker::Setup;
use crate::load::child::{Child, Voice};
use crate::load::corpus::Corpus;
use crate::load::events::Events;
use crate::load::kernel::{Spent, Usage};

/// The durable consumer's name; in ordered mode each shard's begins with it.
pub(crate) const DURABLE: &str = "bench";
/// As the library has them for shared events.
const ACK_WAIT: Duration = Duration::from_secs(5);
const ACK_PENDING: i64 = 10_000;
/// As the library has them for a shard that is held.
const SHARD_ACK_WAIT: Duration = Duration::from_secs(1);
const SHARD_ACK_PENDING: i64 = 256;
const PINNED_FOR: Duration = Duration::from_secs(60);
/// Consumers are held back for much longer than filling a stream takes.
const HELD_BACK: time::Duration = time::Duration::hours(1);
/// Between two looks: one look costs the server about 0.1 ms per consumer.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Workers open their consumers within a second; shards are spread within a few.
const OPEN_WITHIN: Duration = Duration::from_secs(60);
/// Without anything done for so long it is over.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A nats-server and the events' stream.
pub(crate) struct Rig {
    nats: Server,
    pub(crate) events: Events,
}

/// The account of all processes of one kind, and of the nats-server.
pub(crate) struct Account {
    clients: Vec<Usage>,
    nats: Usage,
}

impl Rig {
    pub(crate) async fn start(corpus: &Corpus) -> Result<Self> {
        let nats = testkit::nats::start(Options::default()).await;
        let nats = nats.context("start NATS")?;
        let events = Events::create(&nats.url(), corpus.stream.clone()).await?;
        Ok(Self { nats, events })
    }

    pub(crate) fn url(&self) -> String {
        self.nats.url()
    }

    /// A process that publishes so many events once told to.
    pub(crate) async fn publisher(
        &self,
        corpus: &Corpus,
        events: u64,
        rate: Option<f64>,
    ) -> Result<Child> {
        let setup = publish::Setup {
            port: self.nats.port(),
            corpus: corpus.path.clone(),
            events,
            rate,
        };
        let mut child = Child::with_setup(Part::Publish.name(), &setup)?;
        child.says(|line| (line == "ready").then_some(())).await?;
        Ok(child)
    }

    /// Fills the stream.
    pub(crate) async fn fill(&self, corpus: &Corpus, events: u64) -> Result<()> {
        let mut publisher = self.publisher(corpus, events, None).await?;
        publisher.go().await?;
        self.events.wait_for(events, || publisher.check()).await?;
        publisher.close().await.context("end the publisher")
    }

    /// The durables that a loop by hand needs and a worker makes itself, with the library's settings.
    pub(crate) async fn make_durables(&self, names: &[String], by_shard: bool) -> Result<()> {
        for (shard, name) in (0_u32..).zip(names) {
            let prefix = Prefix::default();
            let made = self.events.stream().create_consumer(match by_shard {
                false => pull::Config {
                    durable_name: Some(name.clone()),
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: ACK_WAIT,
                    max_ack_pending: ACK_PENDING,
                    filter_subject: prefix.all_events(),
                    ..pull::Config::default()
                },
                true => pull::Config {
                    durable_name: Some(name.clone()),
                    ack_policy: AckPolicy::Explicit,
                    ack_wait: SHARD_ACK_WAIT,
                    max_ack_pending: SHARD_ACK_PENDING,
                    filter_subject: prefix.shard_events(shard),
                    priority_policy: PriorityPolicy::PinnedClient,
                    priority_groups: vec![HOLDER.to_owned()],
                    priority_timeout: PINNED_FOR,
                    ..pull::Config::default()
                },
            });
            made.await.map(drop).context("make a durable")?;
        }
        Ok(())
    }

    /// Starts a loop by hand.
    pub(crate) async fn pulling(&self, how: Pull, durables: &[String]) -> Result<Child> {
        let setup = PullSetup {
            nats: self.url(),
            stream: Prefix::default().event_stream(None),
            how,
            durables: durables.to_vec(),
        };
        let mut child = Child::with_setup(Part::Pull.name(), &setup)?;
        child.says(|line| (line == "ready").then_some(())).await?;
        Ok(child)
    }

    /// Starts a worker with Discord's address and token, which a worker of events never uses.
    pub(crate) async fn worker(&self, setup: &Setup, api: &str, token: &str) -> Result<Child> {
        let setup = serde_json::to_string(setup).context("write a worker's setup")?;
        let url = self.url();
        let flags = ["--nats-url", &url, "--api-url", api, "--http", "0"];
        let mut args = vec![setup];
        args.extend(flags.map(str::to_owned));
        let env = [
            ("DISCORD_TOKEN", token.to_owned()),
            ("RUST_LOG", "info".to_owned()),
        ];
        let mut child = Child::spawn(Part::Worker.name(), &args, &env, Voice::Stderr)?;
        child
            .says(|line| line.contains("running").then_some(()))
            .await?;
        Ok(child)
    }

    /// Waits until the consumers exist, and holds them back.
    pub(crate) async fn pause(&self, durables: &[String]) -> Result<()> {
        let deadline = Instant::now() + OPEN_WITHIN;
        for durable in durables {
            while self.events.stream().consumer_info(durable).await.is_err() {
                if Instant::now() > deadline {
                    bail!("the workers do not make the consumer {durable}");
                }
                sleep(LOOK_EVERY).await;
            }
            let until = OffsetDateTime::now_utc() + HELD_BACK;
            let paused = self.events.stream().pause_consumer(durable, until).await;
            paused.context("hold a consumer back")?;
        }
        Ok(())
    }

    /// Lets the consumers go. The server serves requests that wait only when something happens: a
    /// message for each of them does.
    pub(crate) async fn resume(&self, durables: &[String]) -> Result<()> {
        for (shard, durable) in durables.iter().enumerate() {
            let resumed = self.events.stream().resume_consumer(durable).await;
            resumed.context("let a consumer go")?;
            let shard = u32::try_from(shard).context("a shard's number")?;
            let subject = Prefix::default().event_of_shard(shard, "BENCH_BEGINS");
            let subject = subject.replace('*', "none");
            let jetstream = testkit::nats::jetstream(&self.url()).await;
            let jetstream = jetstream.context("connect to NATS")?;
            let published = jetstream.publish(subject, "{}".into()).await;
            published.context("wake a consumer")?.await.map(drop)?;
        }
        Ok(())
    }

    /// Events that are not acknowledged yet.
    pub(crate) async fn left(&self, durables: &[String]) -> Result<u64> {
        let mut left = 0;
        for durable in durables {
            let info = self.events.stream().consumer_info(durable).await;
            let info = info.context("ask about a consumer")?;
            left += info.num_pending + info.num_ack_pending as u64;
        }
        Ok(left)
    }

    /// Waits until everything is acknowledged.
    pub(crate) async fn drained(&self, durables: &[String], children: &mut [Child]) -> Result<()> {
        let mut progress = (u64::MAX, Instant::now());
        loop {
            let left = self.left(durables).await?;
            if left == 0 {
                return Ok(());
            }
            if left < progress.0 {
                progress = (left, Instant::now());
            } else if progress.1.elapsed() > STALLED_AFTER {
                bail!("{left} events are not handled");
            }
            children.iter_mut().try_for_each(Child::check)?;
            sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn account(&self, children: &[Child]) -> Result<Account> {
        let clients = children.iter().map(|child| Usage::of(child.pid()));
        let nats = self.nats.pid().context("the nats-server is gone")?;
        Ok(Account {
            clients: clients.collect::<Result<_>>()?,
            nats: Usage::of(nats)?,
        })
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        self.nats.stop().context("stop NATS")
    }
}

impl Account {
    /// What all clients together and the nats-server spent until `after`.
    pub(crate) fn until(&self, after: &Self) -> (Spent, Spent) {
        let pairs = self.clients.iter().zip(&after.clients);
        let clients = pairs.fold(Spent::default(), |sum, (before, after)| {
            let spent = after.since(before);
            Spent {
                cpu_us: sum.cpu_us + spent.cpu_us,
                user_us: sum.user_us + spent.user_us,
                system_us: sum.system_us + spent.system_us,
                wakeups: sum.wakeups + spent.wakeups,
                waited_us: sum.waited_us + spent.waited_us,
                seconds: spent.seconds,
            }
        });
        (clients, after.nats.since(&self.nats))
    }
}

/// The durables of a run: one, or one per shard.
pub(crate) fn durables(ordered_shards: Option<u32>) -> Vec<String> {
    match ordered_shards {
        None => vec![DURABLE.to_owned()],
        Some(shards) => (0..shards)
            .map(|shard| format!("{DURABLE}-{shard}"))
            .collect(),
    }
}
