//! What the library is compared with: loops as an expert writes them by hand, over async-nats.

use std::future::{Future, Ready, ready};
use std::io::{self, Write as _};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::pull::{self, Stream};
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt as _, TryStreamExt as _, future::try_join_all};
use schemas::message::NATS_MSG_ID;
use schemas::{Prefix, Subject};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval_at, timeout};

use crate::load::child;

/// Messages per request: more does not make a loop faster.
const BATCH: usize = 500;
/// The same where the consumer of one shard gives so many at most.
const SHARD_BATCH: usize = 256;
/// The priority group of a shard's consumer, as the library names it.
pub(crate) const HOLDER: &str = "holder";
/// As many as the library's own runtime has, so that runtimes are not what is compared.
const THREADS: usize = 2;
/// What the library allows unless told otherwise: handlers at once, the time of one, and how often
/// the server hears of one that takes long.
const AT_ONCE: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(1_666);

/// A way to take messages out of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pull {
    /// Acknowledges each message and looks at none. Less than anybody needs: there is no handler.
    Bare,
    /// The same on one thread, and not the library's runtime.
    OneThread,
    /// What shared mode does, as short as it can be written: reads subject, place and id, runs a
    /// handler with a time limit, contains its panic, tells the server about one that takes long,
    /// 64 at once; in one task, so on one thread at a time. No metrics, pauses, dead letters or pause
    /// and resume.
    ByHand,
    /// As bare, but each shard's consumer has a task, and only one client gets its messages.
    Shards,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PullSetup {
    pub(crate) nats: String,
    pub(crate) stream: String,
    pub(crate) how: Pull,
    pub(crate) durables: Vec<String>,
}

impl Pull {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::OneThread => "bare, one thread",
            Self::ByHand => "by hand",
            Self::Shards => "bare, by shard",
        }
    }
}

/// In the part: pulls until told to end.
pub(crate) fn part(setup: &PullSetup) -> Result<()> {
    let mut builder = match setup.how {
        Pull::OneThread => tokio::runtime::Builder::new_current_thread(),
        Pull::Bare | Pull::ByHand | Pull::Shards => tokio::runtime::Builder::new_multi_thread(),
    };
    if setup.how != Pull::OneThread {
        builder.worker_threads(THREADS);
    }
    let runtime = builder.enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let streams = open(setup).await?;
        writeln!(io::stdout(), "ready").context("say ready")?;
        let how = setup.how;
        let pulling = try_join_all(streams.into_iter().map(|messages| {
            let pulling = tokio::spawn(pull(how, messages));
            async move { pulling.await.context("a loop's task")? }
        }));
        tokio::select! {
            ended = pulling => ended.map(drop),
            () = child::told_to_end() => Ok(()),
        }
    })
}

async fn open(setup: &PullSetup) -> Result<Vec<Stream>> {
    let client = async_nats::connect(&setup.nats).await.context("connect")?;
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream(&setup.stream).await;
    let stream = stream.context("the stream")?;
    let mut streams = Vec::with_capacity(setup.durables.len());
    for durable in &setup.durables {
        let consumer = stream.get_consumer::<pull::Config>(durable).await;
        let consumer = consumer.map_err(anyhow::Error::msg)?;
        let messages = match setup.how {
            Pull::Shards => consumer
                .stream()
                .group(HOLDER)
                .max_messages_per_batch(SHARD_BATCH),
            Pull::Bare | Pull::OneThread | Pull::ByHand => {
                consumer.stream().max_messages_per_batch(BATCH)
            }
        };
        streams.push(messages.messages().await.context("pull")?);
    }
    Ok(streams)
}

async fn pull(how: Pull, mut messages: Stream) -> Result<()> {
    match how {
        Pull::Bare | Pull::OneThread | Pull::Shards => {
            while let Some(message) = messages.try_next().await.context("pull")? {
                message.ack().await.map_err(anyhow::Error::msg)?;
            }
            Ok(())
        }
        Pull::ByHand => {
            let pulling = messages.map_err(anyhow::Error::from);
            pulling.try_for_each_concurrent(AT_ONCE, one).await
        }
    }
}

/// One event by hand.
async fn one(message: Message) -> Result<()> {
    let prefix = Prefix::default();
    let Ok(Subject::Event { guild, event, .. }) = Subject::parse(&prefix, &message.subject) else {
        return message
            .ack_with(AckKind::Term)
            .await
            .map_err(anyhow::Error::msg);
    };
    let info = message.info().map_err(anyhow::Error::msg)?;
    let headers = message.headers.as_ref();
    let id = headers.and_then(|headers| headers.get(NATS_MSG_ID));
    let event = Event {
        id: id.map_or_else(String::new, |id| id.as_str().to_owned()),
        name: event.to_owned(),
        guild: guild.map(|guild| guild.get()),
        deliveries: info.delivered,
        message: &message,
    };
    let handling = timeout(TIMEOUT, AssertUnwindSafe(nothing(&event)).catch_unwind());
    let kind = match while_told(&message, handling).await {
        Ok(Ok(())) => AckKind::Ack,
        Ok(Err(_)) | Err(_) => AckKind::Nak(None),
    };
    message.ack_with(kind).await.map_err(anyhow::Error::msg)
}

async fn while_told<T>(message: &Message, handling: impl Future<Output = T>) -> T {
    tokio::pin!(handling);
    let mut progress = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            biased;
            done = &mut handling => return done,
            // One that does not reach the server leads to another delivery.
            _ = progress.tick() => drop(message.ack_with(AckKind::Progress).await),
        }
    }
}

/// What a handler gets.
struct Event<'a> {
    id: String,
    name: String,
    guild: Option<u64>,
    deliveries: i64,
    message: &'a Message,
}

fn nothing(event: &Event<'_>) -> Ready<()> {
    // All of it was made for the handler; the compiler may not leave any of it out.
    std::hint::black_box((
        &event.id,
        &event.name,
        event.guild,
        event.deliveries,
        &event.message.payload,
    ));
    ready(())
}
