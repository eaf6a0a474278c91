//! Commands of users on their way to one shard: which may be sent, in which order, and when.
//!
//! The connection's budget of 120 payloads per 60 s is the session's; this keeps what waits for it,
//! the limits of single commands, and equal member requests from being sent twice.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use schemas::{CommandOp, GatewayCommand, GuildId, ShardId};
use serde_json::Value;

use crate::budget::{LIMIT, WINDOW};

/// Commands that wait: as many as a connection may send in a minute, so that none waits much longer
/// than that. At most 4 kB each.
pub const WAITING_MAX: usize = LIMIT;
/// A command that waited for a connection this long is of no use to anybody.
const EXPIRES_AFTER: Duration = Duration::from_secs(120);
/// All members of a guild may be asked for once in this time (Discord, Request Guild Members).
const ALL_MEMBERS_EVERY: Duration = Duration::from_secs(30);
/// How long other member requests count as in flight: their chunks come within a second or two.
const MEMBERS_IN_FLIGHT: Duration = Duration::from_secs(10);
/// Presence updates per [`PRESENCE_WINDOW`] (Discord, Update Presence); more are not shown.
const PRESENCES_MAX: usize = 5;
const PRESENCE_WINDOW: Duration = Duration::from_secs(20);
/// Longest nonce; Discord drops a longer one, and the asker would wait for ever.
const NONCE_MAX: usize = 32;

/// A command that must not be sent: Discord would ignore it or close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field Discord needs.
    #[error("d.{0} is missing or of another type")]
    Field(&'static str),
    /// A guild of another shard.
    #[error("guild {guild} lies on shard {shard}")]
    OtherShard {
        /// The guild.
        guild: GuildId,
        /// Its shard.
        shard: u32,
    },
    /// A nonce Discord would drop.
    #[error("d.nonce has {0} bytes, Discord takes 32")]
    Nonce(usize),
    /// Too many wait already.
    #[error("{WAITING_MAX} commands wait for this shard")]
    Full,
}

/// What became of a command that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It waits for [`CommandQueue::poll`].
    Waiting,
    /// An equal member request is in flight or waits; its chunks carry this nonce.
    Merged {
        /// Nonce of the equal request.
        nonce: Option<String>,
        /// Where the equal request is.
        with: Equal,
    },
}

/// Where an equal member request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equal {
    /// It waits under this ticket.
    Waiting(u64),
    /// It was sent so long ago.
    Sent(Duration),
}

/// A member request without its nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Members {
    guild: GuildId,
    query: Option<String>,
    limit: u64,
    users: Vec<String>,
    presences: bool,
}

impl Members {
    fn is_all(&self) -> bool {
        self.users.is_empty() && self.limit == 0 && self.query.as_deref() == Some("")
    }
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    command: GatewayCommand,
    members: Option<Members>,
    since: Instant,
}

#[derive(Debug)]
struct Sent {
    members: Members,
    nonce: Option<String>,
    at: Instant,
}

/// The commands of one shard.
#[derive(Debug)]
pub struct CommandQueue {
    shard: ShardId,
    // In the order they came; at most WAITING_MAX.
    waiting: Vec<Waiting>,
    // Of the last 30 s: at most LIMIT.
    sent: Vec<Sent>,
    // Of the last 20 s: at most PRESENCES_MAX.
    presences: VecDeque<Instant>,
    // The budget has room again.
    room_at: Option<Instant>,
    // Waited, and will not be sent; until somebody asks.
    dropped: BTreeMap<CommandOp, u64>,
}

impl CommandQueue {
    /// A shard without commands.
    #[must_use]
    pub const fn new(shard: ShardId) -> Self {
        Self {
            shard,
            waiting: Vec::new(),
            sent: Vec::new(),
            presences: VecDeque::new(),
            room_at: None,
            dropped: BTreeMap::new(),
        }
    }

    /// Takes a command; `ticket` names it in [`CommandQueue::poll`].
    ///
    /// # Errors
    /// [`Refusal`] when it must not or cannot be sent.
    pub fn submit(
        &mut self,
        ticket: u64,
        command: GatewayCommand,
        now: Instant,
    ) -> Result<Placed, Refusal> {
        self.expire(now);
        let members = check(self.shard, &command)?;
        if let Some(members) = &members
            && let Some(merged) = self.equal(members, nonce(&command), now)
        {
            return Ok(merged);
        }
        if command.op == CommandOp::PresenceUpdate {
            // The newer presence is the one to be shown.
            self.drop_waiting(|waiting| waiting.command.op == CommandOp::PresenceUpdate);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Refusal::Full);
        }
        self.waiting.push(Waiting {
            ticket,
            command,
            members,
            since: now,
        });
        Ok(Placed::Waiting)
    }

    /// The next command to send, if there is one and `room` takes a place in the budget for it.
    /// `room` fails with the time to wait, or `None` while nothing can be sent.
    pub fn poll(
        &mut self,
        now: Instant,
        room: impl FnOnce() -> Result<(), Option<Duration>>,
    ) -> Option<(u64, GatewayCommand)> {
        self.expire(now);
        let due = self.waiting.iter().enumerate();
        let due = due.filter(|(_, waiting)| self.allowed_at(waiting, now) <= now);
        let (index, _) =
            due.min_by_key(|(index, waiting)| (priority(waiting.command.op), *index))?;
        if let Err(wait) = room() {
            self.room_at = wait.map(|wait| now + wait);
            return None;
        }
        self.room_at = None;
        let Waiting {
            ticket,
            command,
            members,
            ..
        } = self.waiting.remove(index);
        if command.op == CommandOp::PresenceUpdate {
            self.presences.push_back(now);
        }
        if let Some(members) = members {
            let nonce = nonce(&command).map(str::to_owned);
            self.sent.push(Sent {
                members,
                nonce,
                at: now,
            });
        }
        Some((ticket, command))
    }

    /// When [`CommandQueue::poll`] may have something next; `None` while nothing waits.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let allowed = self
            .waiting
            .iter()
            .map(|waiting| self.allowed_at(waiting, now))
            .min()?;
        Some(self.room_at.map_or(allowed, |room| room.max(allowed)))
    }

    /// How long the command of this ticket will wait, as far as can be told.
    #[must_use]
    pub fn wait_of(&self, ticket: u64, now: Instant) -> Option<Duration> {
        let index = self
            .waiting
            .iter()
            .position(|waiting| waiting.ticket == ticket)?;
        let waiting = &self.waiting[index];
        let own = priority(waiting.command.op);
        let ahead = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(other, ahead)| (priority(ahead.command.op), *other) < (own, index));
        // Room comes back in the rhythm it was used, on average.
        let behind = WINDOW.mul_f64(ahead.count() as f64 / LIMIT as f64);
        let room = self.room_at.unwrap_or(now).saturating_duration_since(now) + behind;
        let allowed = self.allowed_at(waiting, now);
        Some(room.max(allowed.saturating_duration_since(now)))
    }

    /// The connection is gone, and its budget with it.
    pub fn handle_disconnected(&mut self) {
        self.room_at = None;
    }

    /// Commands that had been taken and will never be sent, by opcode, each told once: a newer presence
    /// replaced them, or they waited for a connection for too long.
    pub fn poll_dropped(&mut self) -> Option<(CommandOp, u64)> {
        self.dropped.pop_first()
    }

    fn drop_waiting(&mut self, mut is_over: impl FnMut(&Waiting) -> bool) {
        for gone in self.waiting.extract_if(.., |waiting| is_over(waiting)) {
            *self.dropped.entry(gone.command.op).or_default() += 1;
        }
    }

    fn equal(&self, members: &Members, own: Option<&str>, now: Instant) -> Option<Placed> {
        // Chunks without a nonce cannot be found by one.
        let found = |theirs: Option<&str>| theirs.is_some() || own.is_none();
        let waits = self.waiting.iter().find(|waiting| {
            waiting.members.as_ref() == Some(members) && found(nonce(&waiting.command))
        });
        if let Some(waiting) = waits {
            return Some(Placed::Merged {
                nonce: nonce(&waiting.command).map(str::to_owned),
                with: Equal::Waiting(waiting.ticket),
            });
        }
        let in_flight = if members.is_all() {
            ALL_MEMBERS_EVERY
        } else {
            MEMBERS_IN_FLIGHT
        };
        let sent = self.sent.iter().rev().find(|sent| {
            sent.members == *members
                && found(sent.nonce.as_deref())
                && now.saturating_duration_since(sent.at) < in_flight
        })?;
        Some(Placed::Merged {
            nonce: sent.nonce.clone(),
            with: Equal::Sent(now.saturating_duration_since(sent.at)),
        })
    }

    /// When the limits of the single command let it go.
    fn allowed_at(&self, waiting: &Waiting, now: Instant) -> Instant {
        if waiting.command.op == CommandOp::PresenceUpdate && self.presences.len() >= PRESENCES_MAX
        {
            return self.presences[0] + PRESENCE_WINDOW;
        }
        let Some(members) = waiting.members.as_ref().filter(|members| members.is_all()) else {
            return now;
        };
        let last = self
            .sent
            .iter()
            .rev()
            .find(|sent| sent.members.guild == members.guild && sent.members.is_all());
        last.map_or(now, |sent| sent.at + ALL_MEMBERS_EVERY)
    }

    fn expire(&mut self, now: Instant) {
        let age = |since: Instant| now.saturating_duration_since(since);
        self.drop_waiting(|waiting| age(waiting.since) >= EXPIRES_AFTER);
        self.sent.retain(|sent| age(sent.at) < ALL_MEMBERS_EVERY);
        while self
            .presences
            .front()
            .is_some_and(|sent| age(*sent) >= PRESENCE_WINDOW)
        {
            self.presences.pop_front();
        }
    }
}

/// What goes first: people wait for voice; what others ask for can be asked again.
const fn priority(op: CommandOp) -> u8 {
    match op {
        CommandOp::VoiceStateUpdate => 0,
        CommandOp::PresenceUpdate => 1,
        CommandOp::RequestGuildMembers => 2,
        CommandOp::RequestSoundboardSounds | CommandOp::RequestChannelInfo => 3,
    }
}

fn nonce(command: &GatewayCommand) -> Option<&str> {
    command.d.get("nonce").and_then(Value::as_str)
}

/// Checks what Discord would close the connection for, or ignore.
fn check(shard: ShardId, command: &GatewayCommand) -> Result<Option<Members>, Refusal> {
    let d = &command.d;
    match command.op {
        CommandOp::PresenceUpdate => {
            let status = d.get("status").is_some_and(Value::is_string);
            status.then_some(()).ok_or(Refusal::Field("status"))?;
            let activities = d.get("activities").is_some_and(Value::is_array);
            activities
                .then_some(())
                .ok_or(Refusal::Field("activities"))?;
        }
        CommandOp::VoiceStateUpdate => {
            on_shard(shard, d.get("guild_id"), "guild_id")?;
            let channel = d.get("channel_id");
            let named =
                channel.is_some_and(|channel| channel.is_null() || id_of(channel).is_some());
            named.then_some(()).ok_or(Refusal::Field("channel_id"))?;
        }
        CommandOp::RequestGuildMembers => return members(shard, command).map(Some),
        CommandOp::RequestSoundboardSounds => {
            let guilds = d.get("guild_ids").and_then(Value::as_array);
            for guild in guilds.ok_or(Refusal::Field("guild_ids"))? {
                on_shard(shard, Some(guild), "guild_ids")?;
            }
        }
        CommandOp::RequestChannelInfo => {
            on_shard(shard, d.get("guild_id"), "guild_id")?;
            let fields = d.get("fields").is_some_and(Value::is_array);
            fields.then_some(()).ok_or(Refusal::Field("fields"))?;
        }
    }
    Ok(None)
}

fn members(shard: ShardId, command: &GatewayCommand) -> Result<Members, Refusal> {
    let d = &command.d;
    let guild = on_shard(shard, d.get("guild_id"), "guild_id")?;
    if let Some(nonce) = d.get("nonce").filter(|nonce| !nonce.is_null()) {
        let nonce = nonce.as_str().ok_or(Refusal::Field("nonce"))?;
        if nonce.len() > NONCE_MAX {
            return Err(Refusal::Nonce(nonce.len()));
        }
    }
    let query = match d.get("query").filter(|query| !query.is_null()) {
        Some(query) => Some(query.as_str().ok_or(Refusal::Field("query"))?.to_owned()),
        None => None,
    };
    let mut users: Vec<String> = match d.get("user_ids").filter(|users| !users.is_null()) {
        Some(Value::Array(users)) => users
            .iter()
            .filter_map(id_of)
            .map(|id| id.to_string())
            .collect(),
        Some(user) => vec![id_of(user).ok_or(Refusal::Field("user_ids"))?.to_string()],
        None => Vec::new(),
    };
    users.sort_unstable();
    users.dedup();
    if query.is_none() && users.is_empty() {
        return Err(Refusal::Field("query"));
    }
    let limit = d.get("limit").and_then(Value::as_u64);
    // Needed with a query only (Discord, Request Guild Members).
    if query.is_some() && limit.is_none() {
        return Err(Refusal::Field("limit"));
    }
    Ok(Members {
        guild,
        query,
        limit: limit.unwrap_or_default(),
        users,
        presences: d
            .get("presences")
            .and_then(Value::as_bool)
            .unwrap_or_default(),
    })
}

fn on_shard(
    shard: ShardId,
    guild: Option<&Value>,
    field: &'static str,
) -> Result<GuildId, Refusal> {
    let guild = guild.and_then(id_of).ok_or(Refusal::Field(field))?;
    let own = guild.shard(shard.count());
    if own == shard.id() {
        Ok(guild)
    } else {
        Err(Refusal::OtherShard { guild, shard: own })
    }
}

/// An id: libraries send text or a number.
fn id_of(value: &Value) -> Option<GuildId> {
    match value {
        Value::String(digits) => GuildId::from_digits(digits.as_bytes()),
        number => number.as_u64().and_then(GuildId::new),
    }
}

#[cfg(test)]
#[path = "commands/tests.rs"]
mod tests;
