//! The event streams and the fleet's bucket: created when absent, else compared with what the
//! contract says. A difference is reported and never changed: other programs depend on what is there.

use std::num::NonZeroU32;
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config as Stream, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{ErrorCode, kv};
use tokio::time::Instant;

use crate::config::StreamSettings;
use crate::exit::Fatal;
use crate::nats::{Nats, not_permitted};

mod differences;

use differences::differences;

/// A replayed event with a known id within this time is not stored again.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How long the bucket keeps the marker of an expired key: long enough for a watcher that
/// reconnects, short enough to leave no trace.
const LIMIT_MARKER_TTL: Duration = Duration::from_secs(60);

/// The bucket keeps the present only.
const KV_HISTORY: i64 = 1;

/// Between attempts while JetStream is briefly unable, as during an election.
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// "Stream name already in use with a different configuration": somebody created it meanwhile.
const NAME_IN_USE: ErrorCode = ErrorCode::STREAM_NAME_EXIST;

/// Creates or checks every event stream of a bot with `shards` shards.
///
/// # Errors
/// [`Fatal::Unfit`] lists each difference of a stream that is there, or says what NATS refuses;
/// [`Fatal::Unreachable`] when JetStream does not answer within `startup_timeout`.
pub async fn ensure_event_streams(
    nats: &Nats,
    settings: &StreamSettings,
    shards: NonZeroU32,
    startup_timeout: Duration,
) -> Result<(), Fatal> {
    if settings.event_streams > shards {
        return Err(Fatal::usage(
            format!(
                "--event-streams: {} streams for {shards} shards",
                settings.event_streams
            ),
            "at most one stream per shard is possible",
        ));
    }
    let deadline = Instant::now() + startup_timeout;
    for index in 0..settings.event_streams.get() {
        let wanted = event_stream(settings, index, shards);
        ensure(nats, &wanted, deadline).await?;
    }
    Ok(())
}

/// Creates or checks the fleet's bucket and opens it.
///
/// # Errors
/// As [`ensure_event_streams`].
pub async fn ensure_fleet_bucket(
    nats: &Nats,
    settings: &StreamSettings,
    startup_timeout: Duration,
) -> Result<kv::Store, Fatal> {
    let bucket = settings.prefix.fleet_bucket();
    let deadline = Instant::now() + startup_timeout;
    ensure(nats, &fleet_bucket(settings), deadline).await?;
    loop {
        let error = match nats.jetstream.get_key_value(&bucket).await {
            Ok(store) => return Ok(store),
            Err(error) => error,
        };
        if nats.refused().is_some() || Instant::now() + RETRY_EVERY >= deadline {
            return Err(nats.unanswered(&format!("bucket {bucket}"), &error));
        }
        tracing::warn!(bucket, %error, "the bucket cannot be opened yet, trying again");
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// The name of the stream that holds a shard's events.
#[must_use]
pub fn stream_of_shard(settings: &StreamSettings, shard: u32) -> String {
    let count = settings.event_streams.get();
    let index = (count > 1).then(|| shard % count);
    settings.prefix.event_stream(index)
}

/// What the contract says of an event stream.
fn event_stream(settings: &StreamSettings, index: u32, shards: NonZeroU32) -> Stream {
    let count = settings.event_streams.get();
    let prefix = &settings.prefix;
    let (name, subjects) = if count == 1 {
        (prefix.event_stream(None), vec![prefix.all_events()])
    } else {
        let own = (0..shards.get()).filter(|shard| shard % count == index);
        (
            prefix.event_stream(Some(index)),
            own.map(|shard| prefix.shard_events(shard)).collect(),
        )
    };
    Stream {
        name,
        subjects,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_age: settings.max_age,
        max_bytes: settings
            .max_bytes
            .map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        allow_batch_publish: true,
        republish: settings.live_feed.then(|| Republish {
            source: prefix.all_events(),
            destination: prefix.live_feed_transform(),
            headers_only: false,
        }),
        num_replicas: usize::from(settings.replicas),
        ..Stream::default()
    }
}

/// What the contract says of the bucket; a bucket is a stream with settings of its own.
fn fleet_bucket(settings: &StreamSettings) -> Stream {
    let bucket = settings.prefix.fleet_bucket();
    Stream {
        name: format!("KV_{bucket}"),
        subjects: vec![format!("$KV.{bucket}.>")],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: KV_HISTORY,
        max_message_size: -1,
        max_consumers: -1,
        duplicate_window: DUPLICATE_WINDOW,
        allow_direct: true,
        allow_rollup: true,
        deny_delete: true,
        allow_message_ttl: true,
        subject_delete_marker_ttl: Some(LIMIT_MARKER_TTL),
        num_replicas: usize::from(settings.replicas),
        ..Stream::default()
    }
}

async fn ensure(nats: &Nats, wanted: &Stream, deadline: Instant) -> Result<(), Fatal> {
    loop {
        let attempt = attempt(nats, wanted).await;
        match attempt {
            Attempt::Done => return Ok(()),
            Attempt::Never(fatal) => return Err(fatal),
            Attempt::Later(problem) => {
                if let Some(refusal) = nats.refused() {
                    return Err(not_permitted(&refusal));
                }
                if Instant::now() + RETRY_EVERY >= deadline {
                    return Err(nats.unanswered(&format!("stream {}", wanted.name), &problem));
                }
                tracing::warn!(stream = %wanted.name, problem, "JetStream cannot yet, trying again");
                tokio::time::sleep(RETRY_EVERY).await;
            }
        }
    }
}

enum Attempt {
    Done,
    Later(String),
    Never(Fatal),
}

async fn attempt(nats: &Nats, wanted: &Stream) -> Attempt {
    let error = match nats.jetstream.get_stream(&wanted.name).await {
        Ok(stream) => return compared(&stream.cached_info().config, wanted),
        Err(error) => error,
    };
    if !is_absent(&error) {
        return match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() != 503 => {
                Attempt::Never(refused(wanted, &error))
            }
            _ => Attempt::Later(error.to_string()),
        };
    }
    let Err(error) = nats.jetstream.create_stream(wanted).await else {
        tracing::info!(stream = %wanted.name, "created");
        return Attempt::Done;
    };
    match error.kind() {
        // Two proxies start at once: look at what the other one made.
        CreateStreamErrorKind::JetStream(error) if error.error_code() == NAME_IN_USE => {
            Attempt::Later(error.to_string())
        }
        CreateStreamErrorKind::JetStream(error) if error.code() == 503 => {
            Attempt::Later(error.to_string())
        }
        CreateStreamErrorKind::JetStream(error) => Attempt::Never(refused(wanted, &error)),
        _ => Attempt::Later(error.to_string()),
    }
}

fn is_absent(error: &GetStreamError) -> bool {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
        GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::Request
        | GetStreamErrorKind::InvalidStreamName => false,
    }
}

fn refused(wanted: &Stream, error: &async_nats::jetstream::Error) -> Fatal {
    let advice = match error.error_code() {
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED | ErrorCode::CLUSTER_NO_PEERS => {
            "--replicas needs a NATS cluster with as many servers"
        }
        ErrorCode::STREAM_SUBJECT_OVERLAP => {
            "another stream has these subjects: choose another --subject-prefix or delete it"
        }
        ErrorCode::INSUFFICIENT_RESOURCES => "raise JetStream's limits or lower --stream-max-bytes",
        _ => "check JetStream's limits and permissions",
    };
    Fatal::unfit(
        format!("NATS refuses stream {}: {error}", wanted.name),
        advice,
    )
}

fn compared(is: &Stream, wanted: &Stream) -> Attempt {
    let differences = differences(is, wanted);
    if differences.is_empty() {
        tracing::debug!(stream = %wanted.name, "checked");
        return Attempt::Done;
    }
    Attempt::Never(Fatal::unfit(
        format!(
            "stream {} has other settings: {}",
            wanted.name,
            differences.join(", ")
        ),
        "change the configuration to match, or update or delete the stream with the nats CLI (nothing was changed)",
    ))
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::PersistenceMode;

    use super::*;

    fn settings(streams: u32) -> StreamSettings {
        StreamSettings {
            prefix: "discord".parse().unwrap(),
            event_streams: NonZeroU32::new(streams).unwrap(),
            replicas: 1,
            max_age: Duration::from_secs(86_400),
            max_bytes: None,
            live_feed: true,
        }
    }

    fn stream() -> Stream {
        event_stream(&settings(1), 0, NonZeroU32::new(16).unwrap())
    }

    fn check(change: impl FnOnce(&mut Stream), expect: &str) {
        let mut is = stream();
        change(&mut is);
        assert_eq!(differences(&is, &stream()), [expect]);
    }

    #[test]
    fn the_stream_is_that_of_the_contract() {
        let stream = stream();
        assert_eq!(stream.name, "DISCORD_EVENTS");
        assert_eq!(stream.subjects, ["discord.shard.*.events.*.*"]);
        let feed = stream.republish.unwrap();
        assert_eq!(feed.destination, "discord.shard.{{wildcard(1)}}.events");
    }

    #[test]
    fn several_streams_split_the_shards_by_remainder() {
        let shards = NonZeroU32::new(5).unwrap();
        let second = event_stream(&settings(2), 1, shards);
        assert_eq!(second.name, "DISCORD_EVENTS_1");
        assert_eq!(
            second.subjects,
            ["discord.shard.1.events.*.*", "discord.shard.3.events.*.*"]
        );
        assert_eq!(stream_of_shard(&settings(2), 3), "DISCORD_EVENTS_1");
        assert_eq!(stream_of_shard(&settings(1), 3), "DISCORD_EVENTS");
    }

    #[test]
    fn each_difference_names_field_value_and_demand() {
        check(
            |is| is.max_age = Duration::from_secs(60),
            "max_age: is 60s, must be 86400s",
        );
        check(|is| is.max_bytes = 5, "max_bytes: is 5, must be none");
        check(
            |is| is.storage = StorageType::Memory,
            "storage: is memory, must be file",
        );
        check(
            |is| is.allow_batch_publish = false,
            "allow_batched: is false, must be true",
        );
        check(
            |is| is.allow_direct = false,
            "allow_direct: is false, must be true",
        );
        check(|is| is.num_replicas = 3, "num_replicas: is 3, must be 1");
        check(
            |is| is.duplicate_window = Duration::from_secs(1),
            "duplicate_window: is 1s, must be 120s",
        );
        check(
            |is| is.republish = None,
            "republish: is none, must be discord.shard.*.events.*.* to discord.shard.{{wildcard(1)}}.events",
        );
        check(
            |is| is.subjects = vec!["a".to_owned()],
            "subjects: is [a], must be [discord.shard.*.events.*.*]",
        );
        check(
            |is| is.persist_mode = Some(PersistenceMode::Async),
            "persist_mode async: is true, must be false",
        );
    }

    #[test]
    fn what_does_not_matter_may_differ() {
        let mut is = stream();
        is.description = Some("mine".to_owned());
        is.max_bytes = 0;
        is.max_consumers = 10;
        assert!(differences(&is, &stream()).is_empty());
    }
}
