//! The global rate limit, divided among the workers that are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use consumers::{Events, HandlerError, Rest, RestError, Router, Running, WorkerContext, commands};
use tokio::sync::mpsc;
use twilight_model::gateway::payload::incoming::MessageDelete;
use twilight_model::id::Id;

use crate::fake_discord::Fault;
use crate::world::{Stalls, World, metric, patience, until};

/// A worker, and what its handlers have.
struct Sender {
    running: Running,
    context: WorkerContext,
}

impl Sender {
    async fn start(world: &World, name: &str, budget: &str) -> Self {
        Self::with(world, name, budget, Router::new()).await
    }

    async fn with(world: &World, name: &str, budget: &str, router: Router) -> Self {
        let (tell, mut told) = mpsc::unbounded_channel();
        let handler = move |context: consumers::Context, _: MessageDelete| {
            let told = tell.send(context.worker_context().clone());
            std::future::ready(told.map_err(HandlerError::from))
        };
        let events = Events::shared(name).on::<MessageDelete>(handler);
        let mut options = world.options();
        options.worker_id = Some(name.to_owned());
        options.rest_budget = Some(budget.to_owned());
        let router = router.events(events);
        let running = world.try_worker(router, options).await.unwrap();
        static SEQ: AtomicU64 = AtomicU64::new(1);
        world
            .store_delete(0, 1, SEQ.fetch_add(1, Ordering::Relaxed))
            .await;
        let context = told.recv().await.unwrap();
        Self { running, context }
    }

    fn rest(&self) -> &Rest {
        self.context.rest()
    }

    async fn has(&self, share: u32) {
        metric(&self.running, &format!("consumers_rest_share {share}")).await;
    }

    /// Asks for guilds without end, from many tasks at once.
    fn hammer(&self, stop: &Arc<AtomicBool>) {
        static GUILD: AtomicU64 = AtomicU64::new(1);
        for _ in 0..60 {
            let (rest, stop) = (self.rest().clone(), Arc::clone(stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let guild = GUILD.fetch_add(1, Ordering::Relaxed);
                    get(&rest, guild).await.ok();
                }
            });
        }
    }
}

async fn get(rest: &Rest, guild: u64) -> Result<(), RestError> {
    let send = |api: &twilight_http::Client| api.guild(Id::new(guild)).into_future();
    rest.send(send).await.map(drop)
}

/// Most requests that arrived within one second.
fn most_in_a_second(arrivals: &[Instant]) -> usize {
    let within = |first: &Instant| {
        let later = arrivals.iter().filter(|at| *at >= first);
        later
            .filter(|at| at.duration_since(*first) < Duration::from_secs(1))
            .count()
    };
    arrivals.iter().map(within).max().unwrap_or(0)
}

#[tokio::test]
async fn fifty_requests_a_second_are_divided_among_the_workers_that_come_and_go() {
    let world = World::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let stalls = Stalls::watch(&world.nats.url()).await;
    let first = Sender::start(&world, "first", "50").await;
    first.has(50).await;
    first.hammer(&stop);
    until("a second of requests", async || {
        (world.discord.gets().len() > 60).then_some(())
    })
    .await;
    let (second, third) = tokio::join!(
        Sender::start(&world, "second", "50"),
        Sender::start(&world, "third", "50")
    );
    second.hammer(&stop);
    third.hammer(&stop);
    tokio::join!(first.has(17), second.has(17), third.has(16));
    // One leaves in order, one dies.
    let Sender { running, .. } = second;
    running.stop().await;
    tokio::join!(first.has(25), third.has(25));
    drop(third.running);
    first.has(50).await;
    let before = world.discord.gets().len();
    let (again, lost) = (Instant::now(), stalls.lost());
    until("the whole budget to be used", async || {
        (world.discord.gets().len() >= before + 60).then_some(())
    })
    .await;
    // The raise is used a second after the dead one's share was seen to be free.
    stalls.assert_within(Duration::from_secs(4), again, lost);
    stop.store(true, Ordering::Relaxed);
    let arrivals = world.discord.gets();
    let most = most_in_a_second(&arrivals);
    // What was sent while the machine stood still arrives with what is sent after that.
    let worst = stalls.worst().as_secs_f64();
    let limit = (50.0 * (1.0 + worst)) as usize;
    assert!(
        most <= limit,
        "{most} requests within a second, {worst} s lost"
    );
}

#[tokio::test]
async fn interactions_are_answered_while_the_budget_is_used_up() {
    let world = World::start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let sender = Sender::with(&world, "busy", "5", commands::router()).await;
    sender.hammer(&stop);
    until("the budget to be used up", async || {
        (world.discord.gets().len() >= 10).then_some(())
    })
    .await;
    let stalls = Stalls::watch(&world.nats.url()).await;
    for _ in 0..5 {
        let (began, lost) = (Instant::now(), stalls.lost());
        let id = world.type_command("ping").await;
        world.answer(id).await;
        stalls.assert_within(Duration::from_secs(1), began, lost);
    }
    stop.store(true, Ordering::Relaxed);
}

#[tokio::test]
async fn a_request_is_tried_again_until_its_time_is_over() {
    let world = World::start().await;
    let sender = Sender::start(&world, "w", "50").await;
    world.discord.script_gets([
        Fault::Status(503),
        Fault::RateLimited { retry_after: 0.3 },
        Fault::BareRateLimit,
        Fault::Status(500),
    ]);
    get(sender.rest(), 7).await.unwrap();
    assert_eq!(world.discord.gets().len(), 5);
    metric(&sender.running, "consumers_rest_invalid_total 2").await;
    metric(
        &sender.running,
        "consumers_rest_requests_total{outcome=\"done\"} 1",
    )
    .await;

    // What Discord refuses is not asked for again.
    world.discord.script_gets([Fault::Status(403)]);
    let refused = get(sender.rest(), 8).await;
    assert!(matches!(refused, Err(RestError::Http(_))), "{refused:?}");
    assert_eq!(world.discord.gets().len(), 6);

    world
        .discord
        .script_gets(std::iter::repeat_n(Fault::Status(502), 100));
    let began = Instant::now();
    let short = sender.rest().within(Duration::from_secs(1));
    assert!(get(&short, 9).await.is_err());
    assert!(began.elapsed() < patience() / 4, "{:?}", began.elapsed());
    let tries = world.discord.gets().len() - 6;
    assert!((2..=4).contains(&tries), "{tries}");
}

#[tokio::test]
async fn without_a_share_a_request_says_so() {
    let world = World::start().await;
    let holder = Sender::start(&world, "a", "1").await;
    holder.has(1).await;
    let left_out = Sender::start(&world, "b", "1").await;
    assert_eq!(left_out.rest().share(), Some(0));
    let short = left_out.rest().within(Duration::from_millis(200));
    let refused = get(&short, 1).await;
    assert!(matches!(refused, Err(RestError::NoRoom)), "{refused:?}");
    assert!(world.discord.gets().is_empty());

    let unlimited = Sender::start(&world, "c", "off").await;
    assert_eq!(unlimited.rest().share(), None);
    get(unlimited.rest(), 1).await.unwrap();
}
