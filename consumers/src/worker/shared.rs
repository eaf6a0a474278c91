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
}
