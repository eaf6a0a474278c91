//! The event stream, seen from outside: what is stored, and when the last of it was.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Info, Stream};
use futures_util::TryStreamExt as _;
use schemas::Prefix;
use schemas::event::ProxyEventKind;
use tokio::time::sleep;

/// Between two looks: a look costs the server about 0.1 ms.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Without anything new for so long it is over.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// A server under a flood, on a machine that builds something beside it, takes its time.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The stream on one server.
pub(crate) struct Events {
    stream: Stream<()>,
}

/// How far the stream is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// When the last one was stored, µs since 1970, by the server's clock, which is this machine's.
    pub(crate) last_unix_us: u64,
}

impl Events {
    /// Finds the stream, which must be there.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let jetstream = connect(url).await?;
        let name = Prefix::default().event_stream(None);
        let stream = jetstream
            .get_stream_no_info(&name)
            .await
            .context("open the stream")?;
        Ok(Self { stream })
    }

    /// Creates the stream as it was elsewhere.
    pub(crate) async fn create(url: &str, config: Config) -> Result<Self> {
        let jetstream = connect(url).await?;
        jetstream
            .create_stream(config)
            .await
            .context("create the stream")?;
        Self::open(url).await
    }

    pub(crate) const fn stream(&self) -> &Stream<()> {
        &self.stream
    }

    pub(crate) async fn info(&self) -> Result<Info> {
        self.stream.get_info().await.context("ask about the stream")
    }

    pub(crate) async fn stored(&self) -> Result<Stored> {
        let state = self.info().await?.state;
        let nanos = state.last_timestamp.unix_timestamp_nanos();
        Ok(Stored {
            messages: state.messages,
            bytes: state.bytes,
            last_unix_us: u64::try_from(nanos / 1000).unwrap_or(0),
        })
    }

    /// Messages without those a proxy adds of its own; too few while these are being added.
    pub(crate) async fn dispatches(&self) -> Result<u64> {
        let messages = self.stored().await?.messages;
        let mut added = 0;
        for kind in ProxyEventKind::ALL {
            let filter = Prefix::default().event_of_all_shards(kind.name());
            let subjects = self.stream.info_with_subjects(filter).await;
            let mut subjects = subjects.context("ask about the stream's subjects")?;
            while let Some((_, count)) = subjects.try_next().await.context("read subjects")? {
                added += count as u64;
            }
        }
        Ok(messages.saturating_sub(added))
    }

    /// Waits until so many messages are stored; `check` fails when waiting is of no use any more.
    pub(crate) async fn wait_for(
        &self,
        messages: u64,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<Stored> {
        let mut progress = (0, Instant::now());
        loop {
            let stored = self.stored().await?;
            if stored.messages >= messages {
                return Ok(stored);
            }
            check()?;
            if stored.messages > progress.0 {
                progress = (stored.messages, Instant::now());
            } else if progress.1.elapsed() > STALLED_AFTER {
                bail!(
                    "the stream stands at {} of {messages} messages",
                    stored.messages
                );
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

async fn connect(url: &str) -> Result<jetstream::Context> {
    let connected = testkit::nats::jetstream(url).await;
    let mut jetstream = connected.context("connect to NATS")?;
    jetstream.set_timeout(ANSWER_WITHIN);
    Ok(jetstream)
}
