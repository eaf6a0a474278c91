//! What a handler is told besides the interaction or event itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use schemas::{GuildId, Prefix};

use crate::broadcast::Broadcast;
use crate::messages::ShardMessages;
use crate::metrics::CommandMetrics;
use crate::nats::Link;
use crate::query::Directory;
use crate::rest::Rest;
use crate::sender::CommandSender;
use crate::shards::{ShardInfo, Shards};

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

#[derive(Debug)]
struct Tools {
    worker: WorkerInfo,
    rest: Rest,
    shards: Shards,
    directory: Directory,
    commands: CommandSender,
    broadcast: Broadcast,
    messages: ShardMessages,
}

/// What every handler of a worker may use, whatever it handles. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerContext(Arc<Tools>);

impl WorkerContext {
    pub(crate) fn new(
        worker: WorkerInfo,
        rest: Rest,
        shards: Shards,
        link: &Link,
        prefix: &Prefix,
        event_streams: u32,
        counts: &CommandMetrics,
    ) -> Self {
        let (client, prefix) = (|| link.client.clone(), || prefix.clone());
        Self(Arc::new(Tools {
            worker,
            rest,
            shards,
            directory: Directory::new(client(), prefix()),
            commands: CommandSender::new(client(), prefix(), event_streams).counted(counts),
            broadcast: Broadcast::new(client(), prefix()),
            messages: ShardMessages::new(client(), prefix()),
        }))
    }

    /// This worker.
    #[must_use]
    pub fn worker(&self) -> &WorkerInfo {
        &self.0.worker
    }

    /// Discord's REST API. The first response to an interaction is posted by the worker from what the
    /// handler returns; this is for everything else.
    #[must_use]
    pub fn rest(&self) -> &Rest {
        &self.0.rest
    }

    /// What is known of a shard.
    #[must_use]
    pub fn shard(&self, id: u32) -> ShardInfo {
        self.0.shards.info(id, None)
    }

    /// What is known of all shards, in the order of their numbers; empty while no proxy has run.
    #[must_use]
    pub fn shards(&self) -> Vec<ShardInfo> {
        let shards = &self.0.shards;
        let numbers = shards.numbers().into_iter();
        numbers.map(|id| shards.info(id, None)).collect()
    }

    /// What is known over all shards; answers while a `consumers directory` runs.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.0.directory
    }

    /// Sends gateway commands to shards: presence, voice state, requests for members.
    #[must_use]
    pub fn commands(&self) -> &CommandSender {
        &self.0.commands
    }

    /// Tells or asks all workers.
    #[must_use]
    pub fn broadcast(&self) -> &Broadcast {
        &self.0.broadcast
    }

    /// Tells or asks the worker that holds a shard.
    #[must_use]
    pub fn messages(&self) -> &ShardMessages {
        &self.0.messages
    }
}

/// Everything about one delivery of one interaction or event.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) event: Event,
    pub(crate) shard: ShardInfo,
    pub(crate) message_id: Arc<str>,
    pub(crate) age: Duration,
    pub(crate) tools: WorkerContext,
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
    pub fn worker(&self) -> &WorkerInfo {
        self.tools.worker()
    }

    /// Discord's REST API: [`WorkerContext::rest`].
    #[must_use]
    pub fn rest(&self) -> &Rest {
        self.tools.rest()
    }

    /// What is known over all shards: [`WorkerContext::directory`].
    #[must_use]
    pub fn directory(&self) -> &Directory {
        self.tools.directory()
    }

    /// Sends gateway commands to shards: [`WorkerContext::commands`].
    #[must_use]
    pub fn commands(&self) -> &CommandSender {
        self.tools.commands()
    }

    /// Tells or asks all workers: [`WorkerContext::broadcast`].
    #[must_use]
    pub fn broadcast(&self) -> &Broadcast {
        self.tools.broadcast()
    }

    /// Tells or asks the worker that holds a shard: [`WorkerContext::messages`].
    #[must_use]
    pub fn messages(&self) -> &ShardMessages {
        self.tools.messages()
    }

    /// All that does not belong to this delivery, for work that goes on after it.
    #[must_use]
    pub const fn worker_context(&self) -> &WorkerContext {
        &self.tools
    }
}
