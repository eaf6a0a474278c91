//! The durable consumer that workers share: what it must look like, and opening or making it. An
//! existing one is never changed; what differs is reported.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::ConsumerCreateStrictErrorKind;
use schemas::Prefix;

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

/// One durable consumer on one event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) stream: String,
    pub(crate) name: String,
    filter: String,
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
    /// The durables of a worker: one per event stream.
    pub(crate) fn all(prefix: &Prefix, event_streams: u32, name: &str) -> Vec<Self> {
        let on = |stream| Self {
            stream,
            name: name.to_owned(),
            filter: prefix.event_of_all_shards(INTERACTION_CREATE),
        };
        if event_streams == 1 {
            return vec![on(prefix.event_stream(None))];
        }
        (0..event_streams)
            .map(|index| on(prefix.event_stream(Some(index))))
            .collect()
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
            Ok(info) => self.check(&info.config)?,
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
        pull::Config {
            durable_name: Some(self.name.clone()),
            description: Some("Interactions, answered by command workers".to_owned()),
            deliver_policy,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: MAX_DELIVER,
            filter_subject: self.filter.clone(),
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        }
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
        let filters = if have.filter_subjects.is_empty() {
            have.filter_subject.clone()
        } else {
            have.filter_subjects.join(" ")
        };
        compare("filter_subject", true, filters, self.filter.clone());
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
            format!("{ACK_WAIT:?}"),
        );
        compare(
            "max_deliver",
            false,
            have.max_deliver.to_string(),
            MAX_DELIVER.to_string(),
        );
        let pending = have.max_ack_pending.to_string();
        compare(
            "max_ack_pending",
            false,
            pending,
            MAX_ACK_PENDING.to_string(),
        );
        differences
    }
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
            durable.filter,
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
