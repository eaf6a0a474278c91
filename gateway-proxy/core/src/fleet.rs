//! Decisions of the fleet: who lives, who coordinates, who holds which shard, who may IDENTIFY.
//!
//! Everything rests on three facts of one KV bucket, none of which needs clocks that agree:
//!
//! 1. **A member's lease** (`member.<proxy>`) is renewed by compare-and-set and ends a TTL after its
//!    last renewal arrived. The member counts from when it *sent* that renewal and stops earlier
//!    ([`fence::Fence`]), others count from when they *saw* it ([`view::View`]). Sent is before seen,
//!    so nobody calls a member dead that still may act.
//! 2. **A shard's record** (`shard.<count>.<id>`) names the one instance that holds it. It changes
//!    hands by compare-and-set only, and only from nobody or from an instance that is dead
//!    ([`handover::Handover`]). *Every* write of a record is a compare-and-set, the regular ones too:
//!    a late one would give the shard back to the dead.
//! 3. **The plan** says who *should* hold a shard. It may be old, doubled or edited by hand: that costs
//!    a detour, never a second owner.
//!
//! An instance is one joining of one process: who has lost its lease joins again under a new instance
//! name, because a write of the old one may still be on its way.
//!
//! Times are [`std::time::Instant`] of the process that calls; two processes never compare them. What
//! is written for others (unix ms) orders and informs, it decides nothing that must be safe.

pub mod count;
pub mod fence;
pub mod handover;
pub mod lease;
pub mod limiter;
pub mod plan;
pub mod rebalance;
pub mod view;

use std::time::Duration;

/// TTL of a lease unless configured, and the shortest. Whole seconds: NATS knows no others.
pub const TTL: Duration = Duration::from_secs(2);

/// Longest TTL believed in: how long shards stay with a member that is not heard of any more.
pub const TTL_MAX: Duration = Duration::from_secs(60);

/// How long the holder of a lease acts on it, from when it *sent* the write: a little less than the TTL.
#[must_use]
pub fn acts_for(ttl: Duration) -> Duration {
    ttl - margin(ttl)
}

/// The TTL that a member or coordinator says it has; `unsaid` in what older versions wrote.
#[must_use]
fn said_ttl(lease_ttl_ms: Option<u64>, unsaid: Duration) -> Duration {
    lease_ttl_ms.map_or(unsaid, |ms| Duration::from_millis(ms).clamp(TTL, TTL_MAX))
}

/// What is known of a key after a compare-and-set was refused: the driver reads it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Current {
    /// It holds what this very instance wrote: an earlier write whose answer was lost arrived.
    Ours {
        /// The key's revision.
        revision: u64,
    },
    /// It holds something else.
    Other,
    /// There is nothing.
    Gone,
}

/// How a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Its TTL ended (async-nats: `Operation::Purge`).
    Expired,
    /// Somebody deleted it (`Operation::Delete`): a member that left, or an operator.
    Deleted,
}

/// Margin between the last moment a holder uses its lease and the first at which it can end: room for
/// closing sockets and for clocks that run at different speed.
#[must_use]
pub(crate) fn margin(ttl: Duration) -> Duration {
    ttl / 4
}

/// A lease this process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) revision: u64,
    // When the write that got or renewed it was sent: the server's TTL begins later.
    pub(crate) sent_at: std::time::Instant,
}

impl Held {
    pub(crate) fn valid_until(self, ttl: Duration) -> std::time::Instant {
        self.sent_at + acts_for(ttl)
    }
}
