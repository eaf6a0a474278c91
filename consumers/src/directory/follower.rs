//! Reads one shard's events into the bucket, as long as this instance holds the shard: entries
//! first, the position some time after them. What an event means is decided in `batch`, what is done
//! next in `pace`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use futures_util::FutureExt as _;
use futures_util::future::Fuse;
use schemas::{EventKind, GuildId, ShardPosition};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::INSTANCE_DEAD_AFTER;
use super::Shared;
use super::batch::{At, Batch, Changes, Known as _};
use super::event::{self, GuildEvent};
use super::listing::Listing;
use super::pace::{Beginning, Pace, beginning};
use super::shares::is_misplaced;
use super::source::{self, Source, Stored};
use super::store::WriteError;
use crate::registry::unix_ms;
use crate::streams;

/// Pause before a shard that failed is tried again; doubled up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Pause before a shard that another live instance still holds is asked for again.
const HELD_PAUSE: Duration = Duration::from_millis(100);
/// Pause before it is looked again how many shards there are: a reshard ends, or a proxy speaks.
const COUNT_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for an answer of JetStream's API.
const API_TIMEOUT: Duration = Duration::from_secs(5);

/// Why reading a shard ended.
enum End {
    /// Told to stop; the position is written.
    Stopped,
    /// Another instance took the shard.
    Lost,
    /// Something failed; from the position on again.
    Again(String),
}

/// One shard of this instance.
pub(crate) struct Follower {
    pub(crate) shared: Arc<Shared>,
    pub(crate) shard: u32,
    pub(crate) stopping: CancellationToken,
}

/// A shard this instance holds.
struct Held {
    position: ShardPosition,
    revision: u64,
    /// How far the shard is stored; `position.seq` follows.
    pace: Pace<Heard>,
}

/// What an event means, with its place in the stream and when it was stored there.
struct Heard {
    seq: u64,
    unix_ms: u64,
    event: GuildEvent,
}

impl Follower {
    /// Runs until told to stop or another instance takes the shard.
    pub(crate) async fn run(self) {
        let mut pause = RETRY_PAUSE;
        while !self.stopping.is_cancelled() {
            let started = Instant::now();
            match self.follow().await {
                End::Stopped => return,
                End::Lost => {
                    tracing::info!(shard = self.shard, "another instance reads the shard");
                    return;
                }
                End::Again(problem) => {
                    self.shared.metrics.restarts.inc();
                    tracing::warn!(shard = self.shard, problem, "reading the shard again");
                }
            }
            if started.elapsed() > RETRY_PAUSE_MAX {
                pause = RETRY_PAUSE;
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn follow(&self) -> End {
        let Some(connection) = self.shared.link.connected().await else {
            return End::Stopped;
        };
        let mut held = match self.take().await {
            Ok(Some(held)) => held,
            Ok(None) => return End::Stopped,
            Err(problem) => return End::Again(problem),
        };
        self.shared.metrics.shards.inc();
        let end = tokio::select! {
            end = self.read(&mut held) => end,
            () = self.shared.link.replaced(connection) => {
                End::Again("the connection to NATS is a new one".to_owned())
            }
        };
        if matches!(end, End::Stopped) {
            self.release(&mut held).await;
        }
        self.shared.metrics.shards.dec();
        end
    }

    /// Takes the shard, once no other live instance holds it; `None` when told to stop.
    async fn take(&self) -> Result<Option<Held>, String> {
        let Shared {
            store, view, name, ..
        } = &*self.shared;
        loop {
            let (mut position, revision) = store.read_position(self.shard).await?;
            let now = Instant::now();
            let holder = position.holder.as_deref();
            let held = holder.is_some_and(|holder| {
                holder != name
                    && view
                        .instances(INSTANCE_DEAD_AFTER, now)
                        .iter()
                        .any(|alive| alive == holder)
            });
            if !held {
                position.holder = Some(name.clone());
                position.epoch += 1;
                match store.write_position(self.shard, &position, revision).await {
                    Ok(revision) => {
                        // Everything the holder before us wrote stands before this.
                        view.caught_up(revision).await;
                        tracing::info!(
                            shard = self.shard,
                            epoch = position.epoch,
                            "reading a shard"
                        );
                        return Ok(Some(Held {
                            pace: Pace::new(position.seq, now),
                            position,
                            revision,
                        }));
                    }
                    Err(WriteError::Conflict { .. }) => {}
                    Err(error @ WriteError::Unconfirmed { .. }) => return Err(error.to_string()),
                }
            }
            tokio::select! {
                () = self.stopping.cancelled() => return Ok(None),
                () = sleep(HELD_PAUSE) => {}
            }
        }
    }

    async fn read(&self, held: &mut Held) -> End {
        match self.try_read(held).await {
            Ok(end) => end,
            Err(problem) => End::Again(problem),
        }
    }

    async fn try_read(&self, held: &mut Held) -> Result<End, String> {
        let shared = &*self.shared;
        let stream = self.stream().await?;
        let from = self.start(&stream, held).await?;
        let filters = source::filters(&shared.prefix, self.shard, shared.users.is_some());
        let mut source = Source::open(&stream, &shared.prefix, filters, from).await?;
        let began = Instant::now();
        let writing = Fuse::terminated();
        tokio::pin!(writing);
        loop {
            if let Some(read) = held.pace.next_write() {
                let changes = self.apply(held, read.events);
                writing.set(self.store(changes, read.count, read.last).fuse());
            }
            let busy = held.pace.is_writing();
            let room = held.pace.may_read();
            let incomplete = held.position.incomplete && !busy;
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => {
                    if busy && let Ok(Some(last)) = writing.as_mut().await {
                        held.pace.written(last);
                    }
                    return Ok(End::Stopped);
                }
                written = &mut writing, if busy => {
                    match written? {
                        Some(last) => held.pace.written(last),
                        None if self.is_ours(held).await? => {
                            return Err("a guild changed meanwhile".to_owned());
                        }
                        None => return Ok(End::Lost),
                    }
                }
                events = source.next(), if room => {
                    let events = events?;
                    if !events.is_empty() {
                        self.hear(&mut held.pace, &events).await?;
                    } else if held.pace.take_quiet(Instant::now()) {
                        self.follow_quietly(&stream, &source, held).await?;
                    }
                }
                listing = self.listing(began), if incomplete => {
                    self.complete(held, &listing).await?;
                }
            }
            let due = held.pace.is_position_due(held.position.seq, Instant::now());
            if due && self.write_position(held).await?.is_none() {
                return Ok(End::Lost);
            }
        }
    }

    /// Takes in what events mean.
    async fn hear(&self, pace: &mut Pace<Heard>, events: &[Stored]) -> Result<(), String> {
        let (shared, now) = (&*self.shared, Instant::now());
        if let Some(users) = &shared.users {
            users.see(events).await?;
        }
        for stored in events {
            let read = match event::read(&stored.event, stored.guild, &stored.frame) {
                Ok(read) => read,
                Err(error) => {
                    shared.metrics.unreadable.inc();
                    tracing::warn!(shard = self.shard, seq = stored.seq, %error, "event skipped");
                    None
                }
            };
            if let Some(GuildEvent::Unreadable { guild }) = read {
                shared.metrics.unreadable.inc();
                tracing::warn!(%guild, event = stored.event, "the guild's event cannot be read");
            }
            let heard = read.map(|event| Heard {
                seq: stored.seq,
                unix_ms: stored.unix_ms,
                event,
            });
            pace.hear(stored.seq, heard, now);
        }
        Ok(())
    }

    async fn stream(&self) -> Result<Stream<()>, String> {
        let shared = &*self.shared;
        let name = streams::of_shard(&shared.prefix, shared.event_streams, self.shard);
        let stream = shared.link.jetstream.get_stream_no_info(&name).await;
        stream.map_err(|error| error.to_string())
    }

    /// Where to begin; marks the shard's guilds where events between are gone.
    async fn start(&self, stream: &Stream<()>, held: &mut Held) -> Result<u64, String> {
        let info = match timeout(API_TIMEOUT, stream.get_info()).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        };
        let index = self.shard % self.shared.event_streams;
        let created_ms = info.created.unix_timestamp_nanos() / 1_000_000;
        let id = format!("{index}-{created_ms}");
        let Beginning {
            next,
            other_stream,
            anew,
            lost,
        } = beginning(&held.position, &id, info.state.first_sequence);
        if lost {
            tracing::warn!(
                shard = self.shard,
                position = held.position.seq,
                first = info.state.first_sequence,
                "events of the shard are not in the stream any more: its guilds may be out of date"
            );
            self.mark_stale().await?;
        }
        held.position.stream = id;
        if anew {
            // Without a READY ahead nobody lists guilds that stay quiet.
            held.position.incomplete = !self.is_ready_ahead(stream, next).await?;
        }
        if other_stream {
            held.position.seq = 0;
            held.pace = Pace::new(0, Instant::now());
        }
        Ok(next)
    }

    /// Whether a READY of the shard stands at this sequence or later.
    async fn is_ready_ahead(&self, stream: &Stream<()>, next: u64) -> Result<bool, String> {
        let ready = EventKind::Ready.name();
        let subject = self.shared.prefix.event_of_shard(self.shard, ready);
        let last = stream.get_last_raw_message_by_subject(&subject);
        match timeout(API_TIMEOUT, last).await {
            Ok(Ok(message)) => Ok(message.sequence >= next),
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Every guild of the bot, from Discord, once the shard's own events had their time.
    async fn listing(&self, began: Instant) -> Arc<Listing> {
        let due = began + self.shared.refresh_after;
        sleep_until(due.into()).await;
        loop {
            let listing = self.shared.listings.after(began).await;
            if self.count().is_some() {
                return listing;
            }
            sleep(COUNT_PAUSE).await;
        }
    }

    /// The shard's sharding, if only one is known.
    fn count(&self) -> Option<u32> {
        let counts = self.shared.shards.counts(self.shard);
        (counts.len() == 1).then(|| counts[0])
    }

    /// Takes in the guilds that only Discord knows of.
    async fn complete(&self, held: &mut Held, listing: &Listing) -> Result<(), String> {
        let Shared {
            store,
            view,
            refresh_after,
            ..
        } = &*self.shared;
        let Some(count) = self.count() else {
            return Ok(());
        };
        let place = (&*held.position.stream, held.pace.done());
        let known = |guild| view.revised(guild);
        let missing = listing.missing(self.shard, count, known, place, *refresh_after);
        let guilds = missing.len();
        let written = store.write_guilds(view, missing).await;
        written.map_err(|error| error.to_string())?;
        tracing::info!(
            shard = self.shard,
            guilds,
            "guilds of the shard that the stream does not tell of"
        );
        held.position.incomplete = false;
        self.write_position(held).await?;
        Ok(())
    }

    async fn mark_stale(&self) -> Result<(), String> {
        let Shared { store, view, .. } = &*self.shared;
        let now_ms = unix_ms();
        let entries = view.of_shard(self.shard).into_iter();
        let marked = entries.filter_map(|guild| {
            let mut revised = view.revised(guild);
            let entry = revised.entry.as_mut()?;
            entry.stale_since_unix_ms.get_or_insert(now_ms);
            Some((guild, revised))
        });
        let written = store.write_guilds(view, marked.collect()).await;
        written.map_err(|error| error.to_string())
    }

    /// Stores what events changed; the last one's sequence, or `None` when somebody else has written a guild.
    async fn store(&self, changes: Changes, events: u64, last: u64) -> Result<Option<u64>, String> {
        let shared = &*self.shared;
        let count = changes.len() as u64;
        match shared.store.write_guilds(&shared.view, changes).await {
            Ok(()) => {
                shared.metrics.events.inc_by(events);
                shared.metrics.writes.inc_by(count);
                Ok(Some(last))
            }
            Err(error @ WriteError::Conflict { .. }) => {
                shared.metrics.conflicts.inc();
                tracing::debug!(shard = self.shard, %error, "the events are read again");
                Ok(None)
            }
            Err(error @ WriteError::Unconfirmed { .. }) => Err(error.to_string()),
        }
    }

    /// After a conflict: it was our refresh of the guild, or another instance; then the position says so.
    async fn is_ours(&self, held: &Held) -> Result<bool, String> {
        let (position, _) = self.shared.store.read_position(self.shard).await?;
        Ok(position.epoch == held.position.epoch)
    }

    fn apply(&self, held: &mut Held, events: Vec<Heard>) -> Changes {
        let stream = held.position.stream.clone();
        let mut batch = Batch::new(&self.shared.view);
        for heard in events {
            let at = At {
                shard: self.shard,
                stream: &stream,
                seq: heard.seq,
                unix_ms: heard.unix_ms,
            };
            let told = batch.apply(at, heard.event);
            if let Some(shard) = told.shard {
                held.position.shard_count = Some(shard.count());
            }
            held.position.incomplete &= !told.listed;
            if let Some(guild) = told.described {
                self.check_place(guild, held.position.shard_count);
            }
        }
        batch.into_changes()
    }

    /// Discord places guilds by a formula; one that comes in elsewhere means shards of two bots or
    /// two shardings in one stream, and everything that counts by shard would be wrong.
    fn check_place(&self, guild: GuildId, count: Option<u32>) {
        let mut counts = self.shared.shards.counts(self.shard);
        counts.extend(count);
        if is_misplaced(guild, self.shard, &counts) {
            self.shared.metrics.misplaced.inc();
            if let Some(left_out) = self.shared.misplaced.admit(Instant::now()) {
                tracing::warn!(
                    %guild,
                    shard = self.shard,
                    ?counts,
                    left_out,
                    "a guild came in on a shard where (guild_id >> 22) % count does not place it"
                );
            }
        }
    }

    /// Moves the position of a shard without events to the end of the stream.
    async fn follow_quietly(
        &self,
        stream: &Stream<()>,
        source: &Source,
        held: &mut Held,
    ) -> Result<(), String> {
        // In this order: what is stored between the two questions keeps the second from saying yes.
        let info = match timeout(API_TIMEOUT, stream.get_info()).await {
            Ok(Ok(info)) => info,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer".to_owned()),
        };
        if source.is_at_end().await? {
            held.pace.passed(info.state.last_sequence);
        }
        Ok(())
    }

    /// Writes the position; `None` when it is not ours any more.
    async fn write_position(&self, held: &mut Held) -> Result<Option<()>, String> {
        held.position.seq = held.pace.position(Instant::now());
        let store = &self.shared.store;
        match store
            .write_position(self.shard, &held.position, held.revision)
            .await
        {
            Ok(revision) => {
                held.revision = revision;
                Ok(Some(()))
            }
            Err(WriteError::Conflict { .. }) => Ok(None),
            Err(error @ WriteError::Unconfirmed { .. }) => Err(error.to_string()),
        }
    }

    /// The last position, and that nobody holds the shard: another instance need not wait.
    async fn release(&self, held: &mut Held) {
        held.position.holder = None;
        match self.write_position(held).await {
            Ok(Some(())) => tracing::debug!(shard = self.shard, "let go of a shard"),
            Ok(None) => {}
            Err(problem) => {
                tracing::warn!(shard = self.shard, problem, "the last position is lost")
            }
        }
    }
}
