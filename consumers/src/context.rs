//! What a handler is told besides the interaction or event itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use schemas::GuildId;

use crate::query::Directory;
use crate::shards::ShardInfo;

/// The stored message an event came in.
#[derive(Clone, Debug)]
pub struct Event {
    /// Discord's `t` as it stands in the subject, or a marker's `PROXY_…`.
    pub name: Arc<str>,
    /// The frame `{"t","s","op","d"}` exactly as Discord sent it, for what the typed event does not
    /// know.
    pub frame: Bytes,
    /// Discord's sequence number within the shard's session; `None` for markers.
    pub seq: Option<u64>,
    /// Guild of the subject; `None` in direct messages.
    pub guild: Option<GuildId>,
    /// Place in the stream.
    pub sequence: u64,
    /// How often the message was delivered, this time included: above 1 a handler may run again
    /// for the same event.
    pub deliveries: u64,
}

/// Which worker runs the handler.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// Name of this process, unique among the running workers.
    pub id: Arc<str>,
    started: Instant,
}

impl WorkerInfo {
    pub(crate) const fn new(id: Arc<str>, started: Instant) -> Self {
        Self { id, started }
    }

    /// Time since the worker started.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Everything about one delivery of one interaction or event.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) event: Event,
    pub(crate) shard: ShardInfo,
    pub(crate) message_id: Arc<str>,
    pub(crate) age: Duration,
    pub(crate) worker: WorkerInfo,
    pub(crate) rest: Arc<twilight_http::Client>,
    pub(crate) directory: Directory,
}

impl Context {
    /// The message the event came in.
    #[must_use]
    pub const fn event(&self) -> &Event {
        &self.event
    }

    /// The shard that received it.
    #[must_use]
    pub const fn shard(&self) -> &ShardInfo {
        &self.shard
    }

    /// The idempotency key: the same for every delivery of the same event, different for any other
    /// (`Nats-Msg-Id`, `<session_id>:<s>`).
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.message_id
    }

    /// Time from the moment Discord made an interaction to its arrival at this worker, by Discord's
    /// clock and ours. For other events the time since the stream has them.
    #[must_use]
    pub const fn age(&self) -> Duration {
        self.age
    }

    /// This worker.
    #[must_use]
    pub const fn worker(&self) -> &WorkerInfo {
        &self.worker
    }

    /// Discord's REST API with the bot's token. The first response is posted by the worker from
    /// what the handler returns; this client is for everything else.
    #[must_use]
    pub const fn rest(&self) -> &Arc<twilight_http::Client> {
        &self.rest
    }

    /// What is known over all shards; answers while a `consumers directory` runs.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }
}
