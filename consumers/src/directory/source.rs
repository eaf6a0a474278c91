//! The events of one shard in stream order, from a position on. Every delivery is checked to follow
//! the one before it; whatever is amiss ends the source, and a new one begins at the position.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::Batch;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use schemas::{EventKind, GuildId, Prefix, ProxyEventKind, Subject};
use tokio::time::{Instant, sleep_until, timeout};

use super::event::EVENTS;

/// Events of one batch: at the usual 1 MiB of `max_payload` no more than 64 MiB, and usually 2 MB.
const EVENTS_MAX: usize = 64;
/// How long one pull request waits at the server. One that got lost is noticed by its expiry.
const PULL_EXPIRES: Duration = Duration::from_secs(10);
/// Time after the expiry within which the server says that it is over.
const EXPIRY_MARGIN: Duration = Duration::from_millis(500);
/// The server removes a consumer nobody pulls from after this.
const INACTIVE: Duration = Duration::from_secs(60);
/// Longest wait for an answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// Events that tell about users, read only if users are kept.
const USER_EVENTS: [EventKind; 2] = [EventKind::GuildMemberUpdate, EventKind::MessageCreate];

/// One event as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) event: String,
    pub(crate) guild: Option<GuildId>,
    pub(crate) seq: u64,
    pub(crate) unix_ms: u64,
    pub(crate) frame: Bytes,
}

/// The subjects of a shard that the directory reads.
pub(crate) fn filters(prefix: &Prefix, shard: u32, users: bool) -> Vec<String> {
    let users = USER_EVENTS.iter().filter(|_| users);
    let names = EVENTS.iter().chain(users).map(|kind| kind.name());
    names
        .chain([ProxyEventKind::Gap.name()])
        .map(|name| prefix.event_of_shard(shard, name))
        .collect()
}

/// An open consumer.
pub(crate) struct Source {
    consumer: PullConsumer,
    prefix: Prefix,
    batch: Option<(Batch, Instant)>,
    // The consumer's own count of the next delivery.
    next: u64,
}

impl Source {
    /// Opens a consumer that begins at this stream sequence.
    pub(crate) async fn open(
        stream: &Stream<()>,
        prefix: &Prefix,
        filters: Vec<String>,
        from: u64,
    ) -> Result<Self, String> {
        let config = pull::Config {
            description: Some("A shard's events, read by the directory".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from.max(1),
            },
            // The position in the directory's bucket says what was read, not the server.
            ack_policy: AckPolicy::None,
            filter_subjects: filters,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = match timeout(API_TIMEOUT, stream.create_consumer(config)).await {
            Ok(Ok(consumer)) => consumer,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        };
        Ok(Self {
            consumer,
            prefix: prefix.clone(),
            batch: None,
            next: 1,
        })
    }

    /// The next events that are there, at least one; empty after a while without any. May be
    /// dropped at any time: what it has not returned is returned next.
    pub(crate) async fn next(&mut self) -> Result<Vec<Stored>, String> {
        if self.batch.is_none() {
            let request = self
                .consumer
                .batch()
                .max_messages(EVENTS_MAX)
                .expires(PULL_EXPIRES);
            let batch = match timeout(API_TIMEOUT, request.messages()).await {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the pull request could not be sent".to_owned()),
            };
            self.batch = Some((batch, Instant::now() + PULL_EXPIRES + EXPIRY_MARGIN));
        }
        let Some((batch, overdue)) = &mut self.batch else {
            return Ok(Vec::new());
        };
        let first = tokio::select! {
            biased;
            first = batch.next() => first,
            () = sleep_until(*overdue) => None,
        };
        let mut ended = first.is_none();
        let mut messages = Vec::from_iter(first);
        while !ended && messages.len() < EVENTS_MAX {
            match batch.next().now_or_never() {
                Some(Some(message)) => messages.push(message),
                Some(None) => ended = true,
                None => break,
            }
        }
        if ended {
            self.batch = None;
        }
        let mut events = Vec::with_capacity(messages.len());
        for message in messages {
            let message = message.map_err(|error| error.to_string())?;
            events.push(self.take(&message)?);
        }
        Ok(events)
    }

    /// Whether everything stored up to now was delivered.
    pub(crate) async fn is_at_end(&self) -> Result<bool, String> {
        match timeout(API_TIMEOUT, self.consumer.get_info()).await {
            Ok(Ok(info)) => {
                Ok(info.num_pending == 0 && info.delivered.consumer_sequence + 1 == self.next)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    fn take(&mut self, message: &Message) -> Result<Stored, String> {
        let info = message.info().map_err(|error| error.to_string())?;
        if info.consumer_sequence != self.next {
            // A delivery got lost on its way, with the connection or the server it came from.
            let (have, want) = (info.consumer_sequence, self.next);
            return Err(format!("delivery {have} came in place of {want}"));
        }
        self.next += 1;
        let subject = Subject::parse(&self.prefix, &message.subject);
        let (guild, event) = match subject {
            Ok(Subject::Event { guild, event, .. }) => (guild, event.to_owned()),
            Ok(_) | Err(_) => return Err(format!("{} is no event", message.subject)),
        };
        let unix_ms = info.published.unix_timestamp_nanos() / 1_000_000;
        Ok(Stored {
            event,
            guild,
            seq: info.stream_sequence,
            unix_ms: u64::try_from(unix_ms).unwrap_or_default(),
            frame: message.payload.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_name_what_is_read_and_nothing_else() {
        let prefix = Prefix::default();
        let guilds = filters(&prefix, 7, false);
        assert_eq!(guilds.len(), 13);
        assert!(guilds.contains(&"discord.shard.7.events.*.GUILD_CREATE".to_owned()));
        assert!(guilds.contains(&"discord.shard.7.events.*.PROXY_GAP".to_owned()));
        assert!(!guilds.iter().any(|filter| filter.contains("MESSAGE")));
        let users = filters(&prefix, 7, true);
        assert!(users.contains(&"discord.shard.7.events.*.MESSAGE_CREATE".to_owned()));
    }
}
