//! A shard's side of its commands: reads requests, asks `core::commands` what may be sent, answers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use gateway_proxy_core::commands::{CommandQueue, Equal, Placed, Refusal};
use gateway_proxy_core::session::{Phase, Session};
use schemas::{CommandOp, CommandReply, GatewayCommand, ShardId};
use tokio::time::Sleep;

use super::inbox::{Inbox, Request};
use super::{Commands, LET_GO, RETRY_MS};
use crate::metrics::CommandOutcome;

/// A shard's side of its commands. Small, as each shard has one and most never get a command.
#[derive(Debug)]
pub(crate) struct Port {
    hub: Arc<Commands>,
    shard: ShardId,
    inbox: Arc<Inbox>,
    // From the first command on.
    desk: Option<Box<Desk>>,
}

#[derive(Debug)]
struct Desk {
    queue: CommandQueue,
    // Who waits to hear what became of a command; empty between two wakes.
    askers: BTreeMap<u64, Request>,
    last_ticket: u64,
    // The command that `next` yielded last.
    sending: Option<CommandOp>,
}

impl Desk {
    fn take(&mut self, request: Request) {
        self.last_ticket += 1;
        self.askers.insert(self.last_ticket, request);
    }
}

impl Port {
    pub(super) const fn new(hub: Arc<Commands>, shard: ShardId, inbox: Arc<Inbox>) -> Self {
        Self {
            hub,
            shard,
            inbox,
            desk: None,
        }
    }

    /// Waits until there is something to do for [`Port::next`]. `ready`: commands can be sent.
    pub(crate) fn due(&mut self, ready: bool) -> impl Future<Output = ()> + Send {
        let desk = self.desk.as_ref().filter(|_| ready);
        let at = desk.and_then(|desk| desk.queue.poll_timeout(Instant::now()));
        // Boxed, or every shard would have room for one.
        let sleep = |at: Instant| Box::pin(tokio::time::sleep_until(at.into()));
        let mut timer: Option<Pin<Box<Sleep>>> = at.map(sleep);
        std::future::poll_fn(move |context| {
            if let Poll::Ready(request) = self.inbox.poll_pop(context) {
                let desk = || {
                    Box::new(Desk {
                        queue: CommandQueue::new(self.shard),
                        askers: BTreeMap::new(),
                        last_ticket: 0,
                        sending: None,
                    })
                };
                self.desk.get_or_insert_with(desk).take(request);
                return Poll::Ready(());
            }
            match &mut timer {
                Some(timer) => timer.as_mut().poll(context),
                None => Poll::Pending,
            }
        })
    }

    /// Takes what came in, and yields the next payload to send with its ticket; then tell
    /// [`Port::sent`]. `None`: nothing more for now, and everybody has an answer.
    pub(crate) fn next(&mut self, session: &mut Session) -> Option<(u64, String)> {
        let desk = self.desk.as_mut()?;
        let now = Instant::now();
        let ready = session.phase() == Phase::Ready;
        if !ready {
            desk.queue.handle_disconnected();
        }
        desk.submit_new(&self.hub, ready, now);
        if ready
            && let Some((ticket, command)) = desk.queue.poll(now, || session.reserve_command(now))
        {
            let payload = command.payload().map(String::from_utf8);
            desk.sending = Some(command.op);
            // Parsed from no more than this, and written by the same rules.
            if let Ok(Ok(payload)) = payload {
                return Some((ticket, payload));
            }
            let reply = CommandReply::rejected("the payload is above Discord's limit", None);
            self.hub.count(desk.sending, CommandOutcome::Rejected, 1);
            desk.answer(&self.hub, ticket, &reply);
        }
        while let Some((op, count)) = desk.queue.poll_dropped() {
            self.hub.count(Some(op), CommandOutcome::Dropped, count);
        }
        while let Some((ticket, asker)) = desk.askers.pop_first() {
            let wait = desk.queue.wait_of(ticket, now).unwrap_or_default();
            self.hub.count(op_of(&asker), CommandOutcome::Queued, 1);
            self.hub.reply(&asker, &CommandReply::queued(millis(wait)));
        }
        None
    }

    /// What became of the payload that [`Port::next`] yielded.
    pub(crate) fn sent(&mut self, ticket: u64, delivered: bool) {
        let Some(desk) = self.desk.as_mut() else {
            return;
        };
        let (outcome, reply) = if delivered {
            (CommandOutcome::Sent, CommandReply::sent())
        } else {
            let why = "the connection broke while the command was sent";
            let reply = CommandReply::rejected(why, Some(RETRY_MS));
            (CommandOutcome::Rejected, reply)
        };
        self.hub.count(desk.sending, outcome, 1);
        desk.answer(&self.hub, ticket, &reply);
    }
}

impl Desk {
    fn submit_new(&mut self, hub: &Commands, ready: bool, now: Instant) {
        let new: Vec<u64> = self.askers.keys().copied().collect();
        for ticket in new {
            if self.queue.wait_of(ticket, now).is_none() {
                self.submit(hub, ticket, ready, now);
            }
        }
    }

    fn submit(&mut self, hub: &Commands, ticket: u64, ready: bool, now: Instant) {
        let Some(request) = self.askers.get(&ticket) else {
            return;
        };
        let command = GatewayCommand::parse(&request.payload);
        let op = command.as_ref().ok().map(|command| command.op);
        let (outcome, reply) = match command {
            Err(error) => (
                CommandOutcome::Rejected,
                CommandReply::rejected(error, None),
            ),
            Ok(_) if !ready => (
                CommandOutcome::Rejected,
                CommandReply::rejected("the shard is not connected", Some(RETRY_MS)),
            ),
            Ok(command) => match self.queue.submit(ticket, command, now) {
                Ok(Placed::Waiting) => return,
                Ok(Placed::Merged { nonce, with }) => {
                    (CommandOutcome::Merged, self.merged(nonce, with, now))
                }
                Err(refusal) => {
                    let retry = (refusal == Refusal::Full).then_some(RETRY_MS);
                    (
                        CommandOutcome::Rejected,
                        CommandReply::rejected(refusal, retry),
                    )
                }
            },
        };
        hub.count(op, outcome, 1);
        self.answer(hub, ticket, &reply);
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

    fn answer(&mut self, hub: &Commands, ticket: u64, reply: &CommandReply) {
        if let Some(request) = self.askers.remove(&ticket) {
            hub.reply(&request, reply);
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.hub.close(self.shard, &self.inbox);
        let askers = self.desk.take().map(|desk| desk.askers).unwrap_or_default();
        for request in askers.into_values().chain(self.inbox.close()) {
            self.hub.reject(&request, LET_GO);
        }
    }
}

/// What a request asks for; `None` where it is no command.
pub(super) fn op_of(request: &Request) -> Option<CommandOp> {
    let command = GatewayCommand::parse(&request.payload);
    command.ok().map(|command| command.op)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
