//! Each interaction is answered once, in time, or not at all.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use consumers::{Context, Definition, HandlerError, Interaction, Response, Router, commands};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::world::room::Room;
use crate::world::{Stalls, World, frame, http_get, metric, not_ready, until};

fn hello() -> Definition {
    Definition::chat_input("hello", "Says hello")
}

#[tokio::test]
async fn two_workers_on_one_durable_answer_each_command_exactly_once() {
    const COMMANDS: usize = 60;
    let world = World::start().await;
    let (first, second) = tokio::join!(
        world.worker(commands::router()),
        world.worker(commands::router())
    );
    let mut typed = BTreeSet::new();
    for shard in 0..COMMANDS {
        typed.insert(world.typed(shard as u32 % 4, "ping", Duration::ZERO).await);
    }
    until("all answers", async || {
        (world.discord.answers().len() == COMMANDS).then_some(())
    })
    .await;
    world.settled("DISCORD_EVENTS").await;
    let answered: BTreeSet<u64> = world
        .discord
        .answers()
        .iter()
        .map(|answer| answer.interaction)
        .collect();
    assert_eq!(answered, typed);
    for id in typed {
        assert_eq!(world.discord.requests(id), 1, "{id} was posted once");
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_stale_interaction_is_terminated_and_never_answered() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let late = world.typed(0, "ping", Duration::from_millis(3100)).await;
    let fresh = world.type_command("ping").await;
    world.answer(fresh).await;
    metric(&worker, "consumers_interactions_total{outcome=\"stale\"} 1").await;
    world.settled("DISCORD_EVENTS").await;
    assert_eq!(world.discord.requests(late), 0);
}

#[tokio::test]
async fn undecodable_payloads_are_terminated_and_do_not_stop_the_next() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let cut = frame(1, "ping").to_string();
    let payloads: [&[u8]; 4] = [
        b"",
        b"\xff\x00\xfe",
        &cut.as_bytes()[..cut.len() / 2],
        b"{}",
    ];
    for payload in payloads {
        world.store(0, bytes::Bytes::copy_from_slice(payload)).await;
    }
    let good = world.type_command("ping").await;
    world.answer(good).await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"undecodable\"} 4",
    )
    .await;
    world.settled("DISCORD_EVENTS").await;
}

#[tokio::test]
async fn a_command_without_handler_is_left_to_others() {
    let world = World::start().await;
    let worker = world.worker(commands::router()).await;
    let foreign = world.type_command("somebody-elses").await;
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"unhandled\"} 1",
    )
    .await;
    world.settled("DISCORD_EVENTS").await;
    assert_eq!(world.discord.requests(foreign), 0);
}

#[tokio::test]
async fn a_handler_that_panics_fails_or_hangs_is_contained() {
    async fn broken(_: Context, interaction: Interaction) -> Result<Response, HandlerError> {
        match consumers::interaction::command(&interaction)
            .unwrap()
            .name
            .as_str()
        {
            "panics" => panic!("a handler's own fault"),
            "fails" => Err("no luck".into()),
            _ => std::future::pending().await,
        }
    }
    let world = World::start().await;
    let router = ["panics", "fails", "hangs"]
        .into_iter()
        .fold(Router::new(), |router, name| {
            router.command(Definition::chat_input(name, "Does not work"), broken)
        });
    let worker = world.worker(router).await;
    let stalls = Stalls::watch(&world.nats.url()).await;
    let mut typed = 0;
    for name in ["panics", "fails", "hangs"] {
        let (id, tries) = answered_but_for_stalls(&world, &stalls, name).await;
        typed += tries;
        assert!(
            world.answer(id).await.starts_with("Something went wrong"),
            "{name}"
        );
        let answer = world.discord.answer_to(id).unwrap();
        assert_eq!(
            answer.body["data"]["flags"], 64,
            "only the user sees the apology"
        );
    }
    until(
        "every command to have failed or come too late",
        async || {
            let (_, metrics) = http_get(worker.http_address(), "/metrics").await;
            let ended = metrics.lines().filter_map(|line| {
                let line = line.strip_prefix("consumers_interactions_total{outcome=\"")?;
                let (outcome, count) = line.split_once("\"} ")?;
                let expected = outcome == "failed" || outcome == "stale";
                expected.then(|| count.parse::<usize>().unwrap())
            });
            // More when a machine that stood still let one be delivered again.
            (ended.sum::<usize>() >= typed).then_some(())
        },
    )
    .await;
    metric(&worker, "consumers_in_flight 0").await;
    world.settled("DISCORD_EVENTS").await;
}

/// Types a command until it is answered; the interaction, and how many it took. More than one only if
/// the machine stood still: Discord waits for 3 s whatever its reason, and nothing is answered late.
async fn answered_but_for_stalls(world: &World, stalls: &Stalls, name: &str) -> (u64, usize) {
    /// Half of what the worker keeps back for posting an answer.
    const STALL: Duration = Duration::from_millis(250);
    const TRIES: usize = 10;
    for tries in 1..=TRIES {
        let lost = stalls.lost();
        let id = world.type_command(name).await;
        let answer = timeout(Duration::from_secs(4), world.answer(id));
        if answer.await.is_ok() {
            return (id, tries);
        }
        let lost = stalls.lost() - lost;
        assert!(lost >= STALL, "{name} is not answered; {lost:?} were lost");
    }
    panic!("{name} is not answered");
}

/// Time after which Discord takes no answer any more.
const DISCORD_WAITS: Duration = Duration::from_secs(3);

#[tokio::test]
async fn no_more_than_the_configured_number_is_handled_at_once() {
    const AT_ONCE: usize = 3;
    const ANSWERS: usize = 12;
    let world = World::start().await;
    let room = Room::new();
    let visited = room.clone();
    let gated = move |_: Context, _: Interaction| {
        let room = visited.clone();
        async move {
            room.visit().await;
            Ok::<_, HandlerError>(Response::text("done"))
        }
    };
    let mut options = world.options();
    options.concurrency = Some(AT_ONCE.to_string());
    let router = Router::new().command(hello(), gated);
    let _worker = world.try_worker(router, options).await.unwrap();
    let answers = || {
        let answers = world.discord.answers().into_iter();
        answers.filter(|answer| answer.content() == "done").count()
    };
    // As many as are handled wait beside them all the time, each for a few answers only.
    type_commands(&world, 2 * AT_ONCE).await;
    for answered in 0..ANSWERS {
        typed_again_for_stalls(&world, AT_ONCE, room.holds(AT_ONCE)).await;
        room.let_one_out();
        let one_more = until("an answer", async || (answers() > answered).then_some(()));
        typed_again_for_stalls(&world, AT_ONCE, one_more).await;
        type_commands(&world, 1).await;
    }
    assert_eq!(room.most(), AT_ONCE);
}

async fn type_commands(world: &World, count: usize) {
    for _ in 0..count {
        world.type_command("hello").await;
    }
}

/// Waits for what should be; if a machine that stood still let the commands grow too old for it, with
/// new ones.
async fn typed_again_for_stalls(
    world: &World,
    commands: usize,
    condition: impl Future<Output = ()>,
) {
    let mut condition = pin!(condition);
    // It ends by itself, with what it waits for.
    while timeout(DISCORD_WAITS, condition.as_mut()).await.is_err() {
        type_commands(world, commands).await;
    }
}

#[tokio::test]
async fn a_slow_handler_is_not_delivered_twice() {
    let world = World::start().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let slow = move |context: Context, _: Interaction| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            // Longer than the consumer's ack_wait of 1 s, shorter than Discord's 3 s.
            tokio::time::sleep(Duration::from_millis(1800)).await;
            Ok::<_, HandlerError>(Response::text(context.message_id()))
        }
    };
    let router = Router::new().command(hello(), slow);
    let (_first, _second) =
        tokio::join!(world.worker(router.clone()), world.worker(router.clone()));
    let id = world.type_command("hello").await;
    assert_eq!(world.answer(id).await, "session:2");
    world.settled("DISCORD_EVENTS").await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(world.discord.requests(id), 1);
}

#[tokio::test]
async fn a_graceful_stop_finishes_what_is_in_flight_and_leaves_the_rest_to_others() {
    let world = World::start().await;
    let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (entered.clone(), leave.clone());
    let gated = move |_: Context, _: Interaction| {
        let (entered, leave) = gates.clone();
        async move {
            entered.notify_one();
            leave.notified().await;
            Ok::<_, HandlerError>(Response::text("finished"))
        }
    };
    let worker = world.worker(Router::new().command(hello(), gated)).await;
    let address = worker.http_address();
    let in_flight = world.type_command("hello").await;
    entered.notified().await;
    let stopping = tokio::spawn(worker.stop());
    not_ready(address, "stopping").await;
    // Stored after the stop began: only the next worker may answer it.
    let later = world.type_command("hello").await;
    assert_eq!(world.discord.requests(in_flight), 0);
    leave.notify_one();
    stopping.await.unwrap();
    assert_eq!(world.answer(in_flight).await, "finished");
    assert_eq!(world.discord.requests(later), 0);
    async fn other(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::text("other"))
    }
    let _next = world.worker(Router::new().command(hello(), other)).await;
    assert_eq!(world.answer(later).await, "other");
    world.settled("DISCORD_EVENTS").await;
    assert_eq!(world.discord.requests(in_flight), 1);
}

#[tokio::test]
async fn the_interaction_of_a_dead_worker_is_answered_by_another_in_time() {
    let world = World::start().await;
    let entered = Arc::new(Notify::new());
    let gate = entered.clone();
    let stuck = move |_: Context, _: Interaction| {
        gate.notify_one();
        std::future::pending::<Result<Response, HandlerError>>()
    };
    let doomed = world.worker(Router::new().command(hello(), stuck)).await;
    let id = world.type_command("hello").await;
    entered.notified().await;
    drop(doomed);
    let other = |context: Context, _: Interaction| async move {
        let deliveries = context.event().deliveries;
        Ok::<_, HandlerError>(Response::text(format!("delivery {deliveries}")))
    };
    let worker = world.worker(Router::new().command(hello(), other)).await;
    assert_eq!(world.answer(id).await, "delivery 2");
    metric(
        &worker,
        "consumers_interactions_total{outcome=\"answered\"} 1",
    )
    .await;
}

#[tokio::test]
async fn several_event_streams_have_a_consumer_each() {
    let world = World::without_stream().await;
    for index in 0..2 {
        world.create_stream(Some((index, 2))).await;
    }
    let mut options = world.options();
    options.event_streams = Some("2".to_owned());
    let worker = world.try_worker(commands::router(), options).await.unwrap();
    let (even, odd) = (
        world.typed(2, "info", Duration::ZERO).await,
        world.typed(3, "info", Duration::ZERO).await,
    );
    assert!(world.answer(even).await.contains("**Shard:** 2"));
    assert!(world.answer(odd).await.contains("**Shard:** 3"));
    for stream in ["DISCORD_EVENTS_0", "DISCORD_EVENTS_1"] {
        world.settled(stream).await;
    }
    worker.stop().await;
}
