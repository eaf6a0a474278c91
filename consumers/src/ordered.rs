//! Ordered mode: the shards are spread over the workers of a group, each held by one at a time.
//!
//! Who lives and who holds what stands in a KV bucket: a member's key has a TTL and is the lease on
//! all its shards; a claim names the member that holds a shard. Each
//! worker decides for itself what to take and give up ([`assignment`], pure), [`group`] carries it
//! out, and [`tenure`] reads and handles one shard while it is held, in the order that [`lanes`]
//! (pure) allows. The server enforces what leases only promise: a shard's consumer delivers to the
//! one client it has pinned, and who takes a shard over unpins it first.

mod assignment;
mod by_sequence;
mod group;
mod lanes;
mod tenure;

pub(crate) use group::Group;
