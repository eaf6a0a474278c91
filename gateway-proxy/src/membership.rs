//! Makes this process a member: puts the agent, the limiter and the services together, and takes them
//! apart again at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::spawn_until;
use crate::cli::Started;
use crate::exit::Fatal;
use crate::fleet::Cluster;
use crate::fleet::agent::{Agent, Means, NO_MEMBER};
use crate::fleet::apart::{self, Apart};
use crate::fleet::bucket::Bucket;
use crate::fleet::coordinator::{Coordinator, Sharding};
use crate::fleet::leadership::Leadership;
use crate::fleet::service::{self, Inboxes, WISHES_MAX};
use crate::fleet::states::States;
use crate::holder::Holder;
use crate::identify::{ASKS_MAX, Ask, Grants, GrantsMeans, Identifies, SIGHTINGS_MAX, Sighting};

/// What handing over keeps of the grace period for letting go of what nobody took.
const LET_GO_SHARE: u32 = 4;
/// How often Discord is asked for the number of shards it recommends.
const RECOMMENDED_EVERY: Duration = Duration::from_secs(600);
/// How long leaving may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where shards ask for IDENTIFYs, before anybody answers.
pub(crate) struct Desks {
    pub(crate) identifies: Arc<Identifies>,
    leadership: Leadership,
    asks: (mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
}

impl Desks {
    pub(crate) fn new(started: &Started) -> Self {
        let leadership = Leadership::default();
        let asks = mpsc::channel(ASKS_MAX);
        let identifies = Identifies::new(
            started.nats.client.clone(),
            started.config.prefix(),
            started.config.proxy_id().clone(),
            leadership.clone(),
            asks.0.clone(),
        );
        Self {
            identifies,
            leadership,
            asks,
        }
    }
}

/// This process among the others.
pub(crate) struct Membership {
    // Fleet members that may take this one's shards.
    others: watch::Receiver<usize>,
    following: Arc<AtomicBool>,
    permitted: CancellationToken,
    stop: CancellationToken,
    // The agent has left.
    over: oneshot::Receiver<()>,
    fleet: bool,
}

impl Membership {
    /// Joins, answers and follows from here on.
    pub(crate) fn begin(
        started: &Started,
        holder: &Arc<Holder>,
        Desks {
            identifies,
            leadership,
            asks: (asks, asked),
        }: Desks,
        background: &CancellationToken,
    ) -> Result<Self, Fatal> {
        let bucket = Bucket::new(
            started.nats.client.clone(),
            started.nats.jetstream.clone(),
            started.fleet_bucket.clone(),
            started.config.prefix().clone(),
        );
        let states = States::new(bucket.clone());
        started.process.set_cluster(Cluster {
            states: states.clone(),
            leadership: leadership.clone(),
        });
        let (sightings, seen) = mpsc::channel(SIGHTINGS_MAX);
        let limiter = GrantsMeans {
            identifies,
            leadership: leadership.clone(),
            bucket: bucket.clone(),
            api: started.api.clone(),
            metrics: started.metrics.clone(),
            status: Arc::clone(&started.process),
            asks: asked,
            sightings: seen,
        };
        spawn_until(background, grants(started, limiter).run());
        let (wishes, wished) = mpsc::channel(WISHES_MAX);
        let permitted = CancellationToken::new();
        let serving = service::run(
            started.nats.client.clone(),
            started.config.prefix().clone(),
            holder.ownership().instance(),
            Inboxes { wishes, asks },
        );
        let may_serve = permitted.clone();
        spawn_until(background, async move {
            may_serve.cancelled().await;
            serving.await;
        });
        spawn_until(background, ask_for_shards(started));
        let (others, seen_others) = watch::channel(0);
        let following = Arc::new(AtomicBool::new(true));
        let means = means(started, holder, states, sightings, &following);
        let fleet = started.config.fleet().is_some();
        let waiting = fleet.then(|| started.process.hold(NO_MEMBER));
        let coordinator = coordinator(started);
        let stop = CancellationToken::new();
        let over = apart::run(apart(started, holder), stop.clone(), move |bucket| {
            let means = means(bucket);
            Agent::new(means, coordinator, leadership, others, wished, waiting)
        })?;
        Ok(Self {
            others: seen_others,
            following,
            permitted,
            stop,
            over,
            fleet,
        })
    }

    /// NATS permits what the proxy needs: it answers requests from here on.
    pub(crate) fn serve(&self) {
        self.permitted.cancel();
    }

    /// Waits until others have taken the shards, as long as there are others and time.
    pub(crate) async fn hand_over(&mut self, holder: &Holder, grace: Duration) {
        if !self.fleet {
            return;
        }
        let shards = holder.ids().len();
        let began = Instant::now();
        let others = &mut self.others;
        let taken = async {
            while !holder.ids().is_empty() {
                if *others.borrow_and_update() == 0 {
                    info!("there is no other proxy to take the shards");
                    return;
                }
                tokio::select! {
                    () = holder.shrunk() => {}
                    changed = others.changed() => if changed.is_err() { return },
                }
            }
            info!(shards, took = ?began.elapsed(), "others have taken the shards");
        };
        let patience = grace.saturating_sub(grace / LET_GO_SHARE);
        if tokio::time::timeout(patience, taken).await.is_err() {
            warn!(
                left = holder.ids().len(),
                "not every shard was taken within the grace period"
            );
        }
    }

    /// The plan is followed no longer; the lease is kept.
    pub(crate) fn stop_following(&self) {
        self.following.store(false, Ordering::Release);
    }

    /// Gives the leases back.
    pub(crate) async fn leave(self) {
        self.stop.cancel();
        let left = tokio::time::timeout(LEAVE_TIMEOUT, self.over).await;
        if !matches!(left, Ok(Ok(()))) {
            warn!("the leases of this process end by themselves");
        }
    }
}

fn apart(started: &Started, holder: &Holder) -> Apart {
    Apart {
        settings: started.nats_settings.clone(),
        name: format!("gateway-proxy {} lease", started.config.proxy_id()),
        prefix: started.config.prefix().clone(),
        fatal: holder.fatal(),
    }
}

fn coordinator(started: &Started) -> Coordinator {
    let sharding = Sharding {
        wish: started.config.shards().fixed(),
        first: started.shard_count.get(),
        void_plan: started.void_plan,
    };
    let process = Arc::clone(&started.process);
    Coordinator::new(started.metrics.clone(), process, sharding)
}

/// Everything the agent works with but its own way to the bucket.
fn means(
    started: &Started,
    holder: &Arc<Holder>,
    states: States,
    sightings: mpsc::Sender<Sighting>,
    following: &Arc<AtomicBool>,
) -> impl FnOnce(Bucket) -> Means + Send + 'static {
    let config = Arc::clone(&started.config);
    let process = Arc::clone(&started.process);
    let (metrics, shutdown) = (started.metrics.clone(), started.shutdown.clone());
    let (pinned, http) = (pinned(started), started.http.to_string());
    let (holder, following) = (Arc::clone(holder), Arc::clone(following));
    let shards = Handle::current();
    move |bucket| Means {
        config,
        shards,
        bucket,
        ownership: holder.ownership().clone(),
        fatal: holder.fatal(),
        holder,
        process,
        metrics,
        shutdown,
        pinned,
        http,
        states,
        sightings,
        following,
    }
}

fn grants(started: &Started, means: GrantsMeans) -> Grants {
    Grants::new(
        means,
        started.config.identify_reserve_percent(),
        &started.gateway.session_start_limit,
        started.gateway_asked_unix_ms,
    )
}

/// What this process holds whatever the plan says.
fn pinned(started: &Started) -> Option<std::collections::BTreeSet<u32>> {
    match (started.config.fleet(), started.config.shard_ids()) {
        (Some(_), ids) => ids.map(|ids| ids.iter().collect()),
        (None, _) => Some(started.shards.iter().map(|shard| shard.id()).collect()),
    }
}

/// Says when Discord recommends another number of shards than the bot has.
fn ask_for_shards(started: &Started) -> impl Future<Output = ()> + Send + 'static {
    let (api, metrics) = (started.api.clone(), started.metrics.clone());
    let process = Arc::clone(&started.process);
    let mut recommended = started.gateway.shards;
    let mut said = None;
    async move {
        loop {
            let shards = process.total_shards();
            if shards != recommended && said != Some(recommended) {
                said = Some(recommended);
                warn!(
                    shards,
                    recommended,
                    "Discord recommends another number of shards; it changes with a start with --shards, and sessions then begin anew"
                );
            }
            tokio::time::sleep(RECOMMENDED_EVERY).await;
            match api.gateway_bot().await {
                Ok(answer) => {
                    recommended = answer.shards;
                    metrics.shards_recommended.set(u64::from(recommended));
                }
                Err(error) => {
                    warn!(%error, "the recommended number of shards could not be read again");
                }
            }
        }
    }
}
