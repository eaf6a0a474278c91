//! A fleet of real proxies against one simulated Discord and one NATS, as the measurements need it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::{self, stream::Stream};
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use schemas::control::FleetVerb;
use schemas::health::{ClusterState, ProcessStatus};
use schemas::message::NATS_MSG_ID;
use schemas::{MessageId, Prefix};
use testkit::nats::{self, Server};
use testkit::simulator::{Config, Simulator};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use crate::Proxy;

/// How long the fleet may take to come to rest, start and end.
const PATIENCE: Duration = Duration::from_secs(180);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// How long one answer of the coordinator may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Readings of both clocks, of which the quickest counts.
const CLOCK_READINGS: usize = 32;

/// A dispatch as it was stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its shard's number.
    pub shard: u32,
    /// Its session.
    pub session: String,
    /// Its sequence.
    pub seq: u64,
    /// When JetStream stored it, µs since 1970.
    pub at_us: i128,
}

/// Discord, NATS and the proxies.
pub struct Fleet {
    /// Discord.
    pub simulator: Simulator,
    proxies: BTreeMap<String, Proxy>,
    client: async_nats::Client,
    server: Server,
    logs: PathBuf,
    // The moment the ledger's times count from, µs since 1970.
    epoch_us: i128,
}

impl Fleet {
    /// Starts Discord and NATS; nobody holds a shard yet. `logs` takes the proxies' logs.
    ///
    /// # Errors
    /// What does not start.
    pub async fn new(config: Config, logs: &Path) -> anyhow::Result<Self> {
        let server = nats::start(nats::Options::default()).await?;
        let simulator = Simulator::start(config).await?;
        let client = nats::connect(&server.url()).await?;
        let epoch_us = epoch(&simulator);
        Ok(Self {
            simulator,
            proxies: BTreeMap::new(),
            client,
            server,
            logs: logs.to_owned(),
            epoch_us,
        })
    }

    /// Adds a proxy of that name, or starts it again.
    ///
    /// # Errors
    /// When the process does not start.
    pub fn join(&mut self, name: &str) -> anyhow::Result<()> {
        let proxy = self.proxies.entry(name.to_owned()).or_insert_with(|| {
            let args = vec![
                "run".to_owned(),
                "--fleet".to_owned(),
                format!("--nats-url={}", self.server.url()),
                format!("--api-url={}", self.simulator.api_url()),
                format!("--proxy-id={name}"),
                "--http=127.0.0.1:0".to_owned(),
                "--grace-period=60s".to_owned(),
            ];
            let token = self.simulator.token().to_owned();
            let log = self.logs.join(format!("{name}.log"));
            Proxy::new(name.to_owned(), args, token, log)
        });
        proxy.start()
    }

    /// Kills the proxy with SIGKILL.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let proxy = self.proxy(name)?;
        proxy.signal(Signal::SIGKILL)?;
        proxy.ended().await.map(drop)
    }

    /// Asks the proxy to end and waits for it: it hands its shards over first.
    ///
    /// # Errors
    /// When it does not end, or not with 0.
    pub async fn drain(&mut self, name: &str) -> anyhow::Result<()> {
        let proxy = self.proxy(name)?;
        proxy.signal(Signal::SIGTERM)?;
        let code = timeout(PATIENCE, proxy.ended())
            .await
            .with_context(|| format!("{name} does not end within {PATIENCE:?}"))??;
        ensure!(code == Some(0), "{name} drained with {code:?}");
        Ok(())
    }

    /// Drains every proxy.
    ///
    /// # Errors
    /// When one does not end.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        let names: Vec<String> = self.proxies.keys().cloned().collect();
        for name in &names {
            self.proxy(name)?.signal(Signal::SIGKILL)?;
            self.proxy(name)?.ended().await?;
        }
        Ok(())
    }

    fn proxy(&mut self, name: &str) -> anyhow::Result<&mut Proxy> {
        let proxy = self.proxies.get_mut(name);
        proxy.with_context(|| format!("there is no proxy {name}"))
    }

    /// What the coordinator says.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn state(&self) -> anyhow::Result<ClusterState> {
        let subject = FleetVerb::State.subject(&Prefix::default());
        let answer = timeout(ANSWER_WITHIN, self.client.request(subject, "".into()))
            .await
            .context("no answer")??;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// Waits until so many proxies run, all shards deliver, and none has two more than another.
    ///
    /// # Errors
    /// When that does not come within three minutes, or a proxy ended by itself.
    pub async fn balanced(&mut self, proxies: usize, shards: u32) -> anyhow::Result<ClusterState> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.state().await;
            if let Ok(state) = &state
                && is_balanced(state, proxies, shards)
            {
                return Ok(state.clone());
            }
            for proxy in self.proxies.values_mut() {
                if let Some(end) = proxy.died() {
                    bail!(end);
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{proxies} proxies do not share {shards} shards within {PATIENCE:?}: {state:?}"
            );
            sleep(LOOK).await;
        }
    }

    /// The stream of events.
    ///
    /// # Errors
    /// When there is none.
    pub async fn stream(&self) -> anyhow::Result<Stream> {
        let name = Prefix::default().event_stream(None);
        Ok(jetstream::new(self.client.clone()).get_stream(name).await?)
    }

    /// Connected to NATS.
    #[must_use]
    pub const fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Every dispatch stored from this place on, in the stream's order.
    ///
    /// # Errors
    /// When the stream cannot be read.
    pub async fn stored_from(&self, first: u64) -> anyhow::Result<Vec<Stored>> {
        let stream = self.stream().await?;
        let last = stream.get_info().await?.state.last_sequence;
        let mut events = Vec::new();
        if last < first {
            return Ok(events);
        }
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: first.max(1),
            },
            headers_only: true,
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?;
        while let Some(message) = messages.next().await {
            let message = message?;
            let info = message.info();
            let info = info.map_err(|error| anyhow::anyhow!("{error}"))?;
            let (at_us, sequence) = (unix_us(info.published), info.stream_sequence);
            if let Some(event) = dispatch(&message, at_us) {
                events.push(event);
            }
            if sequence >= last {
                break;
            }
        }
        Ok(events)
    }

    /// When Discord had each dispatch of these ready, µs since 1970, by session and sequence.
    #[must_use]
    pub fn queued(&self) -> HashMap<String, Vec<i128>> {
        let sessions = self.simulator.ledger().sessions.into_iter();
        let times = sessions.map(|session| {
            let queued = session.entries.iter();
            let queued = queued.map(|entry| self.epoch_us + i128::from(entry.queued_us));
            (session.id, queued.collect())
        });
        times.collect()
    }
}

/// The dispatch in a message; `None` for what proxies add.
fn dispatch(message: &jetstream::Message, at_us: i128) -> Option<Stored> {
    let id = message.headers.as_ref()?.get(NATS_MSG_ID)?;
    let id = MessageId::parse(id.as_str()).ok()?;
    if id.synthetic.is_some() {
        return None;
    }
    let subject = schemas::Subject::parse(&Prefix::default(), &message.subject).ok()?;
    let schemas::Subject::Event { shard, .. } = subject else {
        return None;
    };
    Some(Stored {
        shard,
        session: id.session.to_owned(),
        seq: id.seq,
        at_us,
    })
}

fn is_balanced(state: &ClusterState, proxies: usize, shards: u32) -> bool {
    let held = |worker: &schemas::health::WorkerState| worker.shards.len();
    let alive = state.workers.iter();
    let alive: Vec<_> = alive
        .filter(|worker| worker.status != ProcessStatus::Draining)
        .map(held)
        .collect();
    let (least, most) = (alive.iter().min(), alive.iter().max());
    alive.len() == proxies
        && state.workers.len() == proxies
        && state.ready_shards == shards
        && alive.iter().sum::<usize>() == shards as usize
        && most
            .zip(least)
            .is_some_and(|(most, least)| most - least <= 1)
}

/// A time, µs since 1970.
#[must_use]
pub fn unix_us(at: OffsetDateTime) -> i128 {
    at.unix_timestamp_nanos() / 1_000
}

/// When the simulator's clock began, µs since 1970.
fn epoch(simulator: &Simulator) -> i128 {
    let readings = (0..CLOCK_READINGS).map(|_| {
        let before = unix_us(OffsetDateTime::now_utc());
        let uptime = i128::from(simulator.stats().uptime_us);
        let after = unix_us(OffsetDateTime::now_utc());
        (after - before, (before + after) / 2 - uptime)
    });
    readings.min().map_or(0, |(_, epoch)| epoch)
}
