//! The processes that consume: workers of the library, and the loop they are compared with.

use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::pull;
use consumers::{Context, Events, HandlerError, RawEvent, Router, Start};
use futures_util::TryStreamExt as _;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::rig::{DURABLE, PULL_BATCH};
use crate::load::child;

/// µs, to three digits, up to ten minutes: a backlog may be that old.
const HIGHEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;
/// As many as the library's own runtime has, so that runtimes are not what is compared.
const THREADS: usize = 2;

/// How a worker takes its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    Shared,
    Ordered,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Events; none without.
    pub(crate) mode: Option<Mode>,
    /// Slash commands too.
    pub(crate) commands: bool,
    pub(crate) shards: u32,
    /// How long the handler waits; 0: it does nothing.
    pub(crate) handler_ms: u64,
    /// Whether the age of events is noted when their handler begins.
    pub(crate) ages: bool,
}

/// Ages of events when their handlers began, in µs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ages {
    pub(crate) events: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

type Noted = Arc<Mutex<Histogram<u64>>>;

/// In the part: a worker as its author would start it; the flags of `consumers` follow the setup.
/// Whenever a line comes in it says how old events were since the last one.
pub(crate) fn part(args: &[OsString]) -> Result<ExitCode> {
    let setup: Setup = child::setup(args)?;
    let noted: Noted = Arc::new(Mutex::new(histogram()?));
    let mut router = match setup.commands {
        true => consumers::commands::router(),
        false => Router::new(),
    };
    if let Some(mode) = setup.mode {
        router = router.events(events(mode, &setup, &noted));
    }
    std::thread::spawn(move || tell(&noted));
    let flags = args.iter().skip(1).cloned();
    let args = std::iter::once(OsString::from("worker")).chain(flags);
    Ok(consumers::run_worker("worker", router, args))
}

fn events(mode: Mode, setup: &Setup, noted: &Noted) -> Events {
    let events = match mode {
        Mode::Shared => Events::shared(DURABLE),
        Mode::Ordered => Events::ordered(DURABLE).shards(0..setup.shards),
    };
    let events = events.start(Start::Oldest);
    let pause = Duration::from_millis(setup.handler_ms);
    if pause.is_zero() && !setup.ages {
        return events.on_any(nothing);
    }
    let noted = setup.ages.then(|| Arc::clone(noted));
    events.on_any(move |context: Context, _: RawEvent| {
        if let Some(noted) = &noted {
            let age = u64::try_from(context.age().as_micros()).unwrap_or(u64::MAX);
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.saturating_record(age);
        }
        async move {
            tokio::time::sleep(pause).await;
            Ok::<(), HandlerError>(())
        }
    })
}

async fn nothing(_: Context, _: RawEvent) -> Result<(), HandlerError> {
    Ok(())
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_max(HIGHEST_US, DIGITS).context("make a histogram")
}

fn tell(noted: &Noted) {
    for _ in io::stdin().lock().lines() {
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        let ages = Ages {
            events: noted.len(),
            p50_us: noted.value_at_quantile(0.5),
            p99_us: noted.value_at_quantile(0.99),
            max_us: noted.max(),
        };
        noted.reset();
        // Standard error has the worker's log too, which its starter reads.
        let line = serde_json::to_string(&ages).unwrap_or_default();
        drop(writeln!(io::stderr(), "ages {line}"));
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PullSetup {
    pub(crate) nats: String,
    pub(crate) stream: String,
    /// One thread, and not the runtime of the library.
    pub(crate) one_thread: bool,
}

/// In the part: what an expert writes without a library. Pulls, looks at nothing, acknowledges each.
pub(crate) fn pull_part(setup: &PullSetup) -> Result<()> {
    let mut builder = match setup.one_thread {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    if !setup.one_thread {
        builder.worker_threads(THREADS);
    }
    let runtime = builder.enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let pulling = tokio::spawn(pull(setup.nats.clone(), setup.stream.clone()));
        tokio::select! {
            ended = pulling => ended.context("the loop's task")?,
            () = child::told_to_end() => Ok(()),
        }
    })
}

async fn pull(nats: String, stream: String) -> Result<()> {
    let client = async_nats::connect(&nats).await.context("connect")?;
    let jetstream = async_nats::jetstream::new(client);
    let stream = jetstream.get_stream(&stream).await.context("the stream")?;
    let consumer = stream.get_consumer::<pull::Config>(DURABLE).await;
    let consumer = consumer.map_err(anyhow::Error::msg)?;
    let messages = consumer.stream().max_messages_per_batch(PULL_BATCH);
    let mut messages = messages.messages().await.context("pull")?;
    writeln!(io::stdout(), "ready").context("say ready")?;
    while let Some(message) = messages.try_next().await.context("pull")? {
        message.ack().await.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}
