//! Puts the proxy together: publishers, identify queue, shards, recorder; waits for the end; drains
//! in reverse.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_STREAM;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;
use gateway_proxy_core::checkpoint::{Start, Wanted};
use gateway_proxy_core::identify::Budget;
use gateway_proxy_core::outgoing::{self, IdentifyOptions};
use gateway_proxy_core::session::{Session, Settings};
use schemas::{Intents, ShardId, ShardRecord, Subject};
use secrecy::ExposeSecret;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::checkpoint::{self, Found};
use crate::cli::Started;
use crate::commands::Commands;
use crate::config::{Compression, Config};
use crate::exit::Fatal;
use crate::gateway_url::GatewayUrl;
use crate::identify::IdentifyQueue;
use crate::ownership::Ownership;
use crate::publisher::{self, Lane, Publisher, Reconcile};
use crate::recorder::{Common, Recorder};
use crate::shard::{SessionCell, ShardParts, ShardTask, Shared};
use crate::shutdown::Phase;
use crate::status::unix_ms;
use crate::stream;
use crate::transport::{API_VERSION, Dialer};

/// Checkpoints looked up at the same time.
const LOOKUPS: usize = 32;
/// How often the publishers' state is copied to status and metrics.
const OBSERVE_EVERY: Duration = Duration::from_millis(250);
/// What the drain keeps of the grace period for records and closes.
const RELEASE_SHARE: u32 = 4;
/// What the markers of the shards' end get at least, when the grace period is used up.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// Runs the proxy until a signal, or until Discord or the surroundings make it impossible.
pub(crate) async fn run(started: Started) -> Result<(), Fatal> {
    let stop_publishing = CancellationToken::new();
    let background = CancellationToken::new();
    let ownership = Ownership::new(started.fleet_bucket.clone());
    spawn_until(&background, ownership.clone().tick());
    let streams = open_streams(&started).await?;
    let publishers = spawn_publishers(&started, &streams, &ownership, &stop_publishing);
    let (fatal, mut fatals) = mpsc::channel(1);
    let shared = Arc::new(shared(&started, ownership, fatal)?);
    spawn_background(&started, &shared, &publishers, &background);

    check_permission(&started).await?;
    let taken = tokio::select! {
        taken = take_shards(&started, &shared, &publishers, &streams) => taken?,
        // Nothing is held yet.
        () = started.shutdown.cancelled() => return Ok(()),
    };
    let (mut recorder, shards) = taken;
    let tasks = spawn_shards(&started, &shared, shards);
    let Started {
        starting,
        shutdown,
        process,
        embedded,
        ..
    } = started;
    drop(starting);

    let end = tokio::select! {
        fatal = fatals.recv() => fatal.map_or(Ok(()), Err),
        () = recorder.run() => Ok(()),
        () = shutdown.cancelled() => Ok(()),
    };
    if end.is_err() {
        shutdown.advance(Phase::Draining);
    }
    process.set_draining();
    drain(&shutdown, &publishers, &mut recorder, &tasks).await;
    background.cancel();
    stop_publishing.cancel();
    shutdown.advance(Phase::Stopped);
    drop(embedded);
    end
}

fn spawn_background(
    started: &Started,
    shared: &Arc<Shared>,
    publishers: &[Arc<Publisher>],
    stop: &CancellationToken,
) {
    let queue = Arc::clone(&shared.identifies);
    spawn_until(stop, queue.run(started.api.clone()));
    let gateway = Arc::clone(&shared.gateway);
    spawn_until(stop, gateway.run(started.api.clone()));
    spawn_until(stop, Arc::clone(&shared.commands).run());
    let (process, metrics) = (started.process.clone(), started.metrics.clone());
    spawn_until(stop, observe(process, metrics, publishers.to_vec()));
}

/// Reads the checkpoints and names this process as the owner of its shards: before the first
/// connection, so that an earlier process finds out when its own ends.
async fn take_shards(
    started: &Started,
    shared: &Shared,
    publishers: &[Arc<Publisher>],
    streams: &[Stream<()>],
) -> Result<(Recorder, Vec<Made>), Fatal> {
    let found = find_checkpoints(started, streams).await?;
    let shards = make_shards(started, publishers, found);
    let recorded = shards
        .iter()
        .map(|shard| (shard.parts.clone(), shard.record.clone()))
        .collect();
    let mut recorder = Recorder::new(
        started.fleet_bucket.clone(),
        shared.ownership.clone(),
        common(&started.config),
        recorded,
    );
    let claimed = recorder.claim().await;
    claimed.map_err(|error| started.nats.unanswered("records of the shards", &error))?;
    Ok((recorder, shards))
}

fn spawn_shards(started: &Started, shared: &Arc<Shared>, shards: Vec<Made>) -> TaskTracker {
    info!(
        shards = shards.len(),
        of = started.shard_count,
        "shards start"
    );
    let tasks = TaskTracker::new();
    for Made {
        parts,
        session,
        alive_ms,
        ..
    } in shards
    {
        let task = ShardTask::new(Arc::clone(shared), parts, session, alive_ms);
        // Tracked; awaited by the drain.
        drop(tasks.spawn(task.run()));
    }
    tasks.close();
    tasks
}

/// Stop reading → wait for acknowledgements → write records → close resumably.
async fn drain(
    shutdown: &crate::shutdown::Shutdown,
    publishers: &[Arc<Publisher>],
    recorder: &mut Recorder,
    tasks: &TaskTracker,
) {
    let grace = shutdown.grace_period();
    let until = Instant::now() + grace;
    for publisher in publishers {
        let patience = until
            .saturating_duration_since(Instant::now())
            .saturating_sub(grace / RELEASE_SHARE);
        if !publisher.drained(patience).await {
            warn!(
                unacknowledged = publisher.kept_messages(),
                "not everything was stored within the grace period; Discord replays it at the next resume"
            );
        }
    }
    shutdown.advance(Phase::Releasing);
    let rest = until.saturating_duration_since(Instant::now());
    if tokio::time::timeout(rest, recorder.write_all(true))
        .await
        .is_err()
    {
        warn!("not every shard's record was written within the grace period");
    }
    let rest = until
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(100));
    if tokio::time::timeout(rest, tasks.wait()).await.is_err() {
        warn!(shards = tasks.len(), "shards outlived the grace period");
    }
    // The markers that say the shards are let go.
    for publisher in publishers {
        let rest = until
            .saturating_duration_since(Instant::now())
            .max(LAST_WORDS);
        if !publisher.drained(rest).await {
            warn!("the last state changes were not stored");
        }
    }
}

fn spawn_until(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    // Ends with the token; what it returns is nothing.
    drop(tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }));
}

/// The event streams: shard `id` belongs to the one at `id mod` their number.
async fn open_streams(started: &Started) -> Result<Vec<Stream<()>>, Fatal> {
    let settings = started.config.stream();
    let mut streams = Vec::with_capacity(settings.event_streams.get() as usize);
    for index in 0..settings.event_streams.get() {
        let name = stream::stream_of_shard(settings, index);
        let opened = started.nats.jetstream.get_stream_no_info(&name).await;
        streams.push(opened.map_err(|error| started.nats.unanswered(&name, &error))?);
    }
    Ok(streams)
}

/// Finds out whether we may publish events before an IDENTIFY is spent: the message is refused in any
/// case, because it expects another stream, but only who may publish gets the refusal.
async fn check_permission(started: &Started) -> Result<(), Fatal> {
    let Some(shard) = started.shards.first() else {
        return Ok(());
    };
    let event = Subject::Event {
        shard: shard.id(),
        guild: None,
        event: "PROXY_PERMISSION",
    };
    let subject = event.with_prefix(started.config.prefix());
    let deadline = Instant::now() + started.config.startup_timeout();
    loop {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, "-");
        let jetstream = &started.nats.jetstream;
        let publish = async {
            let answer = jetstream.publish_with_headers(subject.clone(), headers, "".into());
            answer.await?.await
        };
        let error = match publish.await {
            Err(error) if error.kind() == PublishErrorKind::TimedOut => error,
            Err(error) if error.kind() == PublishErrorKind::BrokenPipe => error,
            Ok(_) | Err(_) => return Ok(()),
        };
        // Without an answer: not permitted, if NATS said so, or NATS is away for the moment.
        if started.nats.refused().is_some() || Instant::now() >= deadline {
            return Err(started.nats.unanswered("publishing an event", &error));
        }
        warn!(%error, "nobody says whether events may be published, asking again");
    }
}

fn spawn_publishers(
    started: &Started,
    streams: &[Stream<()>],
    ownership: &Ownership,
    stop: &CancellationToken,
) -> Vec<Arc<Publisher>> {
    let limit = started.config.buffer_bytes();
    started.metrics.window_limit_bytes.set(limit as u64);
    let spawn = |(index, stream): (usize, &Stream<()>)| {
        let publisher = Publisher::new(limit / streams.len(), started.metrics.clone());
        let reconcile = Reconcile {
            ownership: ownership.clone(),
            stream: stream.clone(),
            after: stream::DUPLICATE_WINDOW / 2,
        };
        let task = publisher::run(
            Arc::clone(&publisher),
            started.nats_settings.clone(),
            format!("gateway-proxy {} events {index}", started.config.proxy_id()),
            reconcile,
            stop.clone(),
        );
        // Ends with the token.
        drop(tokio::spawn(task));
        publisher
    };
    streams.iter().enumerate().map(spawn).collect()
}

fn shared(
    started: &Started,
    ownership: Ownership,
    fatal: mpsc::Sender<Fatal>,
) -> Result<Shared, Fatal> {
    let config = &started.config;
    let presence = config.presence().map(|presence| {
        serde_json::from_str(presence.as_json()).expect("the configuration checked it")
    });
    let identify = IdentifyOptions {
        intents: config.intents().bits(),
        large_threshold: config.large_threshold(),
        presence,
    };
    let largest = ShardId::new(0, 1).expect("0 < 1");
    outgoing::identify(config.token().expose_secret(), largest, &identify).map_err(|error| {
        Fatal::usage(
            format!("--presence makes IDENTIFY too large: {error}"),
            "shorten it",
        )
    })?;
    let limit = started.gateway.session_start_limit;
    let budget = Budget {
        total: limit.total,
        remaining: limit.remaining,
        reset_at_ms: started
            .gateway_asked_unix_ms
            .saturating_add(limit.reset_after),
        max_concurrency: limit.max_concurrency,
    };
    let identifies = IdentifyQueue::new(
        budget,
        config.identify_reserve_percent(),
        started.fleet_bucket.clone(),
        started.metrics.clone(),
        Arc::clone(&started.process),
    );
    Ok(Shared {
        dialer: Dialer::new(config.compression()),
        gateway: GatewayUrl::new(started.gateway.url.clone()),
        token: config.token().clone(),
        identify,
        compression: config.compression(),
        filter: config.events().clone(),
        identifies,
        commands: Commands::new(started.nats.client.clone(), config.prefix().clone()),
        ownership,
        held: started.shards.len().into(),
        metrics: started.metrics.clone(),
        shutdown: started.shutdown.clone(),
        proxy: config.proxy_id().clone(),
        fatal,
    })
}

async fn find_checkpoints(
    started: &Started,
    streams: &[Stream<()>],
) -> Result<HashMap<ShardId, Found>, Fatal> {
    let config = &started.config;
    let lookups = started.shards.iter().map(|shard| {
        let wanted = Wanted {
            shard: *shard,
            intents: Intents::from_bits(config.intents().bits()),
            api_version: API_VERSION,
            now_ms: unix_ms(),
            fresh: config.fresh(),
        };
        let stream = &streams[shard.id() as usize % streams.len()];
        let refused = || started.nats.refused().is_some();
        async move {
            let found = checkpoint::find(
                &wanted,
                stream,
                &started.fleet_bucket,
                config.prefix(),
                refused,
            )
            .await;
            found.map(|found| (*shard, found))
        }
    });
    let mut lookups = futures_util::stream::iter(lookups).buffer_unordered(LOOKUPS);
    let mut found = HashMap::new();
    while let Some(next) = lookups.next().await {
        let (shard, checkpoint) =
            next.map_err(|error| started.nats.unanswered("shard checkpoints", &error))?;
        found.insert(shard, checkpoint);
    }
    Ok(found)
}

/// A shard before its first connection.
struct Made {
    parts: ShardParts,
    session: Session,
    record: Option<ShardRecord>,
    // When its session was last known to be followed, unix ms.
    alive_ms: u64,
}

fn make_shards(
    started: &Started,
    publishers: &[Arc<Publisher>],
    mut found: HashMap<ShardId, Found>,
) -> Vec<Made> {
    let mut resuming = 0_usize;
    let mut shards = Vec::with_capacity(started.shards.len());
    for shard in &started.shards {
        let Some(Found { decision, record }) = found.remove(shard) else {
            continue;
        };
        let alive_ms = decision.alive_ms.unwrap_or_else(unix_ms);
        let now = Instant::now();
        let settings = Settings {
            shard: *shard,
            heartbeat_timeout: started.config.heartbeat_timeout(),
        };
        let session = match decision.start {
            Start::New => Session::new(settings, None, now),
            Start::Resume(known) => {
                resuming += 1;
                Session::new(settings, Some(known), now)
            }
            Start::After { old, reason } => {
                info!(%shard, old_session = old.session_id, ?reason, "the earlier session is not resumed");
                let mut session = Session::new(settings, Some(old), now);
                session.expire(reason, now);
                session
            }
        };
        let mark = (0, session.last_seq().unwrap_or(0));
        let cell = SessionCell::new(session.resumable().map(|known| (0, known)));
        let status = started.process.add_shard(*shard);
        if let Some(id) = session.id() {
            // Its age is counted from here; nobody wrote down when it began.
            status.set_session(id, unix_ms());
            if let Some(guilds) = record.as_ref().and_then(|record| record.guilds) {
                status.set_guilds(guilds);
            }
        }
        let publisher = &publishers[shard.id() as usize % publishers.len()];
        let parts = ShardParts {
            lane: Lane::new(started.config.prefix(), *shard, mark),
            status,
            session: Arc::new(cell),
            publisher: Arc::clone(publisher),
            lost: Arc::default(),
        };
        shards.push(Made {
            parts,
            session,
            record,
            alive_ms,
        });
    }
    info!(resuming, new = shards.len() - resuming, "checkpoints read");
    shards
}

fn common(config: &Config) -> Common {
    Common {
        owner: config.proxy_id().clone(),
        intents: config.intents(),
        compression: match config.compression() {
            Compression::Zstd => schemas::Compression::Zstd,
            Compression::Zlib => schemas::Compression::Zlib,
            Compression::None => schemas::Compression::None,
        },
    }
}

/// Copies the publishers' state to what `/ready`, `/health` and `/metrics` show.
async fn observe(
    process: Arc<crate::status::ProcessStatus>,
    metrics: crate::metrics::Metrics,
    publishers: Vec<Arc<Publisher>>,
) {
    let mut ticks = tokio::time::interval(OBSERVE_EVERY);
    let mut hold = None;
    let mut full = false;
    loop {
        ticks.tick().await;
        let messages: usize = publishers
            .iter()
            .map(|publisher| publisher.kept_messages())
            .sum();
        let bytes: usize = publishers
            .iter()
            .map(|publisher| publisher.kept_bytes())
            .sum();
        let limit = metrics.window_limit_bytes.get();
        let full_now = bytes as u64 >= limit;
        if full_now && !full {
            warn!(
                bytes,
                limit, messages, "the publish buffer is full: sockets are not read"
            );
        } else if full && bytes as u64 * 2 < limit {
            info!("the publish buffer has room again");
        }
        // Half empty counts as over, so that a buffer at its edge is not reported at every look.
        full = full_now || (full && bytes as u64 * 2 >= limit);
        metrics.window_messages.set(messages as u64);
        metrics.window_bytes.set(bytes as u64);
        process.set_unacknowledged(messages as u64);
        let away = publishers
            .iter()
            .find(|publisher| !publisher.is_connected());
        let reason = away.map(|publisher| {
            let why = publisher
                .trouble()
                .unwrap_or_else(|| "connecting".to_owned());
            format!("events are not being stored: {why}")
        });
        match (reason, &hold) {
            (None, _) => hold = None,
            (Some(reason), None) => hold = Some(process.hold(reason)),
            (Some(reason), Some(hold)) => crate::status::Hold::set_reason(hold, reason),
        }
    }
}
