//! Room in the publish buffer, given out in turn: who waits longest reads next, and who comes later
//! does not overtake. Without turns the first of many shards to wake up would fill the buffer again
//! each time, and the others would never read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The queue for room. A shard stands in it at most twice, reading and dialling, so the number of
/// shards bounds it.
#[derive(Debug)]
pub(super) struct Room {
    // One at a time, first come, first served.
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    // Wakes the one whose turn it is.
    freed: Notify,
}

/// The right to take in some messages; passed on when dropped.
#[derive(Debug)]
#[must_use = "the next one waits until it is dropped"]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

/// A place in the queue.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(1)),
            waiting: Arc::default(),
            freed: Notify::new(),
        }
    }

    /// Whether nobody waits, so that who finds room may take it.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// There is room.
    pub(super) fn freed(&self) {
        self.freed.notify_waiters();
    }

    /// Waits for everybody who came before, then for room. The place in the queue is kept as long as
    /// the future is.
    pub(super) async fn turn(&self, has_room: impl Fn() -> bool) -> Turn {
        let place = Place::take(&self.waiting);
        let permit = Arc::clone(&self.turns).acquire_owned().await;
        let permit = permit.expect("nobody closes the queue");
        loop {
            let freed = self.freed.notified();
            if has_room() {
                return Turn {
                    _permit: permit,
                    _place: place,
                };
            }
            freed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::pin::Pin;

    use futures_util::FutureExt;

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Turn> + 'a>>;

    fn waits<'a>(room: &'a Room, free: &'a Cell<bool>) -> Waiting<'a> {
        let mut turn: Waiting<'a> = Box::pin(room.turn(|| free.get()));
        assert!(turn.as_mut().now_or_never().is_none(), "there is no room");
        turn
    }

    #[test]
    fn room_without_a_queue_is_taken_at_once() {
        let room = Room::new();
        assert!(room.is_unclaimed());
        let turn = room.turn(|| true).now_or_never().unwrap();
        assert!(!room.is_unclaimed());
        drop(turn);
        assert!(room.is_unclaimed());
    }

    #[test]
    fn of_many_shards_none_starves_when_each_fills_the_buffer_at_its_turn() {
        const SHARDS: usize = 16;
        let (room, free) = (Room::new(), Cell::new(false));
        let mut queue: VecDeque<(usize, Waiting<'_>)> =
            (0..SHARDS).map(|id| (id, waits(&room, &free))).collect();
        let mut turns = [0; SHARDS];
        for _ in 0..SHARDS * 5 {
            free.set(true);
            room.freed();
            // All are polled, and in the worst order.
            let mut served = None;
            for (at, (_, waiting)) in queue.iter_mut().enumerate().rev() {
                if let Some(turn) = waiting.as_mut().now_or_never() {
                    assert!(served.is_none(), "two at a time");
                    served = Some((at, turn));
                }
            }
            let (at, turn) = served.expect("somebody's turn");
            let (id, _) = queue.remove(at).unwrap();
            turns[id] += 1;
            free.set(false);
            drop(turn);
            queue.push_back((id, waits(&room, &free)));
        }
        assert_eq!(turns, [5; SHARDS]);
    }

    #[test]
    fn who_comes_later_does_not_overtake() {
        let (room, free) = (Room::new(), Cell::new(false));
        let mut first = waits(&room, &free);
        free.set(true);
        assert!(!room.is_unclaimed(), "room, but somebody waits for it");
        assert!(room.turn(|| free.get()).now_or_never().is_none());
        let turn = first.as_mut().now_or_never();
        assert!(turn.is_none(), "nobody said that there is room");
        room.freed();
        assert!(first.as_mut().now_or_never().is_some());
        drop(first);
        assert!(room.is_unclaimed());
    }

    #[test]
    fn who_gives_up_waiting_leaves_the_queue() {
        let (room, free) = (Room::new(), Cell::new(false));
        let first = waits(&room, &free);
        let mut second = waits(&room, &free);
        drop(first);
        free.set(true);
        room.freed();
        // The turn is the second one's by now.
        let turn = second.as_mut().now_or_never();
        assert!(turn.is_some());
        drop(turn);
        assert!(room.is_unclaimed());
    }
}
