//! Every number a worker counts, named once. Labels are bounded: outcomes, never guilds or users.

mod among;

use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use among::{AmongMetrics, CommandMetrics, CommandOutcome, MessageOutcome, RunOutcome};

use crate::rest::RestMetrics;
use crate::verdict::Finished;
use crate::worker::Outcome;

/// Buckets around what matters: a few milliseconds are normal, 3 s is the end.
const SECONDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: Outcome,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.as_str().encode(encoder)
    }
}

/// What became of one attempt at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EventOutcome {
    Handled,
    /// The handler says it need not be handled.
    Discarded,
    /// No handler here.
    Unhandled,
    /// Failed, or not yet; there will be another attempt.
    Retried,
    /// In the dead-letter stream.
    Dead,
    /// No event of ours.
    Foreign,
    /// Delivered again although it was done: its acknowledgement was lost.
    Repeated,
}

impl EventOutcome {
    /// In the order of their numbers.
    const ALL: [Self; 7] = [
        Self::Handled,
        Self::Discarded,
        Self::Unhandled,
        Self::Retried,
        Self::Dead,
        Self::Foreign,
        Self::Repeated,
    ];
}

impl From<Finished> for EventOutcome {
    fn from(finished: Finished) -> Self {
        match finished {
            Finished::Handled => Self::Handled,
            Finished::Discarded => Self::Discarded,
            Finished::Unhandled => Self::Unhandled,
        }
    }
}

impl EncodeLabelValue for EventOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Handled => "handled",
            Self::Discarded => "discarded",
            Self::Unhandled => "unhandled",
            Self::Retried => "retried",
            Self::Dead => "dead",
            Self::Foreign => "foreign",
            Self::Repeated => "repeated",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeferredLabels {
    finished: bool,
}

/// The consumer's name is the program's, so there are few.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    consumer: String,
    outcome: EventOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsumerLabels {
    consumer: String,
}

/// Counts something in a gauge while it lives.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts what is being done while it lives.
#[derive(Debug)]
pub(crate) struct Started<'a> {
    gauge: &'a Gauge<i64, AtomicI64>,
    number: i64,
}

impl Drop for Started<'_> {
    fn drop(&mut self) {
        self.gauge.dec_by(self.number);
    }
}

/// The counters of one consumer's events, by outcome.
#[derive(Clone, Debug)]
pub(crate) struct EventCounters([Counter; EventOutcome::ALL.len()]);

impl EventCounters {
    pub(crate) fn count(&self, outcome: EventOutcome) {
        self.0[outcome as usize].inc();
    }
}

/// The instruments of one worker.
#[derive(Debug)]
pub(crate) struct Metrics {
    events: EventMetrics,
    rest: RestMetrics,
    among: AmongMetrics,
    registry: Registry,
    interactions: Family<Labels, Counter>,
    deferred: Family<DeferredLabels, Counter>,
    in_flight: Gauge<i64, AtomicI64>,
    age_on_arrival: Histogram,
    answer_time: Histogram,
    recreated: Counter,
    pull_errors: Counter,
    nats_connections: Counter,
}

#[derive(Debug, Default)]
struct EventMetrics {
    outcomes: Family<EventLabels, Counter>,
    in_flight: Gauge<i64, AtomicI64>,
    undecodable: Family<ConsumerLabels, Counter>,
    backlog: Family<ConsumerLabels, Gauge<i64, AtomicI64>>,
    held: Family<ConsumerLabels, Gauge<i64, AtomicI64>>,
    taken: Family<ConsumerLabels, Counter>,
}

impl EventMetrics {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "events",
            "Attempts at events by what became of them",
            self.outcomes.clone(),
        );
        registry.register(
            "events_in_flight",
            "Events being handled",
            self.in_flight.clone(),
        );
        registry.register(
            "events_undecodable",
            "Frames that are not the typed event their handler takes",
            self.undecodable.clone(),
        );
        registry.register(
            "events_backlog",
            "Events that wait in the stream for the shared consumer",
            self.backlog.clone(),
        );
        registry.register("shards_held", "Shards this worker holds", self.held.clone());
        registry.register(
            "shards_taken",
            "Times this worker took a shard",
            self.taken.clone(),
        );
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("consumers");
        let events = EventMetrics::default();
        events.register(&mut registry);
        let rest = RestMetrics::default();
        rest.register(&mut registry);
        let among = AmongMetrics::default();
        among.register(&mut registry);
        let interactions = Family::<Labels, Counter>::default();
        registry.register(
            "interactions",
            "Interactions by what became of them",
            interactions.clone(),
        );
        let deferred = Family::<DeferredLabels, Counter>::default();
        let help = "Deferred responses by whether the rest of them was posted";
        registry.register("deferred", help, deferred.clone());
        let in_flight = Gauge::default();
        registry.register("in_flight", "Interactions being handled", in_flight.clone());
        let age_on_arrival = Histogram::new(SECONDS);
        registry.register_with_unit(
            "age_on_arrival",
            "Time from Discord making an interaction to its arrival here",
            Unit::Seconds,
            age_on_arrival.clone(),
        );
        let answer_time = Histogram::new(SECONDS);
        registry.register_with_unit(
            "answer_time",
            "Time from Discord making an interaction to the end of our answer",
            Unit::Seconds,
            answer_time.clone(),
        );
        let recreated = Counter::default();
        let help = "Times the durable consumer was missing and made again";
        registry.register("consumer_recreated", help, recreated.clone());
        let pull_errors = Counter::default();
        registry.register(
            "pull_errors",
            "Pull requests that failed",
            pull_errors.clone(),
        );
        let nats_connections = Counter::default();
        let help = "Connections made to NATS";
        registry.register("nats_connections", help, nats_connections.clone());
        Self {
            events,
            rest,
            among,
            registry,
            interactions,
            deferred,
            in_flight,
            age_on_arrival,
            answer_time,
            recreated,
            pull_errors,
            nats_connections,
        }
    }

    /// For the requests that this worker sends.
    pub(crate) const fn rest(&self) -> &RestMetrics {
        &self.rest
    }

    /// For what workers do among themselves.
    pub(crate) const fn among(&self) -> &AmongMetrics {
        &self.among
    }

    /// Counts so many events as being handled while the answer lives.
    pub(crate) fn events_started(&self, number: usize) -> Started<'_> {
        let gauge = &self.events.in_flight;
        let number = i64::try_from(number).unwrap_or_default();
        gauge.inc_by(number);
        Started { gauge, number }
    }

    /// The counters of one consumer's events: looking them up costs more than counting.
    pub(crate) fn event_counters(&self, consumer: &str) -> EventCounters {
        let counter = |outcome| {
            let consumer = consumer.to_owned();
            let labels = EventLabels { consumer, outcome };
            self.events.outcomes.get_or_create(&labels).clone()
        };
        EventCounters(EventOutcome::ALL.map(counter))
    }

    pub(crate) fn event_undecodable(&self, consumer: &str) {
        self.events.undecodable.get_or_create(&of(consumer)).inc();
    }

    pub(crate) fn backlog(&self, consumer: &str, events: u64) {
        let events = i64::try_from(events).unwrap_or(i64::MAX);
        self.events.backlog.get_or_create(&of(consumer)).set(events);
    }

    /// Counts a shard as held while the answer lives.
    pub(crate) fn shard_taken(&self, consumer: &str) -> InFlight {
        self.events.taken.get_or_create(&of(consumer)).inc();
        let held = self.events.held.get_or_create(&of(consumer)).clone();
        held.inc();
        InFlight(held)
    }

    pub(crate) fn arrived(&self, age: Duration) {
        self.age_on_arrival.observe(age.as_secs_f64());
    }

    pub(crate) fn started(&self) {
        self.in_flight.inc();
    }

    pub(crate) fn finished(&self, outcome: Outcome, age: Option<Duration>) {
        self.in_flight.dec();
        self.interactions.get_or_create(&Labels { outcome }).inc();
        if let (Outcome::Answered, Some(age)) = (outcome, age) {
            self.answer_time.observe(age.as_secs_f64());
        }
    }

    pub(crate) fn deferred(&self, finished: bool) {
        self.deferred
            .get_or_create(&DeferredLabels { finished })
            .inc();
    }

    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.interactions.get_or_create(&Labels { outcome }).get()
    }

    pub(crate) fn consumer_recreated(&self) {
        self.recreated.inc();
    }

    pub(crate) fn pull_failed(&self) {
        self.pull_errors.inc();
    }

    pub(crate) fn nats_connected(&self) {
        self.nats_connections.inc();
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn of(consumer: &str) -> ConsumerLabels {
    let consumer = consumer.to_owned();
    ConsumerLabels { consumer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_by_name() {
        let metrics = Metrics::new();
        metrics.started();
        metrics.started();
        metrics.finished(Outcome::Stale, None);
        let text = metrics.text().unwrap();
        assert!(
            text.contains("consumers_interactions_total{outcome=\"stale\"} 1"),
            "{text}"
        );
        assert!(text.contains("consumers_in_flight 1"), "{text}");
        assert_eq!((metrics.in_flight(), metrics.count(Outcome::Stale)), (1, 1));
    }

    #[test]
    fn times_are_measured_in_seconds() {
        let metrics = Metrics::new();
        metrics.arrived(Duration::from_millis(20));
        metrics.started();
        metrics.finished(Outcome::Answered, Some(Duration::from_millis(40)));
        let text = metrics.text().unwrap();
        assert!(
            text.contains("consumers_age_on_arrival_seconds_sum 0.02"),
            "{text}"
        );
        assert!(
            text.contains("consumers_answer_time_seconds_bucket{le=\"0.05\"} 1"),
            "{text}"
        );
    }
}
