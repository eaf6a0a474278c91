//! The events a worker handles besides interactions: by whom, and how they come to it. Decides
//! which handler takes a frame; never calls NATS.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use schemas::Prefix;

use crate::context::Context;
use crate::event::{RawEvent, TypedEvent};
use crate::feed::{Gap, ShardChange, Start};
use crate::lease;
use crate::messages::MessageHandler;
use crate::metrics::{EventCounters, EventOutcome, Metrics};
use crate::router::HandlerError;
use crate::verdict::{Attempts, Verdict};

/// Events handled at once by one worker unless it says otherwise: handlers wait for a database or
/// for Discord; 5 ms each make 12,800 events per second.
const CONCURRENCY: usize = 64;
/// Far above what two cores can keep busy.
const CONCURRENCY_MAX: usize = 10_000;
/// Longest time for one attempt unless a worker says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest that a worker may say: what is limited by more is not limited.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Lease on a worker's shards, in ordered mode; the smallest TTL of NATS.
const LEASE: Duration = Duration::from_secs(1);

/// What [`EventHandler::handle`] returns.
pub type VerdictFuture = Pin<Box<dyn Future<Output = Result<Verdict, HandlerError>> + Send>>;

/// Handles one kind of event. Implemented by every
/// `async fn(Context, E) -> Result<(), HandlerError>`, and by those that return a [`Verdict`].
///
/// A handler runs at least once per event; [`Context::message_id`] is the key to tell repetitions.
/// An error, a panic or the end of the time limit lead to another attempt, and after the last one
/// the event goes to the dead-letter stream.
pub trait EventHandler<E>: Send + Sync + 'static {
    /// Starts handling.
    fn handle(&self, context: Context, event: E) -> VerdictFuture;
}

impl<F, Fut, V, E> EventHandler<E> for F
where
    F: Fn(Context, E) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<V, HandlerError>> + Send + 'static,
    V: Into<Verdict>,
{
    fn handle(&self, context: Context, event: E) -> VerdictFuture {
        let handling = self(context, event);
        Box::pin(async move { handling.await.map(Into::into) })
    }
}

/// Who gets an event that several workers could handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Ordered,
}

/// A handler that reads the frame itself.
type Typed = Arc<dyn Fn(&Context) -> Result<VerdictFuture, String> + Send + Sync>;
type Raw = Arc<dyn EventHandler<RawEvent>>;

#[derive(Clone, Default)]
struct Handlers {
    typed: Option<Typed>,
    raw: Option<Raw>,
}

/// A set of events with their handlers, and the durable consumer they come from.
///
/// ```
/// use consumers::{Context, Events, HandlerError};
/// use twilight_model::gateway::payload::incoming::MessageCreate;
///
/// async fn count(_: Context, message: MessageCreate) -> Result<(), HandlerError> {
///     tracing::info!(words = message.content.split_whitespace().count());
///     Ok(())
/// }
///
/// let events = Events::shared("word-counter").on::<MessageCreate>(count);
/// ```
#[derive(Clone)]
pub struct Events {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) start: Start,
    pub(crate) concurrency: usize,
    pub(crate) timeout: Duration,
    pub(crate) attempts: Attempts,
    pub(crate) lease: Duration,
    pub(crate) shards: Vec<u32>,
    pub(crate) messages: Option<Arc<dyn MessageHandler>>,
    counters: OnceLock<EventCounters>,
    handlers: BTreeMap<String, Handlers>,
    any: Option<Raw>,
}

/// What [`Events::dispatch`] finds for a frame.
pub(crate) enum Dispatch {
    /// A handler has begun.
    Typed(VerdictFuture),
    /// A handler has begun with the raw frame; the text says why the typed one could not.
    Raw(VerdictFuture, Option<String>),
    /// The typed handler cannot read it and there is none that takes it raw.
    Undecodable(String),
    Unhandled,
}

impl Events {
    /// Shares the events among all workers with this name, each event to one of them, in no order.
    /// Best for what stands on its own: notifications, logs.
    ///
    /// `name` is the durable consumer's: `[A-Za-z0-9_-]{1,32}`.
    #[must_use]
    pub fn shared(name: impl Into<String>) -> Self {
        Self::new(name.into(), Mode::Shared)
    }

    /// Spreads the shards over all workers with this name; each shard is held by one of them at a
    /// time. Guilds are handled in parallel, the events of each guild one after the other in the
    /// order Discord sent them, and what a proxy says about a shard in order with all its events.
    /// Best for what builds upon what came before: caches, counters, moderation.
    ///
    /// `name` begins the names of the shards' durable consumers: `[A-Za-z0-9_-]{1,32}`.
    #[must_use]
    pub fn ordered(name: impl Into<String>) -> Self {
        Self::new(name.into(), Mode::Ordered)
    }

    fn new(name: String, mode: Mode) -> Self {
        Self {
            name,
            mode,
            start: Start::New,
            concurrency: CONCURRENCY,
            timeout: TIMEOUT,
            attempts: Attempts::default(),
            lease: LEASE,
            shards: Vec::new(),
            messages: None,
            counters: OnceLock::new(),
            handlers: BTreeMap::new(),
            any: None,
        }
    }

    /// Handles an event typed. A frame that does not decode goes to the raw handler of this name or
    /// of all names, or else to the dead-letter stream, and is counted.
    ///
    /// # Panics
    /// When the event has a typed handler already: that is a mistake in the program.
    #[must_use]
    pub fn on<E: TypedEvent>(mut self, handler: impl EventHandler<E>) -> Self {
        let slot = self.handlers.entry(E::NAME.to_owned()).or_default();
        assert!(slot.typed.is_none(), "{} is handled twice", E::NAME);
        slot.typed = Some(Arc::new(move |context: &Context| {
            let event = E::decode(&context.event.frame).map_err(|error| error.to_string())?;
            Ok(handler.handle(context.clone(), event))
        }));
        self
    }

    /// Handles the events of a name as they are. With a typed handler of the same name only those
    /// it cannot read.
    ///
    /// # Panics
    /// When the name has a raw handler already: that is a mistake in the program.
    #[must_use]
    pub fn on_raw(mut self, event: &str, handler: impl EventHandler<RawEvent>) -> Self {
        let slot = self.handlers.entry(token(event)).or_default();
        assert!(slot.raw.is_none(), "{event} is handled raw twice");
        slot.raw = Some(Arc::new(handler));
        self
    }

    /// Handles every event that has no other handler, markers and interactions included.
    ///
    /// # Panics
    /// When there is such a handler already: that is a mistake in the program.
    #[must_use]
    pub fn on_any(mut self, handler: impl EventHandler<RawEvent>) -> Self {
        assert!(self.any.is_none(), "all other events are handled twice");
        self.any = Some(Arc::new(handler));
        self
    }

    /// Handles gaps: events of the shard before this one are missing, or may be. In ordered mode no
    /// earlier event of the shard is being handled when it runs, and no later one.
    #[must_use]
    pub fn on_gap(self, handler: impl EventHandler<Gap>) -> Self {
        self.on::<Gap>(handler)
    }

    /// Handles what proxies say about the state of a shard, in order with its events like
    /// [`Events::on_gap`].
    #[must_use]
    pub fn on_shard(self, handler: impl EventHandler<ShardChange>) -> Self {
        self.on::<ShardChange>(handler)
    }

    /// Handles messages to the shards that this worker holds, in ordered mode: those of a shard one
    /// after the other, beside its events. The worker listens once it has taken over what the last
    /// holder had in hand, and hears no more as soon as it lets the shard go.
    ///
    /// Any program reaches the holder with [`ShardMessages`](crate::ShardMessages). Where events of
    /// several names hold the same shard, only one should handle messages: all would hear them.
    ///
    /// ```
    /// use consumers::{Address, Events, HandlerError, Message, WorkerContext};
    ///
    /// async fn count(_: WorkerContext, message: Message) -> Result<String, HandlerError> {
    ///     Ok(format!("about {}: {} bytes", message.to, message.payload.len()))
    /// }
    ///
    /// let events = Events::ordered("cache").on_message(count);
    /// ```
    ///
    /// # Panics
    /// When there is such a handler already, or the events are shared and nobody holds shards: those
    /// are mistakes in the program.
    #[must_use]
    pub fn on_message(mut self, handler: impl MessageHandler) -> Self {
        assert!(self.mode == Mode::Ordered, "shared events hold no shards");
        assert!(self.messages.is_none(), "messages are handled twice");
        self.messages = Some(Arc::new(handler));
        self
    }

    /// Where to begin when there is no consumer of this name yet. An existing one carries on where
    /// it stands.
    #[must_use]
    pub const fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How many events this worker handles at once.
    ///
    /// A shared worker has as many at a time, and while handlers end quickly it asks ahead: for as many
    /// more as it handled in the last 20 ms, 512 at most. Those that wait longer than half a second
    /// for a handler are given back, which counts as a delivery, and go to another worker.
    ///
    /// # Panics
    /// Outside of 1 to 10,000.
    #[must_use]
    pub fn concurrency(mut self, at_once: usize) -> Self {
        let allowed = 1..=CONCURRENCY_MAX;
        assert!(allowed.contains(&at_once), "concurrency is 1 to 10,000");
        self.concurrency = at_once;
        self
    }

    /// Longest time for one attempt; a handler that takes longer is dropped and has failed. One that
    /// keeps its thread cannot be: such work belongs into [`tokio::task::spawn_blocking`]. 30 s unless
    /// set, a day at most.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit.min(TIMEOUT_MAX);
        self
    }

    /// How often an event is tried before it goes to the dead-letter stream, at least once.
    #[must_use]
    pub fn max_deliver(mut self, attempts: u32) -> Self {
        self.attempts.most = attempts.max(1);
        self
    }

    /// Pauses after the first failed attempt, the second, …; the last one repeats. None: at once.
    #[must_use]
    pub fn backoff(mut self, pauses: impl IntoIterator<Item = Duration>) -> Self {
        self.attempts.pauses = pauses.into_iter().collect();
        self
    }

    /// Ordered mode: how long a worker may be silent until its shards go to others, in whole
    /// seconds, from one to an hour. Longer leases suit machines that stall.
    #[must_use]
    pub fn lease(mut self, length: Duration) -> Self {
        self.lease = lease::whole_seconds(length);
        self
    }

    /// Ordered mode: the shards there are, for a stream without a fleet's records (they are followed
    /// otherwise).
    #[must_use]
    pub fn shards(mut self, shards: impl IntoIterator<Item = u32>) -> Self {
        self.shards = shards.into_iter().collect();
        self
    }

    /// Subjects of the events that are handled here, of one shard or of all.
    pub(crate) fn filters(&self, prefix: &Prefix, shard: Option<u32>) -> Vec<String> {
        let names = self.handlers.keys();
        match (shard, self.any.is_some()) {
            (None, true) => vec![prefix.all_events()],
            (Some(shard), true) => vec![prefix.shard_events(shard)],
            (None, false) => names.map(|name| prefix.event_of_all_shards(name)).collect(),
            (Some(shard), false) => names
                .map(|name| prefix.event_of_shard(shard, name))
                .collect(),
        }
    }

    /// True when there is a handler for anything at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.handlers.is_empty() && self.any.is_none()
    }

    /// True when there is a handler for events of this name.
    pub(crate) fn handles(&self, event: &str) -> bool {
        self.any.is_some() || self.handlers.contains_key(event)
    }

    /// Counts what became of an event, in the metrics of the worker that these events belong to.
    pub(crate) fn count(&self, metrics: &Metrics, outcome: EventOutcome) {
        let counters = self
            .counters
            .get_or_init(|| metrics.event_counters(&self.name));
        counters.count(outcome);
    }

    /// Finds the handler of a frame and starts it.
    pub(crate) fn dispatch(&self, context: &Context) -> Dispatch {
        let slot = self.handlers.get(&*context.event.name);
        let raw = slot.and_then(|slot| slot.raw.as_ref());
        let raw = raw.or(self.any.as_ref());
        let begin = |raw: &Raw| {
            let frame = context.event.frame.clone();
            raw.handle(context.clone(), RawEvent { frame })
        };
        match slot.and_then(|slot| slot.typed.as_ref()) {
            Some(typed) => match typed(context) {
                Ok(handling) => Dispatch::Typed(handling),
                Err(why) => match raw {
                    Some(raw) => Dispatch::Raw(begin(raw), Some(why)),
                    None => Dispatch::Undecodable(why),
                },
            },
            None => raw.map_or(Dispatch::Unhandled, |raw| Dispatch::Raw(begin(raw), None)),
        }
    }
}

/// The name as it stands in subjects, where some characters cannot.
fn token(event: &str) -> String {
    let subject = Prefix::default().event_of_all_shards(event);
    let token = subject.rsplit('.').next().unwrap_or_default();
    token.to_owned()
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .field("events", &self.handlers.keys())
            .field("any", &self.any.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use twilight_model::gateway::payload::incoming::MessageDelete;

    use super::*;

    async fn typed(_: Context, _: MessageDelete) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn raw(_: Context, _: RawEvent) -> Result<Verdict, HandlerError> {
        Ok(Verdict::Discard)
    }

    #[test]
    fn a_limit_and_a_lease_without_an_end_do_not_overflow_the_clock() {
        let events = Events::ordered("x").timeout(Duration::MAX);
        assert_eq!(events.timeout, TIMEOUT_MAX);
        assert_eq!(events.lease(Duration::MAX).lease, lease::LEASE_MAX);
    }

    #[test]
    fn the_filter_is_what_has_a_handler() {
        let prefix = Prefix::default();
        let events = Events::shared("x").on::<MessageDelete>(typed);
        let one = "discord.shard.*.events.*.MESSAGE_DELETE";
        assert_eq!(events.filters(&prefix, None), [one]);
        let events = events.on_raw("NEW EVENT", raw);
        let other = "discord.shard.*.events.*.NEW_EVENT";
        assert_eq!(events.filters(&prefix, None), [one, other]);
        assert!(events.handlers.contains_key("NEW_EVENT"));
        let events = events.on_any(raw);
        assert_eq!(
            events.filters(&prefix, None),
            ["discord.shard.*.events.*.*"]
        );
        let shard = events.filters(&prefix, Some(7));
        assert_eq!(shard, ["discord.shard.7.events.*.*"]);
        assert!(Events::ordered("x").is_empty());
    }

    #[test]
    #[should_panic(expected = "MESSAGE_DELETE is handled twice")]
    fn an_event_handled_twice_is_a_mistake_of_the_program() {
        let events = Events::shared("x").on::<MessageDelete>(typed);
        drop(events.on::<MessageDelete>(typed));
    }

    #[test]
    fn a_lease_has_whole_seconds() {
        let lease = |ms| Events::ordered("x").lease(Duration::from_millis(ms)).lease;
        assert_eq!(lease(10), Duration::from_secs(1));
        assert_eq!(lease(2900), Duration::from_secs(2));
    }
}
