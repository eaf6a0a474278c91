//! What all deliveries of a worker share.

use std::sync::Arc;

use schemas::Prefix;

use crate::context::WorkerInfo;
use crate::metrics::Metrics;
use crate::nats::Link;
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
    pub(crate) warnings: Warnings,
}

/// Warnings that a backlog or a foreign publisher can repeat without end.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    pub(crate) stale: Throttle,
    pub(crate) undecodable: Throttle,
}
