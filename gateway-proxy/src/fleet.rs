//! The fleet: proxies that share the shards of a bot. Drives the decisions of `core::fleet` against the
//! bucket, NATS' services and the shards this process holds.

pub(crate) mod agent;
pub(crate) mod apart;
pub(crate) mod bucket;
pub(crate) mod coordinator;
pub(crate) mod leadership;
pub(crate) mod service;
pub(crate) mod states;
pub(crate) mod table;
mod write;

use leadership::Leadership;
use states::States;

/// What `/cluster/state` is answered from.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) states: States,
    pub(crate) leadership: Leadership,
}
