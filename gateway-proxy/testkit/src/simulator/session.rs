//! A gateway session: its sequence, replay buffer and ledger, independent of any socket.

mod body;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::ShardId;
use tokio::sync::Notify;

pub(crate) use self::body::{Body, NO_GUILD_INDEX, RawFrame};
use super::compress::{Encoder, Transport};
use super::ledger::{Entry, SessionRecord, SessionState, Step, content_hash};
use super::load::FloodTable;
use super::state::Shared;

/// Written to the socket in one go; larger only for a single large event.
const BATCH_BYTES: usize = 64 * 1024;
/// GUILD_CREATEs that pile up for a disconnected session at each housekeeping.
const STARTUP_WHILE_AWAY: usize = 20;

/// How far a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its id.
    pub id: String,
    /// Its shard tuple.
    pub shard: ShardId,
    /// Compression it was begun with.
    pub transport: Transport,
    /// Whether it lives.
    pub state: SessionState,
    /// Dispatches generated: the highest `s`.
    pub events: u64,
    /// Of them not yet written to the socket.
    pub unsent: u64,
    /// The lowest `s` that the replay buffer holds.
    pub replayable_from: u64,
    /// Events it should have had and got no `s` for: [`Until::NewSession`](super::Until).
    pub withheld: u64,
}

/// Query parameters a connection was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    pub(crate) version: u32,
    pub(crate) transport: Transport,
}

struct Queued {
    body: Body,
    at_us: u64,
}

/// One session.
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) shard: ShardId,
    pub(crate) intents: u64,
    pub(crate) params: Params,
    /// Guilds of this shard, by number.
    pub(crate) guilds: Arc<[u32]>,
    /// Flood events made for this shard tuple; sessions that follow each other share it.
    pub(crate) flood_made: Arc<std::sync::atomic::AtomicU64>,
    inner: Mutex<Inner>,
}

/// The socket that holds a session.
#[derive(Clone)]
struct Attachment {
    connection: u64,
    wake: Arc<Notify>,
}

struct Inner {
    buffer: VecDeque<Queued>,
    /// `s` of the front of `buffer`.
    first_seq: u64,
    /// Next `s` to write to the attached socket.
    cursor: u64,
    /// Highest `s` ever written to a socket.
    written_to: u64,
    attached: Option<Attachment>,
    detached_at_us: u64,
    ended: bool,
    overrun: bool,
    /// Position in `guilds` of the next GUILD_CREATE after READY.
    startup: usize,
    flood: Option<Flood>,
    /// No event finds its way here any more.
    muted: bool,
    withheld: u64,
    entries: Vec<Entry>,
    heartbeat_seq: u64,
    resumed_from: Option<u64>,
    lost: Option<(u64, u64)>,
}

/// The load a session floods with, made when the load changes.
struct Flood {
    generation: u64,
    table: Option<FloodTable>,
}

impl Inner {
    fn last_seq(&self) -> u64 {
        self.entries.len() as u64
    }

    const fn state(&self) -> SessionState {
        match (&self.attached, self.ended) {
            (_, true) => SessionState::Ended,
            (Some(_), false) => SessionState::Connected,
            (None, false) => SessionState::Disconnected,
        }
    }
}

/// What became of a RESUME.
pub(crate) enum Resumption {
    /// Dispatches that will be replayed, and the socket that held the session so far.
    Accepted {
        replayed: u64,
        previous: Option<u64>,
    },
    /// `seq` is ahead of the session: 4007.
    InvalidSeq,
    /// Gone, or the buffer no longer reaches back: op 9 false.
    TooLate(Option<(u64, u64)>),
}

/// What [`Session::fill`] left to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// There is more to write.
    More,
    /// Everything is written.
    Drained,
    /// Another socket holds the session.
    Detached,
}

impl Session {
    pub(crate) fn new(
        id: String,
        shard: ShardId,
        intents: u64,
        params: Params,
        guilds: Arc<[u32]>,
        flood_made: Arc<std::sync::atomic::AtomicU64>,
    ) -> Self {
        let inner = Inner {
            buffer: VecDeque::new(),
            first_seq: 1,
            cursor: 1,
            written_to: 0,
            attached: None,
            detached_at_us: 0,
            ended: false,
            overrun: false,
            startup: 0,
            flood: None,
            muted: false,
            withheld: 0,
            entries: Vec::new(),
            heartbeat_seq: 0,
            resumed_from: None,
            lost: None,
        };
        Self {
            id,
            shard,
            intents,
            params,
            guilds,
            flood_made,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the fresh session its first socket.
    pub(crate) fn attach(&self, connection: u64, wake: Arc<Notify>) {
        self.lock().attached = Some(Attachment { connection, wake });
    }

    /// Appends a dispatch and wakes the socket.
    pub(crate) fn push(&self, shared: &Shared, body: Body) {
        let wake = {
            let mut inner = self.lock();
            if inner.ended {
                return;
            }
            if inner.muted {
                inner.withheld += 1;
                return;
            }
            self.append(shared, &mut inner, body, shared.now_us());
            let unsent = (inner.last_seq() + 1).saturating_sub(inner.cursor);
            if inner.attached.is_some() && unsent > shared.config.backlog_events as u64 {
                inner.overrun = true;
            }
            prune(shared, &mut inner);
            inner
                .attached
                .as_ref()
                .map(|attached| Arc::clone(&attached.wake))
        };
        if let Some(wake) = wake {
            wake.notify_one();
        }
    }

    fn append(&self, shared: &Shared, inner: &mut Inner, body: Body, now_us: u64) {
        let (name, guild, flags) = match &body {
            Body::Template {
                template, guild, ..
            } => {
                let template = &shared.templates.events[usize::from(*template)];
                let guild = if template.direct {
                    0
                } else {
                    shared.world.guild(*guild).id
                };
                (template.name, guild, 0)
            }
            Body::Guild { guild } => (shared.guild_create, shared.world.guild(*guild).id, 0),
            Body::Raw(raw) => (raw.name, raw.guild, raw.flags),
        };
        let entry = Entry {
            guild,
            queued_us: now_us.max(1),
            name,
            flags,
            ..Entry::default()
        };
        inner.entries.push(entry);
        inner.buffer.push_back(Queued {
            body,
            at_us: now_us,
        });
        shared.counters.queued(1);
    }

    /// Writes as much as one batch holds into `out`, and at most `limit` dispatches.
    pub(crate) fn fill(
        &self,
        shared: &Shared,
        connection: u64,
        encoder: &mut Encoder,
        scratch: &mut Vec<u8>,
        out: &mut Vec<u8>,
        limit: &mut u64,
    ) -> Filled {
        let mut inner = self.lock();
        if inner
            .attached
            .as_ref()
            .is_none_or(|attached| attached.connection != connection)
        {
            return Filled::Detached;
        }
        let now_us = shared.now_us().max(1);
        let mut written = 0;
        let mut json_bytes = 0;
        let filled = loop {
            if out.len() >= BATCH_BYTES {
                break Filled::More;
            }
            if *limit == 0 {
                break Filled::Drained;
            }
            if inner.cursor > inner.last_seq() && !self.generate(shared, &mut inner, now_us) {
                break Filled::Drained;
            }
            let seq = inner.cursor;
            let at = (seq - inner.first_seq) as usize;
            scratch.clear();
            let body = &inner.buffer[at].body;
            body.render(shared, self.intents, seq, scratch);
            let entry = &mut inner.entries[(seq - 1) as usize];
            if !entry.is_written() {
                entry.written_us = now_us;
                entry.len = scratch.len() as u32;
                entry.hash = content_hash(scratch);
            }
            encoder.message(scratch, out);
            json_bytes += scratch.len() as u64;
            written += 1;
            *limit -= 1;
            inner.cursor += 1;
            inner.written_to = inner.written_to.max(seq);
            prune(shared, &mut inner);
        };
        encoder.finish(out);
        shared.counters.written(written, json_bytes);
        filled
    }

    /// Makes the next event of the start-up storm or of a flood; false when nothing is due.
    fn generate(&self, shared: &Shared, inner: &mut Inner, now_us: u64) -> bool {
        if self.startup_event(shared, inner, now_us) {
            return true;
        }
        if inner.muted {
            return false;
        }
        let generation = shared.load_generation();
        if inner
            .flood
            .as_ref()
            .is_none_or(|flood| flood.generation != generation)
        {
            let load = shared.load();
            let table = FloodTable::for_session(shared, &load, self);
            inner.flood = Some(Flood {
                generation: load.generation,
                table,
            });
        }
        let table = inner.flood.as_ref().and_then(|flood| flood.table.as_ref());
        let Some(body) = table.and_then(|table| table.next(shared, self)) else {
            return false;
        };
        self.append(shared, inner, body, now_us);
        true
    }

    fn startup_event(&self, shared: &Shared, inner: &mut Inner, now_us: u64) -> bool {
        while let Some(guild) = self.guilds.get(inner.startup).copied() {
            inner.startup += 1;
            if self.intents & super::events::GUILDS == 0 {
                continue;
            }
            let body = if shared.world.is_unavailable(guild) {
                Body::Raw(Arc::new(shared.guild_unavailable(guild)))
            } else {
                Body::Guild { guild }
            };
            self.append(shared, inner, body, now_us);
            return true;
        }
        false
    }

    /// Attaches another socket where Discord would.
    pub(crate) fn resume(
        &self,
        shared: &Shared,
        seq: u64,
        connection: u64,
        wake: Arc<Notify>,
    ) -> Resumption {
        let mut inner = self.lock();
        if inner.ended {
            return Resumption::TooLate(None);
        }
        prune(shared, &mut inner);
        if seq > inner.last_seq() {
            return Resumption::InvalidSeq;
        }
        if seq + 1 < inner.first_seq {
            let lost = (seq + 1, inner.first_seq - 1);
            inner.lost = Some(lost);
            inner.ended = true;
            inner.buffer.clear();
            return Resumption::TooLate(Some(lost));
        }
        let replayed = inner.last_seq() - seq;
        inner.cursor = seq + 1;
        inner.overrun = false;
        inner.resumed_from = Some(seq);
        let previous = inner.attached.replace(Attachment { connection, wake });
        let resumed = Body::Raw(Arc::clone(&shared.resumed));
        self.append(shared, &mut inner, resumed, shared.now_us());
        Resumption::Accepted {
            replayed,
            previous: previous.map(|held| held.connection),
        }
    }

    /// The socket is gone. False when it did not hold the session any more.
    pub(crate) fn detach(&self, shared: &Shared, connection: u64) -> bool {
        let mut inner = self.lock();
        if inner
            .attached
            .as_ref()
            .is_none_or(|attached| attached.connection != connection)
        {
            return false;
        }
        inner.attached = None;
        inner.detached_at_us = shared.now_us();
        prune(shared, &mut inner);
        true
    }

    /// Ends the session for good; false when it had ended.
    pub(crate) fn end(&self) -> bool {
        let mut inner = self.lock();
        inner.attached = None;
        inner.buffer = VecDeque::new();
        inner.first_seq = inner.last_seq() + 1;
        !std::mem::replace(&mut inner.ended, true)
    }

    /// The client named `seq` in a heartbeat; false when that was never sent.
    pub(crate) fn heartbeat(&self, seq: u64) -> bool {
        let mut inner = self.lock();
        inner.heartbeat_seq = inner.heartbeat_seq.max(seq);
        // Behind a RESUME the client may name what the older socket brought.
        seq <= inner.written_to
    }

    /// The connection that holds the session.
    pub(crate) fn connection(&self) -> Option<u64> {
        self.lock()
            .attached
            .as_ref()
            .map(|attached| attached.connection)
    }

    pub(crate) fn last_written(&self) -> u64 {
        self.lock().cursor - 1
    }

    /// Cuts the session off from events, or joins it again.
    pub(crate) fn set_muted(&self, muted: bool) {
        self.lock().muted = muted;
        self.wake();
    }

    /// Wakes the socket, if any: the load has changed.
    pub(crate) fn wake(&self) {
        if let Some(attached) = &self.lock().attached {
            attached.wake.notify_one();
        }
    }

    /// Drops what is too old. `Some` when the session itself is.
    pub(crate) fn housekeep(&self, shared: &Shared) -> Option<Step> {
        let mut inner = self.lock();
        if inner.ended {
            return None;
        }
        let now_us = shared.now_us();
        if inner.attached.is_none() {
            if now_us > inner.detached_at_us + shared.replay_ttl_us() {
                drop(inner);
                self.end();
                return Some(Step::Expired);
            }
            for _ in 0..STARTUP_WHILE_AWAY {
                if !self.startup_event(shared, &mut inner, now_us) {
                    break;
                }
            }
        }
        let keep_from = now_us.saturating_sub(shared.replay_ttl_us());
        while inner
            .buffer
            .front()
            .is_some_and(|event| event.at_us < keep_from)
            && inner.first_seq < inner.cursor
        {
            inner.buffer.pop_front();
            inner.first_seq += 1;
        }
        prune(shared, &mut inner);
        None
    }

    /// The client reads so slowly that too much is unsent.
    pub(crate) fn is_overrun(&self) -> bool {
        self.lock().overrun
    }

    pub(crate) fn progress(&self) -> Progress {
        let inner = self.lock();
        let events = inner.last_seq();
        Progress {
            id: self.id.clone(),
            shard: self.shard,
            transport: self.params.transport,
            state: inner.state(),
            events,
            unsent: (events + 1).saturating_sub(inner.cursor),
            replayable_from: inner.first_seq,
            withheld: inner.withheld,
        }
    }

    pub(crate) fn record(&self) -> SessionRecord {
        let inner = self.lock();
        SessionRecord {
            id: self.id.clone(),
            shard: self.shard,
            state: inner.state(),
            heartbeat_seq: inner.heartbeat_seq,
            resumed_from: inner.resumed_from,
            lost: inner.lost,
            entries: inner.entries.clone(),
        }
    }
}

/// Keeps the replay buffer within its size. What a connected client has not been sent stays.
fn prune(shared: &Shared, inner: &mut Inner) {
    while inner.buffer.len() > shared.config.replay_events
        && (inner.attached.is_none() || inner.first_seq < inner.cursor)
    {
        inner.buffer.pop_front();
        inner.first_seq += 1;
    }
}
