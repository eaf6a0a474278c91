//! Shared events that came before there was a place for them: another worker gets them when theirs
//! turns slow, pauses or stops.

use consumers::{Context, Events, HandlerError, Running, Start};
use tokio::sync::watch;
use twilight_model::gateway::payload::incoming::MessageDelete;

use crate::event_world::Seen;
use crate::world::World;

/// Events handled as they come, so that more are asked for than there are places.
const QUICK: u64 = 800;
/// Events behind them, whose handlers wait; more than a worker ever asks for.
const SLOW: u64 = 800;
/// Events that one worker handles at once.
const PLACES: usize = 4;

/// A worker whose handlers hang from some event on, and what it has begun.
struct Hanging {
    world: World,
    worker: Running,
    begun: Seen,
    open: watch::Sender<bool>,
}

impl Hanging {
    /// Starts it, and waits until it hangs with all its places taken.
    async fn start() -> Self {
        let world = World::start().await;
        for seq in 1..=QUICK + SLOW {
            world.store_delete(0, 7, seq).await;
        }
        let (open, gate) = watch::channel(false);
        let begun = Seen::default();
        let note = begun.clone();
        let handler = move |context: Context, _: MessageDelete| {
            let (mut gate, note) = (gate.clone(), note.clone());
            async move {
                note.add(context.message_id());
                if context.event().seq.is_some_and(|seq| seq > QUICK) {
                    gate.wait_for(|open| *open).await?;
                }
                Ok::<(), HandlerError>(())
            }
        };
        let events = Events::shared("all").start(Start::Oldest);
        let events = events.concurrency(PLACES).on::<MessageDelete>(handler);
        let worker = world.event_worker(events).await;
        let all = usize::try_from(QUICK).unwrap() + PLACES;
        begun.reaches(all).await;
        Self {
            world,
            worker,
            begun,
            open,
        }
    }

    /// Starts another worker, which must get all events but those that hang, each of them once.
    async fn another_gets_the_rest(&self) -> Running {
        let seen = Seen::default();
        let another = Events::shared("all").on::<MessageDelete>(seen.notes());
        let another = self.world.event_worker(another).await;
        let slow = usize::try_from(SLOW).unwrap();
        seen.reaches(slow - PLACES).await;
        self.open.send_replace(true);
        self.world.drained("all").await;
        let (here, there) = (self.begun.all(), seen.all());
        let mut all: Vec<String> = here.iter().chain(&there).cloned().collect();
        all.sort();
        all.dedup();
        let number = usize::try_from(QUICK + SLOW).unwrap();
        assert_eq!((all.len(), here.len() + there.len()), (number, number));
        another
    }
}

#[tokio::test]
async fn what_waits_for_handlers_that_turned_slow_goes_to_another_worker() {
    let hanging = Hanging::start().await;
    let another = hanging.another_gets_the_rest().await;
    another.stop().await;
    hanging.worker.stop().await;
}

#[tokio::test]
async fn what_waits_in_a_worker_that_pauses_goes_to_another_one() {
    let hanging = Hanging::start().await;
    hanging.worker.pause();
    let another = hanging.another_gets_the_rest().await;
    another.stop().await;
    hanging.worker.stop().await;
}
