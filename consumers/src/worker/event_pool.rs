//! The events of a worker besides interactions: checks what the program asks for, opens the
//! consumers, starts the pullers, pauses and stops them together.

use std::sync::Arc;

use async_nats::jetstream::consumer::PullConsumer;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::events::EventPuller;
use super::opening::{STREAM_PAUSE, open};
use super::shared::Shared;
use crate::config::Config;
use crate::dead::{self, DeadError};
use crate::durable::Durable;
use crate::events::{Events, Mode};
use crate::exit::Fatal;
use crate::nats::Link;
use crate::ordered::Group;
use crate::place::Place;
use crate::registry::Registry;
use crate::streams;

/// Longest name of events: consumers of shards add a number to it.
const NAME_MAX: usize = 32;

/// Consumers that are open and not pulled from yet.
pub(crate) struct Opened {
    shared: Vec<(Arc<Events>, Durable, Place)>,
    groups: Vec<(Arc<Events>, Registry, OffsetDateTime)>,
}

/// Dropping it ends pullers and handlers where they stand.
#[derive(Debug)]
pub(crate) struct EventPool {
    pullers: Vec<AbortOnDropHandle<()>>,
    stopping: CancellationToken,
    paused: watch::Sender<bool>,
}

/// Refuses what no worker can do.
pub(crate) fn check(events: &[Events], config: &Config) -> Result<(), Fatal> {
    for events in events {
        let name = &events.name;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) {
            return Err(Fatal::usage(
                format!("the events' name {name:?} is no name for a consumer"),
                format!("use 1 to {NAME_MAX} characters of A-Z, a-z, 0-9, _ and -"),
            ));
        }
        if *name == config.consumer {
            return Err(Fatal::usage(
                format!("the events {name:?} have the name of the interactions' consumer"),
                "give the events or --consumer another name",
            ));
        }
        if events.is_empty() {
            return Err(Fatal::usage(
                format!("the events {name:?} have no handler"),
                "add one with `on`, `on_raw` or `on_any`",
            ));
        }
    }
    Ok(())
}

/// Opens the dead-letter stream and the consumers, waiting for them until `deadline`.
pub(crate) async fn open_all(
    events: &[Events],
    config: &Config,
    link: &Link,
    registry: &Registry,
    deadline: Instant,
) -> Result<Opened, Fatal> {
    let (mut shared, mut groups) = (Vec::new(), Vec::new());
    for events in events {
        let events = Arc::new(events.clone());
        match events.mode {
            Mode::Shared => {
                for durable in Durable::shared(&config.prefix, config.event_streams, &events) {
                    let policy = events.start.policy();
                    let consumer = open(&durable, link, deadline, policy).await?;
                    let place = place(link, &durable, &consumer, deadline).await?;
                    shared.push((Arc::clone(&events), durable, place));
                }
            }
            Mode::Ordered => {
                let registry = registry.of_group(&events.name);
                let begin = begin(&registry, deadline).await?;
                groups.push((events, registry, begin));
            }
        }
    }
    if !events.is_empty() {
        open_dead(config, link, deadline).await?;
    }
    Ok(Opened { shared, groups })
}

/// When a group that holds shards began, asked until `deadline`.
async fn begin(registry: &Registry, deadline: Instant) -> Result<OffsetDateTime, Fatal> {
    loop {
        let problem = match timeout_at(deadline, registry.begin()).await {
            Ok(Ok(begin)) => return Ok(begin),
            Ok(Err(problem)) => problem,
            Err(_) => "no response".to_owned(),
        };
        let next = Instant::now() + STREAM_PAUSE;
        if next >= deadline {
            return Err(Fatal::unfit(
                format!("the bucket of workers cannot be used: {problem}"),
                "check the permissions of the NATS user",
            ));
        }
        tracing::warn!(problem, "waiting for the workers' bucket");
        sleep_until(next).await;
    }
}

async fn place(
    link: &Link,
    durable: &Durable,
    consumer: &PullConsumer,
    deadline: Instant,
) -> Result<Place, Fatal> {
    let looking = link.jetstream.get_stream(&durable.stream);
    let found = match timeout_at(deadline, looking).await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(_) => Err("no response".to_owned()),
    };
    let stream = found.map_err(|error| {
        Fatal::unreachable(
            format!("the stream {} cannot be read: {error}", durable.stream),
            "check that JetStream is up",
        )
    })?;
    Ok(Place {
        created: stream.cached_info().created,
        floor: consumer.cached_info().ack_floor.stream_sequence,
    })
}

async fn open_dead(config: &Config, link: &Link, deadline: Instant) -> Result<(), Fatal> {
    let events = streams::of_shard(&config.prefix, config.event_streams, 0);
    loop {
        let opening = dead::open(&link.jetstream, &config.prefix, &events);
        let error = match timeout_at(deadline, opening).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => DeadError::NoAnswer {
                stream: config.prefix.dead_stream(),
                error: "no response".to_owned(),
            },
        };
        let next = Instant::now() + STREAM_PAUSE;
        let hopeless = matches!(error, DeadError::Differs { .. });
        if hopeless || next >= deadline {
            return Err(dead_failed(&error));
        }
        tracing::warn!(%error, "waiting for the dead-letter stream");
        sleep_until(next).await;
    }
}

fn dead_failed(error: &DeadError) -> Fatal {
    let problem = error.to_string();
    match error {
        DeadError::Differs { .. } => Fatal::unfit(
            problem,
            "change the stream, or delete it when nobody needs what is in it",
        ),
        DeadError::Refused { .. } => Fatal::unfit(
            problem,
            "check the permissions and limits of the NATS account",
        ),
        DeadError::NoAnswer { .. } => Fatal::unreachable(
            problem,
            "check that JetStream is up and that the NATS user may use its API",
        ),
    }
}

impl EventPool {
    pub(crate) fn start(shared: &Arc<Shared>, opened: Opened, event_streams: u32) -> Self {
        let stopping = CancellationToken::new();
        let (paused, _) = watch::channel(false);
        let mut pullers = Vec::new();
        // The streams share the slots evenly: a quiet one must not hold those of a busy one.
        let streams = |events: &Arc<Events>| {
            let same = opened.shared.iter();
            same.filter(|(other, ..)| other.name == events.name).count()
        };
        let slots: Vec<usize> = opened
            .shared
            .iter()
            .map(|(events, ..)| events.concurrency.div_ceil(streams(events)))
            .collect();
        for ((events, durable, place), slots) in opened.shared.into_iter().zip(slots) {
            let puller = EventPuller {
                shared: Arc::clone(shared),
                events,
                durable,
                slots,
                stopping: stopping.clone(),
                paused: paused.subscribe(),
            };
            pullers.push(AbortOnDropHandle::new(tokio::spawn(puller.run(place))));
        }
        for (events, registry, begin) in opened.groups {
            let group = Group {
                shared: Arc::clone(shared),
                events,
                registry,
                begin,
                event_streams,
                stopping: stopping.clone(),
                paused: paused.subscribe(),
            };
            pullers.push(AbortOnDropHandle::new(tokio::spawn(group.run())));
        }
        Self {
            pullers,
            stopping,
            paused,
        }
    }

    /// Stops or goes on taking events; those in flight are finished.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Stops pulling, lets what is in flight finish, ends what outlives `limit`.
    pub(crate) async fn stop(self, limit: Instant) {
        self.stopping.cancel();
        for puller in self.pullers {
            if timeout_at(limit, puller).await.is_err() {
                tracing::warn!("events outlived the grace period, other workers get them");
            }
        }
    }
}
