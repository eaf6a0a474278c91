//! The task that owns the connection: takes messages over, writes them in coalesced bursts, reads the
//! answers, starts over on trouble. What to write and what an answer means is `core::ingest`'s.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use gateway_proxy_core::ingest::{ApiError, Ingest, Outcome, Reply};
use schemas::{GapReason, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::inbox::{About, Inbox};
use super::reconcile::Fate;
use super::{Outbound, Publisher, Reconcile};
use crate::config::NatsSettings;
use crate::fence::Fence;
use crate::metrics::MalformedKind;
use crate::ownership::STOOD_STILL;
use crate::status::unix_ms;
use crate::wire::connection::{self, AtEnd, ConnectError, Connection, Purpose, Rotation};
use crate::wire::{self, Message, ServerOp};

/// Bytes encoded before they are written: large enough that a flood is few system calls, small
/// enough that answers are read in between.
const WRITE_BURST: usize = 256 * 1024;
/// A write buffer that grew beyond this for a large frame is given back.
const WRITE_KEEP: usize = 2 * WRITE_BURST;
/// Bytes of answers read at once.
const READ_CHUNK: usize = 16 * 1024;
/// Places of the inbox that are kept; those of a backlog are given back.
const INBOX_KEEP: usize = 1024;
/// The publisher wakes up at least this often.
const TICK: Duration = Duration::from_secs(1);
/// How often the same trouble is logged while NATS is away.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Publishes until `stop`; messages not stored by then are lost to this process, and Discord replays
/// them to whoever resumes from the acknowledged sequence.
pub(crate) async fn run(
    publisher: Arc<Publisher>,
    settings: NatsSettings,
    name: String,
    reconcile: Reconcile,
    stop: CancellationToken,
) {
    let ingest = if reconcile.replicated {
        Ingest::replicated()
    } else {
        Ingest::new()
    };
    let mut task = Task {
        publisher,
        settings,
        name,
        reconcile,
        ingest,
        taken: Vec::new(),
        rotation: Rotation::default(),
        quiet: false,
        logged: None,
        oldest_written: None,
        stood_still: false,
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = task.serve_forever() => {}
    }
}

struct Task {
    publisher: Arc<Publisher>,
    settings: NatsSettings,
    name: String,
    reconcile: Reconcile,
    ingest: Ingest<Outbound>,
    // Swapped with the shards' inbox, so that neither allocates anew.
    taken: Vec<Outbound>,
    rotation: Rotation,
    // The last trouble was not logged, so that its end is not either.
    quiet: bool,
    logged: Option<Instant>,
    // When the first of the messages in flight at the last trouble may have been stored.
    oldest_written: Option<Instant>,
    // This process stood still; who knows what happened meanwhile.
    stood_still: bool,
}

/// Why a connection ended.
enum End {
    Io(std::io::Error),
    Closed,
    Protocol(wire::WireError),
    ServerError(String),
    LameDuck,
    StoodStill(Duration),
    /// The right to publish ended.
    Fenced,
    /// Messages of closed lanes are to be dropped.
    Sweep,
    Trouble(Outcome),
}

impl Task {
    async fn serve_forever(&mut self) {
        loop {
            self.drop_closed_lanes();
            if !self.reconcile.ownership.fence().holds() {
                self.wait_for_the_right().await;
                continue;
            }
            let reason = match self.connect().await {
                Ok(link) => match self.reconcile().await {
                    Ok(()) => self.serve(link).await,
                    Err(reason) => format!("the stream's last events cannot be read: {reason}"),
                },
                Err(error) => error.to_string(),
            };
            if self.ingest.in_flight() == 0 {
                self.oldest_written = None;
            } else if self.oldest_written.is_none() {
                self.oldest_written = self.ingest.queued().next().map(Outbound::handed_over);
            }
            let delay = self.ingest.handle_disconnected();
            self.log_trouble(&reason, delay);
            self.publisher.set_disconnected(reason);
            tokio::time::sleep(delay).await;
        }
    }

    /// Forgets what belongs to shards that were let go of. Only between two connections.
    fn drop_closed_lanes(&mut self) {
        self.drop_unwanted(|message| message.lane().is_closed());
    }

    /// Without the right nothing is ours to store: Discord replays it to whoever takes the shards.
    async fn wait_for_the_right(&mut self) {
        let dropped = self.drop_unwanted(|_| true);
        self.oldest_written = None;
        self.stood_still = false;
        if dropped > 0 {
            warn!(
                dropped,
                "the lease of this process ended: what was not stored is left to others"
            );
        }
        self.reconcile.ownership.fence().clone().raised().await;
    }

    fn drop_unwanted(&mut self, unwanted: impl Fn(&Outbound) -> bool) -> usize {
        self.publisher.take_inbox(&mut self.taken);
        for message in self.taken.drain(..) {
            self.ingest.push(message);
        }
        let publisher = &self.publisher;
        let mut dropped = 0;
        self.ingest.take_out(unwanted, &mut |message: Outbound| {
            dropped += 1;
            publisher.left_to_others(&message);
        });
        publisher.after_acknowledgements();
        dropped
    }

    async fn connect(&mut self) -> Result<Link, ConnectError> {
        let server = self.rotation.next(self.settings.servers());
        let inbox = Inbox::new();
        let purpose = Purpose {
            name: &self.name,
            first: &format!("SUB {} 1\r\n", inbox.wildcard()),
            // What the kernel still holds when the connection is given up is not to arrive later,
            // after the events of whoever holds the shards then.
            at_end: AtEnd::Reset,
        };
        let connection = connection::connect(&self.settings, &server, purpose).await?;
        self.rotation.learn(&connection.info, server.tls);
        let (url, info) = (server.url(), &connection.info);
        let unacknowledged = self.ingest.len();
        if self.quiet {
            debug!(server = %url, unacknowledged, "publisher connected");
        } else {
            info!(
                server = %url,
                version = %info.version,
                max_payload = info.max_payload,
                unacknowledged,
                "publisher connected"
            );
        }
        Ok(Link::new(connection, inbox))
    }

    /// Settles what may have been stored so long ago that the stream has forgotten its ids.
    async fn reconcile(&mut self) -> Result<(), String> {
        if self.stood_still {
            return self.settle_after_standstill().await;
        }
        let due = self
            .oldest_written
            .is_some_and(|at| at.elapsed() >= self.reconcile.after);
        let in_flight = self.ingest.in_flight();
        if !due || in_flight == 0 {
            return Ok(());
        }
        let stored = self
            .reconcile
            .stored(self.ingest.queued().take(in_flight))
            .await?;
        info!(
            in_flight,
            stored, "compared what was in flight with the stream"
        );
        let publisher = &self.publisher;
        self.ingest
            .confirm_stored(stored, &mut |message: Outbound| publisher.stored(&message));
        publisher.after_acknowledgements();
        Ok(())
    }

    /// A successor may have taken our shards meanwhile: what it has stored, or has from Discord, is
    /// not published again.
    async fn settle_after_standstill(&mut self) -> Result<(), String> {
        self.publisher.take_inbox(&mut self.taken);
        for message in self.taken.drain(..) {
            self.ingest.push(message);
        }
        let standing = self.reconcile.standing(self.ingest.queued()).await?;
        let before = self.ingest.len();
        let publisher = &self.publisher;
        let unwanted = |message: &Outbound| standing.of(message) != Fate::Publish;
        self.ingest.take_out(unwanted, &mut |message: Outbound| {
            if standing.of(&message) == Fate::Stored {
                publisher.stored(&message);
            } else {
                publisher.left_to_others(&message);
            }
        });
        publisher.after_acknowledgements();
        self.stood_still = false;
        info!(
            queued = before,
            left = self.ingest.len(),
            "compared what was queued with the stream"
        );
        Ok(())
    }

    /// Runs one connection to its end and says why it ended.
    async fn serve(&mut self, mut link: Link) -> String {
        self.publisher.set_connected();
        self.ingest.handle_connected();
        let end = loop {
            if let Err(end) = self.turn(&mut link).await {
                break end;
            }
        };
        match end {
            End::Io(error) => format!("connection to NATS lost: {error}"),
            End::Closed => "NATS closed the connection".to_owned(),
            End::Protocol(error) => error.to_string(),
            End::ServerError(message) => format!("NATS says: {message}"),
            End::StoodStill(time) => {
                self.stood_still = true;
                format!("this process stood still for {time:.1?}")
            }
            End::Fenced => "the lease of this process ended".to_owned(),
            End::Sweep => "shards were let go of with events on their way".to_owned(),
            End::LameDuck => "the NATS server is about to shut down".to_owned(),
            End::Trouble(Outcome::Restart(trouble)) => {
                self.publisher.metrics.publish_restarts.increment();
                trouble.to_string()
            }
            End::Trouble(Outcome::Replace(error)) => {
                self.replace_front(&error);
                error.to_string()
            }
            End::Trouble(Outcome::Continue) => "the connection was given up".to_owned(),
        }
    }

    /// Waits for one cause, handles it, and prepares what can be written.
    async fn turn(&mut self, link: &mut Link) -> Result<(), End> {
        let fence = self.reconcile.ownership.fence().clone();
        if !fence.holds() {
            return Err(End::Fenced);
        }
        if std::mem::take(&mut link.answered) {
            // Shards that woke up with the answer go first: what they hand over leaves with the next
            // write, and need not wait for the answer to it.
            to_the_back().await;
        }
        // Before waiting, so that a wake-up between the two is not needed.
        self.publisher.take_inbox(&mut self.taken);
        let mut dropped = false;
        for message in self.taken.drain(..) {
            if message.lane().is_closed() {
                dropped = true;
                self.publisher.left_to_others(&message);
            } else {
                self.ingest.push(message);
            }
        }
        if self.taken.capacity() > 4 * INBOX_KEEP {
            self.taken.shrink_to(INBOX_KEEP);
        }
        if dropped {
            self.publisher.after_acknowledgements();
        }
        self.fill(link, Instant::now());
        let waits_since = Instant::now();
        // At least one wake-up per tick, so that a longer wait means that the process stood still.
        let tick = waits_since + TICK;
        let deadline = self.ingest.poll_timeout().map_or(tick, |at| at.min(tick));
        // So that what the kernel still holds is given up in time.
        let deadline = fence.ends_at().map_or(deadline, |at| at.min(deadline));
        let deadline = tokio::time::sleep_until(deadline.into());
        tokio::select! {
            // 1: answers free the window and the buffers of others.
            biased;
            read = link.connection.reader.read_buf(&mut link.input) => match read {
                Ok(0) => return Err(End::Closed),
                Ok(_) => {
                    link.answered = true;
                    self.handle_input(link)?;
                }
                Err(error) => return Err(End::Io(error)),
            },
            // 2: what is prepared goes out.
            pushed = push(&mut link.connection.writer, &link.output[link.written..], waits_since, &fence),
                if link.unwritten() || link.unflushed => {
                match pushed {
                    Ok(Pushed::Wrote(0)) => return Err(End::Closed),
                    Ok(Pushed::Wrote(count)) => link.wrote(count),
                    Ok(Pushed::Flushed) => link.unflushed = false,
                    Err(_) if waits_since.elapsed() > STOOD_STILL => {
                        return Err(End::StoodStill(waits_since.elapsed()));
                    }
                    Err(_) if !fence.holds() => return Err(End::Fenced),
                    Err(error) => return Err(End::Io(error)),
                }
            }
            // 3: more to publish; taken at the start of the next turn.
            () = self.publisher.filled.notified() => {}
            () = self.publisher.sweep.notified() => return Err(End::Sweep),
            // 4: silence.
            () = deadline => match self.ingest.handle_timeout(Instant::now()) {
                Outcome::Continue => {}
                outcome => return Err(End::Trouble(outcome)),
            },
        }
        let waited = waits_since.elapsed();
        if waited > STOOD_STILL {
            return Err(End::StoodStill(waited));
        }
        Ok(())
    }

    /// Encodes what may be written, up to one burst.
    fn fill(&mut self, link: &mut Link, now: Instant) {
        let max_payload = link.connection.info.max_payload;
        while link.output.len() - link.written < WRITE_BURST {
            let Some(size) = self.ingest.peek_unsent().map(Outbound::wire_payload_len) else {
                return;
            };
            if size > max_payload {
                self.replace_unsent(size, max_payload);
            }
            let Some(write) = self.ingest.next_write(now) else {
                return;
            };
            let inbox = &link.inbox;
            let message = write.message;
            wire::push_hpub(
                &mut link.output,
                message.subject(),
                |out| inbox.push_reply(out, &write),
                message.headers(),
                message.payload(),
            );
        }
    }

    fn handle_input(&mut self, link: &mut Link) -> Result<(), End> {
        let now = Instant::now();
        let mut used = 0;
        let mut pong = false;
        let mut result = Ok(());
        while result.is_ok() {
            let parsed = match wire::parse(&link.input[used..]) {
                Ok(Some(parsed)) => parsed,
                Ok(None) => break,
                Err(error) => return Err(End::Protocol(error)),
            };
            let (op, length) = parsed;
            used += length;
            match op {
                ServerOp::Ping => pong = true,
                ServerOp::Pong | ServerOp::Ok => {}
                ServerOp::Info(info) => {
                    link.connection.info.max_payload = info.max_payload;
                    if info.ldm && self.settings.servers().len() > 1 {
                        result = Err(End::LameDuck);
                    }
                }
                ServerOp::Err(message) => result = Err(End::ServerError(message.to_owned())),
                // `parse` makes an error of these.
                ServerOp::Oversized { .. } => {}
                ServerOp::Message(Message {
                    subject,
                    status,
                    payload,
                    ..
                }) => {
                    if let Some(about) = link.inbox.parse(subject) {
                        result = self.handle_reply(about, status, payload, now);
                    }
                }
            }
        }
        link.input.drain(..used);
        if pong {
            link.output.extend_from_slice(b"PONG\r\n");
        }
        self.publisher.after_acknowledgements();
        result
    }

    fn handle_reply(
        &mut self,
        about: About,
        status: Option<u16>,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), End> {
        if !self.ingest.is_current(about.batch) {
            return Ok(());
        }
        let reply = match status {
            Some(503) => Ok(Reply::Refused(ApiError {
                code: 503,
                err_code: 0,
                description: "no stream takes the subject of the events".to_owned(),
            })),
            _ => Reply::parse(payload, about.single),
        };
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                // Ignored: if it mattered, the timeout starts over.
                warn!(%error, "unknown answer to a publish");
                return Ok(());
            }
        };
        let publisher = &self.publisher;
        let mut oldest = None;
        let outcome = self
            .ingest
            .handle_reply(reply, now, &mut |message: Outbound| {
                oldest.get_or_insert(message.handed_over());
                publisher.stored(&message);
            });
        if let Some(handed_over) = oldest {
            publisher.progressed(now);
            publisher
                .metrics
                .ack_latency
                .record(now.saturating_duration_since(handed_over));
            if self.logged.take().is_some() {
                info!(unacknowledged = self.ingest.len(), "publishing goes on");
            }
            publisher.clear_trouble();
        }
        match outcome {
            Outcome::Continue => Ok(()),
            outcome => Err(End::Trouble(outcome)),
        }
    }

    /// The next message does not fit the server: its place is taken by a gap marker.
    fn replace_unsent(&mut self, size: usize, max_payload: usize) {
        let Some(message) = self.ingest.unsent_mut() else {
            return;
        };
        let Some(marker) = message.oversized_marker(Timestamp::from_unix_ms(unix_ms())) else {
            return;
        };
        error!(
            shard = %message.shard(),
            subject = %String::from_utf8_lossy(message.subject()),
            size,
            max_payload,
            "event lost: it is larger than the NATS server's max_payload; raise max_payload"
        );
        replace(&self.publisher, message, marker);
    }

    /// The stream refuses the oldest message for its size.
    fn replace_front(&mut self, reason: &ApiError) {
        let Some(message) = self.ingest.front_mut() else {
            return;
        };
        let Some(marker) = message.oversized_marker(Timestamp::from_unix_ms(unix_ms())) else {
            return;
        };
        error!(
            shard = %message.shard(),
            subject = %String::from_utf8_lossy(message.subject()),
            size = message.wire_payload_len(),
            %reason,
            "event lost: the stream refuses it; raise the stream's max_msg_size"
        );
        replace(&self.publisher, message, marker);
    }

    fn log_trouble(&mut self, reason: &str, delay: Duration) {
        let now = Instant::now();
        let due = self
            .logged
            .is_none_or(|at| now.duration_since(at) >= LOG_EVERY);
        self.quiet = !due;
        if due {
            self.logged = Some(now);
            warn!(
                reason,
                ?delay,
                unacknowledged = self.ingest.len(),
                "publisher lost its connection"
            );
        } else {
            debug!(reason, ?delay, "publisher still without a connection");
        }
    }
}

/// Lets every task that is ready by now go first.
async fn to_the_back() {
    let mut waited = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What [`push`] did.
enum Pushed {
    Wrote(usize),
    Flushed,
}

/// Writes what it can; with nothing left to write, flushes, since TLS may keep the end of a write to
/// itself. Refuses when the wait has been so long that the process must have stood still: what is
/// prepared may not be ours to publish any more.
async fn push(
    writer: &mut (impl AsyncWrite + Unpin),
    output: &[u8],
    waits_since: Instant,
    fence: &Fence,
) -> std::io::Result<Pushed> {
    std::future::poll_fn(|context| {
        let writer = Pin::new(&mut *writer);
        if waits_since.elapsed() > STOOD_STILL || !fence.holds() {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        if output.is_empty() {
            return writer.poll_flush(context).map_ok(|()| Pushed::Flushed);
        }
        writer.poll_write(context, output).map_ok(Pushed::Wrote)
    })
    .await
}

/// The marker takes the frame's place, in the queue and in what is counted as kept.
fn replace(publisher: &Publisher, message: &mut Outbound, marker: Outbound) {
    use std::sync::atomic::Ordering::Relaxed;
    publisher.kept_bytes.fetch_add(marker.kept_bytes(), Relaxed);
    publisher
        .kept_bytes
        .fetch_sub(message.kept_bytes(), Relaxed);
    publisher
        .metrics
        .frames_malformed
        .add(MalformedKind::AboveMaxPayload);
    publisher.metrics.gaps.add(GapReason::OversizedFrame);
    *message = marker;
}

/// Buffers of one connection.
struct Link {
    connection: Connection,
    inbox: Inbox,
    input: Vec<u8>,
    output: Vec<u8>,
    // The first `written` bytes of `output` are on their way.
    written: usize,
    unflushed: bool,
    // Answers were read since the last write was prepared.
    answered: bool,
}

impl Link {
    fn new(mut connection: Connection, inbox: Inbox) -> Self {
        let mut input = std::mem::take(&mut connection.leftover);
        input.reserve(READ_CHUNK);
        Self {
            connection,
            inbox,
            input,
            output: Vec::new(),
            written: 0,
            unflushed: false,
            answered: false,
        }
    }

    const fn unwritten(&self) -> bool {
        self.written < self.output.len()
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        self.unflushed = self.connection.encrypted;
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
            self.output.shrink_to(WRITE_KEEP);
        }
    }
}
