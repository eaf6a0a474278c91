//! One shard's place in a publisher: what its messages share, and how far they are stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use schemas::{Prefix, ShardId};
use tokio::sync::Notify;

/// How far a shard's events are handed over, stored or left out.
///
/// Each mark packs the session's generation into the upper 16 bits and the sequence into the lower
/// 48, so that one store moves it and a reader never mixes two sessions. A sequence would need
/// 90 years at 100,000 events/s to overflow.
#[derive(Debug)]
pub(crate) struct Lane {
    shard: ShardId,
    // `discord.shard.7.events.`
    root: String,
    // Written by the publisher: stored with all before it.
    acked: AtomicU64,
    // Written by the shard: the last event handed over, and the last one handed over or left out by
    // `--drop-events`.
    published: AtomicU64,
    handled: AtomicU64,
    // Gap markers handed over and not stored yet. Until they are, the session before them is what a
    // successor must find, so that the gap is announced in any case.
    gaps: AtomicU32,
    // Messages handed over and not stored yet.
    kept: AtomicUsize,
    // Wakes whoever waits for all of them to be stored.
    settled: Notify,
    // The shard is let go of: what is not stored is not ours to store any more.
    closed: AtomicBool,
}

/// A session's generation and a sequence in it.
pub(crate) type Mark = (u16, u64);

const SEQ_BITS: u32 = 48;

fn pack((generation, seq): Mark) -> u64 {
    (u64::from(generation) << SEQ_BITS) | (seq & ((1 << SEQ_BITS) - 1))
}

const fn unpack(packed: u64) -> Mark {
    // The shift leaves 16 bits.
    ((packed >> SEQ_BITS) as u16, packed & ((1 << SEQ_BITS) - 1))
}

impl Lane {
    /// A shard that carries on after `start`, all of which is stored.
    pub(crate) fn new(prefix: &Prefix, shard: ShardId, start: Mark) -> Arc<Self> {
        let mark = || AtomicU64::new(pack(start));
        let root = schemas::subject::event_root(prefix, shard.id());
        Arc::new(Self {
            shard,
            root,
            acked: mark(),
            published: mark(),
            handled: mark(),
            gaps: AtomicU32::new(0),
            kept: AtomicUsize::new(0),
            settled: Notify::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// The sequence up to which every event is stored or left out on purpose: where another process
    /// may resume.
    pub(crate) fn checkpoint(&self) -> Mark {
        // In this order: an event handed over meanwhile moves `published` before `handled`, so a
        // mark beyond what is stored is never seen.
        let handled = self.handled.load(Ordering::Acquire);
        let published = self.published.load(Ordering::Acquire);
        let acked = self.acked.load(Ordering::Acquire);
        let settled = acked == published && self.gaps.load(Ordering::Acquire) == 0;
        unpack(if settled { handled } else { acked })
    }

    /// A gap marker is handed over.
    pub(crate) fn add_gap(&self) {
        self.gaps.fetch_add(1, Ordering::AcqRel);
    }

    /// It is stored.
    pub(super) fn gap_stored(&self) {
        self.gaps.fetch_sub(1, Ordering::AcqRel);
    }

    /// Waits until everything handed over is stored, or dropped because the lane is closed.
    pub(crate) async fn settled(&self) {
        loop {
            let woken = self.settled.notified();
            if self.kept() == 0 {
                return;
            }
            woken.await;
        }
    }

    /// Messages not stored yet.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Acquire)
    }

    /// From here on nothing of the shard is published that is not already on its way.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// True after [`Lane::close`].
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn add_kept(&self) {
        self.kept.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn remove_kept(&self) {
        if self.kept.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_waiters();
        }
    }

    /// An event of the shard is handed over.
    pub(crate) fn set_published(&self, mark: Mark) {
        self.published.store(pack(mark), Ordering::Release);
        self.handled.store(pack(mark), Ordering::Release);
    }

    /// An event of the shard is left out on purpose.
    pub(crate) fn set_left_out(&self, mark: Mark) {
        self.handled.store(pack(mark), Ordering::Release);
    }

    pub(super) fn set_acked(&self, mark: Mark) {
        self.acked.store(pack(mark), Ordering::Release);
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    pub(crate) const fn shard(&self) -> ShardId {
        self.shard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Arc<Lane> {
        Lane::new(&Prefix::default(), ShardId::new(0, 1).unwrap(), (0, 10))
    }

    #[test]
    fn the_checkpoint_follows_what_is_stored() {
        let lane = lane();
        assert_eq!(lane.checkpoint(), (0, 10));
        lane.set_published((0, 11));
        lane.set_published((0, 12));
        assert_eq!(lane.checkpoint(), (0, 10));
        lane.set_acked((0, 11));
        assert_eq!(lane.checkpoint(), (0, 11));
        lane.set_acked((0, 12));
        assert_eq!(lane.checkpoint(), (0, 12));
    }

    #[test]
    fn events_left_out_advance_it_once_all_before_them_are_stored() {
        let lane = lane();
        lane.set_left_out((0, 11));
        assert_eq!(lane.checkpoint(), (0, 11));
        lane.set_published((0, 12));
        lane.set_left_out((0, 13));
        assert_eq!(lane.checkpoint(), (0, 10));
        lane.set_acked((0, 12));
        assert_eq!(lane.checkpoint(), (0, 13));
    }

    #[test]
    fn a_session_all_filtered_is_no_checkpoint_before_its_gap_is_stored() {
        let lane = lane();
        lane.add_gap();
        lane.set_left_out((1, 1));
        assert_eq!(lane.checkpoint(), (0, 10));
        lane.gap_stored();
        assert_eq!(lane.checkpoint(), (1, 1));
    }

    #[test]
    fn a_new_session_starts_its_own_count() {
        let lane = lane();
        lane.set_published((1, 1));
        assert_eq!(lane.checkpoint(), (0, 10));
        lane.set_acked((1, 1));
        assert_eq!(lane.checkpoint(), (1, 1));
    }
}
