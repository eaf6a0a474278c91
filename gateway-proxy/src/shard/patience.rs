//! How a shard waits for room in the publish buffer: in the queue, and not for ever.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::publisher::{Publisher, Turn};

/// How long the publish buffer may stay full, with nothing stored meanwhile, before the connection is
/// let go: Discord closes clients that do not read, and its replay buffer keeps filling either way.
/// While NATS stores, if slowly, every shard gets its turn.
const OVERLOADED_AFTER: Duration = Duration::from_secs(20);

/// A place in the queue for room; taken when first polled, kept until dropped.
pub(super) type AwaitedTurn = Pin<Box<dyn Future<Output = Turn> + Send>>;

pub(super) fn awaited_turn(publisher: &Arc<Publisher>) -> AwaitedTurn {
    let publisher = Arc::clone(publisher);
    Box::pin(async move { publisher.room().await })
}

/// `full_since`: when the shard began to wait for room. `progress`: when something was stored last.
pub(super) fn overloaded_at(full_since: Option<Instant>, progress: Instant) -> Option<Instant> {
    full_since.map(|since| since.max(progress) + OVERLOADED_AFTER)
}

pub(super) async fn next_turn(turn: &mut Option<AwaitedTurn>) -> Turn {
    match turn {
        Some(turn) => turn.await,
        None => std::future::pending().await,
    }
}

/// Waits for something else than room. A turn that comes meanwhile is passed on: others wait behind it.
pub(super) async fn passing_on<T>(
    turn: &mut Option<AwaitedTurn>,
    other: impl Future<Output = T>,
) -> T {
    let mut other = std::pin::pin!(other);
    loop {
        tokio::select! {
            biased;
            done = &mut other => return done,
            come = next_turn(turn) => {
                *turn = None;
                drop(come);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_shard_is_not_overloaded_while_nats_is_still_storing() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(overloaded_at(None, start), None);
        assert_eq!(
            overloaded_at(Some(at(5)), at(1)),
            Some(at(5) + OVERLOADED_AFTER)
        );
        assert_eq!(
            overloaded_at(Some(at(5)), at(300)),
            Some(at(300) + OVERLOADED_AFTER)
        );
    }

    #[tokio::test]
    async fn a_turn_that_comes_while_a_socket_is_stuck_is_passed_on() {
        let publisher = Publisher::new(1, test_metrics());
        let before = publisher.room().await;
        let mut turn = Some(awaited(&publisher));
        let mut next = awaited(&publisher);
        let stuck = async {
            drop((&mut next).await);
            "sent"
        };
        drop(before);
        let within = Duration::from_secs(60);
        let sent = tokio::time::timeout(within, passing_on(&mut turn, stuck)).await;
        assert_eq!(sent, Ok("sent"), "the next shard waits for the stuck one");
        assert!(turn.is_none());
    }

    fn awaited(publisher: &Arc<Publisher>) -> AwaitedTurn {
        let mut turn = awaited_turn(publisher);
        assert!(turn.as_mut().now_or_never().is_none(), "takes its place");
        turn
    }

    fn test_metrics() -> Metrics {
        let proxy = schemas::ProxyId::try_from("test".to_owned()).expect("letters");
        Metrics::new(crate::status::ProcessStatus::new(proxy))
    }
}
