//! What a worker opens at its start, waiting for what is missing: durables, the bucket of leases,
//! topics of broadcasts.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer};
use schemas::Subject;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::event_pool;
use super::listener::{Listener, Listening};
use super::shared::Shared;
use crate::config::Config;
use crate::durable::{self, Durable, OpenError};
use crate::exit::Fatal;
use crate::messages::Address;
use crate::nats::Link;
use crate::registry::{Registry, RegistryError};
use crate::router::Router;
use crate::streams;

/// Pause before a missing stream is looked for again.
pub(super) const STREAM_PAUSE: Duration = Duration::from_millis(500);

/// What a worker takes its work from.
pub(super) struct Opened {
    /// `None` for a worker that leaves interactions to others.
    pub(super) interactions: Option<Vec<(Durable, PullConsumer)>>,
    pub(super) registry: Registry,
    pub(super) events: event_pool::Opened,
}

impl Opened {
    /// Opens all of it, waiting until `deadline`.
    pub(super) async fn open(
        router: &Router,
        config: &Config,
        link: &Link,
        deadline: Instant,
    ) -> Result<Self, Fatal> {
        let interactions = match router.answers_interactions() {
            true => Some(open_all(config, link, deadline).await?),
            false => None,
        };
        let registry = open_registry(config, link, deadline).await?;
        let events = event_pool::open_all(&router.events, config, link, &registry, deadline);
        Ok(Self {
            interactions,
            events: events.await?,
            registry,
        })
    }
}

/// Opens the durables of interactions.
async fn open_all(
    config: &Config,
    link: &Link,
    deadline: Instant,
) -> Result<Vec<(Durable, PullConsumer)>, Fatal> {
    let durables = Durable::all(&config.prefix, config.event_streams, &config.consumer);
    let mut opened = Vec::with_capacity(durables.len());
    for durable in durables {
        let consumer = open(&durable, link, deadline, DeliverPolicy::New).await?;
        opened.push((durable, consumer));
    }
    Ok(opened)
}

/// Opens a durable at the start, waiting for its stream until `deadline`.
pub(super) async fn open(
    durable: &Durable,
    link: &Link,
    deadline: Instant,
    start: DeliverPolicy,
) -> Result<PullConsumer, Fatal> {
    loop {
        let opening = durable.open(&link.jetstream, start);
        let error = match timeout_at(deadline, opening).await {
            Ok(Ok((consumer, how))) => {
                let made = how == durable::Opened::Created;
                tracing::info!(
                    stream = durable.stream,
                    consumer = durable.name,
                    made,
                    "consumer open"
                );
                return Ok(consumer);
            }
            Ok(Err(error)) => error,
            Err(_) => OpenError::NoAnswer("no response".to_owned()),
        };
        let next = Instant::now() + STREAM_PAUSE;
        if matches!(error, OpenError::Differs { .. }) || next >= deadline {
            return Err(open_failed(&error));
        }
        tracing::warn!(%error, "waiting for the consumer");
        sleep_until(next).await;
    }
}

fn open_failed(error: &OpenError) -> Fatal {
    let problem = error.to_string();
    match error {
        OpenError::NoStream(_) => Fatal::unfit(
            problem,
            "start a gateway-proxy, which makes it; check --subject-prefix and --event-streams",
        ),
        OpenError::Differs { .. } => Fatal::unfit(
            problem,
            "delete the consumer, or use another name with --consumer",
        ),
        OpenError::Refused { .. } => Fatal::unfit(
            problem,
            "check the permissions and limits of the NATS account",
        ),
        OpenError::NoAnswer(_) => Fatal::unreachable(
            problem,
            "check that JetStream is up and that the NATS user may use its API",
        ),
    }
}

/// Opens the bucket of the workers' leases, waiting for the stream whose replicas it takes over.
pub(crate) async fn open_registry(
    config: &Config,
    link: &Link,
    deadline: Instant,
) -> Result<Registry, Fatal> {
    let stream = streams::of_shard(&config.prefix, config.event_streams, 0);
    loop {
        let opening = Registry::open(&link.jetstream, &config.prefix, &stream);
        let error = match timeout_at(deadline, opening).await {
            Ok(Ok(registry)) => return Ok(registry),
            Ok(Err(error)) => error,
            Err(_) => RegistryError::NoAnswer {
                bucket: config.prefix.workers_bucket(),
                error: "no response".to_owned(),
            },
        };
        let next = Instant::now() + STREAM_PAUSE;
        let problem = error.to_string();
        match error {
            RegistryError::Unfit { .. } => {
                return Err(Fatal::unfit(
                    problem,
                    "delete the bucket while no worker runs",
                ));
            }
            RegistryError::NoAnswer { .. } if next >= deadline => {
                return Err(Fatal::unfit(
                    problem,
                    "start a gateway-proxy, which makes the stream; check --subject-prefix and \
                     the permissions of the NATS user",
                ));
            }
            RegistryError::NoAnswer { .. } => {}
        }
        tracing::warn!(problem, "waiting for the stream and the workers' bucket");
        sleep_until(next).await;
    }
}

/// Subscribes to the topics that have a handler.
pub(super) async fn listen_to_broadcasts(shared: &Arc<Shared>) -> Result<Vec<Listening>, Fatal> {
    let mut listening = Vec::new();
    for (topic, handler) in &shared.router.broadcasts {
        let subject = Subject::Broadcast { topic }.checked(&shared.prefix);
        let subject = subject.map_err(|error| {
            Fatal::usage(
                format!("{topic:?} is no topic of broadcasts: {error}"),
                "use words without white space, `*` and `>`, with dots between them",
            )
        })?;
        let listener = Listener {
            shared: Arc::clone(shared),
            to: Address::Topic(topic.as_str().into()),
            handler: Arc::clone(handler),
            lease: None,
        };
        let opened = listener.listen(subject).await;
        listening.push(opened.map_err(|error| {
            Fatal::unfit(
                format!("the topic {topic:?} cannot be listened to: {error}"),
                "check the permissions of the NATS user",
            )
        })?);
    }
    Ok(listening)
}
