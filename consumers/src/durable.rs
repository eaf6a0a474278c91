//! The durable consumers that workers share: what they must look like, and opening or making them.
//! An existing one is never changed, but for events it leaves out that a newer worker handles; what
//! differs is reported.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::consumer::{
    self, AckPolicy, DeliverPolicy, FromConsumer, PriorityPolicy, PullConsumer, pull,
};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::ConsumerCreateStrictErrorKind;
use async_nats::jetstream::stream::Stream;
use schemas::Prefix;

use crate::events::Events;
use crate::streams;

/// Event that this durable selects.
const INTERACTION_CREATE: &str = "INTERACTION_CREATE";

/// How long a delivery may stay without a sign of life: when a worker dies, another one has the
/// interaction after this time, with most of Discord's 3 seconds left. A worker that is still at it
/// says so more often.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(1);
/// Deliveries of one interaction: after these its 3 seconds are over in any case.
pub(crate) const MAX_DELIVER: i64 = 5;
/// Deliveries of all workers together that may be unacknowledged: 15 workers of the default
/// concurrency. Beyond it new interactions wait in the stream.
const MAX_ACK_PENDING: i64 = 1000;

/// The same as [`ACK_WAIT`] for shared events, which nobody waits for: long enough that a machine
/// that stalls does not have its work repeated elsewhere.
pub(crate) const SHARED_ACK_WAIT: Duration = Duration::from_secs(5);
/// Shared events that may be unacknowledged, those that wait for another attempt included: when all
/// fail, this is where delivery stops until they succeed.
const SHARED_ACK_PENDING: i64 = 10_000;
/// The same as [`ACK_WAIT`] for a shard that is held: what a dead holder had in hand is there for
/// the next one as soon as the shortest lease is over.
pub(crate) const SHARD_ACK_WAIT: Duration = Duration::from_secs(1);
/// Events of one shard in the hands of its holder. More let more guilds be handled in parallel;
/// each costs a message per [`SHARD_ACK_WAIT`] while it waits, and a place in memory.
pub(crate) const SHARD_ACK_PENDING: i64 = 256;
/// The one priority group of a shard's consumer.
pub(crate) const HOLDER: &str = "holder";
/// How long the server keeps a shard for a holder that does not pull. Leases end sooner, and who
/// takes a shard over unpins it, so this only matters for a holder that keeps its lease and hangs.
const PINNED_FOR: Duration = Duration::from_secs(60);
/// Deliveries without end: workers count the attempts, because the server gives an event up without
/// telling anybody.
const UNLIMITED: i64 = -1;

/// Tries to widen a consumer that other workers change at the same time.
const WIDEN_TRIES: usize = 5;

/// One durable consumer on one event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) stream: String,
    pub(crate) name: String,
    terms: Terms,
}

/// What a durable consumer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Terms {
    description: &'static str,
    filters: Vec<String>,
    ack_wait: Duration,
    max_deliver: i64,
    max_ack_pending: i64,
    /// Only one client at a time gets messages.
    pinned: bool,
    /// Whether missing filters are added: workers of two versions handle different events.
    widen: bool,
}

/// How the consumer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Existing,
    Created,
}

/// A setting of an existing consumer that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    setting: &'static str,
    have: String,
    want: String,
    /// Whether a worker cannot do its job with it.
    pub(crate) fatal: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, not {}", self.setting, self.have, self.want)
    }
}

/// Why the consumer cannot be used now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// A proxy makes the stream; none has run yet.
    #[error("the stream {0} does not exist")]
    NoStream(String),
    #[error("the consumer {name} of stream {stream} exists with other settings: {differences}")]
    Differs {
        stream: String,
        name: String,
        differences: String,
    },
    /// JetStream says no; it may say otherwise later.
    #[error("JetStream refuses the consumer {name} of stream {stream}: {error}")]
    Refused {
        stream: String,
        name: String,
        error: String,
    },
    #[error("JetStream does not answer: {0}")]
    NoAnswer(String),
}

impl Durable {
    /// The durables of a worker's interactions: one per event stream.
    pub(crate) fn all(prefix: &Prefix, event_streams: u32, name: &str) -> Vec<Self> {
        let terms = Terms {
            description: "Interactions, answered by command workers",
            filters: vec![prefix.event_of_all_shards(INTERACTION_CREATE)],
            ack_wait: ACK_WAIT,
            max_deliver: MAX_DELIVER,
            max_ack_pending: MAX_ACK_PENDING,
            pinned: false,
            widen: false,
        };
        Self::on_streams(prefix, event_streams, name, &terms)
    }

    /// The durables of shared events: one per event stream.
    pub(crate) fn shared(prefix: &Prefix, event_streams: u32, events: &Events) -> Vec<Self> {
        let terms = Terms {
            description: "Events, shared by workers",
            filters: events.filters(prefix, None),
            ack_wait: SHARED_ACK_WAIT,
            max_deliver: UNLIMITED,
            max_ack_pending: SHARED_ACK_PENDING,
            pinned: false,
            widen: true,
        };
        Self::on_streams(prefix, event_streams, &events.name, &terms)
    }

    /// The durable of one shard's events in order.
    pub(crate) fn shard(prefix: &Prefix, event_streams: u32, events: &Events, shard: u32) -> Self {
        let terms = Terms {
            description: "Events of one shard, in order",
            filters: events.filters(prefix, Some(shard)),
            ack_wait: SHARD_ACK_WAIT,
            max_deliver: UNLIMITED,
            max_ack_pending: SHARD_ACK_PENDING,
            pinned: true,
            widen: true,
        };
        Self {
            stream: streams::of_shard(prefix, event_streams, shard),
            name: format!("{}-{shard}", events.name),
            terms,
        }
    }

    fn on_streams(prefix: &Prefix, event_streams: u32, name: &str, terms: &Terms) -> Vec<Self> {
        let on = |stream| Self {
            stream,
            name: name.to_owned(),
            terms: terms.clone(),
        };
        let streams = streams::all(prefix, event_streams);
        streams.into_iter().map(on).collect()
    }

    /// What a person calls it: `name of STREAM`.
    pub(crate) fn label(&self) -> String {
        format!("{} of {}", self.name, self.stream)
    }

    /// Opens the consumer; makes it, starting at `start`, if it is missing.
    pub(crate) async fn open(
        &self,
        jetstream: &JetStream,
        start: DeliverPolicy,
    ) -> Result<(PullConsumer, Opened), OpenError> {
        let stream = jetstream
            .get_stream_no_info(&self.stream)
            .await
            .map_err(|error| self.refused(&error.to_string()))?;
        match stream.consumer_info(&self.name).await {
            Ok(info) => {
                self.check(&info.config)?;
                self.report_foreign(&info.config);
                if !self.missing(&info.config).is_empty() {
                    self.widen(&stream).await?;
                }
            }
            Err(error) => match error.kind() {
                ConsumerInfoErrorKind::NotFound => {
                    match stream.create_consumer_strict(self.config(start)).await {
                        Ok(consumer) => return Ok((consumer, Opened::Created)),
                        // Another worker was faster.
                        Err(error)
                            if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => {}
                        Err(error) => return Err(self.create_error(&error)),
                    }
                }
                ConsumerInfoErrorKind::StreamNotFound => {
                    return Err(OpenError::NoStream(self.stream.clone()));
                }
                ConsumerInfoErrorKind::JetStream(problem) => {
                    return Err(self.refused(&problem.to_string()));
                }
                ConsumerInfoErrorKind::InvalidName
                | ConsumerInfoErrorKind::Offline
                | ConsumerInfoErrorKind::Request
                | ConsumerInfoErrorKind::TimedOut
                | ConsumerInfoErrorKind::NoResponders => {
                    return Err(OpenError::NoAnswer(error.to_string()));
                }
            },
        }
        let consumer = stream.get_consumer::<pull::Config>(&self.name).await;
        consumer
            .map(|consumer| (consumer, Opened::Existing))
            .map_err(|error| OpenError::NoAnswer(error.to_string()))
    }

    /// Adds the filters that an existing consumer lacks. Workers of two versions may do so at once,
    /// and the server knows no compare-and-set here, so the result is looked at again.
    async fn widen(&self, stream: &Stream<()>) -> Result<(), OpenError> {
        for _ in 0..WIDEN_TRIES {
            let info = stream.consumer_info(&self.name).await;
            let have = info
                .map_err(|error| OpenError::NoAnswer(error.to_string()))?
                .config;
            let missing = self.missing(&have);
            if missing.is_empty() {
                return Ok(());
            }
            tracing::info!(
                consumer = self.name,
                ?missing,
                "the consumer gets more events, which this worker handles"
            );
            // Other filters beside that of all events would overlap.
            let mut filters = match missing.iter().any(|filter| is_everything(filter)) {
                true => Vec::new(),
                false => filters(&have),
            };
            filters.extend(missing);
            let mut config = <pull::Config as FromConsumer>::try_from_consumer_config(have)
                .map_err(|error| self.refused(&error.to_string()))?;
            config.filter_subject = String::new();
            config.filter_subjects = filters;
            stream
                .update_consumer(config)
                .await
                .map_err(|error| self.refused(&error.to_string()))?;
        }
        Err(self.refused("other workers keep changing its filters"))
    }

    /// Says what a consumer selects that this worker does not handle.
    fn report_foreign(&self, have: &consumer::Config) {
        let everything = self
            .terms
            .filters
            .iter()
            .any(|filter| is_everything(filter));
        let mut foreign = filters(have);
        foreign.retain(|filter| !self.terms.filters.contains(filter));
        if self.terms.widen && !everything && !foreign.is_empty() {
            tracing::warn!(
                consumer = self.name,
                ?foreign,
                "the consumer selects events that this worker does not handle"
            );
        }
    }

    /// Our filters that a consumer does not have.
    fn missing(&self, have: &consumer::Config) -> Vec<String> {
        let have = filters(have);
        let everything = have.is_empty() || have.iter().any(|filter| is_everything(filter));
        if !self.terms.widen || everything {
            return Vec::new();
        }
        let ours = self.terms.filters.iter();
        ours.filter(|filter| !have.contains(filter))
            .cloned()
            .collect()
    }

    fn refused(&self, error: &str) -> OpenError {
        let error = error.to_owned();
        OpenError::Refused {
            stream: self.stream.clone(),
            name: self.name.clone(),
            error,
        }
    }

    fn create_error(
        &self,
        error: &async_nats::jetstream::stream::ConsumerCreateStrictError,
    ) -> OpenError {
        match error.kind() {
            ConsumerCreateStrictErrorKind::JetStream(problem) => self.refused(&problem.to_string()),
            _ => OpenError::NoAnswer(error.to_string()),
        }
    }

    fn config(&self, deliver_policy: DeliverPolicy) -> pull::Config {
        let terms = self.terms.clone();
        let mut config = pull::Config {
            durable_name: Some(self.name.clone()),
            description: Some(terms.description.to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: terms.ack_wait,
            max_deliver: terms.max_deliver,
            max_ack_pending: terms.max_ack_pending,
            ..pull::Config::default()
        };
        match <[String; 1]>::try_from(terms.filters) {
            Ok([filter]) => config.filter_subject = filter,
            Err(several) => config.filter_subjects = several,
        }
        if terms.pinned {
            config.priority_policy = PriorityPolicy::PinnedClient;
            config.priority_groups = vec![HOLDER.to_owned()];
            config.priority_timeout = PINNED_FOR;
        }
        config
    }

    /// Refuses a consumer that cannot work and reports one that is only set differently.
    fn check(&self, have: &consumer::Config) -> Result<(), OpenError> {
        let differences = self.differences(have);
        let text = |differences: &[Difference]| {
            differences
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        if differences.iter().any(|difference| difference.fatal) {
            return Err(OpenError::Differs {
                stream: self.stream.clone(),
                name: self.name.clone(),
                differences: text(&differences),
            });
        }
        if !differences.is_empty() {
            tracing::warn!(
                stream = self.stream,
                consumer = self.name,
                differences = text(&differences),
                "the consumer exists with other limits, which are kept"
            );
        }
        Ok(())
    }

    /// What of an existing consumer is not as this worker would make it. Where it starts is not
    /// compared: that only matters once, when it is made.
    fn differences(&self, have: &consumer::Config) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut compare = |setting, fatal, have: String, want: String| {
            if have != want {
                differences.push(Difference {
                    setting,
                    have,
                    want,
                    fatal,
                });
            }
        };
        let push = if have.deliver_subject.is_some() {
            "push"
        } else {
            "pull"
        };
        compare("the type", true, push.to_owned(), "pull".to_owned());
        let (none, explicit) = (have.ack_policy, AckPolicy::Explicit);
        compare(
            "ack_policy",
            true,
            format!("{none:?}"),
            format!("{explicit:?}"),
        );
        if !self.terms.widen {
            let (have, want) = (filters(have), self.terms.filters.join(" "));
            compare("filter_subject", true, have.join(" "), want);
        }
        let pinned = have.priority_policy == PriorityPolicy::PinnedClient
            && have.priority_groups.iter().any(|group| group == HOLDER);
        let only = |one: bool| {
            if one {
                "one client at a time"
            } else {
                "any client"
            }
        };
        let want = only(self.terms.pinned).to_owned();
        compare("delivery", true, only(pinned).to_owned(), want);
        compare(
            "headers_only",
            true,
            have.headers_only.to_string(),
            false.to_string(),
        );
        compare(
            "ack_wait",
            false,
            format!("{:?}", have.ack_wait),
            format!("{:?}", self.terms.ack_wait),
        );
        compare(
            "max_deliver",
            false,
            have.max_deliver.to_string(),
            self.terms.max_deliver.to_string(),
        );
        let pending = have.max_ack_pending.to_string();
        compare(
            "max_ack_pending",
            false,
            pending,
            self.terms.max_ack_pending.to_string(),
        );
        differences
    }
}

/// Whether a filter lets every event of a shard, or of all, through.
fn is_everything(filter: &str) -> bool {
    filter.ends_with(".*.*") || filter.ends_with('>')
}

/// What a consumer selects; nothing means everything.
fn filters(config: &consumer::Config) -> Vec<String> {
    let mut filters = config.filter_subjects.clone();
    if filters.is_empty() && !config.filter_subject.is_empty() {
        filters.push(config.filter_subject.clone());
    }
    filters
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::IntoConsumerConfig as _;

    use super::*;

    fn durable() -> Durable {
        Durable::all(&Prefix::default(), 1, "commands").remove(0)
    }

    fn existing(change: impl FnOnce(&mut consumer::Config)) -> Vec<Difference> {
        let mut config = durable().config(DeliverPolicy::New).into_consumer_config();
        change(&mut config);
        durable().differences(&config)
    }

    #[test]
    fn a_durable_selects_the_interactions_of_all_shards() {
        let durable = durable();
        assert_eq!(durable.stream, "DISCORD_EVENTS");
        assert_eq!(
            durable.terms.filters.join(" "),
            "discord.shard.*.events.*.INTERACTION_CREATE"
        );
    }

    #[test]
    fn every_event_stream_has_a_durable() {
        let prefix: Prefix = "mybot".parse().unwrap();
        let streams: Vec<String> = Durable::all(&prefix, 3, "x")
            .into_iter()
            .map(|durable| durable.stream)
            .collect();
        assert_eq!(
            streams,
            ["MYBOT_EVENTS_0", "MYBOT_EVENTS_1", "MYBOT_EVENTS_2"]
        );
    }

    #[test]
    fn our_own_consumer_does_not_differ_wherever_it_started() {
        assert_eq!(existing(|_| {}), []);
        assert_eq!(
            existing(|config| config.deliver_policy = DeliverPolicy::All),
            []
        );
        let as_list = existing(|config| {
            config.filter_subjects = vec![std::mem::take(&mut config.filter_subject)];
        });
        assert_eq!(as_list, []);
    }

    #[test]
    fn a_consumer_that_cannot_work_differs_fatally() {
        let fatal = |change: fn(&mut consumer::Config), expected: &str| {
            let differences = existing(change);
            assert!(differences[0].fatal, "{differences:?}");
            assert_eq!(differences[0].to_string(), expected);
        };
        fatal(
            |c| c.ack_policy = AckPolicy::None,
            "ack_policy is None, not Explicit",
        );
        fatal(
            |c| c.deliver_subject = Some("x".into()),
            "the type is push, not pull",
        );
        fatal(
            |c| c.filter_subject = "discord.>".into(),
            "filter_subject is discord.>, not discord.shard.*.events.*.INTERACTION_CREATE",
        );
    }

    #[test]
    fn other_limits_are_only_reported() {
        let differences = existing(|config| config.ack_wait = Duration::from_secs(30));
        assert_eq!(differences.len(), 1);
        assert!(!differences[0].fatal);
        assert_eq!(differences[0].to_string(), "ack_wait is 30s, not 1s");
    }
}
