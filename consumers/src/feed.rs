//! The events of the stream one by one, in order, with the markers a proxy puts between them. For
//! programs that follow everything themselves (an audit, a copy, a cache) and keep the place.

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{SelectAll, select_all};
use schemas::message::NATS_MSG_ID;
use schemas::{EventName, GuildId, Prefix, ProxyEvent, Subject};
use time::OffsetDateTime;

use crate::streams;

/// Between two points of a shard's events some are missing or may be: the body of `PROXY_GAP`.
pub type Gap = schemas::ProxyGap;
/// A shard changed its state: the body of `PROXY_SHARD`.
pub type ShardChange = schemas::ProxyShard;
/// The fleet changes its shard count: the body of `PROXY_RESHARD`.
pub type Reshard = schemas::ProxyReshard;

/// Where reading begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next event that is stored.
    #[default]
    New,
    /// With the oldest event the stream still has.
    Oldest,
    /// With the first event stored at this moment or later.
    Time(OffsetDateTime),
    /// With this sequence of the stream, or the first one after it that is still there. Sequences
    /// belong to one stream; with `--event-streams` above 1 each stream has its own.
    Sequence(u64),
}

impl Start {
    pub(crate) const fn policy(self) -> DeliverPolicy {
        match self {
            Self::New => DeliverPolicy::New,
            Self::Oldest => DeliverPolicy::All,
            Self::Time(start_time) => DeliverPolicy::ByStartTime { start_time },
            // The server refuses 0, which nobody stores.
            Self::Sequence(0) => DeliverPolicy::All,
            Self::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        }
    }
}

/// Reads events in the order of the stream, and so each shard's in the order Discord sent them.
///
/// Nothing is acknowledged and nothing is kept at NATS: remember [`FeedItem::sequence`] and begin
/// with [`Start::Sequence`] of the next one to carry on. A connection or consumer that is lost is
/// made again where it ended.
///
/// ```no_run
/// use consumers::feed::{Feed, Start};
///
/// # async fn follow(client: async_nats::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let jetstream = async_nats::jetstream::new(client);
/// let mut feed = Feed::open(&jetstream, &"discord".parse()?, 1, Start::New).await?;
/// while let Some(item) = feed.next().await {
///     let item = item?;
///     if let Some(gap) = item.gap() {
///         // What was built from this shard's events may be out of date from here on.
///         println!("shard {} lost {:?} events: {:?}", gap.shard, gap.lost, gap.reason);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Feed {
    prefix: Prefix,
    messages: SelectAll<Ordered>,
}

/// One stored event.
#[derive(Clone, Debug)]
pub struct FeedItem {
    /// Shard in whose subjects it stands.
    pub shard: u32,
    /// Guild of the subject; `None` for events of no guild.
    pub guild: Option<GuildId>,
    /// Discord's `t`, or the marker's, as it stands in the subject.
    pub event: String,
    /// `Nats-Msg-Id`, the same however often the event is read; empty for a message somebody
    /// stored by hand.
    pub message_id: String,
    /// Place in the stream.
    pub sequence: u64,
    /// The frame `{"t","s","op","d"}` exactly as Discord sent it or the proxy made it.
    pub frame: Bytes,
    /// What a proxy says here, typed. `None` for Discord's events, and for a marker that this
    /// version cannot read: its [`event`](Self::event) still says `PROXY_…`.
    pub marker: Option<ProxyEvent>,
}

impl FeedItem {
    /// The gap, if it is one.
    #[must_use]
    pub const fn gap(&self) -> Option<&Gap> {
        match &self.marker {
            Some(ProxyEvent::Gap(gap)) => Some(gap),
            Some(ProxyEvent::Shard(_) | ProxyEvent::Reshard(_)) | None => None,
        }
    }

    /// The change of a shard's state, if it is one.
    #[must_use]
    pub const fn shard_change(&self) -> Option<&ShardChange> {
        match &self.marker {
            Some(ProxyEvent::Shard(change)) => Some(change),
            Some(ProxyEvent::Gap(_) | ProxyEvent::Reshard(_)) | None => None,
        }
    }

    fn read(prefix: &Prefix, message: &Message) -> Result<Self, FeedError> {
        let unnamed = || FeedError::Foreign(message.subject.to_string());
        let subject = Subject::parse(prefix, &message.subject).map_err(|_| unnamed())?;
        let Subject::Event {
            shard,
            guild,
            event,
        } = subject
        else {
            return Err(unnamed());
        };
        let info = message.info().map_err(|_| unnamed())?;
        let headers = message.headers.as_ref();
        let id = headers.and_then(|headers| headers.get(NATS_MSG_ID));
        let marker = match EventName::parse(event) {
            EventName::Proxy(_) => ProxyEvent::from_frame(&message.payload).ok(),
            EventName::Known(_) | EventName::Other(_) => None,
        };
        Ok(Self {
            shard,
            guild,
            event: event.to_owned(),
            message_id: id.map(ToString::to_string).unwrap_or_default(),
            sequence: info.stream_sequence,
            frame: message.payload.clone(),
            marker,
        })
    }
}

/// Why the next event cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The stream is not there, or JetStream does not answer.
    #[error("the stream {stream} cannot be read: {error}")]
    Unavailable {
        /// Its name.
        stream: String,
        /// What NATS says.
        error: String,
    },
    /// Reading ended; open the feed again at the sequence that follows the last one.
    #[error("reading the events ended")]
    Ended(#[source] async_nats::jetstream::consumer::pull::OrderedError),
    /// A message that is no event of this prefix; the next one can be read.
    #[error("{0:?} is not the subject of an event")]
    Foreign(String),
}

impl Feed {
    /// Opens a feed of all shards. `event_streams` is the proxies' `--event-streams`; the order
    /// between shards of different streams is not defined.
    ///
    /// # Errors
    /// [`FeedError::Unavailable`] when a stream is missing or NATS does not answer.
    pub async fn open(
        jetstream: &JetStream,
        prefix: &Prefix,
        event_streams: u32,
        start: Start,
    ) -> Result<Self, FeedError> {
        let names = streams::all(prefix, event_streams);
        let mut read = Vec::with_capacity(names.len());
        for name in names {
            read.push(read_stream(jetstream, name, start).await?);
        }
        Ok(Self {
            prefix: prefix.clone(),
            messages: select_all(read),
        })
    }

    /// The next event; waits for it. `None` when there will be none any more.
    ///
    /// # Errors
    /// [`FeedError::Ended`] when reading cannot go on, [`FeedError::Foreign`] for one message.
    pub async fn next(&mut self) -> Option<Result<FeedItem, FeedError>> {
        let message = self.messages.next().await?;
        Some(match message {
            Ok(message) => FeedItem::read(&self.prefix, &message),
            Err(error) => Err(FeedError::Ended(error)),
        })
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("prefix", &self.prefix)
            .field("streams", &self.messages.len())
            .finish()
    }
}

async fn read_stream(
    jetstream: &JetStream,
    stream: String,
    start: Start,
) -> Result<Ordered, FeedError> {
    let opened = async {
        let handle = jetstream
            .get_stream_no_info(&stream)
            .await
            .map_err(|error| error.to_string())?;
        let config = OrderedConfig {
            deliver_policy: start.policy(),
            ..OrderedConfig::default()
        };
        let consumer = handle
            .create_consumer(config)
            .await
            .map_err(|error| error.to_string())?;
        consumer.messages().await.map_err(|error| error.to_string())
    };
    opened
        .await
        .map_err(|error: String| FeedError::Unavailable { stream, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_says_where_nats_begins() {
        let sequence = DeliverPolicy::ByStartSequence { start_sequence: 7 };
        assert_eq!(Start::Sequence(7).policy(), sequence);
        assert_eq!(Start::Sequence(0).policy(), DeliverPolicy::All);
        assert_eq!(Start::default().policy(), DeliverPolicy::New);
    }
}
