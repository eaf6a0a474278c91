//! Puts the proxy together: publishers, identify queue, shards, recorder; waits for the end; drains
//! in reverse.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_STREAM;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;
use gateway_proxy_core::outgoing::{self, IdentifyOptions};
use schemas::{ShardId, Subject};
use secrecy::ExposeSecret;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Started;
use crate::commands::Commands;
use crate::config::{Compression, Config};
use crate::exit::Fatal;
use crate::fence::Fence;
use crate::fleet::bucket::Bucket;
use crate::gateway_url::GatewayUrl;
use crate::holder::{Holder, Means};
use crate::membership::{Desks, Membership};
use crate::ownership::Ownership;
use crate::progress;
use crate::publisher::{self, Publisher, Reconcile};
use crate::recorder::{Common, Recorder};
use crate::shard::Shared;
use crate::shutdown::Phase;
use crate::stream;
use crate::transport::Dialer;

/// Shards started at the same time.
const STARTS: usize = 32;
/// What letting go of shards gets at least, when handing them over used the grace period up.
const LAST_GRACE: Duration = Duration::from_millis(500);
/// How often the publishers' state is copied to status and metrics.
const OBSERVE_EVERY: Duration = Duration::from_millis(250);

/// Runs the proxy until a signal, or until Discord or the surroundings make it impossible.
pub(crate) async fn run(mut started: Started) -> Result<(), Fatal> {
    let fleet = started.config.fleet().is_some();
    let stop_publishing = CancellationToken::new();
    let background = CancellationToken::new();
    let fence = if fleet {
        Fence::down()
    } else {
        Fence::endless()
    };
    let ownership = Ownership::new(started.fleet_bucket.clone(), fence);
    spawn_until(&background, ownership.clone().tick());
    let streams = open_streams(&started).await?;
    let publishers = spawn_publishers(&started, &streams, &ownership, &stop_publishing);
    let (fatal, mut fatals) = mpsc::channel(1);
    let desks = Desks::new(&started);
    let shared = Arc::new(shared(&started, &desks, ownership, fatal)?);
    spawn_background(&started, &shared, &publishers, &background);
    let commands = Arc::clone(&shared.commands);
    let holder = holder(&started, shared, publishers, streams, &background);
    let mut member = Membership::begin(&started, &holder, desks, &background)?;

    let starting = started.starting.take();
    let work = async {
        check_permission(&started).await?;
        member.serve();
        if !fleet {
            hold_all(&started, &holder).await?;
        }
        drop(starting);
        std::future::pending().await
    };
    let end = tokio::select! {
        fatal = fatals.recv() => fatal.map_or(Ok(()), Err),
        end = work => end,
        () = started.shutdown.cancelled() => Ok(()),
    };
    started.shutdown.advance(Phase::Draining);
    started.process.set_draining();
    let until = Instant::now() + started.shutdown.grace_period();
    if end.is_ok() {
        member
            .hand_over(&holder, started.shutdown.grace_period())
            .await;
    }
    member.stop_following();
    let rest = until.saturating_duration_since(Instant::now());
    holder.release_all(rest.max(LAST_GRACE)).await;
    member.leave().await;
    commands.flushed(LAST_GRACE).await;
    started.shutdown.advance(Phase::Releasing);
    background.cancel();
    stop_publishing.cancel();
    started.shutdown.advance(Phase::Stopped);
    drop(started.embedded);
    end
}

fn bucket(started: &Started) -> Bucket {
    Bucket::new(
        started.nats.client.clone(),
        started.nats.jetstream.clone(),
        started.fleet_bucket.clone(),
        started.config.prefix().clone(),
    )
}

fn holder(
    started: &Started,
    shared: Arc<Shared>,
    publishers: Vec<Arc<Publisher>>,
    streams: Vec<Stream<()>>,
    background: &CancellationToken,
) -> Arc<Holder> {
    let recorder = Recorder::new(
        started.fleet_bucket.clone(),
        shared.ownership.clone(),
        common(&started.config),
    );
    let writing = Arc::clone(&recorder);
    spawn_until(background, async move { writing.run().await });
    Holder::new(Means {
        config: Arc::clone(&started.config),
        process: Arc::clone(&started.process),
        nats: started.nats.clone(),
        bucket: bucket(started),
        streams,
        publishers,
        shared,
        recorder,
    })
}

/// Takes every shard this process was started for, whoever had it.
async fn hold_all(started: &Started, holder: &Arc<Holder>) -> Result<(), Fatal> {
    info!(
        shards = started.shards.len(),
        of = started.shard_count,
        "shards start"
    );
    let fresh = started.config.fresh();
    let starts = started.shards.iter();
    let starts = starts.map(|shard| holder.start(*shard, fresh));
    let mut starts = futures_util::stream::iter(starts).buffered(STARTS);
    while let Some(outcome) = starts.next().await {
        outcome.map_err(|error| started.nats.unanswered("taking the shards", &error))?;
    }
    Ok(())
}

fn spawn_background(
    started: &Started,
    shared: &Arc<Shared>,
    publishers: &[Arc<Publisher>],
    stop: &CancellationToken,
) {
    let gateway = Arc::clone(&shared.gateway);
    spawn_until(stop, gateway.run(started.api.clone()));
    let commands = Arc::clone(&shared.commands);
    let name = format!("gateway-proxy {} commands", started.config.proxy_id());
    spawn_until(stop, commands.run(started.nats_settings.clone(), name));
    let (process, metrics) = (started.process.clone(), started.metrics.clone());
    spawn_until(stop, observe(process, metrics, publishers.to_vec()));
    let progress = progress::run(Arc::clone(&started.process), started.config.log_format());
    spawn_until(stop, progress);
}

pub(crate) fn spawn_until(
    stop: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) {
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
            replicated: started.config.stream().replicas > 1,
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
    desks: &Desks,
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
    Ok(Shared {
        dialer: Dialer::new(config.compression()),
        gateway: GatewayUrl::new(started.gateway.url.clone()),
        token: config.token().clone(),
        identify,
        compression: config.compression(),
        filter: config.events().clone(),
        identifies: Arc::clone(&desks.identifies),
        silent_after: config.silent_after(),
        process: Arc::clone(&started.process),
        commands: Commands::new(config.prefix().clone(), started.metrics.clone()),
        ownership,
        metrics: started.metrics.clone(),
        proxy: config.proxy_id().clone(),
        fatal,
    })
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
        let reason = publishers.iter().find_map(|publisher| publisher.held_up());
        let reason = reason.map(|why| format!("events are not being stored: {why}"));
        match (reason, &hold) {
            (None, _) => hold = None,
            (Some(reason), None) => hold = Some(process.hold(reason)),
            (Some(reason), Some(hold)) => crate::status::Hold::set_reason(hold, reason),
        }
    }
}
