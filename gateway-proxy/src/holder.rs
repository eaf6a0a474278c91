//! The shards this process holds: each is started and let go of by itself, at any time, in every mode.
//!
//! *Start*: take the record, look up the checkpoint, spawn the task. *Release*: read nothing more, wait
//! for acknowledgements, close resumably, store the last marker, write the record without an owner.
//! *Abandon*: the right to hold is gone, so nothing more is published or written, and connections are
//! closed at once. Which shards, and when, is decided elsewhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use futures_util::future::join_all;
use gateway_proxy_core::checkpoint::{Decision, Start, Wanted};
use gateway_proxy_core::session::{Session, Settings};
use schemas::{ShardId, ShardRecord};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::checkpoint::{self, LookupError};
use crate::claim::{self, Claim, ClaimAtError, ClaimError, Claimed};
use crate::config::Config;
use crate::exit::Fatal;
use crate::fleet::bucket::Bucket;
use crate::nats::Nats;
use crate::ownership::Ownership;
use crate::publisher::{Lane, Publisher};
use crate::recorder::Recorder;
use crate::shard::{ORDERS_MAX, Order, SessionCell, ShardParts, ShardTask, Shared, Stage};
use crate::status::{ProcessStatus, unix_ms};
use crate::transport::API_VERSION;

/// What a release keeps of its time for closing, the last marker and the record.
const RELEASE_SHARE: u32 = 4;
/// What each of those gets at least, when the time is used up.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// How long dropping what cannot be stored may take: the publisher's task has to come round.
const SWEEP_PATIENCE: Duration = Duration::from_secs(2);
/// How long closing connections may take once the right to hold them is gone. A peer that does not
/// read is given up after one second.
const ABANDON_PATIENCE: Duration = Duration::from_secs(2);

/// What shards are made of.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) config: Arc<Config>,
    pub(crate) process: Arc<ProcessStatus>,
    pub(crate) nats: Nats,
    pub(crate) bucket: Bucket,
    pub(crate) streams: Vec<Stream<()>>,
    pub(crate) publishers: Vec<Arc<Publisher>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) recorder: Arc<Recorder>,
}

/// The shards this process holds.
#[derive(Debug)]
pub(crate) struct Holder {
    means: Means,
    // By number.
    held: Mutex<BTreeMap<u32, Held>>,
    started: AtomicU64,
    // Everything is let go of: nothing is started any more.
    closing: AtomicBool,
    changed: Notify,
    shrunk: Notify,
}

#[derive(Debug)]
struct Held {
    // Tells a shard that is held a second time from the first.
    number: u64,
    shard: ShardId,
    parts: ShardParts,
    orders: mpsc::Sender<Order>,
    // The task is at its end.
    done: CancellationToken,
    leaving: bool,
}

/// Why a shard was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("the process ends, or its lease did, before shard {shard} was started")]
    NoRight { shard: ShardId },
}

/// How letting go of a shard went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Events that were not stored in time; Discord replays them.
    pub(crate) unstored: usize,
    /// Whether the record says that nobody holds the shard.
    pub(crate) recorded: bool,
}

impl Holder {
    /// Holds nothing as yet.
    pub(crate) fn new(means: Means) -> Arc<Self> {
        Arc::new(Self {
            means,
            held: Mutex::default(),
            started: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            changed: Notify::new(),
            shrunk: Notify::new(),
        })
    }

    /// Takes a shard, whoever has it, and starts it where its last owner stopped. A shard held already is
    /// left as it is.
    ///
    /// # Errors
    /// [`StartError`]; after a failed look-up the shard's record names this process, which does not
    /// hold it: to be tried again.
    pub(crate) async fn start(
        self: &Arc<Self>,
        shard: ShardId,
        fresh: bool,
    ) -> Result<(), StartError> {
        if self.locked().contains_key(&shard.id()) {
            return Ok(());
        }
        let (bucket, common) = (&self.means.bucket, self.means.recorder.common());
        let ownership = &self.means.shared.ownership;
        let until = Instant::now() + self.means.config.startup_timeout();
        let claimed = claim::claim(shard, bucket, ownership, common, until).await?;
        self.carry_on(shard, fresh, claimed).await
    }

    /// Starts a shard whose record names this process already.
    ///
    /// # Errors
    /// [`StartError`].
    pub(crate) async fn run(self: &Arc<Self>, shard: ShardId) -> Result<(), StartError> {
        let ownership = &self.means.shared.ownership;
        let claimed = claim::ours(shard, &self.means.bucket, ownership).await?;
        self.carry_on(shard, false, claimed).await
    }

    async fn carry_on(
        self: &Arc<Self>,
        shard: ShardId,
        fresh: bool,
        claimed: Claimed,
    ) -> Result<(), StartError> {
        let means = &self.means;
        let joined = means.shared.ownership.instance();
        let wanted = Wanted {
            shard,
            intents: means.config.intents(),
            api_version: API_VERSION,
            now_ms: unix_ms(),
            fresh,
        };
        let decision = checkpoint::find(
            &wanted,
            claimed.earlier.as_ref(),
            &means.streams[shard.id() as usize % means.streams.len()],
            means.config.prefix(),
            || means.nats.refused().is_some(),
            Instant::now() + means.config.startup_timeout(),
        )
        .await?;
        // The look-up took time; a lease may have ended meanwhile, and everything with it.
        means.recorder.retire(shard.id()).await;
        let ownership = &means.shared.ownership;
        let closing = self.closing.load(Ordering::Acquire);
        if closing || !ownership.fence().holds() || ownership.instance() != joined {
            return Err(StartError::NoRight { shard });
        }
        self.spawn(shard, claimed, decision);
        Ok(())
    }

    fn spawn(self: &Arc<Self>, shard: ShardId, claimed: Claimed, decision: Decision) {
        let alive_ms = decision.alive_ms.unwrap_or_else(unix_ms);
        let session = self.session(shard, decision.start);
        let parts = self.parts(shard, &session, claimed.earlier.as_ref());
        let recorder = &self.means.recorder;
        recorder.add(parts.clone(), claimed.written, claimed.revision);
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let done = CancellationToken::new();
        let held = Held {
            number,
            shard,
            parts: parts.clone(),
            orders,
            done: done.clone(),
            leaving: false,
        };
        self.locked().insert(shard.id(), held);
        self.changed.notify_one();
        let shared = Arc::clone(&self.means.shared);
        let task = ShardTask::new(shared, parts, session, alive_ms, inbox);
        let holder = Arc::clone(self);
        // Its end is noted by itself.
        drop(tokio::spawn(async move {
            task.run().await;
            done.cancel();
            holder.ended(shard.id(), number);
        }));
    }

    fn session(&self, shard: ShardId, start: Start) -> Session {
        let now = Instant::now();
        let settings = Settings {
            shard,
            heartbeat_timeout: self.means.config.heartbeat_timeout(),
        };
        match start {
            Start::New => Session::new(settings, None, now),
            Start::Resume(known) => Session::new(settings, Some(known), now),
            Start::After { old, reason } => {
                info!(%shard, old_session = old.session_id, ?reason, "the earlier session is not resumed");
                let mut session = Session::new(settings, Some(old), now);
                session.expire(reason, now);
                session
            }
        }
    }

    fn parts(
        &self,
        shard: ShardId,
        session: &Session,
        earlier: Option<&ShardRecord>,
    ) -> ShardParts {
        let mark = (0, session.last_seq().unwrap_or(0));
        let status = self.means.process.add_shard(shard);
        if let Some(id) = session.id() {
            // Its age is counted from here; nobody wrote down when it began.
            status.set_session(id, unix_ms());
            if let Some(guilds) = earlier.and_then(|record| record.guilds) {
                status.set_guilds(guilds);
            }
        }
        let publishers = &self.means.publishers;
        ShardParts {
            lane: Lane::new(self.means.config.prefix(), shard, mark),
            status,
            session: Arc::new(SessionCell::new(
                session.resumable().map(|known| (0, known)),
            )),
            publisher: Arc::clone(&publishers[shard.id() as usize % publishers.len()]),
            lost: Arc::default(),
            leave: crate::shard::Leave::default(),
        }
    }

    /// Lets go of one shard within `patience`, so that another process can carry it on at once.
    /// `None`: it is not held, or already being let go of.
    pub(crate) async fn release(&self, id: u32, patience: Duration) -> Option<Released> {
        let until = Instant::now() + patience;
        let unstored = self.stop(id, patience).await?;
        let left = until.saturating_duration_since(Instant::now());
        let revision = self.write_release(id, left.max(LAST_WORDS)).await;
        Some(Released {
            unstored,
            recorded: revision.is_some(),
        })
    }

    /// Stops a shard: nothing of it is on its way any more, and its record still names this process.
    /// Returns how many events were not stored in time; Discord replays them. `None`: it is not held, or
    /// already being let go of.
    pub(crate) async fn stop(&self, id: u32, patience: Duration) -> Option<usize> {
        let (parts, done) = self.begin_to_leave(id)?;
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        parts.leave.advance(Stage::Draining);
        let storing = patience.saturating_sub(patience / RELEASE_SHARE);
        // Should it take longer, what is missing comes again with the next RESUME.
        drop(tokio::time::timeout(storing, parts.lane.settled()).await);
        parts.leave.advance(Stage::Releasing);
        let closing = left().max(LAST_WORDS);
        if tokio::time::timeout(closing, done.cancelled())
            .await
            .is_err()
        {
            warn!(shard = %parts.status.shard(), "the shard's task outlived its time");
        }
        let last_words = left().max(LAST_WORDS);
        let stored = tokio::time::timeout(last_words, parts.lane.settled()).await;
        let unstored = if stored.is_ok() {
            0
        } else {
            drop_rest(&parts).await
        };
        parts.lane.close();
        Some(unstored)
    }

    /// The last word on a stopped shard: whoever reads it may start. Returns the record's revision,
    /// `None` if it could not be written.
    pub(crate) async fn write_release(&self, id: u32, patience: Duration) -> Option<u64> {
        let revision = self.means.recorder.release(id, patience).await;
        self.forget(id);
        revision
    }

    /// Lets go of everything, and says so in the log if something did not work out.
    pub(crate) async fn release_all(&self, patience: Duration) {
        self.closing.store(true, Ordering::Release);
        let ids = self.ids();
        let released = join_all(ids.into_iter().map(|id| self.release(id, patience))).await;
        let unstored: usize = released.iter().flatten().map(|one| one.unstored).sum();
        if unstored > 0 {
            warn!(
                unacknowledged = unstored,
                "not everything was stored within the grace period; Discord replays it at the next resume"
            );
        }
        let unrecorded = released.iter().flatten().filter(|one| !one.recorded);
        let unrecorded = unrecorded.count();
        if unrecorded > 0 {
            warn!(
                shards = unrecorded,
                "not every shard's record was written within the grace period"
            );
        }
    }

    /// Writes our name into the shard's record, if that has this revision.
    pub(crate) async fn claim_at(
        &self,
        shard: ShardId,
        expected_revision: u64,
    ) -> Result<Claim, ClaimAtError> {
        let (bucket, common) = (&self.means.bucket, self.means.recorder.common());
        let ownership = &self.means.shared.ownership;
        claim::claim_at(shard, expected_revision, bucket, ownership, common).await
    }

    /// The last word on a stopped shard, also of one that never ran here. Returns the record's revision,
    /// `None` if it could not be written.
    pub(crate) async fn give_away(&self, shard: ShardId, patience: Duration) -> Option<u64> {
        if self.locked().contains_key(&shard.id()) {
            return self.write_release(shard.id(), patience).await;
        }
        let ownership = &self.means.shared.ownership;
        match claim::disown(shard, &self.means.bucket, ownership).await {
            Ok(revision) => Some(revision),
            Err(error) => {
                warn!(%error, "a shard was not given away");
                None
            }
        }
    }

    /// Closes every connection without publishing or writing another word.
    pub(crate) async fn abandon_all(&self) {
        join_all(self.ids().into_iter().map(|id| self.abandon(id))).await;
    }

    /// Closes a shard's connection without publishing or writing another word: it is another's.
    pub(crate) async fn abandon(&self, id: u32) {
        let (parts, done) = {
            let mut held = self.locked();
            let Some(held) = held.get_mut(&id) else {
                return;
            };
            held.leaving = true;
            (held.parts.clone(), held.done.clone())
        };
        parts.lane.close();
        parts.leave.advance(Stage::Releasing);
        self.means.recorder.retire(id).await;
        parts.publisher.sweep();
        if tokio::time::timeout(ABANDON_PATIENCE, done.cancelled())
            .await
            .is_err()
        {
            warn!(shard = %parts.status.shard(), "the connection of a shard that is not ours any more does not close");
        }
        self.forget(id);
    }

    /// Passes an operator's wish on. `false`: the shard is not held, or does not listen.
    pub(crate) fn order(&self, id: u32, order: Order) -> bool {
        let held = self.locked();
        let shard = held.get(&id).filter(|held| !held.leaving);
        shard.is_some_and(|held| held.orders.try_send(order).is_ok())
    }

    /// Numbers of the shards held, ascending; those that are being let go of included.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.locked().keys().copied().collect()
    }

    /// The shards held, in the order of their numbers.
    pub(crate) fn shards(&self) -> Vec<ShardId> {
        self.locked().values().map(|held| held.shard).collect()
    }

    /// This process as an owner.
    pub(crate) fn ownership(&self) -> &Ownership {
        &self.means.shared.ownership
    }

    /// Where a reason to give up goes.
    pub(crate) fn fatal(&self) -> mpsc::Sender<Fatal> {
        self.means.shared.fatal.clone()
    }

    /// Waits until a shard went, for whoever waits for the last one.
    pub(crate) async fn shrunk(&self) {
        self.shrunk.notified().await;
    }

    /// Waits until a shard came or went; one change may be reported late, none is missed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn begin_to_leave(&self, id: u32) -> Option<(ShardParts, CancellationToken)> {
        let mut held = self.locked();
        let held = held.get_mut(&id).filter(|held| !held.leaving)?;
        held.leaving = true;
        Some((held.parts.clone(), held.done.clone()))
    }

    fn forget(&self, id: u32) {
        self.locked().remove(&id);
        self.means.process.remove_shard(id);
        self.changed.notify_one();
        self.shrunk.notify_one();
    }

    /// A task ended by itself: another process took the shard, or Discord refuses it.
    fn ended(&self, id: u32, number: u64) {
        let mut held = self.locked();
        let lost = |held: &&mut Held| held.number == number && !held.leaving;
        let Some(shard) = held.get_mut(&id).filter(lost) else {
            return;
        };
        if !shard.parts.lost.is_lost() {
            // Discord refuses it: the process ends, and says why.
            return;
        }
        shard.parts.lane.close();
        shard.parts.publisher.sweep();
        held.remove(&id);
        let last = held.is_empty();
        drop(held);
        self.means.recorder.forget(id);
        if self.means.config.fleet().is_some() {
            self.means.process.remove_shard(id);
        } else if last {
            let fatal = Fatal::unfit(
                "every shard of this process was taken over by others",
                "two proxies hold the same shards: check --shards and --shard-ids of both",
            );
            // Somebody else's reason came first.
            drop(self.means.shared.fatal.try_send(fatal));
        }
        self.changed.notify_one();
        self.shrunk.notify_one();
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<u32, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops what is not stored: whoever has the shard next gets it from Discord.
async fn drop_rest(parts: &ShardParts) -> usize {
    let unstored = parts.lane.kept();
    parts.lane.close();
    parts.publisher.sweep();
    if tokio::time::timeout(SWEEP_PATIENCE, parts.lane.settled())
        .await
        .is_err()
    {
        warn!(shard = %parts.status.shard(), "events of the shard are still on their way");
    }
    unstored
}
