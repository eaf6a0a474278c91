//! Runs singletons: takes the lease of each, runs it when it is due, and lets go of it in order.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::kv::Operation;
use futures_util::{FutureExt as _, StreamExt as _};
use schemas::{SingletonLease, SingletonRun, WorkersKey};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::attempt::panic_text;
use super::shared::Shared;
use crate::lease::{Keeper, Lease};
use crate::metrics::RunOutcome;
use crate::registry::{PutError, Registry, member_name, unix_ms};
use crate::singleton::{Singleton, Turn, wait};

/// Pause after NATS did not do its part, and before a lease that was lost is asked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The singletons of one worker. Dropping it ends their runs where they stand.
#[derive(Debug)]
pub(crate) struct Singletons {
    tasks: Vec<AbortOnDropHandle<()>>,
    stopping: CancellationToken,
}

impl Singletons {
    pub(crate) fn start(shared: &Arc<Shared>, registry: &Registry) -> Self {
        let stopping = CancellationToken::new();
        let singletons = shared.router.singletons.values();
        let tasks = singletons.map(|singleton| {
            let task = Task {
                member: member_name(&shared.worker.id),
                shared: Arc::clone(shared),
                registry: registry.clone(),
                singleton: singleton.clone(),
                stopping: stopping.clone(),
            };
            AbortOnDropHandle::new(tokio::spawn(task.run()))
        });
        Self {
            tasks: tasks.collect(),
            stopping,
        }
    }

    /// Begins no more runs, lets those that run finish until `limit`, and hands the leases over.
    pub(crate) async fn stop(self, limit: Instant) {
        self.stopping.cancel();
        for task in self.tasks {
            if timeout_at(limit, task).await.is_err() {
                tracing::warn!("a singleton outlived the grace period, another worker repeats it");
            }
        }
    }
}

struct Task {
    /// Who this worker is to the lease.
    member: String,
    shared: Arc<Shared>,
    registry: Registry,
    singleton: Singleton,
    stopping: CancellationToken,
}

/// A lease this worker has.
struct Held {
    lease: Arc<Lease>,
    token: u64,
    /// Dropping it ends the renewals.
    _value: watch::Sender<SingletonLease>,
    _keeper: AbortOnDropHandle<()>,
}

/// How a run ended.
enum Ran {
    Finished,
    /// The lease was over first.
    Lost,
}

impl Task {
    async fn run(self) {
        let name = &self.singleton.name;
        while !self.stopping.is_cancelled() {
            let taken = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                taken = self.take() => taken,
            };
            let ended = match taken {
                Ok(held) => {
                    tracing::info!(name, token = held.token, "this worker runs the singleton");
                    let _held = self.shared.metrics.among().singleton_held(name);
                    self.hold(held).await
                }
                Err(problem) => Err(problem),
            };
            if let Err(problem) = ended {
                tracing::debug!(name, problem, "the singleton's lease is not here");
                // If it still is, nobody shall have to wait for its end.
                drop(self.let_go().await);
                tokio::select! {
                    biased;
                    () = self.stopping.cancelled() => return,
                    () = sleep(RETRY_PAUSE) => {}
                }
            }
        }
    }

    fn lease_key(&self) -> WorkersKey {
        let name = self.singleton.name.clone();
        WorkersKey::SingletonLease { name }
    }

    /// Waits until nobody has the lease, and takes it.
    async fn take(&self) -> Result<Held, String> {
        let link = &self.shared.link;
        let Some(connection) = link.connected().await else {
            // There will be no NATS any more.
            return std::future::pending().await;
        };
        let key = self.lease_key();
        let free = async {
            // Looked at before the watch, so that a key that never was is no reason to wait.
            let mut watch = self.registry.watch_keys(&key.to_string()).await?;
            let mut revision = self.registry.vacant(&key).await?;
            while revision.is_none() {
                match watch.next().await {
                    Some(Ok(entry)) if entry.operation != Operation::Put => {
                        // Its mark may have ended since.
                        revision = self.registry.vacant(&key).await?;
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error.to_string()),
                    None => return Err("the watch ended".to_owned()),
                }
            }
            revision.ok_or_else(|| "the lease is taken".to_owned())
        };
        let revision = tokio::select! {
            free = free => free?,
            () = link.replaced(connection) => return Err("the connection is a new one".to_owned()),
        };
        let value = SingletonLease {
            member: self.member.clone(),
            worker: self.shared.worker.id.to_string(),
            since_unix_ms: unix_ms(),
        };
        let (sent, ttl) = (Instant::now(), self.singleton.lease);
        let token = match self.registry.put(&key, &value, revision, Some(ttl)).await {
            Ok(token) => token,
            Err(PutError::Conflict) => return Err("another worker was faster".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        let lease = Arc::new(Lease::new(sent, ttl));
        let (value, kept) = watch::channel(value);
        let keeper = Keeper {
            lease: Arc::clone(&lease),
            registry: self.registry.clone(),
            key,
            value: kept,
            revision: token,
            ttl,
        };
        Ok(Held {
            lease,
            token,
            _value: value,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
        })
    }

    /// Runs the task whenever it is due, until the lease is lost or the worker stops.
    async fn hold(&self, held: Held) -> Result<(), String> {
        let (name, interval) = (self.singleton.name.clone(), self.singleton.interval);
        let key = WorkersKey::SingletonRun { name };
        // Whoever had the lease before cannot write any more, but its last word may be under way.
        let found = self.registry.get::<SingletonRun>(&key).await?;
        let (mut last, mut revision) = match found {
            Some((last, revision)) => (Some(last), revision),
            None => (None, self.registry.vacant(&key).await?.unwrap_or_default()),
        };
        loop {
            let pause = wait(last.as_ref(), interval, unix_ms());
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => {
                    // A renewal would be in the way.
                    drop(held);
                    return self.let_go().await;
                }
                () = held.lease.ended() => return Err("the lease is over".to_owned()),
                () = sleep(pause) => {}
            }
            let mut run = SingletonRun {
                worker: self.shared.worker.id.to_string(),
                token: held.token,
                started_unix_ms: unix_ms(),
                finished_unix_ms: None,
            };
            let started = last.as_ref().map(|last| last.started_unix_ms);
            revision = self.note(&key, &run, revision).await?;
            let ran = self.run_once(&held, started).await;
            if let Ran::Lost = ran {
                return Err("the lease was over before the run was".to_owned());
            }
            run.finished_unix_ms = Some(unix_ms());
            revision = self.note(&key, &run, revision).await?;
            last = Some(run);
        }
    }

    async fn note(
        &self,
        key: &WorkersKey,
        run: &SingletonRun,
        revision: u64,
    ) -> Result<u64, String> {
        let written = self.registry.put(key, run, revision, None).await;
        written.map_err(|error| error.to_string())
    }

    async fn run_once(&self, held: &Held, last_started: Option<u64>) -> Ran {
        let name = &self.singleton.name;
        let turn = Turn {
            lease: Arc::clone(&held.lease),
            token: held.token,
            last_started: last_started.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
        };
        let context = self.shared.tools.clone();
        let running = async { self.singleton.handler.run(context, turn).await };
        let running = AssertUnwindSafe(running).catch_unwind();
        tokio::pin!(running);
        // A process that was frozen goes on where it stood: not a step without a look at the lease.
        let stepping = poll_fn(|cx| {
            if held.lease.is_valid() {
                running.as_mut().poll(cx).map(Some)
            } else {
                Poll::Ready(None)
            }
        });
        let began = SystemTime::now();
        let ended = tokio::select! {
            biased;
            ended = stepping => ended,
            () = held.lease.ended() => None,
        };
        let took = began.elapsed().unwrap_or_default();
        let (outcome, problem) = match ended {
            Some(Ok(Ok(()))) => (RunOutcome::Finished, None),
            Some(Ok(Err(error))) => (RunOutcome::Failed, Some(error.to_string())),
            Some(Err(panic)) => {
                let problem = format!("panicked: {}", panic_text(&*panic));
                (RunOutcome::Failed, Some(problem))
            }
            None => {
                let problem = "the lease was over: another worker goes on";
                (RunOutcome::CutShort, Some(problem.to_owned()))
            }
        };
        self.shared.metrics.among().singleton_ran(name, outcome);
        match problem {
            None => tracing::debug!(name, ?took, "the singleton ran"),
            Some(problem) => tracing::error!(name, ?took, problem, "the singleton failed"),
        }
        match outcome {
            RunOutcome::CutShort => Ran::Lost,
            RunOutcome::Finished | RunOutcome::Failed => Ran::Finished,
        }
    }

    /// Hands the lease over: the next worker need not wait for its end.
    async fn let_go(&self) -> Result<(), String> {
        let key = self.lease_key();
        if let Some((value, revision)) = self.registry.get::<SingletonLease>(&key).await?
            && value.member == self.member
        {
            let deleted = self.registry.delete(&key, revision).await;
            deleted.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
