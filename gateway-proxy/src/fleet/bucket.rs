//! The fleet's bucket: compare-and-set with a TTL, reads from the leader, and a watch that notices when
//! it shows nothing any more. Knows keys and revisions, not what values mean.
//!
//! Not `kv::Store::create` and `update`: they lose the TTL of what they write over a marker or renew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, kv};
use bytes::Bytes;
use futures_util::StreamExt as _;
use gateway_proxy_core::fleet::Gone;
use schemas::{FleetKey, Prefix};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// What a delete marker of a key says.
const KV_OPERATION: &str = "KV-Operation";
const KV_DELETE: &str = "DEL";
const KV_PURGE: &str = "PURGE";
/// What the server's own marker says of why a key is gone.
const MARKER_REASON: &str = "Nats-Marker-Reason";
const MARKER_REMOVE: &str = "Remove";

/// How often a watch is asked whether it still shows what is written.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// A write of our own that a watch does not show for so long means that it shows nothing at all.
const STALLED_AFTER: Duration = Duration::from_millis(1_500);
/// Between two attempts to begin a watch.
const WATCH_PAUSE: Duration = Duration::from_millis(250);
/// How long beginning a watch may take; a cluster may be electing a leader.
const WATCH_TIMEOUT: Duration = Duration::from_secs(2);
/// News that wait for whoever watches: a whole fleet's heartbeats of a second.
const NEWS_MAX: usize = 1_024;

/// Why a value was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The key has another revision than expected.
    #[error("somebody else wrote it")]
    Refused,
    /// It may have been written or not.
    #[error("{0}")]
    Failed(String),
}

/// A key as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The value; `None`: there is none, or it was deleted or ran out.
    pub(crate) value: Option<Bytes>,
    /// Revision of the value or of the marker; 0: neither.
    pub(crate) revision: u64,
}

/// What a watch shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It begins anew: everything comes again.
    Reset,
    /// Everything that was there when it began has been shown.
    Listed,
    /// A key has a value.
    Put {
        key: FleetKey,
        revision: u64,
        value: Bytes,
    },
    /// A key is gone.
    Gone {
        key: FleetKey,
        revision: u64,
        gone: Gone,
    },
}

/// The bucket; clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    store: kv::Store,
    prefix: Prefix,
}

impl Bucket {
    pub(crate) const fn new(
        client: async_nats::Client,
        jetstream: jetstream::Context,
        store: kv::Store,
        prefix: Prefix,
    ) -> Self {
        Self {
            client,
            jetstream,
            store,
            prefix,
        }
    }

    /// Writes a value if the key has this revision (0: no value and no marker), to be gone after `ttl`.
    pub(crate) async fn write(
        &self,
        key: &FleetKey,
        value: Bytes,
        expected_revision: u64,
        ttl: Option<Duration>,
        within: Duration,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        if let Some(ttl) = ttl {
            headers.insert(NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs()).as_str());
        }
        self.publish(key, headers, value, expected_revision, within)
            .await
    }

    /// Deletes a key if it has this revision.
    pub(crate) async fn delete(
        &self,
        key: &FleetKey,
        expected_revision: u64,
        within: Duration,
    ) -> Result<u64, WriteError> {
        let mut headers = HeaderMap::new();
        headers.insert(KV_OPERATION, KV_DELETE);
        self.publish(key, headers, Bytes::new(), expected_revision, within)
            .await
    }

    async fn publish(
        &self,
        key: &FleetKey,
        mut headers: HeaderMap,
        value: Bytes,
        expected_revision: u64,
        within: Duration,
    ) -> Result<u64, WriteError> {
        let expected = expected_revision.to_string();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.as_str());
        let subject = key.subject(&self.prefix);
        let publish = async {
            let answer = self.jetstream.publish_with_headers(subject, headers, value);
            answer.await?.await
        };
        match tokio::time::timeout(within, publish).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => {
                Err(WriteError::Refused)
            }
            Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
            Err(_) => Err(WriteError::Failed("no answer".to_owned())),
        }
    }

    /// Reads a key, from the leader: a replica may lag behind.
    pub(crate) async fn read(&self, key: &FleetKey, within: Duration) -> Result<Entry, String> {
        let subject = key.subject(&self.prefix);
        let get = self.store.stream.get_last_raw_message_by_subject(&subject);
        match tokio::time::timeout(within, get).await {
            Ok(Ok(message)) => {
                let value = match gone(&message.headers) {
                    None => Some(message.payload),
                    Some(_) => None,
                };
                let revision = message.sequence;
                Ok(Entry { value, revision })
            }
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                Ok(Entry::default())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Shows these keys (`member.*`) from now on, for as long as somebody listens.
    ///
    /// `written` is the highest revision this process has written of them: a watch that does not show
    /// it is begun anew.
    pub(crate) fn watch(&self, keys: Vec<String>, written: Arc<AtomicU64>) -> mpsc::Receiver<News> {
        let (news, listener) = mpsc::channel(NEWS_MAX);
        let watch = Watch {
            bucket: self.clone(),
            keys,
            written,
            news,
        };
        // Ends when nobody listens any more.
        drop(tokio::spawn(watch.run()));
        listener
    }

    pub(super) fn new_inbox(&self) -> String {
        self.client.new_inbox()
    }

    /// The subject of every key.
    pub(super) fn all_keys(&self) -> String {
        format!("{}>", self.store.prefix)
    }

    pub(super) const fn stream(&self) -> &jetstream::stream::Stream {
        &self.store.stream
    }

    /// A subject of the bucket without its prefix, if it is a key of ours.
    fn key(&self, subject: &str) -> Option<FleetKey> {
        let key = subject.strip_prefix(self.store.prefix.as_str())?;
        match key.parse() {
            Ok(key) => Some(key),
            Err(error) => {
                warn!(%error, "a strange key in the fleet's bucket: ignored");
                None
            }
        }
    }
}

struct Watch {
    bucket: Bucket,
    keys: Vec<String>,
    written: Arc<AtomicU64>,
    news: mpsc::Sender<News>,
}

impl Watch {
    async fn run(self) {
        // At the first failure, and then not at each.
        let mut said = false;
        loop {
            let follow = self.follow(&mut said);
            let ended = tokio::select! {
                () = self.news.closed() => return,
                ended = follow => ended,
            };
            match ended {
                Ok(()) => return,
                Err(reason) if !said => {
                    said = true;
                    warn!(keys = ?self.keys, reason, "the fleet's bucket cannot be watched, trying again");
                }
                Err(reason) => debug!(keys = ?self.keys, reason, "still no watch"),
            }
            tokio::time::sleep(WATCH_PAUSE).await;
        }
    }

    /// One watch to its end. `Ok`: nobody listens.
    async fn follow(&self, said: &mut bool) -> Result<(), String> {
        let connects = self.connects();
        let store = &self.bucket.store;
        let filters = self.keys.iter().map(|key| format!("{}{key}", store.prefix));
        let config = OrderedConfig {
            deliver_subject: self.bucket.client.new_inbox(),
            filter_subjects: filters.collect(),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let begin = async {
            let consumer = store.stream.create_consumer(config).await;
            let consumer = consumer.map_err(|error| error.to_string())?;
            let pending = consumer.cached_info().num_pending;
            let messages = consumer.messages().await;
            Ok::<_, String>((pending, messages.map_err(|error| error.to_string())?))
        };
        let (pending, mut messages) = tokio::time::timeout(WATCH_TIMEOUT, begin)
            .await
            .map_err(|_| "no answer".to_owned())??;
        if self.news.send(News::Reset).await.is_err() {
            return Ok(());
        }
        let mut listed = pending == 0;
        if listed && self.news.send(News::Listed).await.is_err() {
            return Ok(());
        }
        *said = false;
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        let mut stall = Stall::default();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                _ = ticks.tick() => {
                    if self.connects() != connects {
                        return Err("NATS was away".to_owned());
                    }
                    let written = self.written.load(Ordering::Acquire);
                    if stall.is_stalled(written, Instant::now()) {
                        return Err("it does not show what is written".to_owned());
                    }
                    continue;
                }
            };
            let message = message
                .ok_or_else(|| "it ended".to_owned())?
                .map_err(|error| error.to_string())?;
            let info = message.info().map_err(|error| error.to_string())?;
            let (revision, pending) = (info.stream_sequence, info.pending);
            stall.shown = revision;
            if let Some(news) = read_message(&self.bucket, &message)
                && self.news.send(news).await.is_err()
            {
                return Ok(());
            }
            if !listed && pending == 0 {
                listed = true;
                if self.news.send(News::Listed).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn connects(&self) -> u64 {
        let statistics = self.bucket.client.statistics();
        statistics.connects.load(Ordering::Acquire)
    }
}

/// What a message of the bucket's stream says; `None`: nothing of ours.
pub(super) fn read_message(bucket: &Bucket, message: &jetstream::Message) -> Option<News> {
    let key = bucket.key(&message.subject)?;
    let revision = message.info().ok()?.stream_sequence;
    Some(match message.headers.as_ref().and_then(gone) {
        Some(gone) => News::Gone {
            key,
            revision,
            gone,
        },
        None => News::Put {
            key,
            revision,
            value: message.payload.clone(),
        },
    })
}

/// Whether a watch still shows what is written.
#[derive(Debug, Default)]
struct Stall {
    shown: u64,
    // What is missing, and since when.
    missing: Option<(u64, Instant)>,
}

impl Stall {
    fn is_stalled(&mut self, written: u64, now: Instant) -> bool {
        if self.shown >= written {
            self.missing = None;
            return false;
        }
        let (missing, since) = *self.missing.get_or_insert((written, now));
        if self.shown >= missing {
            self.missing = Some((written, now));
            return false;
        }
        now.saturating_duration_since(since) > STALLED_AFTER
    }
}

/// How a key went, if this is a marker and no value.
fn gone(headers: &HeaderMap) -> Option<Gone> {
    let header = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    match (header(KV_OPERATION), header(MARKER_REASON)) {
        (Some(KV_DELETE | KV_PURGE), _) | (_, Some(MARKER_REMOVE)) => Some(Gone::Deleted),
        // MaxAge, and whatever reason a newer server knows.
        (_, Some(_)) => Some(Gone::Expired),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_stalls_when_one_and_the_same_write_stays_unseen() {
        let start = Instant::now();
        let mut stall = Stall::default();
        assert!(!stall.is_stalled(5, start));
        // The next write is unseen too, but the first has come.
        stall.shown = 5;
        assert!(!stall.is_stalled(6, start + STALLED_AFTER));
        assert!(!stall.is_stalled(7, start + STALLED_AFTER + CHECK_EVERY));
        assert!(stall.is_stalled(8, start + 3 * STALLED_AFTER));
        stall.shown = 8;
        assert!(!stall.is_stalled(8, start + 3 * STALLED_AFTER));
    }

    #[test]
    fn markers_say_how_a_key_went() {
        let marker = |name: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value);
            gone(&headers)
        };
        assert_eq!(marker(KV_OPERATION, "DEL"), Some(Gone::Deleted));
        assert_eq!(marker(KV_OPERATION, "PUT"), None);
        assert_eq!(marker(MARKER_REASON, "MaxAge"), Some(Gone::Expired));
        assert_eq!(marker(MARKER_REASON, "Remove"), Some(Gone::Deleted));
        assert_eq!(marker("Nats-TTL", "2s"), None);
    }
}
