//! Events of any name in a test's stream, and a record of what handlers saw.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::AckPolicy;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::context::PublishError;
use consumers::{Context, Events, HandlerError, Router, Running};
use futures_util::StreamExt as _;
use schemas::message::MessageId;
use schemas::{GuildId, Subject};

use crate::world::{World, until};

/// One event for a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) shard: u32,
    pub(crate) guild: u64,
    pub(crate) event: &'a str,
    pub(crate) seq: u64,
}

impl World {
    /// Stores an event with this `d`, as a proxy would; guild 0 is none.
    pub(crate) async fn store_event(&self, stored: Stored<'_>, d: &str) {
        self.try_store_event(stored, d).await.unwrap();
    }

    /// The same while NATS may be away.
    pub(crate) async fn try_store_event(
        &self,
        stored: Stored<'_>,
        d: &str,
    ) -> Result<(), PublishError> {
        let Stored {
            shard,
            guild,
            event,
            seq,
        } = stored;
        let subject = Subject::Event {
            shard,
            guild: GuildId::new(guild),
            event,
        };
        let frame = format!(r#"{{"t":"{event}","s":{seq},"op":0,"d":{d}}}"#);
        let id = MessageId::dispatch(&format!("s{shard}"), seq).to_string();
        self.publish(&subject, id, frame).await
    }

    /// Stores a MESSAGE_DELETE whose message id is the sequence.
    pub(crate) async fn store_delete(&self, shard: u32, guild: u64, seq: u64) {
        let event = "MESSAGE_DELETE";
        let d = format!(r#"{{"id":"{seq}","channel_id":"1","guild_id":"{guild}"}}"#);
        let stored = Stored {
            shard,
            guild,
            event,
            seq,
        };
        self.store_event(stored, &d).await;
    }

    /// The same with a message id that no other guild has: for rounds over many guilds.
    pub(crate) async fn store_delete_as(&self, shard: u32, guild: u64, seq: u64) {
        let d = format!(r#"{{"id":"{seq}","channel_id":"1","guild_id":"{guild}"}}"#);
        let stored = Stored {
            shard,
            guild,
            event: "MESSAGE_DELETE",
            seq: seq * 1000 + guild,
        };
        self.store_event(stored, &d).await;
    }

    pub(crate) async fn event_worker(&self, events: Events) -> Running {
        self.worker(Router::new().events(events)).await
    }

    /// What the dead-letter stream holds, when there are this many.
    pub(crate) async fn dead(&self, count: u64) -> Vec<async_nats::jetstream::Message> {
        let stream = until("the dead-letter stream to fill", async || {
            let mut stream = self.jetstream.get_stream("DISCORD_DEAD").await.ok()?;
            (stream.info().await.ok()?.state.messages == count).then_some(stream)
        })
        .await;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let batch = consumer
            .fetch()
            .max_messages(usize::try_from(count).unwrap())
            .messages()
            .await
            .unwrap();
        batch.map(Result::unwrap).collect().await
    }

    /// Waits until a consumer has nothing left to deliver and nothing unacknowledged.
    pub(crate) async fn drained(&self, consumer: &str) {
        self.settled_at("DISCORD_EVENTS", consumer).await;
    }
}

/// What handlers saw, in their order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    pub(crate) fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// In alphabetical order, each once.
    pub(crate) fn distinct(&self) -> Vec<String> {
        let mut all = self.all();
        all.sort();
        all.dedup();
        all
    }

    pub(crate) async fn reaches(&self, count: usize) -> Vec<String> {
        until("the handlers to see enough", async || {
            let all = self.all();
            (all.len() >= count).then_some(all)
        })
        .await
    }

    /// A handler that notes the idempotency key.
    pub(crate) fn notes<E: Send + 'static>(
        &self,
    ) -> impl Fn(Context, E) -> std::future::Ready<Result<(), HandlerError>>
    + Send
    + Sync
    + use<E>
    + 'static {
        let seen = self.clone();
        move |context, _| {
            seen.add(context.message_id());
            std::future::ready(Ok(()))
        }
    }
}

/// Short pauses, so that tests of retries are quick.
pub(crate) fn quick(events: Events) -> Events {
    events.backoff([Duration::from_millis(20)]).max_deliver(3)
}
