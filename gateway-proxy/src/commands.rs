//! The way in for users' gateway commands: listens on `….commands` for the shards this process
//! holds, and answers each request with what became of it.
//!
//! What may be sent and when is decided by `core::commands` and the session's budget. A proxy says
//! nothing about guilds whose shard it does not hold: another proxy answers.
//!
//! All shards share one connection to NATS with one subscription each, so that a shard nobody asks
//! anything of costs some tens of bytes. Without that connection, be it lost or refused at the start,
//! events flow and `/ready` is not concerned: it is logged and tried again, and whoever asks hears from
//! NATS that nobody listens.

mod inbox;
mod link;
mod outage;
mod port;
mod table;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemas::control::CommandError;
use schemas::{CommandOp, CommandReply, Prefix, ShardId, Subject};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use self::inbox::{Inbox, Refused, Request};
use self::link::{Answer, End, Incoming, Link, WRITE_BURST};
use self::outage::{Beat, Outage, ServerError};
use self::table::{GUILDS_SID, Table};
use crate::config::NatsSettings;
use crate::metrics::{CommandOutcome, Metrics};
use crate::wire::Message;
use crate::wire::connection::{self, AtEnd, Purpose, Rotation};

pub(crate) use self::port::Port;

/// What a shard without a connection, or one with a full way in, tells when to ask again: about a
/// reconnect.
const RETRY_MS: u64 = 1000;
/// The answer to requests that came for a shard that is not held any more.
const LET_GO: &str = "the shard is being let go";
/// With so many bytes of answers waiting no more requests are read: the server does not take them.
const ANSWERS_HIGH: usize = 1 << 20;
/// Answers beyond these bytes are dropped: requests that were read before, while NATS is away. Whoever
/// asked so long ago has given up.
const ANSWERS_MAX: usize = 2 * ANSWERS_HIGH;

/// The commands of all shards of this process.
#[derive(Debug)]
pub(crate) struct Commands {
    prefix: Prefix,
    metrics: Metrics,
    state: Mutex<State>,
    // Wakes the connection: there is something to write.
    work: Notify,
    // Wakes whoever waits for everything to be written.
    written: Notify,
}

#[derive(Debug, Default)]
struct State {
    table: Table<Arc<Inbox>>,
    answers: VecDeque<Answer>,
    answers_bytes: usize,
    // The connection has bytes that are not written.
    writing: bool,
    linked: bool,
}

/// Who answers a request.
enum Whose {
    /// A shard of this process.
    Shards(Arc<Inbox>),
    /// This process, for a shard it has just let go of: the end of the subscription was on its way.
    Nobodys,
    /// The proxy that holds the guild's shard, if there is one.
    Others,
}

impl State {
    fn link(&mut self) {
        self.table.subscribe_all();
        self.linked = true;
    }

    /// The connection is gone; these answers may not have gone out. To give one twice does no harm.
    fn unlink(&mut self, unsent: Vec<Answer>) {
        self.table.unlink();
        self.linked = false;
        self.writing = false;
        for answer in unsent.into_iter().rev() {
            self.answers_bytes += answer.len();
            self.answers.push_front(answer);
        }
    }

    fn push_answer(&mut self, answer: Answer) {
        if self.answers_bytes + answer.len() > ANSWERS_MAX {
            debug!("a command's reply is dropped: NATS does not take them");
            return;
        }
        self.answers_bytes += answer.len();
        self.answers.push_back(answer);
    }

    fn pop_answer(&mut self) -> Option<Answer> {
        let answer = self.answers.pop_front()?;
        self.answers_bytes -= answer.len();
        if self.answers.is_empty() {
            self.answers = VecDeque::new();
        }
        Some(answer)
    }

    fn is_written(&self) -> bool {
        !self.writing && self.answers.is_empty() && self.table.is_told()
    }

    /// Nothing is left to write, or nothing to write it to.
    fn has_written(&self) -> bool {
        !self.linked || self.is_written()
    }
}

impl Commands {
    pub(crate) fn new(prefix: Prefix, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            prefix,
            metrics,
            state: Mutex::default(),
            work: Notify::new(),
            written: Notify::new(),
        })
    }

    /// Opens a shard's way in; it closes when the port is dropped. Of two ports of one shard the later
    /// gets the requests.
    pub(crate) fn open(self: &Arc<Self>, shard: ShardId) -> Port {
        let inbox = Arc::new(Inbox::default());
        self.state().table.open(shard, Arc::clone(&inbox));
        self.work.notify_one();
        Port::new(Arc::clone(self), shard, inbox)
    }

    fn close(&self, shard: ShardId, inbox: &Arc<Inbox>) {
        let mut state = self.state();
        state.table.close(shard, |own| Arc::ptr_eq(own, inbox));
        drop(state);
        self.work.notify_one();
    }

    /// Keeps a connection of this name to NATS, for ever.
    pub(crate) async fn run(self: Arc<Self>, settings: NatsSettings, name: String) {
        let (mut rotation, mut outage) = (Rotation::default(), Outage::default());
        loop {
            let server = rotation.next(settings.servers());
            let purpose = Purpose {
                name: &name,
                first: "",
                at_end: AtEnd::Finish,
            };
            let reason = match connection::connect(&settings, &server, purpose).await {
                Ok(connection) => {
                    rotation.learn(&connection.info, server.tls);
                    if outage.connected(Instant::now()) {
                        info!(server = %server.url(), "commands are received again");
                    }
                    let alone = settings.servers().len() == 1;
                    let link = Link::new(connection, Instant::now());
                    self.serve(link, alone).await.to_string()
                }
                Err(error) => error.to_string(),
            };
            let lost = outage.lost(fastrand::f64(), Instant::now());
            if lost.tell {
                warn!(reason, "commands are not received, connecting again");
            } else {
                debug!(reason, again_in = ?lost.pause, "commands are still not received");
            }
            tokio::time::sleep(lost.pause).await;
        }
    }

    /// Waits until every answer and every end of a subscription is with the kernel. Gives up when the
    /// time is up, and at once without a connection.
    pub(crate) async fn flushed(&self, patience: Duration) {
        let wait = async {
            loop {
                let woken = self.written.notified();
                tokio::pin!(woken);
                woken.as_mut().enable();
                if self.state().has_written() {
                    return;
                }
                woken.await;
            }
        };
        if tokio::time::timeout(patience, wait).await.is_err() {
            debug!("the last answers to commands were not sent");
        }
    }

    /// Runs one connection to its end and says why it ended. `alone`: there is no other server.
    async fn serve(&self, mut link: Link, alone: bool) -> End {
        self.state().link();
        let end = match self.take(&mut link, alone) {
            Err(end) => end,
            Ok(()) => loop {
                if let Err(end) = self.turn(&mut link, alone).await {
                    break end;
                }
            },
        };
        self.state().unlink(link.output.into_answers());
        self.written.notify_waiters();
        end
    }

    /// Waits for one cause and handles it.
    async fn turn(&self, link: &mut Link, alone: bool) -> Result<(), End> {
        let reads = self.fill(link);
        let deadline = tokio::time::sleep_until(link.poll_timeout().into());
        tokio::select! {
            // 1: what is prepared goes out; a flood of requests would keep it back.
            biased;
            written = link.output.write(&mut link.writer), if link.output.is_pending() => written,
            // 2: requests.
            read = link.feed.read(&mut link.reader), if reads => match read? {
                0 => Err(End::Closed),
                _ => {
                    link.pulse.heard(Instant::now());
                    self.take(link, alone)
                }
            },
            // 3: more to write; taken at the start of the next turn.
            () = self.work.notified() => Ok(()),
            // 4: silence.
            () = deadline => self.handle_timeout(link),
        }
    }

    /// Prepares what is to be written, up to one burst. False: the server does not take the answers, so
    /// that no more are to be made.
    fn fill(&self, link: &mut Link) -> bool {
        let mut state = self.state();
        let output = &mut link.output;
        state
            .table
            .push_changes(&self.prefix, &mut output.bytes, WRITE_BURST);
        while output.bytes.len() < WRITE_BURST
            && let Some(answer) = state.pop_answer()
        {
            output.push_answer(answer);
        }
        state.writing = output.is_pending();
        let (reads, is_written) = (state.answers_bytes < ANSWERS_HIGH, state.is_written());
        drop(state);
        if is_written {
            self.written.notify_waiters();
        }
        reads
    }

    fn handle_timeout(&self, link: &mut Link) -> Result<(), End> {
        let now = Instant::now();
        if link.refusals.handle_timeout(now) {
            self.state().table.subscribe_all();
        }
        match link.pulse.handle_timeout(now) {
            Beat::Wait => {}
            Beat::Ping => link.output.bytes.extend_from_slice(b"PING\r\n"),
            Beat::Dead => return Err(End::Silent),
        }
        Ok(())
    }

    /// Handles what has been read.
    fn take(&self, link: &mut Link, alone: bool) -> Result<(), End> {
        let Link {
            feed,
            output,
            refusals,
            ..
        } = link;
        let mut end = None;
        feed.take(|incoming| match incoming {
            Incoming::Request(message) => self.handle_request(message),
            Incoming::TooLarge { message, bytes } => self.handle_too_large(message, bytes),
            Incoming::Ping => output.bytes.extend_from_slice(b"PONG\r\n"),
            Incoming::LameDuck if alone => {}
            Incoming::LameDuck => end = Some(End::LameDuck),
            Incoming::Error(text) => match outage::read_error(text) {
                ServerError::Subscription(subject) if refusals.refused(Instant::now()) => {
                    warn!(
                        subject,
                        "NATS does not let commands be received, trying again"
                    );
                }
                ServerError::Subscription(subject) => debug!(subject, "nor these commands"),
                ServerError::Publish if refusals.answer_refused() => {
                    warn!(reason = text, "NATS does not let a command be answered");
                }
                ServerError::Publish => debug!(reason = text, "nor this answer"),
                ServerError::Fatal => end = Some(End::Server(text.to_owned())),
            },
        })?;
        end.map_or(Ok(()), Err)
    }

    fn handle_request(&self, message: Message<'_>) {
        let whose = self.whose(message);
        let request = || Request {
            payload: message.payload.into(),
            reply: message.reply.map(Into::into),
        };
        let pushed = match whose {
            Whose::Shards(inbox) => inbox.push(request()),
            Whose::Nobodys => Err((request(), Refused::Closed)),
            Whose::Others => return,
        };
        match pushed {
            Ok(()) => {}
            Err((request, Refused::Full)) => self.reject(&request, "too many commands at once"),
            Err((request, Refused::Closed)) => self.reject(&request, LET_GO),
        }
    }

    fn handle_too_large(&self, message: Message<'_>, bytes: usize) {
        if matches!(self.whose(message), Whose::Others) {
            return;
        }
        self.count(None, CommandOutcome::Rejected, 1);
        let reply = CommandReply::rejected(CommandError::TooLarge { bytes }, None);
        self.reply_to(message.reply, &reply);
    }

    fn whose(&self, message: Message<'_>) -> Whose {
        let state = self.state();
        if message.sid != GUILDS_SID {
            let inbox = state.table.of_sid(message.sid).map(Arc::clone);
            return inbox.map_or(Whose::Nobodys, Whose::Shards);
        }
        let subject = Subject::parse(&self.prefix, message.subject);
        let Ok(Subject::GuildCommands { guild }) = subject else {
            return Whose::Others;
        };
        let inbox = state.table.of_guild(guild).map(Arc::clone);
        inbox.map_or(Whose::Others, Whose::Shards)
    }

    fn reject(&self, request: &Request, why: &str) {
        self.count(port::op_of(request), CommandOutcome::Rejected, 1);
        self.reply(request, &CommandReply::rejected(why, Some(RETRY_MS)));
    }

    fn reply(&self, request: &Request, reply: &CommandReply) {
        self.reply_to(request.reply.as_deref(), reply);
    }

    /// Only queues it: the connection sends in its own time.
    fn reply_to(&self, inbox: Option<&str>, reply: &CommandReply) {
        let Some(inbox) = inbox else { return };
        let text = serde_json::to_string(reply).expect("a reply is three plain fields");
        let answer = format!("PUB {inbox} {}\r\n{text}\r\n", text.len());
        self.state().push_answer(answer.into_bytes().into());
        self.work.notify_one();
    }

    fn count(&self, op: Option<CommandOp>, outcome: CommandOutcome, count: u64) {
        self.metrics.commands.add(op, outcome, count);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete in itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
