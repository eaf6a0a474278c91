//! Every number the directory counts, named once. No label names a guild or user.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::rest::RestMetrics;

/// The instruments of one instance.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) rest: RestMetrics,
    pub(crate) events: Counter,
    pub(crate) writes: Counter,
    pub(crate) unreadable: Counter,
    pub(crate) misplaced: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) restarts: Counter,
    pub(crate) refreshed: Counter,
    pub(crate) queries: Counter,
    pub(crate) shards: Gauge<i64, AtomicI64>,
    guilds: Gauge<i64, AtomicI64>,
    stale: Gauge<i64, AtomicI64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("directory");
        let rest = RestMetrics::default();
        rest.register(&mut registry);
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let events = counter("events", "Events read");
        let writes = counter("writes", "Guild entries written or removed");
        let unreadable = counter(
            "events_unreadable",
            "Events without the shape they should have",
        );
        let misplaced = counter(
            "guilds_misplaced",
            "Guilds that came in on a shard where the formula does not place them",
        );
        let conflicts = counter("conflicts", "Writes another instance was faster with");
        let restarts = counter(
            "shard_restarts",
            "Times a shard was read again from its position",
        );
        let refreshed = counter("guilds_refreshed", "Guilds Discord was asked about");
        let queries = counter("queries", "Questions answered or refused");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<i64, AtomicI64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let shards = gauge("shards", "Shards this instance reads");
        let guilds = gauge("guilds", "Guilds known");
        let stale = gauge("guilds_stale", "Guilds of which events may be missing");
        Self {
            registry,
            rest,
            events,
            writes,
            unreadable,
            misplaced,
            conflicts,
            restarts,
            refreshed,
            queries,
            shards,
            guilds,
            stale,
        }
    }

    /// The text of `/metrics`.
    pub(crate) fn text(&self, guilds: u64, stale: u64) -> Result<String, std::fmt::Error> {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.guilds.set(number(guilds));
        self.stale.set(number(stale));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instrument_is_shown_by_name() {
        let metrics = Metrics::new();
        metrics.events.inc_by(3);
        metrics.shards.inc();
        let text = metrics.text(7, 1).unwrap();
        for line in [
            "directory_events_total 3",
            "directory_shards 1",
            "directory_guilds 7",
            "directory_guilds_stale 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
