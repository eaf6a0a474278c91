//! Reads an event stream from beginning to end, and keeps what identifies each message.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
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
    sources: Vec<Source>,
    stored: Stored,
}

/// One stream and how far it is read.
struct Source {
    name: String,
    stream: Stream,
    next: u64,
    /// Kept between looks: a consumer for each of them would pile up in the server.
    messages: Option<Ordered>,
}

impl Reader {
    pub(super) async fn open(client: &Client, prefix: &Prefix) -> Result<Self, AuditError> {
        let jetstream = jetstream::new(client.clone());
        let name = prefix.event_stream(None);
        let mut sources = Vec::new();
        if let Some(stream) = find(&jetstream, &name).await? {
            sources.push(Source::new(name.clone(), stream));
        } else {
            for index in 0..STREAMS_MAX {
                let name = prefix.event_stream(Some(index));
                match find(&jetstream, &name).await? {
                    Some(stream) => sources.push(Source::new(name, stream)),
                    None => break,
                }
            }
        }
        if sources.is_empty() {
            return Err(AuditError::NoStream { name });
        }
        let stored = Stored::default();
        Ok(Self { sources, stored })
    }

    pub(super) const fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Reads what the streams hold at this moment and was not read before.
    pub(super) async fn read_on(&mut self) -> Result<(), AuditError> {
        for source in &mut self.sources {
            let name = source.name.clone();
            let failed = |reason| AuditError::Nats { name, reason };
            source.read_on(&mut self.stored).await.map_err(failed)?;
        }
        Ok(())
    }
}

impl Source {
    const fn new(name: String, stream: Stream) -> Self {
        Self {
            name,
            stream,
            next: 1,
            messages: None,
        }
    }

    /// Errors are NATS' words.
    async fn read_on(&mut self, stored: &mut Stored) -> Result<(), String> {
        let info = self.stream.info().await.map_err(|e| e.to_string())?;
        let (held, last) = (info.state.messages, info.state.last_sequence);
        if held == 0 || last < self.next {
            return Ok(());
        }
        let mut messages = match self.messages.take() {
            Some(messages) => messages,
            None => self.consume().await?,
        };
        while self.next <= last {
            let message = timeout(MESSAGE_WITHIN, messages.next())
                .await
                .map_err(|_| format!("message {} does not come", self.next))?
                .ok_or("the consumer ended")?
                .map_err(|e| e.to_string())?;
            let position = message.info().map_err(|e| e.to_string())?.stream_sequence;
            let headers = message.headers.as_ref();
            stored.take(&message.subject, headers, &message.payload, position);
            self.next = position + 1;
        }
        self.messages = Some(messages);
        Ok(())
    }

    async fn consume(&self) -> Result<Ordered, String> {
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.next,
            },
            ..OrderedConfig::default()
        };
        let consumer = self
            .stream
            .create_consumer(config)
            .await
            .map_err(|e| e.to_string())?;
        consumer.messages().await.map_err(|e| e.to_string())
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
