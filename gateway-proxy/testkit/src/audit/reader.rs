//! Reads an event stream from beginning to end, and keeps what identifies each message.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use async_nats::jetstream::{self, stream::Stream};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt as _;
use schemas::{MessageId, Prefix, message::NATS_MSG_ID};
use tokio::time::timeout;

use super::AuditError;
use super::report::Gap;
use crate::simulator::content_hash;

/// Most streams of one bot (`--event-streams`).
const STREAMS_MAX: u32 = 1024;
/// A message that should be there is waited for this long.
const MESSAGE_WITHIN: Duration = Duration::from_secs(10);

/// One stored event.
pub(super) struct StoredEvent {
    pub(super) seq: u64,
    pub(super) hash: u64,
    pub(super) len: u64,
    pub(super) position: u64,
    pub(super) subject: String,
}

/// Everything read so far.
#[derive(Default)]
pub(super) struct Stored {
    /// Events by session, in the order of the stream.
    pub(super) sessions: HashMap<String, SessionEvents>,
    pub(super) gaps: Vec<Gap>,
    /// Other synthetic events.
    pub(super) synthetic: u64,
    /// Messages without a readable id.
    pub(super) unidentified: Vec<String>,
}

/// The events of one session.
#[derive(Default)]
pub(super) struct SessionEvents {
    pub(super) events: Vec<StoredEvent>,
    seen: Vec<u64>,
    pub(super) distinct: u64,
}

impl Stored {
    /// Different events of a session.
    pub(super) fn distinct(&self, session: &str) -> u64 {
        self.sessions
            .get(session)
            .map_or(0, |events| events.distinct)
    }

    fn take(&mut self, subject: &str, headers: Option<&HeaderMap>, payload: &[u8], position: u64) {
        let id = headers
            .and_then(|headers| headers.get(NATS_MSG_ID))
            .map(|id| id.as_str());
        let Some(id) = id.and_then(|id| MessageId::parse(id).ok()) else {
            self.unidentified.push(format!("{subject} at {position}"));
            return;
        };
        match id.synthetic {
            Some(("PROXY_GAP", _)) => match Gap::parse(payload, position) {
                Some(gap) => {
                    if gap.reason == "oversized_frame" {
                        // It stands in the event's place: nothing else will come.
                        self.sessions
                            .entry(gap.old_session.clone())
                            .or_default()
                            .distinct += 1;
                    }
                    self.gaps.push(gap);
                }
                None => self
                    .unidentified
                    .push(format!("unreadable PROXY_GAP at {position}")),
            },
            Some(_) => self.synthetic += 1,
            None => {
                let event = StoredEvent {
                    seq: id.seq,
                    hash: content_hash(payload),
                    len: payload.len() as u64,
                    position,
                    subject: subject.to_owned(),
                };
                self.sessions
                    .entry(id.session.to_owned())
                    .or_default()
                    .push(event);
            }
        }
    }
}

impl SessionEvents {
    fn push(&mut self, event: StoredEvent) {
        // A sequence out of all proportion must not cost memory for the bits below it.
        let (word, bit) = ((event.seq / 64) as usize, 1 << (event.seq % 64));
        if word < self.seen.len() + 1_000_000 {
            if word >= self.seen.len() {
                self.seen.resize(word + 1, 0);
            }
            self.distinct += u64::from(self.seen[word] & bit == 0);
            self.seen[word] |= bit;
        }
        self.events.push(event);
    }
}

/// Reads the streams of one prefix.
pub(super) struct Reader {
    streams: Vec<(Stream, u64)>,
    stored: Stored,
}

impl Reader {
    pub(super) async fn open(client: &Client, prefix: &Prefix) -> Result<Self, AuditError> {
        let jetstream = jetstream::new(client.clone());
        let name = prefix.event_stream(None);
        if let Some(stream) = find(&jetstream, &name).await? {
            return Ok(Self {
                streams: vec![(stream, 1)],
                stored: Stored::default(),
            });
        }
        let mut streams = Vec::new();
        for index in 0..STREAMS_MAX {
            match find(&jetstream, &prefix.event_stream(Some(index))).await? {
                Some(stream) => streams.push((stream, 1)),
                None => break,
            }
        }
        if streams.is_empty() {
            return Err(AuditError::NoStream { name });
        }
        Ok(Self {
            streams,
            stored: Stored::default(),
        })
    }

    pub(super) const fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Reads what the streams hold at this moment and was not read before.
    pub(super) async fn read_on(&mut self) -> Result<(), AuditError> {
        for (stream, next) in &mut self.streams {
            let name = stream.cached_info().config.name.clone();
            let nats = |reason: String| AuditError::Nats {
                name: name.clone(),
                reason,
            };
            let state = stream
                .info()
                .await
                .map_err(|e| nats(e.to_string()))?
                .state
                .clone();
            let last = state.last_sequence;
            if state.messages == 0 || last < *next {
                continue;
            }
            let config = OrderedConfig {
                deliver_policy: DeliverPolicy::ByStartSequence {
                    start_sequence: *next,
                },
                ..OrderedConfig::default()
            };
            let consumer = stream
                .create_consumer(config)
                .await
                .map_err(|e| nats(e.to_string()))?;
            let mut messages = consumer.messages().await.map_err(|e| nats(e.to_string()))?;
            while *next <= last {
                let message = timeout(MESSAGE_WITHIN, messages.next()).await;
                let message = message.map_err(|_| nats(format!("message {next} does not come")))?;
                let message = message
                    .ok_or_else(|| nats("the consumer ended".to_owned()))?
                    .map_err(|e| nats(e.to_string()))?;
                let position = message
                    .info()
                    .map_err(|e| nats(e.to_string()))?
                    .stream_sequence;
                let headers = message.headers.as_ref();
                self.stored
                    .take(&message.subject, headers, &message.payload, position);
                *next = position + 1;
            }
        }
        Ok(())
    }
}

async fn find(jetstream: &jetstream::Context, name: &str) -> Result<Option<Stream>, AuditError> {
    use async_nats::jetstream::ErrorCode;
    use async_nats::jetstream::context::GetStreamErrorKind;
    match jetstream.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(e) => match e.kind() {
            GetStreamErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Ok(None)
            }
            _ => Err(AuditError::Nats {
                name: name.to_owned(),
                reason: e.to_string(),
            }),
        },
    }
}
