//! What all deliveries of a worker share.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::Message;
use async_nats::header::NATS_MESSAGE_ID;
use schemas::{MessageId, Prefix, Subject, SubjectError};
use tokio::sync::Semaphore;

use crate::context::{Context, Event, WorkerContext, WorkerInfo};
use crate::metrics::Metrics;
use crate::nats::Link;
use crate::receipt::Receipt;
use crate::rest::Rest;
use crate::router::Router;
use crate::shards::Shards;
use crate::status::Status;
use crate::throttle::Throttle;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) router: Router,
    pub(crate) rest: Rest,
    pub(crate) shards: Shards,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) status: Arc<Status>,
    pub(crate) worker: WorkerInfo,
    pub(crate) prefix: Prefix,
    pub(crate) link: Link,
    /// What handlers get.
    pub(crate) tools: WorkerContext,
    pub(crate) warnings: Warnings,
    /// Places for deferred work beside the interactions that wait for a first response.
    pub(crate) deferred: Semaphore,
}

/// Deferred responses at once that take no place of an interaction: each waits for something else,
/// and is a task of a few kilobytes.
pub(crate) const DEFERRED_MAX: usize = 1000;

/// Warnings that a backlog or a foreign publisher can repeat without end.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    pub(crate) stale: Throttle,
    pub(crate) undecodable: Throttle,
    pub(crate) dead: Throttle,
}

impl Shared {
    /// Everything a handler is told about a stored message.
    pub(crate) fn context(&self, message: &Message) -> Result<Context, SubjectError> {
        let foreign = || SubjectError {
            text: message.subject.to_string(),
            prefix: self.prefix.clone(),
        };
        let Subject::Event {
            shard,
            guild,
            event,
        } = Subject::parse(&self.prefix, &message.subject)?
        else {
            return Err(foreign());
        };
        let receipt = Receipt::of(message).ok_or_else(foreign)?;
        // Every event of the proxy has the header; a message somebody stored by hand is told from
        // others by its place in the stream.
        let headers = message.headers.as_ref();
        let stated = headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
        let message_id: Arc<str> = stated.map_or_else(
            || format!("{}@{}", receipt.stream, receipt.sequence).into(),
            |stated| stated.as_str().into(),
        );
        let dispatch = MessageId::parse(&message_id).ok();
        let dispatch = dispatch.filter(|id| id.synthetic.is_none());
        let seq = dispatch.map(|id| id.seq);
        let age = SystemTime::now()
            .duration_since(receipt.published)
            .unwrap_or(Duration::ZERO);
        Ok(Context {
            event: Event {
                name: event.into(),
                frame: message.payload.clone(),
                seq,
                guild,
                sequence: receipt.sequence,
                deliveries: receipt.delivered,
            },
            shard: self.shards.info(shard, guild),
            message_id,
            age,
            tools: self.tools.clone(),
        })
    }
}
