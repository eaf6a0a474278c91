//! What REST requests are counted by, in the registry of whoever sends them.

use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What became of one sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestOutcome {
    Done,
    /// Discord says no, and would again.
    Refused,
    /// 429.
    RateLimited,
    /// 5xx, no response, or one that is none of Discord's.
    Failed,
    /// No room in the worker's share before the deadline.
    NoRoom,
    /// Kept back by the breaker.
    Halted,
}

impl EncodeLabelValue for RequestOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::RateLimited => "rate_limited",
            Self::Failed => "failed",
            Self::NoRoom => "no_room",
            Self::Halted => "halted",
        };
        name.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: RequestOutcome,
}

/// The instruments; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct RestMetrics {
    requests: Family<Labels, Counter>,
    share: Gauge<i64, AtomicI64>,
    workers: Gauge<i64, AtomicI64>,
    waits: Counter,
    invalid: Counter,
}

impl RestMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Requests to Discord's REST API by what became of each sending";
        registry.register("rest_requests", help, self.requests.clone());
        let help = "Requests per second this worker may send, its share of the global limit";
        registry.register("rest_share", help, self.share.clone());
        let help = "Workers that share the global limit";
        registry.register("rest_workers", help, self.workers.clone());
        let help = "Requests that waited for room in this worker's share";
        registry.register("rest_waits", help, self.waits.clone());
        let help = "Answers of 401, 403 and 429, which Discord counts towards a ban";
        registry.register("rest_invalid", help, self.invalid.clone());
    }

    pub(crate) fn request(&self, outcome: RequestOutcome) {
        self.requests.get_or_create(&Labels { outcome }).inc();
    }

    pub(crate) fn share(&self, share: u32) {
        self.share.set(i64::from(share));
    }

    pub(crate) fn workers(&self, workers: usize) {
        self.workers.set(i64::try_from(workers).unwrap_or(i64::MAX));
    }

    pub(crate) fn waited(&self) {
        self.waits.inc();
    }

    pub(crate) fn invalid(&self) {
        self.invalid.inc();
    }
}
