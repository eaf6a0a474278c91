//! Tasks that one worker runs: never two at once, and always one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use consumers::{HandlerError, Router, Running, Singleton, Turn, WorkerContext};
use tokio::sync::{Notify, oneshot};

use crate::event_world::Seen;
use crate::world::{World, metric, patience, until};

const SECOND: Duration = Duration::from_secs(1);

/// One run as its handler saw it.
#[derive(Clone, Debug)]
struct Run {
    worker: String,
    token: u64,
    began: Instant,
    ended: Option<Instant>,
}

#[derive(Clone, Debug, Default)]
struct Runs(Arc<Mutex<Vec<Run>>>);

/// Notes the end of a run, however it ends.
struct Ending(Runs, usize);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.0.lock().unwrap()[self.1].ended = Some(Instant::now());
    }
}

impl Runs {
    fn begin(&self, context: &WorkerContext, turn: &Turn) -> Ending {
        assert!(turn.is_valid() && turn.deadline() > Instant::now());
        let mut runs = self.0.lock().unwrap();
        runs.push(Run {
            worker: context.worker().id.to_string(),
            token: turn.token(),
            began: Instant::now(),
            ended: None,
        });
        Ending(self.clone(), runs.len() - 1)
    }

    fn all(&self) -> Vec<Run> {
        self.0.lock().unwrap().clone()
    }

    async fn reaches(&self, count: usize) -> Vec<Run> {
        until("enough runs", async || {
            let runs = self.all();
            (runs.len() >= count).then_some(runs)
        })
        .await
    }

    /// No run begins before the one before it has ended, and tokens never go back.
    fn assert_one_at_a_time(&self) {
        for pair in self.all().windows(2) {
            let ended = pair[0].ended;
            assert!(
                ended.is_some_and(|ended| ended <= pair[1].began),
                "{pair:?}"
            );
            assert!(pair[0].token <= pair[1].token, "{pair:?}");
        }
    }

    /// Each run takes this long.
    fn singleton(&self, takes: Duration) -> Singleton {
        let runs = self.clone();
        let run = move |context: WorkerContext, turn: Turn| {
            let runs = runs.clone();
            async move {
                let _ending = runs.begin(&context, &turn);
                tokio::time::sleep(takes).await;
                Ok::<(), HandlerError>(())
            }
        };
        Singleton::every("digest", SECOND, run).lease(SECOND)
    }
}

async fn worker(world: &World, name: &str, singleton: Singleton) -> Running {
    let router = Router::new().singleton(singleton);
    world.worker_named(name, router).await
}

#[tokio::test]
async fn one_of_three_workers_runs_it_and_another_goes_on_when_that_one_dies() {
    let world = World::start().await;
    let runs = Runs::default();
    let mut workers = Vec::new();
    for name in ["a", "b", "c"] {
        let singleton = runs.singleton(Duration::from_millis(100));
        workers.push(worker(&world, name, singleton).await);
    }
    while workers.len() > 1 {
        let known = runs.all().len();
        let seen = runs.reaches(known + 2).await;
        let holder = seen.last().unwrap().worker.clone();
        let dies = workers.iter().position(|one| one.worker_id() == holder);
        drop(workers.remove(dies.unwrap()));
        let died = Instant::now();
        let next = until("another to go on", async || {
            let last = runs.all().pop().unwrap();
            (last.worker != holder).then_some(last)
        })
        .await;
        assert!(next.token > seen.last().unwrap().token);
        // The lease, the interval, and what a busy machine takes.
        assert!(died.elapsed() <= patience() / 4, "{:?}", died.elapsed());
    }
    runs.assert_one_at_a_time();
    let line = "consumers_singleton_held{singleton=\"digest\"} 1";
    metric(&workers[0], line).await;
}

#[tokio::test]
async fn a_worker_that_stops_finishes_its_run_and_hands_over() {
    let world = World::start().await;
    let runs = Runs::default();
    let (gate, seen) = (Arc::new(Notify::new()), Seen::default());
    let (open, note, begin) = (gate.clone(), seen.clone(), runs.clone());
    let slow = move |context: WorkerContext, turn: Turn| {
        let (open, note, runs) = (open.clone(), note.clone(), begin.clone());
        async move {
            let _ending = runs.begin(&context, &turn);
            open.notified().await;
            note.add("finished");
            Ok::<(), HandlerError>(())
        }
    };
    // An hour: a second run would be one of the same.
    let hourly = Singleton::every("digest", SECOND * 3600, slow).lease(SECOND * 60);
    let first = worker(&world, "first", hourly.clone()).await;
    runs.reaches(1).await;
    let second = worker(&world, "second", hourly).await;
    let stopping = tokio::spawn(first.stop());
    gate.notify_one();
    stopping.await.unwrap();
    assert_eq!(seen.all(), ["finished"]);
    // Long before the lease would have ended.
    metric(&second, "consumers_singleton_held{singleton=\"digest\"} 1").await;
    assert_eq!(runs.all().len(), 1, "it is not due");
    second.stop().await;
}

#[tokio::test]
async fn a_run_that_was_cut_short_is_repeated_by_the_next_worker_at_once() {
    let world = World::start().await;
    let runs = Runs::default();
    let begin = runs.clone();
    let endless = move |context: WorkerContext, turn: Turn| {
        let runs = begin.clone();
        async move {
            let _ending = runs.begin(&context, &turn);
            std::future::pending::<Result<(), HandlerError>>().await
        }
    };
    let hourly = Singleton::every("digest", SECOND * 3600, endless).lease(SECOND);
    let first = worker(&world, "first", hourly.clone()).await;
    runs.reaches(1).await;
    let _second = worker(&world, "second", hourly).await;
    drop(first);
    let all = runs.reaches(2).await;
    assert_eq!(all[1].worker, "second");
    runs.assert_one_at_a_time();
}

#[tokio::test]
async fn a_run_that_fails_or_panics_is_counted_and_runs_again_when_it_is_due() {
    let world = World::start().await;
    let seen = Seen::default();
    let note = seen.clone();
    let run = move |_: WorkerContext, turn: Turn| {
        let note = note.clone();
        async move {
            let count = note.all().len();
            assert_eq!(turn.last_started().is_some(), count > 0);
            note.add("run");
            assert!(count != 0, "the first one panics");
            Err::<(), HandlerError>("the others fail".into())
        }
    };
    let worker = worker(&world, "w", Singleton::every("digest", SECOND, run)).await;
    seen.reaches(3).await;
    let line = "consumers_singleton_runs_total{singleton=\"digest\",outcome=\"failed\"} 3";
    metric(&worker, line).await;
}

#[tokio::test]
async fn a_worker_that_was_frozen_in_a_run_does_not_take_another_step() {
    let world = World::start().await;
    let runs = Runs::default();
    let (step, woke) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (thaw, thawed) = mpsc::channel();
    let (stepped, awake, begin) = (step.clone(), woke.clone(), runs.clone());
    let thawed = Arc::new(Mutex::new(thawed));
    let freezes = move |context: WorkerContext, turn: Turn| {
        let (stepped, awake, runs) = (stepped.clone(), awake.clone(), begin.clone());
        let thawed = Arc::clone(&thawed);
        async move {
            let ending = runs.begin(&context, &turn);
            let (wake, woken) = oneshot::channel();
            // Keeps the only thread: the whole process stands still, as far as this worker can tell.
            tokio::spawn(async move {
                thawed.lock().unwrap().recv_timeout(patience()).unwrap();
                awake.store(!turn.is_valid(), Ordering::SeqCst);
                wake.send(()).ok();
            });
            woken.await?;
            // What follows belongs to the next holder.
            stepped.store(true, Ordering::SeqCst);
            drop(ending);
            Ok::<(), HandlerError>(())
        }
    };
    let hourly = Singleton::every("digest", SECOND * 3600, freezes).lease(SECOND);
    let mut options = world.options();
    options.worker_id = Some("frozen".to_owned());
    let env = |name: &str| (name == "DISCORD_TOKEN").then(|| "x".into());
    options.api_url = Some(world.discord.url().to_owned());
    let config = consumers::Config::with_environment(options, &env).unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let frozen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let router = Router::new().singleton(hourly);
            let running = consumers::Worker::new(config, router)
                .start()
                .await
                .unwrap();
            // Until the test is done with it.
            ended.await.ok();
            drop(running);
        });
    });
    runs.reaches(1).await;
    let second = worker(&world, "second", runs.singleton(Duration::ZERO)).await;
    let all = runs.reaches(2).await;
    assert_eq!(all[1].worker, "second");
    assert!(all[1].token > all[0].token);
    thaw.send(()).unwrap();
    // Taken away from its worker, or done if that went on with it.
    until("the frozen run to end", async || runs.all()[0].ended).await;
    assert!(woke.load(Ordering::SeqCst), "its lease was over");
    drop(end);
    frozen.join().unwrap();
    assert!(!step.load(Ordering::SeqCst), "another worker had its turn");
    second.stop().await;
}
