//! The processes that consume with the library. What they are compared with is in [`super::pull`].

use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use consumers::{Context, Events, HandlerError, RawEvent, Router, Start};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::rig::DURABLE;
use crate::load::child;

/// µs, to three digits, up to ten minutes: a backlog may be that old.
const HIGHEST_US: u64 = 600_000_000;
const DIGITS: u8 = 3;

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
    /// How many at once; the library's own number without.
    pub(crate) concurrency: Option<usize>,
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
    let events = match setup.concurrency {
        Some(at_once) => events.concurrency(at_once),
        None => events,
    };
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
