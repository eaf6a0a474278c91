//! The way in for users' gateway commands: listens on `….commands` for the shards this process
//! holds, and answers each request with what became of it.
//!
//! What may be sent and when is decided by `core::commands` and the session's budget. A proxy says
//! nothing about guilds whose shard it does not hold: another proxy answers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;
use gateway_proxy_core::commands::{CommandQueue, Equal, Placed, Refusal};
use gateway_proxy_core::session::{Phase, Session};
use schemas::{CommandOp, CommandReply, GatewayCommand, Prefix, ShardId, Subject};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::metrics::{CommandOutcome, Metrics};

/// Requests on their way to one shard's task; more are refused at once.
const REQUESTS_MAX: usize = 64;
/// What a shard without a connection tells when to ask again: about a reconnect.
const NOT_READY_RETRY_MS: u64 = 1000;
/// What a full way in tells when to ask again.
const FULL_RETRY_MS: u64 = 1000;
/// Pause before a subscription that could not be made is tried again.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// One request with the inbox of its asker. Boxed in channels, which hold room for 32 from the start:
/// most shards never get one.
#[derive(Debug)]
struct Request {
    message: Message,
}

/// The commands of all shards of this process.
#[derive(Debug)]
pub(crate) struct Commands {
    client: Client,
    prefix: Prefix,
    metrics: Metrics,
    ports: Mutex<BTreeMap<ShardId, mpsc::Sender<Box<Request>>>>,
}

impl Commands {
    pub(crate) fn new(client: Client, prefix: Prefix, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            client,
            prefix,
            metrics,
            ports: Mutex::default(),
        })
    }

    /// Opens a shard's way in; it closes when the port is dropped.
    pub(crate) fn open(self: &Arc<Self>, shard: ShardId) -> Port {
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        self.ports().insert(shard, requests.clone());
        let (hub, way_in) = (Arc::clone(self), requests.clone());
        let listening = async move {
            let subject = Subject::ShardCommands { shard: shard.id() }.with_prefix(&hub.prefix);
            let mut messages = hub.subscribe(subject).await;
            while let Some(message) = messages.next().await {
                hub.hand_over(&way_in, message).await;
            }
        };
        Port {
            hub: Arc::clone(self),
            shard,
            inbox,
            requests,
            queue: CommandQueue::new(shard),
            askers: HashMap::new(),
            last_ticket: 0,
            sending: None,
            _listening: AbortOnDropHandle::new(tokio::spawn(listening)),
        }
    }

    /// Listens for commands by guild, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut messages = self.subscribe(self.prefix.all_guild_commands()).await;
        while let Some(message) = messages.next().await {
            let subject = Subject::parse(&self.prefix, &message.subject);
            let Ok(Subject::GuildCommands { guild }) = subject else {
                continue;
            };
            let held = self.ports().iter().find_map(|(shard, port)| {
                (guild.shard(shard.count()) == shard.id()).then(|| port.clone())
            });
            // Silence: the proxy that holds the guild's shard answers.
            let Some(port) = held else { continue };
            self.hand_over(&port, message).await;
        }
    }

    async fn subscribe(&self, subject: String) -> Subscriber {
        loop {
            match self.client.subscribe(subject.clone()).await {
                Ok(subscriber) => return subscriber,
                Err(error) => {
                    warn!(subject, %error, "cannot listen for commands, trying again");
                    tokio::time::sleep(SUBSCRIBE_PAUSE).await;
                }
            }
        }
    }

    async fn hand_over(&self, port: &mpsc::Sender<Box<Request>>, message: Message) {
        let Err(error) = port.try_send(Box::new(Request { message })) else {
            return;
        };
        let (request, why) = match error {
            mpsc::error::TrySendError::Full(request) => (request, "too many commands at once"),
            mpsc::error::TrySendError::Closed(request) => (request, "the shard is being let go"),
        };
        let op = op_of(&request);
        self.metrics.commands.add(op, CommandOutcome::Rejected, 1);
        let reply = CommandReply::rejected(why, Some(FULL_RETRY_MS));
        self.reply(&request, &reply).await;
    }

    async fn reply(&self, request: &Request, reply: &CommandReply) {
        let Some(inbox) = request.message.reply.clone() else {
            return;
        };
        let text = serde_json::to_vec(reply).expect("a reply is three plain fields");
        // Only queues it: the connection sends in its own time.
        if let Err(error) = self.client.publish(inbox, text.into()).await {
            debug!(%error, "a command's reply was not sent");
        }
    }

    fn ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, mpsc::Sender<Box<Request>>>> {
        // Every change is one insert or remove.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard's side of its commands.
#[derive(Debug)]
pub(crate) struct Port {
    hub: Arc<Commands>,
    shard: ShardId,
    inbox: mpsc::Receiver<Box<Request>>,
    // What the hub has, to tell this port from a later one of the same shard.
    requests: mpsc::Sender<Box<Request>>,
    queue: CommandQueue,
    // Who waits to hear what became of a command; empty between two wakes.
    askers: HashMap<u64, Box<Request>>,
    last_ticket: u64,
    // The command that `next` yielded last.
    sending: Option<CommandOp>,
    _listening: AbortOnDropHandle<()>,
}

impl Port {
    /// Waits until there is something to do for [`Port::next`]. `ready`: commands can be sent.
    pub(crate) async fn due(&mut self, ready: bool) {
        let timer = ready.then(|| self.queue.poll_timeout(Instant::now()));
        let timer = async {
            match timer.flatten() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            request = self.inbox.recv() => match request {
                Some(request) => {
                    self.last_ticket += 1;
                    self.askers.insert(self.last_ticket, request);
                }
                // This port holds a sender itself.
                None => std::future::pending().await,
            },
            () = timer => {}
        }
    }

    /// Takes what came in, and yields the next payload to send with its ticket; then tell
    /// [`Port::sent`]. `None`: nothing more for now, and everybody has an answer.
    pub(crate) async fn next(&mut self, session: &mut Session) -> Option<(u64, String)> {
        let now = Instant::now();
        let ready = session.phase() == Phase::Ready;
        if !ready {
            self.queue.handle_disconnected();
        }
        let mut new: Vec<u64> = self.askers.keys().copied().collect();
        new.sort_unstable();
        for ticket in new {
            if self.queue.wait_of(ticket, now).is_none() {
                self.submit(ticket, ready, now).await;
            }
        }
        if ready
            && let Some((ticket, command)) = self.queue.poll(now, || session.reserve_command(now))
        {
            let payload = command.payload().map(String::from_utf8);
            self.sending = Some(command.op);
            // Parsed from no more than this, and written by the same rules.
            if let Ok(Ok(payload)) = payload {
                return Some((ticket, payload));
            }
            let reply = CommandReply::rejected("the payload is above Discord's limit", None);
            self.count(self.sending, CommandOutcome::Rejected);
            self.answer(ticket, &reply).await;
        }
        while let Some((op, count)) = self.queue.poll_dropped() {
            let counts = &self.hub.metrics.commands;
            counts.add(Some(op), CommandOutcome::Dropped, count);
        }
        for ticket in self.askers.keys().copied().collect::<Vec<_>>() {
            let wait = self.queue.wait_of(ticket, now).unwrap_or_default();
            self.count(
                self.askers.get(&ticket).and_then(|asker| op_of(asker)),
                CommandOutcome::Queued,
            );
            self.answer(ticket, &CommandReply::queued(millis(wait)))
                .await;
        }
        None
    }

    /// What became of the payload that [`Port::next`] yielded.
    pub(crate) async fn sent(&mut self, ticket: u64, delivered: bool) {
        let (outcome, reply) = if delivered {
            (CommandOutcome::Sent, CommandReply::sent())
        } else {
            let why = "the connection broke while the command was sent";
            let reply = CommandReply::rejected(why, Some(NOT_READY_RETRY_MS));
            (CommandOutcome::Rejected, reply)
        };
        self.count(self.sending, outcome);
        self.answer(ticket, &reply).await;
    }

    async fn submit(&mut self, ticket: u64, ready: bool, now: Instant) {
        let Some(request) = self.askers.get(&ticket) else {
            return;
        };
        let command = GatewayCommand::parse(&request.message.payload);
        let op = command.as_ref().ok().map(|command| command.op);
        let (outcome, reply) = match command {
            Err(error) => (
                CommandOutcome::Rejected,
                CommandReply::rejected(error, None),
            ),
            Ok(_) if !ready => (
                CommandOutcome::Rejected,
                CommandReply::rejected("the shard is not connected", Some(NOT_READY_RETRY_MS)),
            ),
            Ok(command) => match self.queue.submit(ticket, command, now) {
                Ok(Placed::Waiting) => return,
                Ok(Placed::Merged { nonce, with }) => {
                    (CommandOutcome::Merged, self.merged(nonce, with, now))
                }
                Err(refusal) => {
                    let retry = (refusal == Refusal::Full).then_some(FULL_RETRY_MS);
                    (
                        CommandOutcome::Rejected,
                        CommandReply::rejected(refusal, retry),
                    )
                }
            },
        };
        self.count(op, outcome);
        self.answer(ticket, &reply).await;
    }

    fn merged(&self, nonce: Option<String>, with: Equal, now: Instant) -> CommandReply {
        match with {
            Equal::Sent(ago) => CommandReply::joined_sent(nonce, millis(ago)),
            Equal::Waiting(other) => {
                let wait = self.queue.wait_of(other, now).unwrap_or_default();
                CommandReply::joined_queued(nonce, millis(wait))
            }
        }
    }

    fn count(&self, op: Option<CommandOp>, outcome: CommandOutcome) {
        self.hub.metrics.commands.add(op, outcome, 1);
    }

    async fn answer(&mut self, ticket: u64, reply: &CommandReply) {
        if let Some(request) = self.askers.remove(&ticket) {
            self.hub.reply(&request, reply).await;
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut ports = self.hub.ports();
        let own = ports.get(&self.shard);
        if own.is_some_and(|port| port.same_channel(&self.requests)) {
            ports.remove(&self.shard);
        }
    }
}

/// What a request asks for; `None` where it is no command.
fn op_of(request: &Request) -> Option<CommandOp> {
    let command = GatewayCommand::parse(&request.message.payload);
    command.ok().map(|command| command.op)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
