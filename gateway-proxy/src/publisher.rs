//! One ordered publisher per process and stream: shards hand over prepared messages, one task owns
//! the connection to NATS and writes, retries and acknowledges them in that order.
//!
//! Nothing else awaits a JetStream acknowledgement of an event. A message handed over is kept until
//! JetStream has it, so the bytes kept are bounded: at the bound [`Publisher::has_room`] is false,
//! shards stop reading their sockets, and [`Publisher::room`] gives them turns.

mod inbox;
mod lane;
mod outbound;
mod reconcile;
mod room;
mod task;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::metrics::Metrics;
use room::Room;

pub(crate) use lane::Lane;
pub(crate) use outbound::{Outbound, SessionTag};
pub(crate) use reconcile::Reconcile;
pub(crate) use room::Turn;
pub(crate) use task::run;

/// What shards and the rest of the process share with the publisher's task.
#[derive(Debug)]
pub(crate) struct Publisher {
    inbox: Mutex<Vec<Outbound>>,
    // Wakes the task: the inbox is not empty.
    filled: Notify,
    // Shards that wait for room.
    room: Room,
    // Wakes whoever waits for everything to be stored.
    drained: Notify,
    // Wakes the task: a lane was closed with messages on their way.
    sweep: Notify,
    kept_bytes: AtomicUsize,
    kept_messages: AtomicUsize,
    limit_bytes: usize,
    connected: AtomicBool,
    connected_before: AtomicBool,
    trouble: Mutex<Option<String>>,
    started: Instant,
    // When something was stored last, in milliseconds after `started`.
    progress_ms: AtomicU64,
    metrics: Metrics,
}

impl Publisher {
    /// A publisher that keeps at most `limit_bytes` of messages that are not stored yet.
    pub(crate) fn new(limit_bytes: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::new(Vec::new()),
            filled: Notify::new(),
            room: Room::new(),
            drained: Notify::new(),
            sweep: Notify::new(),
            kept_bytes: AtomicUsize::new(0),
            kept_messages: AtomicUsize::new(0),
            limit_bytes,
            connected: AtomicBool::new(false),
            connected_before: AtomicBool::new(false),
            trouble: Mutex::new(None),
            started: Instant::now(),
            progress_ms: AtomicU64::new(0),
            metrics,
        })
    }

    /// False when shards must not read more. The bound may be exceeded by the messages of one read
    /// per shard, so that a frame larger than the bound gets through too.
    pub(crate) fn has_room(&self) -> bool {
        self.kept_bytes.load(Ordering::Relaxed) < self.limit_bytes
    }

    /// Whether nobody waits for room.
    pub(crate) fn is_unclaimed(&self) -> bool {
        self.room.is_unclaimed()
    }

    /// Whether a shard may read on without waiting for its turn: there is room, and nobody waits for it.
    pub(crate) fn is_open(&self) -> bool {
        self.has_room() && self.is_unclaimed()
    }

    /// Waits until [`Publisher::has_room`] and everybody who waited before has had a turn.
    pub(crate) async fn room(&self) -> Turn {
        self.room.turn(|| self.has_room()).await
    }

    /// When JetStream acknowledged something last; the start of the process if it never has.
    pub(crate) fn last_progress(&self) -> Instant {
        self.started + Duration::from_millis(self.progress_ms.load(Ordering::Relaxed))
    }

    fn progressed(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.progress_ms.store(since, Ordering::Relaxed);
    }

    /// Takes a message over. It will be stored, in this order, or replaced by a gap marker if NATS
    /// can never take it.
    pub(crate) fn hand_over(&self, message: Outbound) {
        self.kept_bytes
            .fetch_add(message.kept_bytes(), Ordering::Relaxed);
        self.kept_messages.fetch_add(1, Ordering::Relaxed);
        message.lane().add_kept();
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.push(message);
        if inbox.len() == 1 {
            drop(inbox);
            self.filled.notify_one();
        }
    }

    /// Waits until everything handed over is stored, or the time is up. True: everything is.
    #[cfg(test)]
    pub(crate) async fn drained(&self, patience: Duration) -> bool {
        let wait = async {
            loop {
                let woken = self.drained.notified();
                if self.kept_messages() == 0 {
                    return;
                }
                woken.await;
            }
        };
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// Drops what closed lanes have on their way; the connection is given up for it, since what is
    /// written cannot be taken back otherwise.
    pub(crate) fn sweep(&self) {
        self.sweep.notify_one();
    }

    /// Messages not stored yet.
    pub(crate) fn kept_messages(&self) -> usize {
        self.kept_messages.load(Ordering::Relaxed)
    }

    /// Their bytes.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes.load(Ordering::Relaxed)
    }

    /// Whether the connection to NATS is up.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// What keeps the publisher from storing, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Why events are not being stored at this moment; `None`: they are, or there are none.
    pub(crate) fn held_up(&self) -> Option<String> {
        if !self.is_connected() {
            return Some(self.trouble().unwrap_or_else(|| "connecting".to_owned()));
        }
        // A connection alone stores nothing: the last trouble is over with the first acknowledgement.
        self.trouble().filter(|_| self.kept_messages() > 0)
    }

    fn take_inbox(&self, into: &mut Vec<Outbound>) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *inbox, into);
    }

    fn stored(&self, message: &Outbound) {
        message.acknowledge();
        self.kept_bytes
            .fetch_sub(message.kept_bytes(), Ordering::Relaxed);
        self.kept_messages.fetch_sub(1, Ordering::Relaxed);
        message.lane().remove_kept();
        self.metrics.events_acknowledged.add(message.slot());
    }

    /// Forgets a message that is not ours to store any more.
    fn left_to_others(&self, message: &Outbound) {
        self.kept_bytes
            .fetch_sub(message.kept_bytes(), Ordering::Relaxed);
        self.kept_messages.fetch_sub(1, Ordering::Relaxed);
        message.lane().remove_kept();
    }

    fn after_acknowledgements(&self) {
        if self.has_room() {
            self.room.freed();
        }
        if self.kept_messages() == 0 {
            self.drained.notify_waiters();
        }
    }

    fn set_connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        if self.kept_messages() == 0 {
            self.clear_trouble();
        }
        if self.connected_before.swap(true, Ordering::Relaxed) {
            self.metrics.nats_reconnects.increment();
        }
    }

    fn set_disconnected(&self, why: String) {
        self.connected.store(false, Ordering::Relaxed);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    fn clear_trouble(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests;
